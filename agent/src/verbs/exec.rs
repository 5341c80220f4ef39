//! `exec`: one command, its streams, its end.
//!
//! The command ends when its leader exits. What it had written by then is still sent; processes
//! that it left in the background live on, without their output. A deadline, a cancel or the loss
//! of the link end the whole process group, with the leader still unreaped, so that the group's
//! number cannot have been given to others.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drover_schemas::guest::{Channel, ExecRequest, ExecResult};
use drover_schemas::{ErrorBody, ErrorCode};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::{Effect, invalid, reply};
use crate::account::{self, Account};
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::log::chain;
use crate::process::{self, Pipe, Plan, Running, SpawnError};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_GRACE: Duration = Duration::from_secs(2);
/// No command runs longer than this by a deadline; keeps the arithmetic of instants safe.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Bytes of output, counted over both channels by one task: atomic only to be shared by its parts.
struct Output {
    left: AtomicU64,
    truncated: AtomicBool,
}

pub(super) async fn run(stream: &Stream, request: ExecRequest, effect: &Effect) -> Outcome {
    let started = Instant::now();
    let mut command = start(&request)?;
    effect.begins();

    let output = Output {
        left: AtomicU64::new(request.max_output_bytes.unwrap_or(u64::MAX)),
        truncated: AtomicBool::new(false),
    };
    let (gone, _) = watch::channel(false);
    let stdin = command.stdin.take();
    let (timed_out, stdout_bytes, stderr_bytes) = {
        let feeding = feed(stream, stdin);
        let supervising = async {
            let timed_out = supervise(stream, &command, &request, started).await;
            gone.send_replace(true);
            timed_out
        };
        let pumping = async {
            tokio::join!(
                supervising,
                pump(stream, &command.stdout, Channel::Stdout, &output, gone.subscribe()),
                pump(stream, &command.stderr, Channel::Stderr, &output, gone.subscribe()),
            )
        };
        tokio::pin!(feeding, pumping);
        tokio::select! {
            done = &mut pumping => done,
            // The input has ended; the command goes on.
            () = &mut feeding => pumping.await,
        }
    };
    let exit = command.reap().map_err(|e| {
        ErrorBody::new(
            ErrorCode::GuestError,
            format!("the command's exit code was taken by another process: {e}"),
        )
    })?;
    if let Some(ending) = stream.ended() {
        return Err(ending.error());
    }
    reply(&ExecResult {
        exit_code: exit.code,
        signal: exit.signal,
        timed_out,
        duration_ms: started.elapsed().as_millis() as u64,
        user_ms: exit.user_ms,
        sys_ms: exit.sys_ms,
        max_rss_kib: exit.max_rss_kib,
        stdout_bytes,
        stderr_bytes,
        truncated: output.truncated.load(Ordering::Relaxed),
    })
}

fn start(request: &ExecRequest) -> Result<Running, ErrorBody> {
    let Some(program) = request.argv.first().filter(|p| !p.is_empty()) else {
        return Err(invalid("argv is empty; name a program"));
    };
    let texts = request.argv.iter().chain(request.env.keys()).chain(request.env.values());
    if texts.chain(&request.cwd).any(|t| t.contains('\0')) {
        return Err(invalid("a NUL byte in argv, env or cwd; remove it"));
    }
    if let Some(name) = request.env.keys().find(|n| n.is_empty() || n.contains('=')) {
        return Err(invalid(format!("{name:?} is not a variable's name")));
    }
    let account = request.user.as_deref().map(account::resolve).transpose()?;
    let own = account::own();
    if let Some(wanted) = &account
        && own.uid != 0
        && (wanted.uid != own.uid || wanted.gid != own.gid)
    {
        return Err(ErrorBody::new(
            ErrorCode::PermissionDenied,
            format!("the agent runs as uid {} and cannot become {}; run it as root", own.uid, wanted.name),
        ));
    }
    let who = account.as_ref().unwrap_or(&own);
    let cwd = working_directory(request, who)?;
    let plan = Plan {
        argv: &request.argv,
        env: environment(request, who),
        cwd: &cwd,
        // An unprivileged agent may not set groups, and need not.
        account: account.as_ref().filter(|_| own.uid == 0),
        stdin: request.stdin,
    };
    process::spawn(&plan).map_err(|error| refused(program, who, &error))
}

fn working_directory(request: &ExecRequest, who: &Account) -> Result<String, ErrorBody> {
    match &request.cwd {
        Some(cwd) if Path::new(cwd).is_dir() => Ok(cwd.clone()),
        Some(cwd) => Err(ErrorBody::new(
            ErrorCode::NotFound,
            format!("there is no directory {cwd:?} in the guest; make it or choose another cwd"),
        )
        .with("cwd", cwd)),
        None if Path::new(&who.home).is_dir() => Ok(who.home.clone()),
        None => Ok("/".to_owned()),
    }
}

fn environment(request: &ExecRequest, who: &Account) -> Vec<(String, String)> {
    let usual = [
        ("PATH", PATH),
        ("HOME", &who.home),
        ("USER", &who.name),
        ("LOGNAME", &who.name),
        ("SHELL", &who.shell),
        ("LANG", "C.UTF-8"),
    ];
    usual
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .chain(request.env.iter().map(|(k, v)| (k.clone(), v.clone())))
        .collect()
}

fn refused(program: &str, who: &Account, error: &SpawnError) -> ErrorBody {
    let SpawnError::Start { source, .. } = error else {
        return ErrorBody::new(ErrorCode::ResourceExhausted, chain(error));
    };
    match source.kind() {
        ErrorKind::NotFound => ErrorBody::new(
            ErrorCode::NotFound,
            format!("there is no program {program:?} in the guest, or its interpreter is missing; check argv[0] and PATH"),
        )
        .with("program", program),
        ErrorKind::PermissionDenied => ErrorBody::new(
            ErrorCode::PermissionDenied,
            format!("{} may not execute {program:?} there; check its mode, the user and the cwd", who.name),
        )
        .with("program", program),
        ErrorKind::ArgumentListTooLong => invalid("argv and env are too long together; send the bulk by put or stdin"),
        ErrorKind::OutOfMemory | ErrorKind::WouldBlock => {
            ErrorBody::new(ErrorCode::ResourceExhausted, format!("the guest cannot start a process: {source}"))
        }
        _ => ErrorBody::new(ErrorCode::GuestError, chain(error)),
    }
}

/// Waits for the leader's exit; ends the group when it must. Answers whether its time was up.
async fn supervise(stream: &Stream, command: &Running, request: &ExecRequest, started: Instant) -> bool {
    let grace = request.kill_grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis);
    let after = |from: Instant, wait: Duration| tokio::time::Instant::from_std(from + wait.min(FOREVER));
    let deadline = after(started, request.timeout_ms.map_or(FOREVER, Duration::from_millis));
    tokio::select! {
        biased;
        _ = command.exited() => return false,
        _ = stream.ending() => {
            command.signal(Signal::SIGKILL);
            let _ = command.exited().await;
            return false;
        }
        () = sleep_until(deadline) => {}
    }
    if !grace.is_zero() {
        command.signal(Signal::SIGTERM);
        tokio::select! {
            _ = command.exited() => {}
            _ = stream.ending() => {}
            () = sleep_until(after(Instant::now(), grace)) => {}
        }
    }
    // Also when the leader went by SIGTERM: others of its group may not have.
    command.signal(Signal::SIGKILL);
    let _ = command.exited().await;
    true
}

/// Moves the host's bytes to the command. When it reads no more, they are dropped, so that the host
/// is never stuck with them.
async fn feed(stream: &Stream, stdin: Option<Pipe>) {
    let Some(stdin) = stdin else { return };
    let mut open = Some(stdin);
    while let Some(bytes) = stream.recv().await {
        if let Some(pipe) = &open
            && pipe.write_all(&bytes).await.is_err()
        {
            open = None;
        }
    }
}

/// Moves a pipe's bytes to the host, with credit in hand; `gone` tells that the leader has exited,
/// and then what is in the pipe is the rest.
async fn pump(
    stream: &Stream,
    pipe: &Pipe,
    ch: Channel,
    output: &Output,
    mut gone: watch::Receiver<bool>,
) -> u64 {
    let (mut total, mut last, mut exited) = (0, 0, false);
    loop {
        let room = if output.left.load(Ordering::Relaxed) == 0 {
            u64::MAX
        } else {
            tokio::select! {
                biased;
                room = stream.room(ch) => room,
                // Nobody wants the rest.
                _ = stream.ending() => return total,
                // Without credit no byte is read, but whether there is one can be seen.
                _ = gone.wait_for(|gone| *gone), if !exited => {
                    if pipe.is_empty() {
                        return total;
                    }
                    exited = true;
                    continue;
                }
            }
        };
        exited |= *gone.borrow();
        match pipe.read(usize::try_from(room).unwrap_or(usize::MAX), last) {
            Ok(bytes) if bytes.is_empty() => return total,
            Ok(mut bytes) => {
                last = bytes.len();
                total += last as u64;
                let left = output.left.load(Ordering::Relaxed);
                if last as u64 > left {
                    output.truncated.store(true, Ordering::Relaxed);
                    bytes.truncate(left as usize);
                }
                output.left.store(left - bytes.len() as u64, Ordering::Relaxed);
                tokio::select! {
                    () = stream.send(ch, bytes) => {}
                    _ = stream.ending() => return total,
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if exited {
                    return total;
                }
                tokio::select! {
                    ready = pipe.wait_readable() => if ready.is_err() { return total },
                    _ = gone.wait_for(|gone| *gone) => {}
                    _ = stream.ending() => return total,
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return total,
        }
    }
}
