//! Detached commands of this boot.
//!
//! Each is a folder below `/run/drover-agent/runs`, written by a keeper of its own ([`keep`]). The agent holds
//! nothing of them in memory: it looks at the folders when it is asked, so it may end and begin again.
//!
//! What they may take is bounded: [`MAX_RUNS`] of them, ended ones included, with [`MAX_RINGS_BYTES`] of output
//! in all, for [`RUN_KEPT_MS`] after their end. A start makes room by forgetting what ended first; what runs
//! is never forgotten.

mod attach;
mod files;
pub mod keep;
mod ring;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use drover_schemas::guest::{
    ExecRequest, MAX_RING_BYTES, MAX_RINGS_BYTES, MAX_RUNS, RING_BYTES, RUN_KEPT_MS, RunInfo, RunState,
};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

pub use self::attach::Attached;
pub use self::files::Folder;
use self::files::{Start, Word};
use self::keep::{Began, Plan, out_of_room};
pub use self::ring::ReadError;
use crate::{command, facts};

/// The most that a keeper says of how it began, in bytes.
const MAX_BEGAN: u64 = 64 * 1024;
/// Of a small guest's memory runs take this part, if it is less than the usual limit.
const MEMORY_PART: u64 = 32;

/// The runs of this boot.
#[derive(Debug)]
pub struct Runs {
    dir: PathBuf,
    /// The agent's own program, which is the keeper too.
    program: PathBuf,
    boot_id: String,
    rings_bytes: u64,
    /// One start at a time: it looks at what is there, and makes room.
    starting: Mutex<()>,
}

impl Runs {
    /// Runs below `dir`, kept by `program`.
    #[must_use]
    pub fn new(dir: PathBuf, program: PathBuf, boot_id: &str) -> Self {
        let memory = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total());
        let rings_bytes = MAX_RINGS_BYTES.min(memory / MEMORY_PART);
        Self {
            dir: dir.join("runs"),
            program,
            boot_id: boot_id.to_owned(),
            rings_bytes,
            starting: Mutex::default(),
        }
    }

    /// The folder below which the agent keeps what lives as long as a boot.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.parent().unwrap_or(&self.dir).to_owned()
    }

    /// The agent's own program.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.program.clone()
    }

    fn folder(&self, run: RequestId) -> Folder {
        Folder::new(self.dir.join(run.to_string()))
    }

    /// What there is, oldest first.
    fn all(&self) -> Vec<(Folder, Start)> {
        let folders = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| Folder::new(e.path()));
        let mut all: Vec<_> = folders
            .filter(|folder| folder.run().is_some())
            .filter_map(|folder| folder.start().map(|start| (folder, start)))
            .filter(|(_, start)| start.boot_id == self.boot_id)
            .collect();
        all.sort_by_key(|(_, start)| (start.info.started_unix_ms, start.info.run));
        all
    }

    /// All runs, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<RunInfo> {
        self.all().into_iter().take(MAX_RUNS).map(|(folder, start)| folder.info(start)).collect()
    }

    /// One run.
    ///
    /// # Errors
    /// `not_found`
    pub fn get(&self, run: RequestId) -> Result<(Folder, RunInfo), ErrorBody> {
        let folder = self.folder(run);
        match folder.start().filter(|start| start.boot_id == self.boot_id) {
            Some(start) => {
                let info = folder.info(start);
                Ok((folder, info))
            }
            None => Err(ErrorBody::new(
                ErrorCode::NotFound,
                format!("there is no run {run} in this boot of the guest; `runs` lists what is kept"),
            )
            .with("run", run)),
        }
    }

    /// Starts a command that lives on its own; the same id with the same `body` gives the same run.
    ///
    /// # Errors
    /// A coded error; then nothing runs.
    pub async fn start(
        &self,
        run: RequestId,
        request: ExecRequest,
        body: &[u8],
    ) -> Result<RunInfo, ErrorBody> {
        command::check(&request)?;
        let fingerprint = Sha256::digest(body).to_vec();
        let _one = self.starting.lock().await;
        if let Some(start) = self.folder(run).start().filter(|start| start.boot_id == self.boot_id) {
            if start.fingerprint == fingerprint {
                return Ok(self.folder(run).info(start));
            }
            let text = format!("request id {run} was used for another run; use a new id");
            return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "request_id_reused"));
        }
        let wanted = request.ring_bytes.unwrap_or(RING_BYTES.min(self.rings_bytes / 8));
        let ring_bytes = wanted.clamp(ring::LEAST, MAX_RING_BYTES);
        self.make_room(ring_bytes * if request.tty { 1 } else { 2 })?;
        let plan = Plan { run, boot_id: self.boot_id.clone(), fingerprint, ring_bytes, request };
        let (folder, program) = (self.folder(run), self.program.clone());
        let begun = tokio::task::spawn_blocking(move || {
            let begun = begin(&folder, &program, &plan);
            if begun.is_err() {
                let _ = folder.remove();
            }
            begun
        });
        begun
            .await
            .map_err(|_| ErrorBody::new(ErrorCode::Internal, "the agent failed while it started a run"))?
    }

    /// Forgets what is too old, of another boot or half made, and what ended first until `bytes` more fit.
    fn make_room(&self, bytes: u64) -> Result<(), ErrorBody> {
        let all = self.all();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let folder = Folder::new(entry.path());
            if !all.iter().any(|(known, _)| known.path() == folder.path())
                && folder.state().0 != RunState::Running
            {
                let _ = folder.remove();
            }
        }
        let (mut count, mut held) = (all.len(), all.iter().map(|(_, s)| s.rings_bytes).sum::<u64>());
        let mut ended: Vec<_> = all
            .into_iter()
            .filter_map(|(folder, start)| match folder.state() {
                (RunState::Running, _) => None,
                (_, result) => Some((result.map_or(0, |r| r.ended_unix_ms), folder, start)),
            })
            .collect();
        ended.sort_by_key(|(at, ..)| *at);
        for (at, folder, start) in ended {
            let old = facts::unix_ms().saturating_sub(at) > RUN_KEPT_MS;
            if old || count >= MAX_RUNS || held + bytes > self.rings_bytes {
                let _ = folder.remove();
                count -= 1;
                held -= start.rings_bytes;
            }
        }
        if count >= MAX_RUNS || held + bytes > self.rings_bytes {
            let text = format!(
                "{count} runs are under way and may keep {held} bytes of output; {MAX_RUNS} runs and {} bytes are \
                 the most here: end some, wait, or keep less by ring_bytes",
                self.rings_bytes
            );
            return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text).with("limit", self.rings_bytes));
        }
        Ok(())
    }

    /// Sends a signal to a run.
    ///
    /// # Errors
    /// `not_found`, `invalid_argument`, or `invalid_state` for one that does not run.
    pub fn kill(&self, run: RequestId, signal: Option<i32>) -> Result<(), ErrorBody> {
        let signal = signal.unwrap_or(libc::SIGTERM);
        if !(1..=64).contains(&signal) {
            return Err(ErrorBody::new(
                ErrorCode::InvalidArgument,
                format!("{signal} is not a signal: use 1 to 64"),
            ));
        }
        let (folder, info) = self.get(run)?;
        if info.state == RunState::Running && folder.say(Word::Signal(signal)).is_ok() {
            return Ok(());
        }
        let text = match info.state {
            RunState::Lost => {
                format!("nobody watches run {run} any more: its keeper was killed; see pid {}", info.pid)
            }
            _ => format!("run {run} has ended; `runs` tells how"),
        };
        Err(ErrorBody::new(ErrorCode::InvalidState, text).with("run", run))
    }
}

fn begin(folder: &Folder, program: &std::path::Path, plan: &Plan) -> Result<RunInfo, ErrorBody> {
    let room = |error: io::Error| out_of_room(&error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.path()).map_err(room)?;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        ErrorBody::new(ErrorCode::GuestError, format!("the keeper of the run {what}: {error}"))
    };
    let plan = codec::encode(plan).map_err(|e| failed("cannot be told", &e))?;
    let mut child = Command::new(program)
        .arg("--keep")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed("cannot be started", &e))?;
    let said = (|| {
        child.stdin.take().ok_or(io::ErrorKind::Other)?.write_all(&plan)?;
        let mut said = Vec::new();
        child.stdout.take().ok_or(io::ErrorKind::Other)?.take(MAX_BEGAN).read_to_end(&mut said)?;
        Ok::<_, io::Error>(said)
    })();
    // It has gone already: what stays is its child, which is none of ours.
    let _ = child.wait();
    let said = said.map_err(|e| failed("was not heard", &e))?;
    match codec::decode(&said) {
        Ok(Began::Run(info)) => Ok(info),
        Ok(Began::Error(error)) => Err(error),
        Err(error) => Err(failed("ended without a word", &error)),
    }
}
