//! Another agent in the place of the one that runs: `upgrade`. The program travels on the channel `data`.
//!
//! What was begun under the old agent goes on there to its end: commands with their terminals, files that move, detached
//! commands, which no agent holds anyway. Everything that is asked for later is the new agent's, which knows the ids of the
//! old one's requests. If the new one does not come up, the old one goes on as if nothing had been asked.

use serde::{Deserialize, Serialize};

/// The longest program of an agent, in bytes.
pub const MAX_PROGRAM: u64 = 64 * 1024 * 1024;

/// Replaces the agent's program in the guest and starts it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UpgradeRequest {
    /// Length of the program.
    pub size_bytes: u64,
    /// SHA-256 of the program, 64 lower-case hex digits.
    pub sha256: String,
    /// The version that the program must say it is; else any is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The new agent serves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UpgradeResult {
    /// The version that served before.
    pub before: String,
    /// The version that serves now.
    pub version: String,
    /// Where its program lies in the guest.
    pub path: String,
    /// Requests that go on under the old agent.
    pub going_on: u32,
}
