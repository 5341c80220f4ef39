//! The addresses of a network: pure, with the clock passed in.
//!
//! A [`Pool`] holds no more than the journal's leases say: at start it is restored from them, and a new lease
//! counts only once it is journalled. A released address rests for a while, so that a neighbour's stale ARP
//! entry does not send one guest's traffic to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use drover_schemas::body::status::NicStatus;
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ipv6::Ipv6Lease;
use super::names;
use crate::hypervisor::config::{GuestNic, NicConfig};

/// How long a released address rests.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// One interface of a VM: everything that is leased or follows from what is leased. Journalled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicLease {
    /// The host's network.
    pub network: Token,
    /// Name of the TAP.
    pub tap: String,
    /// The guest's MAC.
    pub mac: String,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The network's gateway: the host's bridge.
    pub gateway: Ipv4Addr,
    /// The same of IPv6, if the network had it when this was leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Lease>,
}

impl NicLease {
    /// The lease of interface `index` of a VM with an address of `subnet`.
    #[must_use]
    pub fn new(
        installation: InstallationId,
        vm_id: VmId,
        index: usize,
        network: Token,
        subnet: Ipv4Net,
        ipv4: Ipv4Addr,
    ) -> Self {
        Self {
            network,
            tap: names::tap(installation, vm_id, index),
            mac: names::mac(vm_id, index),
            ipv4,
            prefix_len: subnet.prefix_len(),
            gateway: gateway(subnet),
            ipv6: None,
        }
    }

    /// The same with the address that it has in the network's subnet of IPv6, if that has one.
    #[must_use]
    pub fn with_ipv6(mut self, subnet: Option<Ipv6Net>) -> Self {
        self.ipv6 = subnet.map(|subnet| Ipv6Lease::of(subnet, self.ipv4, self.prefix_len));
        self
    }

    /// The guest's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv6 = self.ipv6.map(|ipv6| IpAddr::V6(ipv6.address));
        std::iter::once(IpAddr::V4(self.ipv4)).chain(ipv6)
    }

    /// For the VMM's configuration.
    #[must_use]
    pub fn nic_config(&self) -> NicConfig {
        NicConfig { tap: self.tap.clone(), mac: self.mac.clone(), kind: Some(names::tap_kind(&self.tap)) }
    }

    /// For the guest's command line.
    #[must_use]
    pub fn guest_nic(&self) -> GuestNic {
        GuestNic { ipv4: self.ipv4, prefix_len: self.prefix_len, gateway: self.gateway }
    }

    /// For the VM's status.
    #[must_use]
    pub fn status(&self) -> NicStatus {
        NicStatus {
            network: self.network.clone(),
            tap: self.tap.clone(),
            mac: self.mac.clone(),
            ipv4: self.ipv4.to_string(),
            prefix_len: self.prefix_len,
            gateway: self.gateway.to_string(),
            ipv6: self.ipv6.map(|ipv6| ipv6.address.to_string()),
            ipv6_prefix_len: self.ipv6.map(|ipv6| ipv6.prefix_len),
            ipv6_gateway: self.ipv6.map(|ipv6| ipv6.gateway.to_string()),
            forwards: Vec::new(),
            egress: None,
            limits: None,
        }
    }
}

/// The gateway of a subnet: its first host.
#[must_use]
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// An address cannot be leased.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every address is leased or rests.
    #[error("no address is free in {subnet}: {leased} leased, {resting} resting after use")]
    Exhausted {
        /// The pool.
        subnet: Ipv4Net,
        /// How many are leased.
        leased: usize,
        /// How many rest.
        resting: usize,
    },
    /// The wanted address is another VM's.
    #[error("address {address} is leased to another VM")]
    Taken {
        /// The address.
        address: Ipv4Addr,
    },
    /// The wanted address cannot be a guest's.
    #[error("address {address} is not one for guests of {subnet}")]
    Outside {
        /// The address.
        address: Ipv4Addr,
        /// The pool.
        subnet: Ipv4Net,
    },
    /// The subnet has no room for a gateway and a guest.
    #[error("subnet {subnet} is too small: use a prefix of at most 30")]
    TooSmall {
        /// The subnet.
        subnet: Ipv4Net,
    },
}

/// The addresses of one network.
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: Ipv4Net,
    leased: BTreeSet<u32>,
    /// Until when an address rests, by the caller's clock.
    resting: BTreeMap<u32, Duration>,
    /// Where the next search begins: addresses are used in turn, not the lowest again and again.
    next: u32,
}

impl Pool {
    /// A pool without leases.
    ///
    /// # Errors
    /// The subnet is too small.
    pub fn new(subnet: Ipv4Net) -> Result<Self, PoolError> {
        let subnet = subnet.trunc();
        if subnet.prefix_len() > 30 {
            return Err(PoolError::TooSmall { subnet });
        }
        let next = u32::from(subnet.network()) + 2;
        Ok(Self { subnet, leased: BTreeSet::new(), resting: BTreeMap::new(), next })
    }

    /// The subnet.
    #[must_use]
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// First and last address for guests: not the network, the gateway or the broadcast address.
    fn range(&self) -> (u32, u32) {
        (u32::from(self.subnet.network()) + 2, u32::from(self.subnet.broadcast()) - 1)
    }

    /// How many addresses guests can have in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let (first, last) = self.range();
        (last - first + 1) as usize
    }

    /// How many are leased.
    #[must_use]
    pub fn leased(&self) -> usize {
        self.leased.len()
    }

    fn check(&self, address: Ipv4Addr) -> Result<u32, PoolError> {
        let (first, last) = self.range();
        let number = u32::from(address);
        if (first..=last).contains(&number) {
            Ok(number)
        } else {
            Err(PoolError::Outside { address, subnet: self.subnet })
        }
    }

    /// Leases an address: the wanted one, rested or not, or the next that is free. `now` is any clock that
    /// only goes forward.
    ///
    /// # Errors
    /// None is free, or the wanted one is taken or not for guests.
    pub fn allocate(&mut self, wanted: Option<Ipv4Addr>, now: Duration) -> Result<Ipv4Addr, PoolError> {
        self.resting.retain(|_, until| *until > now);
        let number = match wanted {
            Some(address) => {
                let number = self.check(address)?;
                if self.leased.contains(&number) {
                    return Err(PoolError::Taken { address });
                }
                number
            }
            None => self.next_free().ok_or(PoolError::Exhausted {
                subnet: self.subnet,
                leased: self.leased.len(),
                resting: self.resting.len(),
            })?,
        };
        self.resting.remove(&number);
        self.leased.insert(number);
        let (first, last) = self.range();
        self.next = if number == last { first } else { number + 1 };
        Ok(Ipv4Addr::from(number))
    }

    fn next_free(&self) -> Option<u32> {
        let (first, last) = self.range();
        (self.next..=last)
            .chain(first..self.next)
            .find(|number| !self.leased.contains(number) && !self.resting.contains_key(number))
    }

    /// Gives an address back; it rests for `quarantine`. One that is not leased stays as it is.
    pub fn release(&mut self, address: Ipv4Addr, now: Duration, quarantine: Duration) {
        let number = u32::from(address);
        if self.leased.remove(&number) {
            self.resting.insert(number, now + quarantine);
        }
    }

    /// Takes a journalled lease over, at start.
    ///
    /// # Errors
    /// It is taken already, or the subnet was changed under it.
    pub fn restore(&mut self, address: Ipv4Addr) -> Result<(), PoolError> {
        let number = self.check(address)?;
        if !self.leased.insert(number) {
            return Err(PoolError::Taken { address });
        }
        self.resting.remove(&number);
        Ok(())
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
