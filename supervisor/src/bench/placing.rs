//! Rows of a create's way to its host: choosing among many, the claim of the name, the commit of the row.

use std::time::{Duration, Instant};

use drover_actors::bus::claims::decide::Attempt;
use drover_actors::bus::claims::{Claims, NameKey};
use drover_actors::chain;
use drover_actors::fleet::demand::Demand;
use drover_actors::fleet::placement::{Candidate, Pending, rank};
use drover_actors::journal::{Batch, EventClass, Op, OutboxRow};
use drover_schemas::blob::Blob;
use drover_schemas::body::host::HostRecord;
use drover_schemas::{RequestId, Token, VmId};

use super::host::Echo;
use super::report::{Goal, Row};
use super::sample::Sample;
use super::scratch::{Scratch, ScratchError};
use crate::client::{Client, ClientError};

/// Hosts of the fleet that is chosen from.
const HOSTS: usize = 100;
/// As long as the row of a VM is.
const ROW: usize = 1_024;

/// The rows.
///
/// # Errors
/// A call that failed.
pub async fn rows(client: &Client, host: &Token, calls: usize) -> Result<Vec<Row>, ClientError> {
    let mut rows = vec![choose(client, host, calls).await?];
    let made = match Scratch::make(client).await {
        Ok(scratch) => {
            let outcome = keep(client, &scratch, calls / 10).await;
            scratch.remove().await;
            outcome
        }
        Err(error) => Err(error),
    };
    match made {
        Ok(kept) => rows.extend(kept),
        Err(error) => rows.extend(unkept(&chain(&error).to_string())),
    }
    Ok(rows)
}

/// A fleet of hosts like this one, of which each has something else left.
async fn choose(client: &Client, host: &Token, calls: usize) -> Result<Row, ClientError> {
    let what = format!("choosing among {HOSTS} hosts");
    let own = client.hosts(host, super::DEADLINE).await?.into_iter().find(|entry| entry.host == *host);
    let Some(own) = own.and_then(|entry| entry.record) else {
        return Ok(Row::new(&what, "us", Sample::default().percentiles(1.0))
            .unmeasured("the host is not in the inventory"));
    };
    let fleet: Vec<HostRecord> = (0..HOSTS).filter_map(|number| like(&own, number)).collect();
    let demand = Demand {
        template: own.templates.as_ref().and_then(|templates| templates.first().cloned()),
        cpus: Some(1),
        memory_bytes: Some(64 << 20),
        networks: own.networks.iter().flatten().take(1).map(|(network, _)| (network.clone(), 1)).collect(),
        images: own.images.iter().flatten().take(2).map(|image| image.name.clone()).collect(),
        ..Demand::default()
    };
    let echo = Echo::start(client, bytes::Bytes::from_static(&[0; 64])).await?;
    let (mut drover, mut bare) = (Sample::default(), Sample::default());
    for call in 0..calls.max(1) {
        let began = Instant::now();
        let seen = fleet.iter().map(|record| Candidate {
            record,
            heard: Duration::ZERO,
            pending: Pending::default(),
            own: false,
        });
        let ranking = rank(&demand, seen, call as u128);
        drover.push(began.elapsed());
        std::hint::black_box(ranking);
        bare.time(echo.ask(bytes::Bytes::new())).await?;
    }
    Ok(Row::new(&what, "us", drover.percentiles(1e6))
        .against("one round trip over NATS", Ok(bare.percentiles(1e6)))
        .goal(Goal::RatioAtMost(5.0)))
}

fn like(own: &HostRecord, number: usize) -> Option<HostRecord> {
    let mut record = HostRecord { host: Token::new(&format!("bench{number}")).ok()?, ..own.clone() };
    record.capacity.cpus_used = record.capacity.cpus * (number as u64 % 97) / 97;
    record.capacity.memory_used_bytes = record.capacity.memory_bytes / 97 * (number as u64 % 89);
    Some(record)
}

const CLAIM: &str = "claim of a name";
const COMMIT: &str = "commit of a row";
const CLAIM_LIMIT: &str = "a bare publish to a stream with an expectation";

/// The claim and the commit, each alone.
async fn keep(client: &Client, scratch: &Scratch, calls: usize) -> Result<Vec<Row>, ScratchError> {
    let claims = Claims::new(scratch.js.clone(), &scratch.assets);
    let (mut claim, mut bare, mut commit) = (Sample::default(), Sample::default(), Sample::default());
    let stream = scratch.assets.vms_bucket();
    for call in 0..calls.max(1) {
        let attempt = Attempt {
            vm_id: VmId::generate(),
            request_id: RequestId::generate(),
            body_sha256: "0".repeat(64),
            host: scratch.assets.root.clone(),
            now_unix_ms: 1,
            deadline_unix_ms: 2,
        };
        let namespace = client.namespace().clone();
        let Ok(name) = Token::new(&format!("n{call}")) else { continue };
        let key = NameKey { namespace, name };
        claim.time(claims.claim_create(&key, &attempt)).await.map_err(ScratchError::Claim)?;
        let message = async_nats::jetstream::message::PublishMessage::build()
            .header(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0")
            .payload(vec![0; 256].into());
        let publish = async {
            let sent = scratch.js.send_publish(format!("$KV.{stream}.bare.n{call}"), message).await?;
            sent.await
        };
        bare.time(publish).await.map_err(ScratchError::Publish)?;
        let row = OutboxRow {
            key: attempt.vm_id,
            seq: 1,
            subject: String::new(),
            filter: String::new(),
            headers: Vec::new(),
            body: Blob::from(vec![0; ROW]),
            status: None,
        };
        let op = Op::PutOutbox { class: EventClass::State, row: Box::new(row) };
        commit.time(scratch.journal.commit(Batch::new().with(op))).await.map_err(ScratchError::Journal)?;
    }
    Ok(vec![
        Row::new(CLAIM, "us", claim.percentiles(1e6)).against(CLAIM_LIMIT, Ok(bare.percentiles(1e6))),
        Row::new(COMMIT, "us", commit.percentiles(1e6)),
    ])
}

fn unkept(why: &str) -> [Row; 2] {
    [CLAIM, COMMIT].map(|what| Row::new(what, "us", Sample::default().percentiles(1.0)).unmeasured(why))
}
