//! The daemon is killed and begun again as it was: how long until all of its VMs answer.
//!
//! Only where it is asked for by name: for as long as it takes, nobody's VMs on that host answer. Under systemd
//! the service is begun again by systemd; elsewhere it is started here with the same command line.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use drover_actors::chain;
use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::status::VmStatus;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::memory::{GUEST, MemoryError, resident_kib};
use super::report::{Goal, Row};
use super::sample::Percentiles;
use super::vms::Vms;
use crate::client::{CallOptions, Client, ClientError};

/// How many times it is killed.
const ROUNDS: usize = 3;
/// Pause between two questions to a VM that does not answer yet.
const AGAIN: Duration = Duration::from_millis(10);
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(1);
/// When it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the daemon cannot be begun again.
#[derive(Debug, thiserror::Error)]
enum RespawnError {
    /// Its process cannot be looked at.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be killed.
    #[error("kill process {pid}")]
    Kill {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// It cannot be started.
    #[error("start {program:?}")]
    Start {
        /// The program.
        program: OsString,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A daemon as it was started.
struct Daemon {
    pid: u32,
    words: Vec<OsString>,
    environment: Vec<OsString>,
    directory: PathBuf,
    output: File,
    /// Its service manager starts it again.
    managed: bool,
}

fn words(bytes: &[u8]) -> Vec<OsString> {
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

impl Daemon {
    fn look(pid: u32) -> Result<Self, RespawnError> {
        let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let failed = |name: &str| {
            let path = path(name);
            move |source| RespawnError::Read { path, source }
        };
        let read = |name: &str| std::fs::read(path(name)).map_err(failed(name));
        let groups = read("cgroup")?;
        let groups = String::from_utf8_lossy(&groups);
        Ok(Self {
            pid,
            words: words(&read("cmdline")?),
            environment: words(&read("environ")?),
            directory: std::fs::read_link(path("cwd")).map_err(failed("cwd"))?,
            output: OpenOptions::new().append(true).open(path("fd/2")).map_err(failed("fd/2"))?,
            managed: groups.lines().any(|line| line.trim_end().ends_with(".service")),
        })
    }

    fn kill(&self) -> Result<(), RespawnError> {
        let target = Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
        kill(target, Signal::SIGKILL).map_err(|source| RespawnError::Kill { pid: self.pid, source })
    }

    fn start(&self) -> Result<(), RespawnError> {
        let Some((program, args)) = self.words.split_first().filter(|_| !self.managed) else { return Ok(()) };
        let failed = |source| RespawnError::Start { program: program.clone(), source };
        let (out, err) = (self.output.try_clone().map_err(failed)?, self.output.try_clone().map_err(failed)?);
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.directory).env_clear();
        for pair in &self.environment {
            let pair = pair.clone().into_vec();
            if let Some(at) = pair.iter().position(|byte| *byte == b'=') {
                let (name, value) = (pair[..at].to_vec(), pair[at + 1..].to_vec());
                command.env(OsString::from_vec(name), OsString::from_vec(value));
            }
        }
        // It outlives this program, as the one before it would have.
        command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map(drop).map_err(failed)
    }
}

/// The row of `count` VMs.
pub async fn row(
    client: &Client,
    host: &Token,
    vms: &Vms,
    daemon: Result<u32, MemoryError>,
    count: usize,
) -> Result<Row, ClientError> {
    let row = Row::new(&format!("kill -9 to {count} VMs answering again"), "s", Percentiles::default())
        .goal(Goal::AtMost(2.0));
    let mut pid = match daemon {
        Ok(pid) => pid,
        Err(error) => return Ok(row.unmeasured(&chain(&error).to_string())),
    };
    let made = vms.create_many(count, GUEST).await?;
    let mut took = Vec::new();
    let mut memory = 0;
    for _ in 0..ROUNDS {
        let began = match again(pid) {
            Ok(began) => began,
            Err(error) => return Ok(row.unmeasured(&chain(&error).to_string())),
        };
        pid = answered(client, host, &made, pid, began).await?;
        took.push(began.elapsed().as_secs_f64());
        memory = resident_kib(pid).unwrap_or(0);
    }
    vms.delete_many(made.into_iter().map(|vm| vm.name)).await;
    let note = format!("none lost or begun again; the new daemon has {} MiB", memory >> 10);
    Ok(Row { drover: Some(Percentiles::of(took)), note: Some(note), ..row })
}

fn again(pid: u32) -> Result<Instant, RespawnError> {
    let daemon = Daemon::look(pid)?;
    let began = Instant::now();
    daemon.kill()?;
    daemon.start()?;
    Ok(began)
}

/// Waits until every VM answers as the process that it was; gives the daemon's new process id.
async fn answered(
    client: &Client,
    host: &Token,
    vms: &[VmStatus],
    old: u32,
    began: Instant,
) -> Result<u32, ClientError> {
    let options = CallOptions::read(ANSWER);
    let pid = loop {
        match client.host_info(host, ANSWER).await {
            Ok(info) if info.pid.is_some_and(|pid| pid != old) => break info.pid.unwrap_or(old),
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            _ => tokio::time::sleep(AGAIN).await,
        }
    };
    let one = async |vm: &VmStatus| loop {
        match client.vm::<_, VmStatus>(&vm.name, "get", &Empty {}, options).await {
            Ok(now) if now.vmm_pid == vm.vmm_pid => return Ok(()),
            Ok(now) if began.elapsed() > PATIENCE => {
                let text = format!("{} is {} and another process than before", vm.name, now.state);
                return Err(drover_schemas::ErrorBody::new(drover_schemas::ErrorCode::Internal, text).into());
            }
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            _ => tokio::time::sleep(AGAIN).await,
        }
    };
    join_all(vms.iter().map(one)).await.into_iter().collect::<Result<(), ClientError>>()?;
    Ok(pid)
}
