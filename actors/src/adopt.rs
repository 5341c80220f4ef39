//! What a starting daemon finds of one VM, and what its actor is told about it.

use drover_schemas::body::status::{Cause, CauseKind};
use drover_schemas::state::VmState;
use std::time::Duration;
use tracing::{error, info, warn};

use crate::bus::claims::OwnOutcome;
use crate::chain;
use crate::hypervisor::api::VmmState;
use crate::hypervisor::process::{AdoptError, adopt as adopt_process, destroy};
use crate::journal::{Batch, VmRow};
use crate::manager::{claim_of, name_key};
use crate::services::Services;
use crate::vm::explain::cause_of_exit;
use crate::vm::machine::{Effect, Input, Op as MachineOp};
use crate::vm::message::VmMsg;
use crate::vm::row::machine_of;
use crate::vm::tasks::Run;

/// Pause between attempts to read a claim.
const CLAIM_RETRY: Duration = Duration::from_millis(500);

/// What became of a VM of the journal.
#[derive(Debug)]
pub enum Found {
    /// Its actor goes on with this.
    Known(VmMsg),
    /// It never was: another host has the name, and nothing had been done for it here.
    Undone,
    /// It cannot be told now, for this reason; its actor says so. Nothing of it is touched, and it is looked at again.
    Unclear(VmMsg),
}

/// Finds out how a VM of the journal is. `rebooted`: the host was, since a daemon last looked; the run directory
/// may be gone with it.
pub async fn adopt(services: &Services, row: VmRow, rebooted: bool) -> Found {
    if row.released {
        let op: Option<MachineOp> = machine_of(&row).op;
        return Found::Known(VmMsg::Begin { machine: None, effects: vec![Effect::Gone { op }], trace: None });
    }
    if !row.owned && !confirm(services, &row).await {
        return Found::Undone;
    }
    match look(services, row, rebooted).await {
        Ok(message) => Found::Known(message),
        Err(failure) => {
            let text = format!("what runs for it cannot be looked at: {}", chain(&failure));
            let input = Input::FoundUnclear(Cause::new(CauseKind::HostResource, text));
            Found::Unclear(VmMsg::Adopt { run: None, input })
        }
    }
}

async fn look(services: &Services, row: VmRow, rebooted: bool) -> Result<VmMsg, AdoptError> {
    let dir = services.run_root.vm(row.vm_id);
    let cgroup = services.cgroup(row.vm_id);
    let half_booted = matches!(row.state, VmState::Creating | VmState::Starting);
    let undo_boot = async || {
        destroy(&dir, services.installation, &cgroup).await;
        gone(false, Cause::new(CauseKind::Adopted, "the boot was not finished"))
    };
    let found = match adopt_process(&dir, services.installation).await {
        Ok((process, _)) => {
            let run = Run::new(process);
            let info = run.api.info().await;
            match info {
                Ok(info) if !(half_booted && info.state.is_off()) => {
                    services.state.adopt(&row.namespace, row.vm_id, &row.spec);
                    let paused = info.state == VmmState::Paused;
                    VmMsg::Adopt { run: Some(run), input: Input::FoundAlive { paused } }
                }
                Err(failure) if !half_booted => {
                    warn!(vm_id = %row.vm_id, error = %chain(&failure), "the VMM lives but does not say how its guest is");
                    services.state.adopt(&row.namespace, row.vm_id, &row.spec);
                    let paused = row.state == VmState::Paused;
                    VmMsg::Adopt { run: Some(run), input: Input::FoundAlive { paused } }
                }
                _ => {
                    info!(vm_id = %row.vm_id, "a boot was not finished; it is undone and done again");
                    undo_boot().await
                }
            }
        }
        Err(AdoptError::NothingThere { exit: None, .. }) if rebooted => host_rebooted(),
        Err(AdoptError::NothingThere { exit, .. }) => gone(
            false,
            exit.map_or_else(
                || Cause::new(CauseKind::VmmExit, "no VMM was found"),
                |exit| cause_of_exit(services, &row, &exit),
            ),
        ),
        Err(AdoptError::Ended { exit }) => gone(false, cause_of_exit(services, &row, &exit)),
        Err(AdoptError::OtherBoot) => host_rebooted(),
        Err(failure @ AdoptError::NotOurs { .. }) => {
            // The number was given to another process: ours has ended.
            gone(false, Cause::new(CauseKind::VmmExit, chain(&failure).to_string()))
        }
        Err(AdoptError::Silent { source, .. }) if half_booted => {
            warn!(vm_id = %row.vm_id, error = %chain(&source), "a boot hangs; it is undone and done again");
            undo_boot().await
        }
        Err(AdoptError::Silent { process, source }) => {
            warn!(vm_id = %row.vm_id, error = %chain(&source), "the VMM lives but does not answer");
            services.state.adopt(&row.namespace, row.vm_id, &row.spec);
            let paused = row.state == VmState::Paused;
            VmMsg::Adopt { run: Some(Run::new(*process)), input: Input::FoundAlive { paused } }
        }
        Err(failure) => {
            error!(vm_id = %row.vm_id, error = %chain(&failure), "the VM cannot be adopted now and is left alone");
            return Err(failure);
        }
    };
    Ok(found)
}

fn host_rebooted() -> VmMsg {
    gone(true, Cause::new(CauseKind::HostReboot, "the host was rebooted"))
}

const fn gone(host_rebooted: bool, cause: Cause) -> VmMsg {
    VmMsg::Adopt { run: None, input: Input::FoundGone { host_rebooted, cause } }
}

/// The daemon ended between the row of a create and its claim: nothing happened yet. The claim decides.
async fn confirm(services: &Services, row: &VmRow) -> bool {
    loop {
        match services.claims.own(&name_key(row), &claim_of(services, row)).await {
            Ok(OwnOutcome::Done { .. }) => {
                services.journal.let_events_go(row.vm_id);
                return true;
            }
            Ok(OwnOutcome::Lost { .. }) => {
                warn!(vm_id = %row.vm_id, "the create was taken over by another host; its row is undone");
                if let Err(failure) = services.journal.commit(Batch::take_out(row)).await {
                    warn!(error = %chain(&failure), "the row could not be removed");
                }
                services.state.release(row, Duration::ZERO);
                return false;
            }
            Err(failure) => warn!(error = %chain(&failure), "the claim cannot be read, trying again"),
        }
        tokio::time::sleep(CLAIM_RETRY).await;
    }
}
