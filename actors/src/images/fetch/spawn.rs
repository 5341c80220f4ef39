//! The daemon's side of a fetch: starts the worker, reads from it, and hears how it ended. All of it blocks.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};

use drover_schemas::ErrorBody;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::worker::ARGUMENT;
use super::{Begin, Failed, Job};

/// Nobody: the worker owns nothing.
const NOBODY: u32 = 65_534;
/// What the worker may map, in bytes.
const MEMORY: u64 = 1 << 30;
/// A line of the worker is never longer.
const MAX_LINE: u64 = 16 * 1024;

/// A fetch that did not bring the content.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The worker could not be started or spoken to.
    #[error("start the process that fetches")]
    Start(#[source] io::Error),
    /// The worker did not say why it ended.
    #[error("the process that fetches ended without a word ({status})")]
    Silent {
        /// How it ended.
        status: String,
    },
    /// The server, or what it sent.
    #[error("{}", error.message)]
    Server {
        /// The worker's word.
        error: Box<ErrorBody>,
    },
}

/// A worker that fetches; dropped, it ends.
#[derive(Debug)]
pub struct Fetch {
    child: Child,
    out: BufReader<ChildStdout>,
    /// How long the content is, by its server.
    pub size: u64,
    /// The digest of what the reference meant, if it is an image of a registry.
    pub manifest: Option<String>,
}

impl Fetch {
    /// Starts the worker and waits until the server says how long the content is.
    ///
    /// # Errors
    /// [`FetchError`]
    pub fn begin(job: &Job) -> Result<Self, FetchError> {
        let mut child = start().map_err(FetchError::Start)?;
        let told = child.stdin.take().map(|mut stdin| {
            let text = serde_json::to_vec(job)?;
            stdin.write_all(&text)
        });
        let out = child.stdout.take().map(BufReader::new);
        let (Some(Ok(())), Some(out)) = (told, out) else { return Err(ended(child)) };
        let mut fetch = Self { child, out, size: 0, manifest: None };
        let mut line = Vec::new();
        let read = (&mut fetch.out).take(MAX_LINE).read_until(b'\n', &mut line);
        match read.ok().and_then(|_| serde_json::from_slice::<Begin>(&line).ok()) {
            Some(begin) => {
                (fetch.size, fetch.manifest) = (begin.size, begin.manifest);
                Ok(fetch)
            }
            None => Err(fetch.end().err().unwrap_or(FetchError::Silent { status: "no length".to_owned() })),
        }
    }

    /// Hears how the worker ended, once all that it wrote was read.
    ///
    /// # Errors
    /// [`FetchError`] if not all came.
    pub fn end(mut self) -> Result<(), FetchError> {
        let failed = last_word(&mut self.child);
        let status = self.child.wait().map_err(FetchError::Start)?;
        match (status.success(), failed) {
            (true, _) => Ok(()),
            (false, Some(error)) => Err(FetchError::Server { error: Box::new(error) }),
            (false, None) => Err(FetchError::Silent { status: status.to_string() }),
        }
    }
}

impl Read for Fetch {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.out.read(into)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(mut child: Child) -> FetchError {
    let error = last_word(&mut child);
    let _ = child.kill();
    let status = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
    match error {
        Some(error) => FetchError::Server { error: Box::new(error) },
        None => FetchError::Silent { status },
    }
}

fn last_word(child: &mut Child) -> Option<ErrorBody> {
    let mut text = Vec::new();
    child.stderr.take()?.take(MAX_LINE).read_to_end(&mut text).ok()?;
    let line = text.split(|b| *b == b'\n').rev().find(|line| !line.is_empty())?;
    Some(serde_json::from_slice::<Failed>(line).ok()?.error)
}

fn start() -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let root = Uid::effective().is_root();
    // SAFETY: only system calls between fork and exec, and nothing that allocates.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
            setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
            if root {
                setgroups(&[])?;
                let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
                setresgid(gid, gid, gid)?;
                setresuid(uid, uid, uid)?;
                // Changing the user has taken it away.
                prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            prctl::set_no_new_privs()?;
            Ok(())
        });
    }
    command.spawn()
}
