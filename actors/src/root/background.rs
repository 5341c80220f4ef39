//! What a host does beside its actors: heartbeats, gauges, alarms, and forgetting what is old.

use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::body::host::HostRecord;
use drover_schemas::codec;
use ractor::ActorRef;
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use super::FEATURES;
use crate::bus::claims::ClaimError;
use crate::bus::connect::Bus;
use crate::bus::egress::EgressReport;
use crate::bus::egress::decide::Anomaly;
use crate::chain;
use crate::host_log::HostNote;
use crate::hypervisor::notify::NotifySocket;
use crate::journal;
use crate::manager::ManagerMsg;
use crate::router::HostPhase;
use crate::services::{Shared, now_ms};

/// How often a host says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often gauges are read.
const GAUGES: Duration = Duration::from_secs(5);
/// How long finished requests are looked for.
const PRUNE: Duration = Duration::from_secs(600);

pub(super) async fn forward_hints(notify: NotifySocket, manager: ActorRef<ManagerMsg>) {
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

pub(super) async fn heartbeats(services: Shared, bus: Bus, phase: watch::Receiver<HostPhase>) {
    let mut taken = false;
    loop {
        bus.connected().await;
        services.egress.ready().await;
        let record = HostRecord {
            host: services.host.clone(),
            installation: services.installation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            capacity: services.state.capacity(),
            labels: std::collections::BTreeMap::new(),
            accepting: *phase.borrow() == HostPhase::Ready,
            written_unix_ms: now_ms(),
        };
        let pause = match codec::encode(&record) {
            Ok(bytes) => {
                match services
                    .claims
                    .heartbeat(&services.host, services.installation, Blob::from(bytes))
                    .await
                {
                    Ok(_) => HEARTBEAT,
                    Err(failure @ ClaimError::HostTaken { .. }) => {
                        error!(error = %chain(&failure), "the name of this host is taken");
                        if !taken {
                            let text =
                                "another installation has the name of this host; give one of them another";
                            services.log.note(HostNote::alarm("host_name_taken", text));
                        }
                        taken = true;
                        HEARTBEAT
                    }
                    Err(failure) => {
                        warn!(error = %chain(&failure), "a heartbeat was not stored");
                        Duration::from_secs(1)
                    }
                }
            }
            Err(_) => HEARTBEAT,
        };
        tokio::time::sleep(pause).await;
    }
}

pub(super) async fn gauges(services: Shared, bus: Bus) {
    let metrics = &services.metrics;
    loop {
        let (connected, slow) = {
            let state = bus.state.borrow();
            (state.connected, state.slow_consumers)
        };
        metrics.bus_connected.set(i64::from(connected));
        metrics.slow_consumers.set(i64::try_from(slow).unwrap_or(i64::MAX));
        metrics.outbox_events.set(i64::try_from(services.journal.outbox_used().0).unwrap_or(i64::MAX));
        let published = services.egress.counters().published.load(std::sync::atomic::Ordering::Relaxed);
        metrics.events_published.set(published);
        tokio::time::sleep(GAUGES).await;
    }
}

/// Makes events of what the egress found; it has logged them already.
pub(super) async fn raise_alarms(services: Shared, mut reports: mpsc::Receiver<EgressReport>) {
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
            let differences = report
                .differences
                .iter()
                .map(|d| format!("{} {}: found {}, expected {}", d.asset, d.setting, d.found, d.expected));
            let differences: Vec<String> = differences.collect();
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

pub(super) async fn prune(services: Shared) {
    loop {
        tokio::time::sleep(PRUNE).await;
        let now = now_ms();
        let batch = journal::Batch::new().essential().with(journal::Op::Prune {
            requests_before_unix_ms: now.saturating_sub(journal::REQUEST_WINDOW_MS),
            now_unix_ms: now,
        });
        if let Err(failure) = services.journal.commit(batch).await {
            warn!(error = %chain(&failure), "old requests could not be forgotten");
        }
    }
}
