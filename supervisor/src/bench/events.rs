//! The row of events: the egress of a daemon, with a journal of its own, beside bare publishes with the same
//! headers, bodies and expectations. Both go into a stream that is made for the run and removed after it.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use drover_actors::bus::assets::AssetsConfig;
use drover_actors::bus::connect::{Bus, BusState};
use drover_actors::bus::egress::{self, EXPECTED_SUBJECT, EgressConfig};
use drover_actors::chain;
use drover_actors::journal::{Batch, EventClass, Op, OutboxRow, StatusUpdate};
use drover_schemas::VmId;
use drover_schemas::blob::Blob;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::report::Row;
use super::sample::Percentiles;
use super::scratch::{Scratch, ScratchError};
use crate::client::Client;

/// VMs that tell at once: as many as the egress has lanes.
const VMS: u64 = 64;
/// Events of one VM in a round.
const EVENTS: u64 = 32;
const ROUNDS: u64 = 4;
/// As long as an event of a VM's state is.
const BODY: usize = 900;
/// How long a round may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Events in a second, by turns. A host whose connection may make no streams has no such row, and it says so.
pub async fn row(client: &Client) -> Row {
    let row = Row::new(&format!("events of {VMS} VMs into the stream"), "1/s", Percentiles::default());
    let outcome = match Scratch::make(client).await {
        Ok(scratch) => {
            let outcome = measure(client, &scratch).await;
            scratch.remove().await;
            outcome
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok((drover, bare)) => Row { drover: Some(Percentiles::of_rates(drover)), ..row }
            .against("bare JetStream publishes of the same messages", Ok(Percentiles::of_rates(bare))),
        Err(error) => row.unmeasured(&chain(&error).to_string()),
    }
}

async fn measure(client: &Client, scratch: &Scratch) -> Result<(Vec<f64>, Vec<f64>), ScratchError> {
    let Scratch { js, assets, journal, .. } = scratch;
    let (mut drover, mut bare) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let rows = events(assets, "own", round);
        for row in rows.iter().flatten() {
            let op = Op::PutOutbox { class: EventClass::State, row: Box::new(row.clone()) };
            journal.commit(Batch::new().with(op)).await.map_err(ScratchError::Journal)?;
        }
        let (_connected, state) =
            watch::channel(BusState { connected: true, connects: 1, ..BusState::default() });
        let bus = Bus { client: client.nats().clone(), state };
        let began = Instant::now();
        let (egress, _reports) = egress::start(journal.clone(), bus, EgressConfig::new(assets.clone()));
        let all = async {
            for last in rows.iter().filter_map(|vm| vm.last()) {
                egress.acked(last.key, last.seq).await.map_err(ScratchError::Journal)?;
            }
            Ok(())
        };
        timeout(PATIENCE, all).await.map_err(|_| ScratchError::Late)??;
        drover.push(rate(began));
        egress.stop();

        let rows = events(assets, "bare", round);
        let stream: Arc<str> = assets.events_stream().into();
        let began = Instant::now();
        let lanes = rows.into_iter().map(|rows| publish(js.clone(), Arc::clone(&stream), rows));
        timeout(PATIENCE, futures_util::future::try_join_all(lanes))
            .await
            .map_err(|_| ScratchError::Late)??;
        bare.push(rate(began));
    }
    Ok((drover, bare))
}

fn rate(began: Instant) -> f64 {
    (VMS * EVENTS) as f64 / began.elapsed().as_secs_f64()
}

/// A round's events, by VM. Every round has VMs of its own.
fn events(assets: &AssetsConfig, whose: &str, round: u64) -> Vec<Vec<OutboxRow>> {
    let of = |vm: u64, seq: u64| {
        let name = format!("{whose}-{round}-{vm}");
        let filter = format!("{}.v1.evt.ns.default.vm.{name}.>", assets.root);
        OutboxRow {
            key: VmId::from_u128(u128::from(round * VMS + vm + 1)),
            seq,
            subject: filter.replace('>', "state"),
            filter,
            headers: vec![("ce-type".into(), "drover.vm.state.v1".into())],
            body: Blob::from(vec![seq as u8; BODY]),
            status: Some(StatusUpdate::Put {
                key: format!("default.{name}"),
                value: Blob::from(vec![seq as u8; BODY]),
            }),
        }
    };
    (0..VMS).map(|vm| (1..=EVENTS).map(|seq| of(vm, seq)).collect()).collect()
}

/// The events of one VM, one after another, each with the expectation that keeps them in order.
async fn publish(js: Context, stream: Arc<str>, rows: Vec<OutboxRow>) -> Result<(), ScratchError> {
    let mut expected = 0;
    for row in rows {
        let id = row.event_id();
        let mut headers = HeaderMap::new();
        for (name, value) in &row.headers {
            headers.insert(name.as_str(), value.as_str());
        }
        headers.insert("ce-id", id.as_str());
        headers.insert(NATS_MESSAGE_ID, format!("bare-{id}"));
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        headers.insert(EXPECTED_SUBJECT, row.filter.as_str());
        headers.insert(NATS_EXPECTED_STREAM, &*stream);
        let message = PublishMessage::build().payload(row.body.0).headers(headers);
        let sent = js.send_publish(row.subject, message).await.map_err(ScratchError::Publish)?;
        expected = sent.await.map_err(ScratchError::Publish)?.sequence;
    }
    Ok(())
}
