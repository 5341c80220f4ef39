//! What the network actor does, step by step: bridges, TAPs and elements in their order.
//!
//! Every operation may be repeated: what is there already is verified and kept. A VM's TAP exists before its
//! elements, and its elements go before its TAP, so a port without rules never carries traffic of a guest:
//! the VMM attaches only after the answer.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use drover_schemas::body::status::NicStatus;
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::dns::DnsDef;
use super::egress::{self, Egress};
use super::findings::port;
use super::forward::{Forward, open};
use super::guests::VmName;
use super::ipv6;
use super::kernel6;
use super::known::{Bridged, Known};
use super::lease::NicLease;
use super::limit::Limits;
use super::link::{BridgeShape, Host, LinkError, LinkInfo, Links, PortShape};
use super::mtu::Mtu;
use super::names::{self, Mark};
use super::nft::{Base, BaseNet, Member, Nft, NftError};
use super::tap::{self, TapError, TapKind};
use crate::bus::claims::subnets::SubnetPool;
use crate::chain;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// A network of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDef {
    /// Its name, as specs use it.
    pub name: Token,
    /// Its addresses; the first host is the gateway.
    #[serde(default = "default_subnet")]
    pub subnet: Ipv4Net,
    /// In its place: another subnet on each host of the fleet, out of a pool that all have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_from: Option<SubnetPool>,
    /// Its addresses of IPv6, with the same places in it as the others; no IPv6 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Net>,
    /// The longest packet of its guests, in bytes; a guest takes it over when it boots.
    #[serde(default)]
    pub mtu: Mtu,
    /// Guests cannot reach each other.
    #[serde(default = "default_isolate")]
    pub isolate: bool,
    /// Where guests may not go; by default the link-local ranges and what else holds clouds' metadata services.
    #[serde(default = "default_egress_deny")]
    pub egress_deny: Vec<IpNet>,
    /// Guests that ask by DHCP get their addresses.
    #[serde(default = "default_dhcp")]
    pub dhcp: bool,
    /// Names that its guests ask the gateway for.
    #[serde(default)]
    pub dns: DnsDef,
}

fn default_dhcp() -> bool {
    true
}

fn default_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 20)
}

fn default_isolate() -> bool {
    true
}

fn default_egress_deny() -> Vec<IpNet> {
    let ipv4 = egress::METADATA.into_iter().map(IpNet::V4);
    ipv4.chain(ipv6::METADATA.into_iter().map(IpNet::V6)).collect()
}

impl NetworkDef {
    /// Whether its subnet is one of its own, and not the one of all who do not say.
    #[must_use]
    pub fn has_own_subnet(&self) -> bool {
        self.subnet != default_subnet()
    }

    /// A network with the defaults.
    #[must_use]
    pub fn named(name: Token) -> Self {
        Self {
            name,
            subnet: default_subnet(),
            subnet_from: None,
            ipv6: None,
            mtu: Mtu::default(),
            isolate: default_isolate(),
            egress_deny: default_egress_deny(),
            dhcp: default_dhcp(),
            dns: DnsDef::default(),
        }
    }
}

/// What the network actor is started with.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Whose network it is.
    pub installation: InstallationId,
    /// The networks of this host.
    pub networks: Vec<NetworkDef>,
    /// The `nft` program; looked up in `PATH` if it is a bare name.
    pub nft: PathBuf,
}

/// The interfaces of one VM.
#[derive(Debug, Clone)]
pub struct VmNet {
    /// The VM.
    pub vm_id: VmId,
    /// What it is called; nobody says of one without a row.
    pub called: Option<VmName>,
    /// Who may attach to the TAPs.
    pub uid: u32,
    /// Its interfaces in order.
    pub nics: Vec<NicLease>,
    /// Ports of the host that lead to each of them.
    pub forwards: Vec<Vec<Forward>>,
    /// What each of them may reach.
    pub egress: Vec<Option<Egress>>,
    /// How fast each of them may be.
    pub limits: Vec<Limits>,
    /// How many pairs of queues each of them has; one if nothing is said.
    pub queues: Vec<u32>,
}

impl VmNet {
    /// All that the firewall knows of it.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.members_of_taps().chain(self.routed_members()).collect()
    }

    /// What the bridge's firewall knows of it.
    pub fn members_of_taps(&self) -> impl Iterator<Item = Member> {
        (0..self.nics.len()).flat_map(|index| self.members_of_tap(index))
    }

    /// What the bridge's firewall knows of the TAP of an interface.
    #[must_use]
    pub fn members_of_tap(&self, index: usize) -> Vec<Member> {
        let Some(nic) = self.nics.get(index) else { return Vec::new() };
        let mut members = port(nic).elements();
        members.extend(self.limits.get(index).into_iter().flat_map(|limits| limits.elements(&nic.tap)));
        members
    }

    /// What of it leads there from ports of the host, and where it may go.
    pub fn routed_members(&self) -> impl Iterator<Item = Member> {
        let of_nics = self.nics.iter().zip(&self.forwards);
        let led = of_nics.flat_map(|(nic, forwards)| {
            nic.addresses().flat_map(move |guest| {
                let led = forwards.iter().flat_map(move |forward| forward.elements(guest));
                led.chain(open(guest, forwards))
            })
        });
        let counted = self.nics.iter().flat_map(|nic| nic.addresses().flat_map(egress::counted));
        led.chain(counted).chain(egress::members(&self.nics, &self.egress))
    }
}

/// The network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A lease names a network that this host does not have.
    #[error("this host has no network {network}")]
    UnknownNetwork {
        /// Its name.
        network: Token,
    },
    /// The subnet is in use elsewhere on this host.
    #[error("subnet {subnet} of network {network} overlaps the address {other} of another interface")]
    Overlap {
        /// The network.
        network: Token,
        /// Its subnet.
        subnet: IpNet,
        /// The other address.
        other: String,
    },
    /// A network has IPv6, and the host has not.
    #[error(
        "network {network} has `ipv6`, and this host's kernel has no IPv6: boot it without `ipv6.disable=1` (or load the \
         module `ipv6`), or take `ipv6` out of the network"
    )]
    NoIpv6 {
        /// The network.
        network: Token,
    },
    /// The kernel's settings of IPv6 cannot be changed.
    #[error("cannot set {path}; drover needs to write below /proc/sys/net/ipv6")]
    Ipv6 {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Packets cannot be routed.
    #[error("cannot switch on forwarding below /proc/sys/net/ipv4")]
    Forwarding(#[source] io::Error),
    /// A TAP failed.
    #[error("TAP of network interface")]
    Tap(#[from] TapError),
    /// An interface failed.
    #[error("network interface")]
    Link(#[from] LinkError),
    /// The firewall failed.
    #[error("firewall")]
    Nft(#[from] NftError),
    /// The network actor is gone or did not answer in time.
    #[error("the network actor does not answer")]
    NoAnswer,
}

/// Something with our mark that no known VM owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Name of the TAP.
    pub tap: String,
    /// The VM in its mark.
    pub vm_id: VmId,
}

/// What carries marks of drover on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// TAPs of this installation whose VM is not known.
    pub leftovers: Vec<Leftover>,
    /// Firewall elements of this installation whose TAP is gone.
    pub stale_elements: Vec<String>,
    /// How many interfaces belong to other installations; they are left alone.
    pub foreign: usize,
}

/// The kernel's side of the network.
#[derive(Debug)]
pub struct NetOps {
    pub(super) known: Known,
    pub(super) links: Links,
    pub(super) nft: Nft,
    /// The static rules as `nft` lists them, since they were laid.
    pub(super) laid: Mutex<Option<String>>,
    /// The bridges were taken down because there were no rules.
    pub(super) closed: AtomicBool,
}

impl NetOps {
    /// Connects; within a tokio runtime.
    ///
    /// # Errors
    /// The kernel's interface cannot be reached.
    pub fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        let known = Known::new(config.installation, &config.networks);
        let nft = Nft::new(config.nft, names::table(config.installation));
        let links = Links::connect()?;
        Ok(Self { known, links, nft, laid: Mutex::default(), closed: AtomicBool::default() })
    }

    fn network(&self, name: &Token) -> Result<Arc<Bridged>, NetworkError> {
        self.known.network(name).ok_or_else(|| NetworkError::UnknownNetwork { network: name.clone() })
    }

    pub(super) fn base(&self) -> Base {
        let net = |network: &Arc<Bridged>| BaseNet {
            bridge: network.bridge.clone(),
            mac: network.mac,
            subnet: network.def.subnet.trunc(),
            ipv6: network.def.ipv6.map(|subnet| subnet.trunc()),
            isolate: network.def.isolate,
            egress_deny: network.def.egress_deny.clone(),
            dhcp: network.def.dhcp,
            dns: network.def.dns.serve,
        };
        let networks = self.known.networks().iter().map(net).collect();
        let installation = self.known.installation;
        Base { group: names::group(installation), inner: names::inner_group(installation), networks }
    }

    /// Bridges and their addresses.
    ///
    /// # Errors
    /// A step fails; what was done before it stays and is found again.
    pub(super) async fn ensure_bridges(&self) -> Result<(), NetworkError> {
        let vms = self.known.vms();
        for network in self.known.networks().iter() {
            let shape = BridgeShape {
                name: &network.bridge,
                alias: &network.alias,
                mac: network.mac,
                mtu: network.def.mtu.get(),
                host: Host::Gateway(network.gateway_net()),
            };
            let index = self.links.ensure_bridge(&shape).await?;
            self.known.note_bridge(&network.bridge, index);
            // For the host's own way to a port of 127.0.0.1 that is forwarded; the rules keep guests from there.
            let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", network.bridge);
            switch_on(&path).map_err(NetworkError::Forwarding)?;
            let ipv6 = network.ipv6_nets();
            if !ipv6.is_empty() {
                kernel6::bridge(&network.bridge)?;
                self.links.ensure_ipv6(&network.bridge, &ipv6).await?;
            }
            for number in self.known.further(network, &vms) {
                self.ensure_further(network, number).await?;
            }
        }
        Ok(())
    }

    /// A bridge behind the first one of its network, joined to it.
    async fn ensure_further(&self, network: &Bridged, number: u32) -> Result<(), NetworkError> {
        let further = network.further(number);
        let group = names::inner_group(self.known.installation);
        let mtu = network.def.mtu.get();
        let shape = BridgeShape {
            name: &further.bridge,
            alias: &further.alias,
            mac: further.mac,
            mtu,
            host: Host::Nobody(group),
        };
        let index = self.links.ensure_bridge(&shape).await?;
        self.known.note_bridge(&further.bridge, index);
        self.links.ensure_pair([&further.upper, &further.lower], &further.alias).await?;
        for name in [&further.bridge, &further.upper, &further.lower] {
            kernel6::silence(name)?;
        }
        // Guests reach the first bridge and its gateway, and what is behind other bridges only where guests reach each other.
        for (end, bridge, isolated) in
            [(&further.upper, &network.bridge, network.def.isolate), (&further.lower, &further.bridge, false)]
        {
            let shape = PortShape { alias: &further.alias, bridge, group, isolated, mtu };
            self.links.ensure_port(end, shape).await?;
        }
        self.known.note_further(network, number, &further);
        Ok(())
    }

    /// Removes bridges of ours that no network has any more and nothing is under: those of networks that were taken out of
    /// the configuration, and further ones that have become empty.
    ///
    /// # Errors
    /// The kernel cannot be asked, or refuses.
    pub(super) async fn remove_empty_bridges(&self) -> Result<(), NetworkError> {
        let links = self.links.list().await?;
        let is_left = |link: &&LinkInfo| {
            let mark = link.alias.as_deref().and_then(names::read_alias);
            matches!(mark, Some(Mark::Bridge(owner, _)) if owner == self.known.installation)
                && !self.known.is_of_networks(&link.name)
        };
        let left: Vec<&LinkInfo> = links.iter().filter(is_left).collect();
        let is_used = |bridge: u32| {
            let under = |link: &&LinkInfo| link.controller == Some(bridge);
            links.iter().filter(under).any(|port| !left.iter().any(|link| link.index == port.index))
        };
        for link in &left {
            // What joins two bridges goes with the lower one.
            if !is_used(link.controller.unwrap_or(link.index)) {
                tracing::info!(interface = link.name, "a bridge that no network needs is removed");
                self.links.delete(&link.name, link.alias.as_deref().unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    /// Whether the machine has room for a network: its addresses are nobody else's, and the kernel has IPv6 if it wants it.
    ///
    /// # Errors
    /// It has not, or the kernel cannot be asked.
    pub(super) async fn check_machine(&self, network: &Bridged) -> Result<(), NetworkError> {
        let def = &network.def;
        let ipv6 = def.ipv6.map(|subnet| subnet.trunc().into());
        for subnet in [def.subnet.trunc().into()].into_iter().chain(ipv6) {
            if let Some(other) = self.links.conflict(subnet, &network.bridge).await? {
                return Err(NetworkError::Overlap { network: def.name.clone(), subnet, other });
            }
        }
        if ipv6.is_some() && !kernel6::is_there() {
            return Err(NetworkError::NoIpv6 { network: def.name.clone() });
        }
        Ok(())
    }

    /// Makes a network that the host did not have.
    ///
    /// # Errors
    /// A step fails; nothing of it is left, as far as that can be removed.
    pub async fn add_network(&self, def: &NetworkDef) -> Result<(), NetworkError> {
        self.check_machine(&Bridged::new(self.known.installation, def)).await?;
        self.known.add_network(def);
        let made = async {
            self.lay_anew().await?;
            self.ensure_bridges().await?;
            self.ensure_forwarding().map(drop)
        };
        let Err(failure) = made.await else { return Ok(()) };
        if let Err(left) = self.remove_network(&def.name).await {
            tracing::warn!(network = %def.name, error = %chain(&left), "something of a network may be left");
        }
        Err(failure)
    }

    /// Removes a network that no VM has an interface in: bridges first, so that none is without rules.
    ///
    /// # Errors
    /// A step fails; what is left goes when the daemon starts again.
    pub async fn remove_network(&self, name: &Token) -> Result<(), NetworkError> {
        self.known.remove_network(name);
        self.remove_empty_bridges().await?;
        self.lay_anew().await
    }

    /// Packets are routed between guests and the outside; not before there are rules.
    ///
    /// # Errors
    /// The kernel's setting cannot be written.
    pub(super) fn ensure_forwarding(&self) -> Result<bool, NetworkError> {
        if self.known.networks().is_empty() {
            return Ok(false);
        }
        let was_off = switch_on(IP_FORWARD).map_err(NetworkError::Forwarding)?;
        let is_ours = |name: &str| self.known.is_port(name) || self.known.is_of_networks(name);
        Ok(self.known.has_ipv6() && kernel6::forwarding(is_ours)? || was_off)
    }

    /// TAPs of a VM under their bridges; without elements no packet of theirs passes.
    ///
    /// # Errors
    /// A step fails; the TAPs that it made are removed again.
    pub async fn plug(&self, vm: &VmNet) -> Result<(), NetworkError> {
        for (index, nic) in vm.nics.iter().enumerate() {
            let kind = TapKind::of(vm.queues.get(index).copied().unwrap_or(1));
            if let Err(error) = self.plug_one(vm, nic, kind).await {
                // The first failure counts; what cannot be removed is found by the sweep.
                let _ = self.unplug(vm.vm_id, &vm.nics).await;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn plug_one(&self, vm: &VmNet, nic: &NicLease, kind: TapKind) -> Result<(), NetworkError> {
        let network = self.network(&nic.network)?;
        let number = network.number_of(nic);
        if number > 0 && !self.known.has_further(&network.bridge_of(number)) {
            self.ensure_further(&network, number).await?;
        }
        let existing = self.links.get(&nic.tap).await?;
        // A TAP that a VMM uses is busy and needs no ioctl: this is an adoption.
        let alias = self.known.alias(vm.vm_id);
        let in_use = existing.as_ref().is_some_and(|l| l.alias.as_deref() == Some(&alias) && l.carrier);
        if !in_use {
            let (tap, uid) = (nic.tap.clone(), vm.uid);
            let made = tokio::task::spawn_blocking(move || tap::ensure(&tap, kind, uid)).await;
            made.map_err(|_| NetworkError::NoAnswer)??;
        }
        self.ensure_port(vm.vm_id, nic).await
    }

    /// Brings a TAP that is there into its place; whoever uses it goes on.
    ///
    /// # Errors
    /// A step fails.
    pub(super) async fn ensure_port(&self, vm_id: VmId, nic: &NicLease) -> Result<(), NetworkError> {
        let network = self.network(&nic.network)?;
        let shape = PortShape {
            alias: &self.known.alias(vm_id),
            bridge: &network.bridge_of(network.number_of(nic)),
            group: names::group(self.known.installation),
            isolated: network.def.isolate,
            mtu: network.def.mtu.get(),
        };
        self.links.ensure_port(&nic.tap, shape).await?;
        if network.def.ipv6.is_some() {
            kernel6::port(&nic.tap)?;
        }
        Ok(())
    }

    /// Removes the TAPs of a VM; they may be gone already.
    ///
    /// # Errors
    /// A TAP cannot be removed; the others were.
    pub async fn unplug(&self, vm_id: VmId, nics: &[NicLease]) -> Result<(), NetworkError> {
        let alias = self.known.alias(vm_id);
        let mut result = Ok(());
        for nic in nics {
            let removed = match self.links.delete(&nic.tap, &alias).await {
                // Made, but not yet marked: nobody else uses such a name.
                Err(LinkError::NotOurs { alias: None, .. }) => {
                    let tap = nic.tap.clone();
                    match tokio::task::spawn_blocking(move || tap::remove(&tap)).await {
                        Ok(removed) => removed.map_err(NetworkError::from),
                        Err(_) => Err(NetworkError::NoAnswer),
                    }
                }
                other => other.map_err(NetworkError::from),
            };
            result = result.and(removed);
        }
        result
    }

    /// Adds and removes elements of many VMs in one transaction. Where the tables themselves are missing, all of
    /// the rules are laid anew with them.
    ///
    /// # Errors
    /// The firewall refuses; nothing was changed.
    pub async fn change(&self, add: &[Member], remove: &[Member]) -> Result<(), NetworkError> {
        let Err(refused) = self.nft.change(add, remove).await else { return Ok(()) };
        if self.nft.read().await?.is_some() {
            return Err(refused.into());
        }
        let mut all = self.known_members();
        all.extend_from_slice(add);
        Ok(self.nft.lay(&self.base(), &all, &[]).await?)
    }

    pub(super) fn known_members(&self) -> Vec<Member> {
        self.known.vms().iter().flat_map(VmNet::members).collect()
    }

    /// What carries our marks and belongs to none of `known`. Removes nothing.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn sweep(&self, known: &HashSet<VmId>) -> Result<SweepReport, NetworkError> {
        let mut report = SweepReport::default();
        let links = self.links.list().await?;
        for link in &links {
            match link.alias.as_deref().and_then(names::read_alias) {
                Some(Mark::Tap(owner, vm_id))
                    if owner == self.known.installation && !known.contains(&vm_id) =>
                {
                    report.leftovers.push(Leftover { tap: link.name.clone(), vm_id });
                }
                Some(Mark::Tap(owner, _)) if owner == self.known.installation => {}
                Some(Mark::Bridge(owner, _)) if owner == self.known.installation => {}
                Some(_) => report.foreign += 1,
                None => {}
            }
        }
        let present: HashSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let elements = self.nft.read().await?.unwrap_or_default();
        let stale = elements.taps().filter(|tap| !present.contains(tap) && self.known.owner(tap).is_none());
        report.stale_elements = stale.map(ToOwned::to_owned).collect();
        Ok(report)
    }

    /// Removes the tables and bridges of this installation.
    ///
    /// # Errors
    /// A step fails; those after it were tried all the same.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        let mut result = self.nft.teardown().await.map_err(NetworkError::from);
        for link in self.links.list().await? {
            let Some(alias) = link.alias.as_deref() else { continue };
            if let Some(Mark::Bridge(owner, _)) = names::read_alias(alias)
                && owner == self.known.installation
            {
                let removed = self.links.delete(&link.name, alias).await;
                result = result.and(removed.map_err(NetworkError::from));
            }
        }
        result
    }
}

/// What the VM's status says about its interfaces.
#[must_use]
pub fn statuses(nics: &[NicLease]) -> Vec<NicStatus> {
    nics.iter().map(NicLease::status).collect()
}

/// The firewall elements of interfaces, without forwards.
#[must_use]
pub fn members(nics: &[NicLease]) -> Vec<Member> {
    nics.iter().flat_map(|nic| port(nic).elements()).collect()
}

/// Whether it was off.
fn switch_on(path: &str) -> io::Result<bool> {
    let off = fs::read_to_string(path)?.trim() != "1";
    if off {
        fs::write(path, "1")?;
    }
    Ok(off)
}
