//! The log of events, read from the stream itself and checked as a log.

use std::collections::{BTreeMap, HashSet};

use drover_schemas::VmId;
use drover_schemas::codec::{self, Format};
use drover_schemas::event::{VmEvent, ce, event_id};

use crate::client::Bus;
use crate::contract::{self, Side};
use crate::wait::until;

/// The events of each VM, in the order of the stream.
pub type Logs = BTreeMap<VmId, Vec<VmEvent>>;

/// Waits until the host has told everything, then reads every event of every VM. Each VM's sequence
/// begins at 1 and has no gap, each event joins the state of the one before, and no id comes twice.
///
/// # Panics
/// The log breaks one of these rules.
pub async fn log(bus: &Bus) -> Logs {
    until("everything is told", async || bus.host().await.ok().filter(|host| host.outbox == 0)).await;
    let js = async_nats::jetstream::new(bus.nats.clone());
    let stream = js.get_stream("DROVER_EVENTS").await.expect("the stream of events");
    let state = stream.cached_info().state.clone();
    let (mut logs, mut ids) = (Logs::new(), HashSet::new());
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("a message of the stream");
        if !message.subject.contains(".vm.") {
            continue;
        }
        contract::check(&message.subject, Side::Message, Format::MsgPack, &message.payload);
        let event: VmEvent = codec::decode(&message.payload).expect("an event");
        let id = message.headers.get(ce::ID).expect("an event's id").to_string();
        assert_eq!(id, event_id(event.vm_id, event.seq));
        assert!(ids.insert(id), "{event:?} is in the log twice");
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
