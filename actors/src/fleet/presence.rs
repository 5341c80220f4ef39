//! That this host is there: the claim of its name, and its row of the inventory, written when something of it changes
//! and every 30 s.

use std::time::{Duration, Instant};

use drover_schemas::blob::Blob;
use drover_schemas::body::host::{HostImage, HostRecord};
use drover_schemas::body::spec::HugePages;
use drover_schemas::codec;
use tokio::sync::watch;
use tracing::{error, warn};

use super::demand::feature;
use crate::bus::claims::ClaimError;
use crate::bus::connect::Bus;
use crate::chain;
use crate::hypervisor::cores;
use crate::router::HostPhase;
use crate::services::{Services, now_ms};
use crate::spec::security::Offers;
use crate::spec::shape::{POOLS, has_pages};

/// How often a host says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Changes within this time are written once.
const GATHER: Duration = Duration::from_millis(200);
/// How often the claim of the name is renewed.
const CLAIM: Duration = Duration::from_secs(300);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// A host with more images does not list them.
const MAX_IMAGES: usize = 256;

/// Features that every build of this version offers, for peers of other versions.
const FEATURES: [&str; 19] = [
    "vm.v1",
    "guest.v1",
    "events.v1",
    "streams.v1",
    feature::PLACED,
    feature::LINUX,
    feature::WINDOWS,
    feature::FIRMWARE,
    feature::USER_DATA,
    feature::EGRESS,
    feature::DISKS,
    feature::DISK_LIMITS,
    feature::VOLUMES,
    feature::SEED,
    feature::LIMITS,
    feature::QUEUES,
    feature::ADDRESSES,
    feature::TOPOLOGY,
    feature::SECURITY,
];

/// What this host offers.
#[must_use]
pub fn features(services: &Services) -> Vec<String> {
    let vmm = if services.programs.version.is_softvmm() { feature::EMULATED } else { feature::REAL };
    let forwards = services.state.forwards_ports().then_some(feature::FORWARDS);
    let ext4 = crate::vm::disks::tool().map(|_| feature::EXT4);
    let has = |pages| has_pages(POOLS.as_ref(), pages);
    let pages = [(HugePages::TwoMib, feature::PAGES_2M), (HugePages::OneGib, feature::PAGES_1G)];
    let pages = pages.into_iter().filter(|(pages, _)| has(*pages)).map(|(_, feature)| feature);
    let offers = offers(services);
    let nested = offers.nested.then_some(feature::NESTED);
    let cores = offers.cores.then_some(feature::CORES);
    let agent = services.programs.agent.as_ref().map(|_| feature::SEED_AGENT);
    FEATURES
        .into_iter()
        .chain([vmm])
        .chain(forwards)
        .chain(ext4)
        .chain(agent)
        .chain(pages)
        .chain(nested)
        .chain(cores)
        .map(str::to_owned)
        .collect()
}

/// What of the processor this host gives to guests.
#[must_use]
pub fn offers(services: &Services) -> Offers {
    Offers { nested: services.programs.nested, cores: cores::look().are_kept_apart() }
}

/// What the host does, in a word; a host that lacks the bus's assets cannot create.
#[must_use]
pub fn phase(services: &Services, phase: HostPhase) -> &'static str {
    match phase {
        HostPhase::Ready if services.state.draining() => "draining",
        HostPhase::Ready if !services.egress.is_ready() => "connecting",
        phase => phase.as_str(),
    }
}

/// The row of this host as it would be written now.
#[must_use]
pub fn record(services: &Services, now: HostPhase) -> HostRecord {
    let images = || {
        let all = services.images.all();
        let short = |image: &drover_schemas::body::spec::ResolvedImage| HostImage {
            name: image.name.clone(),
            sha256: image.sha256.clone(),
            size_bytes: image.size_bytes,
        };
        all.iter().map(short).collect()
    };
    HostRecord {
        host: services.host.clone(),
        installation: services.installation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features(services),
        capacity: services.state.capacity(),
        labels: services.labels.clone(),
        accepting: now == HostPhase::Ready && !services.state.draining() && services.journal.is_sound(),
        written_unix_ms: now_ms(),
        phase: phase(services, now).to_owned(),
        vmm_version: services.programs.version.text.clone(),
        overhead_bytes: services.limits.vmm_overhead_bytes,
        networks: Some(services.state.free_addresses()),
        subnets: services.state.subnets(),
        templates: Some(services.templates.names().cloned().collect()),
        own_templates: services.templates.own_names(),
        volumes: services.state.volumes().names(),
        images: (services.images.len() <= MAX_IMAGES).then(images),
        load_percent: load_percent(),
    }
}

fn load_percent() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (load * 100.0 / cores as f64).clamp(0.0, 100_000.0) as u32
}

/// Says that the host is there for as long as it runs. Comes back only if another installation has its name.
pub async fn keep(services: &Services, bus: &Bus, mut now: watch::Receiver<HostPhase>) -> ClaimError {
    let mut changed = services.state.changes();
    let mut images = services.images.changes();
    let mut claims = services.inventory.claim_changes();
    let mut claimed: Option<Instant> = None;
    loop {
        bus.connected().await;
        services.egress.ready().await;
        // A claim that is free was taken from this host when it was forgotten.
        let free = services.inventory.claim(&services.host).is_some_and(|claim| claim.free);
        let due = free || claimed.is_none_or(|at| at.elapsed() >= CLAIM);
        changed.borrow_and_update();
        images.borrow_and_update();
        let phase = *now.borrow_and_update();
        match say(services, phase, due).await {
            Ok(()) if due => claimed = Some(Instant::now()),
            Ok(()) => {}
            Err(taken @ ClaimError::HostTaken { .. }) => {
                error!(error = %chain(&taken), "the name of this host is taken");
                return taken;
            }
            Err(failure) => {
                warn!(error = %chain(&failure), "the row of this host was not stored");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        }
        let news = async {
            tokio::select! {
                _ = changed.changed() => {}
                _ = images.changed() => {}
                _ = now.changed() => {}
                Ok(()) = claims.changed() => {}
            }
            tokio::time::sleep(GATHER).await;
        };
        let _ = tokio::time::timeout(HEARTBEAT, news).await;
    }
}

async fn say(services: &Services, phase: HostPhase, claim: bool) -> Result<(), ClaimError> {
    let (host, installation) = (&services.host, services.installation);
    if claim {
        services.claims.claim_host(host, installation, now_ms()).await?;
    }
    let row = codec::encode(&record(services, phase));
    let row = row.map_err(|source| ClaimError::Encode { key: host.to_string(), source })?;
    services.claims.heartbeat(host, installation, Blob::from(row)).await?;
    Ok(())
}
