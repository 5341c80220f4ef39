//! One request under way, with bytes in both directions.

use std::sync::Arc;

use bytes::Bytes;
use drover_schemas::ErrorBody;
use drover_schemas::guest::flow::Incoming;
use drover_schemas::guest::{Channel, Control, TermSize};
use tokio::sync::Notify;
use tracing::Span;

use super::error::LinkError;
use super::link::Link;

/// What comes from the guest on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// What is coming, encoded as the verb says; at most once, before all else.
    Head(Bytes),
    /// Bytes of one channel.
    Data {
        /// Which channel.
        ch: Channel,
        /// Offset of the first byte.
        off: u64,
        /// At most 64 KiB; empty when only the end is told.
        data: Bytes,
        /// No byte follows on this channel.
        eof: bool,
    },
    /// The end of the stream: the verb's result, encoded, or why there is none.
    End(Result<Bytes, ErrorBody>),
}

/// A stream of a [`Link`]. Dropping it before its end cancels the work in the guest.
///
/// All methods take `&self`: one task may send while another receives. Only one task at a time may
/// receive, and only one may send on a channel.
#[derive(Debug)]
pub struct GuestStream {
    link: Link,
    id: u32,
    changed: Arc<Notify>,
    /// Ends with the stream.
    _span: Span,
}

impl GuestStream {
    pub(super) const fn new(link: Link, id: u32, changed: Arc<Notify>, span: Span) -> Self {
        Self { link, id, changed, _span: span }
    }

    /// Sends bytes to the guest, as its credit allows; returns when all of them are queued. With
    /// `eof` nothing may follow on this channel.
    ///
    /// # Errors
    /// [`LinkError::StreamEnded`] when the guest has ended the stream (its result is to be had by
    /// [`Self::recv`]); else why the link has ended.
    pub async fn send(&self, ch: Channel, mut bytes: Bytes, eof: bool) -> Result<(), LinkError> {
        let shared = self.link.shared();
        if bytes.is_empty() && !eof {
            return Ok(());
        }
        loop {
            // Both made before the look, so that no change in between is missed.
            let credit = self.changed.notified();
            let room = shared.changed.notified();
            let sent = shared.state().send(self.id, ch, &bytes, eof)?;
            if let Some(len) = sent {
                shared.wake.notify_one();
                bytes = bytes.split_off(len);
                if bytes.is_empty() {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                () = credit => {}
                () = room => {}
            }
        }
    }

    /// The next event; `None` after the end. A lost link is an `End` with its reason.
    pub async fn recv(&self) -> Option<StreamEvent> {
        loop {
            let changed = self.changed.notified();
            if let Some(event) = self.look()? {
                return Some(event);
            }
            changed.await;
        }
    }

    /// What is there now: `None` after the end, `Some(None)` when one has to wait.
    fn look(&self) -> Option<Option<StreamEvent>> {
        let mut state = self.link.shared().state();
        let entry = state.streams.get_mut(&self.id)?;
        if let Some(head) = entry.head.take() {
            return Some(Some(StreamEvent::Head(head)));
        }
        for ch in [Channel::Stderr, Channel::Stdout, Channel::Data] {
            let Some((off, data)) = entry.incoming(ch).and_then(Incoming::pop) else { continue };
            let eof = entry.incoming(ch).is_some_and(|i| i.finished());
            if eof {
                entry.ends.retain(|ended| *ended != ch);
            }
            return Some(Some(StreamEvent::Data { ch, off, data, eof }));
        }
        if let Some(ch) = entry.ends.pop() {
            let off = entry.incoming(ch).map_or(0, |i| i.read());
            return Some(Some(StreamEvent::Data { ch, off, data: Bytes::new(), eof: true }));
        }
        Some(entry.end.take().map(|end| {
            state.streams.remove(&self.id);
            StreamEvent::End(end)
        }))
    }

    /// Lets the guest send the bytes of `ch` below `limit`, an absolute offset. The sum of what is
    /// granted and not yet received is the memory that this stream may take.
    pub fn grant(&self, ch: Channel, limit: u64) {
        self.link.shared().state().grant(self.id, ch, limit);
        self.link.shared().wake.notify_one();
    }
}

impl GuestStream {
    /// Tells the command of the size of its terminal, or sends a signal to its group. Takes no credit.
    pub fn control(&self, size: Option<TermSize>, signal: Option<i32>) {
        self.link.shared().state().control(Control { stream: self.id, size, signal });
        self.link.shared().wake.notify_one();
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        self.link.shared().state().abandon(self.id);
        self.link.shared().wake.notify_one();
    }
}
