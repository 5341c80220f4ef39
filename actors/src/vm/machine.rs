//! The life of one VM, pure: `apply` takes what is and what happened, and says what shall be done.
//!
//! ```text
//! creating ──booted──▶ running ◀──▶ paused
//!     │                   │            │
//!     └─ failed ◀─policy──┴── stopping ┘
//!          │     backoff        │
//!          └──▶ starting ◀── stopped          every state ──▶ deleting ──▶ gone
//! ```
//! The table of `drover_schemas::state` decides what each input means; this file says what is done
//! about it. One [`Task`] runs at a time. A verb that pre-empts cancels it and queues its own: every
//! task ends in exactly one report, also a cancelled one, and only then does the queued one start, so
//! two tasks never hold the same resource.
//!
//! Unhappy paths: a VMM that dies under a task is noticed twice (by its exit and by the task); the exit
//! is remembered in [`Machine::exited`] and judged when the task's report is in. A death with no task
//! under way starts [`Task::Release`], and the state changes when nothing of the runtime is left.

use drover_schemas::RequestId;
use drover_schemas::body::spec::RestartSpec;
use drover_schemas::body::status::{AgentState, Cause, CauseKind};
use drover_schemas::body::vm::Wait;
use drover_schemas::event::VmEventKind;
use drover_schemas::state::{Cell, Desired, Happening, Input as Column, Verb, VmState, cell};
use serde::{Deserialize, Serialize};

use super::restart::{End, Verdict, judge};

mod io;
mod report;

pub use io::{Admission, Command, Due, Effect, Ending, Input, Op, Report, SpecVerb, Task};

/// Facts from outside that `apply` needs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Between 0 and 1.
    pub jitter: f64,
    /// The VM's restart policy.
    pub restart: &'a RestartSpec,
    /// The guest has an agent.
    pub agent_enabled: bool,
}

/// The part of a VM that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// What it is.
    pub state: VmState,
    /// What it shall be.
    pub desired: Desired,
    /// Counts VMM processes.
    pub incarnation: u64,
    /// Why it is in this state.
    pub cause: Option<Cause>,
    /// Times of restarts by policy.
    pub restarts: Vec<u64>,
    /// The request under way.
    pub op: Option<Op>,
    /// How the agent's link stands; not kept over a restart of the daemon.
    #[serde(skip, default = "absent")]
    pub agent: AgentState,
    /// The task under way; after a restart of the daemon there is none.
    #[serde(skip)]
    pub task: Option<Task>,
    /// What starts when the task under way has ended.
    #[serde(skip)]
    pub queued: Option<Task>,
    /// The VMM ended while a task was under way, or is being released.
    #[serde(skip)]
    pub exited: Option<(End, Cause)>,
    /// A stop that an earlier daemon began for the host is carried out, after which the VM starts again.
    #[serde(skip)]
    pub again: bool,
}

const fn absent() -> AgentState {
    AgentState::Absent
}

impl Machine {
    /// A VM that was just created: its row is made durable with the first event and the boot follows.
    #[must_use]
    pub fn create(request_id: RequestId, wait: Option<Wait>) -> (Self, Vec<Effect>) {
        let op =
            Op { name: "create".into(), request_id: Some(request_id), due: due_of_wait(wait), time_ms: 0 };
        let cause = Cause::new(CauseKind::Request, "a request created the VM");
        let mut machine = Self {
            state: VmState::Creating,
            desired: Desired::Running,
            incarnation: 1,
            cause: Some(cause.clone()),
            restarts: Vec::new(),
            op: Some(op.clone()),
            agent: AgentState::Absent,
            task: Some(Task::Boot),
            queued: None,
            exited: None,
            again: false,
        };
        let mut effects = vec![Effect::Event {
            kind: VmEventKind::State,
            previous: VmState::Creating,
            state: VmState::Creating,
            cause: Some(cause),
            request_id: Some(request_id),
        }];
        if op.due == Due::Accepted {
            machine.op = None;
            effects.push(Effect::Finish(op, Ending::Ok));
        }
        effects.push(Effect::Run(Task::Boot));
        (machine, effects)
    }

    /// Whether `verb` may run now.
    #[must_use]
    pub fn admit(&self, verb: Verb) -> Admission {
        match cell(self.state, Column::Verb(verb)) {
            Cell::Already => Admission::Already,
            Cell::Adopting => Admission::Adopting,
            Cell::Busy => Admission::Busy { operation: self.operation().unwrap_or_default() },
            Cell::Preempt(_) => Admission::Accept,
            Cell::Accept(_) => {
                let may_preempt = matches!(verb, Verb::StopForce | Verb::Delete);
                // What changes the spec ends nobody's wait for a boot.
                let waits = self.op.as_ref().is_some_and(|op| matches!(op.due, Due::Running | Due::Agent));
                let in_the_way = self.task.is_some() || (SpecVerb::of(verb).is_some() && waits);
                match self.operation() {
                    Some(operation) if in_the_way && !may_preempt => Admission::Busy { operation },
                    _ => Admission::Accept,
                }
            }
            _ => Admission::Denied {
                would_do: VmState::ALL
                    .into_iter()
                    .filter(|s| matches!(cell(*s, Column::Verb(verb)), Cell::Accept(_)))
                    .collect(),
            },
        }
    }

    /// The operation under way, by name.
    #[must_use]
    pub fn operation(&self) -> Option<String> {
        self.queued
            .as_ref()
            .or(self.task.as_ref())
            .map(|task| task.name().to_owned())
            .or_else(|| self.op.as_ref().map(|op| op.name.clone()))
    }

    /// Takes an input. The result replaces `self` once it is durable; the effects follow.
    #[must_use]
    pub fn apply(&self, input: Input, context: &Context<'_>) -> (Self, Vec<Effect>) {
        let mut next = self.clone();
        let mut out = Vec::new();
        match input {
            Input::Command(command) => next.on_command(&command, context, &mut out),
            Input::Report(report) => next.on_report(report, context, &mut out),
            Input::VmmExited(cause) => next.on_end(End::Failure, cause, context, &mut out),
            Input::GuestPowerOff => next.on_end(
                End::Clean,
                Cause::new(CauseKind::GuestPowerOff, "the guest switched itself off"),
                context,
                &mut out,
            ),
            Input::GuestReboot => next.note(
                Happening::GuestReboot,
                VmEventKind::Rebooted,
                Cause::new(CauseKind::GuestReboot, "the guest rebooted itself"),
                &mut out,
            ),
            Input::GuestPanic(cause) => next.note(Happening::GuestPanic, VmEventKind::Panic, cause, &mut out),
            Input::AgentReady { cause } => next.on_agent_ready(cause, &mut out),
            Input::AgentLost(cause) => next.on_agent_lost(cause, &mut out),
            Input::BackoffElapsed => {
                if let Cell::Enter(state) = next.on(Happening::BackoffElapsed) {
                    let cause =
                        Cause::new(CauseKind::RestartPolicy, "the restart policy starts the VM again");
                    next.enter(state, Some(cause), None, &mut out);
                    next.boot(&mut out);
                }
            }
            Input::Seen { paused } => next.on_seen(paused, &mut out),
            Input::HostStopping { grace_ms } => next.on_host_stopping(grace_ms, &mut out),
            Input::FoundUnclear(cause) => {
                if let Cell::Enter(state) = next.on(Happening::DaemonStartUnclear) {
                    next.enter(state, Some(cause), None, &mut out);
                }
            }
            Input::FoundAlive { paused } => next.on_found_alive(paused, &mut out),
            Input::FoundGone { host_rebooted, cause } => {
                next.on_found_gone(host_rebooted, cause, context, &mut out);
            }
        }
        (next, out)
    }

    const fn on(&self, happening: Happening) -> Cell {
        cell(self.state, Column::Happened(happening))
    }

    fn enter(
        &mut self,
        state: VmState,
        cause: Option<Cause>,
        request_id: Option<RequestId>,
        out: &mut Vec<Effect>,
    ) {
        let previous = self.state;
        self.state = state;
        if cause.is_some() {
            self.cause.clone_from(&cause);
        }
        if !matches!(state, VmState::Running | VmState::Paused | VmState::Stopping) {
            self.agent = AgentState::Absent;
        }
        out.push(Effect::Event { kind: VmEventKind::State, previous, state, cause, request_id });
    }

    fn note(&mut self, happening: Happening, kind: VmEventKind, cause: Cause, out: &mut Vec<Effect>) {
        if self.on(happening) == Cell::Note {
            let (previous, state) = (self.state, self.state);
            if happening == Happening::GuestReboot && self.agent != AgentState::Absent {
                self.agent = AgentState::Connecting;
            }
            if happening == Happening::GuestPanic {
                self.cause = Some(cause.clone());
            }
            out.push(Effect::Event { kind, previous, state, cause: Some(cause), request_id: None });
        }
    }

    fn run(&mut self, task: Task, out: &mut Vec<Effect>) {
        if self.task.is_some() {
            self.queued = Some(task);
            out.push(Effect::Cancel);
        } else {
            self.task = Some(task.clone());
            out.push(Effect::Run(task));
        }
    }

    fn boot(&mut self, out: &mut Vec<Effect>) {
        self.incarnation += 1;
        self.exited = None;
        self.run(Task::Boot, out);
    }

    fn finish(&mut self, ending: Ending, out: &mut Vec<Effect>) {
        if let Some(op) = self.op.take() {
            out.push(Effect::Finish(op, ending));
        }
    }

    /// Ends the operation for what comes in its place. A change of the spec was done when it was accepted.
    fn leave(&mut self, ending: Ending, out: &mut Vec<Effect>) {
        self.finish_spec(out);
        self.finish(ending, out);
    }

    fn finish_if_due(&mut self, due: Due, out: &mut Vec<Effect>) {
        if self.op.as_ref().is_some_and(|op| op.due == due) {
            self.finish(Ending::Ok, out);
        }
    }

    fn on_command(&mut self, command: &Command, context: &Context<'_>, out: &mut Vec<Effect>) {
        let (Cell::Accept(state) | Cell::Preempt(state)) = cell(self.state, Column::Verb(command.verb))
        else {
            return;
        };
        self.leave(Ending::Superseded, out);
        let id = command.request_id;
        let request = |what: &str| Some(Cause::new(CauseKind::Request, format!("a request asked to {what}")));
        let time_ms = command.time_ms;
        let op = |name: &str, due: Due| Some(Op { name: name.into(), request_id: Some(id), due, time_ms });
        match command.verb {
            Verb::Start => {
                self.desired = Desired::Running;
                self.restarts.clear();
                self.op = op("start", due_of_wait(command.wait));
                self.enter(state, request("start"), Some(id), out);
                self.finish_if_due(Due::Accepted, out);
                self.boot(out);
            }
            Verb::Shutdown | Verb::Stop | Verb::StopForce => {
                self.desired = Desired::Stopped;
                let name = if command.verb == Verb::Shutdown { "shutdown" } else { "stop" };
                let time_ms = if command.verb == Verb::StopForce { 0 } else { command.time_ms };
                self.op = op(name, Due::Done).map(|op| Op { time_ms, ..op });
                let cause = Some(Cause::new(CauseKind::UserStop, format!("a request asked to {name}")));
                self.enter(state, cause, Some(id), out);
                if state == VmState::Stopped {
                    self.finish(Ending::Ok, out);
                    return;
                }
                let task = match command.verb {
                    Verb::Shutdown => Task::Shutdown { timeout_ms: command.time_ms },
                    _ => Task::Stop { grace_ms: time_ms },
                };
                self.run(task, out);
            }
            Verb::Delete => {
                self.desired = Desired::Deleted;
                self.op = op("delete", Due::Done);
                let cause = Some(Cause::new(CauseKind::UserDelete, "a request asked to delete"));
                self.enter(state, cause, Some(id), out);
                self.run(Task::Delete, out);
            }
            Verb::Pause => {
                self.desired = Desired::Paused;
                self.op = op("pause", Due::Done);
                self.run(Task::Pause, out);
            }
            Verb::Resume => {
                self.desired = Desired::Running;
                self.op = op("resume", Due::Done);
                self.run(Task::Resume, out);
            }
            Verb::Reboot => {
                let due = match command.wait {
                    Some(Wait::Agent) if context.agent_enabled => Due::Agent,
                    _ => Due::Done,
                };
                self.op = op("reboot", due);
                self.run(Task::Reboot, out);
            }
            Verb::Limit => self.change_spec(SpecVerb::Limit, command, out),
            Verb::Forward => self.change_spec(SpecVerb::Forward, command, out),
            Verb::Egress => self.change_spec(SpecVerb::Egress, command, out),
            Verb::Grow => self.change_spec(SpecVerb::Grow, command, out),
        }
    }

    /// The spec was changed, and its revision is durable with this.
    fn change_spec(&mut self, verb: SpecVerb, command: &Command, out: &mut Vec<Effect>) {
        let (id, time_ms) = (Some(command.request_id), command.time_ms);
        self.op = Some(Op { name: verb.as_str().into(), request_id: id, due: Due::Done, time_ms });
        let text = format!("a request asked to change {}", verb.changes());
        let cause = Some(Cause::new(CauseKind::Request, text));
        let (kind, previous, state) = (VmEventKind::Changed, self.state, self.state);
        out.push(Effect::Event { kind, previous, state, cause, request_id: id });
        if matches!(state, VmState::Running | VmState::Paused) {
            self.run(Task::Spec(verb), out);
        } else {
            self.finish(Ending::Ok, out);
        }
    }

    fn on_seen(&mut self, paused: bool, out: &mut Vec<Effect>) {
        // A task under way reports by itself.
        match (self.task.is_some(), self.state, paused) {
            (false, VmState::Running, true) => self.run(Task::Resume, out),
            (false, VmState::Paused, false) => self.run(Task::Pause, out),
            _ => {}
        }
    }

    fn on_host_stopping(&mut self, grace_ms: u64, out: &mut Vec<Effect>) {
        let Cell::Enter(state) = self.on(Happening::HostStopping) else { return };
        self.leave(Ending::Superseded, out);
        let cause = Cause::new(CauseKind::HostShutdown, "the daemon ends and stops its VMs");
        self.enter(state, Some(cause), None, out);
        self.run(Task::Stop { grace_ms }, out);
    }

    /// The host stopped it, and it shall run.
    fn waits_for_host(&self) -> bool {
        matches!(self.desired, Desired::Running | Desired::Paused)
            && self.cause.as_ref().is_some_and(|cause| cause.kind == CauseKind::HostShutdown)
    }

    fn on_end(&mut self, end: End, cause: Cause, context: &Context<'_>, out: &mut Vec<Effect>) {
        let happening = match end {
            End::Clean => Happening::GuestPowerOff,
            End::Failure => Happening::VmmExited,
        };
        if self.on(happening) != Cell::Policy || self.exited.is_some() {
            return;
        }
        let _ = context;
        self.exited = Some((end, cause));
        if self.task.is_none() {
            self.run(Task::Release, out);
        }
    }

    fn on_agent_ready(&mut self, cause: Cause, out: &mut Vec<Effect>) {
        if !matches!(self.state, VmState::Creating | VmState::Starting | VmState::Running | VmState::Paused) {
            return;
        }
        self.agent = AgentState::Ready;
        let about_agent = |cause: &Cause| never_answered(cause) || cause.kind == CauseKind::GuestPanic;
        if self.state == VmState::Running && self.cause.as_ref().is_some_and(about_agent) {
            self.cause = None;
        }
        let request_id = self.op.as_ref().and_then(|op| op.request_id);
        let (previous, state) = (self.state, self.state);
        out.push(Effect::Event { kind: VmEventKind::Agent, previous, state, cause: Some(cause), request_id });
        if self.state == VmState::Running {
            self.finish_if_due(Due::Agent, out);
        }
    }

    fn on_agent_lost(&mut self, cause: Cause, out: &mut Vec<Effect>) {
        // A breach is told once, also of an agent that is lost already.
        let is_news = breaks_rules(&cause)
            && self
                .cause
                .as_ref()
                .is_none_or(|known| known.evidence.get("fault") != cause.evidence.get("fault"));
        if self.on(Happening::AgentLost) != Cell::Note || (self.agent == AgentState::Lost && !is_news) {
            return;
        }
        self.agent = AgentState::Lost;
        let (previous, state) = (self.state, self.state);
        let kind = VmEventKind::Agent;
        out.push(Effect::Event { kind, previous, state, cause: Some(cause.clone()), request_id: None });
        if never_answered(&cause) {
            self.cause = Some(cause.clone());
            if self.op.as_ref().is_some_and(|op| op.due == Due::Agent) {
                self.finish(Ending::Failed(cause), out);
            }
        }
    }

    /// What becomes of a VM whose runtime is released and whose end nobody asked for.
    fn settle(&mut self, end: End, cause: Cause, context: &Context<'_>, out: &mut Vec<Effect>) {
        self.leave(Ending::Failed(cause.clone()), out);
        let verdict = if matches!(self.desired, Desired::Running | Desired::Paused) {
            judge(context.restart, end, &mut self.restarts, context.now_ms, context.jitter)
        } else {
            Verdict::Stopped
        };
        match verdict {
            Verdict::Stopped => self.enter(VmState::Stopped, Some(cause), None, out),
            Verdict::Failed => self.enter(VmState::Failed, Some(cause), None, out),
            Verdict::CrashLoop => {
                let loops = Cause::new(
                    CauseKind::CrashLoop,
                    format!(
                        "{} restarts within {} s did not help",
                        self.restarts.len(),
                        context.restart.window_ms / 1000
                    ),
                )
                .with("last_cause", &cause.message);
                self.enter(VmState::Failed, Some(loops), None, out);
            }
            Verdict::RestartAfter { delay_ms } => {
                self.enter(VmState::Backoff, Some(cause), None, out);
                out.push(Effect::Backoff { delay_ms });
            }
        }
    }
}

/// The agent did not come up, rather than go away.
const fn never_answered(cause: &Cause) -> bool {
    matches!(cause.kind, CauseKind::AgentTimeout | CauseKind::RebootLoop) || breaks_rules(cause)
}

/// Waiting does not make such an agent another one.
const fn breaks_rules(cause: &Cause) -> bool {
    matches!(cause.kind, CauseKind::AgentBreach | CauseKind::AgentIncompatible)
}

const fn due_of_wait(wait: Option<Wait>) -> Due {
    match wait {
        None => Due::Accepted,
        Some(Wait::Running) => Due::Running,
        Some(Wait::Agent) => Due::Agent,
    }
}

#[cfg(test)]
mod tests;
