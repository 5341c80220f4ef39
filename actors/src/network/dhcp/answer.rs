//! What a guest's message of DHCP is answered with: pure.
//!
//! An interface has one lease for all of its life, which ends with its VM and not by a clock: a guest keeps its
//! address also while nobody is there who would renew it. So an answer follows from the lease and the message alone.

use std::net::Ipv4Addr;

use dhcproto::v4::{
    DhcpOption, Encodable as _, Encoder, HType, MIN_PACKET_SIZE, Message, MessageType, Opcode, OptionCode,
    borrowed,
};

use super::super::guests::Mac;

/// How long a lease lasts, in seconds: for ever.
pub const LEASE_S: u32 = u32::MAX;
/// The longest name by which a client calls itself that is said back: what every client takes in is 548 bytes long.
const MAX_CLIENT_ID: usize = 64;

/// What a guest is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease<'a> {
    /// Whose it is.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// Who leases: the host on the network.
    pub server: Ipv4Addr,
    /// The default way leads by the network.
    pub is_default: bool,
    /// The longest packet.
    pub mtu: u16,
    /// The VM's name.
    pub name: Option<&'a str>,
    /// The end of names, where the server knows names.
    pub suffix: Option<&'a str>,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is answered.
    Reply(Reply),
    /// It is taken, and there is no answer to it.
    Taken(Taken),
    /// It is not taken.
    Ignored(Ignored),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it says.
    pub kind: Kind,
    /// Whose address it goes to; to everybody on the link if none, as the guest may not take anything else yet.
    pub to: Option<Ipv4Addr>,
    /// The message.
    pub message: Vec<u8>,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This address is offered.
    Offer,
    /// It is the guest's.
    Acknowledge,
    /// It is not the guest's.
    Refuse,
    /// What else there is to know.
    Inform,
}

/// A message that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The guest found somebody else at its address.
    Declined,
    /// The guest does not use its address any more; it stays leased all the same.
    Released,
}

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It is no message of a client, or says things that do not fit together.
    Malformed,
    /// It is said to be of somebody else.
    Foreign,
    /// It came by a relay, and there are none here.
    Relayed,
    /// It is for another server.
    OtherServer,
}

/// What a client asks for.
struct Asked<'a> {
    message: borrowed::Message<'a>,
    kind: MessageType,
    address: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<Vec<u8>>,
}

fn read(bytes: &[u8]) -> Result<Asked<'_>, Ignored> {
    let message = borrowed::Message::new(bytes).map_err(|_| Ignored::Malformed)?;
    if message.opcode() != Opcode::BootRequest || message.htype() != HType::Eth || message.hlen() != 6 {
        return Err(Ignored::Malformed);
    }
    let (mut kind, mut address, mut server, mut client_id) = (None, None, None, None);
    for option in message.opts() {
        let four = || <[u8; 4]>::try_from(option.data()).map(Ipv4Addr::from).map_err(|_| Ignored::Malformed);
        match option.code() {
            OptionCode::MessageType => match option.data() {
                [one] => drop(kind.get_or_insert(MessageType::from(*one))),
                _ => return Err(Ignored::Malformed),
            },
            OptionCode::RequestedIpAddress => drop(address.get_or_insert(four()?)),
            OptionCode::ServerIdentifier => drop(server.get_or_insert(four()?)),
            OptionCode::ClientIdentifier if option.len() <= MAX_CLIENT_ID => {
                client_id.get_or_insert_with(|| option.data().to_vec());
            }
            OptionCode::ClientIdentifier => return Err(Ignored::Malformed),
            _ => {}
        }
    }
    // Without one it is BOOTP, which has no leases.
    let kind = kind.ok_or(Ignored::Malformed)?;
    Ok(Asked { message, kind, address, server, client_id })
}

/// The answer to a message that the holder of a lease sent, for certain.
#[must_use]
pub fn answer(lease: &Lease<'_>, bytes: &[u8]) -> Answer {
    let asked = match read(bytes) {
        Ok(asked) => asked,
        Err(why) => return Answer::Ignored(why),
    };
    let message = &asked.message;
    if !message.giaddr().is_unspecified() || message.hops() != 0 {
        return Answer::Ignored(Ignored::Relayed);
    }
    if message.chaddr() != lease.mac {
        return Answer::Ignored(Ignored::Foreign);
    }
    let of_other = asked.server.is_some_and(|server| server != lease.server);
    match asked.kind {
        // Also where it names another server: a client that begins anew has none.
        MessageType::Discover => reply(lease, &asked, Kind::Offer),
        MessageType::Request | MessageType::Decline | MessageType::Release if of_other => {
            Answer::Ignored(Ignored::OtherServer)
        }
        MessageType::Request => {
            // What it wants to have: of an offer, of the time before its boot, or now.
            let wants = asked.address.or(Some(message.ciaddr()).filter(|address| !address.is_unspecified()));
            match wants {
                None => Answer::Ignored(Ignored::Malformed),
                Some(wants) if wants == lease.address => reply(lease, &asked, Kind::Acknowledge),
                Some(_) => reply(lease, &asked, Kind::Refuse),
            }
        }
        MessageType::Decline if asked.address == Some(lease.address) => Answer::Taken(Taken::Declined),
        MessageType::Release if message.ciaddr() == lease.address => Answer::Taken(Taken::Released),
        MessageType::Inform if message.ciaddr() == lease.address => reply(lease, &asked, Kind::Inform),
        MessageType::Decline | MessageType::Release | MessageType::Inform => {
            Answer::Ignored(Ignored::Foreign)
        }
        _ => Answer::Ignored(Ignored::Malformed),
    }
}

fn reply(lease: &Lease<'_>, asked: &Asked<'_>, kind: Kind) -> Answer {
    // What it says to have counts only where that is so.
    let has = asked.message.ciaddr() == lease.address;
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootReply)
        .set_xid(asked.message.xid())
        .set_flags(asked.message.flags())
        .set_chaddr(&lease.mac);
    let options = message.opts_mut();
    let mut say = |said: DhcpOption| drop(options.insert(said));
    asked.client_id.clone().map(DhcpOption::ClientIdentifier).into_iter().for_each(&mut say);
    let is = match kind {
        Kind::Offer => MessageType::Offer,
        Kind::Acknowledge | Kind::Inform => MessageType::Ack,
        Kind::Refuse => MessageType::Nak,
    };
    say(DhcpOption::MessageType(is));
    say(DhcpOption::ServerIdentifier(lease.server));
    if kind == Kind::Refuse {
        say(DhcpOption::Message("this address is not leased to this interface".to_owned()));
    } else {
        known(lease).for_each(&mut say);
    }
    if matches!(kind, Kind::Offer | Kind::Acknowledge) {
        say(DhcpOption::AddressLeaseTime(LEASE_S));
        message.set_yiaddr(lease.address);
    }
    if matches!(kind, Kind::Acknowledge | Kind::Inform) {
        message.set_ciaddr(if has { lease.address } else { Ipv4Addr::UNSPECIFIED });
    }
    // RFC 2131, 4.1: who has an address is answered there; who has none says whether it hears its own name already.
    let to = match kind {
        Kind::Refuse => None,
        _ if has => Some(lease.address),
        _ if asked.message.flags().broadcast() => None,
        _ => Some(lease.address),
    };
    let mut bytes = Vec::with_capacity(MIN_PACKET_SIZE);
    match message.encode(&mut Encoder::new(&mut bytes)) {
        Ok(()) => {
            // Some take nothing that is shorter.
            bytes.resize(bytes.len().max(MIN_PACKET_SIZE), 0);
            Answer::Reply(Reply { kind, to, message: bytes })
        }
        // Of what is said here none is too long for its option.
        Err(_) => Answer::Ignored(Ignored::Malformed),
    }
}

/// What there is to know.
fn known(lease: &Lease<'_>) -> impl Iterator<Item = DhcpOption> {
    let host = u32::MAX.checked_shr(lease.prefix_len.into()).unwrap_or(0);
    let common = [
        DhcpOption::SubnetMask(Ipv4Addr::from(!host)),
        DhcpOption::BroadcastAddr(Ipv4Addr::from(u32::from(lease.address) | host)),
        DhcpOption::InterfaceMtu(lease.mtu),
    ];
    let name = lease.name.map(|name| DhcpOption::Hostname(name.to_owned()));
    // A guest has one default way, and asks there for names.
    let router = lease.is_default.then(|| DhcpOption::Router(vec![lease.server]));
    let suffix = lease.suffix.filter(|_| lease.is_default);
    let names = suffix.map(|_| DhcpOption::DomainNameServer(vec![lease.server]));
    let suffix = suffix.map(|suffix| DhcpOption::DomainName(suffix.to_owned()));
    common.into_iter().chain(name).chain(router).chain(names).chain(suffix)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
