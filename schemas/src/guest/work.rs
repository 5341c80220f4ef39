//! `clock`, `online`, `trim`, `reseed` and `identity`: work that a guest does for its host.

use serde::{Deserialize, Serialize};

use super::SkippedMount;
use crate::blob::Blob;

/// Reads the guest's clock, or moves it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MoveClockRequest {
    /// By so many microseconds; forward if positive. Left out, it is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_us: Option<i64>,
    /// At once; else by making it run a little faster or slower, about half a millisecond a second.
    #[serde(default)]
    pub step: bool,
}

/// The guest's clock, after what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MoveClockResult {
    /// Microseconds since the Unix epoch.
    pub unix_us: i64,
}

/// Brings what was added to the guest online.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OnlineRequest {}

/// What is online.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OnlineResult {
    /// How many CPUs.
    pub cpus: u32,
    /// The numbers of those that were brought online now.
    #[serde(default)]
    pub cpus_added: Vec<u32>,
    /// How much memory, in bytes, where the kernel tells it by blocks; else what it uses.
    pub memory_bytes: u64,
    /// How much of it was brought online now, in bytes.
    #[serde(default)]
    pub memory_added_bytes: u64,
    /// What could not be brought online, and why; at most 64.
    #[serde(default)]
    pub failed: Vec<String>,
}

/// Tells the disks which blocks of the guest's file systems are unused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TrimRequest {
    /// Only those that are mounted at these places; all local ones that can be written if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<String>>,
}

/// What a file system gave back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TrimmedMount {
    /// Where it is mounted.
    pub mount: String,
    /// How much it has told the disk, in bytes. Some tell the same again, others only what is new.
    pub trimmed_bytes: u64,
}

/// What the file systems gave back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TrimResult {
    /// Each of them.
    pub trimmed: Vec<TrimmedMount>,
    /// Those that cannot, and why.
    #[serde(default)]
    pub skipped: Vec<SkippedMount>,
}

/// Randomness from the host, for the kernel of a guest that may have a twin. Harmless if it is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReseedRequest {
    /// 32 to 512 random bytes.
    pub entropy: Blob,
}

/// Makes a guest that was cloned another one than its twin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct IdentityRequest {
    /// Its name from now on; as it was if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What stays as it is.
    #[serde(default)]
    pub keep: Vec<IdentityPart>,
}

/// A part of what makes a guest itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentityPart {
    /// What the kernel's random numbers come from.
    #[default]
    Rng,
    /// `/etc/machine-id`, and that of D-Bus.
    MachineId,
    /// Its name.
    Hostname,
    /// The keys by which its SSH server is known.
    SshHostKeys,
    /// What DHCP servers know it by, and the addresses that they gave.
    Dhcp,
    /// What cloud-init takes for the machine that it has set up: it does so again at the next boot.
    CloudInit,
    /// A part that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl IdentityPart {
    /// As on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rng => "rng",
            Self::MachineId => "machine_id",
            Self::Hostname => "hostname",
            Self::SshHostKeys => "ssh_host_keys",
            Self::Dhcp => "dhcp",
            Self::CloudInit => "cloud_init",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartOutcome {
    /// It is new.
    #[default]
    Done,
    /// It was to stay, or nothing else was asked for.
    Kept,
    /// The guest has no such thing.
    Absent,
    /// An outcome that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl PartOutcome {
    /// As on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Kept => "kept",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PartResult {
    /// Which.
    pub part: IdentityPart,
    /// What.
    pub outcome: PartOutcome,
    /// What it is now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What became of each part. One that fails holds up none of the others; it makes the whole a `guest_error` whose
/// details have each part by its name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct IdentityResult {
    /// In the order in which they were done.
    pub parts: Vec<PartResult>,
}
