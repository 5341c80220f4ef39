//! Which hosts fit a VM, the best one first: pure.
//!
//! A host fits if it is heard, takes new VMs, is what the placement asks for, and has what the VM needs. Of those that
//! fit, the one with the most room afterwards comes first, so VMs spread by capacity. Hosts that are about as good are
//! put in an order that differs from request to request: many placers with one and the same copy of the inventory do
//! not all choose the same host.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::host::{Capacity, HostRecord};
use ipnet::Ipv4Net;

use super::demand::{Demand, feature};
use crate::bus::claims::HOST_TTL;

/// A host that was not heard for so long has missed a heartbeat; others come first.
const LATE: Duration = Duration::from_secs(45);
/// Hosts whose scores differ by less are about as good.
const STEP: f64 = 0.05;

/// What was sent to a host since its row was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// VMs.
    pub vms: u64,
    /// Their virtual CPUs.
    pub cpus: u64,
    /// Their memory in bytes, overhead included.
    pub memory_bytes: u64,
}

/// A host as a placer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its row.
    pub record: &'a HostRecord,
    /// How long ago it was heard.
    pub heard: Duration,
    /// What was sent there since.
    pub pending: Pending,
    /// It is the host that chooses.
    pub own: bool,
}

/// Why a host does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not heard.
    #[error("not heard for {seconds} s")]
    Silent {
        /// For how long.
        seconds: u64,
    },
    /// It takes no new VMs.
    #[error("takes no new VMs ({phase})")]
    Refuses {
        /// What it does.
        phase: String,
    },
    /// Another host is asked for.
    #[error("placement asks for host {asked}")]
    OtherHost {
        /// Which.
        asked: Token,
    },
    /// A label is missing or has another value.
    #[error("has no label {key}={value}")]
    Label {
        /// The label.
        key: String,
        /// The value that is asked for.
        value: String,
    },
    /// A feature is missing.
    #[error("does not offer {feature}")]
    Feature {
        /// Which.
        feature: String,
    },
    /// A template is missing.
    #[error("has no template {template}")]
    Template {
        /// Which.
        template: Token,
    },
    /// An image is missing.
    #[error("has no image {image}")]
    Image {
        /// Which.
        image: String,
    },
    /// A volume is missing.
    #[error("has no volume {volume} of the namespace")]
    Volume {
        /// Which.
        volume: Token,
    },
    /// A network is missing.
    #[error("has no network {network}")]
    Network {
        /// Which.
        network: Token,
    },
    /// An address is of none of its networks.
    #[error("network {network} is {subnet}, which {address} is not of")]
    Address {
        /// The network.
        network: Token,
        /// Its subnet there.
        subnet: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// Something does not suffice.
    #[error("has {left} {what} left, {needed} needed")]
    Exhausted {
        /// Of what.
        what: &'static str,
        /// What there is.
        left: u64,
        /// What it takes.
        needed: u64,
    },
}

impl Unfit {
    /// It may pass by itself, without a change of what there is.
    #[must_use]
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Refuses { .. })
    }
}

/// The hosts of a fleet for one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// Hosts that fit, the best first.
    pub fit: Vec<Token>,
    /// The others, by name, with the reason.
    pub unfit: BTreeMap<Token, Unfit>,
}

/// Says which hosts fit, in which order. `seed` orders those that are about as good.
#[must_use]
pub fn rank<'a>(demand: &Demand, hosts: impl IntoIterator<Item = Candidate<'a>>, seed: u128) -> Ranking {
    let mut ranking = Ranking::default();
    let mut scored = Vec::new();
    for host in hosts {
        let name = &host.record.host;
        match unfit(demand, &host) {
            Some(reason) => {
                ranking.unfit.insert(name.clone(), reason);
            }
            None => {
                let mut order = DefaultHasher::new();
                (seed, name.as_str()).hash(&mut order);
                // One's own comes before its equals: it costs no round trip.
                let level = (score(demand, &host) / STEP).round() as i64;
                scored.push((std::cmp::Reverse((level, host.own)), order.finish(), name));
            }
        }
    }
    scored.sort_unstable();
    ranking.fit = scored.into_iter().map(|(_, _, name)| name.clone()).collect();
    ranking
}

fn unfit(demand: &Demand, host: &Candidate<'_>) -> Option<Unfit> {
    let record = host.record;
    if host.heard > HOST_TTL {
        return Some(Unfit::Silent { seconds: host.heard.as_secs() });
    }
    if !record.accepting {
        return Some(Unfit::Refuses { phase: record.phase.clone() });
    }
    wrong_kind(demand, record).or_else(|| exhausted(demand, host))
}

fn wrong_kind(demand: &Demand, record: &HostRecord) -> Option<Unfit> {
    let placement = &demand.placement;
    if let Some(asked) = placement.host.as_ref().filter(|asked| **asked != record.host) {
        return Some(Unfit::OtherHost { asked: asked.clone() });
    }
    if let Some((key, value)) =
        placement.labels.iter().find(|(key, value)| record.labels.get(*key) != Some(value))
    {
        return Some(Unfit::Label { key: key.clone(), value: value.clone() });
    }
    // Hosts of the version before offer these without saying so.
    let untold = !record.features.iter().any(|known| known == feature::PLACED);
    let offers = |feature: &String| {
        record.features.contains(feature) || untold && feature::UNTOLD.contains(&feature.as_str())
    };
    if let Some(feature) = demand.features.iter().find(|feature| !offers(feature)) {
        return Some(Unfit::Feature { feature: feature.clone() });
    }
    let own = demand.namespace.as_ref().and_then(|namespace| record.own_templates.get(namespace));
    if let (Some(template), Some(there)) = (&demand.template, &record.templates)
        && !there.iter().chain(own.into_iter().flatten()).any(|known| known == template)
    {
        return Some(Unfit::Template { template: template.clone() });
    }
    let own = demand.namespace.as_ref().and_then(|namespace| record.volumes.get(namespace));
    let is_there = |volume: &&Token| own.is_some_and(|own| own.contains(volume));
    if let Some(volume) = demand.volumes.iter().find(|volume| !is_there(volume)) {
        return Some(Unfit::Volume { volume: volume.clone() });
    }
    let missing =
        demand.images.iter().find(|image| record.images.is_some() && size_of(record, image).is_none());
    if let Some(image) = missing {
        return Some(Unfit::Image { image: image.clone() });
    }
    let networks = record.networks.as_ref()?;
    let missing = demand.networks.keys().find(|network| !networks.contains_key(*network));
    if let Some(network) = missing {
        return Some(Unfit::Network { network: network.clone() });
    }
    demand.addresses.iter().find_map(|(network, address)| {
        let subnet = record.subnets.get(network)?;
        let parsed: Ipv4Net = subnet.parse().ok()?;
        let (network, subnet) = (network.clone(), subnet.clone());
        (!parsed.contains(address)).then_some(Unfit::Address { network, subnet, address: *address })
    })
}

/// The length of an image of the host, by name or digest.
fn size_of(record: &HostRecord, reference: &str) -> Option<u64> {
    let images = record.images.as_ref()?;
    let found = match reference.strip_prefix("sha256:") {
        Some(digest) => images.iter().find(|image| image.sha256 == digest),
        None => images.iter().find(|image| image.name == reference),
    };
    found.map(|image| image.size_bytes)
}

fn exhausted(demand: &Demand, host: &Candidate<'_>) -> Option<Unfit> {
    let (record, pending) = (host.record, host.pending);
    let capacity = &record.capacity;
    let check =
        |what, left: u64, needed: u64| (needed > left).then_some(Unfit::Exhausted { what, left, needed });
    let (cpus, memory) = left(capacity, pending);
    let disk = demand.copies.iter().filter_map(|image| size_of(record, image));
    let disk = disk.fold(demand.disk_bytes, u64::saturating_add);
    let interfaces: u64 = demand.networks.values().sum();
    let found = [
        check("virtual CPUs", cpus, demand.cpus.unwrap_or(0)),
        check(
            "bytes of memory",
            memory,
            demand.memory_bytes.map_or(0, |bytes| bytes.saturating_add(record.overhead_bytes)),
        ),
        check("bytes of disk", capacity.disk_bytes.saturating_sub(capacity.disk_used_bytes), disk),
        check("users", capacity.users.saturating_sub(capacity.users_used + pending.vms), 1),
        check(
            "places for running VMs",
            capacity.running_limit.saturating_sub(capacity.running + pending.vms),
            1,
        ),
        check("bridge ports", capacity.ports.saturating_sub(capacity.ports_used), interfaces),
    ];
    found.into_iter().flatten().next().or_else(|| {
        let networks = record.networks.as_ref()?;
        demand.networks.iter().find_map(|(network, needed)| {
            check("addresses", networks.get(network).copied().unwrap_or(0), *needed)
        })
    })
}

/// Virtual CPUs and memory that are left.
fn left(capacity: &Capacity, pending: Pending) -> (u64, u64) {
    let cpus = capacity.cpus.saturating_sub(capacity.cpus_used.saturating_add(pending.cpus));
    let memory =
        capacity.memory_bytes.saturating_sub(capacity.memory_used_bytes.saturating_add(pending.memory_bytes));
    (cpus, memory)
}

/// From about 0 to 1: how much room there is afterwards, less what the host is loaded with.
fn score(demand: &Demand, host: &Candidate<'_>) -> f64 {
    let (record, capacity) = (host.record, &host.record.capacity);
    let share = |left: u64, taken: u64, total: u64| match total {
        0 => 0.0,
        total => left.saturating_sub(taken) as f64 / total as f64,
    };
    let (cpus, memory) = left(capacity, host.pending);
    let taken = demand.memory_bytes.unwrap_or(0).saturating_add(record.overhead_bytes);
    let memory = share(memory, taken, capacity.memory_bytes);
    let cpus = share(cpus, demand.cpus.unwrap_or(0), capacity.cpus);
    let disk = share(capacity.disk_bytes, capacity.disk_used_bytes, capacity.disk_bytes);
    let load = f64::from(record.load_percent.min(400)) / 400.0;
    let late = if host.heard > LATE { 1.0 } else { 0.0 };
    // What is scarcer decides.
    0.6 * memory.min(cpus) + 0.2 * memory.max(cpus) + 0.2 * disk - 0.1 * load - late
}

#[cfg(test)]
mod tests;
