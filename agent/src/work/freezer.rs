//! `drover-agent --freeze`: the process that keeps file systems frozen, and thaws them whatever becomes of the agent.
//!
//! It is told by its standard input, a socket of messages: first the [`Plan`], later [`THAW`] or [`SHUTDOWN`]. The end
//! of that socket is the end of the agent. It holds every file system by a descriptor and its own memory locked, so it
//! needs nothing that stands still. Its time is kept by a thread of its own: the one that freezes may wait for a disk.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::guest::{FreezeResult, FrozenMount, MAX_FROZEN, SkippedMount, ThawResult, ThawedBy};
use drover_schemas::{ErrorBody, ErrorCode, codec};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::hooks::Hooks;
use super::marks::{self, Marks};
use super::mounts::Mount;
use super::{disks, guest_error};
use crate::facts;

/// The longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 100 * 1024;
/// Says to thaw.
pub(super) const THAW: &[u8] = b"thaw";
/// Says to thaw because the guest will be switched off.
pub(super) const SHUTDOWN: &[u8] = b"shutdown";
/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) timeout_ms: u64,
    pub(super) mounts: Option<Vec<String>>,
    pub(super) hooks: PathBuf,
    pub(super) hook_ms: u64,
    pub(super) run_dir: PathBuf,
}

/// What it tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum News {
    /// Nothing is frozen, and nothing will be.
    Refused(ErrorBody),
    Frozen(FreezeResult),
    /// All go on; the programs of the guest are being told.
    Thawing {},
    Thawed(ThawResult),
}

/// The freezer could not begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct FreezerError {
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Runs as the freezer until everything goes on again.
///
/// # Errors
/// [`FreezerError`]; then nothing is frozen.
pub fn main() -> Result<(), FreezerError> {
    let failed = |step| move |source| FreezerError { step, source };
    let agent = io::stdin().as_fd().try_clone_to_owned().map_err(failed("hold the agent's socket"))?;
    let mut message = vec![0; MAX_MESSAGE];
    let (count, _) = recv(&agent, &mut message[..], RecvFlags::empty())
        .map_err(|e| failed("read what to freeze")(e.into()))?;
    let plan: Plan =
        codec::decode(&message[..count]).map_err(|e| failed("read what to freeze")(io::Error::other(e)))?;
    drop(message);
    // The agent's end is seen by its socket, whatever ends it; what ends the agent's group must leave this one.
    let _ = nix::unistd::setsid();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: a system call on integers; there is one thread.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let news = match prepare(&plan) {
        Err(error) => News::Refused(error),
        Ok(ready) => ready.live(&agent, &plan),
    };
    tell(&agent, &news);
    Ok(())
}

/// An agent that has gone does not hear it.
fn tell(agent: &OwnedFd, news: &News) {
    if let Ok(bytes) = codec::encode(news) {
        let _ = send(agent, &bytes, SendFlags::NOSIGNAL);
    }
}

/// A file system that is held.
#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    mount: Mount,
}

/// Everything is there, and nothing was done.
struct Ready {
    hooks: Hooks,
    held: Vec<Held>,
    skipped: Vec<SkippedMount>,
    marks: Marks,
}

fn prepare(plan: &Plan) -> Result<Ready, ErrorBody> {
    let chosen = disks::choose(plan.mounts.as_deref())?;
    let mut skipped = chosen.skipped;
    let mut held = Vec::new();
    for target in &chosen.targets {
        match disks::hold(target) {
            Ok((fd, mount)) => held.push(Held { fd, mount }),
            Err(reason) => skipped.push(SkippedMount { mount: target.first().shown(), reason }),
        }
    }
    skipped.truncate(MAX_FROZEN);
    if held.is_empty() {
        let text =
            "the guest has no file system on a disk that can be written, so there is nothing to freeze";
        return Err(ErrorBody::new(ErrorCode::InvalidState, text));
    }
    let marks = marks::mark(&plan.run_dir, held.iter().map(|held| held.mount.point.as_path()))?;
    let hooks = Hooks::find(&plan.hooks, Duration::from_millis(plan.hook_ms))?;
    // SAFETY: a system call on integers. Also what comes later, such as the stack of the thread that keeps the time.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        let error = io::Error::last_os_error();
        return Err(guest_error(format!("what thaws cannot have its memory locked: {error}")));
    }
    Ok(Ready { hooks, held, skipped, marks })
}

/// What the two threads share. No call that may wait for a disk for long is made with the lock held, but thaws.
#[derive(Default)]
struct Progress {
    /// By their place in the list.
    frozen: Vec<usize>,
    over: Option<ThawedBy>,
    thawed: Vec<String>,
    failed: Vec<SkippedMount>,
}

impl Ready {
    fn live(self, agent: &OwnedFd, plan: &Plan) -> News {
        let Self { mut hooks, held, mut skipped, marks } = self;
        let began = Instant::now();
        let told = match hooks.freeze(|| is_silent(agent)) {
            Ok(told) => told,
            Err(error) => return News::Refused(error),
        };
        // What is written now need not be written by the freeze itself, with others frozen already.
        for held in &held {
            let _ = rustix::fs::syncfs(&held.fd);
        }
        let progress = Mutex::new(Progress::default());
        let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
        let timeout = Duration::from_millis(plan.timeout_ms);
        let deadline = Instant::now() + timeout;
        let stood = Mutex::new(None);
        let mut refused = None;
        std::thread::scope(|scope| {
            let keeping = std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, || {
                let by = wait(agent, deadline);
                let mut progress = lock();
                progress.over = Some(by);
                thaw_all(&mut progress, &held);
            });
            if let Err(error) = keeping {
                refused = Some(guest_error(format!("what keeps the time cannot be started: {error}")));
                return;
            }
            match freeze_all(&held, &mut skipped, &lock) {
                Ok(frozen) => {
                    *stood.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    let took_ms = began.elapsed().as_millis() as u64;
                    let thaws_in_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
                    let hooks = told;
                    tell(agent, &News::Frozen(FreezeResult { frozen, skipped, hooks, took_ms, thaws_in_ms }));
                }
                Err(error) => {
                    refused = Some(error);
                    // Ends the other thread, as if the agent had said so.
                    let _ = rustix::net::shutdown(agent, rustix::net::Shutdown::Read);
                }
            }
        });
        let frozen_ms = match *stood.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(since) => since.elapsed().as_millis() as u64,
            None => 0,
        };
        if refused.is_none() {
            tell(agent, &News::Thawing {});
        }
        let hooks_failed = hooks.thaw();
        drop(marks);
        if let Some(error) = refused {
            return News::Refused(error);
        }
        let Progress { over, thawed, failed, .. } = std::mem::take(&mut *lock());
        let by = over.unwrap_or_default();
        News::Thawed(ThawResult {
            thawed,
            by,
            frozen_ms,
            failed,
            hooks_failed,
            ended_unix_ms: facts::unix_ms(),
        })
    }
}

/// Freezes one after the other. On a failure those that are frozen are thawed by the other thread.
fn freeze_all<'a>(
    held: &[Held],
    skipped: &mut Vec<SkippedMount>,
    lock: &impl Fn() -> MutexGuard<'a, Progress>,
) -> Result<Vec<FrozenMount>, ErrorBody> {
    let given_up = |by: ThawedBy| match by {
        ThawedBy::Deadline => ErrorBody::new(
            ErrorCode::DeadlineExceeded,
            "the time was over before all file systems stood still; they go on again: give it more by timeout_ms",
        ),
        _ => ErrorBody::new(ErrorCode::Conflict, "the freeze was given up before it was complete")
            .with("cause", "superseded"),
    };
    let mut frozen = Vec::new();
    for (at, Held { fd, mount }) in held.iter().enumerate() {
        if let Some(by) = lock().over {
            return Err(given_up(by));
        }
        let done = disks::freeze(fd);
        let mut progress = lock();
        match done {
            Ok(()) => {
                progress.frozen.push(at);
                if let Some(by) = progress.over {
                    thaw_all(&mut progress, held);
                    return Err(given_up(by));
                }
                frozen.push(FrozenMount {
                    mount: mount.shown(),
                    fs_type: mount.fs_type.clone(),
                    device: mount.source.clone(),
                });
            }
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => skipped.push(SkippedMount {
                mount: mount.shown(),
                reason: format!("{} cannot be frozen", mount.fs_type),
            }),
            Err(Errno::EBUSY) => {
                let text = format!("{} is frozen already, by something else in the guest", mount.shown());
                return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "frozen"));
            }
            Err(errno) => {
                let text = format!("{} cannot be frozen: {}", mount.shown(), io::Error::from(errno));
                return Err(guest_error(text).with("mount", mount.shown()));
            }
        }
    }
    if frozen.is_empty() {
        let text = "none of the guest's file systems can be frozen";
        return Err(ErrorBody::new(ErrorCode::Unsupported, text));
    }
    Ok(frozen)
}

fn thaw_all(progress: &mut Progress, held: &[Held]) {
    while let Some(at) = progress.frozen.pop() {
        let Held { fd, mount } = &held[at];
        match disks::thaw(fd) {
            Ok(()) => progress.thawed.push(mount.shown()),
            Err(errno) => progress.failed.push(SkippedMount {
                mount: mount.shown(),
                reason: match errno {
                    Errno::EINVAL => "something else in the guest had thawed it".to_owned(),
                    errno => format!("it cannot be thawed: {}", io::Error::from(errno)),
                },
            }),
        }
    }
}

/// Whether the agent is there and has not asked for the end.
fn is_silent(agent: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(agent, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// Waits for the first reason to thaw.
fn wait(agent: &OwnedFd, deadline: Instant) -> ThawedBy {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return ThawedBy::Deadline;
        }
        let time = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(agent, PollFlags::IN)];
        match poll(&mut fds, Some(&time)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return ThawedBy::AgentLost,
        }
        let mut word = [0; 16];
        return match recv(agent, &mut word[..], RecvFlags::DONTWAIT) {
            Ok((count, _)) if word[..count] == *SHUTDOWN => ThawedBy::Shutdown,
            Ok((count, _)) if word[..count] == *THAW => ThawedBy::Request,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            _ => ThawedBy::AgentLost,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_every_kind_read_back() {
        let error = guest_error("why".into());
        for news in [
            News::Refused(error),
            News::Frozen(FreezeResult::default()),
            News::Thawing {},
            News::Thawed(ThawResult::default()),
        ] {
            let back: News = codec::decode(&codec::encode(&news).unwrap()).unwrap();
            assert_eq!(format!("{back:?}"), format!("{news:?}"));
        }
    }
}
