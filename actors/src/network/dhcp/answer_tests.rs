use dhcproto::v4::{Decodable as _, Decoder, Flags};
use proptest::prelude::*;

use super::*;

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 9);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 10);

fn lease() -> Lease<'static> {
    Lease {
        mac: MAC,
        address: ADDRESS,
        prefix_len: 20,
        server: SERVER,
        is_default: true,
        mtu: 1450,
        name: Some("web"),
        suffix: Some("vm.drover.internal"),
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

/// A message of the guest's, changed a little.
fn asks(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message.set_opcode(Opcode::BootRequest).set_xid(0xfeed).set_chaddr(&MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    bytes(&message)
}

fn wants(address: Ipv4Addr) -> impl FnOnce(&mut Message) {
    move |message| {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    }
}

fn replied(bytes: &[u8]) -> (Reply, Message) {
    match answer(&lease(), bytes) {
        Answer::Reply(reply) => {
            let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
            (reply, message)
        }
        other => panic!("{other:?}"),
    }
}

fn ignored(bytes: &[u8]) -> Ignored {
    match answer(&lease(), bytes) {
        Answer::Ignored(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_begins_is_offered_its_address_and_all_there_is_to_know() {
    let (reply, message) = replied(&asks(MessageType::Discover, |_| {}));
    assert_eq!((reply.kind, reply.to), (Kind::Offer, Some(ADDRESS)));
    assert_eq!((message.opcode(), message.xid(), message.yiaddr()), (Opcode::BootReply, 0xfeed, ADDRESS));
    assert_eq!(message.chaddr(), MAC);
    let has = |option: DhcpOption| {
        let code = OptionCode::from(&option);
        assert_eq!(message.opts().get(code), Some(&option));
    };
    has(DhcpOption::MessageType(MessageType::Offer));
    has(DhcpOption::ServerIdentifier(SERVER));
    has(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 240, 0)));
    has(DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 77, 15, 255)));
    has(DhcpOption::Router(vec![SERVER]));
    has(DhcpOption::DomainNameServer(vec![SERVER]));
    has(DhcpOption::DomainName("vm.drover.internal".into()));
    has(DhcpOption::Hostname("web".into()));
    has(DhcpOption::InterfaceMtu(1450));
    has(DhcpOption::AddressLeaseTime(LEASE_S));
    assert!((MIN_PACKET_SIZE..=548).contains(&reply.message.len()), "{}", reply.message.len());
}

#[test]
fn an_answer_goes_where_its_guest_hears_it() {
    let broadcast = |message: &mut Message| {
        message.set_flags(Flags::default().set_broadcast());
    };
    let (reply, message) = replied(&asks(MessageType::Discover, broadcast));
    assert_eq!((reply.to, message.flags().broadcast()), (None, true));
    // One that has its address hears it there, whatever it says.
    let renews = |message: &mut Message| {
        message.set_flags(Flags::default().set_broadcast()).set_ciaddr(ADDRESS);
    };
    let (reply, message) = replied(&asks(MessageType::Request, renews));
    assert_eq!((reply.kind, reply.to, message.ciaddr()), (Kind::Acknowledge, Some(ADDRESS), ADDRESS));
}

#[test]
fn an_address_is_acknowledged_if_it_is_the_guests_and_else_refused() {
    let of_offer = |message: &mut Message| {
        wants(ADDRESS)(message);
        message.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
    };
    for (asked, kind) in [
        (asks(MessageType::Request, of_offer), Kind::Acknowledge),
        (asks(MessageType::Request, wants(ADDRESS)), Kind::Acknowledge),
        (asks(MessageType::Request, wants(ELSEWHERE)), Kind::Refuse),
        (
            asks(MessageType::Request, |message| {
                message.set_ciaddr(ELSEWHERE);
            }),
            Kind::Refuse,
        ),
    ] {
        let (reply, message) = replied(&asked);
        assert_eq!(reply.kind, kind);
        if kind == Kind::Refuse {
            assert_eq!((reply.to, message.yiaddr()), (None, Ipv4Addr::UNSPECIFIED));
            assert_eq!(message.opts().msg_type(), Some(MessageType::Nak));
            assert!(!message.opts().contains(OptionCode::AddressLeaseTime));
        }
    }
    assert_eq!(ignored(&asks(MessageType::Request, |_| {})), Ignored::Malformed);
}

#[test]
fn what_needs_no_answer_has_none() {
    assert_eq!(answer(&lease(), &asks(MessageType::Decline, wants(ADDRESS))), Answer::Taken(Taken::Declined));
    let leaves = |message: &mut Message| {
        message.set_ciaddr(ADDRESS);
    };
    assert_eq!(answer(&lease(), &asks(MessageType::Release, leaves)), Answer::Taken(Taken::Released));
    for kind in [MessageType::Decline, MessageType::Release, MessageType::Inform] {
        assert_eq!(ignored(&asks(kind, wants(ELSEWHERE))), Ignored::Foreign, "{kind:?}");
    }
}

#[test]
fn who_has_an_address_may_ask_for_the_rest() {
    let (reply, message) = replied(&asks(MessageType::Inform, |message| {
        message.set_ciaddr(ADDRESS);
    }));
    assert_eq!(
        (reply.kind, reply.to, message.yiaddr()),
        (Kind::Inform, Some(ADDRESS), Ipv4Addr::UNSPECIFIED)
    );
    assert!(message.opts().contains(OptionCode::DomainNameServer));
    assert!(!message.opts().contains(OptionCode::AddressLeaseTime));
}

#[test]
fn what_is_not_a_guests_own_is_not_answered() {
    let of = |change: fn(&mut Message)| ignored(&asks(MessageType::Discover, change));
    assert_eq!(
        of(|message| {
            message.set_chaddr(&[0x52, 0x54, 0, 9, 9, 9]);
        }),
        Ignored::Foreign
    );
    assert_eq!(
        of(|message| {
            message.set_giaddr([10, 0, 0, 1]);
        }),
        Ignored::Relayed
    );
    assert_eq!(
        of(|message| {
            message.set_hops(1);
        }),
        Ignored::Relayed
    );
    assert_eq!(
        of(|message| {
            message.set_opcode(Opcode::BootReply);
        }),
        Ignored::Malformed
    );
    assert_eq!(
        of(|message| {
            message.set_chaddr(&[1; 16]);
        }),
        Ignored::Malformed
    );
    assert_eq!(
        of(|message| {
            message.opts_mut().remove(OptionCode::MessageType);
        }),
        Ignored::Malformed
    );
    let giant = |message: &mut Message| {
        message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![7; 1000]));
    };
    assert_eq!(ignored(&asks(MessageType::Discover, giant)), Ignored::Malformed);
    let other = |message: &mut Message| {
        message.opts_mut().insert(DhcpOption::ServerIdentifier(ELSEWHERE));
    };
    assert_eq!(ignored(&asks(MessageType::Request, other)), Ignored::OtherServer);
    for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak, MessageType::LeaseQuery] {
        assert_eq!(ignored(&asks(kind, |_| {})), Ignored::Malformed, "{kind:?}");
    }
}

#[test]
fn the_longest_answer_fits_every_client() {
    let (name, suffix) = ("n".repeat(63), format!("{}.b", "s".repeat(62)));
    let lease = Lease { name: Some(&name), suffix: Some(&suffix), ..lease() };
    let asked = asks(MessageType::Discover, |message| {
        message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![7; MAX_CLIENT_ID]));
    });
    let Answer::Reply(reply) = answer(&lease, &asked) else { panic!("no answer") };
    assert!(reply.message.len() <= 548, "{}", reply.message.len());
    let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
    assert_eq!(
        message.opts().get(OptionCode::ClientIdentifier),
        Some(&DhcpOption::ClientIdentifier(vec![7; MAX_CLIENT_ID])),
        "RFC 6842"
    );
}

#[test]
fn further_interfaces_are_told_of_no_way_and_no_names() {
    let further = Lease { is_default: false, ..lease() };
    let Answer::Reply(reply) = answer(&further, &asks(MessageType::Discover, |_| {})) else {
        panic!("no answer")
    };
    let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
    for code in [OptionCode::Router, OptionCode::DomainNameServer, OptionCode::DomainName] {
        assert!(!message.opts().contains(code), "{code:?}");
    }
}

/// Whatever is said, nobody gets anything but its own address.
fn gives_its_own_only(asked: &[u8]) {
    if let Answer::Reply(reply) = answer(&lease(), asked) {
        let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
        let given = message.yiaddr();
        assert!(given == ADDRESS || given.is_unspecified(), "{given}");
        assert!(matches!(reply.to, None | Some(ADDRESS)), "{:?}", reply.to);
        assert!(reply.message.len() <= 548);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(asked in proptest::collection::vec(any::<u8>(), 0..1500)) {
        gives_its_own_only(&asked);
    }

    #[test]
    fn any_options_of_a_right_message_are_survived(
        kind in 0_u8..20,
        ciaddr in prop_oneof![Just(ADDRESS), any::<u32>().prop_map(Ipv4Addr::from)],
        options in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut asked = asks(MessageType::from(kind), |message| { message.set_ciaddr(ciaddr); });
        // In the place of the end.
        asked.pop();
        asked.extend(options);
        gives_its_own_only(&asked);
    }
}
