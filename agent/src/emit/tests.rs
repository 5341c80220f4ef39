//! The events of a guest as a whole, with a host that is there or not.

use serde_json::json;

use super::*;

const WHO: Publisher = Publisher { uid: 1000, gid: 100, pid: 7 };

fn kind(text: &str) -> EventType {
    EventType::new(text).unwrap()
}

fn opened() -> Arc<Events> {
    Events::open(Path::new("/proc/none"), "boot")
}

fn waiting(events: &Events) -> Vec<Event> {
    let state = events.state();
    (state.keep.acked()..state.keep.last())
        .map(|sent| state.keep.next(sent, 9_999, 1 << 30).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn refusals_are_counted_and_told_as_a_sum_once_for_each_that_the_host_has_heard() {
    let events = opened();
    let publish = |count: u32| {
        (0..count).filter(|_| events.publish(WHO, &kind("a"), &EventData::default()).is_err()).count()
    };
    assert_eq!(publish(150), 50);
    let told = |events: &Events| -> Vec<u64> {
        let told = waiting(events).into_iter().filter(|event| event.kind == REFUSED_EVENTS);
        told.map(|event| EventData::read(event.body.as_slice()).unwrap().0["count"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(told(&events), [0; 0], "they are counted for a while first");
    tokio::time::sleep(TELL_AFTER * 2).await;
    assert_eq!(told(&events), [50]);
    assert_eq!(publish(30), 30);
    tokio::time::sleep(TELL_AFTER * 2).await;
    assert_eq!(told(&events), [50], "the host has not heard of the first ones");
    let name = events.state().keep.name().to_owned();
    events.acknowledge(&name, 101);
    assert_eq!(told(&events), [30]);
    assert!(waiting(&events).iter().all(|event| event.uid == 0), "it is the agent's own");
    events.acknowledge(&name, 102);
    assert_eq!(told(&events), [0; 0]);
}

#[tokio::test]
async fn a_publisher_waits_for_its_own_event_and_no_longer_than_it_wants() {
    let events = opened();
    let n = events.publish(WHO, &kind("a"), &EventData::default()).unwrap();
    assert!(!events.delivered(n, Duration::from_millis(1)).await);
    let name = events.state().keep.name().to_owned();
    assert_eq!(events.id(n), format!("{name}.1"));
    let waits = tokio::spawn({
        let events = Arc::clone(&events);
        async move { events.delivered(n, Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    events.acknowledge("of another boot", n);
    events.acknowledge(&name, n);
    assert!(waits.await.unwrap());
    assert!(events.flush(Duration::ZERO).await, "the host has all that there is");
}

#[tokio::test]
async fn what_only_the_agent_says_is_refused_to_programs_but_to_what_root_runs_for_systemd() {
    let events = opened();
    let root = Publisher { uid: 0, gid: 0, pid: 1 };
    for (who, text, taken) in [
        (WHO, "drover.shutdown", false),
        (WHO, own::UNIT_FAILED, false),
        (root, "drover.shutdown", false),
        (root, own::UNIT_FAILED, true),
        (WHO, "drover-x", true),
    ] {
        let published = events.publish(who, &kind(text), &EventData::default());
        assert_eq!(published.is_ok(), taken, "{text}: {published:?}");
    }
    let long: EventData = serde_json::from_value(json!({"text": "x".repeat(10_000)})).unwrap();
    assert!(matches!(events.publish(WHO, &kind("a"), &long), Err(Refusal::Data(_))));
    let seen = &waiting(&events)[1];
    assert_eq!((seen.uid, seen.gid, seen.pid, seen.n), (1000, 100, 7, 2));
}

#[tokio::test]
async fn the_end_is_told_once_and_waited_for_only_where_a_host_listens() {
    let events = opened();
    events.end(json!({"by": "host"})).await;
    events.end(json!({"by": "guest"})).await;
    let told: Vec<String> = waiting(&events).into_iter().map(|event| event.kind).collect();
    assert_eq!(told, [own::SHUTDOWN]);
}

#[test]
fn programs_publish_beside_the_folder() {
    assert_eq!(socket_beside(Path::new(crate::RUN_DIR)), PathBuf::from("/run/drover-agent.sock"));
}
