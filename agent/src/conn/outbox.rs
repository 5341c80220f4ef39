//! What waits to be written on one connection: control before bulk, both bounded.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use drover_schemas::guest::{AgentFrame, MAX_DATA, wire};
use tokio::sync::Notify;

use crate::log;

/// Bulk frames that may wait; what is written later cannot be overtaken by control.
const MAX_BULK: usize = 4;
/// Control frames that may wait. A host that asks without reading the answers is hung up on.
const MAX_CONTROL: usize = 512;

#[derive(Debug, Default)]
struct State {
    control: VecDeque<Bytes>,
    bulk: VecDeque<Bytes>,
    closed: bool,
}

/// The frames of one connection that are not written yet.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// There is something to write, or the end.
    filled: Notify,
    /// There is room for bulk, or the end.
    emptied: Notify,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, frame: &AgentFrame, queue: impl FnOnce(&mut State) -> &mut VecDeque<Bytes>) {
        match wire::encode(frame) {
            Ok(bytes) => {
                let mut state = self.state();
                if state.closed {
                    return;
                }
                queue(&mut state).push_back(bytes);
            }
            Err(error) => {
                // Every frame of this program fits; an oversized one is a fault of ours, and
                // silence on a stream is worse than a new connection.
                log::error(format_args!("closing: {}", log::chain(&error)));
                self.close();
            }
        }
        self.filled.notify_one();
    }

    /// A frame that goes before all bulk.
    pub fn control(&self, frame: &AgentFrame) {
        let (is_full, is_closed) = {
            let state = self.state();
            (state.control.len() >= MAX_CONTROL, state.closed)
        };
        if is_full && !is_closed {
            log::warn(format_args!("closing: the host does not read"));
            self.close();
            return;
        }
        self.push(frame, |s| &mut s.control);
    }

    /// A frame that must not overtake the bulk before it, without waiting for room: at most one
    /// per stream.
    pub fn after_bulk(&self, frame: &AgentFrame) {
        self.push(frame, |s| &mut s.bulk);
    }

    /// A bulk frame, as soon as there is room. Nothing is sent once the connection is closed.
    pub async fn bulk(&self, frame: &AgentFrame) {
        loop {
            let emptied = self.emptied.notified();
            {
                let state = self.state();
                if state.closed {
                    return;
                }
                if state.bulk.len() < MAX_BULK {
                    break;
                }
            }
            emptied.await;
        }
        self.push(frame, |s| &mut s.bulk);
    }

    /// Ends the connection once what waits is written.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    /// Waits until the connection is to end.
    pub async fn closed(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.state().closed {
                return;
            }
            emptied.await;
        }
    }

    /// The bytes to write next; `None` at the end. Small frames go out together: fewer packets, and
    /// fewer times that the host wakes up.
    pub async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                let first = state.control.pop_front().or_else(|| state.bulk.pop_front());
                if let Some(first) = first {
                    let bytes = gather(&mut state, first);
                    drop(state);
                    self.emptied.notify_waiters();
                    return Some(bytes);
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

fn gather(state: &mut State, first: Bytes) -> Bytes {
    let fits = |len: usize, next: Option<&Bytes>| next.is_some_and(|n| len + n.len() <= MAX_DATA / 2);
    if !fits(first.len(), state.control.front().or(state.bulk.front())) {
        return first;
    }
    let mut all = BytesMut::from(first);
    while fits(all.len(), state.control.front().or(state.bulk.front())) {
        if let Some(next) = state.control.pop_front().or_else(|| state.bulk.pop_front()) {
            all.extend_from_slice(&next);
        }
    }
    all.freeze()
}
