//! Frames of one bridge, as they come up to the host.
//!
//! A plain socket would not tell the hardware address, which is what a lease is known by and what guests cannot forge;
//! what a message says of itself they can. Answers leave by the TAP of the guest that asked: no other port of the
//! bridge sees them, whatever the bridge has learned, and no neighbour has to be known first. And port 67 of the host
//! stays free for other programs.

use std::io::{self, Read as _};

use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What may wait to be read, in bytes; what is more is lost, and clients repeat themselves.
const BUFFER: usize = 512 << 10;
/// The longest frame that is read: no message of a client is as long.
pub const FRAME_MAX: usize = 2048;

/// Only datagrams to port 67 that are whole: [14] is where IPv4 begins behind the header of the frame.
fn to_servers() -> [SockFilter; 9] {
    let word = |code: u32, k| SockFilter::new(code as u16, 0, 0, k);
    let jump =
        |test: u32, k, yes, no| SockFilter::new((libc::BPF_JMP | test | libc::BPF_K) as u16, yes, no, k);
    [
        word(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 23),
        jump(libc::BPF_JEQ, libc::IPPROTO_UDP.cast_unsigned(), 0, 6),
        word(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 20),
        jump(libc::BPF_JSET, 0x3fff, 4, 0),
        word(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 14),
        word(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 16),
        jump(libc::BPF_JEQ, 67, 0, 1),
        word(libc::BPF_RET, FRAME_MAX as u32),
        word(libc::BPF_RET, 0),
    ]
}

/// The frames.
#[derive(Debug)]
pub struct Wire(AsyncFd<Socket>);

impl Wire {
    /// Listens at the interface of a number, within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses: it needs CAP_NET_RAW, and the interface.
    pub fn open(interface: u32) -> io::Result<Self> {
        // Hears nothing yet, so that nothing is heard before the filter.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&to_servers())?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind(&at(interface, libc::ETH_P_IP as u16))?;
        // SAFETY: a socket has one descriptor for all of its life, and nobody takes it out.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// The next frame.
    ///
    /// # Errors
    /// The interface is gone.
    pub async fn next<'a>(&self, buffer: &'a mut [u8; FRAME_MAX]) -> io::Result<&'a [u8]> {
        loop {
            match self.0.async_io(Interest::READABLE, |mut socket: &Socket| socket.read(buffer)).await {
                Ok(length) => return Ok(&buffer[..length]),
                // The interface went down, which is told once; it may come up again.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame by the interface of a number.
    ///
    /// # Errors
    /// The interface is gone or down, or has no room.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        self.0.get_ref().send_to(frame, &at(interface, 0)).map(drop)
    }
}

/// The address of an interface for a protocol.
fn at(interface: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    let length = size_of::<libc::sockaddr_ll>() as socket2::socklen_t;
    // SAFETY: the storage is long enough for any address, and all zeroes is a value of this one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface.cast_signed();
    // SAFETY: it is an address of that family, of that length.
    unsafe { SockAddr::new(storage, length) }
}
