//! `network`: an interface is looked at and set up, by the kernel alone; nothing of the guest's own configuration is
//! touched but the list of its servers of names.

mod netlink;
mod resolv;

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::str::FromStr;

use drover_schemas::guest::{MAX_NETWORK, NetworkRequest, NetworkResult, NetworkRoute, NetworkState};
use drover_schemas::{ErrorBody, ErrorCode};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

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
    ip: Ipv4Addr,
    length: u8,
}

impl Prefix {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0)
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, length) = text.split_once('/').ok_or(())?;
        let length = length.parse().ok().filter(|length| *length <= 32).ok_or(())?;
        Ok(Self { ip: ip.parse().map_err(|_| ())?, length })
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
    gateway: Option<Ipv4Addr>,
    routes: Vec<(Prefix, Ipv4Addr)>,
    mtu: Option<u32>,
    dns: Option<Vec<Ipv4Addr>>,
}

fn invalid(text: String, field: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field)
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

fn usable(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
}

impl Wanted {
    fn of(request: &NetworkRequest) -> Result<Self, ErrorBody> {
        let address = |text: &String, field| {
            text.parse()
                .ok()
                .filter(|ip| usable(*ip))
                .ok_or_else(|| invalid(format!("{:?} is no IPv4 address of a machine", short(text)), field))
        };
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
            let prefix = text.parse::<Prefix>().ok().filter(|prefix| prefix.length > 0 && usable(prefix.ip));
            prefix.ok_or_else(|| {
                let text = format!(
                    "{:?} is no IPv4 address with its prefix length, such as 10.0.0.2/24",
                    short(text)
                );
                invalid(text, "addresses")
            })
        };
        let route = |route: &NetworkRoute| {
            let to = route.to.parse::<Prefix>().map_err(|()| {
                invalid(format!("{:?} is no IPv4 prefix such as 10.0.0.0/8", short(&route.to)), "routes")
            })?;
            Ok((to, address(&route.via, "routes")?))
        };
        if request.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            return Err(invalid(format!("mtu is {} to {}", MTU.start(), MTU.end()), "mtu"));
        }
        Ok(Self {
            mac,
            addresses: request.addresses.as_ref().map(|all| all.iter().map(own).collect()).transpose()?,
            gateway: request.gateway.as_ref().map(|ip| address(ip, "gateway")).transpose()?,
            routes: request.routes.iter().map(route).collect::<Result<_, ErrorBody>>()?,
            mtu: request.mtu,
            dns: request
                .dns
                .as_ref()
                .map(|all| all.iter().map(|ip| address(ip, "dns")).collect())
                .transpose()?,
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

fn look(interface: &str) -> Result<NetworkState, ErrorBody> {
    let failed = |e: nix::Error| guest_error(format!("cannot read the addresses of {interface}: {e}"));
    let mut state = NetworkState::default();
    let mut addresses = Vec::new();
    for entry in
        getifaddrs().map_err(failed)?.take(MAX_SEEN).filter(|entry| entry.interface_name == interface)
    {
        state.up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        let ip = |at: Option<nix::sys::socket::SockaddrStorage>| Some(at?.as_sockaddr_in()?.ip());
        if let (Some(ip), Some(mask)) = (ip(entry.address), ip(entry.netmask)) {
            addresses.push(Prefix { ip, length: u32::from(mask).leading_ones() as u8 });
        }
    }
    addresses.sort();
    state.addresses = addresses.iter().map(Prefix::to_string).collect();
    let mtu = fs::read_to_string(format!("/sys/class/net/{interface}/mtu"));
    state.mtu = mtu.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    for (to, via) in routes_of(&routes, interface) {
        if to.length == 0 {
            state.gateway.get_or_insert_with(|| via.to_string());
        } else if state.routes.len() < MAX_ROUTES {
            state.routes.push(NetworkRoute { to: to.to_string(), via: via.to_string() });
        }
    }
    state.routes.sort_by(|a, b| (&a.to, &a.via).cmp(&(&b.to, &b.via)));
    state.dns = resolv::servers();
    Ok(state)
}

/// Routes by routers of an interface, from `/proc/net/route`.
fn routes_of(text: &str, interface: &str) -> Vec<(Prefix, Ipv4Addr)> {
    let hex = |word: Option<&str>| u32::from_str_radix(word?, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let (to, via, mask) = (hex(words.next())?, hex(words.next())?, hex(words.nth(4))?);
        let to = Prefix { ip: to.into(), length: mask.leading_ones() as u8 };
        (name == interface && via != 0).then_some((to, via.into()))
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
    let is_kept = request.if_unset && !before.addresses.is_empty();
    if is_kept || !wanted.asks() {
        return Ok(NetworkResult { interface, changed: false, after: before.clone(), before });
    }
    begins();
    wanted.set(&interface, &before)?;
    let after = look(&interface)?;
    Ok(NetworkResult { changed: before != after, interface, before, after })
}

impl Wanted {
    fn asks(&self) -> bool {
        let Self { addresses, gateway, routes, mtu, dns, .. } = self;
        addresses.is_some() || gateway.is_some() || !routes.is_empty() || mtu.is_some() || dns.is_some()
    }

    fn set(&self, interface: &str, before: &NetworkState) -> Result<(), ErrorBody> {
        let failed = |what: String| {
            move |error: std::io::Error| {
                let text = format!("cannot {what} of {interface}: {error}; what came before it is done");
                guest_error(text).with("interface", interface)
            }
        };
        let index = if_nametoindex(interface).map_err(|e| failed("find the number".to_owned())(e.into()))?;
        let netlink = Netlink::open().map_err(failed("change the network".to_owned()))?;
        let is_used = self.addresses.is_some() || self.gateway.is_some() || !self.routes.is_empty();
        if (is_used && !before.up) || self.mtu.is_some_and(|mtu| mtu != before.mtu) {
            let set = netlink.set_link(index, is_used || before.up, self.mtu);
            set.map_err(failed("set the state and the longest packet".to_owned()))?;
        }
        if let Some(addresses) = &self.addresses {
            let now: Vec<Prefix> = before.addresses.iter().filter_map(|text| text.parse().ok()).collect();
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
        let all = Prefix { ip: Ipv4Addr::UNSPECIFIED, length: 0 };
        for (to, via) in self.gateway.iter().map(|via| (all, *via)).chain(self.routes.iter().copied()) {
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
