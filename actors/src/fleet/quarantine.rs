//! VMs that this host has and that are not its own any more: another host was given the name, or an operator had this
//! host forgotten. What runs of them runs on. Nobody is answered for them, nothing is told of them, what they hold is
//! given to nobody else, and only an operator ends them (`host.orphans.remove`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_schemas::body::host::Orphan;
use drover_schemas::{Token, VmId};
use tracing::warn;

use crate::chain;
use crate::host_log::HostNote;
use crate::journal::{Batch, Op, VmRow};
use crate::services::Services;
use crate::vm::actor::VmRef;

/// How long the actor of a VM has to finish what it writes.
const ACTOR_ENDS: Duration = Duration::from_secs(5);
/// Pause before the journal is asked again to remember it.
const RETRY: Duration = Duration::from_secs(1);

/// The VMs in quarantine.
#[derive(Debug, Default)]
pub struct Quarantine(Mutex<BTreeMap<VmId, VmRow>>);

impl Quarantine {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, VmRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a VM of this name is in quarantine.
    #[must_use]
    pub fn has(&self, namespace: &Token, name: &Token) -> bool {
        self.lock().values().any(|row| row.namespace == *namespace && row.name == *name)
    }

    /// The row of a VM in quarantine.
    #[must_use]
    pub fn row(&self, vm_id: VmId) -> Option<VmRow> {
        self.lock().get(&vm_id).cloned()
    }

    /// Takes out of `found` what is known here, and adds what has no process: VMs in quarantine as an operator sees
    /// them.
    pub fn list(&self, services: &Services, found: &mut Vec<Orphan>) {
        for row in self.lock().values() {
            let reason = row.quarantined.clone();
            match found.iter_mut().find(|orphan| orphan.vm_id == row.vm_id) {
                Some(orphan) => orphan.reason = reason,
                None => found.push(Orphan {
                    vm_id: row.vm_id,
                    installation: services.installation,
                    ours: true,
                    namespace: Some(row.namespace.clone()),
                    name: Some(row.name.clone()),
                    pids: Vec::new(),
                    run_dir: None,
                    reason,
                }),
            }
        }
    }
}

/// Puts a VM of the journal, which a start found in quarantine, there again.
pub fn keep(services: &Services, row: &VmRow) {
    services.journal.hold_events(row.vm_id);
    // It may run still: what it takes is promised to nobody.
    services.state.adopt(&row.namespace, row.vm_id, &row.spec);
    services.quarantined.lock().insert(row.vm_id, row.clone());
}

/// Puts a VM into quarantine, over restarts of the daemon too. `newest` reads the row once its actor has ended.
pub async fn enter(
    services: &Services,
    row: VmRow,
    actor: Option<VmRef>,
    newest: impl FnOnce(VmRow) -> VmRow + Send,
    reason: String,
    holder: Option<Token>,
) {
    services.journal.hold_events(row.vm_id);
    services.quarantined.lock().insert(row.vm_id, VmRow { quarantined: Some(reason.clone()), ..row.clone() });
    if let Some(actor) = actor {
        actor.stop(None);
        let _ = actor.wait(Some(ACTOR_ENDS)).await;
    }
    let row = VmRow { quarantined: Some(reason.clone()), ..newest(row) };
    keep(services, &row);
    let text = "a VM is not this host's any more: it runs on, nobody is answered for it; see host.orphans";
    let note = HostNote::alarm("quarantined", text)
        .with("vm", format!("{}/{}", row.namespace, row.name))
        .with("vm_id", row.vm_id)
        .with("reason", reason);
    services.log.note(match holder {
        Some(holder) => note.with("holder", holder),
        None => note,
    });
    while let Err(failure) =
        services.journal.commit(Batch::new().essential().with(Op::PutVm(Box::new(row.clone())))).await
    {
        warn!(vm_id = %row.vm_id, error = %chain(&failure), "the quarantine of a VM is not durable yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// Removes what the journal has of a VM in quarantine, of which nothing is left.
///
/// # Errors
/// The journal refused.
pub async fn removed(services: &Services, row: &VmRow) -> Result<(), crate::journal::JournalError> {
    services.journal.commit(Batch::take_out(row)).await?;
    services.quarantined.lock().remove(&row.vm_id);
    services.state.release(row, services.limits.quarantine);
    services.journal.let_events_go(row.vm_id);
    Ok(())
}
