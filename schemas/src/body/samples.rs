//! Samples: numbers that are published and not stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::Capacity;
use crate::id::VmId;
use crate::state::VmState;
use crate::token::Token;

/// Numbers of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
}

/// The body of `metric.ns.<ns>.host.<host>`: the host's running VMs of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
