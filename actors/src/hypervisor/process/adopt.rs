//! What a later daemon does with what it finds in a run directory: takes it over, or ends it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::id::{InstallationId, VmId};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::{ENV_INSTALLATION, ENV_VM_ID, HOLDER_GRACE, VmmProcess, read_exit};
use crate::hypervisor::api::{ApiError, VmmPing};
use crate::hypervisor::cgroup::VmCgroup;
use crate::hypervisor::pidfd::{self, Process};
use crate::hypervisor::record::{ExitRecord, PidRecord};
use crate::hypervisor::run_dir::{RunDir, RunDirError};

/// Why a process found in a run directory was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A file of the run directory cannot be read.
    #[error("cannot read the run directory")]
    RunDir(#[from] RunDirError),
    /// Nothing was started there, or what was started never ran.
    #[error("no process was started in {path:?}")]
    NothingThere {
        /// The run directory.
        path: PathBuf,
        /// What the holder left, if it failed.
        exit: Option<Box<ExitRecord>>,
    },
    /// It ended while nobody looked.
    #[error("the VMM has ended")]
    Ended {
        /// How, if its holder could say.
        exit: Box<ExitRecord>,
    },
    /// It belonged to an earlier boot of the host.
    #[error("the VMM ran before the host's last boot")]
    OtherBoot,
    /// The process does not carry our marks: it is left alone.
    #[error("process {pid} is not VM {vm_id} of installation {installation}")]
    NotOurs {
        /// The process.
        pid: u32,
        /// The VM that was expected.
        vm_id: VmId,
        /// The installation that was expected.
        installation: InstallationId,
    },
    /// It is ours and lives, but does not answer; the process comes along so that it can be ended.
    #[error("the VMM lives but does not answer")]
    Silent {
        /// The process.
        process: Box<VmmProcess>,
        /// What its API did.
        #[source]
        source: ApiError,
    },
    /// It cannot be watched.
    #[error("cannot watch process {pid}")]
    Watch {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Takes over the VMM that runs in a run directory, after a restart of the daemon.
///
/// It must be of this boot, have the start time of its record and our marks in its environment, listen on
/// the API socket itself, and answer a ping with its pid.
///
/// # Errors
/// Each reason has a variant of [`AdoptError`]; nothing was touched.
pub async fn adopt(
    run_dir: &RunDir,
    installation: InstallationId,
) -> Result<(VmmProcess, VmmPing), AdoptError> {
    let Some(record) = settled_record(run_dir).await? else {
        let exit = run_dir.exit_record()?.map(Box::new);
        return Err(AdoptError::NothingThere { path: run_dir.path().to_owned(), exit });
    };
    let watch = |source| AdoptError::Watch { pid: record.pid, source };
    if pidfd::boot_id().map_err(watch)? != record.boot_id {
        return Err(AdoptError::OtherBoot);
    }
    let Some(process) = Process::open(record.pid, record.starttime).map_err(watch)? else {
        return Err(AdoptError::Ended { exit: Box::new(read_exit(run_dir, &record).await) });
    };
    let vm_id = run_dir.vm_id();
    if !has_marks(record.pid, installation, vm_id) {
        return Err(AdoptError::NotOurs { pid: record.pid, vm_id, installation });
    }
    let process = VmmProcess { process, record, run_dir: run_dir.clone() };
    let answer = tokio::select! {
        biased;
        () = process.process.ended() => {
            return Err(AdoptError::Ended { exit: Box::new(process.wait_exit().await) });
        }
        answer = async { process.api().ping().await } => answer,
    };
    match answer {
        // A VMM in a pid namespace of its own may know itself by another number: the socket's peer counts.
        Ok(ping) => Ok((process, ping)),
        Err(source) => Err(AdoptError::Silent { process: Box::new(process), source }),
    }
}

fn has_marks(pid: u32, installation: InstallationId, vm_id: VmId) -> bool {
    pidfd::has_env(pid, ENV_INSTALLATION, &installation.to_string())
        && pidfd::has_env(pid, ENV_VM_ID, &vm_id.to_string())
}

/// The process record, once a set-up that is under way has ended.
async fn settled_record(run_dir: &RunDir) -> Result<Option<PidRecord>, RunDirError> {
    let deadline = Instant::now() + HOLDER_GRACE;
    loop {
        // Asked first: a holder writes the record before it lets go of the lock.
        let held = run_dir.is_held()?;
        let record = run_dir.pid_record()?;
        if record.is_some() || !held || Instant::now() >= deadline {
            return Ok(record);
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Ends whatever of ours runs in a run directory, without asking it: for half-done starts and deletes.
///
/// Returns whether nothing is left. Processes without our marks are left alone.
pub async fn destroy(run_dir: &RunDir, installation: InstallationId, cgroup: &VmCgroup) -> bool {
    let record = settled_record(run_dir).await.ok().flatten();
    let ours = record.filter(|record| pidfd::boot_id().is_ok_and(|id| id == record.boot_id));
    if let Some(record) = &ours {
        if let Ok(Some(vmm)) = Process::open(record.pid, record.starttime)
            && has_marks(record.pid, installation, run_dir.vm_id())
        {
            // A failure shows below: the process is then still there.
            let _ = vmm.signal(Signal::KILL);
            let _ = timeout(HOLDER_GRACE, vmm.ended()).await;
        }
        if let Ok(Some(holder)) = Process::open(record.holder_pid, record.holder_starttime)
            && timeout(HOLDER_GRACE, holder.ended()).await.is_err()
        {
            let _ = holder.signal(Signal::KILL);
            let _ = timeout(HOLDER_GRACE, holder.ended()).await;
        }
    }
    let removed = cgroup.remove(HOLDER_GRACE).await.is_ok();
    removed && !run_dir.is_held().unwrap_or(true)
}
