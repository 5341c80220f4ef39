//! What the end of a task, and the start of the daemon, mean for the machine.

use super::{AgentState, Desired, SpecVerb, VmEventKind, VmState};
use super::{Cause, CauseKind, Cell, Context, Due, Effect, Ending, Happening, Machine, Op, Report, Task};
use crate::vm::restart::End;

impl Machine {
    pub(super) fn on_report(&mut self, report: Report, context: &Context<'_>, out: &mut Vec<Effect>) {
        let Some(task) = self.task.take() else { return };
        if let Some(queued) = self.queued.take() {
            self.on_cancelled(&task, report, queued, out);
            return;
        }
        match report {
            Report::Booted => self.on_booted(context, out),
            Report::BootFailed(cause) => {
                let (end, cause) = self.exited.take().unwrap_or((End::Failure, cause));
                self.settle(end, cause, context, out);
            }
            Report::Stopped | Report::Released => self.on_down(context, out),
            Report::ShutdownTimedOut => self.on_shutdown_timed_out(out),
            Report::Paused => self.on_reached(VmState::Paused, out),
            Report::Resumed => self.on_reached(VmState::Running, out),
            Report::Rebooted => {
                let cause = Cause::new(CauseKind::Request, "a request rebooted the guest");
                let request_id = self.op.as_ref().and_then(|op| op.request_id);
                let (previous, state) = (self.state, self.state);
                let kind = VmEventKind::Rebooted;
                if self.agent != AgentState::Absent {
                    self.agent = AgentState::Connecting;
                }
                out.push(Effect::Event { kind, previous, state, cause: Some(cause), request_id });
                self.finish_if_due(Due::Done, out);
            }
            Report::SpecChanged => self.finish_if_due(Due::Done, out),
            Report::Deleted => self.on_deleted(out),
            Report::Failed(cause) => self.on_failed(&task, cause, out),
        }
        self.release_if_exited(out);
    }

    /// A task was cancelled by `queued`: whatever it reports, the state is already the queued task's.
    fn on_cancelled(&mut self, task: &Task, report: Report, queued: Task, out: &mut Vec<Effect>) {
        if *task == Task::Delete && report == Report::Deleted {
            return self.on_deleted(out);
        }
        self.exited = None;
        self.run(queued, out);
    }

    /// The operation stays: it is over when the name is free, and until then a daemon that starts must
    /// know whom to answer.
    fn on_deleted(&self, out: &mut Vec<Effect>) {
        out.push(Effect::Gone { op: self.op.clone() });
    }

    fn release_if_exited(&mut self, out: &mut Vec<Effect>) {
        let alive = matches!(self.state, VmState::Running | VmState::Paused);
        if self.exited.is_some() && self.task.is_none() && alive {
            self.run(Task::Release, out);
        }
    }

    fn on_booted(&mut self, context: &Context<'_>, out: &mut Vec<Effect>) {
        let Cell::Enter(state) = self.on(Happening::Booted) else { return };
        let request_id = self.op.as_ref().and_then(|op| op.request_id);
        if context.agent_enabled && self.agent != AgentState::Ready {
            self.agent = AgentState::Connecting;
        }
        self.enter(state, None, request_id, out);
        self.cause = None;
        self.finish_if_due(Due::Running, out);
        if self.agent == AgentState::Ready || !context.agent_enabled {
            self.finish_if_due(Due::Agent, out);
        }
    }

    fn on_down(&mut self, context: &Context<'_>, out: &mut Vec<Effect>) {
        match self.state {
            VmState::Stopping => {
                self.exited = None;
                self.enter(
                    VmState::Stopped,
                    self.cause.clone(),
                    self.op.as_ref().and_then(|o| o.request_id),
                    out,
                );
                self.finish(Ending::Ok, out);
                if std::mem::take(&mut self.again) {
                    self.start_with_host(out);
                }
            }
            VmState::Running | VmState::Paused | VmState::Creating | VmState::Starting | VmState::Unknown => {
                let (end, cause) = self.exited.take().unwrap_or_else(|| {
                    (End::Failure, Cause::new(CauseKind::VmmExit, "the VMM ended without a recorded cause"))
                });
                self.settle(end, cause, context, out);
            }
            _ => {}
        }
    }

    fn on_shutdown_timed_out(&mut self, out: &mut Vec<Effect>) {
        if let Cell::Enter(state) = self.on(Happening::ShutdownTimedOut) {
            // The wish to stop is withdrawn with the request that failed.
            self.desired = Desired::Running;
            let cause = Cause::new(CauseKind::UserStop, "the guest did not switch off in time and runs on");
            self.enter(state, Some(cause), self.op.as_ref().and_then(|o| o.request_id), out);
            self.finish(Ending::TimedOut, out);
        }
    }

    fn on_reached(&mut self, state: VmState, out: &mut Vec<Effect>) {
        if matches!(self.state, VmState::Running | VmState::Paused) {
            let request_id = self.op.as_ref().and_then(|op| op.request_id);
            if self.state != state {
                let what = if state == VmState::Paused { "pause" } else { "resume" };
                let cause = Cause::new(CauseKind::Request, format!("a request asked to {what}"));
                self.enter(state, Some(cause), request_id, out);
            }
            if self.tells_guest() {
                self.run(Task::Spec(SpecVerb::Grow), out);
            } else if self.op.as_ref().is_some_and(|op| matches!(op.due, Due::Running | Due::Done)) {
                self.finish(Ending::Ok, out);
            }
        }
    }

    fn on_failed(&mut self, task: &Task, cause: Cause, out: &mut Vec<Effect>) {
        match task {
            // These never give up on their own; a report like this comes only from a panic of the
            // task, and the work is done again.
            Task::Stop { .. } | Task::Delete | Task::Release => {
                self.run(task.clone(), out);
            }
            Task::Boot => {
                // As above: the boot may have left anything, so it is released before it is judged.
                self.exited = Some((End::Failure, cause));
                self.run(Task::Release, out);
            }
            Task::Shutdown { .. } => {
                self.cause = Some(cause);
                self.on_shutdown_timed_out(out);
            }
            Task::Pause | Task::Resume | Task::Reboot | Task::Spec(_) => {
                if !matches!(task, Task::Spec(_)) {
                    let is_paused = self.state == VmState::Paused;
                    self.desired = if is_paused { Desired::Paused } else { Desired::Running };
                }
                let request_id = self.op.as_ref().and_then(|op| op.request_id);
                let (previous, state) = (self.state, self.state);
                let kind = VmEventKind::OperationFailed;
                out.push(Effect::Event { kind, previous, state, cause: Some(cause.clone()), request_id });
                self.finish(Ending::Failed(cause), out);
            }
        }
    }

    pub(super) fn on_found_alive(&mut self, paused: bool, out: &mut Vec<Effect>) {
        if !self.tells_guest() {
            self.finish_spec(out);
        }
        let adopted = || Some(Cause::new(CauseKind::Adopted, "the daemon started and found the VM alive"));
        match self.on(Happening::DaemonStartAlive) {
            Cell::Enter(VmState::Deleting) => self.run(Task::Delete, out),
            Cell::Enter(VmState::Stopping) => {
                self.again = self.waits_for_host();
                let time_ms = self.op.as_ref().map_or(0, |op| op.time_ms);
                // A shutdown asks and never forces, also the second time.
                let task = match &self.op {
                    Some(op) if op.name == "shutdown" => Task::Shutdown { timeout_ms: time_ms },
                    _ => Task::Stop { grace_ms: time_ms },
                };
                self.run(task, out);
            }
            Cell::Enter(_) => {
                let state = if paused { VmState::Paused } else { VmState::Running };
                if self.state != state {
                    let request_id = self.op.as_ref().and_then(|op| op.request_id);
                    self.enter(state, adopted(), request_id, out);
                }
                self.agent = AgentState::Connecting;
                match (self.desired, state) {
                    (Desired::Paused, VmState::Running) => self.run(Task::Pause, out),
                    // The longer disk is told once the guest is seen to run.
                    (Desired::Running, VmState::Paused) => self.run(Task::Resume, out),
                    // Nothing tells whether it was done: it is done again before it is answered.
                    _ if self.tells_guest() => self.run(Task::Spec(SpecVerb::Grow), out),
                    _ if self.op.as_ref().is_some_and(|op| op.name == "reboot") => {
                        self.run(Task::Reboot, out);
                    }
                    _ => {
                        self.finish_if_due(Due::Running, out);
                        self.finish_if_due(Due::Done, out);
                    }
                }
            }
            // It should be down: what lives is ended, and the state stays.
            _ => self.run(Task::Release, out),
        }
    }

    /// A guest that runs is to be told of what changed in its spec.
    fn tells_guest(&self) -> bool {
        self.op.as_ref().is_some_and(|op| op.name == SpecVerb::Grow.as_str())
    }

    /// It is in the spec, by which the network was restored or will be made, and disks are when the VM starts.
    pub(super) fn finish_spec(&mut self, out: &mut Vec<Effect>) {
        let of_spec = |op: &Op| SpecVerb::ALL.iter().any(|verb| verb.as_str() == op.name);
        if self.op.as_ref().is_some_and(of_spec) {
            self.finish(Ending::Ok, out);
        }
    }

    fn start_with_host(&mut self, out: &mut Vec<Effect>) {
        let again = Cause::new(CauseKind::Adopted, "the daemon started and starts what the host had stopped");
        self.enter(VmState::Starting, Some(again), None, out);
        self.boot(out);
    }

    pub(super) fn on_found_gone(
        &mut self,
        host_rebooted: bool,
        cause: Cause,
        context: &Context<'_>,
        out: &mut Vec<Effect>,
    ) {
        self.finish_spec(out);
        let happening = if host_rebooted { Happening::HostRebooted } else { Happening::DaemonStartGone };
        match self.on(happening) {
            Cell::Enter(VmState::Deleting) => self.run(Task::Delete, out),
            Cell::Enter(VmState::Stopped) => {
                self.again = self.waits_for_host();
                // What may be left (TAP, cgroup) is released before the state says so.
                self.run(Task::Stop { grace_ms: 0 }, out);
            }
            Cell::Enter(VmState::Starting) => {
                let again = Cause::new(CauseKind::Adopted, "the daemon started and begins the boot again");
                let request_id = self.op.as_ref().and_then(|op| op.request_id);
                self.enter(VmState::Starting, Some(again), request_id, out);
                self.boot(out);
            }
            Cell::Policy => {
                let end = if cause.kind == CauseKind::GuestPowerOff { End::Clean } else { End::Failure };
                self.exited = Some((end, cause));
                self.run(Task::Release, out);
            }
            Cell::ByDesired if self.state == VmState::Stopped => {
                if self.waits_for_host() {
                    self.start_with_host(out);
                }
            }
            Cell::ByDesired => {
                let reboot = Cause::new(CauseKind::HostReboot, "the host was rebooted");
                if matches!(self.desired, Desired::Running | Desired::Paused) {
                    self.enter(VmState::Starting, Some(reboot), None, out);
                    self.boot(out);
                } else {
                    self.settle(End::Clean, reboot, context, out);
                }
            }
            _ => {
                if self.state == VmState::Backoff {
                    // The pause begins anew: its timer died with the daemon.
                    out.push(Effect::Backoff { delay_ms: context.restart.backoff_ms });
                }
            }
        }
    }
}
