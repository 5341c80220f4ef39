//! The documents that `nft` is given: pure.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use nftables::batch::Batch;
use nftables::expr::{
    self, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix, SetItem,
};
use nftables::schema::{
    Chain, FlushObject, Map, NfCmd, NfListObject, Nftables, Rule, Set, SetFlag, SetType, SetTypeValue, Table,
};
use nftables::stmt::{Counter, JumpTarget, Match, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::elements::alter;
use super::{Base, BaseNet, Member, ipv6};

mod served;

/// TAPs of guests.
pub(super) const SET_IF: &str = "vm_if";
/// TAP and MAC.
pub(super) const SET_MAC: &str = "vm_mac";
/// TAP, MAC and address.
pub(super) const SET_SRC: &str = "vm_src";
/// Address of the host, protocol, port and source, and the guest that they lead to.
pub(in super::super) const FORWARD_TO: &str = "forward_to";
/// The same, and the guest's port. JSON has no words for a map to both.
pub(in super::super) const FORWARD_PORT: &str = "forward_port";
/// Address and port of a guest, and source, between which a forward leads now: what goes on under one that is gone is cut.
pub(in super::super) const FORWARD_OPEN: &str = "forward_open";

/// Addresses of guests that reach nothing but what is allowed.
pub(in super::super) const EGRESS_CLOSED: &str = "egress_closed";
/// Address of a guest, and where it may go though it is closed.
pub(in super::super) const EGRESS_ALLOW: &str = "egress_allow";
/// The same with protocol and ports.
pub(in super::super) const EGRESS_ALLOW_PORT: &str = "egress_allow_port";
/// Address of a guest, and where it may not go.
pub(in super::super) const EGRESS_DENY: &str = "egress_deny";
/// The same with protocol and ports.
pub(in super::super) const EGRESS_DENY_PORT: &str = "egress_deny_port";

/// TAP of a guest, and how fast it may send: what is faster is what matches.
pub(in super::super) const LIMIT_SEND: &str = "limit_send";
/// The same of what it receives.
pub(in super::super) const LIMIT_RECEIVE: &str = "limit_receive";
/// TAP of a guest that has such a limit; counts what was beyond.
pub(in super::super) const OVER_SEND: &str = "over_send";
/// The same of what it receives.
pub(in super::super) const OVER_RECEIVE: &str = "over_receive";
/// TAP of a guest; counts what it sent in a name that is not its own, or in no way that guests may.
pub(in super::super) const REFUSED: &str = "refused";
/// Address of a guest; counts what it sent to where it may not.
pub(in super::super) const EGRESS_REFUSED: &str = "egress_refused";

/// TAP of a guest; matches while it asks too often for its address.
pub(in super::super) const DHCP_RATE: &str = "dhcp_rate";
/// Address of a guest; matches while it asks too often for names.
pub(in super::super) const DNS_RATE: &str = "dns_rate";

/// Sets whose elements begin with a TAP.
pub(super) const OF_TAPS: [&str; 13] = [
    SET_IF,
    SET_MAC,
    SET_SRC,
    LIMIT_SEND,
    LIMIT_RECEIVE,
    OVER_SEND,
    OVER_RECEIVE,
    REFUSED,
    DHCP_RATE,
    ipv6::SET_IF,
    ipv6::SET_SRC,
    ipv6::SET_TARGET,
    ipv6::SET_LINK,
];

/// Destination, protocol, port and source.
const fn forward_types(address: SetType) -> [SetType; 4] {
    [address, SetType::InetProto, SetType::InetService, address]
}

/// Source, destination, protocol and port.
const EGRESS_KEY: [SetType; 4] =
    [SetType::Ipv4Addr, SetType::Ipv4Addr, SetType::InetProto, SetType::InetService];

pub(super) type Expr = Expression<'static>;
pub(super) type Stmt = Statement<'static>;

pub(super) fn text(text: &str) -> Expr {
    Expression::String(Cow::Owned(text.to_owned()))
}

pub(super) fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn field(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn ct(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

pub(super) fn concat(parts: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Concat(parts))
}

pub(super) fn any_of(items: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

pub(super) fn prefix(net: impl Into<IpNet>) -> Expr {
    let net = net.into();
    let addr = Box::new(text(&net.network().to_string()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: u32::from(net.prefix_len()) }))
}

pub(super) fn when(left: Expr, op: Operator, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

pub(super) fn eq(left: Expr, right: Expr) -> Stmt {
    when(left, Operator::EQ, right)
}

pub(super) fn from(bridge: &str) -> Stmt {
    eq(meta(MetaKey::Iifname), text(bridge))
}

fn to(bridge: &str) -> Stmt {
    eq(meta(MetaKey::Oifname), text(bridge))
}

fn established() -> Stmt {
    when(ct("state"), Operator::IN, Expression::List(vec![text("established"), text("related")]))
}

/// The host's own.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

pub(super) const ACCEPT: Stmt = Statement::Accept(None);
pub(super) const DROP: Stmt = Statement::Drop(None);

fn counted_drop() -> [Stmt; 2] {
    [Statement::Counter(Counter::Anonymous(None)), DROP]
}

/// Drops, and counts for the guest whose it is: by a chain of [`counting`].
pub(super) fn refused() -> [Stmt; 2] {
    let jump = Statement::Jump(JumpTarget { target: COUNT_REFUSED.into() });
    [Statement::Counter(Counter::Anonymous(None)), jump]
}

/// Chains that drop, and count.
const COUNT_REFUSED: &str = "count_refused";
const COUNT_OVER_SEND: &str = "count_over_send";
const COUNT_OVER_RECEIVE: &str = "count_over_receive";

/// A base chain: its name, type, hook and priority.
type BaseChain = (&'static str, NfChainType, NfHook, i32);

/// A document under construction for one table.
pub(super) struct Doc<'a> {
    batch: Batch<'static>,
    family: NfFamily,
    table: &'a str,
}

impl Doc<'_> {
    fn name(&self) -> Cow<'static, str> {
        Cow::Owned(self.table.to_owned())
    }

    fn add_table(&mut self) {
        let table = Table { family: self.family, name: self.name(), handle: None };
        self.batch.add(NfListObject::Table(table));
    }

    fn chain(&self, name: &'static str) -> Chain<'static> {
        Chain { family: self.family, table: self.name(), name: name.into(), ..Chain::default() }
    }

    /// Adds a chain, or empties the one that is there.
    pub(super) fn add_chain(&mut self, name: &'static str, base: Option<BaseChain>) {
        let mut chain = self.chain(name);
        if let Some((_, kind, hook, prio)) = base {
            chain._type = Some(kind);
            chain.hook = Some(hook);
            chain.prio = Some(prio);
            chain.policy = Some(NfChainPolicy::Accept);
        }
        self.batch.add(NfListObject::Chain(chain));
        self.batch.add_cmd(NfCmd::Flush(FlushObject::Chain(self.chain(name))));
    }

    pub(super) fn add_rule(&mut self, chain: &'static str, statements: Vec<Stmt>) {
        let rule = Rule {
            family: self.family,
            table: self.name(),
            chain: chain.into(),
            expr: Cow::Owned(statements),
            ..Rule::default()
        };
        self.batch.add(NfListObject::Rule(rule));
    }

    pub(super) fn add_set(&mut self, name: &'static str, types: &[SetType], flag: Option<SetFlag>) {
        let set_type = match types {
            [single] => SetTypeValue::Single(*single),
            many => SetTypeValue::Concatenated(Cow::Owned(many.to_vec())),
        };
        let flags = flag.map(|flag| HashSet::from([flag]));
        let (family, table, name) = (self.family, self.name(), name.into());
        let set = Set { family, table, name, set_type, flags, ..Set::default() };
        self.batch.add(NfListObject::Set(Box::new(set)));
    }

    /// Adds what leads from ports of the host to guests, by addresses of one kind.
    fn add_forwards(&mut self, address: SetType, of: fn(&'static str) -> &'static str) {
        self.add_forward_map(of(FORWARD_TO), address, address);
        self.add_forward_map(of(FORWARD_PORT), address, SetType::InetService);
        self.add_set(of(FORWARD_OPEN), &forward_types(address), Some(SetFlag::Interval));
    }

    fn add_forward_map(&mut self, name: &'static str, address: SetType, to: SetType) {
        let map = Map {
            family: self.family,
            table: self.name(),
            name: name.into(),
            set_type: SetTypeValue::Concatenated(Cow::Owned(forward_types(address).to_vec())),
            map: SetTypeValue::Single(to),
            flags: Some(HashSet::from([SetFlag::Interval])),
            ..Map::default()
        };
        self.batch.add(NfListObject::Map(Box::new(map)));
    }
}

/// One transaction that lays the static part anew, and makes `add` present and `remove` absent; other elements stay.
pub(super) fn lay(table: &str, base: &Base, add: &[Member], remove: &[Member]) -> Nftables<'static> {
    let mut doc = Doc { batch: Batch::new(), family: NfFamily::Bridge, table };
    doc.add_table();
    doc.add_set(SET_IF, &[SetType::Ifname], None);
    doc.add_set(SET_MAC, &[SetType::Ifname, SetType::EtherAddr], None);
    doc.add_set(SET_SRC, &[SetType::Ifname, SetType::EtherAddr, SetType::Ipv4Addr], None);
    for name in [REFUSED, OVER_SEND, OVER_RECEIVE, LIMIT_SEND, LIMIT_RECEIVE, DHCP_RATE] {
        doc.add_set(name, &[SetType::Ifname], None);
    }
    counting(&mut doc, COUNT_REFUSED, &[(meta(MetaKey::Iifname), REFUSED)]);
    counting(&mut doc, COUNT_OVER_SEND, &[(meta(MetaKey::Iifname), OVER_SEND)]);
    counting(&mut doc, COUNT_OVER_RECEIVE, &[(meta(MetaKey::Oifname), OVER_RECEIVE)]);
    doc.add_chain("from_vm", None);
    doc.add_chain("pre", Some(("pre", NfChainType::Filter, NfHook::Prerouting, -300)));
    limited(&mut doc, "pre", MetaKey::Iifname, LIMIT_SEND, COUNT_OVER_SEND);
    doc.add_chain("post", Some(("post", NfChainType::Filter, NfHook::Postrouting, 0)));
    limited(&mut doc, "post", MetaKey::Oifname, LIMIT_RECEIVE, COUNT_OVER_RECEIVE);
    let jump = Statement::Jump(JumpTarget { target: "from_vm".into() });
    doc.add_rule("pre", vec![eq(meta(MetaKey::Iifname), text(&format!("@{SET_IF}"))), jump]);
    // Closed until its elements are there: what is missing never lets a guest speak freely.
    let ours = eq(meta(MetaKey::Iifgroup), Expression::Number(base.group));
    let [count, drop] = refused();
    doc.add_rule("pre", vec![ours, count, drop]);
    anti_spoof(&mut doc, base);
    served::between_guests(&mut doc, base);

    doc.family = NfFamily::INet;
    doc.add_table();
    doc.add_forwards(SetType::Ipv4Addr, |set| set);
    if base.has_ipv6() {
        doc.add_forwards(SetType::Ipv6Addr, ipv6::forward_set6);
    }
    doc.add_set(EGRESS_CLOSED, &[SetType::Ipv4Addr], None);
    for name in [EGRESS_ALLOW, EGRESS_DENY] {
        doc.add_set(name, &[SetType::Ipv4Addr; 2], Some(SetFlag::Interval));
    }
    for name in [EGRESS_ALLOW_PORT, EGRESS_DENY_PORT] {
        doc.add_set(name, &EGRESS_KEY, Some(SetFlag::Interval));
    }
    for name in [EGRESS_REFUSED, DNS_RATE] {
        doc.add_set(name, &[SetType::Ipv4Addr], None);
    }
    let counted = (field("ip", "saddr"), EGRESS_REFUSED);
    if base.has_ipv6() {
        ipv6::egress_sets(&mut doc);
        let six = (field("ip6", "saddr"), ipv6::EGRESS_REFUSED6);
        counting(&mut doc, COUNT_REFUSED, &[counted, six]);
    } else {
        counting(&mut doc, COUNT_REFUSED, &[counted]);
    }
    doc.add_chain(EGRESS, None);
    doc.add_rule(EGRESS, vec![eq(ct("direction"), text("reply")), Statement::Return(None)]);
    egress(&mut doc, "ip", |set| set);
    if base.has_ipv6() {
        egress(&mut doc, "ip6", ipv6::egress_set);
    }
    forwarded(&mut doc, base);
    doc.add_chain("postrouting", Some(("postrouting", NfChainType::NAT, NfHook::Postrouting, 100)));
    doc.add_chain("forward", Some(("forward", NfChainType::Filter, NfHook::Forward, 0)));
    doc.add_chain("input", Some(("input", NfChainType::Filter, NfHook::Input, 0)));
    doc.add_chain("led", Some(("led", NfChainType::Filter, NfHook::Postrouting, 0)));
    inner(&mut doc, base.inner);
    for network in &base.networks {
        routed(&mut doc, network);
    }
    alter(&mut doc.batch, table, add, remove);
    doc.batch.to_nftables()
}

/// A chain that drops: with the guest's own count, by a key in its set, where there is one.
fn counting(doc: &mut Doc<'_>, chain: &'static str, counts: &[(Expr, &str)]) {
    doc.add_chain(chain, None);
    for (key, set) in counts {
        doc.add_rule(chain, vec![eq(key.clone(), text(&format!("@{set}"))), DROP]);
    }
    let [count, drop] = counted_drop();
    doc.add_rule(chain, vec![count, drop]);
}

/// What is beyond a limit goes to the chain that drops it.
fn limited(doc: &mut Doc<'_>, chain: &'static str, tap: MetaKey, limits: &str, beyond: &'static str) {
    let jump = Statement::Jump(JumpTarget { target: beyond.into() });
    doc.add_rule(chain, vec![eq(meta(tap), text(&format!("@{limits}"))), jump]);
}

/// A guest speaks with its own MAC and address only, and IPv4 only where its network has nothing else.
fn anti_spoof(doc: &mut Doc<'_>, base: &Base) {
    const CHAIN: &str = "from_vm";
    let iifname = || meta(MetaKey::Iifname);
    let set = |name: &str| text(&format!("@{name}"));
    let ether_type = |name: &str| eq(field("ether", "type"), text(name));
    let [count, drop] = refused();
    let mac = concat(vec![iifname(), field("ether", "saddr")]);
    doc.add_rule(CHAIN, vec![when(mac, Operator::NEQ, set(SET_MAC)), count.clone(), drop.clone()]);
    let sender = concat(vec![iifname(), field("arp", "saddr ether"), field("arp", "saddr ip")]);
    let operation = eq(field("arp", "operation"), any_of(vec![text("request"), text("reply")]));
    doc.add_rule(CHAIN, vec![ether_type("arp"), operation, eq(sender, set(SET_SRC)), ACCEPT]);
    // Addresses are the host's to give.
    let udp = eq(field("ip", "protocol"), text("udp"));
    let server = eq(field("udp", "sport"), Expression::Number(67));
    doc.add_rule(CHAIN, vec![ether_type("ip"), udp, server, count.clone(), drop.clone()]);
    served::asks_for_address(doc, CHAIN);
    let source = concat(vec![iifname(), field("ether", "saddr"), field("ip", "saddr")]);
    doc.add_rule(CHAIN, vec![ether_type("ip"), eq(source, set(SET_SRC)), ACCEPT]);
    if base.has_ipv6() {
        ipv6::bridge(doc, CHAIN, &base.networks);
    }
    doc.add_rule(CHAIN, vec![count, drop]);
}

/// What a rule of forwards looks up.
fn forward_key(ip: &'static str) -> Expr {
    let protocol = meta(MetaKey::L4proto);
    concat(vec![field(ip, "daddr"), protocol, field("th", "dport"), field(ip, "saddr")])
}

/// A kind of addresses: its name, what NAT calls it, and its sets.
type Kind = (&'static str, NATFamily, fn(&'static str) -> &'static str);

/// The kinds of addresses that forwards are of.
fn kinds(has_ipv6: bool) -> impl Iterator<Item = Kind> {
    let four: Kind = ("ip", NATFamily::IP, |set| set);
    let six: Kind = ("ip6", NATFamily::IP6, ipv6::forward_set6);
    [Some(four), has_ipv6.then_some(six)].into_iter().flatten()
}

pub(super) fn with_ports() -> Stmt {
    eq(meta(MetaKey::L4proto), any_of(vec![text("tcp"), text("udp")]))
}

/// Drops what came by a forward that is gone, from outside or the host itself: the kernel remembers where a connection
/// led when it began. Before its source may be changed.
fn cut(doc: &mut Doc<'_>, network: &BaseNet) {
    for (ip, _, of) in kinds(network.ipv6.is_some()) {
        let led = when(ct("status"), Operator::IN, text("dnat"));
        let there = eq(ct("direction"), text("original"));
        let gone = when(forward_key(ip), Operator::NEQ, text(&format!("@{}", of(FORWARD_OPEN))));
        let [count, drop] = counted_drop();
        doc.add_rule("led", vec![to(&network.bridge), led, there, with_ports(), gone, count, drop]);
    }
}

/// Ports of the host lead to guests, for those outside and the host itself; not for guests.
fn forwarded(doc: &mut Doc<'_>, base: &Base) {
    let lookup = |ip, map: &str| {
        let map = expr::Map { key: forward_key(ip), data: text(&format!("@{map}")) };
        Some(Expression::Named(NamedExpression::Map(Box::new(map))))
    };
    let dnat = |(ip, family, of): Kind| {
        let (addr, port) = (lookup(ip, of(FORWARD_TO)), lookup(ip, of(FORWARD_PORT)));
        Statement::DNAT(Some(NAT { addr, family: Some(family), port, flags: None }))
    };
    let local = || {
        let fib = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) };
        eq(Expression::Named(NamedExpression::Fib(fib)), text("local"))
    };
    doc.add_chain("prerouting", Some(("prerouting", NfChainType::NAT, NfHook::Prerouting, -100)));
    doc.add_chain("output", Some(("output", NfChainType::NAT, NfHook::Output, -100)));
    for network in &base.networks {
        doc.add_rule("prerouting", vec![from(&network.bridge), ACCEPT]);
    }
    let inner = eq(meta(MetaKey::Iifgroup), Expression::Number(base.inner));
    doc.add_rule("prerouting", vec![inner, ACCEPT]);
    for chain in ["prerouting", "output"] {
        for kind in kinds(base.has_ipv6()) {
            let mut rule = vec![with_ports(), local(), dnat(kind)];
            if kind.0 == "ip6" {
                // From the loopback of IPv6 no kernel leads elsewhere: a refusal at once is better than silence.
                rule.insert(0, when(field("ip6", "daddr"), Operator::NEQ, text("::1")));
            }
            doc.add_rule(chain, rule);
        }
    }
}

/// Where a guest may go.
const EGRESS: &str = "egress";

/// A guest goes where its spec lets it, by a protocol and its sets. Each packet is looked at, so what a change refuses ends
/// at once. What passes here is not accepted yet: networks keep their guests apart all the same.
fn egress(doc: &mut Doc<'_>, ip: &'static str, of: fn(&'static str) -> &'static str) {
    const RETURN: Stmt = Statement::Return(None);
    let there = || vec![field(ip, "saddr"), field(ip, "daddr")];
    let ports = || vec![meta(MetaKey::L4proto), field("th", "dport")];
    let within = |key: Vec<Expr>, set| eq(concat(key), text(&format!("@{}", of(set))));
    let [count, drop] = refused();
    doc.add_rule(EGRESS, vec![within(there(), EGRESS_DENY), count.clone(), drop.clone()]);
    let denied = within([there(), ports()].concat(), EGRESS_DENY_PORT);
    doc.add_rule(EGRESS, vec![with_ports(), denied, count.clone(), drop.clone()]);
    doc.add_rule(EGRESS, vec![within(there(), EGRESS_ALLOW), RETURN]);
    let allowed = within([there(), ports()].concat(), EGRESS_ALLOW_PORT);
    doc.add_rule(EGRESS, vec![with_ports(), allowed, RETURN]);
    let closed = eq(field(ip, "saddr"), text(&format!("@{}", of(EGRESS_CLOSED))));
    doc.add_rule(EGRESS, vec![closed, count, drop]);
}

/// The host is nobody at bridges behind the first of a network. Where the kernel lets rules for IP see what passes a bridge
/// (`br_netfilter`), they see it again at the first, which is where it is looked at, and where a connection begins: one that
/// had begun before would keep its address.
fn inner(doc: &mut Doc<'_>, group: u32) {
    let group = || Expression::Number(group);
    let (from, to) = (eq(meta(MetaKey::Iifgroup), group()), eq(meta(MetaKey::Oifgroup), group()));
    let [count, drop] = counted_drop();
    doc.add_chain("inner", Some(("inner", NfChainType::Filter, NfHook::Prerouting, -300)));
    doc.add_rule("inner", vec![from.clone(), Statement::Notrack]);
    doc.add_rule("postrouting", vec![to.clone(), ACCEPT]);
    doc.add_rule("forward", vec![from.clone(), to, ACCEPT]);
    doc.add_rule("forward", vec![from.clone(), count.clone(), drop.clone()]);
    doc.add_rule("input", vec![from, count, drop]);
}

/// Guests go out masqueraded; nothing comes in but answers and forwarded ports; the host answers a ping.
fn routed(doc: &mut Doc<'_>, network: &BaseNet) {
    let bridge = network.bridge.as_str();
    let outside = when(meta(MetaKey::Oifname), Operator::NEQ, text(bridge));
    let ours = eq(field("ip", "saddr"), prefix(network.subnet));
    doc.add_rule("postrouting", vec![ours, outside.clone(), Statement::Masquerade(None)]);
    ipv6::masquerade(doc, network, outside);
    // The host's own way to a forwarded port of 127.0.0.1: a guest could not answer there.
    let loopback = eq(field("ip", "saddr"), prefix(LOOPBACK));
    doc.add_rule("postrouting", vec![loopback, to(bridge), Statement::Masquerade(None)]);

    let [count, drop] = refused();
    if network.isolate {
        doc.add_rule("forward", vec![from(bridge), to(bridge), count.clone(), drop.clone()]);
    } else {
        doc.add_rule("forward", vec![from(bridge), to(bridge), ACCEPT]);
    }
    // What a network without IPv6 does not have is not refused either.
    for net in network.egress_deny.iter().filter(|net| net.addr().is_ipv4() || network.ipv6.is_some()) {
        let ip = if net.addr().is_ipv4() { "ip" } else { "ip6" };
        let there = eq(field(ip, "daddr"), prefix(*net));
        doc.add_rule("forward", vec![from(bridge), there, count.clone(), drop.clone()]);
    }
    let jump = Statement::Jump(JumpTarget { target: EGRESS.into() });
    doc.add_rule("forward", vec![from(bridge), jump]);
    cut(doc, network);
    doc.add_rule("forward", vec![to(bridge), established(), ACCEPT]);
    doc.add_rule("forward", vec![to(bridge), when(ct("status"), Operator::IN, text("dnat")), ACCEPT]);
    let [counted, dropped] = counted_drop();
    doc.add_rule("forward", vec![to(bridge), counted, dropped]);

    served::input(doc, network);
    doc.add_rule("input", vec![from(bridge), established(), ACCEPT]);
    let host_only = eq(field("ip", "daddr"), prefix(LOOPBACK));
    doc.add_rule("input", vec![from(bridge), host_only, count.clone(), drop.clone()]);
    let ping = eq(field("icmp", "type"), text("echo-request"));
    doc.add_rule("input", vec![from(bridge), ping, ACCEPT]);
    ipv6::input(doc, network);
    doc.add_rule("input", vec![from(bridge), count, drop]);
}

/// One transaction that removes both tables, there or not.
pub(super) fn teardown(table: &str) -> Nftables<'static> {
    let mut batch = Batch::new();
    for family in [NfFamily::Bridge, NfFamily::INet] {
        let table = Table { family, name: Cow::Owned(table.to_owned()), handle: None };
        // Added first: deleting what is not there would fail the transaction.
        batch.add(NfListObject::Table(table.clone()));
        batch.delete(NfListObject::Table(table));
    }
    batch.to_nftables()
}
