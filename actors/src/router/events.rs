//! `events.read` and `events.last`: the namespace's part of the stream, for those who may not touch JetStream.

use std::time::{Duration, Instant};

use drover_schemas::body::events::{
    EventsLastReply, EventsLastRequest, EventsReadReply, EventsReadRequest, StoredEvent, StoredRejection,
};
use drover_schemas::event::{RejectedEvent, VmEvent, VmEventKind};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, Token, codec};

use crate::bus::log::{self, From, ReadError, Stored};
use crate::bus::watch;
use crate::chain;
use crate::cloud_event::rfc3339;
use crate::ingress::request::Request;
use crate::services::Services;

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 500;
/// Events that `explain` shows.
const HISTORY: usize = 20;
/// A page stays below this many bytes. JSON needs up to twice as many, and the reply must fit.
const PAGE_BYTES: usize = 256 * 1024;
/// Events that are looked at for one page, however few of them are wanted.
const SCAN: usize = 4_000;
/// How far before its id was made the events of a request are looked for: clocks differ.
const CLOCKS_MS: u64 = 3_600_000;

/// What a page may be, by the request that asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most bytes of bodies.
    pub bytes: usize,
    /// When looking for more ends.
    pub until: Instant,
}

impl Bounds {
    /// Of the request: its reply must fit, and leave in time.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        let now = Instant::now();
        let half = request.deadline.saturating_duration_since(now) / 2;
        Self { bytes: PAGE_BYTES.min(request.responder.max_reply() / 3), until: now + half }
    }
}

fn unavailable(failure: &ReadError) -> ErrorBody {
    let text = format!("the event log cannot be read now: {}", chain(failure));
    ErrorBody::new(ErrorCode::Unavailable, text)
}

/// Reads a page of the namespace's events.
pub async fn read(
    services: &Services,
    ns: &Token,
    body: &EventsReadRequest,
    bounds: Bounds,
) -> Result<EventsReadReply, ErrorBody> {
    if body.kinds.contains(&VmEventKind::Unknown) {
        let known = VmEventKind::ALL.map(VmEventKind::as_str).join(", ");
        let text = format!("kinds: there is a kind of event that this host does not know; known: {known}");
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "kinds"));
    }
    let limit = body.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let filter = match (body.kinds.as_slice(), &body.vm) {
        ([kind], vm) => services.subjects.vm_events_of_kind(ns, vm.as_ref(), *kind),
        (_, Some(vm)) => services.subjects.vm_events(ns, vm),
        (_, None) => services.subjects.ns_events(ns),
    };
    let since = body.since_unix_ms.or_else(|| Some(body.request_id?.unix_ms().saturating_sub(CLOCKS_MS)));
    if since.is_some_and(|since| rfc3339(since).is_empty()) {
        let error = ErrorBody::new(ErrorCode::InvalidArgument, "since_unix_ms: not a time");
        return Err(error.with("field", "since_unix_ms"));
    }
    let mut from = match (body.after, since) {
        (Some(after), _) => From::Position(after.saturating_add(1)),
        (None, Some(since)) => From::UnixMs(since),
        (None, None) => From::Position(1),
    };
    let first_kept = services.seen.log().map_or(0, |log| log.first_cursor);
    let mut reply = EventsReadReply {
        next_cursor: body.after.unwrap_or(0),
        trimmed: body.after.is_some_and(|after| after.saturating_add(1) < first_kept),
        ..EventsReadReply::default()
    };
    let (mut bytes, mut looked) = (0, 0);
    loop {
        let filtered = body.request_id.is_some() || body.kinds.len() > 1;
        let wanted = if filtered { SCAN - looked } else { limit - found(&reply) };
        let read = log::page(
            &services.client,
            &services.events_stream,
            &filter,
            from,
            wanted,
            bounds.bytes.saturating_sub(bytes),
        );
        let page = read.await.map_err(|failure| unavailable(&failure))?;
        let mut full = false;
        for stored in page.messages {
            if found(&reply) >= limit || bytes > bounds.bytes {
                full = true;
                break;
            }
            looked += 1;
            reply.next_cursor = stored.position;
            bytes += take(services, body, &mut reply, &stored);
        }
        reply.end = page.end && !full;
        let enough = found(&reply) >= limit || bytes > bounds.bytes || looked >= SCAN;
        if full || page.end || enough || Instant::now() >= bounds.until {
            return Ok(reply);
        }
        from = From::Position(reply.next_cursor.saturating_add(1));
    }
}

fn found(reply: &EventsReadReply) -> usize {
    reply.events.len() + reply.rejections.len()
}

/// Adds an event to the page if it is wanted; answers how many bytes that takes.
fn take(
    services: &Services,
    body: &EventsReadRequest,
    reply: &mut EventsReadReply,
    stored: &Stored,
) -> usize {
    let cursor = stored.position;
    if matches!(services.subjects.parse(&stored.subject), Some(Subject::RequestRejected { .. })) {
        if !body.kinds.is_empty() {
            return 0;
        }
        let Ok(event) = codec::decode::<RejectedEvent>(&stored.body) else { return 0 };
        if body.request_id.is_some_and(|id| id != event.request_id) {
            return 0;
        }
        reply.rejections.push(StoredRejection { cursor, event });
        return stored.body.len();
    }
    // An event of a kind that this version does not know is passed over, not an error.
    let Ok(event) = codec::decode::<VmEvent>(&stored.body) else { return 0 };
    let wanted = (body.kinds.is_empty() || body.kinds.contains(&event.kind))
        && body.request_id.is_none_or(|id| event.request_id == Some(id));
    if !wanted {
        return 0;
    }
    reply.events.push(StoredEvent { cursor, event });
    stored.body.len()
}

/// The last state of each VM, page by page.
pub async fn last(
    services: &Services,
    ns: &Token,
    body: &EventsLastRequest,
    bounds: Bounds,
) -> Result<EventsLastReply, ErrorBody> {
    let limit = body.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let (after, behind) = match &body.cursor {
        // What is stored from here on is not waited for: the log has it.
        None => {
            let look = watch::info(&services.client, &services.events_stream).await;
            let look = look.map_err(|failure| {
                let text = format!("the event log cannot be read now: {}", chain(&failure));
                ErrorBody::new(ErrorCode::Unavailable, text)
            })?;
            (look.last_seq, 0)
        }
        Some(cursor) => parse_cursor(cursor).ok_or_else(|| {
            let text = "cursor: take it from `next_cursor` of the page before as it is";
            ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "cursor")
        })?,
    };
    let filter = services.subjects.vm_events_of_kind(ns, None, VmEventKind::State);
    let stream = &services.events_stream;
    let read = log::last_of_each(&services.client, stream, &filter, behind, limit, bounds.bytes);
    let page = read.await.map_err(|failure| unavailable(&failure))?;
    let next = page.messages.last().filter(|_| !page.end).map(|last| format!("{after}-{}", last.position));
    let events = page.messages.iter().filter_map(|stored| {
        let event = codec::decode::<VmEvent>(&stored.body).ok()?;
        (!event.last).then_some(StoredEvent { cursor: stored.position, event })
    });
    Ok(EventsLastReply { events: events.collect(), after, next_cursor: next })
}

fn parse_cursor(text: &str) -> Option<(u64, u64)> {
    let (after, behind) = text.split_once('-')?;
    Some((after.parse().ok()?, behind.parse().ok()?))
}

/// The last events of a VM as sentences.
pub async fn history(services: &Services, ns: &Token, name: &Token) -> Result<Vec<String>, ErrorBody> {
    let mut lines: Vec<String> = Vec::new();
    let mut request =
        EventsReadRequest { vm: Some(name.clone()), limit: Some(PAGE_MAX), ..EventsReadRequest::default() };
    let bounds = Bounds { bytes: PAGE_BYTES, until: Instant::now() + Duration::from_secs(5) };
    for _ in 0..20 {
        let page = read(services, ns, &request, bounds).await?;
        lines.extend(page.events.iter().map(|stored| sentence(&stored.event)));
        if page.end {
            break;
        }
        request.after = Some(page.next_cursor);
    }
    Ok(lines.split_off(lines.len().saturating_sub(HISTORY)))
}

fn sentence(event: &VmEvent) -> String {
    let said = event.agent_event.as_ref().map(|said| said.kind.to_string());
    let why =
        event.cause.as_ref().map(|c| c.message.clone()).or(said).or(event.dropped.map(|d| d.to_string()));
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("{} #{} {} {}{why}", rfc3339(event.time_unix_ms), event.seq, event.kind.as_str(), event.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_nothing_else_does() {
        assert_eq!(parse_cursor("17-4"), Some((17, 4)));
        for bad in ["", "17", "17-", "-4", "a-b", "17-4-1", "99999999999999999999-1"] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }
}
