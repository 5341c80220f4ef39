//! `host.<host>.*`: what operators ask a host.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::usage::{Alarm, EventLog, NamespaceUse};
use crate::id::{InstallationId, VmId};
use crate::token::Token;

/// The hypervisor of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmmInfo {
    /// Path of the binary.
    pub path: String,
    /// What it says of its version.
    pub version: String,
    /// It is the software emulation, not the real hypervisor.
    pub emulated: bool,
}

/// What a host has and what it has promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Virtual CPUs that may be promised.
    pub cpus: u64,
    /// Of these, promised.
    pub cpus_used: u64,
    /// Memory that may be promised.
    pub memory_bytes: u64,
    /// Of this, promised, overhead included.
    pub memory_used_bytes: u64,
    /// Addresses of the default network.
    pub addresses: u64,
    /// Of these, leased or in quarantine.
    pub addresses_used: u64,
    /// VMs of any state.
    pub vms: u64,
    /// Room for the disks of VMs: what there is times `capacity.disk_ratio`.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Of this, promised: disks that VMs may write to, at their full length.
    #[serde(default)]
    pub disk_used_bytes: u64,
    /// Unix users for VMs.
    #[serde(default)]
    pub users: u64,
    /// Of these, leased or in quarantine.
    #[serde(default)]
    pub users_used: u64,
    /// VMs that may run at once before the daemon runs out of descriptors.
    #[serde(default)]
    pub running_limit: u64,
    /// VMs that run or have been promised to.
    #[serde(default)]
    pub running: u64,
    /// Interfaces that the bridges of all networks take.
    #[serde(default)]
    pub ports: u64,
    /// Of these, held by VMs that run or have been promised to.
    #[serde(default)]
    pub ports_used: u64,
}

/// Reply of `host.<host>.info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostInfo {
    /// Name of the host.
    pub host: Token,
    /// The installation.
    pub installation: InstallationId,
    /// Version of drover.
    pub version: String,
    /// Features that this version offers, for peers of other versions.
    pub features: Vec<String>,
    /// Operating system kernel.
    pub kernel: String,
    /// When the daemon started.
    pub started_unix_ms: u64,
    /// Process id of the daemon, by its own account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `adopting`, `connecting` (the stream or a bucket of the bus is not there yet), `ready` or `draining`.
    pub phase: String,
    /// The hypervisor.
    pub vmm: VmmInfo,
    /// Capacity and promises.
    pub capacity: Capacity,
    /// How many VMs are in each state.
    pub states: BTreeMap<String, u64>,
    /// Events that wait to be stored by the bus.
    pub outbox: u64,
    /// How full the space for them is; above 95 verbs that change a VM are refused.
    #[serde(default)]
    pub outbox_percent: u64,
    /// How the stream of events stands and how long it keeps them; absent until it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<EventLog>,
    /// How far the host's clock is ahead of the bus server's, to within half of a round trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// What is wrong now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Alarm>,
    /// What namespaces use, by name; the first 500 that use anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespaceUse>,
    /// Labels for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How VMs are confined and limited here, in words.
    #[serde(default)]
    pub confinement: BTreeMap<String, String>,
}

/// A VM with processes on the machine that the host does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Orphan {
    /// The VM, by the marks of its processes.
    pub vm_id: VmId,
    /// The installation that started it.
    pub installation: InstallationId,
    /// It is of this installation: its row was lost, as by a restore from an older backup.
    pub ours: bool,
    /// Its namespace, where its launch record is at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Token>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Token>,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Where its console and other evidence are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<String>,
    /// Why one of this installation was not taken back into the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Request of `host.<host>.orphans.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrphanRemoveRequest {
    /// The VM.
    pub vm_id: VmId,
}

/// Reply of `host.<host>.orphans`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrphansReply {
    /// Of this installation and of others, by installation and VM.
    pub orphans: Vec<Orphan>,
}

/// What a host writes about itself to the bucket of hosts: its row in the inventory, which goes 90 s after it was
/// written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostRecord {
    /// The host.
    pub host: Token,
    /// Its installation; a host of the same name with another id refuses to start.
    pub installation: InstallationId,
    /// Version of drover.
    pub version: String,
    /// Features that it offers; placers choose by them.
    pub features: Vec<String>,
    /// Capacity and promises.
    pub capacity: Capacity,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// It takes new VMs.
    pub accepting: bool,
    /// When it was written, by the host's clock.
    pub written_unix_ms: u64,
    /// As in `info`: `ready`, `draining` and so on.
    #[serde(default)]
    pub phase: String,
    /// What the hypervisor says of its version.
    #[serde(default)]
    pub vmm_version: String,
    /// Memory of a VMM beside its guest's, in bytes.
    #[serde(default)]
    pub overhead_bytes: u64,
    /// Free addresses of each network; absent where the host does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeMap<Token, u64>>,
    /// The subnet of each network; a network that is not among them is of a host that does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subnets: BTreeMap<Token, String>,
    /// Templates by name; absent where the host does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<Vec<Token>>,
    /// Beside these, the templates of single namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_templates: BTreeMap<Token, Vec<Token>>,
    /// Volumes of each namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Token, Vec<Token>>,
    /// Images; absent where the host does not say, such as for being too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<HostImage>>,
    /// Processes that wanted a core in the last minute, for each 100 cores.
    #[serde(default)]
    pub load_percent: u32,
}

/// An image that a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostImage {
    /// Its name there.
    pub name: String,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
}

/// Whose a host's name is. It stays when the host is silent, until an operator has the host forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostClaim {
    /// The installation that has the name.
    pub installation: InstallationId,
    /// When it said so last, by its own clock; every few minutes.
    pub seen_unix_ms: u64,
    /// When an operator had the host forgotten: VMs that it has from before are not its own any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_unix_ms: Option<u64>,
    /// The installation has not been heard since it was forgotten: the name is free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub free: bool,
    /// The subnets that its networks have out of pools of the fleet, by the names of the networks. No other host takes
    /// them, until this one is forgotten.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subnets: BTreeMap<Token, String>,
}

/// Request of `host.<host>.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostsRequest {
    /// At most this many; 100 if left out, 200 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Token>,
}

/// A host of the fleet, as the host that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEntry {
    /// The host.
    pub host: Token,
    /// It has been heard within its lease.
    pub online: bool,
    /// When it was heard last, by its own clock; absent if that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_unix_ms: Option<u64>,
    /// Whose its name is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<HostClaim>,
    /// What it says of itself, without its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<HostRecord>,
}

/// Reply of `host.<host>.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostsReply {
    /// Hosts by name.
    pub hosts: Vec<HostEntry>,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<Token>,
}

/// Request of `host.<host>.forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgetRequest {
    /// The host to forget: another one than the host that is asked.
    pub host: Token,
    /// Forget it though it is alive: its VMs run on, and nobody answers for them any more.
    #[serde(default)]
    pub force: bool,
}

/// A VM whose name was freed with its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgottenVm {
    /// Its namespace.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Its identity.
    pub vm_id: VmId,
}

/// Reply of `host.<host>.forget`. Repeating the request frees what is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgetReply {
    /// The host.
    pub host: Token,
    /// How many names of VMs were freed.
    pub freed: u64,
    /// The first hundred of them.
    pub vms: Vec<ForgottenVm>,
}

/// Request of `host.<host>.placed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedRequest {
    /// Namespace of the VM.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Its identity, by the claim.
    pub vm_id: VmId,
}

/// Reply of `host.<host>.placed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedReply {
    /// The host works on it, or has it.
    pub known: bool,
}

/// Reply of `host.<host>.backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupReply {
    /// Where the backup is on the host.
    pub path: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// VMs in it.
    pub vms: u64,
}

/// Request of `host.<host>.drain`. Repeating it changes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainRequest {
    /// Take no new VMs from now on, over restarts of the daemon too; `false` takes them again.
    pub on: bool,
}

/// Reply of `host.<host>.drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainReply {
    /// Whether the host takes new VMs.
    pub accepting: bool,
    /// VMs that it still has.
    pub vms: u64,
}
