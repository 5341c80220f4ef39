//! What a start does about VMs that run and are in no row.

use std::sync::Arc;
use std::time::Duration;

use drover_schemas::InstallationId;
use drover_schemas::body::host::Orphan;
use drover_schemas::state::VmState;
use ractor::ActorRef;
use tracing::warn;

use crate::directory::Directory;
use crate::host_log::HostNote;
use crate::hypervisor::run_dir::RunRoot;
use crate::journal::{Snapshot, VmRow};
use crate::manager::ManagerMsg;
use crate::network::Before;
use crate::orphans::{self, NotImported};
use crate::services::Shared;
use crate::vm::tasks::vm_net;

/// Pause before the bus is asked again about an orphan.
const IMPORT_RETRY: Duration = Duration::from_secs(2);

/// Takes an orphan back into the journal as soon as the bus tells that it may be; else it is left alone.
pub(super) async fn bring_back(
    services: Shared,
    directory: Arc<Directory>,
    manager: ActorRef<ManagerMsg>,
    orphan: Orphan,
) {
    services.egress.ready().await;
    let reason = loop {
        match orphans::import(&services, &directory, &orphan).await {
            Ok(row) => {
                directory.list(&services, &row).await;
                let text = "a VM that ran without a row in the journal was imported";
                services.log.note(HostNote::alarm("imported", text).with("vm", orphans::label(&orphan)));
                let _ = manager.cast(ManagerMsg::Adopt(Box::new(row)));
                return;
            }
            Err(failure @ NotImported::NotYet { .. }) => {
                warn!(orphan = orphans::label(&orphan), %failure, "trying again");
                tokio::time::sleep(IMPORT_RETRY).await;
            }
            Err(NotImported::Never { reason }) => break reason,
        }
    };
    let label = orphans::label(&orphan);
    warn!(orphan = label, reason, "a VM of this installation runs without a row; it is left alone");
    let text = "a VM of this installation runs and is not in the journal; see host.orphans";
    services.log.note(HostNote::alarm("orphan", text).with("vm", label).with("reason", &reason));
    let mut reasons = services.not_imported.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    reasons.insert(orphan.vm_id, reason);
}

/// Every process of the machine is looked at, which takes a while.
pub(super) async fn find(
    run_root: RunRoot,
    installation: InstallationId,
    mut snapshot: Snapshot,
) -> (Vec<Orphan>, Snapshot) {
    let found = tokio::task::spawn_blocking(move || {
        let known = snapshot.vms.iter().map(|row| row.vm_id).collect();
        let orphans = orphans::find(&run_root, installation, &known);
        orphans::hold(&run_root, &orphans, &mut snapshot);
        (orphans, snapshot)
    });
    found.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Every VM whose interfaces may be there: those of the journal, and orphans.
pub(super) fn nets(
    run_root: &RunRoot,
    orphans: &[Orphan],
    snapshot: &Snapshot,
    rebooted: bool,
) -> Vec<Before> {
    let of_row = |row: &VmRow| Before {
        net: vm_net(row),
        ran: !rebooted && matches!(row.state, VmState::Running | VmState::Paused),
    };
    let of_orphan = |net| Before { net, ran: false };
    snapshot
        .vms
        .iter()
        .map(of_row)
        .chain(orphans::nets(run_root, orphans).into_iter().map(of_orphan))
        .collect()
}
