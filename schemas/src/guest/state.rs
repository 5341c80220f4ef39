//! `ping`, `info`, `health` and `shutdown`.

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

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DiskInfo {
    /// Its name below `/dev`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether it cannot be written.
    #[serde(default)]
    pub read_only: bool,
}

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InterfaceInfo {
    /// Its name.
    pub name: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(default)]
    pub mac: String,
    /// Its addresses with prefix length (`10.0.0.2/24`).
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether it is up.
    #[serde(default)]
    pub up: bool,
}

/// What the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InfoResult {
    /// The version of the agent.
    pub agent_version: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// `linux` or `windows`.
    pub os: String,
    /// The distribution's own name for itself.
    #[serde(default)]
    pub os_name: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine (`x86_64`, `aarch64`).
    pub arch: String,
    /// The host name.
    pub hostname: String,
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory of the guest, in bytes.
    pub memory_bytes: u64,
    /// Milliseconds since boot.
    pub uptime_ms: u64,
    /// Block devices.
    #[serde(default)]
    pub disks: Vec<DiskInfo>,
    /// Network interfaces, without loopback.
    #[serde(default)]
    pub interfaces: Vec<InterfaceInfo>,
    /// The verbs that the owner of the guest allows, where the guest has a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<String>>,
}

/// How much attention the guest needs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Nothing to say.
    #[default]
    Ok,
    /// Should be looked at.
    Warn,
    /// Will fail soon, or fails.
    Critical,
    /// A status that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// How full a mounted file system is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DiskUse {
    /// Where it is mounted.
    pub mount: String,
    /// Its size in bytes.
    pub total_bytes: u64,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
}

/// How the guest is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HealthResult {
    /// The worst of all.
    pub status: HealthStatus,
    /// Why it is not `ok`, one sentence each.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// CPU time used since boot by everything, in milliseconds.
    pub cpu_busy_ms: u64,
    /// CPU time since boot, used or not, in milliseconds.
    pub cpu_total_ms: u64,
    /// Memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory that programs can still have, in bytes.
    pub memory_available_bytes: u64,
    /// Swap in bytes.
    #[serde(default)]
    pub swap_total_bytes: u64,
    /// Swap that is unused, in bytes.
    #[serde(default)]
    pub swap_free_bytes: u64,
    /// File systems on block devices, and the root.
    #[serde(default)]
    pub disks: Vec<DiskUse>,
    /// Milliseconds since boot.
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
