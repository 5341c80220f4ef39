//! The streams of one link and what waits to be written: what the handles and the task share.
//! No I/O here: frames in, frames out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use drover_schemas::ErrorBody;
use drover_schemas::guest::flow::{Incoming, Outgoing};
use drover_schemas::guest::{
    AgentFrame, Cancel, Channel, Control, Credit, Data, HostFrame, MAX_STREAMS, Moved, Ping, Pong, Request,
    wire,
};
use tokio::sync::Notify;

use super::error::LinkError;
use super::inbox::{Inbox, MAX_BEYOND};
use super::pace::Carries;

/// Data frames that may wait to be written.
const MAX_BULK: usize = 4;
/// Pongs that may wait to be written: an agent that pings without reading gets no more.
const MAX_PONGS: usize = 4;

/// Control frames and requests that may wait to be written before further control frames are dropped: a client that
/// sends signals faster than its guest takes them loses some.
const MAX_CONTROLS: usize = 256;

/// Data of fewer bytes, and credit for fewer, is paced as other frames are.
const WORTH: u64 = 4 * 1024;

/// One stream of the link.
#[derive(Debug)]
pub(super) struct Entry {
    /// Wakes whoever waits on the stream.
    pub(super) changed: Arc<Notify>,
    /// The channels to the guest, `stdin` and `data`.
    pub(super) stdin: Outgoing,
    pub(super) upload: Outgoing,
    /// The channels from the guest.
    pub(super) stdout: Incoming,
    pub(super) stderr: Incoming,
    pub(super) download: Incoming,
    /// Ends of channels that the reader has not heard of.
    pub(super) ends: Vec<Channel>,
    pub(super) head: Option<Bytes>,
    /// There was one.
    headed: bool,
    pub(super) end: Option<Result<Bytes, ErrorBody>>,
    /// Nobody reads it any more; it stays until the agent has answered.
    pub(super) abandoned: bool,
}

impl Entry {
    pub(super) fn incoming(&mut self, ch: Channel) -> Option<&mut Incoming> {
        match ch {
            Channel::Stdout => Some(&mut self.stdout),
            Channel::Stderr => Some(&mut self.stderr),
            Channel::Data => Some(&mut self.download),
            Channel::Stdin => None,
        }
    }

    pub(super) fn outgoing(&mut self, ch: Channel) -> Option<&mut Outgoing> {
        match ch {
            Channel::Stdin => Some(&mut self.stdin),
            Channel::Data => Some(&mut self.upload),
            Channel::Stdout | Channel::Stderr => None,
        }
    }
}

/// What the handles and the task of one link share.
#[derive(Debug, Default)]
pub(super) struct State {
    last: u32,
    pub(super) streams: BTreeMap<u32, Entry>,
    control: VecDeque<Bytes>,
    bulk: VecDeque<Bytes>,
    pongs: VecDeque<Bytes>,
    credits: BTreeMap<(u32, Channel), u64>,
    /// Events of the guest that nobody has taken yet.
    pub(super) inbox: Inbox,
    /// The latest acknowledgement of events; it holds for those before it.
    ack: Option<Bytes>,
    /// The agent has said that another takes its place.
    pub(super) moving: bool,
    /// Signs of life that were asked for and have not come.
    pings: u32,
    /// Frames of later versions that were ignored.
    pub(super) unknown: u64,
    /// Why the link has ended.
    pub(super) closed: Option<LinkError>,
}

/// The state with its bells.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// For the task: there is something to write, or the end.
    pub(super) wake: Notify,
    /// For everyone else: there is room for bulk, or the end.
    pub(super) changed: Notify,
    /// For the reader of events: there are some, or the end.
    pub(super) events: Notify,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock guards plain data that is used up to the end of the link only.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the link: the first reason counts. Every stream ends with it.
    pub(super) fn close(&self, reason: LinkError) {
        {
            let mut state = self.state();
            let reason = state.closed.get_or_insert(reason).clone();
            state.control.clear();
            state.bulk.clear();
            state.pongs.clear();
            state.ack = None;
            for entry in state.streams.values_mut() {
                entry.end.get_or_insert_with(|| Err(reason.clone().into()));
                entry.changed.notify_waiters();
            }
        }
        self.changed.notify_waiters();
        self.wake.notify_one();
        self.events.notify_one();
    }
}

fn write(frame: &HostFrame) -> Result<Bytes, LinkError> {
    wire::encode(frame).map_err(|_| LinkError::TooLong)
}

impl State {
    /// Opens a stream and queues its request.
    pub(super) fn open(
        &mut self,
        mut request: Request,
        upload_credit: u64,
    ) -> Result<(u32, Arc<Notify>), LinkError> {
        if let Some(reason) = &self.closed {
            return Err(reason.clone());
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(LinkError::Full { limit: MAX_STREAMS });
        }
        // Terminates: fewer streams than numbers are open.
        let id = loop {
            self.last = self.last.wrapping_add(1);
            if !self.streams.contains_key(&self.last) {
                break self.last;
            }
        };
        request.stream = id;
        let credit = request.credit;
        self.control.push_back(write(&HostFrame::Req(request))?);
        let changed = Arc::new(Notify::new());
        let entry = Entry {
            changed: Arc::clone(&changed),
            stdin: Outgoing::new(upload_credit),
            upload: Outgoing::new(upload_credit),
            stdout: Incoming::new(credit),
            stderr: Incoming::new(credit),
            download: Incoming::new(credit),
            ends: Vec::new(),
            head: None,
            headed: false,
            end: None,
            abandoned: false,
        };
        self.streams.insert(id, entry);
        Ok((id, changed))
    }

    /// Queues bytes within the stream's credit: how many were taken, or `None` to wait.
    pub(super) fn send(
        &mut self,
        id: u32,
        ch: Channel,
        data: &Bytes,
        eof: bool,
    ) -> Result<Option<usize>, LinkError> {
        if let Some(reason) = &self.closed {
            return Err(reason.clone());
        }
        let full = self.bulk.len() >= MAX_BULK;
        let entry = self.streams.get_mut(&id).filter(|e| e.end.is_none()).ok_or(LinkError::StreamEnded)?;
        let outgoing = entry.outgoing(ch).ok_or(LinkError::StreamEnded)?;
        let room = usize::try_from(outgoing.room()).unwrap_or(usize::MAX);
        let len = data.len().min(room).min(drover_schemas::guest::MAX_DATA);
        if full || (len == 0 && !data.is_empty()) {
            return Ok(None);
        }
        let off = outgoing.advance(len);
        let frame =
            Data { stream: id, ch, off, data: data.slice(..len).into(), eof: eof && len == data.len() };
        self.bulk.push_back(write(&HostFrame::Data(frame))?);
        Ok(Some(len))
    }

    /// Grants credit. Only the latest limit of a channel waits to be written.
    pub(super) fn grant(&mut self, id: u32, ch: Channel, limit: u64) {
        let Some(entry) = self.streams.get_mut(&id).filter(|e| e.end.is_none()) else { return };
        if entry.incoming(ch).is_some_and(|incoming| incoming.grant(limit)) {
            self.credits.insert((id, ch), limit);
        }
    }

    /// Says something to the command of a stream.
    pub(super) fn control(&mut self, control: Control) {
        let is_open = self.streams.get(&control.stream).is_some_and(|e| e.end.is_none());
        if is_open && self.control.len() < MAX_CONTROLS {
            self.control.extend(write(&HostFrame::Control(control)).ok());
        }
    }

    /// Nobody reads the stream any more. It keeps its number until the agent has answered.
    pub(super) fn abandon(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        if entry.end.is_some() {
            self.streams.remove(&id);
            return;
        }
        entry.abandoned = true;
        entry.head = None;
        for ch in [Channel::Stdout, Channel::Stderr, Channel::Data] {
            while entry.incoming(ch).and_then(Incoming::pop).is_some() {}
        }
        // Cannot fail: it fits into a frame.
        self.control.extend(write(&HostFrame::Cancel(Cancel { stream: id })).ok());
    }

    pub(super) fn ping(&mut self, nonce: u64) {
        self.pings += 1;
        self.control.extend(write(&HostFrame::Ping(Ping { nonce })).ok());
    }

    /// No request follows on this connection.
    pub(super) fn moved(&mut self) {
        self.control.extend(write(&HostFrame::Moved(Moved {})).ok());
    }

    /// Answers events.
    pub(super) fn acknowledge(&mut self, ack: Bytes) {
        if self.closed.is_none() {
            self.ack = Some(ack);
        }
    }

    /// The bytes to write next: control before credit before bulk.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let answer = |state: &mut Self| state.pongs.pop_front().or_else(|| state.ack.take());
        if let Some(bytes) = self.control.pop_front().or_else(|| answer(self)) {
            return Some(bytes);
        }
        if let Some(((stream, ch), limit)) = self.credits.pop_first() {
            return write(&HostFrame::Credit(Credit { stream, ch, limit })).ok();
        }
        let bulk = self.bulk.pop_front();
        if self.bulk.is_empty() {
            // Idle links hold no memory.
            (self.control, self.bulk, self.pongs) = Default::default();
        }
        bulk
    }

    /// Takes one frame of the agent; says what it was good for.
    pub(super) fn take(&mut self, frame: AgentFrame) -> Result<Carries, LinkError> {
        match frame {
            AgentFrame::Data(data) => self.data(data),
            AgentFrame::Res(res) => {
                let outcome = match (res.body, res.error) {
                    (_, Some(error)) => Err(error),
                    (Some(body), None) => Ok(body.0),
                    (None, None) => {
                        return Err(LinkError::Unexpected { frame: "res with neither body nor error" });
                    }
                };
                let entry = self.entry(res.stream)?;
                entry.end = Some(outcome);
                entry.changed.notify_waiters();
                if entry.abandoned {
                    self.streams.remove(&res.stream);
                }
                self.credits.retain(|(stream, _), _| *stream != res.stream);
                Ok(Carries::Something)
            }
            AgentFrame::Head(head) => {
                let entry = self.entry(head.stream)?;
                if std::mem::replace(&mut entry.headed, true) {
                    return Err(LinkError::Unexpected { frame: "second head" });
                }
                if !entry.abandoned {
                    entry.head = Some(head.body.0);
                    entry.changed.notify_waiters();
                }
                Ok(Carries::Something)
            }
            AgentFrame::Credit(credit) => {
                // May cross with the end of the stream in no case: the agent has one order.
                let entry = self.entry(credit.stream)?;
                let Some(outgoing) = entry.outgoing(credit.ch) else { return Ok(Carries::Nothing) };
                let before = outgoing.room();
                outgoing.grant(credit.limit);
                let is_worth = outgoing.room() - before >= WORTH;
                entry.changed.notify_waiters();
                Ok(if is_worth { Carries::Something } else { Carries::Nothing })
            }
            AgentFrame::Ping(ping) => {
                if self.pongs.len() < MAX_PONGS {
                    self.pongs.push_back(write(&HostFrame::Pong(Pong { nonce: ping.nonce }))?);
                }
                Ok(Carries::Nothing)
            }
            AgentFrame::Event(event) => match self.inbox.push(event) {
                Err(beyond) if beyond > MAX_BEYOND => Err(LinkError::Flood { beyond }),
                _ => Ok(Carries::Something),
            },
            AgentFrame::Moved(_) if self.moving => Ok(Carries::Nothing),
            AgentFrame::Moved(_) => {
                self.moving = true;
                Ok(Carries::Something)
            }
            AgentFrame::Pong(_) if self.pings > 0 => {
                self.pings -= 1;
                Ok(Carries::Something)
            }
            AgentFrame::Pong(_) => Ok(Carries::Nothing),
            AgentFrame::Unknown => {
                self.unknown += 1;
                Ok(Carries::Nothing)
            }
            AgentFrame::Bye(bye) => {
                Err(bye.error.map_or(LinkError::Closed, |error| LinkError::Bye { error }))
            }
            AgentFrame::Hello(_) => Err(LinkError::Unexpected { frame: "second hello" }),
        }
    }

    fn entry(&mut self, stream: u32) -> Result<&mut Entry, LinkError> {
        self.streams.get_mut(&stream).filter(|e| e.end.is_none()).ok_or(LinkError::UnknownStream { stream })
    }

    fn data(&mut self, data: Data) -> Result<Carries, LinkError> {
        let Data { stream, ch, off, data, eof } = data;
        let is_bulk = data.0.len() as u64 >= WORTH;
        let entry = self.entry(stream)?;
        let abandoned = entry.abandoned;
        let incoming = entry.incoming(ch).ok_or(LinkError::Unexpected { frame: "data on stdin" })?;
        incoming.accept(off, data.0, eof).map_err(|source| LinkError::Flow { stream, source })?;
        if abandoned {
            // Counted, so that even now it cannot exceed its credit; not kept.
            while incoming.pop().is_some() {}
        } else if eof {
            entry.ends.push(ch);
        }
        entry.changed.notify_waiters();
        Ok(if is_bulk { Carries::Bulk } else { Carries::Something })
    }
}
