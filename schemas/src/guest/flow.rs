//! Flow of one channel, for both ends: offsets, credit, and what was received and not yet read.
//! Pure: no I/O, no waiting.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::MAX_DATA;

/// Chunks at least this long are kept as they came; shorter ones are gathered, so that a peer that
/// sends single bytes cannot make the queue larger than its bytes.
const GATHER: usize = 4 * 1024;

/// A peer broke the rules of a channel. Each of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// Bytes were skipped or repeated.
    #[error("data at offset {got} where {expected} was next")]
    Offset {
        /// Where the next byte belongs.
        expected: u64,
        /// Where it was said to belong.
        got: u64,
    },
    /// More was sent than was granted.
    #[error("data up to offset {end}, but credit ends at {limit}")]
    Credit {
        /// The latest limit.
        limit: u64,
        /// The end of the data.
        end: u64,
    },
    /// Data came after the end.
    #[error("data after the end of its channel")]
    AfterEnd,
    /// A frame has neither bytes nor the end.
    #[error("an empty data frame")]
    Empty,
    /// A frame has more than [`MAX_DATA`] bytes.
    #[error("a data frame of {len} bytes; at most {MAX_DATA} are allowed")]
    TooLong {
        /// How many it has.
        len: usize,
    },
}

/// The sending end of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outgoing {
    next: u64,
    limit: u64,
}

impl Outgoing {
    /// A channel that may send the bytes below `limit`.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { next: 0, limit }
    }

    /// The receiver's latest word. A limit never shrinks.
    pub fn grant(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// How many bytes may be sent now.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.limit.saturating_sub(self.next)
    }

    /// Counts `len` bytes as sent and answers their offset.
    pub fn advance(&mut self, len: usize) -> u64 {
        let off = self.next;
        self.next = off.saturating_add(len as u64);
        off
    }

    /// The offset of the next byte.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.next
    }
}

/// The receiving end of a channel: never holds more than was granted.
#[derive(Debug, Default)]
pub struct Incoming {
    next: u64,
    limit: u64,
    ended: bool,
    whole: VecDeque<Bytes>,
    gathered: BytesMut,
    held: usize,
}

impl Incoming {
    /// A channel whose sender may send the bytes below `limit`.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Takes what a data frame brought.
    ///
    /// # Errors
    /// [`FlowError`] when the frame breaks a rule.
    pub fn accept(&mut self, off: u64, data: Bytes, eof: bool) -> Result<(), FlowError> {
        if self.ended {
            return Err(FlowError::AfterEnd);
        }
        if data.is_empty() && !eof {
            return Err(FlowError::Empty);
        }
        if data.len() > MAX_DATA {
            return Err(FlowError::TooLong { len: data.len() });
        }
        if off != self.next {
            return Err(FlowError::Offset { expected: self.next, got: off });
        }
        let end = off.saturating_add(data.len() as u64);
        if end > self.limit {
            return Err(FlowError::Credit { limit: self.limit, end });
        }
        self.next = end;
        self.ended = eof;
        self.held += data.len();
        if data.len() >= GATHER {
            self.settle();
            self.whole.push_back(data);
        } else if !data.is_empty() {
            self.gathered.extend_from_slice(&data);
            if self.gathered.len() >= MAX_DATA - GATHER {
                self.settle();
            }
        }
        Ok(())
    }

    fn settle(&mut self) {
        if !self.gathered.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    /// The next bytes that were received, at most [`MAX_DATA`], with their offset.
    pub fn pop(&mut self) -> Option<(u64, Bytes)> {
        let chunk = match self.whole.pop_front() {
            Some(chunk) => chunk,
            None if self.gathered.is_empty() => return None,
            None => std::mem::take(&mut self.gathered).freeze(),
        };
        let off = self.next - self.held as u64;
        self.held -= chunk.len();
        Some((off, chunk))
    }

    /// Lets the sender send the bytes below `limit`. Answers whether that is news to it.
    pub fn grant(&mut self, limit: u64) -> bool {
        let more = limit > self.limit;
        self.limit = self.limit.max(limit);
        more
    }

    /// The latest limit.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The offset up to which bytes were read by [`Self::pop`].
    #[must_use]
    pub const fn read(&self) -> u64 {
        self.next - self.held as u64
    }

    /// Whether the end came and everything before it was read.
    #[must_use]
    pub const fn finished(&self) -> bool {
        self.ended && self.held == 0
    }

    /// Bytes that are held.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_breaks_a_rule_is_named() {
        let mut inc = Incoming::new(10);
        assert_eq!(inc.accept(0, Bytes::new(), false), Err(FlowError::Empty));
        assert_eq!(
            inc.accept(1, Bytes::from_static(b"a"), false),
            Err(FlowError::Offset { expected: 0, got: 1 })
        );
        assert_eq!(inc.accept(0, vec![0; 11].into(), false), Err(FlowError::Credit { limit: 10, end: 11 }));
        assert_eq!(
            inc.accept(0, vec![0; MAX_DATA + 1].into(), false),
            Err(FlowError::TooLong { len: MAX_DATA + 1 })
        );
        inc.accept(0, vec![0; 10].into(), true).unwrap();
        assert_eq!(inc.accept(10, Bytes::new(), true), Err(FlowError::AfterEnd));
    }

    #[test]
    fn a_limit_never_shrinks() {
        let mut out = Outgoing::new(5);
        out.grant(3);
        assert_eq!(out.room(), 5);
        assert_eq!(out.advance(5), 0);
        assert_eq!(out.room(), 0);
        out.grant(7);
        assert_eq!((out.room(), out.sent()), (2, 5));
        let mut inc = Incoming::new(5);
        assert!(!inc.grant(4));
        assert!(inc.grant(6));
        assert_eq!(inc.limit(), 6);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(sizes in prop::collection::vec(1usize..9000, 1..60)) {
            let total: usize = sizes.iter().sum();
            let mut inc = Incoming::new(total as u64);
            let mut off = 0;
            for (i, size) in sizes.iter().enumerate() {
                inc.accept(off as u64, vec![i as u8; *size].into(), i + 1 == sizes.len()).unwrap();
                off += size;
            }
            prop_assert_eq!(inc.held(), total);
            prop_assert!(inc.whole.len() <= 2 * total / GATHER + 1);
            let expected: Vec<u8> = sizes.iter().enumerate().flat_map(|(i, n)| vec![i as u8; *n]).collect();
            let mut got = Vec::new();
            while let Some((off, chunk)) = inc.pop() {
                prop_assert_eq!(off as usize, got.len());
                prop_assert!(chunk.len() <= MAX_DATA);
                got.extend_from_slice(&chunk);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(inc.finished());
        }
    }
}
