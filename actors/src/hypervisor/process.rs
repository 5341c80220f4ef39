//! A VMM process: started through its holder, found again by a later daemon, watched through a pidfd.
//!
//! A start holds the lock of the run directory from before the holder exists until the holder ends. So a
//! daemon that comes back can tell "nothing was started" from "something is being started", and a second
//! start in the same directory is refused. The holder reports each failed step of its set-up; while we wait
//! for the API socket the VMM's pidfd tells at once when it dies instead of coming up.

mod adopt;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::api::{ApiClient, ApiError};
use super::cgroup::VmCgroup;
use super::pidfd::Process;
use super::record::{Confinement, ExitRecord, PidRecord, SpawnError, VERSION, file};
use super::run_dir::{RunDir, RunDirError};
use crate::pause_while_waiting;

pub use adopt::{AdoptError, adopt, destroy};

/// How much of stderr goes into an error.
const STDERR_IN_ERRORS: usize = 4096;
/// How long the holder gets to write the exit record after the VMM ended.
const HOLDER_GRACE: Duration = Duration::from_secs(5);
/// The longest pause between two looks for the API socket.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// The variables of the VMM's environment that name its owner.
pub(crate) const ENV_INSTALLATION: &str = "DROVER_INSTALLATION";
pub(crate) const ENV_VM_ID: &str = "DROVER_VM_ID";

/// Why a process exists: enough to import it if its row is lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchRecord {
    /// Version of the format; [`VERSION`].
    pub version: u32,
    /// Version of the daemon.
    pub drover: String,
    /// Version of the VMM, as [`super::version::VmmVersion`] shows it.
    pub vmm: String,
    /// The installation that it belongs to.
    pub installation: InstallationId,
    /// The VM.
    pub vm_id: VmId,
    /// Its namespace.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Which of its processes this is.
    pub incarnation: u64,
    /// The uid leased for the VM.
    pub uid: u32,
    /// What the VMM is confined to; without it the VMM runs as root.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// Its cgroup.
    #[serde(default)]
    pub cgroup: VmCgroup,
    /// The VMM's command line; filled by [`launch`].
    #[serde(default)]
    pub argv: Vec<String>,
    /// Names of the variables in the VMM's environment; filled by [`launch`].
    #[serde(default)]
    pub env_names: Vec<String>,
    /// What the owner wants back on an import: the resolved spec and the leases. Never a secret.
    #[serde(default)]
    pub import: serde_json::Value,
}

/// What a start needs.
#[derive(Debug)]
pub struct LaunchSpec {
    /// The holder's program.
    pub hold_bin: PathBuf,
    /// The VMM's program, as a path.
    pub vmm_bin: PathBuf,
    /// The VM's run directory, created.
    pub run_dir: RunDir,
    /// Why it is started.
    pub record: LaunchRecord,
    /// Appended to the VMM's command line.
    pub extra_args: Vec<String>,
    /// How long until the API must answer.
    pub ready_within: Duration,
}

/// Why a VMM did not start. Nothing of it runs any more, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The run directory could not be made ready.
    #[error("cannot prepare the run directory")]
    RunDir(#[from] RunDirError),
    /// A holder already lives there.
    #[error("a holder already lives in {path:?}")]
    AlreadyHeld {
        /// The run directory.
        path: PathBuf,
    },
    /// The holder's program could not be started.
    #[error("cannot start the holder {path:?}")]
    Holder {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The holder did not finish its set-up.
    #[error("the holder failed: {text}")]
    HolderFailed {
        /// What it said.
        text: String,
    },
    /// A step of the set-up failed in the holder, or the VMM's program cannot be executed.
    #[error("cannot {}: {}", .0.step, .0.text)]
    SetUp(SpawnError),
    /// The VMM ended before its API answered.
    #[error("the VMM ended before its API answered")]
    Died {
        /// How it ended.
        exit: Box<ExitRecord>,
        /// The end of what it wrote to stdout and stderr.
        stderr_tail: String,
    },
    /// The API did not answer in time; the VMM was killed.
    #[error("the VMM's API did not answer within {after_ms} ms")]
    NotReady {
        /// The deadline.
        after_ms: u64,
        /// The end of what it wrote to stdout and stderr.
        stderr_tail: String,
        /// The last answer.
        #[source]
        last: ApiError,
    },
    /// The process could not be watched; it was killed.
    #[error("cannot watch process {pid}")]
    Watch {
        /// The VMM.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A VMM that runs, started or adopted. Dropping it leaves the VMM alone.
#[derive(Debug)]
pub struct VmmProcess {
    process: Process,
    record: PidRecord,
    run_dir: RunDir,
}

impl VmmProcess {
    /// Process id of the VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The holder's account of the start.
    #[must_use]
    pub fn record(&self) -> &PidRecord {
        &self.record
    }

    /// Its run directory.
    #[must_use]
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// A client of its API that talks to this process only.
    #[must_use]
    pub fn api(&self) -> ApiClient {
        ApiClient::new(self.run_dir.api_socket()).with_peer(self.pid())
    }

    /// The VMM has ended; its exit record may still be on its way.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Returns when the VMM has ended and its holder has said how.
    ///
    /// May be called by several at once and again after the end. A holder that is gone or says nothing within
    /// five seconds gives a record whose `unrecorded` is set.
    pub async fn wait_exit(&self) -> ExitRecord {
        self.process.ended().await;
        read_exit(&self.run_dir, &self.record).await
    }

    /// Sends a signal to the VMM, never to a later process of the same number.
    ///
    /// # Errors
    /// We may not signal it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// Kills the holder, after the VMM: it then leaves no exit record.
    ///
    /// # Errors
    /// We may not signal it.
    pub fn kill_holder(&self) -> io::Result<()> {
        match Process::open(self.record.holder_pid, self.record.holder_starttime)? {
            Some(holder) => holder.signal(Signal::KILL),
            None => Ok(()),
        }
    }
}

/// The VMM's arguments for a run directory.
#[must_use]
pub fn vmm_args(run_dir: &RunDir, extra: &[String]) -> Vec<String> {
    let mut args = vec![
        "--api-socket".to_owned(),
        format!("path={}", run_dir.api_socket().display()),
        "--event-monitor".to_owned(),
        format!("path={}", run_dir.event_fifo().display()),
        // Else a guest that powers off looks like a VMM that crashed: both end with status 0.
        "--no-shutdown".to_owned(),
    ];
    args.extend_from_slice(extra);
    args
}

/// The holder's environment, which it passes on to the VMM.
fn environment(record: &LaunchRecord) -> Vec<(OsString, OsString)> {
    let kept = std::env::vars_os()
        .filter(|(name, _)| name == "PATH" || name.to_string_lossy().starts_with("SOFTVMM_"));
    let marks = [
        (ENV_INSTALLATION.into(), record.installation.to_string().into()),
        (ENV_VM_ID.into(), record.vm_id.to_string().into()),
    ];
    kept.chain(marks).collect()
}

/// Starts a VMM and returns when its API answers.
///
/// Cancelled or failed, it kills what it started as far as it knows of it; a holder in the middle of its
/// set-up is found again by [`destroy`].
///
/// # Errors
/// Each step has a variant of [`LaunchError`].
pub async fn launch(spec: &LaunchSpec) -> Result<VmmProcess, LaunchError> {
    let deadline = Instant::now() + spec.ready_within;
    let dir = &spec.run_dir;
    let lock = dir.open_lock()?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(LaunchError::AlreadyHeld { path: dir.path().to_owned() });
        }
        Err(std::fs::TryLockError::Error(source)) => {
            let path = dir.file(file::LOCK);
            return Err(RunDirError { step: "lock", path, source }.into());
        }
    }
    dir.prepare(spec.record.confinement.as_ref().map(|confinement| confinement.uid))?;
    let args = vmm_args(dir, &spec.extra_args);
    let env = environment(&spec.record);
    let mut record = spec.record.clone();
    record.version = VERSION;
    record.argv = std::iter::once(spec.vmm_bin.display().to_string()).chain(args.iter().cloned()).collect();
    record.env_names = env.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    dir.write_record(file::RECORD, &record)?;

    start_holder(spec, lock.into(), &args, env, deadline).await?;
    let Some(pids) = dir.pid_record()? else {
        let text = "it reported success without a process record".to_owned();
        return Err(LaunchError::HolderFailed { text });
    };
    let watch = |source| LaunchError::Watch { pid: pids.pid, source };
    let Some(process) = Process::open(pids.pid, pids.starttime).map_err(watch)? else {
        return Err(died(dir, &pids).await);
    };
    let process = VmmProcess { process, record: pids, run_dir: dir.clone() };
    await_api(process, deadline, spec.ready_within).await
}

async fn start_holder(
    spec: &LaunchSpec,
    lock: OwnedFd,
    args: &[String],
    env: Vec<(OsString, OsString)>,
    deadline: Instant,
) -> Result<(), LaunchError> {
    let mut command = match &spec.record.cgroup.scope {
        Some(scope) => {
            let LaunchRecord { namespace, name, .. } = &spec.record;
            scope.command(&spec.hold_bin, &format!("VM {namespace}/{name} of drover"))
        }
        None => tokio::process::Command::new(&spec.hold_bin),
    };
    command.arg("--run-dir").arg(spec.run_dir.path()).arg("--record").arg(file::RECORD);
    for dir in &spec.record.cgroup.dirs {
        command.arg("--cgroup").arg(dir);
    }
    for dir in &spec.record.cgroup.holder_dirs {
        command.arg("--holder-cgroup").arg(dir);
    }
    command.arg("--").arg(&spec.vmm_bin).args(args);
    command.env_clear().envs(env).current_dir("/");
    // The holder keeps its standard input: the lock lives as long as it does.
    command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |source| LaunchError::Holder { path: spec.hold_bin.clone(), source };
    let child = command.spawn().map_err(failed)?;
    // What was spawned ends as soon as the holder proper has finished its set-up.
    let output = match tokio::time::timeout_at(deadline, child.wait_with_output()).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => {
            destroy(&spec.run_dir, spec.record.installation, &spec.record.cgroup).await;
            return Err(LaunchError::HolderFailed { text: "its set-up did not end in time".to_owned() });
        }
    };
    if output.status.success() {
        return Ok(());
    }
    if let Ok(error) = serde_json::from_slice::<SpawnError>(&output.stderr) {
        return Err(LaunchError::SetUp(error));
    }
    let said = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(STDERR_IN_ERRORS)]);
    Err(LaunchError::HolderFailed { text: format!("{}: {}", output.status, said.trim()) })
}

async fn await_api(
    process: VmmProcess,
    deadline: Instant,
    within: Duration,
) -> Result<VmmProcess, LaunchError> {
    let api = process.api();
    let began = Instant::now();
    loop {
        let last = tokio::select! {
            biased;
            () = process.process.ended() => return Err(died(&process.run_dir, &process.record).await),
            answer = api.ping() => match answer {
                Ok(_) => return Ok(process),
                Err(error) => error,
            },
        };
        if Instant::now() >= deadline {
            let stderr_tail = process.run_dir.stderr_tail(STDERR_IN_ERRORS);
            if let Err(source) = process.signal(Signal::KILL) {
                return Err(LaunchError::Watch { pid: process.pid(), source });
            }
            process.wait_exit().await;
            let after_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            return Err(LaunchError::NotReady { after_ms, stderr_tail, last });
        }
        tokio::select! {
            () = process.process.ended() => {}
            () = sleep(pause_while_waiting(began.elapsed(), LONGEST_PAUSE)) => {}
        }
    }
}

async fn died(dir: &RunDir, record: &PidRecord) -> LaunchError {
    let exit = read_exit(dir, record).await;
    if let Some(error) = exit.spawn_error {
        return LaunchError::SetUp(error);
    }
    LaunchError::Died { exit: Box::new(exit), stderr_tail: dir.stderr_tail(STDERR_IN_ERRORS) }
}

/// The exit record of an ended VMM; waits for the holder to write it and to end.
async fn read_exit(dir: &RunDir, record: &PidRecord) -> ExitRecord {
    if let Ok(Some(holder)) = Process::open(record.holder_pid, record.holder_starttime) {
        // Whatever is there after the grace is what there is.
        let _ = timeout(HOLDER_GRACE, holder.ended()).await;
    }
    let unrecorded = match dir.exit_record() {
        Ok(Some(exit)) if exit.vmm_pid == record.pid => return exit,
        Ok(_) => "the holder ended before the VMM and left no exit record".to_owned(),
        Err(error) => crate::chain::chain(&error).to_string(),
    };
    ExitRecord {
        version: VERSION,
        vmm_pid: record.pid,
        unrecorded: Some(unrecorded),
        ..ExitRecord::default()
    }
}
