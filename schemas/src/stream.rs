//! Streams over the bus: exec, console and files.
//!
//! Core NATS delivers at most once, so each channel counts bytes from 0 and the receiver states
//! absolutely what it has and how far the sender may go. A lost frame costs a resend, a lost
//! acknowledgement nothing. [`Sender`] and [`Receiver`] are the two ends of one channel, without
//! time or I/O; the caller tells them the time in milliseconds of a monotonic clock.

use std::collections::VecDeque;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::blob::Blob;
use crate::error::ErrorBody;

/// The most data in one frame, in bytes.
pub const MAX_CHUNK: usize = 64 * 1024;
/// The most that a sender keeps unacknowledged, in bytes.
pub const MAX_WINDOW: u64 = 512 * 1024;
/// The receiver repeats its acknowledgement after this time, in milliseconds.
pub const ACK_INTERVAL_MS: u64 = 5_000;
/// The sender resends after this much silence with data outstanding, in milliseconds. Each time that nothing comes of
/// it the time doubles, up to [`MAX_RESEND_MS`].
pub const RESEND_MS: u64 = 2_000;
/// The longest time between two resends, in milliseconds.
pub const MAX_RESEND_MS: u64 = 16_000;
/// Both ends say that they are there this often, in milliseconds.
pub const KEEP_ALIVE_MS: u64 = 20_000;
/// A stream outlives the loss of its peer by this time, in milliseconds.
pub const PEER_LOST_MS: u64 = 60_000;

/// A channel of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Client to guest.
    Stdin,
    /// Guest to client.
    Stdout,
    /// Guest to client.
    Stderr,
    /// A file, either way.
    Data,
    /// Client to guest: sizes of the terminal and signals, whole messages of their own type in each frame.
    Ctl,
}

/// One frame of a stream, either way. Exactly one of the groups is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamFrame {
    /// The channel of data or of an acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ch: Option<Channel>,
    /// Offset of the first byte of `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<u64>,
    /// Bytes of the channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Blob>,
    /// The channel ends after `data`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eof: bool,
    /// Everything below this offset has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_off: Option<u64>,
    /// The peer may send below `acked_off + window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// A keep-alive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_alive: bool,
    /// The client gives up; the host ends what runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// The last frame: the outcome of the whole stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<StreamEnd>,
    /// The client has the last frame; until it says so, the host repeats it for a minute.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
}

/// The outcome of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// The verb's result, as MessagePack.
    Result(Blob),
    /// Why there is none.
    Error(ErrorBody),
}

/// Reply of a verb that opened a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamOpened {
    /// Where the client publishes its frames.
    pub io_subject: String,
    /// How much the host takes of each channel before the first acknowledgement, in bytes.
    pub window: u64,
}

/// The sending end of one channel.
#[derive(Debug)]
pub struct Sender {
    channel: Channel,
    /// Unacknowledged data; the first chunk begins at `base`.
    chunks: VecDeque<Bytes>,
    base: u64,
    /// Next offset to send (resend: moves back to `base`).
    next: u64,
    /// End of what was given to us.
    end: u64,
    limit: u64,
    eof: bool,
    eof_sent: bool,
    eof_acked: bool,
    last_progress_ms: u64,
    /// How much silence there must be for the next resend.
    patience_ms: u64,
    /// Everything that was sent before the last resend lies below: what repeats an acknowledgement up to here may
    /// come from bytes that arrived twice, and another resend would go on for ever.
    resent_below: u64,
    resent: u64,
}

/// The peer broke the rules of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It acknowledged what was never sent.
    #[error("acknowledged {acked_off} of {sent} bytes sent")]
    AckBeyondSent {
        /// What it claims.
        acked_off: u64,
        /// What was sent.
        sent: u64,
    },
    /// It sent beyond its window, more than [`MAX_CHUNK`], or after the end.
    #[error("sent bytes {off}..{end} where {limit} is the limit")]
    BeyondWindow {
        /// Start of the data.
        off: u64,
        /// End of the data.
        end: u64,
        /// End of the window.
        limit: u64,
    },
}

impl Sender {
    /// A sender that may send `window` bytes before the first acknowledgement.
    #[must_use]
    pub const fn new(channel: Channel, window: u64) -> Self {
        Self {
            channel,
            chunks: VecDeque::new(),
            base: 0,
            next: 0,
            end: 0,
            limit: if window < MAX_WINDOW { window } else { MAX_WINDOW },
            eof: false,
            eof_sent: false,
            eof_acked: false,
            last_progress_ms: 0,
            patience_ms: RESEND_MS,
            resent_below: 0,
            resent: 0,
        }
    }

    /// How many bytes may be given with [`Sender::push`] now without exceeding the window.
    #[must_use]
    pub fn room(&self) -> usize {
        let held = self.end - self.base;
        usize::try_from(MAX_WINDOW.saturating_sub(held).min(self.limit.saturating_sub(self.end))).unwrap_or(0)
    }

    /// Takes bytes to send; never more than [`Sender::room`].
    pub fn push(&mut self, data: Bytes, now_ms: u64) {
        if self.base == self.end {
            self.last_progress_ms = now_ms;
        }
        let mut data = data;
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(MAX_CHUNK));
            self.end += chunk.len() as u64;
            self.chunks.push_back(chunk);
        }
    }

    /// No more bytes will follow.
    pub fn finish(&mut self, now_ms: u64) {
        self.eof = true;
        if self.base == self.end {
            self.last_progress_ms = now_ms;
        }
    }

    /// The next frame to send, if any.
    pub fn poll(&mut self, now_ms: u64) -> Option<StreamFrame> {
        if self.outstanding() && now_ms.saturating_sub(self.last_progress_ms) >= self.patience_ms {
            self.resend_from_base(now_ms);
            self.patience_ms = (self.patience_ms * 2).min(MAX_RESEND_MS);
        }
        let mut at = self.base;
        for chunk in &self.chunks {
            let end = at + chunk.len() as u64;
            if self.next < end {
                if end > self.limit {
                    return None;
                }
                let skip = usize::try_from(self.next - at).unwrap_or(0);
                let frame = self.frame(self.next, chunk.slice(skip..), self.eof && end == self.end);
                self.eof_sent |= frame.eof;
                self.next = end;
                return Some(frame);
            }
            at = end;
        }
        if self.eof && !self.eof_sent && !self.eof_acked {
            self.eof_sent = true;
            return Some(self.frame(self.end, Bytes::new(), true));
        }
        None
    }

    fn frame(&self, off: u64, data: Bytes, eof: bool) -> StreamFrame {
        StreamFrame {
            ch: Some(self.channel),
            off: Some(off),
            data: Some(Blob(data)),
            eof,
            ..StreamFrame::default()
        }
    }

    fn resend_from_base(&mut self, now_ms: u64) {
        self.resent += self.next - self.base;
        self.resent_below = self.resent_below.max(self.next + u64::from(self.eof_sent));
        self.next = self.base;
        self.eof_sent = false;
        self.last_progress_ms = now_ms;
    }

    /// The peer has everything below `acked_off` and takes `window` more. The end of a channel
    /// counts as one more byte, so that it is acknowledged too. The same offset again, without more
    /// room, means that something after it was lost: it is sent again, unless it is on its way again already.
    ///
    /// # Errors
    /// [`StreamError::AckBeyondSent`] for an acknowledgement of what was never sent.
    pub fn ack(&mut self, acked_off: u64, window: u64, now_ms: u64) -> Result<(), StreamError> {
        let sent = self.end + u64::from(self.eof);
        if acked_off > sent {
            return Err(StreamError::AckBeyondSent { acked_off, sent });
        }
        let limit = self.limit.max(acked_off.saturating_add(window.min(MAX_WINDOW)));
        let repeats = acked_off == self.base && limit == self.limit && self.outstanding();
        if acked_off > self.base {
            self.last_progress_ms = now_ms;
            self.patience_ms = RESEND_MS;
        } else if repeats && acked_off > self.resent_below {
            self.resend_from_base(now_ms);
        }
        self.eof_acked |= acked_off > self.end;
        let data_acked = acked_off.min(self.end).max(self.base);
        while let Some(chunk) = self.chunks.front_mut() {
            let end = self.base + chunk.len() as u64;
            if end > data_acked {
                let skip = usize::try_from(data_acked - self.base).unwrap_or(0);
                *chunk = chunk.slice(skip..);
                break;
            }
            self.base = end;
            self.chunks.pop_front();
        }
        self.base = data_acked;
        self.next = self.next.max(self.base);
        self.limit = limit;
        Ok(())
    }

    /// The connection was lost and is back, and what was on its way most likely is not: sends again what is not
    /// acknowledged.
    pub fn resend(&mut self, now_ms: u64) {
        self.patience_ms = RESEND_MS;
        if self.next > self.base || self.eof_sent {
            self.resend_from_base(now_ms);
        }
    }

    /// Everything, the end included, was acknowledged.
    #[must_use]
    pub const fn done(&self) -> bool {
        self.eof_acked
    }

    const fn outstanding(&self) -> bool {
        self.next > self.base || (self.eof_sent && !self.eof_acked)
    }

    /// Bytes that were sent again.
    #[must_use]
    pub const fn resent(&self) -> u64 {
        self.resent
    }

    /// Everything below this offset was acknowledged.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.base
    }

    /// When [`Sender::poll`] wants to be called though nothing happened, if at all.
    #[must_use]
    pub fn wake_at_ms(&self) -> Option<u64> {
        self.outstanding().then(|| self.last_progress_ms + self.patience_ms)
    }
}

/// The receiving end of one channel.
#[derive(Debug)]
pub struct Receiver {
    channel: Channel,
    /// Everything below has been handed on.
    got: u64,
    eof: bool,
    /// How far the peer may send.
    limit: u64,
    /// The window when nothing waits.
    full: u64,
    acked: u64,
    last_ack_ms: u64,
    /// An acknowledgement is due at once.
    gap: bool,
}

impl Receiver {
    /// A receiver that granted `window` bytes at the start.
    #[must_use]
    pub const fn new(channel: Channel, window: u64) -> Self {
        Self {
            channel,
            got: 0,
            eof: false,
            limit: window,
            full: window,
            acked: 0,
            last_ack_ms: 0,
            gap: false,
        }
    }

    /// Takes a data frame; returns the bytes that are new and in order.
    ///
    /// # Errors
    /// [`StreamError::BeyondWindow`] when the peer ignores the window.
    pub fn data(&mut self, off: u64, data: Bytes, eof: bool) -> Result<Option<Bytes>, StreamError> {
        let end = off.saturating_add(data.len() as u64);
        if data.len() > MAX_CHUNK || end > self.limit || (self.eof && end > self.got) {
            return Err(StreamError::BeyondWindow { off, end, limit: self.limit });
        }
        if off > self.got {
            self.gap = true;
            return Ok(None);
        }
        let fresh = end > self.got || (eof && !self.eof);
        if !fresh {
            // A duplicate: our acknowledgement was lost.
            self.gap = true;
            return Ok(None);
        }
        let skip = usize::try_from(self.got - off).unwrap_or(0);
        self.got = end;
        self.eof |= eof;
        Ok(Some(data.slice(skip.min(data.len())..)))
    }

    /// An acknowledgement, if one is due, with `window` bytes beyond what was handed on.
    pub fn poll_ack(&mut self, window: u64, now_ms: u64) -> Option<StreamFrame> {
        let half = self.got.saturating_sub(self.acked) >= self.full / 4
            || (self.got > self.acked && self.limit - self.got <= self.full / 2);
        let due = now_ms.saturating_sub(self.last_ack_ms) >= ACK_INTERVAL_MS;
        let ended = self.eof && self.acked <= self.got;
        if !(half || due || self.gap || ended) {
            return None;
        }
        Some(self.ack(window, now_ms))
    }

    /// An acknowledgement now.
    pub fn ack(&mut self, window: u64, now_ms: u64) -> StreamFrame {
        self.gap = false;
        self.last_ack_ms = now_ms;
        let acked = self.got + u64::from(self.eof);
        self.acked = acked;
        self.limit = self.limit.max(self.got.saturating_add(window));
        StreamFrame {
            ch: Some(self.channel),
            acked_off: Some(acked),
            window: Some(window),
            ..StreamFrame::default()
        }
    }

    /// The connection was lost and is back, and the last acknowledgement most likely is not: another is due.
    pub const fn repeat(&mut self) {
        self.gap = true;
    }

    /// When [`Receiver::poll_ack`] wants to be called though nothing happened, if at all.
    #[must_use]
    pub fn wake_at_ms(&self) -> Option<u64> {
        (!self.eof).then(|| self.last_ack_ms + ACK_INTERVAL_MS)
    }

    /// Everything below this offset has been handed on.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.got
    }

    /// The peer may send below this offset.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The peer has ended the channel and everything arrived.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.eof
    }
}

#[cfg(test)]
mod tests;
