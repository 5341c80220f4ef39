//! The feed against a log and a live subject that overlap, repeat and leave out.

use std::sync::{Arc, Mutex};

use drover_schemas::VmId;
use drover_schemas::body::events::{EventsReadReply, EventsReadRequest, StoredEvent};
use drover_schemas::codec;
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use tokio::time::timeout;

use super::{SOON, TestBus, connect, ok, respond, token};
use crate::client::{EventFeed, Since, Wanted};

fn event(seq: u64) -> VmEvent {
    VmEvent {
        namespace: token("default"),
        name: token("web"),
        vm_id: VmId::from_u128(7),
        seq,
        time_unix_ms: 1_000 + seq,
        kind: VmEventKind::State,
        incarnation: 1,
        revision: 1,
        request_id: None,
        previous: None,
        state: VmState::Running,
        last: false,
        step: None,
        cause: None,
        agent_event: None,
        dropped: None,
    }
}

#[tokio::test]
async fn every_event_comes_once_and_in_order() {
    let Some(bus) = TestBus::start().await else { return };
    let stored = Arc::new(Mutex::new(4_u64));
    let log = Arc::clone(&stored);
    let _host = respond(&bus, "cmd.default.events.read", move |message, _| {
        let request: EventsReadRequest = codec::decode(&message.payload).unwrap();
        // Cursors have gaps, and pages hold two events.
        let (first, last) = (request.after.unwrap_or(0) / 10 + 1, *log.lock().unwrap());
        let page: Vec<u64> = (first..=last).take(2).collect();
        let next_cursor = page.last().map_or(request.after.unwrap_or(0), |seq| seq * 10);
        let end = page.last().is_none_or(|seq| *seq == last);
        let events = page.into_iter().map(|seq| StoredEvent { cursor: seq * 10, event: event(seq) });
        Some(ok(&EventsReadReply {
            events: events.collect(),
            next_cursor,
            end,
            ..EventsReadReply::default()
        }))
    })
    .await;
    let client = connect(&bus).await;
    let mut feed = EventFeed::open(&client, Wanted::default(), Since::Beginning, true).await.unwrap();
    let host = connect(&bus).await;
    let publish = async |seq: u64| {
        let body = codec::encode(&event(seq)).unwrap();
        host.nats().publish("drover.v1.evt.ns.default.vm.web.state", body.into()).await.unwrap();
    };
    let mut next = async || timeout(SOON, feed.next()).await.unwrap().unwrap().unwrap().seq;
    for seq in 1..=4 {
        assert_eq!(next().await, seq);
    }
    // 4 again, as after an unknown outcome; 5; then 8 while 6 and 7 are in the log only.
    *stored.lock().unwrap() = 8;
    for seq in [4, 5, 5, 8, 9] {
        publish(seq).await;
    }
    for seq in 5..=9 {
        assert_eq!(next().await, seq);
    }
}

#[tokio::test]
async fn a_feed_that_does_not_follow_ends_with_the_log() {
    let Some(bus) = TestBus::start().await else { return };
    let _host = respond(&bus, "cmd.default.events.read", |_, _| {
        Some(ok(&EventsReadReply { end: true, ..EventsReadReply::default() }))
    })
    .await;
    let client = connect(&bus).await;
    let mut feed = EventFeed::open(&client, Wanted::default(), Since::Beginning, false).await.unwrap();
    assert!(timeout(SOON, feed.next()).await.unwrap().unwrap().is_none());
}
