//! What guests ask of the host itself, addresses and names: pure.

use nftables::types::{NfChainType, NfHook};

use super::super::super::lease::gateway;
use super::{
    ACCEPT, BaseNet, DHCP_RATE, DNS_RATE, DROP, Doc, Expression, MetaKey, eq, field, from, meta, refused,
    text, with_ports,
};
use crate::network::nft::Base;

const TO_SERVERS: Expression<'static> = Expression::Number(67);
const TO_NAMES: Expression<'static> = Expression::Number(53);

/// A guest without an address may ask for it, in its own name, which was looked at before, and with its own port; none
/// may ask too often.
pub(super) fn asks_for_address(doc: &mut Doc<'_>, chain: &'static str) {
    let [count, drop] = refused();
    let ip = || eq(field("ether", "type"), text("ip"));
    let to_servers =
        || vec![ip(), eq(field("ip", "protocol"), text("udp")), eq(field("udp", "dport"), TO_SERVERS)];
    let too_often = eq(meta(MetaKey::Iifname), text(&format!("@{DHCP_RATE}")));
    doc.add_rule(chain, [to_servers(), vec![too_often, count, drop]].concat());
    let everybody = [
        eq(field("ether", "daddr"), text("ff:ff:ff:ff:ff:ff")),
        eq(field("ip", "saddr"), text("0.0.0.0")),
        eq(field("ip", "daddr"), text("255.255.255.255")),
        eq(field("udp", "sport"), Expression::Number(68)),
        ACCEPT,
    ];
    doc.add_rule(chain, [to_servers(), everybody.to_vec()].concat());
}

/// Before the kernel's own way to let rules for IP see what passes a bridge, which has 0 and leaves out who has that too.
const BEFORE_IP: i32 = -200;

/// What a guest asks of servers of addresses, no other guest hears.
pub(super) fn between_guests(doc: &mut Doc<'_>, base: &Base) {
    const CHAIN: &str = "between";
    doc.add_chain(CHAIN, Some((CHAIN, NfChainType::Filter, NfHook::Forward, BEFORE_IP)));
    let ours = eq(meta(MetaKey::Oifgroup), Expression::Number(base.group));
    let udp = eq(field("ip", "protocol"), text("udp"));
    let to_servers = eq(field("udp", "dport"), TO_SERVERS);
    doc.add_rule(CHAIN, vec![ours, eq(field("ether", "type"), text("ip")), udp, to_servers, DROP]);
}

/// The host hears its guests' questions, and of one that asks too often not all of them.
pub(super) fn input(doc: &mut Doc<'_>, network: &BaseNet) {
    let bridge = network.bridge.as_str();
    let [count, drop] = refused();
    if network.dhcp {
        // They are heard at the bridge itself: here is nobody who listens.
        let to_servers = eq(field("udp", "dport"), TO_SERVERS);
        doc.add_rule("input", vec![from(bridge), to_servers, DROP]);
    }
    if network.dns {
        let here = eq(field("ip", "daddr"), text(&gateway(network.subnet).to_string()));
        let for_names = || vec![from(bridge), here.clone(), with_ports(), eq(field("th", "dport"), TO_NAMES)];
        let too_often = eq(field("ip", "saddr"), text(&format!("@{DNS_RATE}")));
        // Before all that is under way: a flood is that too.
        doc.add_rule("input", [for_names(), vec![too_often, count, drop]].concat());
        doc.add_rule("input", [for_names(), vec![ACCEPT]].concat());
    }
}
