//! The client of the guest's serial console: the only one, because a second would push out the first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::dir::Dir;
use crate::record::file;

/// A connection, or the wish for one. It breaks at each reboot of the guest.
#[derive(Default)]
pub struct Serial {
    socket: Option<OwnedFd>,
    /// Input that the guest has not taken yet.
    waiting: Vec<u8>,
}

impl Serial {
    /// The open connection.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Input waits for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tries to connect; while the VMM does not listen this fails, which is no news.
    pub fn connect(&mut self, dir: &Dir) {
        self.socket = try_connect(dir).ok();
    }

    /// Output of the guest; 0 when there is none now. A broken connection is dropped.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        match rustix::io::read(socket, buffer) {
            Ok(n) if n > 0 => n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            _ => {
                self.socket = None;
                0
            }
        }
    }

    /// Takes input for the guest; call only when none waits.
    pub fn push(&mut self, input: &[u8]) {
        self.waiting.extend_from_slice(input);
        self.flush();
    }

    /// Hands waiting input over, as much as fits.
    pub fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        match rustix::io::write(socket, &self.waiting) {
            Ok(n) => {
                self.waiting.drain(..n);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => {
                // What was typed for a guest that is gone is not for the next one.
                self.waiting.clear();
                self.socket = None;
            }
        }
    }
}

/// Connects to the socket itself, by descriptor: its directory may belong to the VMM, which could put a link
/// to another service of the host in its place.
fn try_connect(dir: &Dir) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let sockets = rustix::fs::openat(dir, file::SOCKETS, flags | OFlags::DIRECTORY, Mode::empty())?;
    let node = rustix::fs::openat(&sockets, file::SERIAL_SOCKET, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode) != FileType::Socket {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", node.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}
