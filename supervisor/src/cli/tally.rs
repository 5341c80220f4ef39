//! Counting, hashing and showing bytes as they pass.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What has passed so far; shared by the stream and its owner.
#[derive(Clone)]
pub struct Tally(Arc<Mutex<Inner>>);

struct Inner {
    hash: Sha256,
    bytes: u64,
    bar: ProgressBar,
}

impl Tally {
    /// Nothing has passed; `bar` shows what does.
    pub fn new(bar: ProgressBar) -> Self {
        Self(Arc::new(Mutex::new(Inner { hash: Sha256::new(), bytes: 0, bar })))
    }

    fn add(&self, data: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.hash.update(data);
        inner.bytes += data.len() as u64;
        inner.bar.inc(data.len() as u64);
    }

    /// Bytes and their SHA-256 in hexadecimal.
    pub fn total(&self) -> (u64, String) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.bytes, drover_actors::images::hex(&inner.hash.clone().finalize()))
    }
}

/// A source or sink whose bytes are tallied.
pub struct Tallied<T> {
    inner: T,
    tally: Tally,
}

impl<T> Tallied<T> {
    /// `inner` with its bytes in `tally`.
    pub const fn new(inner: T, tally: Tally) -> Self {
        Self { inner, tally }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tallied<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = poll {
            self.tally.add(&buf.filled()[before..]);
        }
        poll
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tallied<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, data);
        if let Poll::Ready(Ok(count)) = poll {
            self.tally.add(&data[..count]);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn what_passes_is_counted_and_hashed_once() {
        let tally = Tally::new(ProgressBar::hidden());
        let mut text = String::new();
        Tallied::new(&b"abc"[..], tally.clone()).read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
        let (bytes, sha256) = tally.total();
        assert_eq!(bytes, 3);
        assert!(sha256.starts_with("ba7816bf8f01cfea"), "{sha256}");
    }
}
