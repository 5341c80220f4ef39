//! Events from inside a guest: which of those that its agent sends are new, and which of these fit. Pure.
//!
//! What is known of them stands in the VM's row ([`InsideRow`]), which is committed with the events themselves: whatever
//! instant the daemon dies at, an event that is sent again is known, and none that was acknowledged is missing.
//!
//! The agent is a stranger. Numbers that go backwards are taken for what was sent again; those that leap forward are
//! taken as they are; another log begins anew. So a liar doubles or loses its own events, within its VM's quota.

use std::time::{Duration, Instant};

use drover_schemas::body::spec::AgentEventsSpec;
use drover_schemas::event::{AgentEvent, DroppedEvents};
use drover_schemas::guest::event::{MAX_EVENT_DATA, MAX_EVENT_LOG, REFUSED_EVENTS};
use drover_schemas::guest::{Event, EventAck, EventData, EventType};
use serde::{Deserialize, Serialize};

use crate::guest::EventBatch;

/// How often it is told at the most that events were dropped.
pub const TELL_EVERY: Duration = Duration::from_secs(10);
/// Bytes of data that may come at once are so many seconds' worth.
const BYTES_BURST_S: u64 = 10;
/// The greatest count that is believed of an agent, and told: readers know no greater integer.
const MAX_COUNT: u64 = 1 << 50;

/// What the journal knows of a VM's events from inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideRow {
    /// The agent's log that was heard last.
    pub log: String,
    /// The last event of it that was taken.
    pub n: u64,
    /// What was dropped since the VM was created.
    pub dropped: DroppedEvents,
    /// What of it was not told yet.
    pub untold: DroppedEvents,
}

/// What the programs of one guest may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Events each second, in the long run.
    pub per_second: u32,
    /// Events at once.
    pub burst: u32,
    /// Bytes of data each second, in the long run.
    pub bytes_per_second: u64,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { per_second: 20, burst: 200, bytes_per_second: 64 * 1024 }
    }
}

impl EventLimits {
    /// What a VM asks for, as far as its host allows it.
    #[must_use]
    pub fn of(self, spec: &AgentEventsSpec) -> Self {
        Self {
            per_second: spec.per_second.map_or(self.per_second, |own| own.min(self.per_second)),
            burst: spec.burst.map_or(self.burst, |own| own.min(self.burst)),
            bytes_per_second: spec
                .bytes_per_second
                .map_or(self.bytes_per_second, |own| own.min(self.bytes_per_second)),
        }
    }
}

/// What is left of the limits now.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    events: f64,
    bytes: f64,
    at: Instant,
}

impl Allowance {
    /// All of it.
    #[must_use]
    pub fn full(limits: EventLimits, now: Instant) -> Self {
        let bytes = limits.bytes_per_second.saturating_mul(BYTES_BURST_S) as f64;
        Self { events: f64::from(limits.burst), bytes, at: now }
    }

    fn refill(&mut self, limits: EventLimits, now: Instant) {
        let full = Self::full(limits, now);
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.events = (self.events + gone * f64::from(limits.per_second)).min(full.events);
        self.bytes = (self.bytes + gone * limits.bytes_per_second as f64).min(full.bytes);
        self.at = now;
    }

    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.events >= 1.0 && self.bytes >= bytes as f64;
        if fits {
            self.events -= 1.0;
            self.bytes -= bytes as f64;
        }
        fits
    }
}

/// Takes what came: the events that are published, in order. `row` and `left` are as they will be once that is
/// durable.
#[must_use]
pub fn take(
    row: &mut InsideRow,
    left: &mut Allowance,
    limits: EventLimits,
    batch: &EventBatch,
    now: Instant,
) -> Vec<AgentEvent> {
    left.refill(limits, now);
    let mut dropped = DroppedEvents { window: batch.beyond, ..DroppedEvents::default() };
    let mut published = Vec::new();
    for event in &batch.events {
        if event.log.is_empty() || event.log.len() > MAX_EVENT_LOG || event.n == 0 {
            // It has no place, and cannot be acknowledged.
            dropped.malformed += 1;
            continue;
        }
        if row.log != event.log {
            (row.log, row.n) = (event.log.clone(), 0);
        }
        if event.n <= row.n {
            continue;
        }
        row.n = event.n;
        match read(event) {
            None => dropped.malformed += 1,
            Some(read) if read.kind.as_str() == REFUSED_EVENTS => {
                let count = read.data.0.get("count").and_then(serde_json::Value::as_u64).unwrap_or(0);
                dropped.guest = dropped.guest.saturating_add(count.min(MAX_COUNT));
            }
            Some(read) if left.take(event.body.as_slice().len()) => published.push(read),
            Some(_) => dropped.quota += 1,
        }
    }
    row.dropped = sum(row.dropped, dropped);
    row.untold = sum(row.untold, dropped);
    published
}

fn sum(mut one: DroppedEvents, other: DroppedEvents) -> DroppedEvents {
    one.add(other);
    for count in [&mut one.quota, &mut one.malformed, &mut one.window, &mut one.guest, &mut one.count] {
        *count = (*count).min(MAX_COUNT);
    }
    one
}

/// What the agent is told once this is durable.
#[must_use]
pub fn ack(row: &InsideRow) -> Option<EventAck> {
    (!row.log.is_empty()).then(|| EventAck { log: row.log.clone(), n: row.n })
}

fn read(event: &Event) -> Option<AgentEvent> {
    if event.body.as_slice().len() > MAX_EVENT_DATA {
        return None;
    }
    Some(AgentEvent {
        kind: EventType::new(event.kind.as_str()).ok()?,
        uid: event.uid,
        gid: event.gid,
        pid: event.pid,
        // No reader knows a greater integer.
        time_unix_ms: event.time_unix_ms.min(1 << 53),
        data: EventData::read(event.body.as_slice()).ok()?,
    })
}

#[cfg(test)]
mod tests;
