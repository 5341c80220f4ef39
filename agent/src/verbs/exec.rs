//! `exec`: one command, its streams, its end.
//!
//! The command ends when its first process exits. What it had written by then is still sent; processes
//! that it left in the background live on, without their output. A deadline, a cancel or the loss
//! of the link end everything that it started, whatever session it is in.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use drover_schemas::guest::{Channel, ExecRequest, ExecResult};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Effect, reply};
use crate::command::{self, Command, gone};
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::facts;
use crate::process::{Pipe, Running};

/// How long a terminal is silent before what others still hold open of it is no more waited for: the
/// kernel hands the last bytes over a moment after the command's end.
const TERMINAL_REST: Duration = Duration::from_millis(200);

/// Bytes of output, counted over both channels by one task: atomic only to be shared by its parts.
struct Output {
    left: AtomicU64,
    truncated: AtomicBool,
}

pub(super) async fn run(stream: &Stream, request: ExecRequest, effect: &Effect) -> Outcome {
    let mut command = command::start(&request)?;
    effect.begins();

    let output = Output {
        left: AtomicU64::new(request.max_output_bytes.unwrap_or(u64::MAX)),
        truncated: AtomicBool::new(false),
    };
    let (is_gone, _) = watch::channel(false);
    let stdin = command.process.stdin.take();
    let (timed_out, stdout_bytes, stderr_bytes) = {
        let command = &command;
        let feeding = async {
            feed(stream, stdin, &command.process).await;
            // The input has ended; the command goes on.
            std::future::pending::<()>().await;
        };
        let steering = async {
            loop {
                command.steer(stream.steered().await);
            }
        };
        let pumping = pump_all(stream, command, &output, &is_gone);
        tokio::select! {
            done = pumping => done,
            () = feeding => (false, 0, 0),
            () = steering => (false, 0, 0),
        }
    };
    let exit = command.reap()?;
    if let Some(ending) = stream.ended() {
        return Err(ending.error());
    }
    reply(&ExecResult {
        exit_code: exit.code,
        signal: exit.signal,
        timed_out,
        started_unix_ms: command.started_unix_ms,
        ended_unix_ms: facts::unix_ms(),
        duration_ms: command.started.elapsed().as_millis() as u64,
        user_ms: exit.user_ms,
        sys_ms: exit.sys_ms,
        max_rss_kib: exit.max_rss_kib,
        stdout_bytes,
        stderr_bytes,
        truncated: output.truncated.load(Ordering::Relaxed),
    })
}

async fn pump_all(
    stream: &Stream,
    command: &Command,
    output: &Output,
    is_gone: &watch::Sender<bool>,
) -> (bool, u64, u64) {
    let process = &command.process;
    let rest = if process.has_terminal() { TERMINAL_REST } else { Duration::ZERO };
    let supervising = async {
        let timed_out = command
            .supervise(async {
                let _ = stream.ending().await;
            })
            .await;
        is_gone.send_replace(true);
        timed_out
    };
    let stderr = async {
        match &process.stderr {
            Some(pipe) => pump(stream, pipe, Channel::Stderr, output, rest, is_gone.subscribe()).await,
            None => 0,
        }
    };
    let stdout = pump(stream, &process.stdout, Channel::Stdout, output, rest, is_gone.subscribe());
    tokio::join!(supervising, stdout, stderr)
}

/// Moves the host's bytes to the command. When it reads no more, they are dropped, so that the host
/// is never stuck with them.
async fn feed(stream: &Stream, stdin: Option<Pipe>, process: &Running) {
    let Some(stdin) = stdin else { return };
    let mut open = Some(stdin);
    while let Some(bytes) = stream.recv().await {
        if let Some(pipe) = &open
            && pipe.write_all(&bytes).await.is_err()
        {
            open = None;
        }
    }
    if let (Some(pipe), Some(end)) = (open, process.end_of_file()) {
        let _ = pipe.write_all(&[end]).await;
    }
}

/// Moves a pipe's bytes to the host, with credit in hand; `is_gone` tells that the command has exited,
/// and then what is in the pipe is the rest.
async fn pump(
    stream: &Stream,
    pipe: &Pipe,
    ch: Channel,
    output: &Output,
    rest: Duration,
    mut is_gone: watch::Receiver<bool>,
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
                () = gone(&mut is_gone), if !exited => {
                    if pipe.is_empty() {
                        let _ = timeout(rest, pipe.wait_readable()).await;
                        if pipe.is_empty() {
                            return total;
                        }
                    }
                    exited = true;
                    continue;
                }
            }
        };
        exited |= *is_gone.borrow();
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
                    match timeout(rest, pipe.wait_readable()).await {
                        Ok(Ok(())) => continue,
                        _ => return total,
                    }
                }
                tokio::select! {
                    ready = pipe.wait_readable() => if ready.is_err() { return total },
                    () = gone(&mut is_gone) => {}
                    _ = stream.ending() => return total,
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return total,
        }
    }
}
