//! What a guest may reach: what a spec asks for, checked, and its elements in the firewall. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use drover_schemas::body::spec::{EgressDefault, EgressRule, EgressSpec, NicSpec, Protocol};
use drover_schemas::body::vm::EgressRequest;
use drover_schemas::{ErrorBody, ErrorCode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::forward::{ALL, ALL6, of_index, prefix};
use super::ipv6;
use super::lease::NicLease;
use super::nft::{
    DNS_RATE, EGRESS_ALLOW, EGRESS_ALLOW_PORT, EGRESS_CLOSED, EGRESS_DENY, EGRESS_DENY_PORT, EGRESS_REFUSED,
    Member, egress_set,
};
use crate::spec::invalid;

/// The most rules of one interface.
pub const MAX_RULES: usize = 64;
/// The most ports, or ranges of them, of one rule.
pub const MAX_PORTS: usize = 16;

/// Addresses that are not of the public internet: of private networks, of carriers, of the link, of the host itself.
const PRIVATE: [Ipv4Net; 6] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// Where clouds answer what only the machine itself should know.
pub(super) const METADATA: [Ipv4Net; 1] = [Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)];

/// What an interface may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// Nothing but what is allowed.
    closed: bool,
    allow: Vec<Reach>,
    deny: Vec<Reach>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reach {
    nets: Vec<IpNet>,
    /// With their ports, first and last; all that there is of IP if empty.
    ports: Vec<(Protocol, u16, u16)>,
}

impl Egress {
    /// Nothing is reached.
    #[must_use]
    pub const fn closed() -> Self {
        Self { closed: true, allow: Vec::new(), deny: Vec::new() }
    }

    /// Reads what a spec says; `field` is where it stands.
    ///
    /// # Errors
    /// `invalid_argument` with the field.
    pub fn read(field: &str, spec: &EgressSpec) -> Result<Self, ErrorBody> {
        let count = spec.allow.len() + spec.deny.len();
        if count > MAX_RULES {
            return Err(invalid(field, format!("{count} rules; at most {MAX_RULES}")));
        }
        let closed = spec.default == EgressDefault::Deny;
        if !closed && !spec.allow.is_empty() {
            let text = "everything is allowed by default; set `default: deny`, or leave these out";
            return Err(invalid(&format!("{field}.allow"), text.to_owned()));
        }
        let rules = |list: &str, rules: &[EgressRule]| {
            let numbered = rules.iter().enumerate();
            numbered.map(|(i, rule)| reach(&format!("{field}.{list}[{i}]"), rule)).collect::<Result<_, _>>()
        };
        Ok(Self { closed, allow: rules("allow", &spec.allow)?, deny: rules("deny", &spec.deny)? })
    }

    /// Whether it lets something through, as the firewall does.
    #[must_use]
    pub fn permits(&self, to: IpAddr, protocol: Protocol, port: u16) -> bool {
        let meets = |reach: &Reach| {
            let of_port = |(of, first, last): &(Protocol, u16, u16)| {
                *of == protocol && (*first..=*last).contains(&port)
            };
            let ports = reach.ports.is_empty() || reach.ports.iter().any(of_port);
            ports && reach.nets.iter().any(|net| net.contains(&to))
        };
        !self.deny.iter().any(meets) && (!self.closed || self.allow.iter().any(meets))
    }

    /// Its elements, of a guest's address: those that are about addresses of this kind.
    #[must_use]
    pub fn elements(&self, guest: IpAddr) -> Vec<Member> {
        let text = guest.to_string();
        let member = |set: &str, rest: Vec<String>| {
            let parts = std::iter::once(text.clone()).chain(rest).collect();
            Member { set: of_kind(guest, set), parts, value: None }
        };
        let mut elements = Vec::new();
        if self.closed {
            elements.push(member(EGRESS_CLOSED, Vec::new()));
        }
        let lists =
            [(&self.deny, EGRESS_DENY, EGRESS_DENY_PORT), (&self.allow, EGRESS_ALLOW, EGRESS_ALLOW_PORT)];
        for (rules, whole, of_ports) in lists {
            let (all, some): (Vec<Reach>, Vec<Reach>) =
                rules.iter().map(|reach| reach.of_kind(guest)).partition(|reach| reach.ports.is_empty());
            let nets: Vec<IpNet> = all.into_iter().flat_map(|reach| reach.nets).collect();
            let nets = IpNet::aggregate(&nets);
            elements.extend(nets.into_iter().map(|net| member(whole, vec![prefix(net)])));
            for (protocol, first, last, net) in apart(&some) {
                let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
                elements.push(member(of_ports, vec![prefix(net), protocol.as_str().to_owned(), ports]));
            }
        }
        elements
    }
}

/// The set for a guest's kind of address.
fn of_kind(guest: IpAddr, set: &str) -> String {
    if guest.is_ipv6() { egress_set(set).to_owned() } else { set.to_owned() }
}

impl Reach {
    /// What of it is of the kind of an address.
    fn of_kind(&self, guest: IpAddr) -> Self {
        let same = |net: &&IpNet| net.addr().is_ipv4() == guest.is_ipv4();
        Self { nets: self.nets.iter().filter(same).copied().collect(), ports: self.ports.clone() }
    }
}

/// The same rules without any that meet: the firewall takes no element twice, and none within another.
fn apart(rules: &[Reach]) -> Vec<(Protocol, u16, u16, IpNet)> {
    let mut found = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let ranges = || {
            let of_rule = |reach: &Reach| {
                let nets = reach.nets.clone();
                reach.ports.clone().into_iter().map(move |(of, first, last)| (of, first, last, nets.clone()))
            };
            rules.iter().flat_map(of_rule).filter(move |(of, ..)| *of == protocol)
        };
        // Where the rules for a port may be others than for the port before.
        let edges: BTreeSet<u32> =
            ranges().flat_map(|(_, first, last, _)| [u32::from(first), u32::from(last) + 1]).collect();
        let mut parts: Vec<(u16, u16, Vec<IpNet>)> = Vec::new();
        for (start, end) in edges.iter().zip(edges.iter().skip(1)) {
            let (Ok(first), Ok(last)) = (u16::try_from(*start), u16::try_from(end - 1)) else { continue };
            let within = ranges().filter(|(_, from, to, _)| *from <= first && last <= *to);
            let nets: Vec<IpNet> = within.flat_map(|(.., nets)| nets).collect();
            let nets = IpNet::aggregate(&nets);
            match parts.last_mut() {
                Some((_, before, same)) if *before + 1 == first && *same == nets => *before = last,
                _ => parts.push((first, last, nets)),
            }
        }
        for (first, last, nets) in parts {
            found.extend(nets.into_iter().map(|net| (protocol, first, last, net)));
        }
    }
    found
}

/// Reads what the interfaces of a VM may reach; `None` for one that says nothing.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn read_all(nics: &[NicSpec]) -> Result<Vec<Option<Egress>>, ErrorBody> {
    let read = |(i, nic): (usize, &NicSpec)| {
        let field = format!("spec.nics[{i}].egress");
        nic.egress.as_ref().map(|spec| Egress::read(&field, spec)).transpose()
    };
    nics.iter().enumerate().map(read).collect()
}

/// The same for a spec that was looked at before: one that cannot be read after all reaches nothing.
#[must_use]
pub fn of_stored(nics: &[NicSpec]) -> Vec<Option<Egress>> {
    let read = |nic: &NicSpec| {
        nic.egress.as_ref().map(|spec| Egress::read("egress", spec).unwrap_or_else(|_| Egress::closed()))
    };
    nics.iter().map(read).collect()
}

/// The interfaces of a VM with other rules of egress: those that go, then those that come. What is so already stays.
///
/// # Errors
/// `invalid_argument` for an interface that is not there or rules that are none, `not_found` for one that is to go and is
/// not there.
pub fn changed(nics: &[NicSpec], request: &EgressRequest) -> Result<Vec<NicSpec>, ErrorBody> {
    let mut nics = nics.to_vec();
    let nic = of_index(&mut nics, request.nic)?;
    let mut egress = nic.egress.take().filter(|_| !request.replace).unwrap_or_default();
    let EgressRequest { remove, add, default, .. } = request;
    without("allow", &mut egress.allow, &remove.allow)?;
    without("deny", &mut egress.deny, &remove.deny)?;
    for (list, has, rules) in
        [("allow", &mut egress.allow, &add.allow), ("deny", &mut egress.deny, &add.deny)]
    {
        for (i, rule) in rules.iter().enumerate() {
            reach(&format!("add.{list}[{i}]"), rule)?;
            if !has.contains(rule) {
                has.push(rule.clone());
            }
        }
    }
    egress.default = default.unwrap_or(egress.default);
    Egress::read("egress", &egress)?;
    // To say nothing is to let everything pass.
    nic.egress = Some(egress).filter(|egress| *egress != EgressSpec::default());
    Ok(nics)
}

fn without(list: &str, has: &mut Vec<EgressRule>, gone: &[EgressRule]) -> Result<(), ErrorBody> {
    for (i, rule) in gone.iter().enumerate() {
        let before = has.len();
        has.retain(|one| one != rule);
        if has.len() == before {
            let shown: String = rule.to.chars().take(60).collect();
            let text =
                format!("no rule of `{list}` says this of {shown:?}; name it as it stands in the spec");
            let error = ErrorBody::new(ErrorCode::NotFound, text);
            return Err(error.with("field", format!("remove.{list}[{i}]")));
        }
    }
    Ok(())
}

fn reach(field: &str, rule: &EgressRule) -> Result<Reach, ErrorBody> {
    let nets = match rule.to.as_str() {
        "all" => both(&[ALL], &[ALL6]),
        "private" => both(&PRIVATE, &ipv6::PRIVATE),
        "metadata" => both(&METADATA, &ipv6::METADATA),
        text => {
            let one = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
            let net = one.map_err(|_| {
                let shown: String = text.chars().take(60).collect();
                let text = format!(
                    "{shown:?} is not `all`, `private`, `metadata`, an IPv4 or IPv6 address, or a prefix such as \
                     192.0.2.0/24 or 2001:db8::/32"
                );
                invalid(&format!("{field}.to"), text)
            })?;
            vec![net.trunc()]
        }
    };
    if rule.ports.len() > MAX_PORTS {
        return Err(invalid(&format!("{field}.ports"), format!("at most {MAX_PORTS}")));
    }
    let mut ranges = rule.ports.iter().map(|text| range(field, text)).collect::<Result<Vec<_>, _>>()?;
    if ranges.is_empty() && rule.protocol.is_some() {
        ranges.push((0, u16::MAX));
    }
    let protocols = rule.protocol.map_or_else(|| vec![Protocol::Tcp, Protocol::Udp], |one| vec![one]);
    let of_protocol = |protocol: Protocol| ranges.iter().map(move |(first, last)| (protocol, *first, *last));
    Ok(Reach { nets, ports: protocols.into_iter().flat_map(of_protocol).collect() })
}

fn both(ipv4: &[Ipv4Net], ipv6: &[Ipv6Net]) -> Vec<IpNet> {
    let ipv4 = ipv4.iter().copied().map(IpNet::V4);
    ipv4.chain(ipv6.iter().copied().map(IpNet::V6)).collect()
}

fn range(field: &str, text: &str) -> Result<(u16, u16), ErrorBody> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => {
            let shown: String = text.chars().take(40).collect();
            let text = format!("{shown:?} is not a port or a range of ports such as 8000-8099");
            Err(invalid(&format!("{field}.ports"), text))
        }
    }
}

/// The interfaces in `nics` whose guests are kept from others by what they may reach need a network that keeps its
/// guests apart: on a bridge nothing passes the rules of egress.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn check_isolated(nics: &[NicSpec], isolated: impl Fn(&NicSpec) -> bool) -> Result<(), ErrorBody> {
    match nics.iter().enumerate().find(|(_, nic)| nic.egress.is_some() && !isolated(nic)) {
        None => Ok(()),
        Some((i, nic)) => {
            let text = format!(
                "network {:?} of this host lets its guests reach each other, whatever is said here; an operator sets \
                 `isolate: true` there",
                nic.network
            );
            Err(invalid(&format!("spec.nics[{i}].egress"), text))
        }
    }
}

/// The elements that count what is refused of a guest's packets, and how often it asks for names.
pub fn counted(guest: IpAddr) -> impl Iterator<Item = Member> {
    let element =
        move |set: &str| Member { set: of_kind(guest, set), parts: vec![guest.to_string()], value: None };
    // Names are asked for by IPv4.
    let names = guest.is_ipv4().then_some(DNS_RATE);
    std::iter::once(EGRESS_REFUSED).chain(names).map(element)
}

/// The elements of interfaces with their addresses.
pub fn members<'a>(nics: &'a [NicLease], egress: &'a [Option<Egress>]) -> impl Iterator<Item = Member> + 'a {
    let known = nics.iter().zip(egress).filter_map(|(nic, egress)| Some((nic, egress.as_ref()?)));
    known.flat_map(|(nic, egress)| nic.addresses().flat_map(|guest| egress.elements(guest)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 5));

    fn spec(json: serde_json::Value) -> EgressSpec {
        serde_json::from_value(json).unwrap()
    }

    fn elements(json: serde_json::Value) -> Vec<String> {
        let egress = Egress::read("e", &spec(json)).unwrap();
        let text = |member: Member| format!("{} {}", member.set, member.parts[1..].join(" "));
        egress.elements(GUEST).into_iter().map(text).collect()
    }

    #[test]
    fn what_is_asked_for_becomes_elements_that_do_not_meet() {
        let found = elements(serde_json::json!({
            "default": "deny",
            "allow": [
                {"to": "192.0.2.0/24", "protocol": "tcp", "ports": ["443", "8000-8099"]},
                {"to": "192.0.2.128/25", "protocol": "tcp", "ports": ["8050-8060"]},
                {"to": "198.51.100.7", "ports": ["53"]},
                {"to": "203.0.113.0/25"}, {"to": "203.0.113.128/25"},
            ],
            "deny": [{"to": "metadata"}, {"to": "all", "protocol": "udp"}],
        }));
        assert_eq!(
            found,
            [
                "egress_closed ",
                "egress_deny 169.254.0.0/16",
                "egress_deny_port 0.0.0.0/0 udp 0-65535",
                "egress_allow 203.0.113.0/24",
                "egress_allow_port 198.51.100.7 tcp 53",
                "egress_allow_port 192.0.2.0/24 tcp 443",
                "egress_allow_port 192.0.2.0/24 tcp 8000-8099",
                "egress_allow_port 198.51.100.7 udp 53",
            ]
        );
        assert_eq!(elements(serde_json::json!({"deny": [{"to": "private"}]})).len(), 6);
        assert!(elements(serde_json::json!({})).is_empty());
    }

    #[test]
    fn each_kind_of_address_has_its_own_elements() {
        let egress = Egress::read(
            "e",
            &spec(serde_json::json!({
                "default": "deny",
                "allow": [
                    {"to": "192.0.2.0/24"}, {"to": "2001:db8::/32", "protocol": "tcp", "ports": ["443"]},
                    {"to": "2001:db8:0::1", "protocol": "tcp", "ports": ["443-444"]},
                ],
                "deny": [{"to": "metadata"}, {"to": "all", "protocol": "udp"}],
            })),
        )
        .unwrap();
        let of = |guest: &str| {
            let text = |member: Member| format!("{} {}", member.set, member.parts.join(" "));
            egress.elements(guest.parse().unwrap()).into_iter().map(text).collect::<Vec<_>>()
        };
        let four = [
            "egress_closed 10.77.0.5",
            "egress_deny 10.77.0.5 169.254.0.0/16",
            "egress_deny_port 10.77.0.5 0.0.0.0/0 udp 0-65535",
            "egress_allow 10.77.0.5 192.0.2.0/24",
        ];
        assert_eq!(of("10.77.0.5"), four);
        let six = of("fd00::5");
        assert_eq!(
            (six[0].as_str(), six.len()),
            ("egress_closed6 fd00::5", 1 + ipv6::METADATA.len() + 1 + 2)
        );
        for element in [
            "egress_deny6 fd00::5 fe80::/10",
            "egress_deny6 fd00::5 fd00:ec2::254",
            "egress_deny_port6 fd00::5 ::/0 udp 0-65535",
            "egress_allow_port6 fd00::5 2001:db8::/32 tcp 443",
            "egress_allow_port6 fd00::5 2001:db8::1 tcp 444",
        ] {
            assert!(six.iter().any(|found| found == element), "{element}: {six:?}");
        }
        let counted: Vec<_> = counted("fd00::5".parse().unwrap()).map(|member| member.set).collect();
        assert_eq!(counted, ["egress_refused6"]);
    }

    #[test]
    fn what_passes_is_what_the_firewall_lets_through() {
        let permits = |json: serde_json::Value, to: &str, protocol, port| {
            Egress::read("e", &spec(json)).unwrap().permits(to.parse().unwrap(), protocol, port)
        };
        let (udp, tcp) = (Protocol::Udp, Protocol::Tcp);
        let open = || serde_json::json!({"deny": [{"to": "private"}, {"to": "192.0.2.1", "ports": ["53"]}]});
        assert!(permits(open(), "192.0.2.2", udp, 53) && permits(open(), "192.0.2.1", udp, 54));
        assert!(!permits(open(), "192.0.2.1", udp, 53) && !permits(open(), "10.1.2.3", tcp, 53));
        let closed = || {
            let allow = serde_json::json!([{"to": "192.0.2.0/24", "protocol": "udp", "ports": ["50-60"]}]);
            serde_json::json!({"default": "deny", "allow": allow})
        };
        assert!(permits(closed(), "192.0.2.9", udp, 53));
        assert!(!permits(closed(), "192.0.2.9", tcp, 53) && !permits(closed(), "192.0.3.9", udp, 53));
        assert!(!permits(closed(), "2600::1", udp, 53) && !permits(open(), "fd00::1", udp, 53));
        assert!(permits(open(), "2600::1", udp, 53));
        assert!(!Egress::closed().permits("192.0.2.9".parse().unwrap(), udp, 53));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_field() {
        for (json, field) in [
            (serde_json::json!({"deny": [{"to": "example.org"}]}), "e.deny[0].to"),
            (serde_json::json!({"deny": [{"to": "::1/129"}]}), "e.deny[0].to"),
            (serde_json::json!({"allow": [{"to": "all"}]}), "e.allow"),
            (
                serde_json::json!({"deny": [{"to": "all"}, {"to": "all", "ports": ["9-8"]}]}),
                "e.deny[1].ports",
            ),
            (serde_json::json!({"deny": [{"to": "all", "ports": ["0"]}]}), "e.deny[0].ports"),
            (serde_json::json!({"deny": [{"to": "all", "ports": vec!["1"; 17]}]}), "e.deny[0].ports"),
            (serde_json::json!({"deny": vec![serde_json::json!({"to": "all"}); 65]}), "e"),
        ] {
            assert_eq!(Egress::read("e", &spec(json)).unwrap_err().details["field"], field);
        }
        let mut nic: NicSpec = serde_json::from_str(r#"{"egress": {"deny": [{"to": "nowhere"}]}}"#).unwrap();
        assert_eq!(
            read_all(std::slice::from_ref(&nic)).unwrap_err().details["field"],
            "spec.nics[0].egress.deny[0].to"
        );
        assert_eq!(of_stored(std::slice::from_ref(&nic)), [Some(Egress::closed())]);
        check_isolated(std::slice::from_ref(&nic), |_| true).unwrap();
        check_isolated(std::slice::from_ref(&nic), |_| false).unwrap_err();
        nic.egress = None;
        check_isolated(&[nic], |_| false).unwrap();
    }

    #[test]
    fn what_is_asked_for_is_changed_whole_or_not_at_all() {
        let nic = |egress: serde_json::Value| -> NicSpec {
            serde_json::from_value(serde_json::json!({"egress": egress})).unwrap()
        };
        let free = || -> NicSpec { serde_json::from_str("{}").unwrap() };
        let (web, dns) = (serde_json::json!({"to": "192.0.2.2"}), serde_json::json!({"to": "192.0.2.3"}));
        let closed = serde_json::json!({"default": "deny", "allow": [web]});
        let has = [nic(closed.clone()), free()];
        let ask = |request: serde_json::Value| changed(&has, &serde_json::from_value(request).unwrap());
        for (request, becomes) in [
            (serde_json::json!({"add": {"allow": [web]}}), nic(closed.clone())),
            (serde_json::json!({"default": "deny"}), nic(closed)),
            (serde_json::json!({"replace": true}), free()),
            (serde_json::json!({"remove": {"allow": [web]}, "default": "allow"}), free()),
            (
                serde_json::json!({"replace": true, "default": "deny"}),
                nic(serde_json::json!({"default": "deny"})),
            ),
            (
                serde_json::json!({"remove": {"allow": [web]}, "add": {"allow": [dns], "deny": [web]}}),
                nic(serde_json::json!({"default": "deny", "allow": [dns], "deny": [web]})),
            ),
        ] {
            assert_eq!(ask(request.clone()).unwrap(), [becomes, free()], "{request}");
        }
        let other = ask(serde_json::json!({"nic": 1, "default": "deny"})).unwrap();
        assert_eq!(other, [has[0].clone(), nic(serde_json::json!({"default": "deny"}))]);
        for (request, code, field) in [
            (serde_json::json!({"nic": 2}), ErrorCode::InvalidArgument, "nic"),
            (serde_json::json!({"remove": {"deny": [web]}}), ErrorCode::NotFound, "remove.deny[0]"),
            (serde_json::json!({"remove": {"allow": [web, web]}}), ErrorCode::NotFound, "remove.allow[1]"),
            (
                serde_json::json!({"add": {"deny": [{"to": "nowhere"}]}}),
                ErrorCode::InvalidArgument,
                "add.deny[0].to",
            ),
            (serde_json::json!({"default": "allow"}), ErrorCode::InvalidArgument, "egress.allow"),
        ] {
            let error = ask(request).unwrap_err();
            assert_eq!((error.code, error.details["field"].as_str()), (code, field), "{error}");
        }
    }

    fn rule() -> impl Strategy<Value = Reach> {
        let net = (any::<bool>(), 0u8..4, 0u8..=2).prop_map(|(six, host, less)| {
            let address = address(six, host);
            let longest = IpNet::from(address).prefix_len();
            IpNet::new(address, longest - less).unwrap().trunc()
        });
        let ports = (prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)], 0u16..8, 0u16..8)
            .prop_map(|(protocol, a, b)| (protocol, a.min(b), a.max(b)));
        (prop::collection::vec(net, 1..3), prop::collection::vec(ports, 1..3))
            .prop_map(|(nets, ports)| Reach { nets, ports })
    }

    fn address(six: bool, host: u8) -> IpAddr {
        if six { [0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()].into() } else { [192, 0, 2, host].into() }
    }

    proptest! {
        #[test]
        fn rules_apart_say_the_same_and_each_thing_once(rules in prop::collection::vec(rule(), 0..5)) {
            let parts = apart(&rules);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in 0u16..9 {
                    for host in 0u8..10 {
                        let address = address(host >= 5, host % 5);
                        let wanted = rules.iter().any(|rule| {
                            rule.nets.iter().any(|net| net.contains(&address))
                                && rule.ports.iter().any(|(of, a, b)| *of == protocol && *a <= port && port <= *b)
                        });
                        let hits = parts.iter().filter(|(of, a, b, net)| {
                            *of == protocol && *a <= port && port <= *b && net.contains(&address)
                        });
                        prop_assert_eq!(hits.count(), usize::from(wanted));
                    }
                }
            }
        }
    }
}
