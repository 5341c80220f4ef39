//! From names to actors: starts the actor of each VM, starts it again when it is lost, and never waits
//! for a VM.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::state::VmState;
use drover_schemas::{RequestId, Token, VmId, codec};
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, SupervisionEvent};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::adopt::{Found, adopt};
use crate::bus::claims::{Claim, Gone, NameKey, OwnOutcome, Phase};
use crate::chain;
use crate::directory::{Directory, Slot};
use crate::fleet::quarantine;
use crate::journal::VmRow;
use crate::services::{Services, Shared, now_ms};
use crate::vm::actor::{VmActor, VmArgs, VmRef};
use crate::vm::machine::{Effect, Machine};
use crate::vm::message::{ChangeSender, VmMsg};

/// Pause before a VM that could not be looked at is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause before a lost actor is started again, so that one that is lost at once does not spin.
const RESPAWN: Duration = Duration::from_millis(500);
/// Pause between attempts to free a name.
const FREE_RETRY: Duration = Duration::from_secs(1);

/// A message to the manager.
#[derive(Debug)]
pub enum ManagerMsg {
    /// Start the actor of a VM whose row is durable.
    Spawn {
        /// The row.
        row: Box<VmRow>,
        /// The machine of the new VM, its first task under way.
        machine: Box<Machine>,
        /// What it begins with.
        effects: Vec<Effect>,
        /// The request's `traceparent`.
        trace: Option<String>,
        /// Waits for the outcome of the create.
        waiter: Option<(RequestId, ChangeSender)>,
        /// Told when the VM can be asked, or dropped if its actor could not be started.
        began: oneshot::Sender<()>,
    },
    /// Adopt a VM of the journal.
    Adopt(Box<VmRow>),
    /// A VM was adopted or cannot be.
    Adopted {
        /// The VM.
        vm_id: VmId,
    },
    /// Start a lost actor again.
    Respawn {
        /// The VM.
        vm_id: VmId,
    },
    /// The VM is gone.
    Gone {
        /// The VM.
        vm_id: VmId,
    },
    /// A VM is not this host's any more.
    Quarantine {
        /// The VM.
        vm_id: VmId,
        /// Why.
        reason: String,
        /// Who has its name now.
        holder: Option<Token>,
    },
    /// The VMM of a VM wrote events.
    Look {
        /// The VM.
        vm_id: VmId,
    },
    /// Answer when every VM was adopted.
    WhenAdopted(oneshot::Sender<()>),
}

/// The manager.
#[derive(Debug)]
pub struct Manager;

/// What the manager starts with.
#[derive(Debug)]
pub struct ManagerArgs {
    /// The host.
    pub services: Shared,
    /// Names, shared with the router.
    pub directory: Arc<Directory>,
    /// The host was rebooted since a daemon last looked at every VM.
    pub rebooted: bool,
}

#[derive(Debug)]
struct Entry {
    row: VmRow,
    slot: Arc<Slot>,
    actor: Option<VmRef>,
}

/// The state of the manager.
#[derive(Debug)]
pub struct ManagerState {
    args: ManagerArgs,
    vms: HashMap<VmId, Entry>,
    adopting: usize,
    when_adopted: Vec<oneshot::Sender<()>>,
}

impl Actor for Manager {
    type Msg = ManagerMsg;
    type State = ManagerState;
    type Arguments = ManagerArgs;

    async fn pre_start(
        &self,
        _: ActorRef<ManagerMsg>,
        args: ManagerArgs,
    ) -> Result<ManagerState, ActorProcessingErr> {
        Ok(ManagerState { args, vms: HashMap::new(), adopting: 0, when_adopted: Vec::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<ManagerMsg>,
        message: ManagerMsg,
        state: &mut ManagerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ManagerMsg::Spawn { row, machine, effects, trace, waiter, began } => {
                if let Some(actor) = state.spawn(&myself, *row).await {
                    if let Some((request_id, reply)) = waiter {
                        let _ = actor.cast(VmMsg::Attach { request_id, reply });
                    }
                    let _ = actor.cast(VmMsg::Begin { machine: Some(machine), effects, trace });
                    let _ = began.send(());
                }
            }
            ManagerMsg::Adopt(row) => {
                state.adopting += 1;
                state.adopt(&myself, *row, state.args.rebooted).await;
            }
            ManagerMsg::Adopted { vm_id } => {
                info!(%vm_id, "adopted");
                state.adopting = state.adopting.saturating_sub(1);
                state.tell_adopted();
            }
            ManagerMsg::Respawn { vm_id } => {
                if let Some(row) = state.vms.get(&vm_id).map(|e| e.row.clone()) {
                    state.adopt(&myself, newest(&state.args.services, row), false).await;
                }
            }
            ManagerMsg::Gone { vm_id } => {
                if let Some(entry) = state.vms.remove(&vm_id) {
                    entry.slot.set(None);
                    state.args.directory.remove(&entry.row);
                }
                state.args.services.metrics.vms.set(i64::try_from(state.vms.len()).unwrap_or(i64::MAX));
            }
            ManagerMsg::Quarantine { vm_id, reason, holder } => state.quarantine(vm_id, reason, holder),
            ManagerMsg::Look { vm_id } => {
                if let Some(actor) = state.vms.get(&vm_id).and_then(|e| e.actor.as_ref()) {
                    let _ = actor.cast(VmMsg::Look);
                }
            }
            ManagerMsg::WhenAdopted(reply) => {
                state.when_adopted.push(reply);
                state.tell_adopted();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ManagerMsg>,
        event: SupervisionEvent,
        state: &mut ManagerState,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, failure) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, Some(error.to_string())),
            // An actor that stops by itself says so by `Gone`.
            SupervisionEvent::ActorTerminated(_, _, None) => return Ok(()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell, reason),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        // A late event of an actor that was replaced is not about the present one.
        let lost =
            state.vms.values_mut().find(|e| e.actor.as_ref().is_some_and(|a| a.get_id() == cell.get_id()));
        if let Some(entry) = lost {
            let vm_id = entry.row.vm_id;
            error!(%vm_id, failure, "the actor of a VM was lost; its VMM runs on and is adopted again");
            entry.slot.set(None);
            entry.actor = None;
            state.args.services.metrics.actor_restarts.inc();
            myself.send_after(RESPAWN, move || ManagerMsg::Respawn { vm_id });
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<ManagerMsg>,
        state: &mut ManagerState,
    ) -> Result<(), ActorProcessingErr> {
        // Children of a parent that ends are killed; stopped ones leave in order.
        for entry in state.vms.values_mut() {
            entry.slot.set(None);
            if let Some(actor) = entry.actor.take() {
                actor.stop(None);
                let _ = actor.wait(Some(Duration::from_secs(2))).await;
            }
        }
        Ok(())
    }
}

impl ManagerState {
    async fn spawn(&mut self, myself: &ActorRef<ManagerMsg>, row: VmRow) -> Option<VmRef> {
        let slot = self.args.directory.insert(&row);
        let args = VmArgs { services: self.args.services.clone(), row: row.clone(), manager: myself.clone() };
        match Actor::spawn_linked(None, VmActor, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                slot.set(Some(actor.clone()));
                self.vms.insert(row.vm_id, Entry { row, slot, actor: Some(actor.clone()) });
                self.args.services.metrics.vms.set(i64::try_from(self.vms.len()).unwrap_or(i64::MAX));
                Some(actor)
            }
            Err(failure) => {
                error!(vm_id = %row.vm_id, error = %failure, "the actor of a VM could not be started");
                let vm_id = row.vm_id;
                self.vms.insert(vm_id, Entry { row, slot, actor: None });
                myself.send_after(RESPAWN, move || ManagerMsg::Respawn { vm_id });
                None
            }
        }
    }

    async fn adopt(&mut self, myself: &ActorRef<ManagerMsg>, row: VmRow, rebooted: bool) {
        // The slot shows the actor only when it knows what it found.
        let Some(actor) = self.spawn(myself, row.clone()).await else { return };
        let Some(slot) = self.vms.get(&row.vm_id).map(|e| Arc::clone(&e.slot)) else { return };
        slot.set(None);
        let (services, manager) = (self.args.services.clone(), myself.clone());
        tokio::spawn(async move {
            let vm_id = row.vm_id;
            let mut looked = false;
            loop {
                let found = adopt(&services, row.clone(), rebooted).await;
                let unclear = matches!(found, Found::Unclear(_));
                match found {
                    Found::Known(message) => {
                        let _ = actor.cast(message);
                        slot.set(Some(actor.clone()));
                    }
                    Found::Undone => {
                        actor.stop(None);
                        let _ = manager.cast(ManagerMsg::Gone { vm_id });
                    }
                    Found::Unclear(message) => {
                        // A VM that ran says that it is not known; others wait until it is.
                        let says = matches!(row.state, VmState::Running | VmState::Paused | VmState::Unknown);
                        if !looked && says {
                            let _ = actor.cast(message);
                            slot.set(Some(actor.clone()));
                        }
                    }
                }
                if !std::mem::replace(&mut looked, true) {
                    let _ = manager.cast(ManagerMsg::Adopted { vm_id });
                }
                if !unclear || actor.get_status() >= ActorStatus::Stopping {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
    }

    /// Lets go of a VM; what it takes until that is durable is not waited for here.
    fn quarantine(&mut self, vm_id: VmId, reason: String, holder: Option<Token>) {
        let Some(entry) = self.vms.remove(&vm_id) else {
            // It has gone meanwhile, and may say so.
            self.args.services.journal.let_events_go(vm_id);
            return;
        };
        entry.slot.set(None);
        self.args.directory.remove(&entry.row);
        let services = self.args.services.clone();
        tokio::spawn(async move {
            let newest = |row| newest(&services, row);
            quarantine::enter(&services, entry.row, entry.actor, newest, reason, holder).await;
        });
    }

    fn tell_adopted(&mut self) {
        if self.adopting == 0 {
            for reply in self.when_adopted.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

/// The row as the journal has it now: an actor that was lost had moved on.
fn newest(services: &Services, row: VmRow) -> VmRow {
    match services.journal.load() {
        Ok(snapshot) => snapshot.vms.into_iter().find(|r| r.vm_id == row.vm_id).unwrap_or(row),
        Err(failure) => {
            warn!(error = %chain(&failure), "the journal cannot be read");
            row
        }
    }
}

/// The key of a VM's name.
#[must_use]
pub fn name_key(row: &VmRow) -> NameKey {
    NameKey { namespace: row.namespace.clone(), name: row.name.clone() }
}

/// The claim that this host believes to have for a VM.
#[must_use]
pub fn claim_of(services: &Services, row: &VmRow) -> Claim {
    Claim {
        vm_id: row.vm_id,
        request_id: row.create_request,
        body_sha256: row.create_sha256.clone(),
        host: services.host.clone(),
        owner_epoch: row.owner_epoch,
        phase: Phase::Owned,
        deadline_unix_ms: 0,
        previous: Vec::new(),
        gone: None,
    }
}

/// Waits until the last event of a deleted VM is stored, then turns its name into a tombstone. Comes back
/// only when that is done: without the bus the row stays and the daemon tries again.
pub async fn free_name(services: &Services, row: &VmRow, request_id: RequestId, reply: &ChangeReply) {
    while let Err(failure) = services.egress.acked(row.vm_id, row.seq).await {
        warn!(error = %chain(&failure), "cannot tell whether the last event is stored");
        tokio::time::sleep(FREE_RETRY).await;
    }
    let reply = match codec::encode(reply) {
        Ok(bytes) => Blob::from(bytes),
        Err(failure) => {
            error!(error = %chain(&failure), "the reply of a delete could not be encoded");
            Blob::default()
        }
    };
    let gone = Gone { deleted_unix_ms: now_ms(), request_id, reply };
    loop {
        match services.claims.gone(&name_key(row), &claim_of(services, row), gone.clone()).await {
            Ok(OwnOutcome::Done { .. }) => return,
            Ok(OwnOutcome::Lost { claim }) => {
                warn!(vm_id = %row.vm_id, ?claim, "the name of a deleted VM belongs to somebody else");
                return;
            }
            Err(failure) => warn!(error = %chain(&failure), "the name is not free yet, trying again"),
        }
        tokio::time::sleep(FREE_RETRY).await;
    }
}
