//! Ports of the host that lead to guests: what a spec asks for, checked, and its elements in the firewall. Pure.
//!
//! A forward is of IPv4 and of IPv6 at once, unless it names an address of the host or sources of one of them only. To a
//! guest without an address of IPv6 it leads by IPv4.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use drover_schemas::body::spec::{ForwardSpec, NicSpec, Protocol};
use drover_schemas::body::vm::ForwardRequest;
use drover_schemas::{ErrorBody, ErrorCode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::nft::{FORWARD_OPEN, FORWARD_PORT, FORWARD_TO, Member, forward_set};
use crate::spec::invalid;

/// The most forwards of one VM.
pub const MAX_FORWARDS: usize = 64;
/// The most sources of one forward.
pub const MAX_SOURCES: usize = 16;

/// A place where the host takes packets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The address; every one if none.
    pub address: Option<IpAddr>,
}

impl HostPort {
    /// Whether a packet could be for both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let apart = self.address.is_some() && other.address.is_some() && self.address != other.address;
        (self.protocol, self.port) == (other.protocol, other.port) && !apart
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} port {}", self.protocol.as_str(), self.port)?;
        match self.address {
            Some(address) => write!(f, " of {address}"),
            None => Ok(()),
        }
    }
}

/// A forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where the host takes it in.
    pub from: HostPort,
    /// The guest's port.
    pub guest_port: u16,
    /// From where it may be used; never empty.
    pub sources: Vec<IpNet>,
}

/// Everybody.
pub(super) const ALL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
/// The same of IPv6.
pub(super) const ALL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);

/// Whether both are of one kind.
fn alike(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

/// Whether an address can be one of a host by which others reach it. Those of a link are no use without its name, and those
/// that stand for IPv4 belong to no packet of IPv6; to the loopback of IPv6 the kernel leads nothing back.
fn is_of_host(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_broadcast() && !address.is_unspecified() && !address.is_multicast()
        }
        IpAddr::V6(address) => {
            let unusable = address.is_unspecified() || address.is_multicast() || address.is_loopback();
            !unusable && !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none()
        }
    }
}

/// Reads a forward; `field` is where it stands.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn read(field: &str, spec: &ForwardSpec) -> Result<Forward, ErrorBody> {
    for (name, port) in [("host_port", spec.host_port), ("guest_port", spec.guest_port)] {
        if port == 0 {
            return Err(invalid(&format!("{field}.{name}"), "ports go from 1 to 65535"));
        }
    }
    let address = spec.host_address.as_ref().map(|text| {
        let parsed = text.parse::<IpAddr>().ok().filter(is_of_host);
        parsed.ok_or_else(|| {
            invalid(
                &format!("{field}.host_address"),
                format!("{text:?} is not an address by which others reach a host; leave it out for all"),
            )
        })
    });
    let address = address.transpose()?;
    if spec.sources.len() > MAX_SOURCES {
        return Err(invalid(&format!("{field}.sources"), format!("at most {MAX_SOURCES}")));
    }
    let source = |text: &String| {
        let refused = |text: String| invalid(&format!("{field}.sources"), text);
        let net = text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
            refused(format!("{text:?} is not a prefix such as 192.0.2.0/24 or 2001:db8::/32"))
        })?;
        match address.filter(|address| !alike(*address, net.addr())) {
            None => Ok(net),
            Some(address) => {
                Err(refused(format!("{net} reaches no {address}: one is of IPv4 and the other of IPv6")))
            }
        }
    };
    let mut sources = spec.sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
    if sources.is_empty() {
        let of_host = |net: &IpNet| address.is_none_or(|address| alike(address, net.addr()));
        sources.extend([IpNet::V4(ALL), IpNet::V6(ALL6)].into_iter().filter(of_host));
    }
    // None within another: the firewall takes no element twice.
    let sources = IpNet::aggregate(&sources);
    let from = HostPort { protocol: spec.protocol, port: spec.host_port, address };
    Ok(Forward { from, guest_port: spec.guest_port, sources })
}

/// Reads the forwards of a VM, and sees that they do not meet.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn read_all(nics: &[NicSpec]) -> Result<Vec<Vec<Forward>>, ErrorBody> {
    let mut taken: Vec<HostPort> = Vec::new();
    let mut all = Vec::new();
    for (i, nic) in nics.iter().enumerate() {
        let mut of_nic = Vec::new();
        for (j, spec) in nic.forwards.iter().enumerate() {
            let field = format!("spec.nics[{i}].forwards[{j}]");
            let forward = read(&field, spec)?;
            if taken.len() >= MAX_FORWARDS {
                return Err(invalid(&field, format!("at most {MAX_FORWARDS} forwards of one VM")));
            }
            if let Some(other) = taken.iter().find(|other| other.meets(&forward.from)) {
                return Err(invalid(
                    &field,
                    format!("{} is forwarded twice: it meets {other}", forward.from),
                ));
            }
            taken.push(forward.from);
            of_nic.push(forward);
        }
        all.push(of_nic);
    }
    Ok(all)
}

/// Whether each interface that is to be reached by an address of IPv6 of the host is on a network that has it.
///
/// # Errors
/// `invalid_argument` with the field.
pub fn check_ipv6(nics: &[NicSpec], has: impl Fn(&NicSpec) -> bool) -> Result<(), ErrorBody> {
    for (i, nic) in nics.iter().enumerate().filter(|(_, nic)| !has(nic)) {
        let of_six = |spec: &ForwardSpec| spec.host_address.as_ref().is_some_and(|text| text.contains(':'));
        if let Some(j) = nic.forwards.iter().position(of_six) {
            let text = format!(
                "network {} of this host has no IPv6: leave the address out, or use a network or host that has it",
                nic.network
            );
            return Err(invalid(&format!("spec.nics[{i}].forwards[{j}].host_address"), text));
        }
    }
    Ok(())
}

impl Forward {
    /// Its elements, to a guest's address.
    #[must_use]
    pub fn elements(&self, guest: IpAddr) -> Vec<Member> {
        let HostPort { protocol, port, address } = self.from;
        let mut elements = Vec::new();
        let all = if guest.is_ipv4() { IpNet::V4(ALL) } else { IpNet::V6(ALL6) };
        for source in self.sources.iter().filter(|net| alike(net.addr(), guest)) {
            let parts = vec![
                address.map_or_else(|| prefix(all), |address| address.to_string()),
                protocol.as_str().to_owned(),
                port.to_string(),
                prefix(*source),
            ];
            for (set, value) in [(FORWARD_TO, guest.to_string()), (FORWARD_PORT, self.guest_port.to_string())]
            {
                let set = forward_set(set, guest).to_owned();
                elements.push(Member { set, parts: parts.clone(), value: Some(value) });
            }
        }
        elements
    }
}

/// Between whom the forwards to a guest's address lead. Two may lead to the same port; the firewall takes nothing twice.
pub fn open(guest: IpAddr, forwards: &[Forward]) -> impl Iterator<Item = Member> {
    let mut sources: BTreeMap<(Protocol, u16), Vec<IpNet>> = BTreeMap::new();
    for Forward { from, guest_port, sources: of_one } in forwards {
        let of_one = of_one.iter().filter(|net| alike(net.addr(), guest));
        sources.entry((from.protocol, *guest_port)).or_default().extend(of_one);
    }
    sources.into_iter().flat_map(move |((protocol, port), sources)| {
        let element = move |source: IpNet| {
            let parts =
                vec![guest.to_string(), protocol.as_str().to_owned(), port.to_string(), prefix(source)];
            Member { set: forward_set(FORWARD_OPEN, guest).to_owned(), parts, value: None }
        };
        IpNet::aggregate(&sources).into_iter().map(element)
    })
}

/// The interfaces of a VM with other forwards: those that go, and then those that come. What is so already stays.
///
/// # Errors
/// `invalid_argument` for an interface that is not there or a forward that is none, `not_found` for one that is to go and
/// is not there.
pub fn changed(nics: &[NicSpec], request: &ForwardRequest) -> Result<Vec<NicSpec>, ErrorBody> {
    let mut nics = nics.to_vec();
    let nic = of_index(&mut nics, request.nic)?;
    for (i, gone) in request.remove.iter().enumerate() {
        let at = |has: &ForwardSpec| {
            (has.protocol, has.host_port, &has.host_address)
                == (gone.protocol, gone.host_port, &gone.host_address)
        };
        let before = nic.forwards.len();
        nic.forwards.retain(|has| !at(has));
        if nic.forwards.len() == before {
            let port = format!("{} port {}", gone.protocol.as_str(), gone.host_port);
            let text = format!("{port} is not forwarded to this interface in this way");
            return Err(ErrorBody::new(ErrorCode::NotFound, text).with("field", format!("remove[{i}]")));
        }
    }
    for (i, spec) in request.add.iter().enumerate() {
        read(&format!("add[{i}]"), spec)?;
        if !nic.forwards.contains(spec) {
            nic.forwards.push(spec.clone());
        }
    }
    read_all(&nics)?;
    Ok(nics)
}

/// The interface that a request names by its place.
pub(super) fn of_index(nics: &mut [NicSpec], index: u32) -> Result<&mut NicSpec, ErrorBody> {
    let count = nics.len();
    let found = usize::try_from(index).ok().and_then(|index| nics.get_mut(index));
    found.ok_or_else(|| invalid("nic", format!("the VM has {count} interfaces, counted from 0")))
}

/// As `nft` writes it: a single address without its length.
pub(super) fn prefix(net: impl Into<IpNet>) -> String {
    let net = net.into();
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::body::vm::ForwardRef;

    fn spec(host_port: u16) -> ForwardSpec {
        ForwardSpec {
            protocol: Protocol::Tcp,
            host_port,
            host_address: None,
            guest_port: 22,
            sources: Vec::new(),
        }
    }

    fn nic(forwards: Vec<ForwardSpec>) -> NicSpec {
        NicSpec {
            network: drover_schemas::Token::new("default").unwrap(),
            forwards,
            egress: None,
            limits: None,
            setup: Default::default(),
            ipv4: None,
            queues: 1,
        }
    }

    #[test]
    fn what_is_no_forward_is_refused_with_its_field() {
        let with = |change: &dyn Fn(&mut ForwardSpec)| {
            let mut spec = spec(20_022);
            change(&mut spec);
            read_all(&[nic(vec![spec])]).unwrap_err()
        };
        let field = |error: &ErrorBody| error.details["field"].clone();
        for (error, name) in [
            (with(&|f| f.host_port = 0), "host_port"),
            (with(&|f| f.guest_port = 0), "guest_port"),
            (with(&|f| f.host_address = Some("0.0.0.0".into())), "host_address"),
            (with(&|f| f.host_address = Some("localhost".into())), "host_address"),
            (with(&|f| f.host_address = Some("::".into())), "host_address"),
            (with(&|f| f.host_address = Some("::1".into())), "host_address"),
            (with(&|f| f.host_address = Some("fe80::1".into())), "host_address"),
            (with(&|f| f.host_address = Some("ff02::1".into())), "host_address"),
            (with(&|f| f.host_address = Some("::ffff:192.0.2.1".into())), "host_address"),
            (with(&|f| f.sources = vec!["::".into()]), "sources"),
            (
                with(&|f| {
                    f.host_address = Some("2001:db8::1".into());
                    f.sources = vec!["10.0.0.0/8".into()];
                }),
                "sources",
            ),
            (with(&|f| f.sources = vec!["10.0.0.0/8".into(); MAX_SOURCES + 1]), "sources"),
        ] {
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert_eq!(field(&error), format!("spec.nics[0].forwards[0].{name}"), "{error}");
        }
        let many = (0..=MAX_FORWARDS as u16).map(|n| spec(20_000 + n)).collect();
        assert!(read_all(&[nic(many)]).unwrap_err().message.contains("at most 64"));
    }

    #[test]
    fn what_is_asked_for_is_changed_whole_or_not_at_all() {
        let has = [nic(vec![spec(20_022), spec(20_023)]), nic(vec![spec(20_024)])];
        let gone = |port| ForwardRef { protocol: Protocol::Tcp, host_port: port, host_address: None };
        let elsewhere = ForwardSpec { guest_port: 80, ..spec(20_022) };
        let ask = |nic, remove: &[u16], add: &[ForwardSpec]| {
            let (remove, add) = (remove.iter().copied().map(gone).collect(), add.to_vec());
            changed(&has, &ForwardRequest { nic, remove, add, ..ForwardRequest::default() })
        };
        assert_eq!(ask(0, &[], &[spec(20_023)]).unwrap(), has, "it is so already");
        let replaced = ask(0, &[20_022], std::slice::from_ref(&elsewhere)).unwrap();
        assert_eq!(replaced, [nic(vec![spec(20_023), elsewhere.clone()]), has[1].clone()]);
        assert_eq!(ask(1, &[20_024], &[]).unwrap()[1].forwards, []);
        for (refused, code) in [
            (ask(0, &[], &[elsewhere]), ErrorCode::InvalidArgument),
            (ask(1, &[], &[spec(20_022)]), ErrorCode::InvalidArgument),
            (ask(2, &[], &[]), ErrorCode::InvalidArgument),
            (ask(0, &[], &[spec(0)]), ErrorCode::InvalidArgument),
            (ask(0, &[20_024], &[]), ErrorCode::NotFound),
            (ask(0, &[20_022, 20_022], &[]), ErrorCode::NotFound),
        ] {
            assert_eq!(refused.unwrap_err().code, code);
        }
    }

    #[test]
    fn a_forward_is_of_both_kinds_unless_it_names_one() {
        let guests: [IpAddr; 2] = ["10.77.0.2".parse().unwrap(), "fd00:77::2".parse().unwrap()];
        let shown = |address: Option<&str>, sources: &[&str]| {
            let sources = sources.iter().map(|s| (*s).to_owned()).collect();
            let spec = ForwardSpec { host_address: address.map(str::to_owned), sources, ..spec(20_022) };
            let forward = read("f", &spec).unwrap();
            guests.map(|guest| {
                let all =
                    forward.elements(guest).into_iter().chain(open(guest, std::slice::from_ref(&forward)));
                let text =
                    |m: Member| format!("{} {} {}", m.set, m.parts.join(" "), m.value.unwrap_or_default());
                all.map(|member| text(member).trim().to_owned()).collect::<Vec<_>>()
            })
        };
        let four = [
            "forward_to 0.0.0.0/0 tcp 20022 0.0.0.0/0 10.77.0.2",
            "forward_port 0.0.0.0/0 tcp 20022 0.0.0.0/0 22",
            "forward_open 10.77.0.2 tcp 22 0.0.0.0/0",
        ];
        let six = [
            "forward_to6 ::/0 tcp 20022 ::/0 fd00:77::2",
            "forward_port6 ::/0 tcp 20022 ::/0 22",
            "forward_open6 fd00:77::2 tcp 22 ::/0",
        ];
        assert_eq!(shown(None, &[]), [four, six]);
        let [by_four, none] = shown(Some("192.0.2.1"), &[]);
        assert_eq!((by_four[2].as_str(), none.len()), (four[2], 0));
        let [none, by_six] = shown(Some("2001:db8::1"), &[]);
        assert_eq!(
            (none.len(), by_six[0].as_str()),
            (0, "forward_to6 2001:db8::1 tcp 20022 ::/0 fd00:77::2")
        );
        let spec = ForwardSpec { host_address: Some("2001:db8::1".into()), ..spec(20_022) };
        let nics = [nic(vec![]), nic(vec![spec])];
        check_ipv6(&nics, |_| true).unwrap();
        let error = check_ipv6(&nics, |_| false).unwrap_err();
        assert_eq!(error.details["field"], "spec.nics[1].forwards[0].host_address");
        // Who names sources means those and nobody else.
        let [by_four, none] = shown(None, &["192.0.2.0/24"]);
        assert_eq!((by_four.len(), none.len()), (3, 0));
        let [by_four, by_six] = shown(None, &["192.0.2.0/24", "2001:db8::/32", "2001:db8:1::/48"]);
        assert_eq!((by_four.len(), by_six.len()), (3, 3), "one lies within the other");
    }

    #[test]
    fn two_ways_to_one_port_are_open_once() {
        let from = |port, sources: &[&str]| {
            let sources = sources.iter().map(|s| (*s).to_owned()).collect();
            read("f", &ForwardSpec { sources, ..spec(port) }).unwrap()
        };
        let both = [from(20_022, &["192.0.2.0/24"]), from(20_023, &["192.0.2.7/32", "198.51.100.0/24"])];
        let parts: Vec<String> =
            open(Ipv4Addr::new(10, 77, 0, 2).into(), &both).map(|member| member.parts.join(" ")).collect();
        assert_eq!(parts, ["10.77.0.2 tcp 22 192.0.2.0/24", "10.77.0.2 tcp 22 198.51.100.0/24"]);
    }

    #[test]
    fn forwards_of_one_vm_do_not_meet() {
        let at = |address: &str| ForwardSpec { host_address: Some(address.into()), ..spec(20_022) };
        let udp = ForwardSpec { protocol: Protocol::Udp, ..spec(20_022) };
        read_all(&[nic(vec![at("192.0.2.1"), udp]), nic(vec![at("192.0.2.2")])]).unwrap();
        for other in [spec(20_022), at("192.0.2.1")] {
            read_all(&[nic(vec![at("192.0.2.1")]), nic(vec![other])]).unwrap_err();
        }
    }

    #[test]
    fn elements_are_as_the_firewall_lists_them() {
        let sources = ["192.0.2.7/24", "192.0.2.128/25", "198.51.100.1/32"].map(ToOwned::to_owned).to_vec();
        let forward = read("f", &ForwardSpec { sources, ..spec(20_022) }).unwrap();
        let parts: Vec<String> =
            forward.elements(Ipv4Addr::new(10, 77, 0, 2).into()).iter().map(|m| m.parts.join(" ")).collect();
        let wanted = ["0.0.0.0/0 tcp 20022 192.0.2.0/24", "0.0.0.0/0 tcp 20022 198.51.100.1"];
        assert_eq!(parts, [wanted[0], wanted[0], wanted[1], wanted[1]]);
    }
}
