//! The terminal of whoever calls: every key passed on, its size told.

use std::io::IsTerminal as _;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use drover_schemas::body::guest::ExecControl;
use drover_schemas::codec;
use drover_schemas::guest::TermSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::super::exit::CliError;

/// Ctrl-], as `telnet` and `virsh console` have it.
const LEAVE: u8 = 0x1d;

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// The size of the terminal of stdin, if it is one that has a size.
pub(super) fn size() -> Option<TermSize> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one winsize, or fails.
    unsafe { window_size(std::io::stdin().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TermSize { rows: size.ws_row, cols: size.ws_col })
}

/// The sizes that the terminal gets, as control messages; each read gives one.
pub(super) struct Sizes {
    changed: Signal,
    /// What did not fit yet.
    waiting: Option<Vec<u8>>,
    last: Option<TermSize>,
}

impl Sizes {
    /// From now on; `known` was told already.
    ///
    /// # Errors
    /// The process cannot listen for signals.
    pub(super) fn watch(known: Option<TermSize>) -> Result<Self, CliError> {
        let changed = signal(SignalKind::window_change()).map_err(|source| CliError::File {
            action: "watch the size of",
            path: "the terminal".into(),
            source,
        })?;
        let mut sizes = Self { changed, waiting: None, last: known };
        // It may have changed before this listened.
        sizes.look();
        Ok(sizes)
    }

    fn look(&mut self) {
        let now = size();
        if now.is_some() && now != self.last {
            self.last = now;
            self.waiting = codec::encode(&ExecControl { size: now, signal: None }).ok();
        }
    }
}

impl AsyncRead for Sizes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            if let Some(message) = self.waiting.take_if(|message| message.len() <= buffer.remaining()) {
                buffer.put_slice(&message);
                return Poll::Ready(Ok(()));
            }
            if self.waiting.is_some() {
                // Asked again when there is more room.
                return Poll::Pending;
            }
            if ready!(self.changed.poll_recv(context)).is_none() {
                return Poll::Pending;
            }
            self.look();
        }
    }
}

/// A terminal that passes every key on, until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// None if stdin is no terminal.
    pub(super) fn enter() -> Result<Option<Self>, CliError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |errno: nix::Error| CliError::File {
            action: "set up",
            path: "the terminal".into(),
            source: errno.into(),
        };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Passes bytes on up to the key that leaves, which ends the session.
pub(super) struct UntilLeft<R> {
    inner: R,
    leave: CancellationToken,
}

impl<R> UntilLeft<R> {
    pub(super) const fn new(inner: R, leave: CancellationToken) -> Self {
        Self { inner, leave }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilLeft<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.leave.is_cancelled() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Some(at) = buffer.filled()[before..].iter().position(|byte| *byte == LEAVE) {
            buffer.set_filled(before + at);
            self.leave.cancel();
            if at == 0 {
                // An empty read would be the end of the input.
                return Poll::Pending;
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn what_is_typed_before_the_key_that_leaves_is_passed_on() {
        let leave = CancellationToken::new();
        let mut reader = UntilLeft { inner: &b"ls\x1drest"[..], leave: leave.clone() };
        let mut buffer = [0; 16];
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 2);
        assert_eq!((&buffer[..2], leave.is_cancelled()), (&b"ls"[..], true));
        let more = tokio::time::timeout(Duration::from_millis(20), reader.read(&mut buffer)).await;
        assert!(more.is_err(), "nothing comes after it, not even the end");
    }
}
