//! As much of rtnetlink as one interface takes: a crate for all of it would make every guest's agent a fifth larger.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::Prefix;

/// The kernel answers at once, or not at all.
const PATIENCE_S: i64 = 5;

const HEADER: usize = 16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;

/// A request that is built.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Where addresses and routes of the guest are changed.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self(socket))
    }

    /// Sends a request; the kernel's answer to it is its end.
    fn ask(&self, message: Message) -> io::Result<()> {
        sendto(self.0.as_raw_fd(), &message.bytes(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            if let Some(code) = outcome(&answer[..length]) {
                return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
            }
        }
    }

    /// Brings an interface up, or gives it another longest packet.
    pub(super) fn set_link(&self, index: u32, up: bool, mtu: Option<u32>) -> io::Result<()> {
        let flag = libc::IFF_UP as u32;
        let flags = if up { flag } else { 0 };
        let fixed =
            [&[0, 0, 0, 0][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        let message = Message::new(libc::RTM_NEWLINK, 0, &fixed);
        self.ask(match mtu {
            Some(mtu) => message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()),
            None => message,
        })
    }

    /// Adds an address; one that is there stays.
    pub(super) fn add_address(&self, index: u32, address: Prefix) -> io::Result<()> {
        let mut message =
            self::address(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, index, address);
        if let (_, IpAddr::V4(broadcast)) = address.ends()
            && address.length < 31
        {
            message = message.attribute(libc::IFA_BROADCAST, &broadcast.octets());
        }
        already(self.ask(message), libc::EEXIST)
    }

    /// Takes an address away; one that is gone is.
    pub(super) fn remove_address(&self, index: u32, address: Prefix) -> io::Result<()> {
        already(self.ask(self::address(libc::RTM_DELADDR, 0, index, address)), libc::EADDRNOTAVAIL)
    }

    /// Puts a route in the place of the one to the same place.
    pub(super) fn set_route(&self, index: u32, to: Prefix, via: IpAddr) -> io::Result<()> {
        let fixed = [
            family(to.ip),
            to.length,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed);
        let (to, _) = to.ends();
        self.ask(
            message
                .attribute(libc::RTA_DST, &octets(to))
                .attribute(libc::RTA_GATEWAY, &octets(via))
                .attribute(libc::RTA_OIF, &index.to_ne_bytes()),
        )
    }
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(kind: u16, flags: i32, index: u32, address: Prefix) -> Message {
    // It is the host's to give: whether somebody else has it needs not be waited for.
    let at_once = if address.ip.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    let fixed =
        [&[family(address.ip), address.length, at_once, libc::RT_SCOPE_UNIVERSE][..], &index.to_ne_bytes()];
    let (fixed, octets) = (fixed.concat(), octets(address.ip));
    Message::new(kind, flags, &fixed)
        .attribute(libc::IFA_LOCAL, &octets)
        .attribute(libc::IFA_ADDRESS, &octets)
}

fn already(done: io::Result<()>, code: i32) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(code) => Ok(()),
        done => done,
    }
}

/// The number of the error that a datagram ends a request with; 0 for none.
fn outcome(mut bytes: &[u8]) -> Option<i32> {
    while let Some(header) = bytes.get(..HEADER) {
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        if kind == ERROR {
            let code = bytes.get(HEADER..HEADER + 4)?;
            return Some(i32::from_ne_bytes(code.try_into().ok()?).saturating_neg());
        }
        if length < HEADER {
            return None;
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let prefix: Prefix = "10.0.0.2/24".parse().unwrap();
        let bytes = address(libc::RTM_NEWADDR, 0, 7, prefix).attribute(9, &[1]).bytes();
        assert_eq!(bytes.len(), 16 + 8 + 8 + 8 + 8);
        assert_eq!(bytes[..4], 48_u32.to_ne_bytes());
        assert_eq!(bytes[16..24], [2, 24, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[24..32], [8, 0, 2, 0, 10, 0, 0, 2]);
        assert_eq!(bytes[40..], [5, 0, 9, 0, 1, 0, 0, 0]);
        let bytes = address(libc::RTM_NEWADDR, 0, 7, "fd00::2/64".parse().unwrap()).bytes();
        assert_eq!(bytes.len(), 16 + 8 + 20 + 20);
        assert_eq!(bytes[16..24], [10, 64, 2, 0, 7, 0, 0, 0]);
        assert_eq!((&bytes[24..30], bytes[43]), (&[20, 0, 2, 0, 0xfd, 0][..], 2));
    }

    #[test]
    fn an_answer_is_found_and_rubbish_is_none() {
        let mut answer = Message::new(ERROR, 0, &(-17_i32).to_ne_bytes()).bytes();
        assert_eq!(outcome(&answer), Some(17));
        let other = Message::new(99, 0, &[0; 5]).attribute(1, &[]).bytes();
        let mut two = other.clone();
        two.resize(two.len().next_multiple_of(4), 0);
        two.append(&mut answer);
        assert_eq!(outcome(&two), Some(17));
        for rubbish in [&[][..], &[0; 15], &[0; 16], &[0xff; 64]] {
            assert_eq!(outcome(rubbish), None);
        }
    }
}
