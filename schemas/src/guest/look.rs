//! `info`, `health` and `processes`: what the guest is, how it is, and what it does.

use serde::{Deserialize, Serialize};

use super::check::{CheckState, RefusedFile};
use super::threshold::ThresholdState;

/// Processes in a reply if the request does not say how many.
pub const PROCESSES: u32 = 100;
/// The most processes in a reply.
pub const MAX_PROCESSES: u32 = 500;
/// The longest window over which CPU shares are measured, in milliseconds.
pub const MAX_SAMPLE_MS: u64 = 5_000;

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
    /// The file systems of it and of its partitions that are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountInfo>,
}

/// A file system on a block device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MountInfo {
    /// The disk or its partition, by its name below `/dev`.
    pub device: String,
    /// Where it is mounted.
    pub mount: String,
    /// Its kind, such as `ext4`.
    pub fs: String,
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
    /// The same over boots, and of this guest alone if it was set up well; empty where there is none.
    #[serde(default)]
    pub machine_id: String,
    /// `linux` or `windows`.
    pub os: String,
    /// The distribution's short name for itself, such as `debian`.
    #[serde(default)]
    pub os_id: String,
    /// The distribution's version, such as `12`.
    #[serde(default)]
    pub os_version: String,
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
    /// CPUs that the kernel could bring online; 0 if it does not say.
    #[serde(default)]
    pub cpus_possible: u32,
    /// What the first CPU calls itself.
    #[serde(default)]
    pub cpu_model: String,
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
    /// What keeps the guest's services: `systemd` or `openrc`; absent if neither is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
    /// Services that have failed or crashed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_units: Vec<String>,
    /// Checks, those of the spec first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckState>,
    /// Thresholds of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdState>,
    /// Files of the guest's owner that should declare checks and do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_files: Vec<RefusedFile>,
}

/// What processes are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessOrder {
    /// The largest share of a CPU first.
    #[default]
    Cpu,
    /// The most resident memory first.
    Memory,
    /// The smallest number first.
    Pid,
}

/// Lists processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProcessesRequest {
    /// Measure CPU shares over so many milliseconds, 5,000 at most; since each process began if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_ms: Option<u64>,
    /// With their arguments, which may hold secrets.
    #[serde(default)]
    pub args: bool,
    /// What comes first, and so what is left out when there are more than `limit`.
    #[serde(default)]
    pub sort: ProcessOrder,
    /// At most so many; 100 if left out, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A process of the guest.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProcessInfo {
    /// Its number.
    pub pid: u32,
    /// Its parent's number; 0 if it has none.
    pub ppid: u32,
    /// Its user's number.
    pub uid: u32,
    /// Its user by the guest's `/etc/passwd`; absent if that has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The kernel's letter: `R` runs, `S` sleeps, `D` waits for a device, `Z` is dead and not reaped, `T` is stopped,
    /// `I` is an idle thread of the kernel.
    pub state: String,
    /// When it began, by the guest's clock: milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// CPU time since then, in milliseconds.
    pub cpu_ms: u64,
    /// Its share of one CPU in percent, over the request's window or since it began; above 100 if it keeps several busy.
    pub cpu_percent: f64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Its threads.
    pub threads: u32,
    /// The program's name, as the kernel has it: at most 15 bytes, which the process may have chosen.
    pub name: String,
    /// Program and arguments, at most 1,024 bytes in all, if they were asked for; empty for a thread of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
}

/// The processes of the guest.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProcessesResult {
    /// When, by the guest's clock: milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// How many there are, listed or not.
    pub total: u32,
    /// The window of the CPU shares, in milliseconds; absent if they are since each began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_ms: Option<u64>,
    /// In the order that was asked for. Fewer than `limit` if their arguments are too much for a reply.
    pub processes: Vec<ProcessInfo>,
}

/// Bytes that went through an interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InterfaceUse {
    /// Its name.
    pub name: String,
    /// Received.
    pub received_bytes: u64,
    /// Sent.
    pub sent_bytes: u64,
}

/// Numbers of one moment, for the samples of the host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SampleResult {
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
    pub swap_total_bytes: u64,
    /// Swap that is unused, in bytes.
    pub swap_free_bytes: u64,
    /// File systems on block devices, and the root.
    pub disks: Vec<DiskUse>,
    /// Interfaces, without loopback.
    pub interfaces: Vec<InterfaceUse>,
}
