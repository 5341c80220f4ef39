//! What the network of a host should be: its networks, and the interfaces of the VMs that have any.
//!
//! The network actor keeps it; the watch reads it to tell what others did from what was to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::watch;

use super::bridges::Further;
use super::guests::Guests;
use super::ipv6;
use super::lease::{NicLease, gateway};
use super::link::LinkInfo;
use super::names;
use super::ops::{NetworkDef, VmNet};

/// A network as the kernel is to show it.
#[derive(Debug, Clone)]
pub struct Bridged {
    /// Whose it is.
    pub installation: InstallationId,
    /// What the configuration says.
    pub def: NetworkDef,
    /// Name of the bridge that has the gateway's addresses.
    pub bridge: String,
    /// Its alias.
    pub alias: String,
    /// Its MAC.
    pub mac: [u8; 6],
}

impl Bridged {
    /// The network that `def` is of.
    #[must_use]
    pub fn new(installation: InstallationId, def: &NetworkDef) -> Self {
        Self {
            installation,
            bridge: names::bridge(installation, &def.name),
            alias: names::bridge_alias(installation, &def.name),
            mac: names::bridge_mac(installation, &def.name),
            def: def.clone(),
        }
    }

    /// The bridge's own address.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.def.subnet.trunc())
    }

    /// The same with the length of the prefix.
    #[must_use]
    pub fn gateway_net(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.gateway(), self.def.subnet.prefix_len())
    }

    /// The bridge's own addresses of IPv6: the gateway, and the one of the link by which it asks for its neighbours.
    #[must_use]
    pub fn ipv6_nets(&self) -> Vec<Ipv6Net> {
        let Some(subnet) = self.def.ipv6 else { return Vec::new() };
        let mac: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let link = ipv6::link_local(&mac.join(":")).map(|address| Ipv6Net::new_assert(address, 64));
        std::iter::once(ipv6::gateway_net(subnet.trunc())).chain(link).collect()
    }
}

/// The networks of a host, as they are at a time.
pub type Networks = Arc<Vec<Arc<Bridged>>>;

/// What should be.
#[derive(Debug)]
pub struct Known {
    /// Whose it is.
    pub installation: InstallationId,
    /// The networks, which verbs change.
    networks: watch::Sender<Networks>,
    state: RwLock<State>,
    /// A bridge has another number.
    pub(super) moved: watch::Sender<()>,
}

/// Whose a TAP is and how it is plugged.
#[derive(Debug)]
struct Place {
    /// Nobody's, if it joins two bridges.
    vm_id: Option<VmId>,
    bridge: String,
    isolated: bool,
    mtu: u32,
}

/// A bridge behind the first one of a network.
#[derive(Debug)]
struct Made {
    network: Token,
    number: u32,
    mtu: u32,
}

#[derive(Debug, Default)]
struct State {
    vms: HashMap<VmId, VmNet>,
    /// Where each TAP is, and each end of what joins two bridges.
    ports: HashMap<String, Place>,
    /// Bridges behind the first one of a network that were made, by name.
    further: BTreeMap<String, Made>,
    /// Numbers of bridges as last seen, by name.
    bridges: HashMap<String, u32>,
    /// The same VMs, for those who answer them.
    guests: Guests,
}

impl Known {
    /// Networks without VMs.
    #[must_use]
    pub fn new(installation: InstallationId, networks: &[NetworkDef]) -> Self {
        let bridged = networks.iter().map(|def| Arc::new(Bridged::new(installation, def)));
        Self {
            installation,
            networks: watch::Sender::new(Arc::new(bridged.collect())),
            state: RwLock::default(),
            moved: watch::Sender::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The networks as they are now.
    #[must_use]
    pub fn networks(&self) -> Networks {
        self.networks.borrow().clone()
    }

    /// The same, and each change of it.
    #[must_use]
    pub fn networks_changes(&self) -> watch::Receiver<Networks> {
        self.networks.subscribe()
    }

    /// The network of that name.
    #[must_use]
    pub fn network(&self, name: &Token) -> Option<Arc<Bridged>> {
        self.networks.borrow().iter().find(|network| network.def.name == *name).cloned()
    }

    /// Takes a network in, in the place of one of its name.
    pub fn add_network(&self, def: &NetworkDef) {
        let bridged = Arc::new(Bridged::new(self.installation, def));
        self.networks.send_modify(|networks| {
            let others = networks.iter().filter(|network| network.def.name != def.name).cloned();
            *networks = Arc::new(others.chain([bridged]).collect());
        });
    }

    /// Forgets a network, which no VM has an interface in.
    pub fn remove_network(&self, name: &Token) {
        let Some(network) = self.network(name) else { return };
        let mut state = self.write();
        state.bridges.remove(&network.bridge);
        for number in state.further_of(name) {
            let further = network.further(number);
            state.further.remove(&further.bridge);
            state.bridges.remove(&further.bridge);
            state.ports.remove(&further.upper);
            state.ports.remove(&further.lower);
        }
        drop(state);
        self.networks.send_modify(|networks| {
            *networks =
                Arc::new(networks.iter().filter(|network| network.def.name != *name).cloned().collect());
        });
    }

    /// Takes a VM whose interfaces are as they should be, in place of what was known of it.
    pub fn insert(&self, vm: VmNet) {
        let mut state = self.write();
        state.forget(vm.vm_id);
        for nic in &vm.nics {
            let Some(network) = self.network(&nic.network) else { continue };
            let (isolated, mtu) = (network.def.isolate, network.def.mtu.get());
            let bridge = network.bridge_of(network.number_of(nic));
            state.ports.insert(nic.tap.clone(), Place { vm_id: Some(vm.vm_id), bridge, isolated, mtu });
        }
        state.guests.insert(&vm);
        state.vms.insert(vm.vm_id, vm);
    }

    /// Forgets a VM: its interfaces are to go. Gives what was known of it.
    pub fn remove(&self, vm_id: VmId) -> Option<VmNet> {
        self.write().forget(vm_id)
    }

    /// Notes a further bridge of a network, which is there from now on.
    pub fn note_further(&self, network: &Bridged, number: u32, further: &Further) {
        let mut state = self.write();
        let mtu = network.def.mtu.get();
        let made = Made { network: network.def.name.clone(), number, mtu };
        state.further.insert(further.bridge.clone(), made);
        let place = |bridge: &str, isolated| Place { vm_id: None, bridge: bridge.to_owned(), isolated, mtu };
        state.ports.insert(further.upper.clone(), place(&network.bridge, network.def.isolate));
        state.ports.insert(further.lower.clone(), place(&further.bridge, false));
    }

    /// The numbers of the further bridges that a network has.
    #[must_use]
    pub fn further_of(&self, network: &Token) -> Vec<u32> {
        self.read().further_of(network)
    }

    /// The further bridges that a network is to have: those that VMs need, and those that were made.
    #[must_use]
    pub fn further(&self, network: &Bridged, vms: &[VmNet]) -> BTreeSet<u32> {
        network.needed(vms).into_iter().chain(self.further_of(&network.def.name)).collect()
    }

    /// Whether a further bridge is there, as far as is known.
    #[must_use]
    pub fn has_further(&self, bridge: &str) -> bool {
        self.read().further.contains_key(bridge)
    }

    /// Whether an interface is one of a network's own: a bridge, or what joins two.
    #[must_use]
    pub fn is_of_networks(&self, name: &str) -> bool {
        let state = self.read();
        self.networks.borrow().iter().any(|network| network.bridge == name)
            || state.further.contains_key(name)
            || state.ports.get(name).is_some_and(|place| place.vm_id.is_none())
    }

    /// Notes the number of a bridge.
    pub fn note_bridge(&self, bridge: &str, index: u32) {
        if self.write().bridges.insert(bridge.to_owned(), index) != Some(index) {
            self.moved.send_replace(());
        }
    }

    /// The number of a bridge, as last seen.
    #[must_use]
    pub fn bridge(&self, bridge: &str) -> Option<u32> {
        self.read().bridges.get(bridge).copied()
    }

    /// What is asked of the guests.
    pub fn guests<T>(&self, ask: impl FnOnce(&Guests) -> T) -> T {
        ask(&self.read().guests)
    }

    /// A VM's interfaces.
    #[must_use]
    pub fn vm(&self, vm_id: VmId) -> Option<VmNet> {
        self.read().vms.get(&vm_id).cloned()
    }

    /// Every VM that has interfaces.
    #[must_use]
    pub fn vms(&self) -> Vec<VmNet> {
        self.read().vms.values().cloned().collect()
    }

    /// Whose the TAP is.
    #[must_use]
    pub fn owner(&self, tap: &str) -> Option<VmId> {
        self.read().ports.get(tap).and_then(|place| place.vm_id)
    }

    /// Whether an interface is under a bridge of ours.
    #[must_use]
    pub fn is_port(&self, name: &str) -> bool {
        self.read().ports.contains_key(name)
    }

    /// Whether an interface of ours is not as it should be; `found` is `None` if it is gone. Others are always right.
    #[must_use]
    pub fn is_wrong(&self, name: &str, found: Option<&LinkInfo>) -> bool {
        let state = self.read();
        let place = state.ports.get(name);
        let networks = self.networks();
        let bridge_mtu = networks.iter().find(|network| network.bridge == name);
        let bridge_mtu = bridge_mtu.map(|network| network.def.mtu.get());
        let bridge_mtu = bridge_mtu.or_else(|| state.further.get(name).map(|made| made.mtu));
        if place.is_none() && bridge_mtu.is_none() {
            return false;
        }
        let Some(found) = found.filter(|link| link.up) else { return true };
        match place {
            Some(place) => {
                found.controller != state.bridges.get(&place.bridge).copied()
                    || found.isolated != place.isolated
                    || found.mtu != place.mtu
            }
            None => state.bridges.get(name) != Some(&found.index) || bridge_mtu != Some(found.mtu),
        }
    }

    /// Whether the address is the gateway of a network.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.networks.borrow().iter().any(|network| match address {
            IpAddr::V4(address) => network.gateway() == address,
            IpAddr::V6(address) => network.ipv6_nets().iter().any(|net| net.addr() == address),
        })
    }

    /// Whether a network has IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.networks.borrow().iter().any(|network| network.def.ipv6.is_some())
    }

    /// The alias of a VM's TAPs.
    #[must_use]
    pub fn alias(&self, vm_id: VmId) -> String {
        names::tap_alias(self.installation, vm_id)
    }
}

impl State {
    fn further_of(&self, network: &Token) -> Vec<u32> {
        let of = self.further.values().filter(|made| made.network == *network);
        of.map(|made| made.number).collect()
    }

    fn forget(&mut self, vm_id: VmId) -> Option<VmNet> {
        let vm = self.vms.remove(&vm_id)?;
        self.guests.remove(&vm);
        for NicLease { tap, .. } in &vm.nics {
            self.ports.remove(tap);
        }
        Some(vm)
    }
}
