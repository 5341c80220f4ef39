//! Looks at the stream of events every few seconds: how long it keeps them, whether somebody took events out of it,
//! whether events were trimmed that a reader had not read, and how far the server's clock is from ours.
//!
//! *Unread* are events behind the last one that a reader has acknowledged. Readers are the durable consumers of the
//! stream: those have a name, and whoever made one wants every event. Others (`events.read`, subscriptions) keep
//! their own place and are told `trimmed` when they come back too late. What still waits in the host's outbox
//! cannot be trimmed; that it does not get away is an alarm of its own.

mod decide;

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use drover_schemas::body::usage::EventLog;
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::decide::{Finding, Reader, compare};
use super::log::{self, From};
use crate::alarms::{CLOCK, COMPRESSED};
use crate::chain;
use crate::host_log::HostNote;
use crate::services::{Shared, now_ms};

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readers that are looked at, and filters of one.
const READERS: usize = 500;
const FILTERS: usize = 16;

/// What the server tells of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamLook {
    /// When it was made.
    pub created: String,
    /// How many messages it has.
    pub messages: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Position of the first.
    pub first_seq: u64,
    /// When that was stored; absent if there is none.
    pub first_unix_ms: Option<u64>,
    /// Position of the last that there ever was.
    pub last_seq: u64,
    /// Messages that are missing between the first and the last.
    pub deleted: u64,
    /// How long messages are kept; absent for ever.
    pub max_age_ms: Option<u64>,
    /// How much is kept; absent for all.
    pub max_bytes: Option<u64>,
    /// The server compresses it.
    pub compressed: bool,
    /// When it was looked at, by the server's clock.
    pub server_unix_ms: Option<u64>,
    /// How far our clock is ahead of the server's.
    pub clock_offset_ms: Option<i64>,
    /// How long the answer took.
    pub round_trip_ms: u64,
}

/// The stream cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is no such stream.
    #[error("there is no stream of events")]
    Absent,
    /// The server did not answer.
    #[error("ask the server about the stream")]
    Ask {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer cannot be read.
    #[error("read the server's answer about the stream")]
    Answer {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The server refused.
    #[error("the server does not tell of the stream: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

/// The parts of the answer that matter. The client's own type lacks the server's time.
#[derive(Deserialize)]
struct Answer {
    error: Option<AnswerError>,
    #[serde(default)]
    created: String,
    config: Option<AnswerConfig>,
    state: Option<AnswerState>,
    ts: Option<String>,
}

#[derive(Deserialize)]
struct AnswerError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct AnswerConfig {
    #[serde(default)]
    max_age: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    compression: String,
}

#[derive(Deserialize)]
struct AnswerState {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    #[serde(default)]
    first_ts: String,
    last_seq: u64,
    #[serde(default)]
    num_deleted: u64,
}

/// JetStream's number for a stream that is not there.
const STREAM_NOT_FOUND: u64 = 10_059;

/// Asks the server about the stream.
///
/// # Errors
/// [`LookError`].
pub async fn info(client: &Client, stream: &str) -> Result<StreamLook, LookError> {
    let (sent_unix_ms, sent) = (now_ms(), Instant::now());
    let request = async_nats::Request::new().timeout(Some(PATIENCE));
    let answer = client.send_request(format!("$JS.API.STREAM.INFO.{stream}"), request).await;
    let round_trip_ms = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
    let answer = answer.map_err(|e| LookError::Ask { source: e.into() })?;
    let look = read(&answer.payload)?;
    let ours = i64::try_from(sent_unix_ms + round_trip_ms / 2).unwrap_or(i64::MAX);
    let theirs = look.server_unix_ms.and_then(|at| i64::try_from(at).ok());
    Ok(StreamLook { round_trip_ms, clock_offset_ms: theirs.map(|at| ours - at), ..look })
}

fn read(answer: &[u8]) -> Result<StreamLook, LookError> {
    let answer: Answer = serde_json::from_slice(answer).map_err(|source| LookError::Answer { source })?;
    if let Some(AnswerError { err_code, description }) = answer.error {
        return Err(match err_code {
            STREAM_NOT_FOUND => LookError::Absent,
            _ => LookError::Refused { reason: description },
        });
    }
    let (Some(config), Some(state)) = (answer.config, answer.state) else {
        return Err(LookError::Refused { reason: "the answer has no state".to_owned() });
    };
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Ok(StreamLook {
        created: answer.created,
        messages: state.messages,
        bytes: state.bytes,
        first_seq: state.first_seq,
        first_unix_ms: unix_ms(&state.first_ts).filter(|_| state.messages > 0),
        last_seq: state.last_seq,
        deleted: state.num_deleted,
        max_age_ms: positive(config.max_age).map(|nanos| nanos / 1_000_000),
        max_bytes: positive(config.max_bytes),
        compressed: !matches!(config.compression.as_str(), "" | "none"),
        server_unix_ms: answer.ts.as_deref().and_then(unix_ms),
        ..StreamLook::default()
    })
}

fn unix_ms(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

/// Looks for as long as the host runs.
pub async fn run(services: Shared) {
    let mut before: Option<StreamLook> = None;
    let mut readers: BTreeMap<String, Reader> = BTreeMap::new();
    loop {
        services.egress.ready().await;
        match info(&services.client, &services.events_stream).await {
            Ok(now) => {
                for finding in before.iter().flat_map(|before| compare(before, &now)) {
                    if finding == Finding::Replaced {
                        // Its own report follows, from whoever makes the assets.
                        services.egress.look_again();
                    } else {
                        raise(&services, &finding);
                    }
                }
                readers = look_at_readers(&services, &now, &readers).await;
                note(&services, &now, &readers);
                before = Some(now);
            }
            Err(LookError::Absent) => {
                warn!("the stream of events is gone; it is made anew");
                services.egress.look_again();
            }
            Err(failure) => debug!(error = %chain(&failure), "the stream could not be looked at"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn note(services: &Shared, look: &StreamLook, readers: &BTreeMap<String, Reader>) {
    let behind = readers.values().filter(|reader| reader.unread > 0).count() as u64;
    services.metrics.readers_behind.set(behind);
    let log = EventLog {
        stream: services.events_stream.clone(),
        max_age_ms: look.max_age_ms,
        max_bytes: look.max_bytes,
        events: look.messages,
        bytes: look.bytes,
        first_cursor: look.first_seq,
        last_cursor: look.last_seq,
        oldest_unix_ms: look.first_unix_ms,
        readers_behind: behind,
        seen_unix_ms: now_ms(),
    };
    // Whoever is told of an alarm finds the value that it is about.
    services.seen.note(log, look.clock_offset_ms);
    if let Some(offset) = look.clock_offset_ms {
        services.metrics.clock_offset.set(offset as f64 / 1e3);
        // What the way there and back may have added does not count.
        services.alarms.note(&CLOCK, offset.unsigned_abs().saturating_sub(look.round_trip_ms.div_ceil(2)));
    }
    services.alarms.note(&COMPRESSED, look.compressed.into());
}

fn raise(services: &Shared, finding: &Finding) {
    warn!(?finding, "the stream of events");
    match finding {
        Finding::Replaced => {}
        Finding::Purged { first_before, first_now } => {
            let text = "events were taken out of the stream before their time: it was purged";
            let note = HostNote::alarm("events_purged", text).with("first_before", first_before);
            services.log.note(note.with("first_now", first_now));
        }
        Finding::Deleted { count } => {
            let text = "events were deleted from the middle of the stream";
            services.log.note(HostNote::alarm("events_deleted", text).with("count", count));
        }
        Finding::WentBack { last_before, last_now } => {
            let text = "the stream has fewer events than before: it was restored from a backup";
            let note = HostNote::alarm("stream_went_back", text).with("last_before", last_before);
            services.log.note(note.with("last_now", last_now));
        }
    }
}

/// How each named reader stands. One that has lost events is told of once.
async fn look_at_readers(
    services: &Shared,
    look: &StreamLook,
    before: &BTreeMap<String, Reader>,
) -> BTreeMap<String, Reader> {
    let js = jetstream::new(services.client.clone());
    let mut found = BTreeMap::new();
    let Ok(stream) = js.get_stream_no_info(&services.events_stream).await else { return found };
    let mut consumers = stream.consumers();
    while let Some(Ok(consumer)) = consumers.next().await {
        let Some(name) = consumer.config.durable_name.clone() else { continue };
        if found.len() >= READERS {
            break;
        }
        let mut reader = Reader {
            created: consumer.created.unix_timestamp_nanos(),
            read_to: consumer.ack_floor.stream_sequence,
            sent: consumer.delivered.consumer_sequence,
            unread: consumer.num_pending + consumer.num_ack_pending as u64,
            oldest_unread: None,
        };
        let before = before.get(&name).filter(|before| before.created == reader.created);
        if let Some((from, to)) = before.and_then(|before| reader.lost(before, look.first_seq)) {
            let text = "events were trimmed before a reader of the stream had read them; keep events longer, or see \
                        to the reader";
            warn!(reader = name, from, to, "{text}");
            services.metrics.trimmed_unread.inc();
            let note = HostNote::alarm("events_trimmed_unread", text).with("reader", &name);
            services.log.note(note.with("from", from).with("to", to));
        }
        if reader.unread > 0 {
            let config = &consumer.config;
            let mut filters = config.filter_subjects.clone();
            filters.extend((!config.filter_subject.is_empty()).then(|| config.filter_subject.clone()));
            if filters.is_empty() {
                filters.push(services.subjects.all_events());
            }
            reader.oldest_unread = oldest(services, &filters, reader.read_to + 1).await;
        }
        found.insert(name, reader);
    }
    found
}

async fn oldest(services: &Shared, filters: &[String], from: u64) -> Option<u64> {
    let mut oldest: Option<u64> = None;
    for filter in filters.iter().take(FILTERS) {
        let from = From::Position(from);
        let page = log::page(&services.client, &services.events_stream, filter, from, 1, 1).await.ok()?;
        let position = page.messages.first().map(|message| message.position);
        oldest = oldest.into_iter().chain(position).min();
    }
    oldest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_server_is_read() {
        let answer = br#"{"type":"io.nats.jetstream.api.v1.stream_info_response",
            "config":{"name":"E","max_age":604800000000000,"max_bytes":-1,"compression":"s2"},
            "created":"2026-11-25T20:18:12.341025329Z","state":{"messages":30,"bytes":1790,"first_seq":3,
            "first_ts":"1970-01-01T00:00:02.5Z","last_seq":35,"num_deleted":3,"consumer_count":0},
            "ts":"1970-01-01T00:00:09.000528582Z"}"#;
        let look = read(answer).unwrap();
        assert_eq!((look.first_seq, look.last_seq, look.deleted), (3, 35, 3));
        assert_eq!((look.max_age_ms, look.max_bytes, look.compressed), (Some(604_800_000), None, true));
        assert_eq!((look.first_unix_ms, look.server_unix_ms), (Some(2_500), Some(9_000)));
        let gone = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert!(matches!(read(gone), Err(LookError::Absent)));
        for other in [&br#"{"error":{"code":503,"err_code":10008}}"#[..], b"{}", b"[", b""] {
            assert!(!matches!(read(other), Ok(_) | Err(LookError::Absent)));
        }
    }
}
