//! `freeze`, `thaw` and `frozen`, as the agent sees them: it starts the freezer, listens to it, and refuses meanwhile
//! what would stand still with the file systems.
//!
//! The agent writes to nothing that may be frozen: its log is held back, and its folder is only read. Should the
//! freezer be killed, the agent thaws in its place; should both be, the next agent does.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::guest::{
    FREEZE_MS, FreezeRequest, FreezeResult, FreezeState, FrozenResult, MAX_FREEZE_MS, ThawResult, ThawedBy,
    verb,
};
use drover_schemas::{ErrorBody, ErrorCode, codec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::freezer::{MAX_MESSAGE, News, Plan, SHUTDOWN, THAW};
use super::marks;
use crate::{facts, log, process};

/// Programs that are told of a freeze.
const HOOKS: &str = "/etc/drover-agent/freeze.d";
/// How long one of them may take.
const HOOK_MS: u64 = 20_000;
/// The shortest freeze.
const LEAST_MS: u64 = 100;

#[derive(Debug, Clone, Default)]
struct Now {
    state: FreezeState,
    result: FreezeResult,
    until: Option<Instant>,
    last: Option<ThawResult>,
    /// How the freeze that is under way was refused.
    refused: Option<ErrorBody>,
}

#[derive(Debug)]
struct Inner {
    now: watch::Sender<Now>,
    /// The socket to the freezer, while there is one.
    freezer: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    run_dir: PathBuf,
    program: PathBuf,
}

/// The file systems of this guest, and whether they stand still.
#[derive(Debug, Clone)]
pub struct Freezer(Arc<Inner>);

/// Gives a freeze up that nobody waits for any more.
struct Pending<'a>(Option<&'a Freezer>);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(freezer) = self.0 {
            freezer.say(THAW);
        }
    }
}

impl Freezer {
    /// Everything goes on; what an earlier agent left frozen is thawed.
    #[must_use]
    pub fn new(run_dir: PathBuf, program: PathBuf) -> Self {
        let thawed = marks::recover(&run_dir);
        if !thawed.is_empty() {
            log::warn(format_args!(
                "thawed {thawed:?}, which an earlier agent and its keeper had left frozen"
            ));
        }
        let (now, _) = watch::channel(Now::default());
        Self(Arc::new(Inner { now, freezer: Mutex::default(), run_dir, program }))
    }

    fn socket(&self) -> MutexGuard<'_, Option<Arc<AsyncFd<OwnedFd>>>> {
        self.0.freezer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, word: &[u8]) {
        if let Some(socket) = &*self.socket() {
            // A socket that is full of such words needs no further one; one that has ended neither.
            let _ = send(socket.get_ref(), word, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Refuses a verb that would wait for a file system that stands still.
    ///
    /// # Errors
    /// `busy` with the cause `frozen`.
    pub fn admit(&self, verb: &str) -> Result<(), ErrorBody> {
        let writes = matches!(
            verb,
            verb::EXEC
                | verb::PUT
                | verb::UNPACK
                | verb::RM
                | verb::MKDIR
                | verb::TRIM
                | verb::IDENTITY
                | verb::UPGRADE
                | verb::NETWORK
                | verb::USER_ADD
                | verb::USER_RM
                | verb::KEYS_CHANGE
        );
        let now = self.0.now.borrow();
        if !writes || !matches!(now.state, FreezeState::Freezing | FreezeState::Frozen) {
            return Ok(());
        }
        let left = left_ms(&now);
        let text =
            "file systems of the guest are frozen, and this may have to write; thaw them first, or wait";
        let error = ErrorBody::new(ErrorCode::Busy, text).with("cause", "frozen");
        Err(match left {
            Some(left) => error.with("thaws_in_ms", left),
            None => error,
        })
    }

    /// What stands still.
    #[must_use]
    pub fn status(&self) -> FrozenResult {
        let now = self.0.now.borrow();
        let frozen = match now.state {
            FreezeState::Frozen => now.result.frozen.clone(),
            _ => Vec::new(),
        };
        FrozenResult { state: now.state, frozen, thaws_in_ms: left_ms(&now), last: now.last.clone() }
    }

    /// Freezes. Dropped before it has answered, the freeze is given up.
    ///
    /// # Errors
    /// A coded error; then nothing is frozen.
    pub async fn freeze(&self, request: FreezeRequest) -> Result<FreezeResult, ErrorBody> {
        let timeout_ms = request.timeout_ms.unwrap_or(FREEZE_MS);
        if !(LEAST_MS..=MAX_FREEZE_MS).contains(&timeout_ms) {
            let text = format!("timeout_ms is {timeout_ms}; use {LEAST_MS} to {MAX_FREEZE_MS}");
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "timeout_ms"));
        }
        if request.mounts.as_ref().is_some_and(Vec::is_empty) {
            let text = "mounts names no place; leave it out to freeze all file systems";
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "mounts"));
        }
        let plan = Plan {
            timeout_ms,
            mounts: request.mounts,
            hooks: HOOKS.into(),
            hook_ms: HOOK_MS,
            run_dir: self.0.run_dir.clone(),
        };
        self.begin()?;
        let mut pending = Pending(Some(self));
        let mut news = self.0.now.subscribe();
        let program = self.0.program.clone();
        let started = tokio::task::spawn_blocking(move || start(&program, &plan)).await;
        let started = started.unwrap_or_else(|e| Err(io::Error::other(e)));
        let socket = started.and_then(|(child, socket)| {
            let socket = Arc::new(process::watch(socket, Interest::READABLE)?);
            *self.socket() = Some(Arc::clone(&socket));
            tokio::spawn(self.clone().listen(socket, child));
            Ok(())
        });
        if let Err(error) = socket {
            let text = format!("the process that freezes cannot be started: {error}");
            let error = ErrorBody::new(ErrorCode::GuestError, text);
            self.end(None, Some(error.clone()));
            return Err(error);
        }
        // A sender of news is in every freezer.
        let now = news.wait_for(|now| now.state != FreezeState::Freezing).await.map(|now| now.clone());
        let now = now.map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
        pending.0 = None;
        match now.refused {
            Some(error) => Err(error),
            None => Ok(now.result),
        }
    }

    /// Takes the place of the only freeze.
    fn begin(&self) -> Result<(), ErrorBody> {
        let mut refused = Ok(());
        self.0.now.send_if_modified(|now| {
            if now.state != FreezeState::Thawed {
                let text = "file systems of the guest are frozen already; thaw them first";
                refused = Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "frozen"));
                return false;
            }
            let last = now.last.take();
            *now = Now { state: FreezeState::Freezing, last, ..Now::default() };
            true
        });
        if refused.is_ok() {
            // Whoever reads the log may write it to what stands still, and then read no more.
            log::hold(true);
        }
        refused
    }

    fn end(&self, last: Option<ThawResult>, refused: Option<ErrorBody>) {
        *self.socket() = None;
        self.0.now.send_modify(|now| {
            let last = last.or(now.last.take());
            let result = std::mem::take(&mut now.result);
            *now = Now { state: FreezeState::Thawed, result, until: None, last, refused };
        });
        log::hold(false);
    }

    /// Hears the freezer out.
    async fn listen(self, socket: Arc<AsyncFd<OwnedFd>>, mut child: std::process::Child) {
        let mut began = Instant::now();
        loop {
            match next(&socket).await {
                Some(News::Frozen(result)) => {
                    began = Instant::now();
                    let until = began + Duration::from_millis(result.thaws_in_ms);
                    self.0.now.send_modify(|now| {
                        *now = Now { state: FreezeState::Frozen, result, until: Some(until), ..now.clone() };
                    });
                }
                Some(News::Thawing {}) => {
                    self.0.now.send_modify(|now| {
                        now.state = FreezeState::Thawing;
                        now.until = None;
                    });
                    log::hold(false);
                }
                Some(News::Refused(error)) => {
                    self.end(None, Some(error));
                    break;
                }
                Some(News::Thawed(result)) => {
                    log::info(format_args!("thawed {:?} by {:?}", result.thawed, result.by));
                    self.end(Some(result), None);
                    break;
                }
                None => {
                    self.thaw_itself(began).await;
                    break;
                }
            }
        }
        // It ends at once now, or has ended.
        drop(tokio::task::spawn_blocking(move || child.wait()));
    }

    /// The freezer was killed.
    async fn thaw_itself(&self, began: Instant) {
        let run_dir = self.0.run_dir.clone();
        let thawed = tokio::task::spawn_blocking(move || marks::recover(&run_dir)).await.unwrap_or_default();
        log::error(format_args!("the process that kept {thawed:?} frozen was killed; they were thawed"));
        let was_frozen = self.0.now.borrow().state == FreezeState::Frozen;
        let frozen_ms = began.elapsed().as_millis() as u64;
        let (by, ended_unix_ms) = (ThawedBy::KeeperLost, facts::unix_ms());
        let last = ThawResult { thawed, by, frozen_ms, ended_unix_ms, ..ThawResult::default() };
        let text = "the process that freezes was killed; nothing is frozen";
        self.end(
            was_frozen.then_some(last),
            (!was_frozen).then(|| ErrorBody::new(ErrorCode::GuestError, text)),
        );
    }

    /// Thaws what is frozen, or gives up what is about to be.
    ///
    /// # Errors
    /// `conflict` where nothing is frozen any more, with how the last freeze ended.
    pub async fn thaw(&self) -> Result<ThawResult, ErrorBody> {
        let mut news = self.0.now.subscribe();
        let before = news.borrow_and_update().clone();
        if before.state == FreezeState::Thawed {
            let text = match &before.last {
                None => "nothing is frozen".to_owned(),
                Some(last) => format!(
                    "nothing is frozen any more: it was thawed after {} ms ({:?}); what was copied later may be torn",
                    last.frozen_ms, last.by
                ),
            };
            let error = ErrorBody::new(ErrorCode::Conflict, text).with("cause", "not_frozen");
            return Err(match before.last {
                Some(last) => {
                    error.with("frozen_ms", last.frozen_ms).with("ended_unix_ms", last.ended_unix_ms)
                }
                None => error,
            });
        }
        self.say(THAW);
        let now = news.wait_for(|now| now.state == FreezeState::Thawed).await.map(|now| now.clone());
        let now = now.map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
        match (now.refused, now.last) {
            (None, Some(last)) => Ok(last),
            (refused, _) => Err(refused.unwrap_or_else(|| ErrorBody::new(ErrorCode::Internal, "no result"))),
        }
    }

    /// Thaws what is frozen, if something is, for the guest to be switched off.
    pub async fn release(&self) {
        self.say(SHUTDOWN);
        let is_over = |now: &Now| !matches!(now.state, FreezeState::Freezing | FreezeState::Frozen);
        // A sender of news is in every freezer, so it comes.
        let _ = self.0.now.subscribe().wait_for(is_over).await;
    }
}

fn left_ms(now: &Now) -> Option<u64> {
    now.until.map(|until| until.saturating_duration_since(Instant::now()).as_millis() as u64)
}

/// Starts the freezer and tells it its plan.
fn start(program: &std::path::Path, plan: &Plan) -> io::Result<(std::process::Child, OwnedFd)> {
    let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let plan = codec::encode(plan).map_err(io::Error::other)?;
    if plan.len() > MAX_MESSAGE {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let mut command = Command::new(program);
    // Its log must not wait for what it freezes.
    command.arg("--freeze").stdin(there).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    let child = command.spawn()?;
    send(&here, &plan, SendFlags::NOSIGNAL)?;
    rustix::io::ioctl_fionbio(&here, true)?;
    Ok((child, here))
}

/// The next message; `None` when there is no more.
async fn next(socket: &AsyncFd<OwnedFd>) -> Option<News> {
    let mut message = vec![0; MAX_MESSAGE];
    loop {
        let mut guard = socket.readable().await.ok()?;
        match recv(socket.get_ref(), &mut message[..], RecvFlags::DONTWAIT) {
            Ok((count, _)) => return codec::decode(&message[..count]).ok(),
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}
