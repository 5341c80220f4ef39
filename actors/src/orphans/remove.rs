//! The end of an orphan, because an operator says so.

use std::time::Duration;

use drover_schemas::body::host::Orphan;
use drover_schemas::{ErrorBody, ErrorCode, VmId};
use tracing::info;

use super::{nics, record_of};
use crate::chain;
use crate::hypervisor::process::destroy;
use crate::services::Services;

/// Ends the processes of an orphan of this installation and takes away everything that it has here: network,
/// disks, run directory, address and user.
///
/// # Errors
/// It is another installation's, or something of it does not go.
pub async fn remove(services: &Services, orphan: &Orphan) -> Result<(), ErrorBody> {
    let vm_id = orphan.vm_id;
    if !orphan.ours {
        let text = format!("VM {vm_id} belongs to installation {}; ask its own host", orphan.installation);
        return Err(ErrorBody::new(ErrorCode::PermissionDenied, text));
    }
    let row = services.quarantined.row(vm_id);
    let record = record_of(&services.run_root, services.installation, vm_id);
    if let (None, Some(row)) = (&record, &row) {
        // In quarantine, and never started or down for long: there are only its files.
        let removed = services.remove_files(vm_id).await;
        removed.map_err(|e| stays(vm_id, format!("its files could not be removed: {e}")))?;
        let gone = crate::fleet::quarantine::removed(services, row).await;
        return gone.map_err(|e| e.to_body());
    }
    let record = record.ok_or_else(|| {
        let text = format!("VM {vm_id} has no launch record; end its processes by hand: {:?}", orphan.pids);
        ErrorBody::new(ErrorCode::Unsupported, text)
    })?;
    let stays = |what: String| stays(vm_id, what);
    let dir = services.run_root.vm(vm_id);
    if !destroy(&dir, services.installation, &record.cgroup).await {
        return Err(stays("a process of it does not end; repeat the request".to_owned()));
    }
    let nics = nics(&record);
    let detached = services.network.detach(vm_id, nics.clone()).await;
    detached.map_err(|e| stays(format!("its network could not be taken away: {}", chain(&e))))?;
    let removed = services.remove_files(vm_id).await;
    removed.map_err(|e| stays(format!("its files could not be removed: {e}")))?;
    match &row {
        Some(row) => crate::fleet::quarantine::removed(services, row).await.map_err(|e| e.to_body())?,
        None => {
            services.state.unhold(record.uid, &nics, services.limits.quarantine.max(Duration::from_secs(1)));
        }
    }
    info!(%vm_id, "an orphan was removed");
    Ok(())
}

fn stays(vm_id: VmId, what: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::Unavailable, what).with("vm_id", vm_id)
}
