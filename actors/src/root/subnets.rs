//! The subnets of networks that take theirs out of a pool of the fleet: known before anything of the network is made, and
//! kept in the journal, so that a host whose bus is away starts with those that it had.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_schemas::{InstallationId, Token};
use ipnet::Ipv4Net;
use tracing::{info, warn};

use super::StartError;
use crate::bus::assets::{self, AssetsConfig};
use crate::bus::claims::subnets::{Wanted, local};
use crate::bus::claims::{ClaimError, Claims};
use crate::bus::connect::Bus;
use crate::chain;
use crate::journal::{Batch, JournalHandle, Op};
use crate::network::NetworkDef;
use crate::services::now_ms;

/// How long the bus may take where the subnet is known.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);
/// How long it may take where nothing is known: the host cannot start without.
const NEW_WITHIN: Duration = Duration::from_secs(15);

/// A network has no subnet.
#[derive(Debug, thiserror::Error)]
pub enum NoSubnet {
    /// Two are given.
    #[error("network {network} has both subnet and subnet_from; leave one of them out")]
    Both {
        /// The network.
        network: Token,
    },
    /// The bus does not answer.
    #[error(
        "network {network} has no subnet of its pool yet, and the bus does not answer; start the host again when it does"
    )]
    Silent {
        /// The network.
        network: Token,
    },
    /// It could not be claimed.
    #[error("claim a subnet for network {network}")]
    Claim {
        /// The network.
        network: Token,
        /// Why.
        #[source]
        source: Box<ClaimError>,
    },
}

/// Gives each network that has a pool its subnet.
///
/// # Errors
/// [`StartError::Pool`], or that the journal fails; nothing of a network was made.
pub(super) async fn resolve(
    (bus, assets): (&Bus, &AssetsConfig),
    claims: &Claims,
    journal: &JournalHandle,
    (host, installation): (&Token, InstallationId),
    mut networks: Vec<NetworkDef>,
) -> Result<Vec<NetworkDef>, StartError> {
    let had = journal.subnets().map_err(|source| StartError::Subnets { source: Box::new(source) })?;
    if had.is_empty() && networks.iter().all(|def| def.subnet_from.is_none()) {
        return Ok(networks);
    }
    let mut used: Vec<Ipv4Net> = local();
    used.extend(networks.iter().filter(|def| def.subnet_from.is_none()).map(|def| def.subnet.trunc()));
    let mut has = BTreeMap::new();
    for def in &mut networks {
        let Some(pool) = def.subnet_from else { continue };
        let network = &def.name;
        if def.has_own_subnet() {
            return Err(NoSubnet::Both { network: network.clone() }.into());
        }
        let had = had.get(network).copied().filter(|subnet| pool.has(*subnet));
        let wanted = Wanted { network, pool, had, used: &used };
        let claim = async {
            bus.connected().await;
            if had.is_none() {
                // On a bus that nobody has used yet there is no bucket, and the host has no claim in it.
                let js = async_nats::jetstream::new(bus.client.clone());
                if let Err(error) = assets::ensure(&js, assets).await {
                    warn!(error = %chain(&error), "the assets of the bus are not ready");
                }
                claims.claim_host(host, installation, now_ms()).await?;
            }
            claims.claim_subnet(host, installation, wanted).await
        };
        let within = if had.is_some() { KNOWN_WITHIN } else { NEW_WITHIN };
        let subnet = match (tokio::time::timeout(within, claim).await, had) {
            (Ok(Ok(claimed)), _) => {
                if let Some(other) = claimed.contested {
                    warn!(%network, subnet = %claimed.subnet, %other, "another host has addresses of this subnet too");
                }
                claimed.subnet
            }
            (Ok(Err(error)), Some(had)) => {
                info!(%network, subnet = %had, reason = %chain(&error), "the bus does not confirm the subnet; it is kept");
                had
            }
            (Err(_), Some(had)) => had,
            (Ok(Err(source)), None) => {
                return Err(NoSubnet::Claim { network: network.clone(), source: source.into() }.into());
            }
            (Err(_), None) => return Err(NoSubnet::Silent { network: network.clone() }.into()),
        };
        info!(%network, %subnet, pool = %pool.pool, "the subnet of a network");
        def.subnet = subnet;
        used.push(subnet);
        has.insert(network.clone(), subnet);
    }
    if has != had {
        let batch = Batch::new().essential().with(Op::PutSubnets(has.clone()));
        journal.commit(batch).await.map_err(|source| StartError::Subnets { source: Box::new(source) })?;
        // What a network had that is not there any more is for others.
        let kept: Vec<&Token> = has.keys().collect();
        let give_back = tokio::time::timeout(KNOWN_WITHIN, claims.keep_subnets(host, installation, &kept));
        if !matches!(give_back.await, Ok(Ok(()))) {
            info!("the bus was not told which subnets the host has no more");
        }
    }
    Ok(networks)
}
