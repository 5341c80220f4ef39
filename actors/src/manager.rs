//! From names to actors: starts the actor of each VM, starts it again when it is lost, and never waits
//! for a VM.
//!
//! The [`Directory`] is shared with the router, which looks names up without a message. A VM of the
//! journal stands in it from the first moment of the daemon, before it is adopted; until then its slot
//! has no actor and its callers hear `unavailable{phase: adopting}`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use drover_schemas::blob::Blob;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::{ErrorBody, RequestId, Token, VmId, codec};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::adopt::{Found, adopt};
use crate::bus::claims::{Claim, Gone, NameKey, OwnOutcome, Phase};
use crate::chain;
use crate::guest::GuestIds;
use crate::journal::VmRow;
use crate::router::Router;
use crate::services::{Services, Shared, now_ms};
use crate::vm::actor::{VmActor, VmArgs, VmRef};
use crate::vm::machine::{Effect, Machine};
use crate::vm::message::{ChangeSender, VmMsg};

/// Pause before a lost actor is started again, so that one that is lost at once does not spin.
const RESPAWN: Duration = Duration::from_millis(500);
/// How long a subscription that ends waits for each message that is on its way.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause between attempts to free a name.
const FREE_RETRY: Duration = Duration::from_secs(1);

/// Where a VM is found.
#[derive(Debug)]
pub struct Slot {
    /// The VM.
    pub vm_id: VmId,
    /// Its actor; none before it is adopted and while a lost one is replaced.
    actor: RwLock<Option<VmRef>>,
    /// Requests that went to its guest. They outlive an actor that is lost.
    guest_ids: Mutex<GuestIds>,
    /// Ends the VM's subscription.
    gone: CancellationToken,
    /// There is a subscription.
    served: AtomicBool,
}

impl Slot {
    /// The actor, if there is one now.
    #[must_use]
    pub fn actor(&self) -> Option<VmRef> {
        self.actor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a request goes to a boot of the guest.
    ///
    /// # Errors
    /// It went to an earlier boot.
    pub fn bind_guest(&self, id: RequestId, boot_id: &str) -> Result<(), ErrorBody> {
        self.guest_ids.lock().unwrap_or_else(PoisonError::into_inner).bind(id, boot_id, Instant::now())
    }

    fn set(&self, actor: Option<VmRef>) {
        *self.actor.write().unwrap_or_else(PoisonError::into_inner) = actor;
    }
}

/// Names of this host's VMs, in order.
#[derive(Debug, Default)]
pub struct Directory {
    names: RwLock<BTreeMap<(Token, Token), Arc<Slot>>>,
    router: OnceLock<Router>,
}

impl Directory {
    /// The slot of a name.
    #[must_use]
    pub fn get(&self, namespace: &Token, name: &Token) -> Option<Arc<Slot>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&(namespace.clone(), name.clone())).cloned()
    }

    /// Slots of a namespace by name, from `after` on.
    #[must_use]
    pub fn page(&self, namespace: &Token, after: Option<&Token>, limit: usize) -> Vec<(Token, Arc<Slot>)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let from = match after {
            Some(after) => Bound::Excluded((namespace.clone(), after.clone())),
            None => names
                .keys()
                .find(|(ns, _)| ns >= namespace)
                .map_or(Bound::Unbounded, |first| Bound::Included(first.clone())),
        };
        names
            .range((from, Bound::Unbounded))
            .take_while(|((ns, _), _)| ns == namespace)
            .take(limit)
            .map(|((_, name), slot)| (name.clone(), Arc::clone(slot)))
            .collect()
    }

    /// Every slot.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes the slot of a VM, or finds it. A VM that is deleted but for its name does not take the name
    /// from one that has it already.
    pub fn insert(&self, row: &VmRow) -> Arc<Slot> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            Arc::new(Slot {
                vm_id: row.vm_id,
                actor: RwLock::new(None),
                guest_ids: Mutex::default(),
                gone: CancellationToken::new(),
                served: AtomicBool::new(false),
            })
        };
        let slot = names.entry((row.namespace.clone(), row.name.clone())).or_insert_with(fresh);
        if slot.vm_id != row.vm_id && row.released {
            return fresh();
        }
        if slot.vm_id != row.vm_id {
            slot.gone.cancel();
            *slot = fresh();
        }
        Arc::clone(slot)
    }

    /// Names the router; once.
    pub fn set_router(&self, router: Router) {
        let _ = self.router.set(router);
    }

    /// Every name.
    #[must_use]
    pub fn names(&self) -> Vec<(Token, Token)> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Subscribes for a VM of the directory, for as long as it stands there. The server knows of it before
    /// anything that is published on this connection afterwards.
    pub fn serve<'a>(
        &'a self,
        services: &'a Services,
        namespace: &'a Token,
        name: &'a Token,
    ) -> BoxFuture<'a, ()> {
        // Boxed: the router leads to creates, and a create leads here.
        Box::pin(async move {
            let (Some(router), Some(slot)) = (self.router.get().cloned(), self.get(namespace, name)) else {
                return;
            };
            if slot.served.swap(true, Ordering::Relaxed) {
                return;
            }
            let client = services.client.clone();
            match client.subscribe(services.subjects.vm_wildcard(namespace, name)).await {
                Ok(subscriber) => {
                    tokio::spawn(read(router, client, subscriber, slot));
                }
                Err(failure) => {
                    slot.served.store(false, Ordering::Relaxed);
                    error!(error = %chain(&failure), %namespace, %name, "a VM's subject could not be subscribed");
                }
            }
        })
    }

    fn remove(&self, row: &VmRow) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let key = (row.namespace.clone(), row.name.clone());
        if names.get(&key).is_some_and(|slot| slot.vm_id == row.vm_id)
            && let Some(slot) = names.remove(&key)
        {
            slot.gone.cancel();
        }
    }
}

async fn read(
    router: Router,
    client: async_nats::Client,
    mut subscriber: async_nats::Subscriber,
    slot: Arc<Slot>,
) {
    loop {
        tokio::select! {
            message = subscriber.next() => match message {
                Some(message) => router.accept(&client, message).await,
                None => return,
            },
            () = slot.gone.cancelled() => break,
        }
    }
    // What is on its way already is answered too: an unsubscription alone would lose it.
    if subscriber.drain().await.is_ok() {
        while let Ok(Some(message)) = tokio::time::timeout(DRAIN, subscriber.next()).await {
            router.accept(&client, message).await;
        }
    }
}

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
                state.adopt(&myself, *row).await;
            }
            ManagerMsg::Adopted { vm_id } => {
                info!(%vm_id, "adopted");
                state.adopting = state.adopting.saturating_sub(1);
                state.tell_adopted();
            }
            ManagerMsg::Respawn { vm_id } => {
                if let Some(row) = state.vms.get(&vm_id).map(|e| e.row.clone()) {
                    state.adopt(&myself, state.newest(row)).await;
                }
            }
            ManagerMsg::Gone { vm_id } => {
                if let Some(entry) = state.vms.remove(&vm_id) {
                    entry.slot.set(None);
                    state.args.directory.remove(&entry.row);
                }
                state.args.services.metrics.vms.set(i64::try_from(state.vms.len()).unwrap_or(i64::MAX));
            }
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

    async fn adopt(&mut self, myself: &ActorRef<ManagerMsg>, row: VmRow) {
        // The slot shows the actor only when it knows what it found.
        let Some(actor) = self.spawn(myself, row.clone()).await else { return };
        let Some(slot) = self.vms.get(&row.vm_id).map(|e| Arc::clone(&e.slot)) else { return };
        slot.set(None);
        let (services, manager) = (self.args.services.clone(), myself.clone());
        tokio::spawn(async move {
            let vm_id = row.vm_id;
            match adopt(&services, row).await {
                Found::Known(message) => {
                    let _ = actor.cast(message);
                    slot.set(Some(actor));
                }
                Found::Undone => {
                    actor.stop(None);
                    let _ = manager.cast(ManagerMsg::Gone { vm_id });
                }
                Found::Unclear => {}
            }
            let _ = manager.cast(ManagerMsg::Adopted { vm_id });
        });
    }

    /// The row as the journal has it now: an actor that was lost had moved on.
    fn newest(&self, row: VmRow) -> VmRow {
        match self.args.services.journal.load() {
            Ok(snapshot) => snapshot.vms.into_iter().find(|r| r.vm_id == row.vm_id).unwrap_or(row),
            Err(failure) => {
                warn!(error = %chain(&failure), "the journal cannot be read");
                row
            }
        }
    }

    fn tell_adopted(&mut self) {
        if self.adopting == 0 {
            for reply in self.when_adopted.drain(..) {
                let _ = reply.send(());
            }
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
