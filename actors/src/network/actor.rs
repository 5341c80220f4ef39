//! The network actor: the only one that changes the host's network.
//!
//! Requests queue up while a task works; the task takes all of them at once, so the elements of 64 VMs that
//! are created together go into one firewall transaction. If that is refused each is tried alone, so one bad
//! request never fails its neighbours. The task always ends in one message back, also when it panics.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::status::NicStatus;
use drover_schemas::id::VmId;
use drover_schemas::token::Token;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr};

use super::counters::{Counted, Counting};
use super::lease::NicLease;
use super::mend::{Before, Repair, Why};
use super::nft::Member;
use super::ops::{NetOps, NetworkConfig, NetworkDef, NetworkError, SweepReport, VmNet, members, statuses};
use crate::chain::chain;

/// How long a caller of [`NetworkHandle`] waits.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

type Reply<T> = RpcReplyPort<Result<T, NetworkError>>;

/// What the network actor is told.
#[derive(Debug)]
pub enum NetworkMsg {
    /// Make the interfaces of a VM; repeated on adoption.
    Attach(VmNet, Reply<Vec<NicStatus>>),
    /// Lead and refuse otherwise what is a VM's that has interfaces.
    Change(VmNet, Reply<()>),
    /// Remove the interfaces of a VM.
    Detach(VmId, Vec<NicLease>, Reply<()>),
    /// Make bridges and rules, with the VMs that have interfaces already.
    Restore(Vec<Before>, Reply<Repair>),
    /// Make a network.
    AddNetwork(Box<NetworkDef>, Reply<()>),
    /// Remove a network that no VM has an interface in.
    RemoveNetwork(Token, Reply<()>),
    /// Mend what others changed.
    Mend(Why, Reply<Repair>),
    /// Report what belongs to no known VM.
    Sweep(HashSet<VmId>, Reply<SweepReport>),
    /// Remove bridges and tables.
    Teardown(Reply<()>),
    /// The task ended.
    Idle,
}

/// The network actor.
#[derive(Debug)]
pub struct Network;

/// Its queue.
#[derive(Debug)]
pub struct NetworkState {
    ops: Arc<NetOps>,
    queue: VecDeque<NetworkMsg>,
    working: bool,
}

impl Actor for Network {
    type Msg = NetworkMsg;
    type State = NetworkState;
    type Arguments = Arc<NetOps>;

    async fn pre_start(
        &self,
        _myself: ActorRef<NetworkMsg>,
        ops: Arc<NetOps>,
    ) -> Result<NetworkState, ActorProcessingErr> {
        Ok(NetworkState { ops, queue: VecDeque::new(), working: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<NetworkMsg>,
        message: NetworkMsg,
        state: &mut NetworkState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NetworkMsg::Idle => state.working = false,
            request => state.queue.push_back(request),
        }
        if !state.working && !state.queue.is_empty() {
            state.working = true;
            let batch = take_batch(&mut state.queue);
            let ops = Arc::clone(&state.ops);
            let done = Done(myself);
            tokio::spawn(async move {
                work(&ops, batch).await;
                drop(done);
            });
        }
        Ok(())
    }
}

/// Says that the task ended, however it ended.
struct Done(ActorRef<NetworkMsg>);

impl Drop for Done {
    fn drop(&mut self) {
        // The actor is gone: nobody waits for it.
        let _ = self.0.cast(NetworkMsg::Idle);
    }
}

/// The next requests that can be done together: attaches and detaches of different VMs, or one other.
fn take_batch(queue: &mut VecDeque<NetworkMsg>) -> Vec<NetworkMsg> {
    let mut seen = HashSet::new();
    let mut batch = Vec::new();
    while let Some(next) = queue.front() {
        let joins = match next {
            NetworkMsg::Attach(vm, _) => seen.insert(vm.vm_id),
            NetworkMsg::Detach(vm_id, ..) => seen.insert(*vm_id),
            _ => batch.is_empty(),
        };
        if !joins {
            break;
        }
        let alone = !matches!(next, NetworkMsg::Attach(..) | NetworkMsg::Detach(..));
        batch.extend(queue.pop_front());
        if alone {
            break;
        }
    }
    batch
}

async fn work(ops: &NetOps, batch: Vec<NetworkMsg>) {
    let mut attach = Vec::new();
    let mut detach = Vec::new();
    for request in batch {
        match request {
            NetworkMsg::Attach(vm, reply) => attach.push((vm, reply)),
            NetworkMsg::Detach(vm_id, nics, reply) => detach.push((vm_id, nics, reply)),
            NetworkMsg::Change(vm, reply) => answer(reply, rules(ops, vm).await),
            NetworkMsg::Restore(vms, reply) => answer(reply, ops.restore(vms).await),
            NetworkMsg::AddNetwork(def, reply) => answer(reply, ops.add_network(&def).await),
            NetworkMsg::RemoveNetwork(name, reply) => answer(reply, ops.remove_network(&name).await),
            NetworkMsg::Mend(why, reply) => answer(reply, ops.mend(why).await),
            NetworkMsg::Sweep(known, reply) => answer(reply, ops.sweep(&known).await),
            NetworkMsg::Teardown(reply) => answer(reply, ops.teardown().await),
            NetworkMsg::Idle => {}
        }
    }
    if !attach.is_empty() || !detach.is_empty() {
        change(ops, attach, detach).await;
    }
}

async fn rules(ops: &NetOps, vm: VmNet) -> Result<(), NetworkError> {
    let old: HashSet<Member> = ops.known.vm(vm.vm_id).iter().flat_map(VmNet::members).collect();
    let new: HashSet<Member> = vm.members().into_iter().collect();
    let (add, remove): (Vec<_>, Vec<_>) =
        (new.difference(&old).cloned().collect(), old.difference(&new).cloned().collect());
    // From now on this is what should be, and what the watch mends.
    ops.known.insert(vm);
    let Err(error) = ops.change(&add, &remove).await else { return Ok(()) };
    tracing::warn!(error = %chain(&error), "the firewall refused a change; all rules are compared");
    ops.mend(Why::Look).await.map(drop)
}

async fn change(
    ops: &NetOps,
    attach: Vec<(VmNet, Reply<Vec<NicStatus>>)>,
    detach: Vec<(VmId, Vec<NicLease>, Reply<()>)>,
) {
    // First: what is taken away here is nobody's loss.
    let taken = |(vm_id, ..): &(VmId, _, _)| Some((*vm_id, ops.known.remove(*vm_id)?));
    let known: HashMap<VmId, VmNet> = detach.iter().filter_map(taken).collect();
    let forwards: Vec<Member> = known.values().flat_map(VmNet::routed_members).collect();
    let of_taps = |vm_id: VmId, nics: &[NicLease]| match known.get(&vm_id) {
        Some(vm) => vm.members_of_taps().collect(),
        None => members(nics),
    };
    let mut plugged = Vec::new();
    for (vm, reply) in attach {
        match ops.plug(&vm).await {
            Ok(()) => plugged.push((vm, reply)),
            Err(error) => answer(reply, Err(error)),
        }
    }
    let add: Vec<Member> = plugged.iter().flat_map(|(vm, _)| vm.members()).collect();
    let mut remove: Vec<Member> = detach.iter().flat_map(|(vm_id, nics, _)| of_taps(*vm_id, nics)).collect();
    remove.extend_from_slice(&forwards);
    let together = ops.change(&add, &remove).await;
    if let Err(error) = &together {
        tracing::warn!(error = %chain(error), requests = plugged.len() + detach.len(), "firewall batch refused");
    }
    for (vm, reply) in plugged {
        let done = match &together {
            Ok(()) => Ok(()),
            Err(_) => ops.change(&vm.members(), &[]).await,
        };
        match done {
            Ok(()) => {
                let statuses = statuses(&vm.nics);
                ops.known.insert(vm);
                answer(reply, Ok(statuses));
            }
            Err(error) => {
                // A port without rules must not stay.
                ops.known.remove(vm.vm_id);
                let _ = ops.unplug(vm.vm_id, &vm.nics).await;
                answer(reply, Err(error));
            }
        }
    }
    for (vm_id, nics, reply) in detach {
        let elements = match &together {
            Ok(()) => Ok(()),
            Err(_) => ops.change(&[], &of_taps(vm_id, &nics)).await,
        };
        // The TAP goes even if its elements stay: without it they match nothing.
        let links = ops.unplug(vm_id, &nics).await;
        answer(reply, elements.and(links));
    }
    if together.is_err() && !forwards.is_empty() {
        // They may have been the reason: what is not there cannot be removed, and what is there is found.
        if let Err(failure) = ops.mend(Why::Look).await {
            tracing::warn!(error = %chain(&failure), "forwards may be left; the next look removes them");
        }
    }
}

/// A caller that has given up is no failure of ours.
fn answer<T>(reply: Reply<T>, result: Result<T, NetworkError>) {
    if reply.send(result).is_err() {
        tracing::debug!("network request was answered to nobody");
    }
}

/// The way to the network actor; cheap to clone.
#[derive(Debug, Clone)]
pub struct NetworkHandle {
    actor: ActorRef<NetworkMsg>,
    /// To be read; only the actor changes anything.
    pub(super) ops: Arc<NetOps>,
    counting: Arc<Counting>,
}

impl NetworkHandle {
    /// Starts the actor, under `supervisor` if there is one.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn spawn(
        config: NetworkConfig,
        supervisor: Option<&ractor::ActorCell>,
    ) -> Result<Self, SpawnErr> {
        let ops = NetOps::new(config).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
        let ops = Arc::new(ops);
        let (actor, _join) = match supervisor {
            Some(supervisor) => {
                Actor::spawn_linked(None, Network, Arc::clone(&ops), supervisor.clone()).await?
            }
            None => Actor::spawn(None, Network, Arc::clone(&ops)).await?,
        };
        Ok(Self { actor, ops, counting: Arc::default() })
    }

    /// The actor.
    #[must_use]
    pub fn actor(&self) -> &ActorRef<NetworkMsg> {
        &self.actor
    }

    async fn call<T, F>(&self, message: F) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        F: FnOnce(Reply<T>) -> NetworkMsg,
    {
        match self.actor.call(message, Some(CALL_DEADLINE)).await {
            Ok(ractor::rpc::CallResult::Success(result)) => result,
            _ => Err(NetworkError::NoAnswer),
        }
    }

    /// Traffic of every interface, and what was refused of it.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn counted(&self) -> Result<Arc<Counted>, NetworkError> {
        self.counting.fresh(async || self.ops.counted().await).await
    }

    /// Makes the interfaces of a VM, or verifies those that are there.
    ///
    /// # Errors
    /// Nothing of it is left then, as far as it could be removed.
    pub async fn attach(&self, vm: VmNet) -> Result<Vec<NicStatus>, NetworkError> {
        self.call(|reply| NetworkMsg::Attach(vm, reply)).await
    }

    /// Lets ports of the host lead to a VM that is attached as `vm` says, and no others, and it reach what that says.
    ///
    /// # Errors
    /// The firewall refuses; the watch tries again.
    pub async fn change(&self, vm: VmNet) -> Result<(), NetworkError> {
        self.call(|reply| NetworkMsg::Change(vm, reply)).await
    }

    /// Removes the interfaces of a VM; they may be gone already.
    ///
    /// # Errors
    /// Something could not be removed: try again later.
    pub async fn detach(&self, vm_id: VmId, nics: Vec<NicLease>) -> Result<(), NetworkError> {
        self.call(|reply| NetworkMsg::Detach(vm_id, nics, reply)).await
    }

    /// Makes bridges and rules, or brings those that are there into this state, and takes over the interfaces of VMs
    /// that have any. To be called once, before the first attach. Tells what was wrong with what was there.
    ///
    /// # Errors
    /// A step failed.
    pub async fn restore(&self, vms: Vec<Before>) -> Result<Repair, NetworkError> {
        self.call(|reply| NetworkMsg::Restore(vms, reply)).await
    }

    /// How many bridges a network is made of.
    #[must_use]
    pub fn bridges_of(&self, name: &Token) -> u32 {
        let further = self.ops.known.further_of(name).len();
        u32::try_from(further).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Makes a network that the host did not have.
    ///
    /// # Errors
    /// Its addresses are somebody else's, or a step fails; nothing of it is left.
    pub async fn add_network(&self, def: NetworkDef) -> Result<(), NetworkError> {
        self.call(|reply| NetworkMsg::AddNetwork(Box::new(def), reply)).await
    }

    /// Removes a network that no VM has an interface in.
    ///
    /// # Errors
    /// A step fails; what is left goes when the daemon starts again.
    pub async fn remove_network(&self, name: Token) -> Result<(), NetworkError> {
        self.call(|reply| NetworkMsg::RemoveNetwork(name, reply)).await
    }

    /// Compares the network with what it should be, and mends it.
    ///
    /// # Errors
    /// The kernel cannot be asked, or rules cannot be laid.
    pub async fn mend(&self, why: Why) -> Result<Repair, NetworkError> {
        self.call(|reply| NetworkMsg::Mend(why, reply)).await
    }

    /// Reports what carries our marks and belongs to none of `known`; removes nothing.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn sweep(&self, known: HashSet<VmId>) -> Result<SweepReport, NetworkError> {
        self.call(|reply| NetworkMsg::Sweep(known, reply)).await
    }

    /// Removes bridges and tables of this installation.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        self.call(NetworkMsg::Teardown).await
    }
}
