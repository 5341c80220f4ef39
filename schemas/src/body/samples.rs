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
