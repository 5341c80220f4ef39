//! What differs between the network that should be and the one that is: pure.

use std::collections::{HashMap, HashSet};
use std::fmt;

use drover_schemas::id::VmId;
use ipnet::IpNet;

use super::bridges::Further;
use super::known::{Bridged, Known};
use super::lease::NicLease;
use super::link::LinkInfo;
use super::names;
use super::nft::{Member, Port, Present};
use super::ops::VmNet;

/// What is wrong with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// Our tables are not there.
    RulesGone,
    /// Chains or rules of ours were changed.
    RulesChanged,
    /// Our tables were changed, and mended by the way.
    RulesTouched,
    /// Rules of a TAP are missing.
    ElementsGone,
    /// A TAP's rules allow more than its own addresses.
    ElementsForeign,
    /// Forwards of a VM are missing.
    ForwardsGone,
    /// There are forwards that nobody asked for.
    ForwardsForeign,
    /// The firewall does not take a TAP's rules.
    ElementsRefused,
    /// The bridge of a network is not there.
    BridgeGone,
    /// It is down.
    BridgeDown,
    /// It takes packets of another length than the network's.
    BridgeMtu,
    /// It lacks the gateway's address.
    AddressGone,
    /// It lacks its address of IPv6.
    Ipv6Gone,
    /// A bridge of a network is not joined to its first one, or not as it should be.
    BridgeApart,
    /// A TAP is not under its bridge.
    PortLoose,
    /// A TAP is down.
    PortDown,
    /// A TAP takes packets of another length than its network.
    PortMtu,
    /// A TAP lacks our marks.
    PortUnmarked,
    /// A TAP is not kept apart from the others, or is where it should not be.
    PortIsolation,
    /// A TAP is not there.
    TapGone,
    /// The host does not route.
    ForwardingOff,
    /// An interface could not be brought into its state.
    NotMended,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub wrong: Wrong,
    /// Of which network, TAP or table.
    pub of: String,
    /// Whose it is.
    pub vm_id: Option<VmId>,
}

impl Finding {
    /// Something of the host's own.
    #[must_use]
    pub fn new(wrong: Wrong, of: impl Into<String>) -> Self {
        Self { wrong, of: of.into(), vm_id: None }
    }

    /// Something of a VM's.
    #[must_use]
    pub fn of_vm(wrong: Wrong, of: impl Into<String>, vm_id: VmId) -> Self {
        Self { wrong, of: of.into(), vm_id: Some(vm_id) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = &self.of;
        match self.wrong {
            Wrong::RulesGone => write!(f, "the tables {of} were removed"),
            Wrong::RulesChanged => write!(f, "rules of the tables {of} were changed"),
            Wrong::RulesTouched => write!(f, "the tables {of} were changed"),
            Wrong::ElementsGone => write!(f, "rules of TAP {of} were removed"),
            Wrong::ElementsForeign => write!(f, "rules of TAP {of} allowed foreign addresses"),
            Wrong::ForwardsGone => write!(f, "forwards in the tables {of} were removed"),
            Wrong::ForwardsForeign => write!(f, "the tables {of} had foreign forwards"),
            Wrong::ElementsRefused => write!(f, "the firewall refuses the rules of TAP {of}"),
            Wrong::BridgeGone => write!(f, "the bridge of network {of} was removed"),
            Wrong::BridgeDown => write!(f, "the bridge of network {of} was down"),
            Wrong::BridgeMtu => write!(f, "the bridge of network {of} had another MTU"),
            Wrong::AddressGone => write!(f, "the bridge of network {of} had lost its address"),
            Wrong::Ipv6Gone => write!(f, "the bridge of network {of} had lost its IPv6 address"),
            Wrong::BridgeApart => write!(f, "a bridge of network {of} was cut off from the others"),
            Wrong::PortLoose => write!(f, "TAP {of} was taken from its bridge"),
            Wrong::PortDown => write!(f, "TAP {of} was down"),
            Wrong::PortMtu => write!(f, "TAP {of} had another MTU"),
            Wrong::PortUnmarked => write!(f, "TAP {of} had lost its marks"),
            Wrong::PortIsolation => write!(f, "TAP {of} had lost its isolation"),
            Wrong::TapGone => write!(f, "TAP {of} was removed; restart its VM"),
            Wrong::ForwardingOff => f.write_str("routing was off"),
            Wrong::NotMended => f.write_str(of),
        }?;
        match self.vm_id {
            Some(vm_id) => write!(f, " (VM {vm_id})"),
            None => Ok(()),
        }
    }
}

/// The port of an interface.
#[must_use]
pub fn port(nic: &NicLease) -> Port {
    Port {
        tap: nic.tap.clone(),
        mac: nic.mac.clone(),
        ipv4: nic.ipv4,
        ipv6: nic.ipv6.map(|ipv6| ipv6.address),
    }
}

/// What is wrong with the rules of the tables `table`, given what is there and what was laid, and the elements of known
/// TAPs that should not be there.
#[must_use]
pub fn of_rules(known: &Known, table: &str, present: Option<&Present>, laid: Option<&str>) -> Vec<Finding> {
    let Some(present) = present else { return vec![Finding::new(Wrong::RulesGone, table)] };
    let mut found = Vec::new();
    if laid.is_some_and(|laid| laid != present.fixed) {
        found.push(Finding::new(Wrong::RulesChanged, table));
    }
    let mut by_tap: HashMap<&str, usize> = HashMap::new();
    let mut forwards: HashSet<&Member> = HashSet::new();
    for member in &present.members {
        match member.tap() {
            Some(tap) => *by_tap.entry(tap).or_default() += 1,
            None => drop(forwards.insert(member)),
        }
    }
    for vm in known.vms() {
        for (index, nic) in vm.nics.iter().enumerate() {
            let elements = vm.members_of_tap(index);
            let there = elements.iter().filter(|element| present.members.contains(element)).count();
            if there < elements.len() {
                found.push(Finding::of_vm(Wrong::ElementsGone, &nic.tap, vm.vm_id));
            }
            if by_tap.get(nic.tap.as_str()).is_some_and(|all| *all > there) {
                found.push(Finding::of_vm(Wrong::ElementsForeign, &nic.tap, vm.vm_id));
            }
        }
        let gone = vm.routed_members().filter(|member| !forwards.remove(member)).count();
        if gone > 0 {
            found.push(Finding::of_vm(Wrong::ForwardsGone, table, vm.vm_id));
        }
    }
    if !forwards.is_empty() {
        found.push(Finding::new(Wrong::ForwardsForeign, table));
    }
    found
}

/// What is wrong with bridges and TAPs, given every interface and address there is.
#[must_use]
pub fn of_links(known: &Known, links: &[LinkInfo], addresses: &[(u32, IpNet)]) -> Vec<Finding> {
    let by_name: HashMap<&str, &LinkInfo> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut found = Vec::new();
    let vms = known.vms();
    for network in known.networks().iter() {
        found.extend(of_bridge(network, &by_name, addresses));
        for number in known.further(network, &vms) {
            found.extend(of_further(network, &network.further(number), &by_name));
        }
    }
    let group = names::group(known.installation);
    for vm in &vms {
        found.extend(vm.nics.iter().filter_map(|nic| of_nic(known, &by_name, group, vm, nic)));
    }
    found
}

/// The bridge with the gateway's addresses.
fn of_bridge(
    network: &Bridged,
    by_name: &HashMap<&str, &LinkInfo>,
    addresses: &[(u32, IpNet)],
) -> Vec<Finding> {
    let name = network.def.name.as_str();
    let Some(bridge) = by_name.get(network.bridge.as_str()) else {
        return vec![Finding::new(Wrong::BridgeGone, name)];
    };
    let has = |net: IpNet| addresses.contains(&(bridge.index, net));
    let wrong = [
        (!bridge.up, Wrong::BridgeDown),
        (bridge.mtu != network.def.mtu.get(), Wrong::BridgeMtu),
        (!has(network.gateway_net().into()), Wrong::AddressGone),
        (!network.ipv6_nets().into_iter().all(|net| has(net.into())), Wrong::Ipv6Gone),
    ];
    wrong.into_iter().filter(|(is_wrong, _)| *is_wrong).map(|(_, wrong)| Finding::new(wrong, name)).collect()
}

/// One behind it.
fn of_further(network: &Bridged, further: &Further, by_name: &HashMap<&str, &LinkInfo>) -> Option<Finding> {
    let (name, mtu) = (network.def.name.as_str(), network.def.mtu.get());
    let get = |name: &String| by_name.get(name.as_str()).copied();
    let is_joined = |end: &String, bridge: &String, isolated: bool| {
        get(end).is_some_and(|end| {
            let under = get(bridge).map(|bridge| bridge.index);
            under.is_some() && end.controller == under && end.up && end.isolated == isolated && end.mtu == mtu
        })
    };
    let wrong = match get(&further.bridge) {
        None => Wrong::BridgeGone,
        Some(bridge) if !bridge.up => Wrong::BridgeDown,
        Some(bridge) if bridge.mtu != mtu => Wrong::BridgeMtu,
        Some(_)
            if is_joined(&further.upper, &network.bridge, network.def.isolate)
                && is_joined(&further.lower, &further.bridge, false) =>
        {
            return None;
        }
        Some(_) => Wrong::BridgeApart,
    };
    Some(Finding::new(wrong, name))
}

fn of_nic(
    known: &Known,
    by_name: &HashMap<&str, &LinkInfo>,
    group: u32,
    vm: &VmNet,
    nic: &NicLease,
) -> Option<Finding> {
    let network = known.network(&nic.network)?;
    let bridge = network.bridge_of(network.number_of(nic));
    let bridge = by_name.get(bridge.as_str()).map(|bridge| bridge.index);
    let wrong = match by_name.get(nic.tap.as_str()) {
        None => Wrong::TapGone,
        Some(tap) if tap.controller.is_none() || tap.controller != bridge => Wrong::PortLoose,
        Some(tap) if !tap.up => Wrong::PortDown,
        Some(tap) if tap.group != group || tap.alias.as_deref() != Some(&known.alias(vm.vm_id)) => {
            Wrong::PortUnmarked
        }
        Some(tap) if tap.isolated != network.def.isolate => Wrong::PortIsolation,
        Some(tap) if tap.mtu != network.def.mtu.get() => Wrong::PortMtu,
        Some(_) => return None,
    };
    Some(Finding::of_vm(wrong, &nic.tap, vm.vm_id))
}
