//! Room for the disks of VMs.

use drover_schemas::body::spec::ResolvedDisk;
use drover_schemas::{ErrorBody, Token, VmId};

use super::{HostState, Inner, exhausted};
use crate::quota;

/// What may be written to disks, at their full length. A volume was counted when it was made.
pub(super) fn disk_bytes(disks: &[ResolvedDisk]) -> u64 {
    disks
        .iter()
        .filter(|disk| !disk.readonly && disk.volume.is_none())
        .map(ResolvedDisk::length)
        .fold(0, u64::saturating_add)
}

impl HostState {
    /// Promises a VM room for `disks` in the place of those that it has. `free` is what the host's file system has left
    /// now.
    ///
    /// # Errors
    /// `resource_exhausted` with what is left, or with the quota of the namespace; nothing is changed then.
    pub fn change_disks(
        &self,
        namespace: &Token,
        vm_id: VmId,
        disks: &[ResolvedDisk],
        free: u64,
    ) -> Result<(), ErrorBody> {
        let mut inner = self.lock();
        let wanted = disk_bytes(disks);
        let has = inner.held.get(&vm_id).map_or(0, |held| held.disk_bytes);
        self.check_disk(&inner, namespace, wanted.saturating_sub(has), Some(free))?;
        if let Some(held) = inner.held.get_mut(&vm_id) {
            held.disk_bytes = wanted;
        }
        drop(inner);
        self.changed();
        Ok(())
    }

    /// Takes what an earlier spec asks for over again, whose change was never durable.
    pub fn keep_disks(&self, vm_id: VmId, disks: &[ResolvedDisk]) {
        if let Some(held) = self.lock().held.get_mut(&vm_id) {
            held.disk_bytes = disk_bytes(disks);
        }
        self.changed();
    }

    /// Whether there is room for so much more that may be written.
    pub(super) fn check_disk(
        &self,
        inner: &Inner,
        namespace: &Token,
        wanted: u64,
        free: Option<u64>,
    ) -> Result<(), ErrorBody> {
        let (limit, used) = (self.quotas.of(namespace).disk_bytes, self.used_by(inner, namespace).disk_bytes);
        quota::check(namespace, "disk_bytes", "bytes of disk", limit, used, wanted)?;
        let promised = self.totals.disk_bytes.saturating_sub(self.disk_used(inner));
        // Others may have written to the file system since the daemon started.
        let left = free.map_or(promised, |free| promised.min((free as f64 * self.totals.disk_ratio) as u64));
        if wanted > left {
            return Err(exhausted("bytes of disk", left, wanted, "delete a VM"));
        }
        Ok(())
    }

    /// What is promised of it.
    pub(super) fn disk_used(&self, inner: &Inner) -> u64 {
        let held: u64 = inner.held.values().map(|held| held.disk_bytes).sum();
        held.saturating_add(self.volumes.bytes(None))
    }
}
