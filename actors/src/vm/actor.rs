//! The actor of a VM: a thin shell around [`Machine`].
//!
//! Each input is applied, the new machine and what it publishes are committed, and only then does
//! anything happen: replies, tasks, timers. A commit that fails leaves the machine as it was; a request
//! is then refused, and what merely happened is tried again. Handlers never await a task, a socket or
//! the bus. Tasks, watchers and timers carry a generation: what comes late is dropped.
//!
//! The VMM's death is an input, not a failure of this actor. When the actor itself is lost, the VMM, its
//! holder and the row live on and the manager adopts the VM again.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use drover_schemas::RequestId;
use drover_schemas::body::status::{Cause, CauseKind};
use drover_schemas::body::vm::{ChangeReply, Outcome};
use drover_schemas::guest::verb;
use drover_schemas::state::VmState;
use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, error, info, info_span, warn};

use super::clock;
use super::inside::Allowance;
use super::machine::{Context, Effect, Input, Machine, Op, Report, Task};
use super::marks::Marks;
use super::message::{ChangeSender, View, VmMsg};
use super::prepare::{bound_row, prepare, push_request, reply};
use super::row::{Live, machine_of, status};
use super::tasks::{self, Run, TaskContext, TaskEnd};
use super::tend::Tend;
use super::watch::{LinkWatch, RunWatch};
use crate::chain;
use crate::guest::Link;
use crate::hypervisor::cause;
use crate::ingress::permits::Permit;
use crate::journal::{Batch, JournalError, Op as Write, RequestRow, RequestState, VmRow};
use crate::manager::ManagerMsg;
use crate::services::{Shared, now_ms};
use crate::trace;

mod inside;
mod requests;
mod spec;

pub(super) use inside::carry;
pub use inside::{Taken, TakenSender};
pub use requests::{Remembered, adopting, name_reused, other_body, outcome_result, remembered};

/// Pause before an input whose commit failed is tried again.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// Reboots of a guest in a row, without its agent, that are a loop.
const REBOOT_LOOP: u32 = 5;

/// A reference to the actor of a VM.
pub type VmRef = ActorRef<VmMsg>;

/// Everything that an actor knows of its VM; `None` if it is gone.
pub async fn view(actor: &VmRef) -> Option<Box<View>> {
    let (reply, view) = tokio::sync::oneshot::channel();
    let _ = actor.cast(VmMsg::View(reply));
    view.await.ok()
}

/// The actor; it has no state of its own.
#[derive(Debug)]
pub struct VmActor;

/// What an actor starts with.
#[derive(Debug)]
pub struct VmArgs {
    /// The host.
    pub services: Shared,
    /// The VM as the journal has it.
    pub row: VmRow,
    /// Told when the VM is gone.
    pub manager: ActorRef<ManagerMsg>,
}

/// The state of the actor.
#[derive(Debug)]
pub struct VmActorState {
    services: Shared,
    manager: ActorRef<ManagerMsg>,
    row: VmRow,
    machine: Machine,
    live: Live,
    run: Option<(Run, RunWatch)>,
    link: Option<Link>,
    link_watch: Option<LinkWatch>,
    /// The guest was paused in this run.
    clock_is_due: bool,
    task: Option<(u64, CancellationToken)>,
    generation: u64,
    waiters: HashMap<RequestId, Vec<ChangeSender>>,
    /// Permits of accepted requests, returned with their outcomes.
    permits: HashMap<RequestId, Permit>,
    /// The delete whose outcome is due when the name is free.
    gone: Option<Option<Op>>,
    span: Span,
    /// Reboots of the guest since its agent answered.
    reboots: u32,
    /// `traceparent` of the request that is being worked on.
    trace: Option<String>,
    /// What of its quota the guest's programs have left; all of it before their first event.
    allowance: Option<Allowance>,
    /// It will be told what was dropped of their events.
    telling: bool,
}

impl Actor for VmActor {
    type Msg = VmMsg;
    type State = VmActorState;
    type Arguments = VmArgs;

    async fn pre_start(&self, myself: VmRef, args: VmArgs) -> Result<VmActorState, ActorProcessingErr> {
        let span = info_span!(target: trace::LOG_ONLY, "vm", vm_id = %args.row.vm_id, ns = %args.row.namespace, vm = %args.row.name);
        let machine = machine_of(&args.row);
        let mut state = VmActorState {
            services: args.services,
            manager: args.manager,
            row: args.row,
            machine,
            live: Live::default(),
            run: None,
            link: None,
            link_watch: None,
            clock_is_due: false,
            task: None,
            generation: 0,
            waiters: HashMap::new(),
            permits: HashMap::new(),
            gone: None,
            span,
            reboots: 0,
            trace: None,
            allowance: None,
            telling: false,
        };
        state.tell_dropped_later(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: VmRef,
        message: VmMsg,
        state: &mut VmActorState,
    ) -> Result<(), ActorProcessingErr> {
        let span = state.span.clone();
        state.on(&myself, message).instrument(span).await;
        Ok(())
    }

    async fn post_stop(&self, _: VmRef, state: &mut VmActorState) -> Result<(), ActorProcessingErr> {
        // The VM outlives this actor; only what watches it ends.
        state.link_watch = None;
        state.run = None;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: VmRef,
        _: SupervisionEvent,
        _: &mut VmActorState,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children; the default would stop the actor.
        Ok(())
    }
}

impl VmActorState {
    async fn on(&mut self, myself: &VmRef, message: VmMsg) {
        match message {
            VmMsg::Change(change) => {
                self.on_change(myself, *change).await;
                // A start that was refused gives back what was reserved for it.
                self.give_back_capacity();
            }
            VmMsg::Attach { request_id, reply } => self.on_attach(request_id, reply),
            VmMsg::Status(reply) => {
                let _ = reply.send(status(&self.services.host, &self.row, &self.machine, &self.live, false));
            }
            VmMsg::View(reply) => {
                let _ = reply.send(Box::new(self.view()));
            }
            // Made durable by whoever created the VM.
            VmMsg::Begin { machine, effects, trace } => {
                self.trace = trace;
                if let Some(machine) = machine {
                    self.machine = *machine;
                }
                effects.into_iter().for_each(|effect| self.act(myself, effect));
            }
            VmMsg::Adopt { run, input } => {
                if let Some(run) = run {
                    // It may have been resumed by a daemon that died before it told anybody.
                    self.clock_is_due = self.machine.state == VmState::Paused;
                    self.take_run(myself, run);
                }
                self.happened(myself, input).await;
            }
            VmMsg::TaskDone { generation, end } => self.on_task_done(myself, generation, end).await,
            VmMsg::Exited { incarnation, exit } => {
                if incarnation == self.machine.incarnation {
                    let cause = super::explain::cause_of_exit(&self.services, &self.row, &exit);
                    self.drop_link();
                    self.happened(myself, Input::VmmExited(cause)).await;
                }
            }
            VmMsg::Look => {
                if let Some((_, watch)) = &self.run {
                    watch.look();
                }
            }
            VmMsg::Observed { incarnation, inputs } => {
                if incarnation == self.machine.incarnation && self.run.is_some() {
                    for input in inputs {
                        self.on_observed(myself, input).await;
                    }
                }
            }
            VmMsg::LinkUp { generation, link } => self.on_link_up(myself, generation, link).await,
            VmMsg::LinkDown { generation, cause } => {
                if self.link_watch.as_ref().is_some_and(|w| w.generation() == generation) {
                    self.link = None;
                    self.live.agent = None;
                    self.live.last_error = self.link_watch.as_ref().map(LinkWatch::last_error);
                    self.happened(myself, Input::AgentLost(cause)).await;
                }
            }
            VmMsg::BackoffElapsed { generation } => {
                if generation == self.generation && self.machine.state == VmState::Backoff {
                    self.happened(myself, Input::BackoffElapsed).await;
                }
            }
            VmMsg::HostStopping { grace_ms } => {
                self.happened(myself, Input::HostStopping { grace_ms }).await;
            }
            VmMsg::Inside { batch, reply } => {
                let _ = reply.send(self.on_inside(myself, &batch).await);
            }
            VmMsg::TellDropped => self.on_tell_dropped(myself).await,
            VmMsg::Retry(input) => self.happened(myself, input).await,
            VmMsg::Finalised => self.on_finalised(myself).await,
        }
    }

    fn view(&self) -> View {
        View {
            row: self.row.clone(),
            machine: self.machine.clone(),
            live: self.live.clone(),
            run: self.run.as_ref().map(|(run, _)| run.clone()),
            link: self.link.clone(),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            now_ms: now_ms(),
            jitter: rand::random(),
            restart: &self.row.spec.restart,
            agent_enabled: self.row.spec.agent.enabled,
        }
    }

    /// Applies what happened; a commit that fails is tried again later, so nothing is lost.
    async fn happened(&mut self, myself: &VmRef, input: Input) {
        let (next, effects) = self.machine.apply(input.clone(), &self.context());
        if let Err(error) = self.commit(myself, next, effects, None).await {
            warn!(error = %chain(&error), "the journal refused, trying again");
            myself.send_after(COMMIT_RETRY, move || VmMsg::Retry(input));
        }
    }

    async fn on_observed(&mut self, myself: &VmRef, input: Input) {
        match &input {
            Input::GuestReboot if matches!(self.machine.task, Some(Task::Reboot)) => return,
            Input::GuestReboot | Input::GuestPowerOff => self.drop_link(),
            _ => {}
        }
        let reboot = input == Input::GuestReboot;
        self.happened(myself, input).await;
        if reboot {
            self.watch_link(myself);
            self.count_reboot(myself).await;
        }
    }

    /// A guest that reboots before its agent is up would begin its time anew for ever.
    async fn count_reboot(&mut self, myself: &VmRef) {
        self.reboots += 1;
        if self.reboots == REBOOT_LOOP && self.row.spec.agent.enabled {
            let console = self.services.run_root.vm(self.row.vm_id).console_tail(cause::TAIL_MAX);
            let text = format!("the guest rebooted itself {REBOOT_LOOP} times and its agent never answered");
            let cause = Cause::new(CauseKind::RebootLoop, text)
                .with("reboots", self.reboots)
                .with("console_tail", console);
            self.happened(myself, Input::AgentLost(cause)).await;
        }
    }

    async fn on_task_done(&mut self, myself: &VmRef, generation: u64, end: TaskEnd) {
        if self.task.as_ref().is_none_or(|(current, _)| *current != generation) {
            return;
        }
        self.task = None;
        if let Some(run) = end.run {
            self.take_run(myself, run);
        }
        // It is durable with the outcome. One that failed early says nothing of the others.
        if end.disks.len() >= self.row.disks.len() {
            self.row.disks = end.disks;
        }
        let rebooted = end.report == Report::Rebooted;
        if end.report == Report::Resumed {
            self.clock_is_due = true;
            self.set_clock();
        }
        if matches!(end.report, Report::Stopped | Report::Released | Report::Deleted | Report::BootFailed(_))
        {
            self.drop_run();
        }
        if rebooted {
            self.drop_link();
        }
        self.happened(myself, Input::Report(end.report)).await;
        if rebooted {
            self.watch_link(myself);
        }
    }

    async fn on_link_up(&mut self, myself: &VmRef, generation: u64, link: Link) {
        if self.link_watch.as_ref().is_none_or(|w| w.generation() != generation) {
            return;
        }
        self.reboots = 0;
        let hello = link.hello();
        self.live.agent = Some((hello.version.clone(), hello.boot_id.clone()));
        self.live.last_error = None;
        let cause = Cause::new(CauseKind::AgentReady, "the guest agent answers")
            .with("agent_version", &hello.version)
            .with("boot_id", &hello.boot_id)
            .with("kernel", &hello.kernel);
        self.link = Some(link);
        self.set_clock();
        self.happened(myself, Input::AgentReady { cause }).await;
    }

    /// While a guest is paused its clock stands still. The link may have been lost meanwhile, or be so in a moment: then
    /// it is done over the next one.
    fn set_clock(&mut self) {
        let is_wanted = self.clock_is_due && self.row.spec.agent.allows(verb::CLOCK);
        if let Some(link) = self.link.clone().filter(|_| is_wanted) {
            clock::set_after_resume(link, self.services.metrics.clone());
        }
    }

    fn take_run(&mut self, myself: &VmRef, run: Run) {
        self.live.pid = Some(run.process.pid());
        let watch = RunWatch::start(myself.clone(), self.machine.incarnation, &run);
        self.run = Some((run, watch));
        self.watch_link(myself);
    }

    fn watch_link(&mut self, myself: &VmRef) {
        if !self.row.spec.agent.enabled || self.run.is_none() {
            return;
        }
        self.generation += 1;
        let VmRow { namespace, name, vm_id, .. } = &self.row;
        let tend = Tend {
            services: self.services.clone(),
            vm: myself.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            vm_id: *vm_id,
            spec: self.row.spec.agent.clone(),
            network: super::network::wanted(&self.row.spec.nics, &self.row.nics, self.names()),
            said: AtomicBool::new(false),
            marks: self.live.marks.clone(),
        };
        let watch = LinkWatch::start(tend, self.generation);
        self.live.last_error = Some(watch.last_error());
        self.link_watch = Some(watch);
    }

    /// Who knows names on the network of the first interface.
    fn names(&self) -> Option<std::net::Ipv4Addr> {
        let first = self.row.nics.first()?;
        self.services.network.names_of(&first.network).map(|(server, _)| server)
    }

    fn drop_link(&mut self) {
        self.link_watch = None;
        self.link = None;
        self.live.agent = None;
        self.live.last_error = None;
    }

    fn drop_run(&mut self) {
        self.reboots = 0;
        self.clock_is_due = false;
        self.drop_link();
        self.run = None;
        self.live.pid = None;
        self.live.marks = Marks::default();
    }

    /// Makes `next` durable with its events and outcomes, takes it over, and acts.
    async fn commit(
        &mut self,
        myself: &VmRef,
        next: Machine,
        effects: Vec<Effect>,
        bind: Option<(RequestId, RequestRow)>,
    ) -> Result<(), JournalError> {
        let prepared = prepare(&self.services, &self.row, &self.live, &next, &effects, bind);
        if !prepared.batch.is_empty() {
            self.services.journal.commit(prepared.batch).await?;
        }
        if next.state != self.machine.state {
            info!(from = %self.machine.state, to = %next.state, "state");
        }
        self.row = prepared.row;
        self.machine = next;
        for (request_id, outcome) in prepared.outcomes {
            self.permits.remove(&request_id);
            for waiter in self.waiters.remove(&request_id).unwrap_or_default() {
                let _ = waiter.send(outcome_result(outcome.clone()));
            }
        }
        for effect in effects {
            self.act(myself, effect);
        }
        self.give_back_capacity();
        Ok(())
    }

    /// Memory and CPUs are promised from the start of a VM until nothing of its runtime is left.
    fn give_back_capacity(&self) {
        if !self.machine.state.holds_runtime() && self.machine.task.is_none() {
            self.services.state.unreserve(self.row.vm_id);
        }
    }

    fn reply(&self, request_id: RequestId, already: bool) -> ChangeReply {
        reply(&self.services, &self.row, &self.live, &self.machine, request_id, already)
    }

    /// The reply of the delete: nothing is under way any more.
    fn last_reply(&self, request_id: RequestId) -> ChangeReply {
        let over = Machine { op: None, ..self.machine.clone() };
        reply(&self.services, &self.row, &self.live, &over, request_id, false)
    }

    fn act(&mut self, myself: &VmRef, effect: Effect) {
        match effect {
            Effect::Run(task) => self.run_task(myself, task),
            Effect::Cancel => {
                if let Some((_, token)) = &self.task {
                    token.cancel();
                }
            }
            Effect::Backoff { delay_ms } => {
                self.generation += 1;
                let generation = self.generation;
                myself.send_after(Duration::from_millis(delay_ms), move || VmMsg::BackoffElapsed {
                    generation,
                });
            }
            Effect::Gone { op } => self.finalise(myself, op),
            Effect::Event { .. } | Effect::Finish(..) => {}
        }
    }

    fn run_task(&mut self, myself: &VmRef, task: Task) {
        self.generation += 1;
        let generation = self.generation;
        let cancel = CancellationToken::new();
        self.task = Some((generation, cancel.clone()));
        let context = TaskContext {
            services: self.services.clone(),
            row: self.row.clone(),
            run: self.run.as_ref().map(|(run, _)| run.clone()),
            link: self.link.clone(),
            cancel,
        };
        if matches!(task, Task::Stop { .. } | Task::Delete | Task::Release) {
            // What the VMM does from here on is ours.
            self.link_watch = None;
        }
        let myself = myself.clone();
        let span = info_span!(parent: &self.span, "task", task = task.name());
        // What nobody asked for begins a trace of its own.
        trace::follow(&span, self.machine.op.as_ref().and(self.trace.as_deref()));
        let work = AssertUnwindSafe(tasks::run(task, context)).catch_unwind();
        tokio::spawn(
            async move {
                let end = work.await.unwrap_or_else(|_| {
                    error!("a task panicked");
                    Report::Failed(Cause::new(CauseKind::HostResource, "a task of the host failed")).into()
                });
                let _ = myself.cast(VmMsg::TaskDone { generation, end });
            }
            .instrument(span),
        );
    }

    /// The last event is on its way: wait until it is stored, free the name, and end.
    fn finalise(&mut self, myself: &VmRef, op: Option<Op>) {
        let request_id = op.as_ref().and_then(|op| op.request_id).unwrap_or(self.row.create_request);
        self.gone = Some(op);
        let reply = self.last_reply(request_id);
        let (services, row, myself) = (self.services.clone(), self.row.clone(), myself.clone());
        tokio::spawn(async move {
            crate::manager::free_name(&services, &row, request_id, &reply).await;
            let _ = myself.cast(VmMsg::Finalised);
        });
    }

    async fn on_finalised(&mut self, myself: &VmRef) {
        let Some(op) = self.gone.clone() else { return };
        let until = now_ms() + u64::try_from(self.services.limits.quarantine.as_millis()).unwrap_or(0);
        let mut batch = Batch::new().essential().with(Write::RemoveVm { vm_id: self.row.vm_id });
        for nic in &self.row.nics {
            batch.push(Write::ReleaseLease {
                network: nic.network.clone(),
                ipv4: nic.ipv4,
                quarantine_until_unix_ms: Some(until),
            });
        }
        batch.push(Write::ReleaseUid { uid: self.row.uid, quarantine_until_unix_ms: Some(until) });
        let request_id = op.as_ref().and_then(|op| op.request_id);
        if let Some(request_id) = request_id
            && let Some(mut request) = bound_row(&self.services, &self.row, request_id)
        {
            let outcome = Outcome::Reply(Box::new(self.last_reply(request_id)));
            request.state = RequestState::Done { outcome, at_unix_ms: now_ms() };
            push_request(&mut batch, &self.row, request_id, request);
        }
        if let Err(error) = self.services.journal.commit(batch).await {
            warn!(error = %chain(&error), "the journal refused, trying again");
            myself.send_after(COMMIT_RETRY, || VmMsg::Finalised);
            return;
        }
        self.services.state.release(&self.row, self.services.limits.quarantine);
        for (request_id, waiters) in std::mem::take(&mut self.waiters) {
            for waiter in waiters {
                let _ = waiter.send(Ok(self.last_reply(request_id)));
            }
        }
        info!("gone");
        let _ = self.manager.cast(ManagerMsg::Gone { vm_id: self.row.vm_id });
        myself.stop(None);
    }
}
