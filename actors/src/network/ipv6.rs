//! IPv6 beside IPv4: which subnets there may be, and the addresses that follow from the IPv4 leases. Pure.
//!
//! A guest has the same place in the IPv6 subnet of its network as in the IPv4 one, so there is one pool: an address that
//! is leased, rests or is asked for is so in both.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ops::NetworkDef;

/// The IPv6 side of an interface's lease. Journalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Lease {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The network's gateway: the host's bridge.
    pub gateway: Ipv6Addr,
}

impl Ipv6Lease {
    /// What goes with an address of an IPv4 subnet whose prefix is so long.
    #[must_use]
    pub fn of(subnet: Ipv6Net, ipv4: Ipv4Addr, ipv4_prefix_len: u8) -> Self {
        let place = u32::from(ipv4) & u32::MAX.checked_shr(u32::from(ipv4_prefix_len)).unwrap_or(0);
        let address = Ipv6Addr::from(u128::from(subnet.network()) | u128::from(place));
        Self { address, prefix_len: subnet.prefix_len(), gateway: gateway(subnet) }
    }
}

/// The gateway of a subnet: its first host.
#[must_use]
pub fn gateway(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | 1)
}

/// The same with the length of the prefix.
#[must_use]
pub fn gateway_net(subnet: Ipv6Net) -> Ipv6Net {
    Ipv6Net::new_assert(gateway(subnet), subnet.prefix_len())
}

/// The address of the link that a kernel makes of a MAC (EUI-64); `None` for a text that is no MAC.
#[must_use]
pub fn link_local(mac: &str) -> Option<Ipv6Addr> {
    let parts: Vec<u8> = mac.split(':').map_while(|part| u8::from_str_radix(part, 16).ok()).collect();
    let [a, b, c, d, e, f] = <[u8; 6]>::try_from(parts).ok().filter(|_| mac.len() == 17)?;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let [first, second] = [pair(a ^ 2, b), pair(c, 0xff)];
    Some(Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, pair(0xfe, d), pair(e, f)))
}

/// Whether guests with addresses of the subnet go out in the host's name: nobody outside knows a way back to them.
#[must_use]
pub fn is_masqueraded(subnet: Ipv6Net) -> bool {
    UNIQUE_LOCAL.contains(&subnet.network())
}

const fn net(segments: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

const UNIQUE_LOCAL: Ipv6Net = net([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7);
const GLOBAL: Ipv6Net = net([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
const LINK_LOCAL: Ipv6Net = net([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10);

/// Addresses that are not of the public internet: of private networks, of the link, of the host itself, and those by which
/// a translator (NAT64) leads to private ones of IPv4.
pub const PRIVATE: [Ipv6Net; 12] = [
    net([0; 8], 96),
    net([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    UNIQUE_LOCAL,
    LINK_LOCAL,
    net([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    net([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    nat64(10, 0, 8),
    nat64(100, 64, 10),
    nat64(127, 0, 8),
    nat64(169, 254, 16),
    nat64(172, 16, 12),
    nat64(192, 168, 16),
];

/// Where clouds answer what only the machine itself should know: the link, and the addresses of Amazon, Google, Oracle and
/// Scaleway.
pub const METADATA: [Ipv6Net; 6] = [
    LINK_LOCAL,
    net([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    net([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    net([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
    net([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
    nat64(169, 254, 16),
];

/// Where the well-known prefix of translators (RFC 6052) leads for addresses of IPv4.
const fn nat64(a: u8, b: u8, length: u8) -> Ipv6Net {
    net([0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([a, b]), 0], 96 + length)
}

/// Why a network cannot have its subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ipv6Fault {
    /// Its addresses are none for machines that are routed to.
    #[error(
        "{subnet} is no subnet for guests: take one of your own below fd00::/8 (guests go out in the host's name), or \
         one of the public internet (2000::/3) that is routed to this host"
    )]
    NotRouted {
        /// The subnet.
        subnet: Ipv6Net,
    },
    /// It has fewer places than the IPv4 subnet.
    #[error(
        "{subnet} has less room than {ipv4}, whose addresses its own follow: use a prefix of at most {longest}, such as 64"
    )]
    TooSmall {
        /// The subnet.
        subnet: Ipv6Net,
        /// The IPv4 subnet of the network.
        ipv4: Ipv4Net,
        /// The longest prefix that will do.
        longest: u8,
    },
}

/// Whether a network can have this subnet beside its IPv4 one.
///
/// # Errors
/// It cannot.
pub fn check(subnet: Ipv6Net, ipv4: Ipv4Net) -> Result<(), Ipv6Fault> {
    let subnet = subnet.trunc();
    if ![UNIQUE_LOCAL, GLOBAL].iter().any(|range| range.contains(&subnet)) {
        return Err(Ipv6Fault::NotRouted { subnet });
    }
    let longest = 96 + ipv4.prefix_len();
    if subnet.prefix_len() > longest {
        return Err(Ipv6Fault::TooSmall { subnet, ipv4: ipv4.trunc(), longest });
    }
    Ok(())
}

/// Two networks of a host that share addresses, and the subnet of the first that does.
#[must_use]
pub fn overlap(networks: &[NetworkDef]) -> Option<(&NetworkDef, IpNet, &NetworkDef)> {
    let nets = |def: &NetworkDef| {
        let six = def.ipv6.map(|net| IpNet::V6(net.trunc()));
        [Some(IpNet::V4(def.subnet.trunc())), six].into_iter().flatten()
    };
    let meet = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let after = |(i, def): (usize, _)| networks.iter().skip(i + 1).map(move |other| (def, other));
    networks.iter().enumerate().flat_map(after).find_map(|(one, other): (&NetworkDef, &NetworkDef)| {
        let met = nets(one).find(|net| nets(other).any(|beside| meet(net, &beside)))?;
        Some((one, met, other))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use drover_schemas::token::Token;
    use proptest::prelude::*;

    use super::super::lease::Pool;
    use super::*;

    fn six(text: &str) -> Ipv6Net {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_the_place_that_its_lease_has() {
        let of = |subnet, ipv4: &str, len| Ipv6Lease::of(six(subnet), ipv4.parse().unwrap(), len);
        let lease = of("fd00:77::/64", "10.77.1.5", 20);
        assert_eq!(lease.address.to_string(), "fd00:77::105");
        assert_eq!((lease.prefix_len, lease.gateway.to_string().as_str()), (64, "fd00:77::1"));
        // A subnet of the length of the other, and one whose text has a place of its own.
        assert_eq!(of("2001:db8::f000/116", "10.77.15.254", 20).address.to_string(), "2001:db8::fffe");
        assert_eq!(of("fd00::9/64", "10.0.0.2", 30).address.to_string(), "fd00::2");
        assert_eq!(of("fd00::/64", "10.0.0.2", 0).address.to_string(), "fd00::a00:2");
    }

    #[test]
    fn the_address_of_the_link_is_the_one_that_kernels_make() {
        assert_eq!(link_local("52:54:b6:ed:1e:1b").unwrap().to_string(), "fe80::5054:b6ff:feed:1e1b");
        for text in [
            "",
            "52:54:b6:ed:1e",
            "52:54:b6:ed:1e:1b:00",
            "5254b6ed1e1b",
            "52:54:b6:ed:1e:1g",
            "2:54:b6:ed:1e:1b",
        ] {
            assert_eq!(link_local(text), None, "{text}");
        }
    }

    #[test]
    fn a_subnet_is_one_that_packets_are_routed_to_with_room_for_all() {
        let ipv4: Ipv4Net = "10.77.0.0/20".parse().unwrap();
        for good in
            ["fd00:77::/64", "fc00::/48", "2001:db8:1::/112", "2001:db8::/116", "fd12:3456:789a::5/64"]
        {
            check(six(good), ipv4).unwrap();
        }
        for bad in
            ["fe80::/64", "::/64", "::ffff:10.0.0.0/112", "ff02::/64", "64:ff9b::/96", "::/0", "f000::/4"]
        {
            assert!(matches!(check(six(bad), ipv4), Err(Ipv6Fault::NotRouted { .. })), "{bad}");
        }
        let error = check(six("fd00::/117"), ipv4).unwrap_err();
        assert!(error.to_string().contains("at most 116"), "{error}");
        check(six("fd00::/117"), "10.0.0.0/21".parse().unwrap()).unwrap();
    }

    #[test]
    fn who_is_not_known_outside_goes_out_in_the_hosts_name() {
        let is = |text| is_masqueraded(six(text));
        assert_eq!([is("fd00::/64"), is("fc00::/48"), is("2001:db8::/64")], [true, true, false]);
    }

    #[test]
    fn networks_that_share_addresses_are_found() {
        let def = |name: &str, subnet: &str, ipv6: Option<&str>| NetworkDef {
            subnet: subnet.parse().unwrap(),
            ipv6: ipv6.map(six),
            ..NetworkDef::named(Token::new(name).unwrap())
        };
        let found = |defs: &[NetworkDef]| {
            overlap(defs).map(|(one, net, other)| format!("{} {net} {}", one.name, other.name))
        };
        let a = def("a", "10.77.0.0/20", Some("fd00:1::/64"));
        assert_eq!(
            found(&[
                a.clone(),
                def("b", "10.78.0.0/20", Some("fd00:2::/64")),
                def("c", "10.79.0.0/20", None)
            ]),
            None
        );
        assert_eq!(
            found(&[def("b", "10.78.0.0/20", Some("fd00:1::/56")), a.clone()]).unwrap(),
            "b fd00:1::/56 a"
        );
        assert_eq!(found(&[a, def("b", "10.77.8.0/24", None)]).unwrap(), "a 10.77.0.0/20 b");
    }

    #[test]
    fn what_is_private_or_metadata_is_not_public() {
        let private = |text: &str| PRIVATE.iter().any(|net| net.contains(&text.parse::<Ipv6Addr>().unwrap()));
        for text in [
            "::1",
            "::ffff:10.0.0.1",
            "fd12::1",
            "fe80::1",
            "64:ff9b::10.1.2.3",
            "64:ff9b::192.168.0.1",
            "64:ff9b:1::1",
        ] {
            assert!(private(text), "{text}");
        }
        for text in ["2001:4860:4860::8888", "64:ff9b::8.8.8.8", "2620:fe::fe"] {
            assert!(!private(text), "{text}");
        }
        assert!(METADATA.iter().all(|net| PRIVATE.iter().any(|private| private.contains(net))));
    }

    proptest! {
        #[test]
        fn every_guest_has_its_own_place_and_none_is_the_gateway(len in 20_u8..=30, more in 0_u8..=8, count in 1_usize..64) {
            let ipv4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), len).trunc();
            let subnet = Ipv6Net::new_assert("fd00:77:1::".parse().unwrap(), 96 + len - more);
            check(subnet, ipv4).unwrap();
            let mut pool = Pool::new(ipv4).unwrap();
            let mut seen = HashSet::from([gateway(subnet), subnet.network()]);
            for _ in 0..count.min(pool.capacity()) {
                let lease = pool.allocate(None, std::time::Duration::ZERO).unwrap();
                let six = Ipv6Lease::of(subnet, lease, len);
                prop_assert!(subnet.contains(&six.address));
                prop_assert!(seen.insert(six.address), "{} twice", six.address);
            }
        }
    }
}
