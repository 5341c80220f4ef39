//! What a host does beside its VMs, each part a supervised [`crate::service`].
//!
//! | service | does |
//! |---|---|
//! | `ingress` | subscribes, and hands requests to the router |
//! | `presence` | says that the host lives and what is left of it, however busy the rest is |
//! | `inventory` | watches the rows of the other hosts |
//! | `fence` | reads after each connect which VMs are still this host's |
//! | `samples` | publishes what the VMs use |
//! | `gauges` | reads the metrics that nobody counts |
//! | `hints` | wakes a VM whose holder has something to tell |
//! | `alarms` | makes events of what the egress found |
//! | `net_watch` | mends what others do to the network of VMs |
//! | `dhcp` | gives guests that ask the addresses that are theirs |
//! | `dns` | tells guests the names of their namespace |
//! | `watch` | looks at the stream of events and the bus server's clock |
//! | `images` | brings images that the fleet shares, if it is to |
//! | `reaper` | forgets requests, leases and uids whose time is over |

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use ractor::{ActorCell, ActorRef, SpawnErr};
use tokio::sync::{Mutex, mpsc, watch};
use tracing::warn;

use super::Failure;
use crate::alarms::{DHCP, DNS, Lost, OUTBOX, SLOW_CONSUMER};
use crate::bus::connect::Bus;
use crate::bus::egress::EgressReport;
use crate::bus::egress::decide::Anomaly;
use crate::chain;
use crate::directory::Directory;
use crate::fleet::{fence, inventory, presence};
use crate::host_log::HostNote;
use crate::hypervisor::notify::NotifySocket;
use crate::images;
use crate::journal;
use crate::manager::ManagerMsg;
use crate::mended::Mended;
use crate::network::watch::watch;
use crate::network::{dhcp, dns};
use crate::router::{HostPhase, QuotaGauges, Router};
use crate::service::{ServiceMsg, supervise};
use crate::services::{Services, Shared, now_ms};
use crate::subscribe::subscribe_all;
use crate::unserved::Unserved;

/// How often gauges are read.
const GAUGES: Duration = Duration::from_secs(5);
/// How long finished requests are looked for.
const PRUNE: Duration = Duration::from_secs(600);

/// What the services work with.
pub(super) struct Parts {
    pub services: Shared,
    pub directory: Arc<Directory>,
    pub router: Router,
    pub bus: Bus,
    pub phase: watch::Receiver<HostPhase>,
    pub manager: ActorRef<ManagerMsg>,
    pub notify: NotifySocket,
    pub reports: Mutex<mpsc::Receiver<EgressReport>>,
    pub hosts_bucket: String,
    pub failed: mpsc::Sender<Failure>,
}

/// Starts every service below `root`.
pub(super) async fn supervise_all(
    root: &ActorCell,
    parts: Parts,
) -> Result<Vec<ActorRef<ServiceMsg>>, SpawnErr> {
    let parts = Arc::new(parts);
    let metrics = &parts.services.metrics;
    let with = |work: fn(Arc<Parts>) -> BoxFuture<'static, ()>| {
        let parts = Arc::clone(&parts);
        move || work(Arc::clone(&parts))
    };
    Ok(vec![
        supervise(root, metrics, "ingress", with(|p| Box::pin(ingress(p)))).await?,
        supervise(root, metrics, "presence", with(|p| Box::pin(presence(p)))).await?,
        supervise(root, metrics, "inventory", with(|p| Box::pin(watch_hosts(p)))).await?,
        supervise(root, metrics, "fence", with(|p| Box::pin(keep_fence(p)))).await?,
        supervise(root, metrics, "samples", with(|p| Box::pin(samples(p)))).await?,
        supervise(root, metrics, "gauges", with(|p| Box::pin(gauges(p)))).await?,
        supervise(root, metrics, "hints", with(|p| Box::pin(forward_hints(p)))).await?,
        supervise(root, metrics, "alarms", with(|p| Box::pin(raise_alarms(p)))).await?,
        supervise(root, metrics, "net_watch", with(|p| Box::pin(watch_network(p)))).await?,
        supervise(root, metrics, "dhcp", with(|p| Box::pin(give_addresses(p)))).await?,
        supervise(root, metrics, "dns", with(|p| Box::pin(tell_names(p)))).await?,
        supervise(root, metrics, "watch", with(|p| Box::pin(watch_stream(p)))).await?,
        supervise(root, metrics, "images", with(|p| Box::pin(follow_images(p)))).await?,
        supervise(root, metrics, "reaper", with(|p| Box::pin(reap(p)))).await?,
    ])
}

async fn ingress(parts: Arc<Parts>) {
    let Parts { services, directory, router, bus, .. } = &*parts;
    subscribe_all(services.clone(), Arc::clone(directory), router.clone(), bus.clone()).await;
}

async fn follow_images(parts: Arc<Parts>) {
    let Parts { services, bus, .. } = &*parts;
    images::follow(services, bus).await;
}

async fn samples(parts: Arc<Parts>) {
    let Parts { services, directory, bus, .. } = &*parts;
    crate::samples::publish(services.clone(), Arc::clone(directory), bus.clone()).await;
}

async fn forward_hints(parts: Arc<Parts>) {
    let Parts { notify, manager, .. } = &*parts;
    loop {
        match notify.recv().await {
            Ok(vm_id) => {
                let _ = manager.cast(ManagerMsg::Look { vm_id });
            }
            Err(failure) => {
                warn!(error = %failure, "the notification socket failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn presence(parts: Arc<Parts>) {
    let Parts { services, bus, phase, failed, .. } = &*parts;
    let taken = presence::keep(services, bus, phase.clone()).await;
    // The host ends by it.
    let _ = failed.send(Failure::Name(Box::new(taken))).await;
    std::future::pending().await
}

async fn watch_hosts(parts: Arc<Parts>) {
    let Parts { services, bus, hosts_bucket, .. } = &*parts;
    let js = async_nats::jetstream::new(services.client.clone());
    services.egress.ready().await;
    inventory::watch(&services.inventory, &js, hosts_bucket, bus).await;
}

async fn keep_fence(parts: Arc<Parts>) {
    let Parts { services, directory, manager, bus, .. } = &*parts;
    fence::keep(services.clone(), Arc::clone(directory), manager.clone(), bus.clone()).await;
}

async fn watch_network(parts: Arc<Parts>) {
    let services = &parts.services;
    let mut mended = Mended::default();
    if let Err(failure) = watch(&services.network, |outcome| mended.tell(services, outcome)).await {
        warn!(error = %chain(&failure), "the network is not watched; the watch begins again");
    }
}

async fn give_addresses(parts: Arc<Parts>) {
    let Services { network, metrics, log, alarms, .. } = &*parts.services;
    let told = Unserved::new(log, alarms, DHCP);
    dhcp::serve(network, metrics, |guest| told.declined(guest), |served| told.tell(served)).await;
}

async fn tell_names(parts: Arc<Parts>) {
    let Services { network, metrics, log, alarms, .. } = &*parts.services;
    let told = Unserved::new(log, alarms, DNS);
    dns::serve(network, metrics, |served| told.tell(served)).await;
}

async fn watch_stream(parts: Arc<Parts>) {
    crate::bus::watch::run(parts.services.clone()).await;
}

async fn gauges(parts: Arc<Parts>) {
    let Parts { services, bus, router, .. } = &*parts;
    let (metrics, alarms) = (&services.metrics, &services.alarms);
    let (mut lost, mut quotas) = (Lost::default(), QuotaGauges::default());
    loop {
        metrics.bus_connected.set(i64::from(bus.state.borrow().connected));
        metrics.stream_windows.set(services.streams.budget.used_bytes());
        let slow = services.lanes.slow_consumers().await;
        metrics.slow_consumers.set(i64::try_from(slow).unwrap_or(i64::MAX));
        alarms.note(&SLOW_CONSUMER, lost.lately(slow, Instant::now()));
        let fill = services.journal.outbox_percent().into();
        metrics.outbox_fill.set(fill);
        alarms.note(&OUTBOX, fill);
        quotas.set(metrics, &router.namespace_uses());
        metrics.outbox_events.set(i64::try_from(services.journal.outbox_used().0).unwrap_or(i64::MAX));
        let published = services.egress.counters().published.load(std::sync::atomic::Ordering::Relaxed);
        metrics.events_published.set(published);
        tokio::time::sleep(GAUGES).await;
    }
}

/// Makes events of what the egress found; it has logged them already.
async fn raise_alarms(parts: Arc<Parts>) {
    let services = &parts.services;
    let mut reports = parts.reports.lock().await;
    while let Some(report) = reports.recv().await {
        if let Some(alarm) = alarm(&report) {
            services.log.note(alarm);
        }
    }
}

fn alarm(report: &EgressReport) -> Option<HostNote> {
    match report {
        EgressReport::Assets(report) if report.differences.is_empty() => None,
        EgressReport::Assets(report) => {
            let text =
                "streams or buckets are not as this version makes them; an operator should upgrade them";
            let differences: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
            Some(HostNote::alarm("assets_differ", text).with("differences", differences.join("; ")))
        }
        EgressReport::StreamReplaced { before, now } => {
            let text = "the stream of events is another one than before; older events are not in it";
            Some(HostNote::alarm("stream_replaced", text).with("before", before).with("now", now))
        }
        EgressReport::Missing { key, anomaly } => {
            let text = "acknowledged events of a VM are not in the stream any more";
            let what = match anomaly {
                Anomaly::Trimmed => "trimmed",
                Anomaly::WentBack => "went_back",
            };
            Some(HostNote::alarm("events_missing", text).with("vm_id", key).with("what", what))
        }
        EgressReport::Stopped { key, reason } => {
            let text = "the events of a VM cannot be published and wait in the journal";
            Some(HostNote::alarm("events_stopped", text).with("vm_id", key).with("reason", reason))
        }
    }
}

async fn reap(parts: Arc<Parts>) {
    let services = &parts.services;
    loop {
        tokio::time::sleep(PRUNE).await;
        let now = now_ms();
        let batch = journal::Batch::new().essential().with(journal::Op::Prune {
            requests_before_unix_ms: now
                .saturating_sub(journal::REQUEST_WINDOW_MS + journal::REQUEST_AHEAD_MS),
            now_unix_ms: now,
        });
        if let Err(failure) = services.journal.commit(batch).await {
            warn!(error = %chain(&failure), "old requests could not be forgotten");
        }
    }
}
