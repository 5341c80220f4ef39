//! The log of events, read from the stream itself and checked as a log.

use std::collections::{BTreeMap, HashSet};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use drover_schemas::VmId;
use drover_schemas::codec;
use drover_schemas::event::{HostEvent, VmEvent, ce, event_id};
use serde::de::DeserializeOwned;

use crate::client::Bus;
use crate::wait::until;

/// The events of each VM, in the order of the stream.
pub type Logs = BTreeMap<VmId, Vec<VmEvent>>;

/// Waits until the host has told everything, then reads every event of every VM. Each VM's sequence
/// begins at 1 and has no gap, each event joins the state of the one before, and no id comes twice.
///
/// # Panics
/// The log breaks one of these rules.
pub async fn log(bus: &Bus) -> Logs {
    log_of(bus, &["h1"]).await
}

/// As [`log`], of several hosts.
///
/// # Panics
/// As [`log`].
pub async fn log_of(bus: &Bus, hosts: &[&str]) -> Logs {
    for name in hosts {
        until("everything is told", async || bus.host_info(name).await.ok().filter(|host| host.outbox == 0))
            .await;
    }
    logs(read(bus).await)
}

/// Every event of every VM that is in the stream now, in its order.
///
/// # Panics
/// The stream cannot be read, or holds what the contract does not know.
pub async fn read(bus: &Bus) -> Vec<VmEvent> {
    let js = async_nats::jetstream::new(bus.nats.clone());
    // A cluster's JetStream is away while its servers choose a leader.
    let stream = until("the stream of events", async || js.get_stream("DROVER_EVENTS").await.ok()).await;
    let state = stream.cached_info().state.clone();
    let mut events = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let what = format!("message {sequence} of the stream");
        let message = until(&what, async || stream.get_raw_message(sequence).await.ok()).await;
        if !message.subject.contains(".vm.") {
            continue;
        }
        let event: VmEvent = codec::decode(&message.payload).expect("an event");
        let id = message.headers.get(ce::ID).expect("an event's id").to_string();
        assert_eq!(id, event_id(event.vm_id, event.seq));
        events.push(event);
    }
    events
}

/// The log of each VM, checked as a log; `events` in the order of the stream.
///
/// # Panics
/// A log breaks one of the rules of [`log()`].
#[must_use]
pub fn logs(events: Vec<VmEvent>) -> Logs {
    let (mut logs, mut ids) = (Logs::new(), HashSet::new());
    for event in events {
        assert!(ids.insert((event.vm_id, event.seq)), "{event:?} is in the log twice");
        let log = logs.entry(event.vm_id).or_default();
        assert_eq!(event.seq, log.len() as u64 + 1, "a gap before {event:?}");
        if let Some(before) = log.last() {
            assert_eq!(event.previous, Some(before.state), "{event:?} does not follow {before:?}");
            assert!(!before.last, "{event:?} follows the last event");
        }
        log.push(event);
    }
    logs
}

/// Every message of the stream below a subject, in order.
///
/// # Panics
/// A message cannot be read.
pub async fn stored<T: DeserializeOwned>(bus: &Bus, prefix: &str) -> Vec<T> {
    let js = async_nats::jetstream::new(bus.nats.clone());
    // It is made anew if somebody has deleted it.
    let Ok(stream) = js.get_stream("DROVER_EVENTS").await else { return Vec::new() };
    let state = stream.cached_info().state.clone();
    let mut found = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        match stream.get_raw_message(sequence).await {
            Ok(message) if message.subject.starts_with(prefix) => {
                found.push(codec::decode(&message.payload).expect("a message of the contract"));
            }
            Ok(_) => {}
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => {}
            Err(e) => panic!("message {sequence}: {e}"),
        }
    }
    found
}

/// Waits for an alarm of the host's log that `look` wants.
///
/// # Panics
/// There is none in time.
pub async fn alarm(bus: &Bus, name: &str, look: impl Fn(&HostEvent) -> bool) -> HostEvent {
    until(&format!("the alarm {name}"), async || {
        let events: Vec<HostEvent> = stored(bus, "drover.v1.evt.host.h1.alarm").await;
        events.into_iter().find(|e| e.details.get("alarm").is_some_and(|alarm| alarm == name) && look(e))
    })
    .await
}
