//! `ping` and `shutdown`.

use serde::{Deserialize, Serialize};

/// The agent lives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PingResult {
    /// The boot that answers.
    pub boot_id: String,
    /// The guest's wall clock: milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Milliseconds since the guest booted.
    pub uptime_ms: u64,
}

/// How the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Power off.
    #[default]
    Poweroff,
    /// Boot again.
    Reboot,
    /// Stop the CPUs and stay.
    Halt,
}

/// Ends the guest through its own init.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ShutdownRequest {
    /// How.
    #[serde(default)]
    pub mode: ShutdownMode,
    /// Milliseconds between the answer and the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
}

/// The guest will end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ShutdownResult {
    /// By what: `systemd`, `init`, `supervisor` or `kernel`.
    pub method: String,
}
