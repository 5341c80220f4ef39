//! The guests that the host's own services of a network know: who asks, and who is asked for.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use drover_schemas::id::VmId;
use drover_schemas::token::Token;

use super::egress::Egress;
use super::ops::VmNet;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a VM is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmName {
    /// Its namespace: guests learn the names of their own only.
    pub namespace: Token,
    /// Its name there.
    pub name: Token,
}

/// An interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The VM.
    pub vm_id: VmId,
    /// What it is called; nobody says of a VM without a row.
    pub called: Option<VmName>,
    /// The host's network.
    pub network: Token,
    /// It is the VM's first interface, by which its default way leads.
    pub first: bool,
    /// Its hardware address, which it cannot change.
    pub mac: Mac,
    /// Name of its TAP.
    pub tap: String,
    /// The address that is leased to it.
    pub ipv4: Ipv4Addr,
    /// That of IPv6, where its network has it.
    pub ipv6: Option<Ipv6Addr>,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The network's gateway.
    pub gateway: Ipv4Addr,
    /// What it may reach; everything if its spec does not say.
    pub egress: Option<Egress>,
}

impl Guest {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(IpAddr::V4(self.ipv4)).chain(self.ipv6.map(IpAddr::V6))
    }
}

type ByName = BTreeMap<Token, Vec<Arc<Guest>>>;

/// All of them, by what they are looked up by.
#[derive(Debug, Default)]
pub struct Guests {
    /// Two may have the same: then nobody can tell who asks.
    by_mac: HashMap<(Token, Mac), Vec<Arc<Guest>>>,
    by_address: HashMap<(Token, IpAddr), Arc<Guest>>,
    /// By network and namespace, then by name.
    by_name: HashMap<(Token, Token), ByName>,
}

impl Guests {
    /// Takes the interfaces of a VM.
    pub fn insert(&mut self, vm: &VmNet) {
        for guest in of_vm(vm) {
            let guest = Arc::new(guest);
            let network = || guest.network.clone();
            self.by_mac.entry((network(), guest.mac)).or_default().push(Arc::clone(&guest));
            for address in guest.addresses() {
                self.by_address.insert((network(), address), Arc::clone(&guest));
            }
            if let Some(VmName { namespace, name }) = guest.called.clone() {
                let names = self.by_name.entry((network(), namespace)).or_default();
                names.entry(name).or_default().push(Arc::clone(&guest));
            }
        }
    }

    /// Forgets those of a VM.
    pub fn remove(&mut self, vm: &VmNet) {
        let others = |guests: &mut Vec<Arc<Guest>>| {
            guests.retain(|guest| guest.vm_id != vm.vm_id);
            !guests.is_empty()
        };
        for guest in of_vm(vm) {
            let by_mac = (guest.network.clone(), guest.mac);
            if self.by_mac.get_mut(&by_mac).is_some_and(|guests| !others(guests)) {
                self.by_mac.remove(&by_mac);
            }
            for address in guest.addresses() {
                let by_address = (guest.network.clone(), address);
                if self.by_address.get(&by_address).is_some_and(|found| found.vm_id == vm.vm_id) {
                    self.by_address.remove(&by_address);
                }
            }
            let Some(VmName { namespace, name }) = guest.called else { continue };
            let by_name = (guest.network, namespace);
            let Some(names) = self.by_name.get_mut(&by_name) else { continue };
            if names.get_mut(&name).is_some_and(|guests| !others(guests)) {
                names.remove(&name);
            }
            if names.is_empty() {
                self.by_name.remove(&by_name);
            }
        }
    }

    /// The one of a network that has the hardware address; `None` also where several have it.
    #[must_use]
    pub fn by_mac(&self, network: &Token, mac: Mac) -> Option<Arc<Guest>> {
        match self.by_mac.get(&(network.clone(), mac)).map(Vec::as_slice) {
            Some([guest]) => Some(Arc::clone(guest)),
            _ => None,
        }
    }

    /// The one of a network that has the address.
    #[must_use]
    pub fn by_address(&self, network: &Token, address: IpAddr) -> Option<Arc<Guest>> {
        self.by_address.get(&(network.clone(), address)).cloned()
    }

    /// Those of a network whose VM has the name, in a namespace.
    #[must_use]
    pub fn by_name(&self, network: &Token, namespace: &Token, name: &Token) -> Vec<Arc<Guest>> {
        let names = self.by_name.get(&(network.clone(), namespace.clone()));
        names.and_then(|names| names.get(name)).cloned().unwrap_or_default()
    }
}

fn of_vm(vm: &VmNet) -> impl Iterator<Item = Guest> + '_ {
    vm.nics.iter().enumerate().filter_map(|(index, nic)| {
        Some(Guest {
            vm_id: vm.vm_id,
            called: vm.called.clone(),
            network: nic.network.clone(),
            first: index == 0,
            mac: read_mac(&nic.mac)?,
            tap: nic.tap.clone(),
            ipv4: nic.ipv4,
            ipv6: nic.ipv6.map(|ipv6| ipv6.address),
            prefix_len: nic.prefix_len,
            gateway: nic.gateway,
            egress: vm.egress.get(index).cloned().flatten(),
        })
    })
}

/// Reads a hardware address as leases have it, such as `52:54:00:12:34:56`.
#[must_use]
pub fn read_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use drover_schemas::id::InstallationId;

    use super::super::lease::NicLease;
    use super::super::ops::NetworkDef;
    use super::*;

    fn token(text: &str) -> Token {
        Token::new(text).unwrap()
    }

    fn vm(number: u8, namespace: &str, name: &str, networks: &[&str]) -> VmNet {
        let vm_id = VmId::from_u128(number.into());
        let lease = |(index, network): (usize, &&str)| {
            let address = Ipv4Addr::new(10, 77, u8::try_from(index).unwrap(), number);
            let subnet = NetworkDef::named(token(network)).subnet;
            NicLease::new(InstallationId::from_u128(1), vm_id, index, token(network), subnet, address)
        };
        VmNet {
            vm_id,
            called: Some(VmName { namespace: token(namespace), name: token(name) }),
            uid: 1,
            nics: networks.iter().enumerate().map(lease).collect(),
            forwards: Vec::new(),
            egress: Vec::new(),
            limits: Vec::new(),
            queues: Vec::new(),
        }
    }

    #[test]
    fn a_guest_is_found_on_its_own_network_and_in_its_own_namespace_until_it_goes() {
        let (a, b, net) = (token("a"), token("b"), token("net"));
        let mut guests = Guests::default();
        let (web, other) = (vm(2, "a", "web", &["net", "far"]), vm(3, "b", "web", &["net"]));
        guests.insert(&web);
        guests.insert(&other);
        let found = guests.by_name(&net, &a, &token("web"));
        assert_eq!(found.iter().map(|guest| guest.ipv4).collect::<Vec<_>>(), [web.nics[0].ipv4]);
        assert_eq!(guests.by_name(&net, &b, &token("web"))[0].vm_id, other.vm_id);
        assert!(guests.by_name(&token("far"), &b, &token("web")).is_empty());
        let far = guests.by_address(&token("far"), web.nics[1].ipv4.into()).unwrap();
        assert!(!far.first && found[0].first);
        let mac = read_mac(&web.nics[0].mac).unwrap();
        assert_eq!(guests.by_mac(&net, mac).unwrap().ipv4, web.nics[0].ipv4);
        assert_eq!(guests.by_mac(&token("far"), mac), None, "on another bridge it is nobody");
        // By each of its addresses.
        let six = "fd00:77::/64".parse().unwrap();
        let mut both = vm(4, "a", "six", &["net"]);
        both.nics = both.nics.into_iter().map(|nic| nic.with_ipv6(Some(six))).collect();
        guests.insert(&both);
        let address = both.nics[0].ipv6.unwrap().address;
        assert_eq!(guests.by_address(&net, address.into()).unwrap().addresses().count(), 2);
        guests.remove(&both);
        assert_eq!(guests.by_address(&net, address.into()), None);
        guests.remove(&web);
        guests.remove(&other);
        assert!(guests.by_mac.is_empty() && guests.by_address.is_empty() && guests.by_name.is_empty());
    }

    #[test]
    fn one_hardware_address_of_two_is_nobodys() {
        let (net, mut guests) = (token("net"), Guests::default());
        let (one, mut two) = (vm(2, "a", "one", &["net"]), vm(3, "a", "two", &["net"]));
        two.nics[0].mac.clone_from(&one.nics[0].mac);
        let mac = read_mac(&one.nics[0].mac).unwrap();
        guests.insert(&one);
        guests.insert(&two);
        assert_eq!(guests.by_mac(&net, mac), None);
        guests.remove(&two);
        assert_eq!(guests.by_mac(&net, mac).unwrap().vm_id, one.vm_id);
    }

    #[test]
    fn what_is_no_hardware_address_is_none() {
        assert_eq!(read_mac("52:54:00:aB:0c:ff"), Some([0x52, 0x54, 0, 0xab, 0x0c, 0xff]));
        for text in
            ["", "52:54:00:ab:0c", "52:54:00:ab:0c:ff:00", "52:54:00:ab:0c:fff", "+2:54:00:ab:0c:ff", "x"]
        {
            assert_eq!(read_mac(text), None, "{text}");
        }
    }
}
