//! The rules of IPv6: pure. They are laid on a host that has a network with it, and on no other.
//!
//! What a guest says of its neighbours is read to the end: for whom an advertisement speaks (the target), and which MAC it
//! tells of. `nft` has no words for these places in all versions that are about, so they are named by their offset, and
//! their sets by `typeof`, which is why those are made in words before the JSON.

use std::net::IpAddr;

use nftables::expr::{Expression, Exthdr, MetaKey, NamedExpression, Payload, PayloadBase, PayloadRaw};
use nftables::schema::{SetFlag, SetType};
use nftables::stmt::{JumpTarget, Operator, Statement};

use super::rules::{
    ACCEPT, DROP, Doc, EGRESS_ALLOW, EGRESS_ALLOW_PORT, EGRESS_CLOSED, EGRESS_DENY, EGRESS_DENY_PORT,
    EGRESS_REFUSED, Expr, FORWARD_OPEN, FORWARD_PORT, FORWARD_TO, Stmt, any_of, concat, eq, field, from,
    meta, prefix, refused, text, when,
};
use super::{BaseNet, Member, Port};
use crate::network::ipv6::{gateway, is_masqueraded, link_local};

/// TAPs of guests that have an address.
pub(super) const SET_IF: &str = "vm_if6";
/// TAP, MAC and address: the leased one and that of the link.
pub(super) const SET_SRC: &str = "vm_src6";
/// The same, the address as a number: whom a guest may speak for.
pub(super) const SET_TARGET: &str = "vm_target6";
/// TAP and MAC, as a number: which MAC a guest may tell of.
pub(super) const SET_LINK: &str = "vm_link6";

/// Sets whose last part is a number.
pub(super) const NUMBERS: [&str; 2] = [SET_TARGET, SET_LINK];

/// Sets of what guests may reach, and those for their addresses of IPv6.
pub(in super::super) const EGRESS6: [(&str, &str); 6] = [
    (EGRESS_REFUSED, EGRESS_REFUSED6),
    (EGRESS_CLOSED, "egress_closed6"),
    (EGRESS_ALLOW, "egress_allow6"),
    (EGRESS_ALLOW_PORT, "egress_allow_port6"),
    (EGRESS_DENY, "egress_deny6"),
    (EGRESS_DENY_PORT, "egress_deny_port6"),
];
/// Sets of forwards, and those by IPv6.
const FORWARD6: [(&str, &str); 3] =
    [(FORWARD_TO, "forward_to6"), (FORWARD_PORT, "forward_port6"), (FORWARD_OPEN, "forward_open6")];

/// The set of IPv6 in the place of one of IPv4.
pub(super) fn forward_set6(four: &'static str) -> &'static str {
    FORWARD6.iter().find(|(of, _)| *of == four).map_or(four, |(_, six)| six)
}

/// The set of forwards to a guest's address in the place of one of IPv4.
pub(in super::super) fn forward_set(four: &'static str, guest: IpAddr) -> &'static str {
    if guest.is_ipv4() { four } else { forward_set6(four) }
}

/// As [`EGRESS_REFUSED`].
pub(in super::super) const EGRESS_REFUSED6: &str = "egress_refused6";

const FROM_VM: &str = "from_vm6";
const UNSPECIFIED: &str = "::";
/// The options of neighbour discovery that tell of a MAC.
const SOURCE_LINK: u32 = 1;
const TARGET_LINK: u32 = 2;
/// Lengths of a message with nothing behind its target, and with one MAC.
const BARE: u32 = 24;
const WITH_LINK: u32 = 32;

/// What makes the sets that JSON has no words for, there or not.
pub(super) fn sets(table: &str) -> String {
    format!(
        "add table bridge {table}\n\
         add set bridge {table} {SET_TARGET} {{ typeof iifname . ether saddr . @th,64,128 ; }}\n\
         add set bridge {table} {SET_LINK} {{ typeof iifname . @th,208,48 ; }}\n"
    )
}

/// The elements of an interface that has an address.
pub(super) fn elements(port: &Port) -> Vec<Member> {
    let Some(own) = port.ipv6 else { return Vec::new() };
    let (tap, mac) = (port.tap.clone(), port.mac.clone());
    let member = |set: &str, parts: Vec<String>| Member { set: set.to_owned(), parts, value: None };
    let number = mac.replace(':', "");
    let mut members = vec![
        member(SET_IF, vec![tap.clone()]),
        member(SET_LINK, vec![tap.clone(), as_number(&format!("0x{number}"))]),
    ];
    for address in link_local(&mac).into_iter().chain([own]) {
        members.push(member(SET_SRC, vec![tap.clone(), mac.clone(), address.to_string()]));
        members.push(member(SET_TARGET, vec![tap.clone(), mac.clone(), format!("{:#x}", address.to_bits())]));
    }
    members
}

/// A number in one way of the several that it is written in; what is none as it is.
pub(super) fn as_number(text: &str) -> String {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u128::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number.map_or_else(|| text.to_owned(), |number| format!("{number:#x}"))
}

/// So many bits at a place behind the network's header.
fn at(offset: u32, len: u32) -> Expr {
    let raw = PayloadRaw { base: PayloadBase::TH, offset, len };
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(raw)))
}

fn set(name: &str) -> Expr {
    text(&format!("@{name}"))
}

/// Adds what is for the bridge, and leads there from `chain`, behind which nothing of IPv6 is accepted.
pub(super) fn bridge(doc: &mut Doc<'_>, chain: &'static str, networks: &[BaseNet]) {
    doc.add_set(SET_IF, &[SetType::Ifname], None);
    doc.add_set(SET_SRC, &[SetType::Ifname, SetType::EtherAddr, SetType::Ipv6Addr], None);
    doc.add_chain(FROM_VM, None);
    for network in networks.iter().filter(|network| !network.isolate) {
        no_detour(doc, network);
    }
    anti_spoof(doc);
    let jump = Statement::Jump(JumpTarget { target: FROM_VM.into() });
    let six = eq(field("ether", "type"), text("ip6"));
    doc.add_rule(chain, vec![six, eq(meta(MetaKey::Iifname), set(SET_IF)), jump]);
}

/// Guests that may talk do so without the host. It would ask for each address of a subnet that has more of them than it can
/// remember having asked for, and forget its neighbours over it.
fn no_detour(doc: &mut Doc<'_>, network: &BaseNet) {
    let Some(subnet) = network.ipv6 else { return };
    let mac: Vec<String> = network.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let by_host = eq(field("ether", "daddr"), text(&mac.join(":")));
    let to_guest = eq(field("ip6", "daddr"), prefix(subnet));
    let no_gateway = when(field("ip6", "daddr"), Operator::NEQ, text(&gateway(subnet).to_string()));
    let [count, drop] = refused();
    doc.add_rule(FROM_VM, vec![by_host, to_guest, no_gateway, count, drop]);
}

/// A guest speaks with its own MAC, which was looked at before, in its own name and for itself only. It is no router and
/// gives no addresses.
fn anti_spoof(doc: &mut Doc<'_>) {
    let own = |what: Expr| vec![meta(MetaKey::Iifname), field("ether", "saddr"), what];
    let source = || eq(concat(own(field("ip6", "saddr"))), set(SET_SRC));
    let for_itself = || eq(concat(own(at(64, 128))), set(SET_TARGET));
    // Alone: behind other headers it is refused below, with all else that is not for guests to say.
    let says = |what: &str| {
        let alone = eq(field("ip6", "nexthdr"), text("ipv6-icmp"));
        vec![alone, eq(field("icmpv6", "type"), text(what))]
    };
    let length = |length: u32| eq(field("ip6", "length"), Expression::Number(length));
    let own_link = |option: u32| {
        let tells = concat(vec![meta(MetaKey::Iifname), at(208, 48)]);
        vec![length(WITH_LINK), eq(at(192, 8), Expression::Number(option)), eq(tells, set(SET_LINK))]
    };
    let (asks, answers) = (says("nd-neighbor-solicit"), says("nd-neighbor-advert"));
    let mut accept = |parts: Vec<Vec<Stmt>>| doc.add_rule(FROM_VM, [parts.concat(), vec![ACCEPT]].concat());
    // Whether somebody has an address already is asked from no address, of its own alone: else it could be kept from others.
    let nobody = eq(field("ip6", "saddr"), text(UNSPECIFIED));
    accept(vec![asks.clone(), vec![nobody, for_itself()]]);
    accept(vec![asks.clone(), vec![length(BARE), source()]]);
    accept(vec![asks, own_link(SOURCE_LINK), vec![source()]]);
    accept(vec![answers.clone(), vec![length(BARE), source(), for_itself()]]);
    accept(vec![answers, own_link(TARGET_LINK), vec![source(), for_itself()]]);
    // Kernels say such things whenever an interface comes up. Nobody listens, and it is no offence.
    let idle = ["nd-router-solicit", "mld-listener-report", "mld-listener-done", "mld2-listener-report"];
    let idle = any_of(idle.map(text).to_vec());
    doc.add_rule(FROM_VM, vec![eq(field("icmpv6", "type"), idle), DROP]);
    let plain = [
        "destination-unreachable",
        "packet-too-big",
        "time-exceeded",
        "parameter-problem",
        "echo-request",
        "echo-reply",
    ];
    let plain = eq(field("icmpv6", "type"), any_of(plain.map(text).to_vec()));
    doc.add_rule(FROM_VM, vec![plain, source(), ACCEPT]);
    // Addresses are the host's to give.
    let no_server = when(field("udp", "sport"), Operator::NEQ, Expression::Number(547));
    doc.add_rule(FROM_VM, vec![no_server, source(), ACCEPT]);
    // What is not known of a packet whose headers do not fit into it, or of a part that follows behind further ones.
    let is_known = || when(meta(MetaKey::L4proto), Operator::NEQ, Expression::Number(255));
    // A part that follows is of use only with the first, which was looked at.
    let fragment = Exthdr { name: "frag".into(), field: Some("frag-off".into()), offset: None };
    let fragment = Expression::Named(NamedExpression::Exthdr(fragment));
    let follows = when(fragment, Operator::NEQ, Expression::Number(0));
    doc.add_rule(FROM_VM, vec![is_known(), follows, source(), ACCEPT]);
    let [count, drop] = refused();
    let looked_at = any_of(["udp", "ipv6-icmp"].map(text).to_vec());
    doc.add_rule(FROM_VM, vec![eq(meta(MetaKey::L4proto), looked_at), count.clone(), drop.clone()]);
    doc.add_rule(FROM_VM, vec![is_known(), source(), ACCEPT]);
    doc.add_rule(FROM_VM, vec![count, drop]);
}

/// The sets of what guests may reach.
pub(super) fn egress_sets(doc: &mut Doc<'_>) {
    let ports = [SetType::Ipv6Addr, SetType::Ipv6Addr, SetType::InetProto, SetType::InetService];
    for (four, six) in EGRESS6 {
        match four {
            EGRESS_CLOSED | EGRESS_REFUSED => doc.add_set(six, &[SetType::Ipv6Addr], None),
            EGRESS_ALLOW | EGRESS_DENY => {
                doc.add_set(six, &[SetType::Ipv6Addr; 2], Some(SetFlag::Interval));
            }
            _ => doc.add_set(six, &ports, Some(SetFlag::Interval)),
        }
    }
}

/// The set of IPv6 in the place of one of IPv4.
pub(in super::super) fn egress_set(four: &str) -> &str {
    EGRESS6.iter().find(|(of, _)| *of == four).map_or(four, |(_, six)| six)
}

/// Who has addresses that nobody outside knows goes out in the host's name.
pub(super) fn masquerade(doc: &mut Doc<'_>, network: &BaseNet, outside: Stmt) {
    if let Some(subnet) = network.ipv6.filter(|subnet| is_masqueraded(*subnet)) {
        let ours = eq(field("ip6", "saddr"), prefix(subnet));
        doc.add_rule("postrouting", vec![ours, outside, Statement::Masquerade(None)]);
    }
}

/// The host answers its neighbours, and a ping.
pub(super) fn input(doc: &mut Doc<'_>, network: &BaseNet) {
    if network.ipv6.is_some() {
        let asked = any_of(["nd-neighbor-solicit", "nd-neighbor-advert", "echo-request"].map(text).to_vec());
        doc.add_rule("input", vec![from(&network.bridge), eq(field("icmpv6", "type"), asked), ACCEPT]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Present;
    use super::*;

    #[test]
    fn an_interface_has_the_elements_that_are_listed_of_it() {
        let mut port = Port {
            tap: "dr1".into(),
            mac: "52:54:00:00:00:01".into(),
            ipv4: [10, 77, 0, 5].into(),
            ipv6: Some("fd00::5".parse().unwrap()),
        };
        // As `nft` 1.0.6 lists them: a long number as a text, a shorter one as a number.
        let listing = r#"{"nftables": [
            {"set": {"name": "vm_if6", "type": "ifname", "elem": ["dr1"]}},
            {"set": {"name": "vm_src6", "type": ["ifname", "ether_addr", "ipv6_addr"], "elem": [
                {"concat": ["dr1", "52:54:00:00:00:01", "fe80::5054:ff:fe00:1"]},
                {"concat": ["dr1", "52:54:00:00:00:01", "fd00::5"]}]}},
            {"set": {"name": "vm_target6", "type": ["ifname", "ether_addr", "integer"], "elem": [
                {"concat": ["dr1", "52:54:00:00:00:01", "0xfe80000000000000505400fffe000001"]},
                {"concat": ["dr1", "52:54:00:00:00:01", "0xfd000000000000000000000000000005"]}]}},
            {"set": {"name": "vm_link6", "type": ["ifname", "integer"], "elem": [
                {"concat": ["dr1", 90520730730497]}]}}]}"#;
        let mut present = Present::default();
        present.take(listing).unwrap();
        let own: Vec<Member> = elements(&port);
        assert_eq!(own.len(), 6);
        assert_eq!(present.members, own.iter().cloned().collect());
        assert!(own.iter().all(|member| member.tap() == Some("dr1")));
        port.ipv6 = None;
        assert_eq!(elements(&port), []);
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written() {
        for (text, number) in [
            ("255", "0xff"),
            ("0xFF", "0xff"),
            ("0x00ff", "0xff"),
            ("dr1", "dr1"),
            ("0xzz", "0xzz"),
            ("", ""),
        ] {
            assert_eq!(as_number(text), number);
        }
    }
}
