//! What the kernel tells of changes of the firewall: who changed which table.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Own;

/// The group of `nf_tables` (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// The upper byte of a message's type (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// The end of a transaction (`NFT_MSG_NEWGEN`): the only message whose first attribute is not the table's name.
const NEW_GENERATION: u16 = 15;
/// The header of a message, and that of its family after it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// The kernel's datagrams are at most this long.
const DATAGRAM: usize = 64 << 10;

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// More than was read: perhaps of somebody else's change. What one of our own laid may be so much.
    Lost,
    /// Somebody else changed the table, or what was told cannot be read.
    Foreign,
}

/// Changes that others made to one table.
pub struct RuleEvents {
    socket: TokioSocket,
    table: String,
    own: Own,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for RuleEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleEvents").field("table", &self.table).finish_non_exhaustive()
    }
}

impl RuleEvents {
    /// Listens from now on, in the namespace of this thread. What the processes of `own` do is not told.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn listen(table: &str, own: Own) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        let buffer = Vec::with_capacity(DATAGRAM);
        Ok(Self { socket, table: table.to_owned(), own, buffer })
    }

    /// Waits until somebody else changed the table, or may have.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn changed(&mut self) -> io::Result<Told> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) if is_foreign(&self.buffer, &self.table, |pid| self.own.has(pid)) => {
                    return Ok(Told::Foreign);
                }
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Told::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a datagram tells that a process other than `own` changed `table`. What cannot be read counts as a change.
fn is_foreign(datagram: &[u8], table: &str, own: impl Fn(u32) -> bool) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Some(length) = number(rest, 0).and_then(|n| usize::try_from(n).ok()) else { return true };
        let Some(message) = rest.get(..length).filter(|_| length >= HEADER) else { return true };
        let (Some(kind), Some(pid)) = (half(message, 4), number(message, 12)) else { return true };
        let about_rules = kind >> 8 == SUBSYSTEM && kind & 0xff != NEW_GENERATION;
        if about_rules && !own(pid) && table_of(message).is_none_or(|found| found == table.as_bytes()) {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// The table that a message is about: its first attribute, a text that ends in a zero.
fn table_of(message: &[u8]) -> Option<&[u8]> {
    let attribute = message.get(HEADER + FAMILY_HEADER..)?;
    let (length, kind) = (half(attribute, 0)?, half(attribute, 2)?);
    if kind != 1 {
        return None;
    }
    attribute.get(4..usize::from(length))?.strip_suffix(&[0])
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, pid: u32, table: &str) -> Vec<u8> {
        let mut body = vec![0; FAMILY_HEADER];
        body.extend(u16::try_from(table.len() + 5).unwrap().to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(table.as_bytes());
        body.push(0);
        let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
        message.extend([0; 6]);
        message.extend(pid.to_ne_bytes());
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn only_what_others_do_to_our_table_counts() {
        let foreign = |datagram: &[u8]| is_foreign(datagram, "drover-1", |pid| pid == 7);
        let new_generation = message(NEW_GENERATION, 8, "drover-1");
        assert!(foreign(&message(2, 8, "drover-1")));
        assert!(!foreign(&message(2, 7, "drover-1")), "our own process");
        assert!(!foreign(&message(2, 8, "docker")), "another table");
        assert!(!foreign(&message(2, 8, "drover-11")), "a table whose name is longer");
        assert!(!foreign(&new_generation));
        assert!(!foreign(&[]));
        let both = [message(12, 7, "drover-1"), message(12, 8, "x"), message(14, 8, "drover-1")].concat();
        assert!(foreign(&both), "the last of several");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = is_foreign(&bytes, "t", |_| false);
        }

        #[test]
        fn what_is_cut_off_counts_as_a_change(cut in 2_usize..30) {
            // The last byte only fills up to four.
            let whole = message(2, 8, "docker");
            prop_assert!(is_foreign(&whole[..whole.len() - cut], "drover-1", |_| false));
        }
    }
}
