//! `freeze`, `thaw` and `frozen`: file systems that stand still while the host copies their disks.
//!
//! A process of the guest that is no part of the agent freezes, and thaws again by itself: when it is told to, when the
//! time is over, or when the agent has ended. While something is frozen the agent refuses what would write (`busy`,
//! cause `frozen`).

use serde::{Deserialize, Serialize};

/// For how long file systems stay frozen if the request does not say, in milliseconds.
pub const FREEZE_MS: u64 = 30_000;
/// The longest that they may, in milliseconds.
pub const MAX_FREEZE_MS: u64 = 300_000;
/// How many file systems are frozen at most.
pub const MAX_FROZEN: usize = 128;

/// Freezes the guest's local file systems that can be written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FreezeRequest {
    /// They are thawed after this time, whatever becomes of the host and of the agent, in milliseconds; 30,000 if left
    /// out, 300,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Only those that are mounted at these places; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<String>>,
}

/// A file system that stands still.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FrozenMount {
    /// Where it is mounted.
    pub mount: String,
    /// Its type (`ext4`, `xfs`).
    pub fs_type: String,
    /// What it lies on.
    pub device: String,
}

/// A file system that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SkippedMount {
    /// Where it is mounted.
    pub mount: String,
    /// Why.
    pub reason: String,
}

/// The file systems stand still.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FreezeResult {
    /// What is frozen, in the order in which it was done.
    pub frozen: Vec<FrozenMount>,
    /// What one would expect to be frozen and is not.
    #[serde(default)]
    pub skipped: Vec<SkippedMount>,
    /// Programs of `/etc/drover-agent/freeze.d` that ran before.
    #[serde(default)]
    pub hooks: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// In how many milliseconds they are thawed if nobody asks for it.
    pub thaws_in_ms: u64,
}

/// Why file systems were thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThawedBy {
    /// It was asked for.
    #[default]
    Request,
    /// The time of the freeze was over.
    Deadline,
    /// The guest is about to be switched off.
    Shutdown,
    /// The agent ended.
    AgentLost,
    /// What kept them frozen was killed.
    KeeperLost,
    /// A reason that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// The file systems go on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ThawResult {
    /// Where those are mounted that were thawed.
    pub thawed: Vec<String>,
    /// Why.
    pub by: ThawedBy,
    /// How long all of them stood still, in milliseconds.
    pub frozen_ms: u64,
    /// What did not stand still until then: something else in the guest had thawed it. What was copied of it may be
    /// torn.
    #[serde(default)]
    pub failed: Vec<SkippedMount>,
    /// Programs of `/etc/drover-agent/freeze.d` that failed afterwards, with what they said.
    #[serde(default)]
    pub hooks_failed: Vec<String>,
    /// When, by the guest's clock: milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
}

/// What becomes of the file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FreezeState {
    /// They go on.
    #[default]
    Thawed,
    /// They are about to be frozen.
    Freezing,
    /// They stand still.
    Frozen,
    /// They go on, and programs that were told of the freeze are told so.
    Thawing,
    /// A state that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// What is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FrozenResult {
    /// How they are.
    pub state: FreezeState,
    /// Those that stand still.
    #[serde(default)]
    pub frozen: Vec<FrozenMount>,
    /// In how many milliseconds they are thawed if nobody asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaws_in_ms: Option<u64>,
    /// How the last freeze that this agent knows of ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<ThawResult>,
}
