//! The stop ladder: agent, power button, `vm.shutdown`, `vmm.shutdown`, kill. Each step is bounded, and the
//! report says which one worked.
//!
//! The first three switch the guest off; the VMM outlives that (`--no-shutdown`), so its own end comes after,
//! in order or by SIGKILL. A ladder without force stops after the power button and may leave the guest
//! running. A VMM that ends on the way is the end of the ladder whatever step it was at.

use std::future::Future;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::api::{ApiClient, ApiError, VmmState};
use super::cgroup::VmCgroup;
use super::process::VmmProcess;
use super::record::ExitRecord;
use crate::chain::chain;

/// How often the VMM is asked whether the guest is off.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a killed process may take to end.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// A rung of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// The guest was off, or the VMM gone, before anything was done.
    Already,
    /// The agent in the guest was asked.
    Agent,
    /// The ACPI power button.
    PowerButton,
    /// `vm.shutdown`: power is cut.
    VmShutdown,
    /// `vmm.shutdown`: the process ends in order.
    VmmShutdown,
    /// SIGKILL.
    Kill,
}

impl StopStep {
    /// Its name in evidence and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Already => "already",
            Self::Agent => "agent",
            Self::PowerButton => "power_button",
            Self::VmShutdown => "vm_shutdown",
            Self::VmmShutdown => "vmm_shutdown",
            Self::Kill => "kill",
        }
    }
}

/// How long each step may take; a step without a time is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopPlan {
    /// For the guest to be off after the agent was asked.
    pub agent: Option<Duration>,
    /// For the guest to be off after the power button.
    pub power_button: Option<Duration>,
    /// For `vm.shutdown`.
    pub vm_shutdown: Option<Duration>,
    /// For the process to end after `vmm.shutdown`.
    pub vmm_shutdown: Option<Duration>,
    /// SIGKILL is allowed at the end. Without it a guest that stays on stays on.
    pub kill: bool,
}

impl StopPlan {
    /// The whole ladder, with `grace` for the guest to go by itself.
    #[must_use]
    pub fn whole(grace: Duration) -> Self {
        Self {
            agent: Some(grace / 2),
            power_button: Some(grace / 2),
            vm_shutdown: Some(Duration::from_secs(5)),
            vmm_shutdown: Some(Duration::from_secs(5)),
            kill: true,
        }
    }

    /// Agent and power button, never force.
    #[must_use]
    pub fn gentle(within: Duration) -> Self {
        Self { vm_shutdown: None, kill: false, ..Self::whole(within) }
    }

    /// No asking.
    #[must_use]
    pub fn force() -> Self {
        Self {
            agent: None,
            power_button: None,
            vm_shutdown: Some(Duration::from_secs(1)),
            vmm_shutdown: Some(Duration::from_secs(1)),
            kill: true,
        }
    }
}

/// One step that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOutcome {
    /// The step.
    pub step: StopStep,
    /// How long it took.
    pub took: Duration,
    /// Why it did not work; `None` if it did.
    pub problem: Option<String>,
}

/// How a ladder went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReport {
    /// The step that switched the guest off; `None` if it is still on.
    pub stopped_by: Option<StopStep>,
    /// Every step in order.
    pub steps: Vec<StepOutcome>,
    /// How the VMM ended; `None` if it lives.
    pub exit: Option<ExitRecord>,
}

struct Ladder<'a> {
    api: &'a ApiClient,
    process: &'a VmmProcess,
    report: StopReport,
}

/// Brings a VM down.
///
/// `agent` asks the agent to power the guest off and returns why that failed; it is polled only if the plan
/// has the step. `cgroup` is killed with the VMM.
pub async fn stop_ladder<A>(
    api: &ApiClient,
    process: &VmmProcess,
    cgroup: &VmCgroup,
    plan: StopPlan,
    agent: A,
) -> StopReport
where
    A: Future<Output = Result<(), String>>,
{
    let report = StopReport { stopped_by: None, steps: Vec::new(), exit: None };
    let mut ladder = Ladder { api, process, report };
    if ladder.is_off().await {
        ladder.report.stopped_by = Some(StopStep::Already);
    }
    let mut spare = Duration::ZERO;
    if let (Some(within), false) = (plan.agent, ladder.is_done()) {
        ladder.step(StopStep::Agent, within, agent).await;
        // An agent that fails at once leaves its time to the power button.
        spare = within.saturating_sub(ladder.report.steps.last().map_or(within, |step| step.took));
    }
    if let (Some(within), false) = (plan.power_button, ladder.is_done()) {
        // A paused guest cannot see the button.
        let press = async {
            if api.info().await.is_ok_and(|info| info.state == VmmState::Paused) {
                api.resume().await.map_err(said)?;
            }
            api.power_button().await.map_err(said)
        };
        ladder.step(StopStep::PowerButton, within + spare, press).await;
    }
    if let (Some(within), false) = (plan.vm_shutdown, ladder.is_done()) {
        let cut = async { api.shutdown().await.map_err(said) };
        ladder.step(StopStep::VmShutdown, within, cut).await;
    }
    if ladder.report.stopped_by.is_some() || plan.kill {
        ladder.end_vmm(plan, cgroup).await;
    }
    ladder.report
}

fn said(error: ApiError) -> String {
    chain(&error).to_string()
}

impl Ladder<'_> {
    fn is_done(&self) -> bool {
        self.report.stopped_by.is_some()
    }

    async fn is_off(&self) -> bool {
        self.process.has_ended() || self.api.info().await.is_ok_and(|info| info.state.is_off())
    }

    /// Tries one step, then waits until the guest is off or `within` has passed since the beginning.
    async fn step<F>(&mut self, step: StopStep, within: Duration, ask: F)
    where
        F: Future<Output = Result<(), String>>,
    {
        let began = Instant::now();
        let mut problem = match timeout(within, ask).await {
            Ok(Ok(())) => match timeout(within.saturating_sub(began.elapsed()), self.until_off()).await {
                Ok(()) => None,
                Err(_) => Some("the guest was still on at the end of the time".to_owned()),
            },
            Ok(Err(text)) => Some(text),
            Err(_) => Some("no answer in time".to_owned()),
        };
        // What counts is the guest, not the answer: it may be off although the call failed.
        if problem.is_some() && self.is_off().await {
            problem = None;
        }
        if problem.is_none() {
            self.report.stopped_by = Some(step);
        }
        self.report.steps.push(StepOutcome { step, took: began.elapsed(), problem });
    }

    async fn until_off(&self) {
        while !self.is_off().await {
            tokio::select! {
                _ = self.process.wait_exit() => return,
                () = sleep(ASK_EVERY) => {}
            }
        }
    }

    /// Ends the process whose guest is off, or everything if it must.
    async fn end_vmm(&mut self, plan: StopPlan, cgroup: &VmCgroup) {
        if let (Some(within), false) = (plan.vmm_shutdown, self.process.has_ended()) {
            let began = Instant::now();
            // The VMM may end before its answer is out: what counts is that it ends.
            let asked = async {
                let answer = self.api.vmm_shutdown().await.map_err(said);
                (answer, self.process.wait_exit().await)
            };
            let problem = match timeout(within, asked).await {
                Ok((_, exit)) => {
                    self.report.exit = Some(exit);
                    self.report.stopped_by.get_or_insert(StopStep::VmmShutdown);
                    None
                }
                Err(_) => Some("the VMM did not end in time".to_owned()),
            };
            let took = began.elapsed();
            self.report.steps.push(StepOutcome { step: StopStep::VmmShutdown, took, problem });
        }
        if !self.process.has_ended() && (plan.kill || self.report.stopped_by.is_some()) {
            let began = Instant::now();
            let problem = self.kill(cgroup).await.err();
            if problem.is_none() {
                self.report.stopped_by.get_or_insert(StopStep::Kill);
            }
            self.report.steps.push(StepOutcome { step: StopStep::Kill, took: began.elapsed(), problem });
        }
        if self.report.exit.is_none() && self.process.has_ended() {
            self.report.exit = Some(self.process.wait_exit().await);
        }
    }

    /// First the VMM, so that the holder can say how it ended; then whatever is left.
    async fn kill(&mut self, cgroup: &VmCgroup) -> Result<(), String> {
        self.process.signal(Signal::KILL).map_err(|error| format!("cannot kill the VMM: {error}"))?;
        let ended = timeout(KILL_WITHIN, self.process.wait_exit()).await;
        cgroup.kill();
        match ended {
            Ok(exit) => {
                if exit.unrecorded.is_some() {
                    // It hangs or is gone; either way it must not stay.
                    self.process.kill_holder().map_err(|error| format!("cannot kill the holder: {error}"))?;
                }
                self.report.exit = Some(exit);
                Ok(())
            }
            Err(_) => Err("the VMM did not end after SIGKILL".to_owned()),
        }
    }
}
