//! Tells the daemon that there is something to look at, if it is there.

use std::io;
use std::path::Path;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// How often a notice is tried again while the daemon's queue is full.
const TRIES: u32 = 200;

/// The way to the daemon's socket.
pub struct Notify {
    socket: std::os::fd::OwnedFd,
    address: SocketAddrUnix,
    vm_id: String,
    tries_left: u32,
}

impl Notify {
    /// Notices about `vm_id` to the socket at `path`, which need not exist.
    pub fn new(path: &Path, vm_id: String) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket, address: SocketAddrUnix::new(path)?, vm_id, tries_left: 0 })
    }

    /// Sends a notice; a full queue is tried again with [`Notify::retry`], an absent daemon is not.
    pub fn send(&mut self) {
        self.tries_left = TRIES;
        self.retry();
    }

    /// A notice waits to be tried again.
    pub fn is_pending(&self) -> bool {
        self.tries_left > 0
    }

    /// Tries a waiting notice again.
    pub fn retry(&mut self) {
        if self.tries_left == 0 {
            return;
        }
        let sent =
            rustix::net::sendto(&self.socket, self.vm_id.as_bytes(), SendFlags::NOSIGNAL, &self.address);
        self.tries_left = match sent {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => self.tries_left - 1,
            _ => 0,
        };
    }
}
