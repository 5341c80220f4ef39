//! One end of a pipe or of a terminal, without blocking.

use std::io;
use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// The first and the largest buffer of one read, in bytes.
const FIRST_READ: usize = 4 * 1024;
const MAX_READ: usize = 64 * 1024;

/// Watches a descriptor.
///
/// # Errors
/// The runtime cannot.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd
    // owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// One end of a pipe to a command.
#[derive(Debug)]
pub struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Takes a descriptor over.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        watch(fd, interest).map(Self)
    }

    /// Reads at most `max` bytes; empty at the end of the pipe.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing now. A terminal that nobody has open any more is at its end.
    pub fn read(&self, max: usize, last: usize) -> io::Result<Bytes> {
        // Twice what came last: an idle pipe costs nothing, a busy one gets large reads.
        let size = (2 * last).clamp(FIRST_READ, MAX_READ).min(max);
        let mut buf = BytesMut::zeroed(size);
        match rustix::io::read(self.0.get_ref(), &mut buf[..]) {
            Ok(n) => {
                buf.truncate(n);
                Ok(buf.freeze())
            }
            Err(rustix::io::Errno::IO) => Ok(Bytes::new()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn wait_readable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // Tests the pipe itself within the guard: readiness that came in between is kept.
            match guard.try_io(|fd| poll_readable(fd.get_ref())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Whether there is nothing to read now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        rustix::io::ioctl_fionread(self.0.get_ref()).is_ok_and(|n| n == 0)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// `BrokenPipe` when nobody reads any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.ready(Interest::WRITABLE).await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready_matching(Ready::WRITABLE),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn poll_readable(fd: &OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
