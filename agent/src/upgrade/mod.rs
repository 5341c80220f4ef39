//! Another agent in the place of this one, without an end of anything that runs.
//!
//! ```text
//! host ── upgrade, program ─▶ old          the program is written beside the old one, and says its version
//!                             old ─▶ new   started with the listening socket; it greets whoever connects now
//! host ◀─ moved ───────────── old          the host connects anew …
//! host ── moved ────────────▶ old          … and asks for nothing more on the old connection
//!                             old ─▶ new   what it remembers of requests; from now on the new one serves
//!                             old          takes the program's place on disk, answers, and ends with its last stream
//! ```
//!
//! Before the last step on disk each failure leaves the old agent as it was, or starts its own program as the successor.
//! The processes speak [`words`]; commands are children of keepers, not of an agent, so none of them notices.

mod program;
mod succeed;
mod words;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::guest::{UpgradeRequest, UpgradeResult};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::program::Program;
pub use self::succeed::{Inherited, Successor};
pub use self::words::Ended;
use self::words::{New, Old, PATIENCE, TALK};
use crate::conn::Stream;
use crate::dedupe::{Coming, Outcome};
use crate::emit::socket::EventSocket;
use crate::front::Front;
use crate::listen::Listener;
use crate::verbs::{Effect, reply};
use crate::{Agent, log};

/// The option by which a successor is told of its descriptors.
pub const SUCCEED: &str = "--succeed";
/// How long a host may take to connect anew.
const MOVING: Duration = Duration::from_secs(15);

/// What a successor needs of this agent.
#[derive(Debug)]
pub struct Succession {
    listener: OwnedFd,
    front: OwnedFd,
    events: Option<OwnedFd>,
    /// One at a time.
    turn: Mutex<()>,
    /// Another serves, and nothing is left to be done here.
    over: watch::Sender<bool>,
}

impl Succession {
    /// The way to a successor, that will listen and have a front as this agent does.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(listener: &Listener, front: &Front, events: Option<&EventSocket>) -> io::Result<Self> {
        let (listener, front) = (listener.as_fd().try_clone_to_owned()?, front.again()?);
        let events = events.map(EventSocket::again).transpose()?;
        Ok(Self { listener, front, events, turn: Mutex::default(), over: watch::Sender::new(false) })
    }

    /// Waits until this agent has nothing left to do, as another has taken its place.
    pub async fn is_over(&self) {
        // The sender lives as long as this.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Starts a program as the successor, and hears that it could serve.
    async fn start(&self, program: &Path, instance: &str) -> io::Result<Heir> {
        let (own, theirs) = std::os::unix::net::UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let mut inherited = vec![theirs.as_raw_fd(), self.listener.as_raw_fd(), self.front.as_raw_fd()];
        inherited.extend(self.events.as_ref().map(OwnedFd::as_raw_fd));
        let numbers: Vec<_> = inherited.iter().map(ToString::to_string).collect();
        let mut args: Vec<_> = std::env::args_os().collect();
        args.retain(|arg| !arg.to_string_lossy().starts_with(SUCCEED));
        let mut command = Command::new(program);
        if let Some(name) = args.first() {
            command.arg0(name);
        }
        command.args(args.iter().skip(1)).arg(format!("{SUCCEED}={}", numbers.join(",")));
        command.stdin(Stdio::null());
        // SAFETY: system calls on descriptors that are open here, and so in the child.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherited {
                    fcntl_setfd(std::os::fd::BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let process = command.spawn()?;
        drop(theirs);
        let process = Process(Some(process));
        let mut heir = Heir { process, words: UnixStream::from_std(own)?, version: String::new() };
        let begin = Old::Begin { talk: TALK, instance: instance.to_owned() };
        words::say(&mut heir.words, &begin).await?;
        match heir.hear().await? {
            New::Ready { version } => heir.version = version,
            New::Serving {} => return Err(io::Error::new(io::ErrorKind::InvalidData, "it serves unasked")),
        }
        Ok(heir)
    }
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut process) = self.0.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A successor.
#[derive(Debug)]
struct Heir {
    process: Process,
    words: UnixStream,
    version: String,
}

impl Heir {
    async fn hear(&mut self) -> io::Result<New> {
        timeout(PATIENCE, words::hear(&mut self.words)).await?
    }

    /// It takes over.
    async fn go(&mut self, agent: &Agent) -> io::Result<Vec<(RequestId, Coming)>> {
        let (requests, running) = agent.memory.hand_over();
        words::say(&mut self.words, &Old::Go { requests }).await?;
        match self.hear().await? {
            New::Serving {} => Ok(running),
            New::Ready { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, "it is ready twice")),
        }
    }
}

fn failed(what: &str, error: &io::Error) -> ErrorBody {
    let text = format!("the new agent {what}: {error}; the old one goes on as before");
    ErrorBody::new(ErrorCode::GuestError, text).with("cause", "upgrade_failed")
}

/// Carries the verb out.
pub(crate) async fn run(
    agent: &Arc<Agent>,
    stream: &Stream,
    request: UpgradeRequest,
    effect: &Effect,
) -> Outcome {
    let Some(succession) = &agent.succession else {
        let text =
            "this agent has no process before it that a successor could have: start it as its own program";
        return Err(ErrorBody::new(ErrorCode::Unsupported, text));
    };
    let Ok(_turn) = succession.turn.try_lock() else {
        let text = "another upgrade of this agent is under way; wait until it has ended";
        return Err(ErrorBody::new(ErrorCode::Busy, text).with("cause", "upgrading"));
    };
    if !agent.connections.are_taken() {
        let text = "another agent serves this guest already: send the request again";
        return Err(ErrorBody::new(ErrorCode::Unavailable, text).retryable(true));
    }
    let program = Program::receive(agent, stream, &request).await?;
    effect.begins();

    let heir = succession.start(program.path(), &agent.facts.instance).await;
    let heir = heir.map_err(|e| failed("did not get ready", &e))?;
    // From here on whoever connects comes to the new one.
    agent.connections.take_more(false);
    let moved = async {
        agent.connections.say_moved();
        tokio::select! {
            // Requests of hosts are the new one's when all of them have said so.
            moved = timeout(MOVING, agent.connections.have_moved()) => {
                moved.map_err(|_| failed("was not connected to", &io::ErrorKind::TimedOut.into()))
            }
            ending = stream.ending() => Err(ending.error()),
        }
    };
    if let Err(error) = moved.await {
        drop(heir);
        agent.connections.take_more(true);
        return Err(error);
    }
    leave(agent).await;
    let (heir, running, is_new) = match settle(agent, succession, heir).await {
        Ok(settled) => settled,
        Err(error) => {
            log::error(format_args!("no agent can follow this one, which has let go of all: {error}"));
            // Whoever supervises the agent starts the old program, which knows what is in files.
            succession.over.send_replace(true);
            return Err(failed("and the old program did not serve", &error));
        }
    };
    let Heir { mut process, words, version } = heir;
    // It is no child to be looked after any more: the front reaps it.
    process.0 = None;
    let before = agent.facts.release.version.to_owned();
    // All but this one.
    let going_on = u32::try_from(running.len().saturating_sub(1)).unwrap_or(u32::MAX);
    tokio::spawn(end(Arc::clone(agent), words, running));
    is_new.map_err(|e| failed("did not serve", &e))?;
    let path = program.place()?;
    log::info(format_args!("version {version} has taken over from {before}; {going_on} requests go on here"));
    reply(&UpgradeResult { before, version, path: path.display().to_string(), going_on })
}

/// Lets go of what one agent alone may have.
async fn leave(agent: &Agent) {
    agent.watch.leave().await;
    agent.events.leave().await;
}

/// Lets the successor take over: the one that serves then, what still runs, and why it is not the one that was wanted. If
/// that one fails, this agent's own program follows it.
async fn settle(
    agent: &Agent,
    succession: &Succession,
    mut heir: Heir,
) -> io::Result<(Heir, Vec<(RequestId, Coming)>, io::Result<()>)> {
    let error = match heir.go(agent).await {
        Ok(running) => return Ok((heir, running, Ok(()))),
        Err(error) => error,
    };
    log::error(format_args!("the new agent did not serve: {error}; the old program takes its place"));
    drop(heir);
    let mut heir = succession.start(Path::new("/proc/self/exe"), &agent.facts.instance).await?;
    let running = heir.go(agent).await?;
    Ok((heir, running, Err(error)))
}

/// Tells the successor how requests end, until all have and every connection is closed.
async fn end(agent: Arc<Agent>, words: UnixStream, running: Vec<(RequestId, Coming)>) {
    let words = Arc::new(Mutex::new(words));
    let mut telling = JoinSet::new();
    for (id, mut coming) in running {
        let (words, agent) = (Arc::clone(&words), Arc::clone(&agent));
        telling.spawn(async move {
            let ended = coming.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            let Some(outcome) = ended else { return };
            // What had no effect is forgotten in the moment in which it is told.
            tokio::task::yield_now().await;
            let forget = !agent.memory.knows(&id);
            let told = Old::Ended { id, outcome: outcome.into(), forget };
            if let Err(error) = words::say(&mut *words.lock().await, &told).await {
                log::warn(format_args!("the next agent was not told how request {id} ended: {error}"));
            }
        });
    }
    while telling.join_next().await.is_some() {}
    agent.connections.none_left().await;
    if let Some(succession) = &agent.succession {
        succession.over.send_replace(true);
    }
}
