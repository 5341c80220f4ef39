//! The log of events for those who may not touch JetStream, and what becomes of it when somebody touches it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use async_nats::jetstream::{self, consumer::pull};
use drover_schemas::body::events::{EventsLastReply, EventsReadReply};
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId, Token, VmId, codec, headers};
use drover_tests::client::Bus;
use drover_tests::events::{alarm, log};
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use serde_json::{Value, json};

const READ: &str = "drover.v1.cmd.paged.events.read";

/// Event `number` of a namespace that no host has: three VMs by turns, each fourth event a step.
fn event(number: u64) -> VmEvent {
    let vm = number % 3;
    VmEvent {
        namespace: Token::new("paged").unwrap(),
        name: Token::new(&format!("v{vm}")).unwrap(),
        vm_id: VmId::from_u128(u128::from(vm) + 1),
        seq: number / 3 + 1,
        time_unix_ms: 1_000 + number,
        kind: if number % 4 == 3 { VmEventKind::Progress } else { VmEventKind::State },
        incarnation: 1,
        revision: 1,
        request_id: (number % 100 == 7).then(|| RequestId::from_u128(77)),
        previous: Some(VmState::Running),
        state: VmState::Running,
        last: false,
        step: None,
        cause: None,
        agent_event: None,
        dropped: None,
    }
}

/// Stores events as a host would, without its expectations.
async fn store(bus: &Bus, numbers: std::ops::Range<u64>) {
    let js = jetstream::new(bus.nats.clone());
    let mut acks = Vec::new();
    for event in numbers.map(event) {
        let subject = format!("drover.v1.evt.ns.paged.vm.{}.{}", event.name, event.kind.as_str());
        acks.push(js.publish(subject, codec::encode(&event).unwrap().into()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

/// All pages from a request on; gives the numbers of pages too.
async fn pages(bus: &Bus, mut request: Value) -> (Vec<(u64, VmEvent)>, usize) {
    let (mut found, mut count) = (Vec::new(), 0);
    loop {
        let page: EventsReadReply = bus.ask(READ, &request).get().await.unwrap();
        count += 1;
        assert!(!page.trimmed);
        found.extend(page.events.into_iter().map(|stored| (stored.cursor, stored.event)));
        if page.end {
            return (found, count);
        }
        assert_ne!(request["after"], json!(page.next_cursor), "a page that does not get on");
        request["after"] = json!(page.next_cursor);
    }
}

#[test]
fn more_than_a_thousand_events_are_read_page_by_page_with_filters() {
    let test = "more_than_a_thousand_events_are_read_page_by_page_with_filters";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        store(&bus, 0..1_200).await;
        let all: Vec<VmEvent> = (0..1_200).map(event).collect();
        let of = |pages: &[(u64, VmEvent)]| pages.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>();
        let wanted = |want: &dyn Fn(&VmEvent) -> bool| {
            all.iter().filter(|event| want(event)).cloned().collect::<Vec<_>>()
        };

        let (found, count) = pages(&bus, json!({"limit": 100})).await;
        assert_eq!((of(&found), count), (all.clone(), 12));
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "cursors grow");
        assert!(of(&pages(&bus, json!({"limit": 500})).await.0) == all);
        // In JSON too, whose pages are larger.
        let json: EventsReadReply = bus.raw(READ, r#"{"limit": 500}"#).get().await.unwrap();
        assert_eq!(json.events.first().map(|stored| &stored.event), all.first());

        let (one, _) = pages(&bus, json!({"vm": "v1", "limit": 100})).await;
        assert_eq!(of(&one), wanted(&|e| e.name.as_str() == "v1"));
        let (steps, count) = pages(&bus, json!({"kinds": ["progress"], "limit": 100})).await;
        assert_eq!((of(&steps), count), (wanted(&|e| e.kind == VmEventKind::Progress), 3));
        let (both, _) = pages(&bus, json!({"kinds": ["progress", "panic"], "vm": "v2"})).await;
        assert_eq!(of(&both), wanted(&|e| e.kind == VmEventKind::Progress && e.name.as_str() == "v2"));
        let request = RequestId::from_u128(77);
        let (led_to, _) = pages(&bus, json!({"request_id": request})).await;
        assert_eq!(of(&led_to), wanted(&|e| e.request_id == Some(request)));

        let behind = found[700].0;
        assert_eq!(of(&pages(&bus, json!({"after": behind})).await.0), all[701..]);
        let never = json!({"since_unix_ms": 4_000_000_000_000_u64});
        assert_eq!(of(&pages(&bus, never).await.0), []);
        assert_eq!(of(&pages(&bus, json!({"since_unix_ms": 1})).await.0), all);
        let error = bus.ask(READ, &json!({"kinds": ["stat"]})).refused(ErrorCode::InvalidArgument).await;
        assert!(error.message.contains("operation-failed"), "{error}");
        let far = json!({"since_unix_ms": (1_u64 << 53) - 1});
        bus.ask(READ, &far).refused(ErrorCode::InvalidArgument).await;

        // Readers leave nothing behind on the server.
        let js = jetstream::new(bus.nats.clone());
        let mut stream = js.get_stream("DROVER_EVENTS").await.unwrap();
        assert_eq!(stream.info().await.unwrap().state.consumer_count, 0);

        // Whoever comes back too late is told.
        stream.purge().sequence(found[50].0).await.unwrap();
        until("the host has seen it", async || {
            let page: EventsReadReply = bus.ask(READ, &json!({"after": found[3].0})).get().await.unwrap();
            assert_eq!(page.events[0].event, all[50]);
            page.trimmed.then_some(())
        })
        .await;
        alarm(&bus, "events_purged", |_| true).await;
    });
}

#[test]
fn whoever_joins_late_gets_the_last_states_and_goes_on_without_a_gap() {
    let test = "whoever_joins_late_gets_the_last_states_and_goes_on_without_a_gap";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        for name in ["one", "two", "gone"] {
            bus.up(name).await;
        }
        bus.insist_on_delete("gone").await;
        bus.change("two", "pause").await.unwrap();
        let logs = log(&bus).await;
        let mut known: BTreeMap<VmId, (u64, VmState)> = BTreeMap::new();
        let mut cursor = None;
        let after = loop {
            let request = json!({"limit": 1, "cursor": cursor});
            let page: EventsLastReply = bus.ask("events.last", &without_nulls(request)).get().await.unwrap();
            // While pages are read, something changes: it comes again, or is in the log from there on.
            if cursor.is_none() {
                bus.change("one", "pause").await.unwrap();
            }
            known.extend(page.events.iter().map(|s| (s.event.vm_id, (s.event.seq, s.event.state))));
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => break page.after,
            }
        };
        log(&bus).await;
        let page: EventsReadReply = bus.ask("events.read", &json!({"after": after})).get().await.unwrap();
        assert!(page.end);
        for stored in page.events {
            let known = known.entry(stored.event.vm_id).or_insert((0, stored.event.state));
            if stored.event.seq > known.0 {
                *known = (stored.event.seq, stored.event.state);
            }
        }
        let states: Vec<_> = known.values().map(|(_, state)| *state).collect();
        assert_eq!(states, [VmState::Paused, VmState::Paused], "{known:?}, {logs:?}");
        bus.ask("events.last", &json!({"cursor": "x"})).refused(ErrorCode::InvalidArgument).await;

        // The same by the command line.
        let said = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
        let last = said(world.drover(&["events", "--last"]).await);
        assert_eq!(last.lines().count(), 2, "{last}");
        assert!(last.lines().all(|line| line.contains("paused")), "{last}");
        let kinds = said(world.drover(&["events", "--since", "1", "--kind", "agent", "--vm", "two"]).await);
        assert!(
            kinds.lines().count() >= 1 && kinds.lines().all(|l| l.contains("two") && l.contains("agent")),
            "{kinds}"
        );
        let create = logs.values().flatten().find_map(|event| event.request_id).unwrap().to_string();
        let led_to = said(world.drover(&["events", "--request-id", &create, "-o", "json"]).await);
        assert!(led_to.lines().count() >= 1 && led_to.lines().all(|line| line.contains(&create)), "{led_to}");
        let wrong = world.drover(&["events", "--kind", "states"]).await;
        assert!(String::from_utf8(wrong.stderr).unwrap().contains("operation-failed"));
    });
}

fn without_nulls(mut value: Value) -> Value {
    value.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    value
}

#[test]
fn a_rejection_is_found_by_the_id_of_its_request() {
    run("a_rejection_is_found_by_the_id_of_its_request", Options::default(), async |world| {
        let (bus, id) = (world.bus.clone(), RequestId::generate());
        world.observer.expect_malformed("drover.v1.cmd.default.vm.create");
        let mut about = async_nats::HeaderMap::new();
        about.insert(headers::REQUEST_ID, id.to_string().as_str());
        let body = r#"{"name": "web", "spec": {"memroy": 1}}"#;
        bus.nats.publish_with_headers("drover.v1.cmd.default.vm.create", about, body.into()).await.unwrap();
        let rejection = until("the rejection", async || {
            let request = json!({"request_id": id});
            let page: EventsReadReply = bus.ask("events.read", &request).get().await.unwrap();
            page.rejections.into_iter().next()
        })
        .await;
        assert_eq!(
            (rejection.event.request_id, rejection.event.error.code),
            (id, ErrorCode::InvalidArgument)
        );
        let other = json!({"request_id": RequestId::generate()});
        let page: EventsReadReply = bus.ask("events.read", &other).get().await.unwrap();
        assert!(page.rejections.is_empty() && page.end);
    });
}

#[test]
fn a_stream_that_is_purged_or_deleted_under_a_host_is_reported_and_goes_on() {
    let test = "a_stream_that_is_purged_or_deleted_under_a_host_is_reported_and_goes_on";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let before = log(&bus).await[&vm.vm_id].last().unwrap().seq;
        let js = jetstream::new(bus.nats.clone());
        let stream = js.get_stream("DROVER_EVENTS").await.unwrap();
        until("the host has seen the stream", async || bus.host().await.ok()?.events).await;
        // Nobody publishes: the host notices by looking.
        stream.purge().await.unwrap();
        alarm(&bus, "events_purged", |event| event.details["first_before"] == "1").await;
        bus.change("web", "pause").await.unwrap();
        let missing = |what: &'static str| {
            let vm_id = vm.vm_id.to_string();
            move |event: &drover_schemas::event::HostEvent| {
                event.details["vm_id"] == vm_id && event.details["what"] == what
            }
        };
        alarm(&bus, "events_missing", missing("trimmed")).await;
        js.delete_stream("DROVER_EVENTS").await.unwrap();
        alarm(&bus, "stream_replaced", |_| true).await;
        bus.change("web", "resume").await.unwrap();
        // Each event after that once and in order, on from where it was.
        let seqs = until("the events after the delete", async || {
            let page: EventsReadReply = bus.look("events.read", &json!({"vm": "web"})).await.ok()?;
            let seqs: Vec<u64> = page.events.iter().map(|stored| stored.event.seq).collect();
            (bus.host().await.ok()?.outbox == 0 && !seqs.is_empty()).then_some(seqs)
        })
        .await;
        assert!(seqs[0] > before + 1, "{seqs:?} after {before}");
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    });
}

#[test]
fn what_is_trimmed_before_a_reader_has_read_it_is_an_alarm() {
    let test = "what_is_trimmed_before_a_reader_has_read_it_is_an_alarm";
    run(test, Options::down(), async |world| {
        world.up_with(|config| config["events"] = json!({"max_size": "200KiB", "max_age_hours": 24})).await;
        let bus = world.bus.clone();
        let js = jetstream::new(bus.nats.clone());
        let stream = js.get_stream("DROVER_EVENTS").await.unwrap();
        let reader = async |name: &str, filter: &str| {
            let config = pull::Config {
                durable_name: Some(name.to_owned()),
                filter_subject: filter.to_owned(),
                ..pull::Config::default()
            };
            stream.create_consumer(config).await.unwrap()
        };
        let _slow = reader("slow", "drover.v1.evt.ns.paged.>").await;
        let _idle = reader("idle", "drover.v1.evt.ns.nobody.>").await;
        store(&bus, 0..100).await;
        let seen = until("the host has seen who lags", async || {
            bus.host().await.ok()?.events.filter(|log| log.readers_behind == 1)
        })
        .await;
        assert_eq!((seen.max_age_ms, seen.max_bytes), (Some(24 * 3_600_000), Some(200 << 10)));
        store(&bus, 100..1_500).await;
        let first = js.get_stream("DROVER_EVENTS").await.unwrap().cached_info().state.first_sequence;
        assert!(first > 100, "the stream was to be trimmed, and begins at {first}");
        let told = alarm(&bus, "events_trimmed_unread", |_| true).await;
        assert_eq!(told.details["reader"], "slow");
        let all: Vec<drover_schemas::event::HostEvent> =
            drover_tests::events::stored(&bus, "drover.v1.evt.host.h1.alarm").await;
        let of_idle = all.iter().find(|event| event.details.get("reader").is_some_and(|r| r == "idle"));
        assert_eq!(of_idle, None, "what it does not read it cannot lose");
        let purged = all.iter().find(|event| event.details["alarm"] == "events_purged");
        assert_eq!(purged, None, "the limits of the stream did it");
        let said = String::from_utf8(world.drover(&["host", "get", "h1"]).await.stdout).unwrap();
        assert!(said.contains("kept in DROVER_EVENTS") && said.contains("for 24 h"), "{said}");
    });
}
