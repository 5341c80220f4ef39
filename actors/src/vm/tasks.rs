//! The work of a VM, one function for each [`Task`]. No function here changes the machine: each ends in
//! one report.
//!
//! Order of taking: TAPs and rules · disks · run directory · cgroup · holder and VMM. Release is the
//! reverse and does not stop at a failure: it is tried again until nothing is left, and says so in the
//! log each time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::spec::ResolvedImage;
use drover_schemas::body::status::{Cause, CauseKind, DiskMade};
use drover_schemas::guest::verb;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::disks;
use super::laps::Laps;
use super::machine::{Report, SpecVerb, Task};
use crate::chain;
use crate::fleet::presence::offers;
use crate::guest::Link;
use crate::hypervisor::api::{ApiClient, VmmState};
use crate::hypervisor::cause::{self, Evidence};
use crate::hypervisor::cgroup::{CgroupLimits, VmCgroup};
use crate::hypervisor::config::{BootPaths, NicConfig, VmmInput, cmdline_additions, first_nic, vm_config};
use crate::hypervisor::confine::{ConfinementOf, confinement};
use crate::hypervisor::process::{LaunchRecord, LaunchSpec, VmmProcess, destroy, launch};
use crate::hypervisor::run_dir::RunDir;
use crate::hypervisor::stop::{StopPlan, stop_ladder};
use crate::journal::VmRow;
use crate::metrics::BootLabels;
use crate::network::forward::read_all;
use crate::network::{NicLease, VmName, VmNet};
use crate::network::{egress, limit};
use crate::services::Shared;
use crate::spec::security::offered;

/// Processes and threads of one VM: the VMM's own, one for each CPU, and room.
const PIDS_BASE: u64 = 128;
/// Pause between two attempts to release.
const RELEASE_RETRY: Duration = Duration::from_millis(500);

/// A VMM that runs.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its process.
    pub process: Arc<VmmProcess>,
    /// Its API; one call at a time.
    pub api: Arc<ApiClient>,
}

impl Run {
    /// Takes over a process.
    #[must_use]
    pub fn new(process: VmmProcess) -> Self {
        let api = Arc::new(process.api());
        Self { process: Arc::new(process), api }
    }
}

/// What a task works with.
#[derive(Debug)]
pub struct TaskContext {
    /// The host.
    pub services: Shared,
    /// The VM when the task began.
    pub row: VmRow,
    /// Its VMM, if one runs.
    pub run: Option<Run>,
    /// The link to its agent, if it is up.
    pub link: Option<Link>,
    /// Asks the task to end early.
    pub cancel: CancellationToken,
}

/// The end of a task.
#[derive(Debug)]
pub struct TaskEnd {
    /// What it reports.
    pub report: Report,
    /// The VMM that a boot started.
    pub run: Option<Run>,
    /// How the disks were made that a boot made or found.
    pub disks: Vec<DiskMade>,
}

impl From<Report> for TaskEnd {
    fn from(report: Report) -> Self {
        Self { report, run: None, disks: Vec::new() }
    }
}

/// Carries out a task.
pub async fn run(task: Task, context: TaskContext) -> TaskEnd {
    match task {
        Task::Boot => boot(&context).await,
        Task::Shutdown { timeout_ms } => shutdown(&context, timeout_ms).await.into(),
        Task::Stop { grace_ms } => {
            stop(&context, grace_ms).await;
            Report::Stopped.into()
        }
        Task::Pause => pause(&context).await.into(),
        Task::Resume => resume(&context).await.into(),
        Task::Reboot => reboot(&context).await.into(),
        Task::Spec(SpecVerb::Grow) => disks::grow(&context).await.into(),
        Task::Spec(verb) => network(&context, verb).await.into(),
        Task::Release => {
            release(&context).await;
            Report::Released.into()
        }
        Task::Delete => {
            delete(&context).await;
            Report::Deleted.into()
        }
    }
}

fn run_dir(context: &TaskContext) -> RunDir {
    context.services.run_root.vm(context.row.vm_id)
}

async fn boot(context: &TaskContext) -> TaskEnd {
    let work = disks::Work::default();
    let result = tokio::select! {
        biased;
        () = context.cancel.cancelled() => {
            Err(Cause::new(CauseKind::Superseded, "a later request ended the boot"))
        }
        result = boot_steps(context, &work) => result,
    };
    let (report, run) = match result {
        Ok(run) => (Report::Booted, Some(run)),
        Err(cause) => {
            info!(vm_id = %context.row.vm_id, cause = cause.message, "boot failed, releasing");
            work.ended().await;
            release(context).await;
            (Report::BootFailed(cause), None)
        }
    };
    TaskEnd { report, run, disks: work.made() }
}

async fn boot_steps(context: &TaskContext, work: &disks::Work) -> Result<Run, Cause> {
    let services = &context.services;
    let row = &context.row;
    let dir = run_dir(context);
    let mut laps = Laps::start();
    // A create and a start have reserved already; a restart by policy takes its share here.
    services
        .state
        .reserve(&row.namespace, row.vm_id, &row.spec)
        .map_err(|e| Cause::new(CauseKind::HostResource, e.message).with("step", "capacity"))?;
    // The operator may have thought better of it, or the kernel be another.
    offered(&row.spec, || offers(services))
        .map_err(|e| Cause::new(CauseKind::HostResource, e.message).with("step", "security"))?;
    services.network.attach(vm_net(row)).await.map_err(|e| {
        Cause::new(CauseKind::TapRefused, format!("the network could not be made: {}", chain(&e)))
            .with("step", "network")
    })?;
    laps.note("network");
    let mut paths = boot_paths(context)?;
    paths.disks = disks::make(context, work).await?;
    laps.note("disks");
    let host_resource = |step: &str, error: &dyn std::error::Error| {
        Cause::new(CauseKind::HostResource, chain(error).to_string()).with("step", step)
    };
    dir.create(owner(context)).map_err(|e| host_resource("run directory", &e))?;
    let limits = CgroupLimits {
        memory_bytes: row.spec.memory_bytes + services.limits.vmm_overhead_bytes,
        pids: pids(row),
        cpus: u64::from(row.spec.cpus),
    };
    let cgroup = services
        .cgroups
        .create(row.vm_id, row.incarnation, &limits)
        .map_err(|e| host_resource("cgroup", &e))?;
    laps.note("cgroup");
    let launched = launch(&LaunchSpec {
        hold_bin: services.programs.hold.clone(),
        vmm_bin: services.programs.vmm.clone(),
        run_dir: dir.clone(),
        record: launch_record(context, cgroup.clone(), &paths),
        extra_args: services.programs.extra_args.clone(),
        ready_within: services.limits.vmm_ready_within,
    })
    .await;
    let evidence = |step| (dir.stderr_tail(cause::TAIL_MAX), cgroup.oom_kills(), step);
    let of = |(stderr, oom_kills, step): (String, Option<u64>, &str), f: &dyn Fn(&Evidence<'_>) -> Cause| {
        f(&Evidence { stderr_tail: &stderr, console_tail: "", oom_kills, step })
    };
    let process = launched.map_err(|e| of(evidence("launch"), &|ev| cause::of_launch(&e, ev)))?;
    laps.note("launch");
    let run = Run::new(process);
    let firmware = row.spec.boot.firmware.is_some();
    let first = first_nic(&row.spec, row.nics.first().map(NicLease::guest_nic));
    let config = vm_config(&VmmInput {
        spec: &row.spec,
        paths,
        run_dir: &dir,
        nics: row.nics.iter().map(nic_config).collect(),
        cmdline: cmdline_additions(&row.name, first.as_ref()),
        landlock: services.programs.landlock,
    });
    if let Err(error) = run.api.create(&config).await {
        return Err(call_failed(&run, &dir, "vm.create", &error, firmware).await);
    }
    laps.note("vm.create");
    if let Err(error) = run.api.boot().await {
        return Err(call_failed(&run, &dir, "vm.boot", &error, firmware).await);
    }
    laps.note("vm.boot");
    for &(step, took) in laps.steps() {
        services.metrics.boot_steps.get_or_create(&BootLabels { step }).observe(took.as_secs_f64());
    }
    debug!(vm_id = %row.vm_id, steps_ms = %laps, "booted");
    Ok(run)
}

/// A VMM that died in a call says more by its exit than by the broken connection.
async fn call_failed(
    run: &Run,
    dir: &RunDir,
    step: &str,
    error: &crate::hypervisor::api::ApiError,
    firmware: bool,
) -> Cause {
    let exit = match tokio::time::timeout(Duration::from_millis(250), run.process.wait_exit()).await {
        Ok(exit) if error.vmm_errors().is_empty() => Some(exit),
        _ => None,
    };
    let stderr = dir.stderr_tail(cause::TAIL_MAX);
    let evidence = Evidence { stderr_tail: &stderr, console_tail: "", oom_kills: None, step };
    match exit {
        Some(exit) => cause::of_exit(&exit, &evidence),
        None => cause::of_boot(error, firmware, &evidence),
    }
}

/// The interfaces of a VM.
#[must_use]
pub fn vm_net(row: &VmRow) -> VmNet {
    // The spec was looked at before it was journalled.
    let forwards = read_all(&row.spec.nics).unwrap_or_default();
    let egress = egress::of_stored(&row.spec.nics);
    let limits = limit::read_all(&row.spec.nics).unwrap_or_default();
    let called = Some(VmName { namespace: row.namespace.clone(), name: row.name.clone() });
    let queues = row.spec.nics.iter().map(|nic| nic.queues).collect();
    VmNet { vm_id: row.vm_id, called, uid: row.uid, nics: row.nics.clone(), forwards, egress, limits, queues }
}

/// Who owns what is the VMM's own; nobody but us where VMMs are not confined.
pub(super) fn owner(context: &TaskContext) -> Option<u32> {
    context.services.programs.confine.then_some(context.row.uid)
}

/// An interface as the VMM has it. It refuses a rule for what is not there, as where `/sys` is another namespace's.
fn nic_config(nic: &NicLease) -> NicConfig {
    let config = nic.nic_config();
    NicConfig { kind: config.kind.filter(|path| path.exists()), ..config }
}

fn pids(row: &VmRow) -> u64 {
    // The VMM has a thread for each pair of queues.
    let queues: u64 = row.spec.nics.iter().map(|nic| u64::from(nic.queues)).sum();
    PIDS_BASE + 2 * u64::from(row.spec.cpus) + queues
}

fn launch_record(context: &TaskContext, cgroup: VmCgroup, paths: &BootPaths) -> LaunchRecord {
    let row = &context.row;
    let programs = &context.services.programs;
    let confinement = programs.confine.then(|| {
        let of = ConfinementOf {
            uid: row.uid,
            vmm: &programs.vmm,
            emulated: programs.version.is_softvmm(),
            more: &programs.paths,
            boot: paths,
            own_disks: &disk_dir(context),
            run_dir: &run_dir(context),
            processes: pids(row),
        };
        confinement(&of)
    });
    LaunchRecord {
        version: crate::hypervisor::record::VERSION,
        drover: env!("CARGO_PKG_VERSION").to_owned(),
        vmm: context.services.programs.version.text.clone(),
        installation: context.services.installation,
        vm_id: row.vm_id,
        namespace: row.namespace.clone(),
        name: row.name.clone(),
        incarnation: row.incarnation,
        uid: row.uid,
        confinement,
        cgroup,
        argv: Vec::new(),
        env_names: Vec::new(),
        import: serde_json::json!({ "spec": row.spec, "nics": row.nics }),
    }
}

pub(super) fn image_path(context: &TaskContext, image: &ResolvedImage) -> Result<PathBuf, Cause> {
    context.services.images.path(image).ok_or_else(|| image_gone(image))
}

pub(super) fn image_gone(image: &ResolvedImage) -> Cause {
    let text = format!(
        "image {:?} (sha256 {}) is no longer on this host; import it again",
        image.name, image.sha256
    );
    Cause::new(CauseKind::DiskRefused, text).with("step", "images")
}

/// The files that a guest boots from, without disks.
fn boot_paths(context: &TaskContext) -> Result<BootPaths, Cause> {
    let boot = &context.row.spec.boot;
    let find = |image: &Option<ResolvedImage>| image.as_ref().map(|i| image_path(context, i)).transpose();
    Ok(BootPaths {
        kernel: find(&boot.kernel)?,
        initramfs: find(&boot.initramfs)?,
        firmware: find(&boot.firmware)?,
        disks: Vec::new(),
    })
}

fn disk_dir(context: &TaskContext) -> PathBuf {
    context.services.disk_dir(context.row.vm_id)
}

/// Where the spec or the guest's owner refuses it, the power button comes next.
async fn ask_agent(context: &TaskContext) -> Result<(), String> {
    if !context.row.spec.agent.allows(verb::SHUTDOWN) {
        return Err("spec.agent does not allow shutdown".to_owned());
    }
    let Some(link) = context.link.clone() else { return Err("the agent is not connected".to_owned()) };
    super::guest_calls::power_off(&link).await.map_err(|e| e.to_string())
}

async fn shutdown(context: &TaskContext, timeout_ms: u64) -> Report {
    let Some(run) = &context.run else { return Report::Stopped };
    let plan = StopPlan::gentle(Duration::from_millis(timeout_ms));
    let cgroup = context.services.cgroup(context.row.vm_id);
    let ladder = stop_ladder(&run.api, &run.process, &cgroup, plan, ask_agent(context));
    let report = tokio::select! {
        biased;
        () = context.cancel.cancelled() => {
            return Report::Failed(Cause::new(CauseKind::Superseded, "a later request took its place"));
        }
        report = ladder => report,
    };
    info!(vm_id = %context.row.vm_id, by = ?report.stopped_by, "shutdown");
    if report.stopped_by.is_none() {
        return Report::ShutdownTimedOut;
    }
    release(context).await;
    Report::Stopped
}

async fn stop(context: &TaskContext, grace_ms: u64) {
    if let Some(run) = &context.run {
        let plan = match grace_ms {
            0 => StopPlan::force(),
            grace => StopPlan::whole(Duration::from_millis(grace)),
        };
        let cgroup = context.services.cgroup(context.row.vm_id);
        let ladder = stop_ladder(&run.api, &run.process, &cgroup, plan, ask_agent(context));
        tokio::select! {
            biased;
            () = context.cancel.cancelled() => return,
            report = ladder => info!(vm_id = %context.row.vm_id, by = ?report.stopped_by, "stop"),
        }
    }
    release(context).await;
}

pub(super) fn failed(context: &TaskContext, step: &str, error: &crate::hypervisor::api::ApiError) -> Cause {
    let stderr = run_dir(context).stderr_tail(cause::TAIL_MAX);
    let evidence = Evidence { stderr_tail: &stderr, console_tail: "", oom_kills: None, step };
    cause::of_api(error, &evidence)
}

pub(super) fn no_vmm() -> Report {
    Report::Failed(Cause::new(CauseKind::VmmExit, "the VMM is gone"))
}

async fn pause(context: &TaskContext) -> Report {
    let Some(run) = &context.run else { return no_vmm() };
    match run.api.pause().await {
        Ok(()) => Report::Paused,
        // The answer may have been lost: what it is counts.
        Err(error) => match run.api.info().await {
            Ok(info) if info.state == VmmState::Paused => Report::Paused,
            _ => Report::Failed(failed(context, "vm.pause", &error)),
        },
    }
}

async fn resume(context: &TaskContext) -> Report {
    let Some(run) = &context.run else { return no_vmm() };
    match run.api.resume().await {
        Ok(()) => Report::Resumed,
        Err(error) => match run.api.info().await {
            Ok(info) if info.state == VmmState::Running => Report::Resumed,
            _ => Report::Failed(failed(context, "vm.resume", &error)),
        },
    }
}

async fn reboot(context: &TaskContext) -> Report {
    let Some(run) = &context.run else { return no_vmm() };
    match run.api.reboot().await {
        Ok(()) => Report::Rebooted,
        Err(error) => Report::Failed(failed(context, "vm.reboot", &error)),
    }
}

/// What is refused now is tried again by whoever watches the network: the spec says what shall be.
async fn network(context: &TaskContext, verb: SpecVerb) -> Report {
    match context.services.network.change(vm_net(&context.row)).await {
        Ok(()) => Report::SpecChanged,
        Err(error) => Report::Failed(
            Cause::new(
                CauseKind::HostResource,
                format!(
                    "{} changed in the spec, but this is not in force yet, which is tried again: {}",
                    verb.changes(),
                    chain(&error)
                ),
            )
            .with("step", "network"),
        ),
    }
}

/// Releases everything of the runtime; the evidence in the run directory stays. Comes back only when
/// nothing is left.
async fn release(context: &TaskContext) {
    let services = &context.services;
    let row = &context.row;
    let cgroup = services.cgroup(row.vm_id);
    let dir = run_dir(context);
    let mut first = true;
    loop {
        let ended = destroy(&dir, services.installation, &cgroup).await;
        let detached = services.network.detach(row.vm_id, row.nics.clone()).await;
        match detached {
            Ok(()) if ended => return,
            Ok(()) => {}
            Err(error) => warn!(vm_id = %row.vm_id, error = %chain(&error), "network not released"),
        }
        if first {
            services.metrics.release_retries.inc();
            warn!(vm_id = %row.vm_id, process_ended = ended, "release is not complete, trying again");
            first = false;
        }
        tokio::time::sleep(RELEASE_RETRY).await;
    }
}

async fn delete(context: &TaskContext) {
    if let Some(run) = &context.run {
        let cgroup = context.services.cgroup(context.row.vm_id);
        stop_ladder(&run.api, &run.process, &cgroup, StopPlan::force(), async { Ok(()) }).await;
    }
    release(context).await;
    let vm_id = context.row.vm_id;
    while let Err(error) = context.services.remove_files(vm_id).await {
        warn!(%vm_id, error, "files not removed, trying again");
        tokio::time::sleep(RELEASE_RETRY).await;
    }
}
