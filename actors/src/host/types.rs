//! What a host may promise, and what a VM is promised.

use drover_schemas::VmId;

use super::PortRange;
use crate::network::NicLease;

/// What a host may promise.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Virtual CPUs: physical ones times the overcommit ratio.
    pub cpus: u64,
    /// Memory, in bytes, without the host's own share.
    pub memory_bytes: u64,
    /// Memory of a VMM beside its guest's, in bytes.
    pub overhead_bytes: u64,
    /// First Unix user of the range for VMs.
    pub first_uid: u32,
    /// How many users.
    pub uids: u32,
    /// Files that the daemon may have open.
    pub descriptors: u64,
    /// Room for the disks of VMs, in bytes: what there is times the overcommit ratio.
    pub disk_bytes: u64,
    /// How many times over what there is may be promised.
    pub disk_ratio: f64,
    /// Ports that may be forwarded to VMs.
    pub forward_ports: Option<PortRange>,
}

/// Resources of one VM: held by the row from the moment that it is durable.
#[derive(Debug, Clone)]
pub struct Leases {
    /// The VM.
    pub vm_id: VmId,
    /// The Unix user.
    pub uid: u32,
    /// Interfaces with their addresses.
    pub nics: Vec<NicLease>,
}
