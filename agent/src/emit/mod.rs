//! Events from inside the guest: what its programs publish over a local socket ([`socket`]), and what the agent itself
//! notices ([`own`]), on their way to the host.
//!
//! An event is kept ([`keep`]) before its publisher is answered, sent on the newest connection of a host that takes
//! events ([`send`]), and forgotten when the host has acknowledged it. What cannot be kept is refused, counted and told.

pub mod client;
pub mod keep;
pub mod own;
pub mod quota;
pub mod send;
pub mod socket;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::guest::event::{EVENT_BYTES_IN_FLIGHT, EVENTS_IN_FLIGHT, EventDataError, REFUSED_EVENTS};
use drover_schemas::guest::{Event, EventData, EventType};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::keep::{Keep, KeepError};
use self::quota::{Exhausted, Quota};
use crate::facts::unix_ms;
use crate::log;

/// How long refusals are counted before they are told.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How long a program may take to read its answer before another agent goes on.
const LEAVING: Duration = Duration::from_secs(1);

/// Who publishes, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publisher {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process.
    pub pid: u32,
}

/// How far the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last event that there is.
    pub last: u64,
    /// The last that the host has.
    pub acked: u64,
    /// Counts connections to hosts that take events.
    pub link: u64,
}

/// An event is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Only the agent says such things.
    #[error("types that begin with \"drover.\" are the agent's own: use another")]
    Own,
    /// Too many.
    #[error(transparent)]
    Quota(#[from] Exhausted),
    /// Too much data.
    #[error(transparent)]
    Data(#[from] EventDataError),
    /// It cannot be kept.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// Another agent keeps events now.
    #[error("another agent takes events now: connect again")]
    Left,
}

#[derive(Debug)]
struct State {
    keep: Keep,
    quota: Quota,
    /// Refused and not told yet.
    refused: u64,
    /// It will be told.
    telling: bool,
    /// The guest is about to end, and that is told.
    ending: bool,
    /// Another agent keeps them now.
    left: bool,
}

/// The events of this guest.
#[derive(Debug)]
pub struct Events {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// Programs that publish are not heard here any more.
    leaving: CancellationToken,
    /// Those that are heard.
    publishers: TaskTracker,
}

/// Where programs publish, for an agent that keeps its things in `run_dir`: `/run/drover-agent.sock` beside the usual
/// `/run/drover-agent`.
#[must_use]
pub fn socket_beside(run_dir: &Path) -> PathBuf {
    let mut name = run_dir.as_os_str().to_owned();
    name.push(".sock");
    name.into()
}

impl Events {
    /// Goes on with what is kept in a folder of this boot.
    #[must_use]
    pub fn open(folder: &Path, boot_id: &str) -> Arc<Self> {
        let keep = Keep::open(folder, boot_id);
        let progress = Progress { last: keep.last(), acked: keep.acked(), link: 0 };
        let quota = Quota::new(Instant::now());
        let state = State { keep, quota, refused: 0, telling: false, ending: false, left: false };
        Arc::new(Self {
            state: Mutex::new(state),
            progress: watch::Sender::new(progress),
            leaving: CancellationToken::new(),
            publishers: TaskTracker::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what a program says; its number in the log.
    ///
    /// # Errors
    /// [`Refusal`]; what was too much is counted, and told to the host.
    pub fn publish(
        self: &Arc<Self>,
        who: Publisher,
        kind: &EventType,
        data: &EventData,
    ) -> Result<u64, Refusal> {
        if kind.is_own() && !own::may_say(kind, who) {
            return Err(Refusal::Own);
        }
        let body = data.write()?;
        let mut state = self.state();
        if state.left {
            return Err(Refusal::Left);
        }
        let kept = match state.quota.take(who.uid, Instant::now()) {
            Ok(()) => state.keep.push(event(who, kind.as_str(), body), false).map_err(Refusal::Keep),
            Err(exhausted) => Err(exhausted.into()),
        };
        drop(state);
        match kept {
            Ok(_) => self.moved(),
            Err(_) => self.refuse(),
        }
        kept.inspect(|n| log::debug(format_args!("event {n}: {kind} of user {}", who.uid)))
    }

    /// Publishes what the agent itself says. It is not counted, and may fail only where nothing can be kept.
    pub fn say(&self, kind: &'static str, data: serde_json::Value) {
        let me = Publisher { uid: 0, gid: 0, pid: std::process::id() };
        let body = serde_json::from_value::<EventData>(data).map_err(|e| e.to_string());
        let body = body.and_then(|data| data.write().map_err(|e| log::chain(&e)));
        let kept = body.and_then(|body| {
            let mut state = self.state();
            if state.left {
                return Err(Refusal::Left.to_string());
            }
            let kept = state.keep.push(event(me, kind, body), true);
            kept.map_err(|e| log::chain(&e))
        });
        match kept {
            Ok(_) => self.moved(),
            Err(error) => log::warn(format_args!("cannot tell the host of {kind}: {error}")),
        }
    }

    /// Tells whoever waits how far the log is.
    fn moved(&self) {
        let (last, acked) = {
            let state = self.state();
            (state.keep.last(), state.keep.acked())
        };
        self.progress.send_modify(|progress| {
            progress.last = progress.last.max(last);
            progress.acked = progress.acked.max(acked);
        });
    }

    /// Counts a refusal. A flood is told as a sum.
    fn refuse(self: &Arc<Self>) {
        {
            let mut state = self.state();
            state.refused += 1;
            if std::mem::replace(&mut state.telling, true) {
                return;
            }
        }
        let events = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(TELL_AFTER).await;
            events.tell_refused();
        });
    }

    fn tell_refused(&self) {
        let count = {
            let mut state = self.state();
            state.telling = false;
            // One at a time: the next, with all that came since, when the host has this one.
            if state.keep.holds(REFUSED_EVENTS) { 0 } else { std::mem::take(&mut state.refused) }
        };
        if count > 0 {
            log::warn(format_args!("{count} events were refused"));
            self.say(REFUSED_EVENTS, json!({ "count": count }));
        }
    }

    /// The host has these.
    pub fn acknowledge(&self, name: &str, n: u64) {
        let untold = {
            let mut state = self.state();
            if state.left {
                return;
            }
            state.keep.acknowledge(name, n);
            state.refused > 0 && !state.telling
        };
        self.moved();
        if untold {
            self.tell_refused();
        }
    }

    /// A connection to a host that takes events: the newest one is used alone.
    fn join(&self) -> u64 {
        let mut link = 0;
        self.progress.send_modify(|progress| {
            progress.link += 1;
            link = progress.link;
        });
        link
    }

    /// What may be sent after number `sent`.
    pub(crate) fn next(&self, sent: u64) -> Option<Event> {
        let state = self.state();
        if state.left { None } else { state.keep.next(sent, EVENTS_IN_FLIGHT, EVENT_BYTES_IN_FLIGHT) }
    }

    /// The name of an event over all that ever were: its log and number.
    #[must_use]
    pub fn id(&self, n: u64) -> String {
        format!("{}.{n}", self.state().keep.name())
    }

    /// Waits until the host has event `n`, for so long at most; whether it has.
    pub async fn delivered(&self, n: u64, patience: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let waited = tokio::time::timeout(patience, progress.wait_for(|progress| progress.acked >= n));
        tokio::select! {
            waited = waited => matches!(waited, Ok(Ok(_))),
            // Who waits longer is told by the next agent, if at all.
            () = self.leaving.cancelled() => false,
        }
    }

    /// Lets another agent go on with what is kept: nothing is published, sent or acknowledged here any more.
    pub(crate) async fn leave(&self) {
        self.leaving.cancel();
        self.publishers.close();
        // What was taken is answered; a program that does not read its answer is not waited for.
        let _ = tokio::time::timeout(LEAVING, self.publishers.wait()).await;
        self.state().left = true;
        // Nothing is sent on a connection that was joined before.
        self.join();
    }

    /// Waits until the host has all that there is now, for so long at most.
    pub async fn flush(&self, patience: Duration) -> bool {
        let last = self.state().keep.last();
        self.delivered(last, patience).await
    }

    /// No agent of this boot was there before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.state().keep.is_new()
    }

    /// Whether a host that takes events has ever been here.
    pub(crate) fn was_joined(&self) -> bool {
        self.progress.borrow().link > 0
    }
}

fn event(who: Publisher, kind: &str, body: drover_schemas::blob::Blob) -> Event {
    let Publisher { uid, gid, pid } = who;
    let (log, kind) = (String::new(), kind.to_owned());
    Event { log, n: 0, time_unix_ms: unix_ms(), uid, gid, pid, kind, body }
}

#[cfg(test)]
mod tests;
