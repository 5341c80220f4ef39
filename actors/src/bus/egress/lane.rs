//! The events of one VM, one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID, NATS_MESSAGE_TTL,
};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use drover_schemas::VmId;

use super::decide::{Last, StopReason, Verdict, decide, parse_event_id};
use super::{EgressReport, Shared};
use crate::journal::{Batch, Op, OutboxRow, Position, StatusUpdate};

/// Events that are read at a time, and acknowledged in one commit.
const PAGE: usize = 32;
const CE_ID: &str = "ce-id";
/// Header that says whose last sequence is expected: any subject of the filter. The client has no name for it.
pub const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// How often a state is written to its bucket before the events go on without.
const STATUS_ATTEMPTS: u32 = 5;
/// How long the bucket of states remembers that an entry went.
const STATUS_TOMBSTONE: &str = "1h";

/// Why a lane does not go on.
enum Halt {
    /// An operator has to look.
    Stop(StopReason),
    /// The VM may not speak now: its events wait in the outbox.
    Held,
}

impl From<StopReason> for Halt {
    fn from(reason: StopReason) -> Self {
        Self::Stop(reason)
    }
}

pub(super) struct Lane {
    shared: Arc<Shared>,
    key: VmId,
    /// The last event that is known to be in the stream.
    position: Option<Position>,
    /// What the next publish expects; `None`: ask for the last message first.
    expected: Option<u64>,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, key: VmId) -> Self {
        Self { shared, key, position: None, expected: None }
    }

    /// Publishes until nothing waits.
    pub(super) async fn run(mut self) -> Result<(), StopReason> {
        let unreadable = |e: crate::journal::JournalError| StopReason::Journal { reason: e.to_string() };
        self.position = self.shared.journal.position(self.key).map_err(unreadable)?;
        self.expected = self.position.map(|p| p.stream_seq);
        let mut from = 0;
        loop {
            let page = self.shared.journal.outbox_page(self.key, from, PAGE).map_err(unreadable)?;
            if page.is_empty() {
                return Ok(());
            }
            let result = self.publish_page(&page).await;
            if let Some(Position { seq, .. }) = self.position
                && seq >= page[0].seq
            {
                from = seq + 1;
                self.acknowledge(&page).await;
            }
            match result {
                Ok(()) => {}
                Err(Halt::Stop(reason)) => return Err(reason),
                Err(Halt::Held) => return Ok(()),
            }
        }
    }

    async fn publish_page(&mut self, page: &[OutboxRow]) -> Result<(), Halt> {
        for row in page {
            // An acknowledgement may cover several.
            if self.position.is_none_or(|p| p.seq < row.seq) {
                self.publish(row).await?;
            }
        }
        Ok(())
    }

    /// Brings one event into the stream.
    async fn publish(&mut self, row: &OutboxRow) -> Result<(), Halt> {
        // A VM's first event most often has a fresh name: the server says if it does not.
        let mut expected = self.expected.or((row.seq == 1).then_some(0));
        let mut pause = Duration::from_millis(20);
        loop {
            self.ready().await;
            // While it waited for the gate its VM may have been found to be another host's.
            if self.shared.journal.leaves_if_held(self.key) {
                return Err(Halt::Held);
            }
            let to_expect = match expected {
                Some(expected) => expected,
                None => match self.resolve(row).await? {
                    Some(Verdict::Publish { expected, anomaly }) => {
                        if let Some(anomaly) = anomaly {
                            self.shared.report(EgressReport::Missing { key: self.key, anomaly });
                        }
                        expected
                    }
                    Some(Verdict::Acknowledged { seq, stream_seq }) => {
                        self.shared.counters.resolved.fetch_add(1, Ordering::Relaxed);
                        self.stored(seq, stream_seq);
                        return Ok(());
                    }
                    Some(Verdict::Stop(reason)) => return Err(reason.into()),
                    None => {
                        backoff(&mut pause).await;
                        continue;
                    }
                },
            };
            match self.send(row, to_expect).await {
                Ok(stream_seq) => {
                    self.stored(row.seq, stream_seq);
                    return Ok(());
                }
                Err(PublishErrorKind::MaxPayloadExceeded) => {
                    return Err(StopReason::TooLarge { bytes: row.body.as_slice().len() }.into());
                }
                Err(kind) => {
                    self.shared.counters.retried.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(event = row.event_id(), ?kind, "the fate of an event is not known");
                    if kind == PublishErrorKind::StreamNotFound {
                        self.shared.look_again.notify_one();
                    }
                    // The first wrong expectation is answered by looking, not by waiting.
                    if kind != PublishErrorKind::WrongLastSequence || expected.is_none() {
                        backoff(&mut pause).await;
                    }
                    expected = None;
                }
            }
        }
    }

    /// One attempt: the event's place in the stream, or why it is not known.
    async fn send(&self, row: &OutboxRow, expected: u64) -> Result<u64, PublishErrorKind> {
        let id = row.event_id();
        let mut headers = HeaderMap::new();
        for (name, value) in &row.headers {
            headers.insert(name.as_str(), value.as_str());
        }
        headers.insert(CE_ID, id.as_str());
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        headers.insert(EXPECTED_SUBJECT, row.filter.as_str());
        // Another stream that takes the subjects is not where readers look.
        headers.insert(NATS_EXPECTED_STREAM, self.shared.config.assets.events_stream().as_str());
        let message = PublishMessage::build().payload(row.body.0.clone()).headers(headers);
        let sent = self.shared.js.send_publish(row.subject.clone(), message).await;
        let ack = sent.map_err(|e| e.kind())?.await.map_err(|e| e.kind())?;
        if ack.duplicate {
            // The server knows the id, but only the last message shows the bytes.
            return Err(PublishErrorKind::WrongLastSequence);
        }
        Ok(ack.sequence)
    }

    /// What the last message of the filter says about `row`; `None` if it cannot be read now.
    async fn resolve(&self, row: &OutboxRow) -> Result<Option<Verdict>, StopReason> {
        let stream = self.shared.config.assets.events_stream();
        let stream = match self.shared.js.get_stream_no_info(&stream).await {
            Ok(stream) => stream,
            Err(_) => return Ok(None),
        };
        // From the stream's leader: a direct get may be answered by a replica that lags.
        let last = match stream.get_last_raw_message_by_subject(&row.filter).await {
            Ok(message) => message,
            Err(e) => {
                return Ok(match e.kind() {
                    LastRawMessageErrorKind::NoMessageFound => {
                        Some(decide(self.key, row.seq, self.position, None))
                    }
                    _ => None,
                });
            }
        };
        let event = last.headers.get(CE_ID).and_then(|id| parse_event_id(id.as_str()));
        let is_in_outbox = match event {
            Some((key, seq)) if key == self.key && seq >= row.seq => {
                let page = self.shared.journal.outbox_page(key, seq, 1);
                let page = page.map_err(|e| StopReason::Journal { reason: e.to_string() })?;
                page.first().is_some_and(|r| r.seq == seq && r.body.as_slice() == last.payload.as_ref())
            }
            _ => false,
        };
        let last = Last { event, stream_seq: last.sequence, is_in_outbox };
        Ok(Some(decide(self.key, row.seq, self.position, Some(&last))))
    }

    fn stored(&mut self, seq: u64, stream_seq: u64) {
        self.shared.counters.published.fetch_add(1, Ordering::Relaxed);
        self.position = Some(Position { seq, stream_seq });
        self.expected = Some(stream_seq);
    }

    /// Writes the VM's state to its bucket, then takes the events out of the outbox.
    async fn acknowledge(&self, page: &[OutboxRow]) {
        let Some(Position { seq, stream_seq }) = self.position else { return };
        let status = page.iter().rev().filter(|r| r.seq <= seq).find_map(|r| r.status.as_ref());
        let mut pause = Duration::from_millis(50);
        for attempt in 1..=STATUS_ATTEMPTS {
            // The name may be another VM's by now.
            let Some(status) = status.filter(|_| !self.shared.journal.leaves_if_held(self.key)) else {
                break;
            };
            let Err(error) = self.write_status(status).await else { break };
            self.shared.counters.status_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(key = %self.key, error, attempt, "the state of a VM was not written to its bucket");
            backoff(&mut pause).await;
        }
        let mut pause = Duration::from_millis(50);
        loop {
            let op = Op::AckOutbox { key: self.key, seq, stream_seq };
            match self.shared.journal.commit(Batch::new().with(op).essential()).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "an acknowledgement could not be recorded"),
            }
            backoff(&mut pause).await;
        }
        self.shared.acked.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The bucket is a view that readers poll, not the log: a write that fails again and again is given up, and
    /// mended by the next one.
    async fn write_status(&self, status: &StatusUpdate) -> Result<(), String> {
        let bucket = self.shared.config.assets.state_bucket();
        let (key, message) = match status {
            StatusUpdate::Put { key, value } => (key, PublishMessage::build().payload(value.0.clone())),
            StatusUpdate::Delete { key } => {
                let message = PublishMessage::build().header("KV-Operation", "PURGE");
                let message = message.header("Nats-Rollup", "sub").header(NATS_MESSAGE_TTL, STATUS_TOMBSTONE);
                (key, message)
            }
        };
        let sent = self.shared.js.send_publish(format!("$KV.{bucket}.{key}"), message).await;
        sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())?;
        Ok(())
    }

    async fn ready(&self) {
        // The keeper lives as long as the egress, and a gate without a keeper stays as it is.
        let _ = self.shared.ready.clone().wait_for(|ready| *ready).await;
        let _ = self.shared.config.gate.clone().wait_for(|open| *open).await;
    }
}

/// Waits, each time longer, up to 5 s, with some chance in it.
async fn backoff(pause: &mut Duration) {
    tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
    *pause = (*pause * 2).min(Duration::from_secs(5));
}
