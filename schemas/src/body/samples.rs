//! Samples: numbers that are published and not stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::Capacity;
use crate::guest::{DiskUse, InterfaceUse};
use crate::id::VmId;
use crate::state::VmState;
use crate::token::Token;

/// What a guest says of itself, where its spec has `agent.metrics_interval_ms`. Gone with the link to its agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GuestSample {
    /// When it was taken, by the host's clock.
    pub time_unix_ms: u64,
    /// Time that the guest's CPUs were busy since the sample before, in percent of all; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory that programs can still have, in bytes.
    pub memory_available_bytes: u64,
    /// Swap in bytes.
    pub swap_total_bytes: u64,
    /// Swap that is unused, in bytes.
    pub swap_free_bytes: u64,
    /// File systems on block devices, and the root; at most 16.
    pub disks: Vec<DiskUse>,
    /// Interfaces, without loopback; at most 16.
    pub interfaces: Vec<InterfaceUse>,
}

/// Numbers of one VM. By itself the body of `metric.ns.<ns>.vm.<name>`: a guest's figures that differ from those that
/// were told last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmSample {
    /// Name of the VM.
    pub name: Token,
    /// Its identity.
    pub vm_id: VmId,
    /// What it is.
    pub state: VmState,
    /// Memory of everything that belongs to it on the host, where the host counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The last that its guest said of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestSample>,
    /// Its interfaces; in the samples of its host only, not in those by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSample>,
}

/// Traffic of one interface as its host counts it, since the interface was made. Named as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicSample {
    /// The host's network.
    pub network: Token,
    /// The TAP.
    pub tap: String,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Frames that the guest sent.
    pub sent_packets: u64,
    /// Frames that the guest sent and the host's kernel could not take.
    pub sent_dropped: u64,
    /// Bytes that were handed to the guest.
    pub received_bytes: u64,
    /// Frames that were handed to the guest.
    pub received_packets: u64,
    /// Frames for the guest that it did not take in time.
    pub received_dropped: u64,
    /// Frames that the guest sent and that were refused: under a false address, or of a protocol that no guest has.
    pub refused_packets: u64,
    /// Packets that the guest sent and that were refused where they were to go.
    pub egress_refused_packets: u64,
    /// Frames that were dropped because the guest sent faster than it may, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_send_packets: Option<u64>,
    /// Frames that were dropped because they came to the guest faster than they may, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_receive_packets: Option<u64>,
}

/// The body of `metric.ns.<ns>.host.<host>`: the host's running VMs of one namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NamespaceSample {
    /// The host.
    pub host: Token,
    /// When it was taken, by the host's clock.
    pub time_unix_ms: u64,
    /// VMs by name; a namespace with many is told in several messages.
    pub vms: Vec<VmSample>,
}

/// The body of `metric.host.<host>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostSample {
    /// The host.
    pub host: Token,
    /// When it was taken, by the host's clock.
    pub time_unix_ms: u64,
    /// Capacity and promises.
    pub capacity: Capacity,
    /// Events that wait to be stored by the bus.
    pub outbox: u64,
}
