//! Subnets that hosts take out of pools of the fleet, so that no two have addresses in common.
//!
//! What a host has is in its own claim ([`HostClaim::subnets`]), which nobody else writes, so there is no single entry to
//! compare and set. Who wants a subnet writes it into its claim first and looks at all others then: if anybody has it,
//! whether for long or since a moment, it is given back and another one is tried. Of two that want the same one at least
//! the later finds the other.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use drover_schemas::body::host::HostClaim;
use drover_schemas::{InstallationId, Token, codec};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::hosts::CLAIM_SUFFIX;
use super::{ClaimError, Claims, RACES};

/// The most subnets of a pool, as a number of bits.
const MAX_BITS: u8 = 16;
/// Room for a gateway and a guest at least.
const LONGEST: u8 = 30;

/// Where the subnet of a network comes from: each host of the fleet takes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Unread")]
pub struct SubnetPool {
    /// All of them together, the same on each host.
    pub pool: Ipv4Net,
    /// How long the prefix of one is; 20 if left out.
    pub prefix: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unread {
    pool: Ipv4Net,
    #[serde(default = "usual_prefix")]
    prefix: u8,
}

const fn usual_prefix() -> u8 {
    20
}

/// What should be a pool is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "pool {pool} cannot be cut into subnets of /{prefix}: use a prefix from the pool's own to {longest}, and at most \
     {LONGEST}"
)]
pub struct NotAPool {
    pool: Ipv4Net,
    prefix: u8,
    longest: u8,
}

impl TryFrom<Unread> for SubnetPool {
    type Error = NotAPool;

    fn try_from(Unread { pool, prefix }: Unread) -> Result<Self, NotAPool> {
        let longest = pool.prefix_len().saturating_add(MAX_BITS).min(LONGEST);
        if prefix < pool.prefix_len() || prefix > longest {
            return Err(NotAPool { pool, prefix, longest });
        }
        Ok(Self { pool: pool.trunc(), prefix })
    }
}

impl SubnetPool {
    /// Whether a subnet is one of the pool's.
    #[must_use]
    pub fn has(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.prefix && self.pool.contains(&subnet)
    }

    /// One that has no address in common with `taken`; from which place on is looked is up to the seed.
    #[must_use]
    pub fn choose(&self, taken: &[Ipv4Net], seed: u64) -> Option<Ipv4Net> {
        let count = 1_u64 << (self.prefix - self.pool.prefix_len());
        let (first, step) = (u64::from(u32::from(self.pool.network())), 1_u64 << (32 - self.prefix));
        let at = |place: u64| {
            let network = u32::try_from(first + (place % count) * step).ok()?;
            Ipv4Net::new(network.into(), self.prefix).ok()
        };
        let start = seed % count;
        (start..start + count).filter_map(at).find(|subnet| !taken.iter().any(|taken| overlap(taken, subnet)))
    }
}

/// Whether two have an address in common.
#[must_use]
pub fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

/// A subnet that a network has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// It.
    pub subnet: Ipv4Net,
    /// Another host that has addresses of it as well: it took them while this one was forgotten or not heard.
    pub contested: Option<Token>,
}

/// What a network wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The network.
    pub network: &'a Token,
    /// Where it comes from.
    pub pool: SubnetPool,
    /// What it had: it keeps that.
    pub had: Option<Ipv4Net>,
    /// What the host uses otherwise.
    pub used: &'a [Ipv4Net],
}

/// What the machine itself has addresses of.
#[must_use]
pub fn local() -> Vec<Ipv4Net> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let net = |of: nix::ifaddrs::InterfaceAddress| {
        let (address, mask) = (of.address?, of.netmask?);
        let (address, mask) = (address.as_sockaddr_in()?.ip(), mask.as_sockaddr_in()?.ip());
        Ipv4Net::with_netmask(address, mask).ok().map(|net| net.trunc())
    };
    found.filter_map(net).collect()
}

fn seed(host: &Token, network: &Token, attempt: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (host, network, attempt).hash(&mut hasher);
    hasher.finish()
}

fn subnets(claim: &HostClaim) -> impl Iterator<Item = Ipv4Net> {
    claim.subnets.values().filter_map(|text| text.parse().ok())
}

impl Claims {
    /// Takes a subnet for a network of a host whose name is this installation's, or says again which one it has.
    ///
    /// # Errors
    /// [`ClaimError::PoolUsedUp`], or that the bus does not answer.
    pub async fn claim_subnet(
        &self,
        host: &Token,
        installation: InstallationId,
        wanted: Wanted<'_>,
    ) -> Result<Claimed, ClaimError> {
        for attempt in 0..RACES {
            let others = self.subnets_of_others(host).await?;
            let own = self.own_claim(host, installation).await?.0;
            let said = own.subnets.get(wanted.network).and_then(|text| text.parse().ok());
            // One that was only said is not known to be nobody else's: the daemon died before it looked.
            let subnet = match wanted.had.or(said.filter(|subnet| wanted.pool.has(*subnet))) {
                Some(subnet) => subnet,
                None => {
                    let elsewhere = own.subnets.iter().filter(|(network, _)| *network != wanted.network);
                    let mut taken: Vec<Ipv4Net> =
                        elsewhere.filter_map(|(_, text)| text.parse().ok()).collect();
                    taken.extend(wanted.used);
                    taken.extend(others.iter().map(|(_, subnet)| *subnet));
                    let free = wanted.pool.choose(&taken, seed(host, wanted.network, attempt));
                    free.ok_or_else(|| ClaimError::PoolUsedUp {
                        network: wanted.network.clone(),
                        pool: wanted.pool.pool,
                        prefix: wanted.pool.prefix,
                    })?
                }
            };
            let is_told = said == Some(subnet);
            if !is_told {
                self.say(host, installation, wanted.network, Some(subnet)).await?;
            }
            // Again, now that all can see it.
            let others = self.subnets_of_others(host).await?;
            let contested =
                others.into_iter().find(|(_, other)| overlap(other, &subnet)).map(|(host, _)| host);
            if contested.is_none() || wanted.had.is_some() {
                return Ok(Claimed { subnet, contested });
            }
            self.say(host, installation, wanted.network, None).await?;
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    /// Gives back what networks had that the host has no more.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn keep_subnets(
        &self,
        host: &Token,
        installation: InstallationId,
        networks: &[&Token],
    ) -> Result<(), ClaimError> {
        let own = self.own_claim(host, installation).await?.0;
        for network in own.subnets.keys().filter(|network| !networks.contains(network)) {
            self.say(host, installation, network, None).await?;
        }
        Ok(())
    }

    async fn say(
        &self,
        host: &Token,
        installation: InstallationId,
        network: &Token,
        subnet: Option<Ipv4Net>,
    ) -> Result<(), ClaimError> {
        for _ in 0..RACES {
            let (mut own, revision) = self.own_claim(host, installation).await?;
            match subnet {
                Some(subnet) => drop(own.subnets.insert(network.clone(), subnet.to_string())),
                None => drop(own.subnets.remove(network)),
            }
            if self.write_host_claim(host, &own, revision).await? {
                return Ok(());
            }
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    async fn own_claim(
        &self,
        host: &Token,
        installation: InstallationId,
    ) -> Result<(HostClaim, u64), ClaimError> {
        let (found, revision) = self.read_host_claim(host).await?;
        match found {
            Some(claim) if claim.installation == installation && !claim.free => Ok((claim, revision)),
            other => {
                let installation = other.map(|claim| claim.installation.to_string()).unwrap_or_default();
                Err(ClaimError::HostTaken { host: host.clone(), installation, alive: false })
            }
        }
    }

    /// What other hosts have that were not forgotten.
    async fn subnets_of_others(&self, host: &Token) -> Result<Vec<(Token, Ipv4Net)>, ClaimError> {
        let all = format!("*{CLAIM_SUFFIX}");
        let claims = self.hosts.scan(&all, |key, value| {
            let other = Token::new(key.strip_suffix(CLAIM_SUFFIX)?).ok().filter(|other| other != host)?;
            let claim: HostClaim = codec::decode(value).ok()?;
            Some((other, claim)).filter(|(_, claim)| !claim.free)
        });
        let claims = claims.await;
        let claims: BTreeMap<Token, HostClaim> = claims
            .map_err(|source| ClaimError::Bucket { operation: "read", key: all, source })?
            .into_iter()
            .collect();
        let of = |(host, claim): (Token, HostClaim)| {
            subnets(&claim).map(|subnet| (host.clone(), subnet)).collect::<Vec<_>>()
        };
        Ok(claims.into_iter().flat_map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(text: &str, prefix: u8) -> SubnetPool {
        SubnetPool::try_from(Unread { pool: text.parse().unwrap(), prefix }).unwrap()
    }

    #[test]
    fn a_pool_is_cut_into_subnets_that_guests_can_use() {
        for (text, prefix, fits) in [
            ("10.64.0.0/12", 20, true),
            ("10.64.0.0/20", 20, true),
            ("10.64.0.0/20", 19, false),
            ("10.0.0.0/8", 24, true),
            ("10.0.0.0/8", 25, false),
            ("10.64.0.0/24", 30, true),
            ("10.64.0.0/24", 31, false),
        ] {
            let read = SubnetPool::try_from(Unread { pool: text.parse().unwrap(), prefix });
            assert_eq!(read.is_ok(), fits, "{text} {prefix}");
        }
        let read: SubnetPool = serde_json::from_str(r#"{"pool": "10.64.7.9/12"}"#).unwrap();
        assert_eq!(read, pool("10.64.0.0/12", 20));
        assert!(read.has("10.65.16.0/20".parse().unwrap()) && !read.has("10.65.16.0/21".parse().unwrap()));
        assert!(!read.has("10.80.0.0/20".parse().unwrap()));
    }

    #[test]
    fn all_of_a_pool_are_given_and_no_more() {
        let pool = pool("10.64.0.0/22", 24);
        let mut taken = vec!["10.64.1.0/30".parse().unwrap(), "192.168.0.0/16".parse().unwrap()];
        for seed in 0..3 {
            taken.push(pool.choose(&taken, seed * 7).unwrap());
        }
        assert_eq!(pool.choose(&taken, 1), None);
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_of_the_pool_and_overlaps_nothing(
            base in any::<u32>(), len in 8_u8..=26, more in 0_u8..=4, seeds in prop::collection::vec(any::<u64>(), 1..20),
        ) {
            let pool = Ipv4Net::new(base.into(), len).unwrap().trunc();
            let pool = SubnetPool { pool, prefix: len + more };
            let mut taken: Vec<Ipv4Net> = Vec::new();
            for seed in seeds {
                let Some(subnet) = pool.choose(&taken, seed) else {
                    prop_assert_eq!(taken.len(), 1 << more);
                    break;
                };
                prop_assert!(pool.has(subnet) && !taken.iter().any(|other| overlap(other, &subnet)));
                taken.push(subnet);
            }
        }
    }
}
