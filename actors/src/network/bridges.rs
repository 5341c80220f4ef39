//! Several bridges behind one network: pure.
//!
//! Linux takes 1,023 interfaces under a bridge. A network has one bridge with the gateway's addresses, and further ones
//! behind it, each joined to the first by a pair of interfaces. Which bridge an interface is under follows from the place
//! of its address in the subnet, so there is nothing to remember and none is ever full. A further bridge is made when the
//! first interface needs it; the host itself neither speaks nor listens at it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::known::Bridged;
use super::lease::NicLease;
use super::names;
use super::ops::VmNet;

/// Bridges of a network.
pub const MOST: u32 = 64;
/// Addresses of each: with what joins it to the further ones the first has 1,023 ports, which is `BR_MAX_PORTS` of Linux
/// (`net/bridge/br_private.h`) without port 0.
pub const EACH: u32 = 960;
/// Interfaces that a network takes.
pub const PORTS: u64 = MOST as u64 * EACH as u64;

/// Which of its network's bridges an address is under; the one with the gateway is 0.
#[must_use]
pub fn number(subnet: Ipv4Net, address: Ipv4Addr) -> u32 {
    let place = u32::from(address).saturating_sub(u32::from(subnet.network()));
    place / EACH % MOST
}

/// A bridge behind the first one of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Further {
    /// Name of the bridge.
    pub bridge: String,
    /// The end of what joins the two that is under the first.
    pub upper: String,
    /// The end that is under this one.
    pub lower: String,
    /// The mark of all three.
    pub alias: String,
    /// Its MAC.
    pub mac: [u8; 6],
}

impl Bridged {
    /// The bridge of that number, which is none of the first.
    #[must_use]
    pub fn further(&self, number: u32) -> Further {
        let (installation, network) = (self.installation, &self.def.name);
        let [bridge, upper, lower] = names::further(installation, network, number);
        let mac = names::further_mac(installation, network, number);
        Further { bridge, upper, lower, alias: format!("{}:{number}", self.alias), mac }
    }

    /// Which of its bridges an interface is under.
    #[must_use]
    pub fn number_of(&self, nic: &NicLease) -> u32 {
        number(self.def.subnet.trunc(), nic.ipv4)
    }

    /// The name of the bridge of that number.
    #[must_use]
    pub fn bridge_of(&self, number: u32) -> String {
        if number == 0 { self.bridge.clone() } else { self.further(number).bridge }
    }

    /// The further bridges that VMs need.
    #[must_use]
    pub fn needed(&self, vms: &[VmNet]) -> BTreeSet<u32> {
        let nics = vms.iter().flat_map(|vm| &vm.nics).filter(|nic| nic.network == self.def.name);
        nics.map(|nic| self.number_of(nic)).filter(|number| *number > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bridge_is_ever_full() {
        assert_eq!(u64::from(EACH) + u64::from(MOST) - 1, 1_023);
        let subnet: Ipv4Net = "10.64.0.0/16".parse().unwrap();
        let mut ports = vec![0_u32; MOST as usize];
        // As many as there may be, from the first address of a guest on.
        let first = u32::from(subnet.network()) + 2;
        for address in (first..).take(usize::try_from(PORTS).unwrap() - 2) {
            ports[number(subnet, address.into()) as usize] += 1;
        }
        assert!(ports.iter().all(|ports| *ports <= EACH), "{ports:?}");
        assert_eq!(number(subnet, Ipv4Addr::new(10, 64, 0, 2)), 0);
        assert_eq!(number(subnet, Ipv4Addr::new(10, 64, 3, 191)), 0);
        assert_eq!(number(subnet, Ipv4Addr::new(10, 64, 3, 192)), 1);
        // Larger subnets begin again.
        assert_eq!(number("10.0.0.0/8".parse().unwrap(), Ipv4Addr::new(10, 0, 240, 0)), 0);
    }
}
