//! What a host tells without being asked: its own log, alarms, and refusals that nobody waits for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use async_nats::jetstream;
use drover_schemas::event::{HostEvent, HostEventKind, RejectedEvent};
use drover_schemas::{ErrorCode, RequestId, headers};
use drover_tests::client::Failure;
use drover_tests::events::stored;
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use serde_json::json;

#[test]
fn a_host_keeps_a_log_of_its_own_over_its_deaths() {
    run("a_host_keeps_a_log_of_its_own_over_its_deaths", Options::default(), async |world| {
        let bus = world.bus.clone();
        let log = async |count: usize| {
            until("the host's events", async || {
                let events: Vec<HostEvent> = stored(&bus, "drover.v1.evt.host.h1.").await;
                (events.len() >= count).then_some(events)
            })
            .await
        };
        log(2).await;
        world.kill().await;
        world.start();
        world.ready().await;
        log(4).await;
        // A stream that was made anew is an alarm, and the log goes on in it.
        let js = jetstream::new(bus.nats.clone());
        let before = js.get_stream("DROVER_EVENTS").await.unwrap().cached_info().created;
        world.stop_host().await;
        js.delete_stream("DROVER_EVENTS").await.unwrap();
        world.start();
        world.ready().await;
        let events = log(1).await;
        assert!(js.get_stream("DROVER_EVENTS").await.unwrap().cached_info().created > before);
        let alarm = until("the alarm", async || {
            let events: Vec<HostEvent> = stored(&bus, "drover.v1.evt.host.h1.").await;
            events.into_iter().find(|e| e.details.get("alarm").is_some_and(|a| a == "stream_replaced"))
        })
        .await;
        assert_eq!(alarm.kind, HostEventKind::Alarm);
        let events = if events.len() > 2 { events } else { log(3).await };
        for pair in events.windows(2) {
            assert_eq!(pair[1].seq, pair[0].seq + 1, "{events:?}");
        }
    });
}

#[test]
fn a_refusal_that_nobody_waits_for_is_an_event() {
    run("a_refusal_that_nobody_waits_for_is_an_event", Options::default(), async |world| {
        let bus = world.bus.clone();
        world.observer.expect_malformed("drover.v1.cmd.default.vm.create");
        let id = RequestId::generate();
        let mut about = async_nats::HeaderMap::new();
        about.insert(headers::REQUEST_ID, id.to_string().as_str());
        let body = r#"{"name": "web", "spec": {"memroy": 1}}"#;
        bus.nats.publish_with_headers("drover.v1.cmd.default.vm.create", about, body.into()).await.unwrap();
        let told = until("the refusal", async || {
            let mut events: Vec<RejectedEvent> = stored(&bus, "drover.v1.evt.ns.default.request.").await;
            events.pop()
        })
        .await;
        assert_eq!((told.request_id, told.error.code), (id, ErrorCode::InvalidArgument));
        assert!(told.error.message.contains("memroy"), "{told:?}");
        assert_eq!(told.subject, "drover.v1.cmd.default.vm.create");

        // A flood is told by few, and by how many were not told.
        let refused = async || {
            let mut about = async_nats::HeaderMap::new();
            about.insert(headers::REQUEST_ID, RequestId::generate().to_string().as_str());
            bus.nats
                .publish_with_headers("drover.v1.cmd.default.vm.create", about, "{".into())
                .await
                .unwrap();
        };
        for _ in 0..500 {
            refused().await;
        }
        let events = until("a count of what was left out", async || {
            refused().await;
            let events: Vec<RejectedEvent> = stored(&bus, "drover.v1.evt.ns.default.request.").await;
            events.iter().any(|e| e.suppressed > 0).then_some(events)
        })
        .await;
        assert!(events.len() < 200, "{} refusals were told", events.len());
    });
}

#[test]
fn a_host_that_is_drained_takes_no_new_vm_and_keeps_the_others() {
    let test = "a_host_that_is_drained_takes_no_new_vm_and_keeps_the_others";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("stays").await;
        let drained = world.drover(&["host", "drain", "h1"]).await;
        let said = String::from_utf8(drained.stdout).unwrap();
        assert!(said.contains("takes no new VMs; it still has 1"), "{said}");
        for _ in 0..2 {
            let refused = bus.create("new", json!({})).await.unwrap_err();
            let Failure::Coded(error) = refused else { panic!("{refused}") };
            let phase = error.details.get("phase").map(String::as_str);
            assert_eq!((error.code, phase), (ErrorCode::Unavailable, Some("draining")), "{error:?}");
            bus.change("stays", "stop").await.unwrap();
            bus.change_with("stays", "start", json!({"wait": "agent"})).await.unwrap();
            assert_eq!(bus.status("stays").await.unwrap().vm_id, vm.vm_id);
            // Also the next daemon knows.
            world.kill().await;
            world.start();
            until("adoption", async || bus.status("stays").await.ok()).await;
            let host = until("the host's answer", async || bus.host().await.ok()).await;
            assert_eq!(host.phase, "draining");
        }
        world.drover(&["host", "drain", "h1", "--off"]).await;
        bus.up("new").await;
        assert_eq!(bus.host().await.unwrap().phase, "ready");
    });
}
