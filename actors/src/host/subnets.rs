//! The subnets of a host's networks: which there may be.

use std::collections::BTreeMap;

use drover_schemas::Token;
use ipnet::IpNet;

use crate::network::ipv6::{self, Ipv6Fault};
use crate::network::lease::PoolError;
use crate::network::{NetworkDef, Pool};

/// The host's networks cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("network {network}: the subnet {subnet} cannot be used")]
pub struct SubnetError {
    /// The network.
    pub network: Token,
    /// Its subnet.
    pub subnet: IpNet,
    /// Why.
    #[source]
    pub source: SubnetFault,
}

/// Why a network cannot have its subnet.
#[derive(Debug, thiserror::Error)]
pub enum SubnetFault {
    /// It has no room.
    #[error(transparent)]
    Pool(PoolError),
    /// It is none of IPv6 for guests.
    #[error(transparent)]
    Ipv6(Ipv6Fault),
    /// Another network of the host has addresses of it.
    #[error("network {other} has addresses of it too; give each its own")]
    Overlap {
        /// The other network.
        other: Token,
    },
}

/// The addresses of each network, none leased.
///
/// # Errors
/// [`SubnetError`].
pub fn pools(networks: &[NetworkDef]) -> Result<BTreeMap<Token, Pool>, SubnetError> {
    let mut pools = BTreeMap::new();
    for def in networks {
        let fault = |subnet, source| SubnetError { network: def.name.clone(), subnet, source };
        let pool = Pool::new(def.subnet);
        let pool = pool.map_err(|source| fault(def.subnet.into(), SubnetFault::Pool(source)))?;
        pools.insert(def.name.clone(), pool);
        if let Some(subnet) = def.ipv6 {
            let checked = ipv6::check(subnet, def.subnet);
            checked.map_err(|source| fault(subnet.into(), SubnetFault::Ipv6(source)))?;
        }
    }
    match ipv6::overlap(networks) {
        None => Ok(pools),
        Some((one, subnet, other)) => {
            let source = SubnetFault::Overlap { other: other.name.clone() };
            Err(SubnetError { network: one.name.clone(), subnet, source })
        }
    }
}
