//! Networks of this host, made, listed and removed while VMs run. Those of the configuration are its own to change.

use std::net::Ipv4Addr;

use drover_schemas::body::guest::Empty;
use drover_schemas::body::network::{
    NetworkCreateReply, NetworkCreateRequest, NetworkInfo, NetworkRemoveRequest, NetworksReply,
};

use super::{Answer, ErrorBody, ErrorCode, Request, Router, Token, body_of, whole};
use crate::bus::claims::subnets::{Wanted, local};
use crate::chain;
use crate::host::{Kept, SubnetError, SubnetFault};
use crate::journal::{Batch, Op};
use crate::network::lease::gateway;
use crate::network::{NetworkDef, NetworkError};
use crate::services::Shared;

/// The most networks of a host: each has rules, a bridge and servers of its own.
const MOST: usize = 64;
/// The most VMs that are named as being in the way.
const NAMED: usize = 10;

impl Router {
    pub(super) async fn networks(&self, verb: &str, request: &Request) -> Answer {
        match verb {
            "network.create" => body_of(request, &create(&self.services, request.decode()?).await?),
            "network.remove" => body_of(request, &remove(&self.services, request.decode()?).await?),
            _ => {
                let _: Empty = request.decode()?;
                body_of(request, &list(&self.services))
            }
        }
    }
}

/// What is asked for, as the configuration would say it, which is read and checked in one way only.
fn def_of(asked: &NetworkCreateRequest) -> Result<NetworkDef, ErrorBody> {
    let invalid = |text: String| ErrorBody::new(ErrorCode::InvalidArgument, text);
    match (&asked.subnet, &asked.subnet_from) {
        (None, None) => return Err(invalid("say `subnet`, or `subnet_from` for one of a pool".to_owned())),
        (Some(_), Some(_)) => {
            return Err(invalid("both `subnet` and `subnet_from`; leave one of them out".to_owned()));
        }
        _ => {}
    }
    let value = serde_json::to_value(asked).map_err(|error| invalid(error.to_string()))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let text = format!("network {}: {field}: {}", asked.name, error.inner());
        invalid(text).with("field", field)
    })
}

async fn create(services: &Shared, asked: NetworkCreateRequest) -> Result<NetworkCreateReply, ErrorBody> {
    let def = def_of(&asked)?;
    let services = services.clone();
    whole(async move {
        let _alone = services.made_networks.change().await;
        let made = services.made_networks.all();
        let networks = services.state.networks();
        if let Some(there) = networks.iter().find(|there| there.name == def.name) {
            if !made.contains(&def) {
                let text =
                    format!("there is another network {} here; remove it, or take another name", def.name);
                return Err(ErrorBody::new(ErrorCode::AlreadyExists, text));
            }
            return Ok(NetworkCreateReply { network: info(&services, &made, there), already: true });
        }
        if networks.len() >= MOST {
            let text = format!("the host has {MOST} networks, which are the most; remove one");
            return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text).with("resource", "networks"));
        }
        let resolved = resolve(&services, &def, &networks).await?;
        // In the journal first: what is made is never without a row that tells of it.
        let all: Vec<NetworkDef> = made.iter().cloned().chain([def.clone()]).collect();
        let done = match store(&services, &all, Some(&resolved), None).await {
            Ok(()) => make(&services, &resolved).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            give_up(&services, &made, &resolved).await;
            return Err(error);
        }
        let network = info(&services, &all, &resolved);
        services.made_networks.set(all);
        Ok(NetworkCreateReply { network, already: false })
    })
    .await
}

/// The network with its subnet, which the host may have beside those that it has.
async fn resolve(
    services: &Shared,
    def: &NetworkDef,
    others: &[NetworkDef],
) -> Result<NetworkDef, ErrorBody> {
    let mut resolved = def.clone();
    if let Some(pool) = def.subnet_from {
        let mut used = local();
        used.extend(others.iter().map(|other| other.subnet.trunc()));
        let wanted = Wanted { network: &def.name, pool, had: None, used: &used };
        let claimed = services.claims.claim_subnet(&services.host, services.installation, wanted).await;
        resolved.subnet = claimed.map_err(|error| error.to_body())?.subnet;
    }
    match services.state.check_network(&resolved) {
        Ok(()) => Ok(resolved),
        Err(error) => {
            give_back(services, &def.name).await;
            Err(unfit(&error))
        }
    }
}

async fn make(services: &Shared, resolved: &NetworkDef) -> Result<(), ErrorBody> {
    services.network.add_network(resolved.clone()).await.map_err(|error| refused(&error))?;
    services.state.add_network(resolved.clone()).map_err(|error| unfit(&error))
}

/// Nothing of a network that could not be made is kept.
async fn give_up(services: &Shared, made: &[NetworkDef], resolved: &NetworkDef) {
    if let Err(error) = store(services, made, None, Some(&resolved.name)).await {
        tracing::warn!(network = %resolved.name, reason = error.message, "a network that could not be made is tried again by the next start");
    }
    give_back(services, &resolved.name).await;
}

/// Writes which networks were made, and which subnets of pools the host has.
async fn store(
    services: &Shared,
    made: &[NetworkDef],
    claimed: Option<&NetworkDef>,
    gone: Option<&Token>,
) -> Result<(), ErrorBody> {
    let networks = services.state.networks();
    let pooled = networks.iter().chain(claimed).filter(|def| def.subnet_from.is_some());
    let pooled = pooled.filter(|def| Some(&def.name) != gone);
    let subnets = pooled.map(|def| (def.name.clone(), def.subnet)).collect();
    let batch = Batch::new().essential().with(Op::PutNetworks(made.to_vec())).with(Op::PutSubnets(subnets));
    services.journal.commit(batch).await.map(drop).map_err(|error| error.to_body())
}

/// Tells the fleet that the host has no subnet for a network any more. Where it cannot be told the subnet stays taken.
async fn give_back(services: &Shared, gone: &Token) {
    let networks = services.state.networks();
    let kept: Vec<&Token> = networks.iter().map(|def| &def.name).filter(|name| *name != gone).collect();
    let told = services.claims.keep_subnets(&services.host, services.installation, &kept).await;
    if let Err(error) = told {
        tracing::info!(network = %gone, reason = %chain(&error), "the bus was not told that a subnet is free");
    }
}

async fn remove(services: &Shared, asked: NetworkRemoveRequest) -> Result<Empty, ErrorBody> {
    let services = services.clone();
    whole(async move {
        let name = asked.name;
        let _alone = services.made_networks.change().await;
        let made = services.made_networks.all();
        if !made.iter().any(|def| def.name == name) {
            let configured = services.state.networks().iter().any(|def| def.name == name);
            return Err(if configured {
                let text = format!(
                    "network {name} is of the host's configuration: take it out of `networks` there, and start the daemon again"
                );
                ErrorBody::new(ErrorCode::InvalidState, text)
            } else {
                ErrorBody::new(ErrorCode::NotFound, format!("this host has no network {name}"))
            });
        }
        let def = match services.state.remove_network(&name) {
            Ok(def) => Some(def),
            // It is in the journal only: an earlier removal was cut short, or a start could not make it.
            Err(Kept::Unknown) => None,
            Err(Kept::InUse(leased)) => return Err(in_use(&services, &name, leased).await),
        };
        let all: Vec<NetworkDef> = made.iter().filter(|def| def.name != name).cloned().collect();
        if let Err(error) = store(&services, &all, None, Some(&name)).await {
            if let Some(Err(error)) = def.map(|def| services.state.add_network(def)) {
                tracing::warn!(network = %name, reason = %chain(&error), "a network that could not be removed takes no VMs until the next start");
            }
            return Err(error);
        }
        services.made_networks.set(all);
        give_back(&services, &name).await;
        services.network.remove_network(name).await.map_err(|error| refused(&error))?;
        Ok(Empty {})
    })
    .await
}

async fn in_use(services: &Shared, name: &Token, leased: usize) -> ErrorBody {
    let rows = services.rows().await.unwrap_or_default();
    let users = rows.iter().filter(|row| row.nics.iter().any(|nic| nic.network == *name));
    let users: Vec<String> = users.map(|row| format!("{}/{}", row.namespace, row.name)).take(NAMED).collect();
    let text = format!(
        "VMs have {leased} addresses of network {name}: {}; delete them first",
        if users.is_empty() { "they are on their way".to_owned() } else { users.join(", ") }
    );
    ErrorBody::new(ErrorCode::Conflict, text).with("addresses", leased)
}

fn list(services: &Shared) -> NetworksReply {
    let made = services.made_networks.all();
    let mut networks: Vec<NetworkInfo> =
        services.state.networks().iter().map(|def| info(services, &made, def)).collect();
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    NetworksReply { networks }
}

fn info(services: &Shared, made: &[NetworkDef], def: &NetworkDef) -> NetworkInfo {
    let (addresses, addresses_used) = services.state.addresses_of(&def.name).unwrap_or_default();
    let gateway: Ipv4Addr = gateway(def.subnet.trunc());
    NetworkInfo {
        name: def.name.clone(),
        configured: !made.iter().any(|made| made.name == def.name),
        subnet: def.subnet.trunc().to_string(),
        pool: def.subnet_from.map(|from| from.pool.to_string()),
        ipv6: def.ipv6.map(|subnet| subnet.trunc().to_string()),
        gateway: gateway.to_string(),
        mtu: def.mtu.get(),
        isolate: def.isolate,
        egress_deny: def.egress_deny.iter().map(ToString::to_string).collect(),
        dhcp: def.dhcp,
        suffix: def.dns.serve.then(|| def.dns.suffix.as_str().to_owned()),
        addresses,
        addresses_used,
        bridges: services.network.bridges_of(&def.name),
    }
}

fn unfit(error: &SubnetError) -> ErrorBody {
    let code = match error.source {
        SubnetFault::Overlap { .. } => ErrorCode::Conflict,
        _ => ErrorCode::InvalidArgument,
    };
    ErrorBody::new(code, chain(error).to_string())
}

fn refused(error: &NetworkError) -> ErrorBody {
    let code = match error {
        NetworkError::Overlap { .. } => ErrorCode::Conflict,
        NetworkError::NoIpv6 { .. } => ErrorCode::Unsupported,
        _ => ErrorCode::Internal,
    };
    ErrorBody::new(code, chain(error).to_string())
}
