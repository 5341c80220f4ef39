//! Frames as bytes: a length, then a map. No I/O; both ends use it over their own sockets.

use bytes::{Buf, Bytes, BytesMut};

use super::MAX_FRAME;
use super::frame::FrameKind;
use crate::codec::DecodeError;

const LENGTH: usize = 4;
/// The least room that is made for a read, in bytes.
const READ: usize = 4 * 1024;

/// Why bytes are not frames. Each of these ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stated length is zero or beyond [`MAX_FRAME`].
    #[error("a frame of {len} bytes; a frame has 1 to {MAX_FRAME} bytes")]
    Length {
        /// The stated length.
        len: usize,
    },
    /// A frame is not a map of its kind.
    #[error("a frame cannot be read")]
    Frame {
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// A frame cannot be written.
    #[error("a frame cannot be written")]
    Encode {
        /// What the encoder said.
        #[source]
        source: rmp_serde::encode::Error,
    },
}

/// Writes one frame with its length.
///
/// # Errors
/// [`WireError::Length`] when it is longer than a frame may be.
pub fn encode<F: FrameKind>(frame: &F) -> Result<Bytes, WireError> {
    let mut out = vec![0; LENGTH];
    frame
        .serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map())
        .map_err(|source| WireError::Encode { source })?;
    let len = out.len() - LENGTH;
    if len > MAX_FRAME {
        return Err(WireError::Length { len });
    }
    // Cannot truncate: MAX_FRAME fits.
    out[..LENGTH].copy_from_slice(&(len as u32).to_be_bytes());
    Ok(out.into())
}

/// Cuts a stream of bytes into frames.
///
/// Holds no memory while there is nothing to read, and never more than twice what has arrived,
/// whatever length a peer states.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    taken: u64,
}

impl Decoder {
    /// Room for the next read, to be filled at its end.
    pub fn room(&mut self) -> &mut BytesMut {
        let missing = match self.stated() {
            Some(len) => (LENGTH + len.min(MAX_FRAME)).saturating_sub(self.buf.len()),
            None => READ,
        };
        self.buf.reserve(missing.clamp(READ, READ.max(self.buf.len())));
        &mut self.buf
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`WireError`]; nothing more can be read from this peer.
    pub fn frame<F: FrameKind>(&mut self) -> Result<Option<F>, WireError> {
        let Some(len) = self.stated() else { return Ok(None) };
        if len == 0 || len > MAX_FRAME {
            return Err(WireError::Length { len });
        }
        if self.buf.len() < LENGTH + len {
            return Ok(None);
        }
        let body = &self.buf[LENGTH..LENGTH + len];
        let frame = F::parse(body).map_err(|source| WireError::Frame { source })?;
        self.buf.advance(LENGTH + len);
        self.taken += (LENGTH + len) as u64;
        Ok(Some(frame))
    }

    /// Gives the memory back when nothing is buffered. Called when the socket has no more to read.
    pub fn release(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }

    /// Bytes of all frames so far.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buf.capacity()
    }

    fn stated(&self) -> Option<usize> {
        let bytes: [u8; LENGTH] = self.buf.get(..LENGTH)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes) as usize)
    }
}

#[cfg(test)]
mod tests;
