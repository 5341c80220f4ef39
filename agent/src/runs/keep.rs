//! `drover-agent --keep FOLDER`: the process that keeps one detached command and its output.
//!
//! It is a process of its own and no child of the agent, so neither the end of the agent nor an upgrade
//! touches it. It speaks through the files of its folder only. What it is to run comes on its stdin, so that
//! no secret of the environment is ever in a file; whether it began goes to its stdout.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::guest::{ExecRequest, RunInfo, RunResult, RunState};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::files::{Folder, NOTHING, Start, WORD, Word};
use super::ring::Writer;
use crate::command::{self, Command, gone};
use crate::conn::Steer;
use crate::facts;
use crate::log::{self, chain};
use crate::process::Pipe;

/// The longest plan, in bytes: a request fits into a frame.
const MAX_PLAN: u64 = 2 * drover_schemas::guest::MAX_FRAME as u64;
/// The most of a program's arguments that is told later, in bytes.
const MAX_ARGV: usize = 1024;
/// As for attached commands: how long a terminal may take to hand over its last bytes.
const TERMINAL_REST: Duration = Duration::from_millis(200);

/// What is to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) run: RequestId,
    pub(super) boot_id: String,
    #[serde(with = "serde_bytes")]
    pub(super) fingerprint: Vec<u8>,
    /// How much of each channel is kept.
    pub(super) ring_bytes: u64,
    pub(super) request: ExecRequest,
}

/// Whether it began.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Began {
    Run(RunInfo),
    Error(ErrorBody),
}

/// Keeping a command failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct KeepError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> KeepError {
    move |source| KeepError { step, source }
}

/// Runs as the keeper: reads the plan, leaves its parent, and stays until the command has ended.
///
/// # Errors
/// [`KeepError`]; where the command was not started, the agent was told why.
pub fn main(folder: PathBuf) -> Result<(), KeepError> {
    let folder = Folder::new(folder);
    let mut plan = Vec::new();
    io::stdin().take(MAX_PLAN).read_to_end(&mut plan).map_err(failed("read the plan"))?;
    let plan: Plan = codec::decode(&plan).map_err(io::Error::other).map_err(failed("read the plan"))?;
    // SAFETY: there is one thread yet.
    match unsafe { nix::unistd::fork() }.map_err(io::Error::from).map_err(failed("fork"))? {
        nix::unistd::ForkResult::Parent { .. } => return Ok(()),
        nix::unistd::ForkResult::Child => {}
    }
    let _ = nix::unistd::setsid();
    let _lock = folder.lock().map_err(failed("lock the folder"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed("start"))?.block_on(keep(&folder, plan))
}

async fn keep(folder: &Folder, plan: Plan) -> Result<(), KeepError> {
    let (mut kept, start) = match begin(folder, &plan) {
        Ok(began) => began,
        Err(error) => return tell(&Began::Error(error)),
    };
    // From here on the agent may come and go.
    let written = folder.write_start(&start);
    tell(&match &written {
        Ok(()) => Began::Run(start.info),
        Err(error) => Began::Error(out_of_room(error)),
    })?;
    // Dropped, the command is killed with all that it started.
    written.map_err(failed("write down what was started"))?;
    drop(plan);
    let timed_out = kept.live(folder).await;
    let exit = match kept.command.reap() {
        Ok(exit) => exit,
        Err(error) => {
            // Without a result the run is `lost`, as it is.
            log::error(format_args!("{}", error.message));
            return Ok(());
        }
    };
    let result = RunResult {
        exit_code: exit.code,
        signal: exit.signal,
        timed_out,
        ended_unix_ms: facts::unix_ms(),
        duration_ms: kept.command.started.elapsed().as_millis() as u64,
        user_ms: exit.user_ms,
        sys_ms: exit.sys_ms,
        max_rss_kib: exit.max_rss_kib,
    };
    folder.write_end(&result).map_err(failed("write down the result"))
}

/// Tells the agent, and lets go of its pipes.
fn tell(began: &Began) -> Result<(), KeepError> {
    let bytes = codec::encode(began).map_err(io::Error::other).map_err(failed("tell how it began"))?;
    // An agent that has ended meanwhile finds the run in its folder.
    let _ = io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush());
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(io::Error::from).map_err(failed("let go of stdin"))?;
    rustix::stdio::dup2_stdout(&null).map_err(io::Error::from).map_err(failed("let go of stdout"))
}

pub(super) fn out_of_room(error: &io::Error) -> ErrorBody {
    let text = format!("the guest cannot keep a run in its folder /run/drover-agent: {error}");
    ErrorBody::new(ErrorCode::ResourceExhausted, text)
}

/// A command with the ends that its keeper holds.
struct Kept {
    command: Command,
    control: Pipe,
    stdin: Option<(Pipe, Pipe)>,
    stdout: Writer,
    stderr: Option<Writer>,
}

fn open_pipe(path: &Path) -> io::Result<Pipe> {
    Folder::make_pipe(path)?;
    // For both, so that it never ends because somebody who was attached goes away.
    let options =
        std::fs::File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Pipe::new(OwnedFd::from(options), Interest::READABLE)
}

fn begin(folder: &Folder, plan: &Plan) -> Result<(Kept, Start), ErrorBody> {
    let request = &plan.request;
    let room = |error: io::Error| out_of_room(&error);
    let stdout = Writer::create(&folder.stdout(), plan.ring_bytes).map_err(room)?;
    let stderr = match request.tty {
        true => None,
        false => Some(Writer::create(&folder.stderr(), plan.ring_bytes).map_err(room)?),
    };
    let control = open_pipe(&folder.control()).map_err(room)?;
    let input = request.stdin.then(|| open_pipe(&folder.stdin())).transpose().map_err(room)?;
    let mut command = command::start(request)?;
    let stdin = input.zip(command.process.stdin.take());
    let mut left = MAX_ARGV;
    let argv = request.argv.iter().map_while(|arg| {
        let cut = arg.floor_char_boundary(left);
        let text = arg[..cut].to_owned();
        left -= cut;
        (!text.is_empty() || arg.is_empty()).then_some(text)
    });
    let info = RunInfo {
        run: plan.run,
        argv: argv.take(64).collect(),
        user: command.user.clone(),
        tty: request.tty,
        stdin: request.stdin,
        pid: command.process.pid(),
        state: RunState::Running,
        started_unix_ms: command.started_unix_ms,
        stdout: NOTHING,
        stderr: NOTHING,
        result: None,
    };
    let rings_bytes = plan.ring_bytes * if request.tty { 1 } else { 2 };
    let start =
        Start { boot_id: plan.boot_id.clone(), fingerprint: plan.fingerprint.clone(), rings_bytes, info };
    Ok((Kept { command, control, stdin, stdout, stderr }, start))
}

impl Kept {
    /// Keeps the command until it has ended and its output is in the rings. Answers whether its time was over.
    async fn live(&mut self, folder: &Folder) -> bool {
        let Self { command, control, stdin, stdout, stderr } = self;
        let (kill, end_of_input) = (Notify::new(), Notify::new());
        let (is_gone, _) = watch::channel(false);
        let process = &command.process;
        let rest = if process.has_terminal() { TERMINAL_REST } else { Duration::ZERO };
        let command = &*command;
        let supervising = async {
            let timed_out = command.supervise(kill.notified()).await;
            is_gone.send_replace(true);
            timed_out
        };
        let keeping_errors = async {
            if let (Some(pipe), Some(ring)) = (&process.stderr, stderr) {
                keep_output(pipe, ring, rest, is_gone.subscribe()).await;
            }
        };
        let keeping = keep_output(&process.stdout, stdout, rest, is_gone.subscribe());
        let input = stdin.take();
        let feeding = async {
            if let Some((from, to)) = input {
                feed(&from, to, &end_of_input, process.end_of_file()).await;
            }
            std::future::pending::<()>().await;
        };
        let obeying = async {
            while let Some(word) = next_word(control).await {
                match word {
                    Word::Signal(libc::SIGKILL) => kill.notify_one(),
                    Word::Signal(signal) => command.steer(Steer::Signal(signal)),
                    Word::Resize(size) => command.steer(Steer::Resize(size)),
                    Word::EndOfInput => end_of_input.notify_one(),
                }
            }
            log::error(format_args!("the control pipe of {} failed", folder.path().display()));
            std::future::pending::<()>().await;
        };
        let working = async { tokio::join!(supervising, keeping, keeping_errors).0 };
        tokio::select! {
            timed_out = working => timed_out,
            () = feeding => false,
            () = obeying => false,
        }
    }
}

/// The next word of the agent; `None` when the pipe fails.
async fn next_word(control: &Pipe) -> Option<Word> {
    loop {
        match control.read(WORD, 0) {
            Ok(bytes) => {
                if let Some(word) = bytes.as_ref().try_into().ok().and_then(Word::from_bytes) {
                    return Some(word);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => control.wait_readable().await.ok()?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Moves input to the command until it reads no more, or an end was asked for.
async fn feed(from: &Pipe, to: Pipe, end: &Notify, end_of_file: Option<u8>) {
    let mut ending = false;
    loop {
        match from.read(usize::MAX, 0) {
            Ok(bytes) => {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if ending {
                    if let Some(byte) = end_of_file {
                        let _ = to.write_all(&[byte]).await;
                        ending = false;
                        continue;
                    }
                    return;
                }
                tokio::select! {
                    ready = from.wait_readable() => if ready.is_err() { return },
                    () = end.notified() => ending = true,
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Moves a pipe's bytes into its ring; once the command has exited, what is in the pipe is the rest.
async fn keep_output(pipe: &Pipe, ring: &mut Writer, rest: Duration, mut is_gone: watch::Receiver<bool>) {
    let mut last = 0;
    loop {
        let exited = *is_gone.borrow();
        match pipe.read(usize::MAX, last) {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => {
                last = bytes.len();
                if let Err(error) = ring.append(&bytes) {
                    log::error(format_args!("output is lost: {}", chain(&error)));
                }
                // A command that only writes must leave time for words and deadlines.
                tokio::task::yield_now().await;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if exited {
                    match timeout(rest, pipe.wait_readable()).await {
                        Ok(Ok(())) => continue,
                        _ => return,
                    }
                }
                tokio::select! {
                    ready = pipe.wait_readable() => if ready.is_err() { return },
                    () = gone(&mut is_gone) => {}
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
