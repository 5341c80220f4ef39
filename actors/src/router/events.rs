//! `events.read`: the namespace's part of the stream, for those who may not touch JetStream.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use drover_schemas::body::events::{EventsReadReply, EventsReadRequest, StoredEvent};
use drover_schemas::event::VmEvent;
use drover_schemas::{ErrorBody, ErrorCode, Token, codec};
use futures_util::StreamExt as _;

use crate::services::Services;
use crate::vm::row::rfc3339;

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 500;
/// Events that `explain` shows.
const HISTORY: usize = 20;
/// A page stays below this many bytes, so that the reply fits.
const PAGE_BYTES: usize = 256 * 1024;

/// Reads a page of the namespace's events.
pub async fn read(
    services: &Services,
    ns: &Token,
    body: EventsReadRequest,
) -> Result<EventsReadReply, ErrorBody> {
    let unavailable = |what: &str, e: &dyn std::fmt::Display| {
        ErrorBody::new(ErrorCode::Unavailable, format!("the event log cannot be read now ({what}): {e}"))
    };
    let limit = body.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let js = async_nats::jetstream::new(services.client.clone());
    let name = services.events_stream.clone();
    let stream = js.get_stream(&name).await.map_err(|e| unavailable("stream", &e))?;
    let filter = match &body.vm {
        Some(vm) => services.subjects.vm_events(ns, vm),
        None => services.subjects.ns_events(ns),
    };
    let deliver_policy = match (body.after, body.since_unix_ms) {
        (Some(after), _) => DeliverPolicy::ByStartSequence { start_sequence: after.saturating_add(1) },
        (None, Some(since)) => {
            let time = time_of(since).ok_or_else(|| {
                ErrorBody::new(ErrorCode::InvalidArgument, "since_unix_ms: not a time")
                    .with("field", "since_unix_ms")
            })?;
            DeliverPolicy::ByStartTime { start_time: time }
        }
        (None, None) => DeliverPolicy::All,
    };
    let consumer = stream
        .create_consumer(Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            inactive_threshold: Duration::from_secs(10),
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        })
        .await
        .map_err(|e| unavailable("consumer", &e))?;
    let mut messages =
        consumer.fetch().max_messages(limit).messages().await.map_err(|e| unavailable("fetch", &e))?;
    let mut reply = EventsReadReply { events: Vec::new(), next_cursor: body.after.unwrap_or(0), end: true };
    let mut bytes = 0;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|e| unavailable("message", &e))?;
        let info = message.info().map_err(|e| unavailable("message", &e))?;
        reply.next_cursor = info.stream_sequence;
        reply.end = info.pending == 0;
        bytes += message.payload.len();
        // An event of a kind that this version does not know is passed over, not an error.
        if let Ok(event) = codec::decode::<VmEvent>(&message.payload) {
            reply.events.push(StoredEvent { cursor: info.stream_sequence, event });
        }
        if bytes > PAGE_BYTES || reply.events.len() >= limit {
            break;
        }
    }
    drop(messages);
    let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    Ok(reply)
}

fn time_of(unix_ms: u64) -> Option<time::OffsetDateTime> {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()
}

/// The last events of a VM as sentences.
pub async fn history(services: &Services, ns: &Token, name: &Token) -> Result<Vec<String>, ErrorBody> {
    let mut lines: Vec<String> = Vec::new();
    let mut request =
        EventsReadRequest { vm: Some(name.clone()), limit: Some(PAGE_MAX), ..EventsReadRequest::default() };
    for _ in 0..20 {
        let page = read(services, ns, request.clone()).await?;
        lines.extend(page.events.iter().map(|stored| sentence(&stored.event)));
        if page.end {
            break;
        }
        request.after = Some(page.next_cursor);
    }
    Ok(lines.split_off(lines.len().saturating_sub(HISTORY)))
}

fn sentence(event: &VmEvent) -> String {
    let why = event.cause.as_ref().map(|c| format!(": {}", c.message)).unwrap_or_default();
    format!("{} #{} {} {}{why}", rfc3339(event.time_unix_ms), event.seq, event.kind.as_str(), event.state)
}
