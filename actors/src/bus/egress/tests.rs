//! The bus is taken away in every way that loses an answer, and each event is in the stream exactly
//! once afterwards, in order per VM.

use std::collections::BTreeMap;

use async_nats::jetstream;
use drover_schemas::Token;
use drover_schemas::blob::Blob;

use super::*;
use crate::bus::testing::{NatsServer, PATIENCE, Proxy, bus_at, until};
use crate::journal::{self, Batch, EventClass, JournalConfig, Op, OutboxRow, StatusUpdate};

const WINDOW: Duration = Duration::from_secs(1);

fn config() -> EgressConfig {
    let root = Token::new("drover").unwrap();
    let assets = AssetsConfig { duplicate_window: Some(WINDOW), ..AssetsConfig::new(root) };
    EgressConfig { ack_timeout: Duration::from_millis(500), ..EgressConfig::new(assets) }
}

fn journal(dir: &tempfile::TempDir) -> JournalHandle {
    journal::open(&JournalConfig { reserve_bytes: 1, ..JournalConfig::new(dir.path()) }).unwrap()
}

fn event(name: &str, key: u128, seq: u64) -> OutboxRow {
    let base = format!("drover.v1.evt.ns.default.vm.{name}");
    OutboxRow {
        key: VmId::from_u128(key),
        seq,
        // Kinds differ: order is guarded over the filter, not the subject.
        subject: format!("{base}.{}", if seq.is_multiple_of(2) { "state" } else { "agent" }),
        filter: format!("{base}.>"),
        headers: vec![("ce-type".into(), "drover.vm.state.v1".into())],
        body: Blob::from(format!("{key}/{seq}").into_bytes()),
        status: Some(StatusUpdate::Put {
            key: format!("default.{name}"),
            value: Blob::from(seq.to_string().into_bytes()),
        }),
    }
}

async fn put(journal: &JournalHandle, row: OutboxRow) {
    let op = Op::PutOutbox { class: EventClass::State, row: Box::new(row) };
    journal.commit(Batch::new().with(op)).await.unwrap();
}

/// `vms` VMs get events `from..=to`, interleaved.
async fn burst(journal: &JournalHandle, vms: u128, from: u64, to: u64) {
    for seq in from..=to {
        for key in 1..=vms {
            put(journal, event(&format!("vm{key}"), key, seq)).await;
        }
    }
}

async fn acked(egress: &Egress, key: u128, seq: u64) {
    let acked = tokio::time::timeout(PATIENCE, egress.acked(VmId::from_u128(key), seq)).await;
    acked.expect("acknowledged in time").unwrap();
}

/// Event ids under each subject filter, in the order of the stream.
async fn stored(js: &Context) -> BTreeMap<String, Vec<String>> {
    let mut stream = js.get_stream("DROVER_EVENTS").await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut stored: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seq in state.first_sequence.max(1)..=state.last_sequence {
        let Ok(message) = stream.get_raw_message(seq).await else { continue };
        let name = message.subject.split('.').nth(6).unwrap_or_default().to_owned();
        let id = message.headers.get("ce-id").map(ToString::to_string).unwrap_or_default();
        stored.entry(name).or_default().push(id);
    }
    stored
}

fn expected(vms: u128, last: u64) -> BTreeMap<String, Vec<String>> {
    (1..=vms)
        .map(|key| {
            let ids = (1..=last).map(|seq| journal::event_id(VmId::from_u128(key), seq)).collect();
            (format!("vm{key}"), ids)
        })
        .collect()
}

/// Waits until the server has forgotten the message ids of everything before this call.
async fn dedupe_window_over(js: &Context) {
    let probe = || async {
        let publish = jetstream::message::PublishMessage::build().message_id("probe");
        let ack = js.send_publish("drover.v1.evt.host.probe.x", publish).await.unwrap().await.unwrap();
        !ack.duplicate
    };
    assert!(probe().await, "the first probe is stored");
    until("the dedupe window is over", probe).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_for_longer_than_the_dedupe_window_gets_every_event_once() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    let (egress, _reports) = start(journal.clone(), server.bus().await, config());
    let feeding = {
        let journal = journal.clone();
        tokio::spawn(async move { burst(&journal, 20, 1, 20).await })
    };
    // In the middle of the burst, with publishes under way.
    until("some events are published", || async { egress.counters().published.load(Ordering::Relaxed) > 60 })
        .await;
    server.kill();
    let away = tokio::time::Instant::now();
    feeding.await.unwrap();
    // The bus is away and everybody commits on.
    burst(&journal, 20, 21, 25).await;
    assert!(journal.outbox_used().0 > 0);
    // Time itself is what this test is about: there is no level to wait on while the server is off.
    tokio::time::sleep_until(away + WINDOW * 2).await;
    server.up().await;
    for key in 1..=20 {
        acked(&egress, key, 25).await;
    }
    let js = jetstream::new(server.bus().await.client);
    assert_eq!(stored(&js).await, expected(20, 25));
    assert_eq!(journal.outbox_used().0, 0);
    assert!(egress.stopped().is_empty());
    let state = js.get_key_value("DROVER_STATE").await.unwrap();
    assert_eq!(state.get("default.vm7").await.unwrap().unwrap().as_ref(), b"25");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_that_are_lost_for_longer_than_the_dedupe_window_store_nothing_twice() {
    let Some(server) = NatsServer::start("").await else { return };
    let proxy = Proxy::start(server.port).await;
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    let (egress, _reports) = start(journal.clone(), bus_at(proxy.port).await, config());
    burst(&journal, 5, 1, 2).await;
    for key in 1..=5 {
        acked(&egress, key, 2).await;
    }
    proxy.mute();
    burst(&journal, 5, 3, 6).await;
    let js = jetstream::new(server.bus().await.client);
    until("the third event of each VM is stored, unacknowledged", || async {
        stored(&js).await.values().filter(|ids| ids.len() == 3).count() == 5
    })
    .await;
    assert_eq!(journal.outbox_used().0, 20);
    dedupe_window_over(&js).await;
    proxy.heal();
    for key in 1..=5 {
        acked(&egress, key, 6).await;
    }
    let mut found = stored(&js).await;
    found.retain(|name, _| name.starts_with("vm"));
    assert_eq!(found, expected(5, 6));
    assert!(egress.counters().resolved.load(Ordering::Relaxed) >= 5);
    assert!(egress.stopped().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_lost_its_acknowledgements_finds_its_events_in_the_stream() {
    let Some(server) = NatsServer::start("").await else { return };
    let js = jetstream::new(server.bus().await.client);
    crate::bus::assets::ensure(&js, &config().assets).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    burst(&journal, 1, 1, 4).await;
    // As if a daemon had published 1 to 3 and died before it noted any acknowledgement.
    for seq in 1..=3 {
        let row = event("vm1", 1, seq);
        let id = row.event_id();
        let publish =
            jetstream::message::PublishMessage::build().payload(row.body.0).header("ce-id", id.as_str());
        js.send_publish(row.subject, publish).await.unwrap().await.unwrap();
    }
    let (egress, _reports) = start(journal.clone(), server.bus().await, config());
    acked(&egress, 1, 4).await;
    assert_eq!(stored(&js).await, expected(1, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_name_goes_on_for_a_new_vm_and_stops_for_the_former_one() {
    let Some(server) = NatsServer::start("").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    let (egress, mut reports) = start(journal.clone(), server.bus().await, config());
    put(&journal, event("web", 1, 1)).await;
    acked(&egress, 1, 1).await;
    put(&journal, event("web", 2, 1)).await;
    acked(&egress, 2, 1).await;
    // The former owner believes that the name is still its own.
    put(&journal, event("web", 1, 2)).await;
    let stopped = async {
        loop {
            if let Some(EgressReport::Stopped { key, reason }) = reports.recv().await {
                return (key, reason);
            }
        }
    };
    let (key, reason) = tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    assert_eq!(key, VmId::from_u128(1));
    assert!(matches!(reason, StopReason::Foreign { .. }), "{reason:?}");
    let js = jetstream::new(server.bus().await.client);
    let id = |key, seq| journal::event_id(VmId::from_u128(key), seq);
    assert_eq!(stored(&js).await["web"], [id(1, 1), id(2, 1)]);
    assert_eq!(journal.outbox_used().0, 1, "the event stays in the outbox");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_anew_is_reported_and_goes_on() {
    let Some(server) = NatsServer::start("").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    let (egress, mut reports) = start(journal.clone(), server.bus().await, config());
    put(&journal, event("web", 1, 1)).await;
    acked(&egress, 1, 1).await;
    let js = jetstream::new(server.bus().await.client);
    js.delete_stream("DROVER_EVENTS").await.unwrap();
    put(&journal, event("web", 1, 2)).await;
    acked(&egress, 1, 2).await;
    assert_eq!(stored(&js).await["web"], [journal::event_id(VmId::from_u128(1), 2)]);
    let mut seen = Vec::new();
    while let Ok(report) = reports.try_recv() {
        seen.push(report);
    }
    assert!(seen.iter().any(|r| matches!(r, EgressReport::StreamReplaced { .. })), "{seen:?}");
    let missing = EgressReport::Missing { key: VmId::from_u128(1), anomaly: Anomaly::Trimmed };
    assert!(seen.contains(&missing), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_is_held_while_its_events_wait_for_the_gate_tells_nothing_when_it_opens() {
    let Some(server) = NatsServer::start("").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir);
    let (open, gate) = watch::channel(false);
    let (egress, _reports) = start(journal.clone(), server.bus().await, EgressConfig { gate, ..config() });
    let (held, other) = (VmId::from_u128(1), VmId::from_u128(2));
    burst(&journal, 2, 1, 2).await;
    // The lanes have their events by now, and no key waits to be taken.
    until("both lanes wait for the gate", || async { open.receiver_count() == 3 }).await;
    journal.hold_events(held);
    open.send_replace(true);
    acked(&egress, 2, 2).await;
    put(&journal, event("vm2", 2, 3)).await;
    acked(&egress, 2, 3).await;
    let js = jetstream::new(server.bus().await.client);
    assert_eq!(stored(&js).await.keys().collect::<Vec<_>>(), ["vm2"]);
    assert!(egress.stopped().is_empty());
    assert_eq!(journal.position(held).unwrap(), None);
    journal.let_events_go(held);
    acked(&egress, 1, 2).await;
    assert_eq!(stored(&js).await["vm1"].len(), 2);
    assert_eq!(journal.position(other).unwrap().map(|p| p.seq), Some(3));
}
