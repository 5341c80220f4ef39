//! Observers of a running VM: they report and never decide.
//!
//! [`RunWatch`] sees the VMM end, and asks `vm.info` when the VMM wrote events and once a minute: events
//! are hints, what the VMM says of itself counts. [`LinkWatch`] keeps the link to the agent up.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::status::{AgentFaultCode, Cause, CauseKind};
use drover_schemas::guest::AgentHello;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::actor::{VmRef, carry};
use super::machine::Input;
use super::marks;
use super::message::VmMsg;
use super::tasks::Run;
use super::tend::Tend;
use crate::chain;
use crate::guest::{HelloInfo, LastError, Link, LinkError, connect_when_ready};
use crate::hypervisor::api::VmmState;
use crate::hypervisor::events::{EventKind, EventTail};
use crate::services::now_ms;

/// How often an idle VMM is asked how its guest is.
const INFO_EVERY: Duration = Duration::from_secs(60);
/// How long one attempt after the first success may take before another begins.
const RECONNECT: Duration = Duration::from_secs(60);
/// How long an agent that takes the place of another may take to greet; the old one gives up a moment later.
const MOVING: Duration = Duration::from_secs(12);
/// The shortest time from one agent to the next: one that says it moves again and again costs little.
const BETWEEN_AGENTS: Duration = Duration::from_secs(1);
/// Pause after what cannot pass by waiting, but may by another boot or another agent.
const ANOTHER: Duration = Duration::from_secs(5);
/// How much of the console goes into the evidence of a boot without an agent.
const CONSOLE_TAIL: usize = 4096;

/// Watches one VMM process until dropped.
#[derive(Debug)]
pub struct RunWatch {
    look: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl RunWatch {
    /// Begins to watch.
    #[must_use]
    pub fn start(vm: VmRef, incarnation: u64, run: &Run) -> Self {
        let look = Arc::new(Notify::new());
        let process = Arc::clone(&run.process);
        let exited = vm.clone();
        let exit = tokio::spawn(async move {
            let exit = process.wait_exit().await;
            let _ = exited.cast(VmMsg::Exited { incarnation, exit });
        });
        let events = tokio::spawn(observe(vm, incarnation, run.clone(), Arc::clone(&look)));
        // The events of the boot are there already.
        look.notify_one();
        Self { look, tasks: [exit, events] }
    }

    /// There may be something to see.
    pub fn look(&self) {
        self.look.notify_one();
    }
}

impl Drop for RunWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn observe(vm: VmRef, incarnation: u64, run: Run, look: Arc<Notify>) {
    let dir = run.process.run_dir().clone();
    let mut tail = EventTail::default();
    let mut off = false;
    loop {
        // Spread over the minute, so that a thousand VMs do not ask at once.
        let pause = INFO_EVERY.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        let hinted = timeout(pause, look.notified()).await.is_ok();
        let mut inputs = Vec::new();
        let mut ask = !hinted;
        match tail.poll(&dir) {
            Ok(events) => {
                for event in events {
                    match event.kind() {
                        EventKind::Rebooted => inputs.push(Input::GuestReboot),
                        EventKind::GuestPanic { what } => {
                            let cause =
                                Cause::new(CauseKind::GuestPanic, "the guest's kernel reported a panic")
                                    .with("event", what)
                                    .with("console_tail", dir.console_tail(CONSOLE_TAIL));
                            inputs.push(Input::GuestPanic(cause));
                        }
                        EventKind::Shutdown | EventKind::Paused | EventKind::Resumed => ask = true,
                        EventKind::Booted => off = false,
                        _ => {}
                    }
                }
            }
            Err(error) => debug!(%error, "the event file cannot be read"),
        }
        if ask
            && !off
            && let Ok(info) = run.api.info().await
        {
            match info.state {
                VmmState::Paused => inputs.push(Input::Seen { paused: true }),
                VmmState::Running => inputs.push(Input::Seen { paused: false }),
                state if state.is_off() => {
                    off = true;
                    inputs.push(Input::GuestPowerOff);
                }
                _ => {}
            }
        }
        if !inputs.is_empty() && vm.cast(VmMsg::Observed { incarnation, inputs }).is_err() {
            return;
        }
    }
}

/// Keeps the link to an agent up and the guest tended until dropped.
#[derive(Debug)]
pub struct LinkWatch {
    generation: u64,
    cancel: CancellationToken,
    last_error: LastError,
}

impl LinkWatch {
    /// Begins to connect. The agent is reported lost when it has not answered for as long as the spec says.
    #[must_use]
    pub fn start(tend: Tend, generation: u64) -> Self {
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let last_error = LastError::default();
        let last = last_error.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = keep(tend, generation, token.clone(), last) => {}
            }
        });
        Self { generation, cancel, last_error }
    }

    /// Where the reason is found for which the agent was not reached at the last try.
    #[must_use]
    pub fn last_error(&self) -> LastError {
        self.last_error.clone()
    }

    /// Which attempt this is.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Tends the guest over one link, and over those to agents that take the place of the first; why the last has ended, or
/// `None` when the VM's actor has.
async fn stay<C>(tend: &Tend, generation: u64, mut link: Link, connect: impl Fn() -> C) -> Option<LinkError>
where
    C: Future<Output = Result<(Link, Arc<AgentHello>), LinkError>>,
{
    loop {
        let began = Instant::now();
        let (closed, events) = (link.closed(), link.events());
        tend.vm.cast(VmMsg::LinkUp { generation, link: link.clone() }).ok()?;
        // Until the link ends: a guest that is asked to go still has something to say.
        let teller = tend.vm.clone();
        tokio::spawn(async move { carry(&teller, &events).await });
        let mut closed = pin!(closed);
        let next = loop {
            tokio::select! {
                reason = &mut closed => return Some(reason),
                () = tend.run(&link) => return None,
                () = link.moving() => {}
            }
            let connecting = async {
                sleep_until(began + BETWEEN_AGENTS).await;
                connect().await
            };
            let connected = tokio::select! {
                reason = &mut closed => return Some(reason),
                connected = connecting => connected,
            };
            match connected {
                Ok((next, _)) => break next,
                Err(error) => {
                    warn!(%error, vm_id = %tend.vm_id, "no other agent took the place of the one that said so");
                    link.stay();
                }
            }
        };
        // What is open on the old link holds it, and goes on.
        link.move_to(&next);
        link = next;
    }
}

async fn keep(tend: Tend, generation: u64, cancel: CancellationToken, last_error: LastError) {
    let vm = &tend.vm;
    let dir = tend.services.run_root.vm(tend.vm_id);
    let info = HelloInfo { version: env!("CARGO_PKG_VERSION").to_owned(), ..HelloInfo::default() };
    let socket = dir.vsock_socket();
    let began = Instant::now();
    let mut patience = Duration::from_millis(tend.spec.ready_timeout_ms);
    let mut reported = false;
    loop {
        match connect_when_ready(&socket, &info, &cancel, patience, &last_error).await {
            Ok((link, _)) => {
                let Some(reason) = stay(&tend, generation, link, || {
                    connect_when_ready(&socket, &info, &cancel, MOVING, &last_error)
                })
                .await
                else {
                    return;
                };
                reported = false;
                let pause = tend.marks.note(&reason, std::time::Instant::now(), now_ms());
                let cause = marks::cause(&reason, pause);
                last_error.set(reason);
                if vm.cast(VmMsg::LinkDown { generation, cause }).is_err() {
                    return;
                }
                sleep(pause).await;
            }
            Err(error) => {
                let error = why(error, &last_error);
                let pause = tend.marks.note(&error, std::time::Instant::now(), now_ms());
                let is_marked = error.fault().is_some_and(|fault| fault != AgentFaultCode::Silent);
                if !reported || is_marked {
                    reported = true;
                    let cause = match is_marked {
                        true => marks::cause(&error, pause),
                        false => never(&error, began.elapsed()),
                    };
                    let cause = cause.with("console_tail", dir.console_tail(CONSOLE_TAIL));
                    if vm.cast(VmMsg::LinkDown { generation, cause }).is_err() {
                        return;
                    }
                }
                sleep(if error.may_pass() { pause } else { pause.max(ANOTHER) }).await;
            }
        }
        patience = RECONNECT;
    }
}

/// An agent that does not greet is told from one that is not there.
fn why(error: LinkError, last: &LastError) -> LinkError {
    let greeting = last.get().filter(|last| last.fault() == Some(AgentFaultCode::Silent));
    match error {
        LinkError::Deadline { .. } => greeting.unwrap_or(error),
        other => other,
    }
}

fn never(error: &LinkError, spent: Duration) -> Cause {
    let text = format!("the agent did not answer within {} s: {}", spent.as_secs(), chain(error));
    let cause = Cause::new(CauseKind::AgentTimeout, text);
    match error.fault() {
        Some(fault) => cause.with("fault", fault.as_str()),
        None => cause,
    }
}
