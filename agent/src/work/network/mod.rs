//! `network`: an interface is looked at and set up, by the kernel alone; nothing of the guest's own configuration is
//! touched but the list of its servers of names.

mod netlink;
mod resolv;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use drover_schemas::guest::{MAX_NETWORK, NetworkRequest, NetworkResult, NetworkRoute, NetworkState};
use drover_schemas::{ErrorBody, ErrorCode};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;

use self::netlink::Netlink;
use super::guest_error;

/// The most interfaces that are looked at, and routes that are shown.
const MAX_SEEN: usize = 1024;
const MAX_ROUTES: usize = 64;
/// What IPv4 needs, and what a virtio device takes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    ip: IpAddr,
    length: u8,
}

impl Prefix {
    /// Everywhere.
    const ALL4: Self = Self { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    const ALL6: Self = Self { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

    /// The first address of the net, and the last one.
    fn ends(self) -> (IpAddr, IpAddr) {
        let length = u32::from(self.length);
        match self.ip {
            IpAddr::V4(ip) => {
                let rest = u32::MAX.checked_shr(length).unwrap_or(0);
                (Ipv4Addr::from(u32::from(ip) & !rest).into(), Ipv4Addr::from(u32::from(ip) | rest).into())
            }
            IpAddr::V6(ip) => {
                let rest = u128::MAX.checked_shr(length).unwrap_or(0);
                (Ipv6Addr::from(u128::from(ip) & !rest).into(), Ipv6Addr::from(u128::from(ip) | rest).into())
            }
        }
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, length) = text.split_once('/').ok_or(())?;
        let ip: IpAddr = ip.parse().map_err(|_| ())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|length| *length <= most).ok_or(())?;
        Ok(Self { ip, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

/// What was asked for, understood.
#[derive(Debug)]
struct Wanted {
    mac: String,
    addresses: Option<Vec<Prefix>>,
    gateways: Vec<IpAddr>,
    routes: Vec<(Prefix, IpAddr)>,
    mtu: Option<u32>,
    dns: Option<Vec<IpAddr>>,
}

fn invalid(text: String, field: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field)
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

/// Whether it may be a machine's.
fn usable(ip: IpAddr) -> bool {
    let other = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
    };
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !other
}

/// Whether it holds on one link only, and so says nothing without its interface.
fn of_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

impl Wanted {
    fn of(request: &NetworkRequest) -> Result<Self, ErrorBody> {
        let address = |text: &String, field, kind: &str, is: fn(IpAddr) -> bool| {
            let parsed = text.parse().ok().filter(|ip| usable(*ip) && is(*ip));
            parsed.ok_or_else(|| invalid(format!("{:?} is no {kind} of a machine", short(text)), field))
        };
        let v4 = |text| address(text, "gateway", "IPv4 address", |ip| ip.is_ipv4());
        let v6 = |text| address(text, "gateway6", "IPv6 address", |ip| ip.is_ipv6());
        let server = |text| address(text, "dns", "address", |ip| !of_link(ip));
        let mac = request.mac.to_ascii_lowercase();
        let is_mac = mac.len() == 17
            && mac.split(':').count() == 6
            && mac.split(':').all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
        if !is_mac {
            return Err(invalid(
                format!("{:?} is no hardware address such as 52:54:00:12:34:56", short(&mac)),
                "mac",
            ));
        }
        let lists = [
            ("addresses", request.addresses.as_ref().map_or(0, Vec::len)),
            ("routes", request.routes.len()),
            ("dns", request.dns.as_ref().map_or(0, Vec::len)),
        ];
        if let Some((field, _)) = lists.into_iter().find(|(_, length)| *length > MAX_NETWORK) {
            return Err(invalid(format!("{field} has more than {MAX_NETWORK} entries"), field));
        }
        let own = |text: &String| {
            let is_own = |prefix: &Prefix| prefix.length > 0 && usable(prefix.ip) && !of_link(prefix.ip);
            text.parse::<Prefix>().ok().filter(is_own).ok_or_else(|| {
                let text = format!(
                    "{:?} is no address with its prefix length, such as 10.0.0.2/24 or fd00::2/64",
                    short(text)
                );
                invalid(text, "addresses")
            })
        };
        let route = |route: &NetworkRoute| {
            let to = route.to.parse::<Prefix>().map_err(|()| {
                invalid(format!("{:?} is no prefix such as 10.0.0.0/8", short(&route.to)), "routes")
            })?;
            let via = address(&route.via, "routes", "address", |_| true)?;
            if via.is_ipv4() != to.ip.is_ipv4() {
                let text = format!("{:?} is no router to {:?}", short(&route.via), short(&route.to));
                return Err(invalid(text, "routes"));
            }
            Ok((to, via))
        };
        if request.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            return Err(invalid(format!("mtu is {} to {}", MTU.start(), MTU.end()), "mtu"));
        }
        Ok(Self {
            mac,
            addresses: request.addresses.as_ref().map(|all| all.iter().map(own).collect()).transpose()?,
            gateways: {
                let (four, six) = (request.gateway.as_ref().map(v4), request.gateway6.as_ref().map(v6));
                four.into_iter().chain(six).collect::<Result<_, ErrorBody>>()?
            },
            routes: request.routes.iter().map(route).collect::<Result<_, ErrorBody>>()?,
            mtu: request.mtu,
            dns: request.dns.as_ref().map(|all| all.iter().map(server).collect()).transpose()?,
        })
    }
}

/// The interface of a hardware address.
fn find(mac: &str) -> Result<String, ErrorBody> {
    let entries = fs::read_dir("/sys/class/net");
    let entries = entries.map_err(|e| guest_error(format!("cannot list the guest's interfaces: {e}")))?;
    let is_it = |name: &String| {
        fs::read_to_string(format!("/sys/class/net/{name}/address")).is_ok_and(|found| found.trim() == mac)
    };
    let names = entries.flatten().take(MAX_SEEN).filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<String> = names.filter(is_it).collect();
    // Bridges and VLANs have the address of what they are on.
    if found.len() > 1 {
        found.retain(|name| fs::symlink_metadata(format!("/sys/class/net/{name}/device")).is_ok());
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            let text = format!("the guest has no interface with the address {mac}");
            Err(ErrorBody::new(ErrorCode::NotFound, text).with("mac", mac))
        }
        many => {
            let text = format!("several interfaces of the guest have the address {mac}: {}", many.join(", "));
            Err(ErrorBody::new(ErrorCode::Conflict, text).with("mac", mac))
        }
    }
}

/// # Errors
/// The guest has no IPv6 there, by its kernel or by its owner's word.
fn has_ipv6(interface: &str) -> Result<(), ErrorBody> {
    let off = match fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")) {
        Ok(text) if text.trim() == "0" => return Ok(()),
        Ok(_) => "is switched off at this interface of the guest (net.ipv6.conf.*.disable_ipv6)",
        Err(_) => "is not there in the guest's kernel",
    };
    let error = guest_error(format!("cannot set {interface}: IPv6 {off}"));
    Err(error.with("interface", interface).with("cause", "no_ipv6"))
}

fn look(interface: &str) -> Result<NetworkState, ErrorBody> {
    let failed = |e: nix::Error| guest_error(format!("cannot read the addresses of {interface}: {e}"));
    let mut state = NetworkState::default();
    let mut addresses = Vec::new();
    for entry in
        getifaddrs().map_err(failed)?.take(MAX_SEEN).filter(|entry| entry.interface_name == interface)
    {
        state.up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        if let (Some(ip), Some(mask)) = (ip_of(entry.address), ip_of(entry.netmask)) {
            let length = match mask {
                IpAddr::V4(mask) => u32::from(mask).leading_ones(),
                IpAddr::V6(mask) => u128::from(mask).leading_ones(),
            };
            // The kernel's own.
            if !of_link(ip) {
                addresses.push(Prefix { ip, length: length as u8 });
            }
        }
    }
    addresses.sort();
    state.addresses = addresses.iter().map(Prefix::to_string).collect();
    let mtu = fs::read_to_string(format!("/sys/class/net/{interface}/mtu"));
    state.mtu = mtu.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let mut routes = routes_of(&text("/proc/net/route"), interface);
    routes.extend(ipv6_routes_of(&text("/proc/net/ipv6_route"), interface));
    for (to, via) in routes {
        if to.length == 0 {
            let gateway = if via.is_ipv4() { &mut state.gateway } else { &mut state.gateway6 };
            gateway.get_or_insert_with(|| via.to_string());
        } else if state.routes.len() < MAX_ROUTES {
            state.routes.push(NetworkRoute { to: to.to_string(), via: via.to_string() });
        }
    }
    state.routes.sort_by(|a, b| (&a.to, &a.via).cmp(&(&b.to, &b.via)));
    state.dns = resolv::servers();
    Ok(state)
}

fn ip_of(at: Option<SockaddrStorage>) -> Option<IpAddr> {
    let at = at?;
    let four = at.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
    four.or_else(|| at.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
}

/// Routes by routers of an interface, from `/proc/net/ipv6_route`.
fn ipv6_routes_of(text: &str, interface: &str) -> Vec<(Prefix, IpAddr)> {
    let ip = |word: Option<&str>| u128::from_str_radix(word?, 16).ok().map(Ipv6Addr::from);
    let route = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (to, length) = (ip(words.next())?, u8::from_str_radix(words.next()?, 16).ok()?);
        let via = ip(words.nth(2)).filter(|via| !via.is_unspecified())?;
        (words.nth(4) == Some(interface)).then(|| (Prefix { ip: to.into(), length }, via.into()))
    };
    text.lines().take(MAX_SEEN).filter_map(route).collect()
}

/// Routes by routers of an interface, from `/proc/net/route`.
fn routes_of(text: &str, interface: &str) -> Vec<(Prefix, IpAddr)> {
    let hex = |word: Option<&str>| u32::from_str_radix(word?, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let (to, via, mask) = (hex(words.next())?, hex(words.next())?, hex(words.nth(4))?);
        let to = Prefix { ip: Ipv4Addr::from(to).into(), length: mask.leading_ones() as u8 };
        (name == interface && via != 0).then(|| (to, Ipv4Addr::from(via).into()))
    };
    text.lines().skip(1).take(MAX_SEEN).filter_map(route).collect()
}

/// Looks at an interface, and sets it up as far as it is not so.
///
/// # Errors
/// What is wrong with the request, no such interface, or what the kernel said.
pub(crate) fn run(request: &NetworkRequest, begins: impl FnOnce()) -> Result<NetworkResult, ErrorBody> {
    let wanted = Wanted::of(request)?;
    let interface = find(&wanted.mac)?;
    let before = look(&interface)?;
    let is_kept = request.if_unset && before.addresses.iter().any(|address| wanted.names(address));
    if is_kept || !wanted.asks() {
        return Ok(NetworkResult { interface, changed: false, after: before.clone(), before });
    }
    begins();
    wanted.set(&interface, &before)?;
    let after = look(&interface)?;
    Ok(NetworkResult { changed: before != after, interface, before, after })
}

impl Wanted {
    /// Whether an address that is there is of a kind that is asked for.
    fn names(&self, address: &str) -> bool {
        let is_four = !address.contains(':');
        match self.addresses.as_deref() {
            None => true,
            Some([]) => is_four,
            Some(all) => all.iter().any(|own| own.ip.is_ipv4() == is_four),
        }
    }

    fn asks(&self) -> bool {
        let Self { addresses, gateways, routes, mtu, dns, .. } = self;
        addresses.is_some() || !gateways.is_empty() || !routes.is_empty() || mtu.is_some() || dns.is_some()
    }

    fn set(&self, interface: &str, before: &NetworkState) -> Result<(), ErrorBody> {
        let failed = |what: String| {
            move |error: std::io::Error| {
                let text = format!("cannot {what} of {interface}: {error}; what came before it is done");
                guest_error(text).with("interface", interface)
            }
        };
        if self.addresses.iter().flatten().any(|own| own.ip.is_ipv6()) {
            has_ipv6(interface)?;
        }
        let index = if_nametoindex(interface).map_err(|e| failed("find the number".to_owned())(e.into()))?;
        let netlink = Netlink::open().map_err(failed("change the network".to_owned()))?;
        let is_used = self.addresses.is_some() || !self.gateways.is_empty() || !self.routes.is_empty();
        if (is_used && !before.up) || self.mtu.is_some_and(|mtu| mtu != before.mtu) {
            let set = netlink.set_link(index, is_used || before.up, self.mtu);
            set.map_err(failed("set the state and the longest packet".to_owned()))?;
        }
        if let Some(addresses) = &self.addresses {
            let named = before.addresses.iter().filter(|text| self.names(text));
            let now: Vec<Prefix> = named.filter_map(|text| text.parse().ok()).collect();
            // First what is new: who speaks over the interface keeps a way.
            for address in addresses.iter().filter(|address| !now.contains(address)) {
                netlink.add_address(index, *address).map_err(failed(format!("add the address {address}")))?;
            }
            for address in now.iter().filter(|address| !addresses.contains(address)) {
                netlink
                    .remove_address(index, *address)
                    .map_err(failed(format!("remove the address {address}")))?;
            }
        }
        let all = |via: &IpAddr| if via.is_ipv4() { Prefix::ALL4 } else { Prefix::ALL6 };
        for (to, via) in self.gateways.iter().map(|via| (all(via), *via)).chain(self.routes.iter().copied()) {
            netlink.set_route(index, to, via).map_err(failed(format!("set the route to {to} by {via}")))?;
        }
        if let Some(dns) = &self.dns {
            resolv::set(interface, dns)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
