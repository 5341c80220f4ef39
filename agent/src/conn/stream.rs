//! One stream as its verb sees it: bytes in, bytes out with credit, and the news that it must end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use drover_schemas::blob::Blob;
use drover_schemas::guest::flow::{FlowError, Incoming, Outgoing};
use drover_schemas::guest::{AgentFrame, Channel, Control, Credit, Data, Head, MAX_DATA, Response, TermSize};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::Notify;

use super::outbox::Outbox;
use crate::dedupe::Outcome;
use crate::facts::{FIRST_CREDIT, WINDOW};

/// Signals that may wait for their command; a host that sends more of them at once loses the later ones.
const MAX_SIGNALS: usize = 32;

/// What the host wants of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Another size of its terminal.
    Resize(TermSize),
    /// A signal to its group.
    Signal(i32),
}

/// Why a stream must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The host does not want it any more.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The connection is gone.
    LinkLost,
}

impl Ending {
    /// The answer to the request.
    #[must_use]
    pub fn error(self) -> ErrorBody {
        match self {
            Self::Cancelled => ErrorBody::new(ErrorCode::Conflict, "the request was cancelled by its caller")
                .with("cause", "cancelled"),
            Self::Deadline => ErrorBody::new(
                ErrorCode::DeadlineExceeded,
                "the request's deadline passed and its work was ended; allow more time",
            ),
            Self::LinkLost => ErrorBody::new(
                ErrorCode::Unavailable,
                "the link to the guest was lost and the work was ended; send a new request",
            )
            .retryable(false),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Channels to the host; all begin with the request's credit.
    stdout: Outgoing,
    stderr: Outgoing,
    data: Outgoing,
    /// The one channel from the host.
    incoming: Incoming,
    /// The latest size that the command was not told of.
    size: Option<TermSize>,
    signals: VecDeque<i32>,
    ending: Option<Ending>,
}

impl State {
    fn outgoing(&mut self, ch: Channel) -> Option<&mut Outgoing> {
        match ch {
            Channel::Stdout => Some(&mut self.stdout),
            Channel::Stderr => Some(&mut self.stderr),
            Channel::Data => Some(&mut self.data),
            Channel::Stdin => None,
        }
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    /// The channel on which the verb takes bytes, if it takes any.
    takes: Option<Channel>,
    outbox: Arc<Outbox>,
    state: Mutex<State>,
    changed: Notify,
    /// Whether data was sent, so that the answer must not overtake it.
    sent: AtomicBool,
    answered: AtomicBool,
}

impl Stream {
    /// A stream that takes bytes on `takes` and may send `credit` bytes on each channel.
    #[must_use]
    pub fn new(id: u32, takes: Option<Channel>, credit: u64, outbox: Arc<Outbox>) -> Self {
        let out = Outgoing::new(credit);
        let state = State {
            stdout: out,
            stderr: out,
            data: out,
            incoming: Incoming::new(FIRST_CREDIT),
            size: None,
            signals: VecDeque::new(),
            ending: None,
        };
        Self {
            id,
            takes,
            outbox,
            state: Mutex::new(state),
            changed: Notify::new(),
            sent: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A data frame of the host. Bytes for a verb that takes none are dropped: the request may have
    /// been refused while they were on their way.
    ///
    /// # Errors
    /// [`FlowError`] when the host broke a rule; the connection must end.
    pub fn accept(&self, data: Data) -> Result<(), FlowError> {
        if self.takes == Some(data.ch) {
            self.state().incoming.accept(data.off, data.data.0, data.eof)?;
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// A credit frame of the host.
    pub fn grant(&self, credit: Credit) {
        if let Some(out) = self.state().outgoing(credit.ch) {
            out.grant(credit.limit);
        }
        self.changed.notify_waiters();
    }

    /// A control frame of the host.
    pub fn steer(&self, control: Control) {
        {
            let mut state = self.state();
            state.size = control.size.or(state.size);
            let room = state.signals.len() < MAX_SIGNALS;
            state.signals.extend(control.signal.filter(|_| room));
        }
        self.changed.notify_waiters();
    }

    /// Waits for what the host wants of the command.
    pub async fn steered(&self) -> Steer {
        self.wait(|s| s.size.take().map(Steer::Resize).or_else(|| s.signals.pop_front().map(Steer::Signal)))
            .await
    }

    /// The stream must end; the first reason counts.
    pub fn end(&self, ending: Ending) {
        self.state().ending.get_or_insert(ending);
        self.changed.notify_waiters();
    }

    /// Waits until `look` finds something.
    async fn wait<T>(&self, look: impl Fn(&mut State) -> Option<T>) -> T {
        loop {
            // Made before the look, so that no change in between is missed.
            let changed = self.changed.notified();
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }

    /// Waits until the stream must end.
    pub async fn ending(&self) -> Ending {
        self.wait(|s| s.ending).await
    }

    /// Why the stream must end, if it must.
    #[must_use]
    pub fn ended(&self) -> Option<Ending> {
        self.state().ending
    }

    /// The next bytes of the host; `None` at their end. Reading them grants further ones.
    pub async fn recv(&self) -> Option<Bytes> {
        self.wait(|state| match self.take(state) {
            None => state.incoming.finished().then_some(None),
            chunk => Some(chunk),
        })
        .await
    }

    /// As [`Self::recv`], for what has come already.
    pub fn try_recv(&self) -> Option<Bytes> {
        self.take(&mut self.state())
    }

    fn take(&self, state: &mut State) -> Option<Bytes> {
        let (ch, incoming) = (self.takes?, &mut state.incoming);
        let (_, chunk) = incoming.pop()?;
        // Half a window at a time: a credit per chunk would double the packets.
        let limit = incoming.read() + WINDOW;
        if incoming.limit().saturating_sub(incoming.read()) <= WINDOW / 2 && incoming.grant(limit) {
            self.outbox.control(&AgentFrame::Credit(Credit { stream: self.id, ch, limit }));
        }
        Some(chunk)
    }

    /// Waits for credit on `ch` and answers how many bytes may be sent now: at least one.
    pub async fn room(&self, ch: Channel) -> u64 {
        self.wait(|s| s.outgoing(ch).map(|out| out.room()).filter(|room| *room > 0)).await
    }

    /// How many bytes may be sent on `ch` now.
    pub fn room_now(&self, ch: Channel) -> u64 {
        self.state().outgoing(ch).map_or(0, |out| out.room())
    }

    /// Sends bytes for which there is credit.
    pub async fn send(&self, ch: Channel, bytes: Bytes) {
        self.sent.store(true, Ordering::Relaxed);
        let mut rest = bytes;
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(MAX_DATA));
            let Some(off) = self.state().outgoing(ch).map(|out| out.advance(data.len())) else { return };
            let data = Data { stream: self.id, ch, off, data: Blob(data), eof: false };
            self.outbox.bulk(&AgentFrame::Data(data)).await;
        }
    }

    /// Tells what is coming.
    pub fn head(&self, body: Vec<u8>) {
        self.outbox.control(&AgentFrame::Head(Head { stream: self.id, body: body.into() }));
    }

    /// Answers the request; only the first answer is sent.
    pub fn answer(&self, outcome: Outcome) {
        if self.answered.swap(true, Ordering::AcqRel) {
            return;
        }
        let (body, error) = match outcome {
            Ok(body) => (Some(Blob(body)), None),
            Err(error) => (None, Some(error)),
        };
        let frame = AgentFrame::Res(Response { stream: self.id, body, error });
        if self.sent.load(Ordering::Relaxed) {
            self.outbox.after_bulk(&frame);
        } else {
            self.outbox.control(&frame);
        }
    }
}
