//! The core beside a guest whose agent keeps to the protocol, over every loss there is, and beside ones that do not.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const PLENTY: EventLimits = EventLimits { per_second: 1_000, burst: 100_000, bytes_per_second: 1 << 30 };

fn event(log: &str, n: u64, kind: &str, data: serde_json::Value) -> Event {
    let data: EventData = serde_json::from_value(data).unwrap();
    let body = data.write().unwrap();
    Event { log: log.into(), n, time_unix_ms: n, uid: 7, gid: 8, pid: 9, kind: kind.into(), body }
}

fn plain(log: &str, n: u64) -> Event {
    event(log, n, "a", json!({ "n": n }))
}

fn batch(events: Vec<Event>) -> EventBatch {
    EventBatch { events, beyond: 0 }
}

fn numbers(events: &[AgentEvent]) -> Vec<u64> {
    events.iter().map(|event| event.data.0["n"].as_u64().unwrap()).collect()
}

#[test]
fn what_is_sent_again_is_known_and_another_log_begins_anew() {
    let (now, mut row) = (Instant::now(), InsideRow::default());
    let mut left = Allowance::full(PLENTY, now);
    let mut taken = |events: Vec<Event>| numbers(&take(&mut row, &mut left, PLENTY, &batch(events), now));
    assert_eq!(taken(vec![plain("a", 1), plain("a", 2)]), [1, 2]);
    assert_eq!(taken(vec![plain("a", 1), plain("a", 2), plain("a", 3)]), [3]);
    assert_eq!(taken(vec![plain("a", 2)]), [0; 0], "numbers that go backwards");
    // What came between was acknowledged by a daemon whose journal is gone.
    assert_eq!(taken(vec![plain("a", 9)]), [9]);
    assert_eq!(taken(vec![plain("b", 4), plain("b", 5)]), [4, 5]);
    assert_eq!(ack(&row), Some(EventAck { log: "b".into(), n: 5 }));
    assert_eq!(row.dropped, DroppedEvents::default());
    assert_eq!(ack(&InsideRow::default()), None);
}

#[test]
fn what_is_too_much_or_no_event_is_counted_by_its_reason_and_not_sent_again() {
    let limits = EventLimits { per_second: 10, burst: 3, bytes_per_second: 10 };
    let (start, mut row) = (Instant::now(), InsideRow::default());
    let mut left = Allowance::full(limits, start);
    let small = |n| Event { body: Default::default(), ..plain("a", n) };
    let published = take(&mut row, &mut left, limits, &batch((1..=5).map(small).collect()), start);
    assert_eq!((published.len(), row.n), (3, 5));
    // A tenth of a second is one event more.
    let later = start + Duration::from_millis(100);
    assert_eq!(take(&mut row, &mut left, limits, &batch(vec![small(6), small(7)]), later).len(), 1);
    let much_later = later + Duration::from_secs(60);
    let large = event("a", 8, "a", json!({"text": "x".repeat(101)}));
    let wrong = [
        large,
        Event { kind: "no such".into(), ..plain("a", 9) },
        Event { body: vec![0xc1].into(), ..plain("a", 10) },
        Event { body: vec![0; MAX_EVENT_DATA + 1].into(), ..plain("a", 11) },
        Event { n: 0, ..plain("a", 1) },
        Event { log: String::new(), ..plain("a", 12) },
        Event { log: "x".repeat(65), ..plain("a", 13) },
        event("a", 14, REFUSED_EVENTS, json!({"count": 40})),
        event("a", 15, REFUSED_EVENTS, json!({"count": u64::MAX >> 11})),
        event("a", 16, REFUSED_EVENTS, json!({})),
    ];
    let wrong = EventBatch { events: wrong.to_vec(), beyond: 7 };
    assert_eq!(take(&mut row, &mut left, limits, &wrong, much_later), []);
    let DroppedEvents { count, quota, malformed, window, guest } = row.dropped;
    assert_eq!((quota, malformed, window, row.n), (2 + 1 + 1, 6, 7, 16));
    assert_eq!((guest, count), (MAX_COUNT, MAX_COUNT), "what is believed of a guest has a limit");
    assert_eq!(row.untold, row.dropped);
}

#[test]
fn a_vm_may_ask_for_less_than_its_host_allows() {
    let asked = AgentEventsSpec { per_second: Some(5), burst: Some(1_000_000), bytes_per_second: None };
    let limits = EventLimits::default().of(&asked);
    assert_eq!(limits, EventLimits { per_second: 5, ..EventLimits::default() });
    let none = AgentEventsSpec { per_second: Some(0), burst: Some(0), bytes_per_second: None };
    let limits = EventLimits::default().of(&none);
    let (now, mut row) = (Instant::now(), InsideRow::default());
    let published =
        take(&mut row, &mut Allowance::full(limits, now), limits, &batch(vec![plain("a", 1)]), now);
    assert_eq!((published.len(), row.dropped.quota), (0, 1));
}

/// What befalls the two ends.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A program publishes.
    Publish,
    /// The agent sends what it may.
    Send,
    /// The daemon takes what came, and its journal has it.
    Commit,
    /// It takes what came, and the journal refuses.
    Refuse,
    /// The agent hears the acknowledgement.
    Hear,
    /// The link is cut: what is on its way, either way, is lost.
    Cut,
    /// The daemon dies, right after its commit or before it; another reads the row.
    Die { committed: bool },
    /// The agent dies, and the next reads what it kept.
    AgentDies,
    /// What the agent kept is lost with the boot.
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish),
        4 => Just(Step::Send),
        4 => Just(Step::Commit),
        1 => Just(Step::Refuse),
        3 => Just(Step::Hear),
        1 => Just(Step::Cut),
        1 => any::<bool>().prop_map(|committed| Step::Die { committed }),
        1 => Just(Step::AgentDies),
        1 => Just(Step::Reboot),
    ]
}

/// The reference: who has published what, and what must be in the log.
#[derive(Default)]
struct Model {
    boot: u64,
    /// What the agent keeps, by the number in its log, with the number among all that were ever published.
    kept: Vec<(u64, u64)>,
    next: u64,
    published: u64,
    /// Sent over this link so far.
    sent: u64,
    on_its_way: Vec<Event>,
    acks: Vec<EventAck>,
    row: InsideRow,
    /// What the stream has.
    stream: Vec<u64>,
    /// What was lost with a boot before it was acknowledged: it may be in the stream, or not.
    lost: Vec<u64>,
}

impl Model {
    fn log(&self) -> String {
        format!("log{}", self.boot)
    }

    fn cut(&mut self) {
        self.on_its_way.clear();
        self.acks.clear();
        self.sent = 0;
    }

    fn deliver(&mut self, durable: bool, heard: bool) {
        let (now, mut row) = (Instant::now(), self.row.clone());
        let batch = batch(std::mem::take(&mut self.on_its_way));
        let events = take(&mut row, &mut Allowance::full(PLENTY, now), PLENTY, &batch, now);
        if !durable {
            // As the shell does: it is taken again.
            self.on_its_way = batch.events;
            return;
        }
        self.row = row;
        self.stream.extend(numbers(&events));
        if heard {
            self.acks.extend(ack(&self.row));
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Publish => {
                self.next += 1;
                self.published += 1;
                self.kept.push((self.next, self.published));
            }
            Step::Send => {
                let log = self.log();
                let unsent = self.kept.iter().filter(|(n, _)| *n > self.sent).take(3);
                let events = unsent.map(|(n, data)| event(&log, *n, "a", json!({ "n": data })));
                let events: Vec<_> = events.collect();
                self.sent = events.last().map_or(self.sent, |last| last.n);
                self.on_its_way.extend(events);
            }
            Step::Commit => self.deliver(true, true),
            Step::Refuse => self.deliver(false, false),
            Step::Hear => {
                for ack in std::mem::take(&mut self.acks) {
                    if ack.log == self.log() {
                        self.kept.retain(|(n, _)| *n > ack.n);
                    }
                }
            }
            Step::Cut => self.cut(),
            Step::Die { committed } => {
                if committed {
                    self.deliver(true, false);
                }
                self.cut();
            }
            Step::AgentDies => self.cut(),
            Step::Reboot => {
                self.cut();
                self.lost.extend(self.kept.drain(..).map(|(_, data)| data));
                (self.boot, self.next) = (self.boot + 1, 0);
            }
        }
    }
}

proptest! {
    #[test]
    fn each_event_arrives_once_and_in_order(steps in proptest::collection::vec(step(), 1..120)) {
        let mut model = Model::default();
        for step in steps {
            model.apply(step);
            prop_assert!(model.stream.is_sorted_by(|a, b| a < b), "doubled or out of order: {:?}", model.stream);
        }
        // All is well from here on: everything that a guest still had arrives.
        for _ in 0..=model.kept.len() {
            [Step::Send, Step::Commit, Step::Hear].into_iter().for_each(|step| model.apply(step));
        }
        prop_assert!(model.kept.is_empty());
        let missing: Vec<u64> = (1..=model.published).filter(|n| !model.stream.contains(n)).collect();
        prop_assert!(missing.iter().all(|n| model.lost.contains(n)), "lost: {missing:?}");
        prop_assert!(model.stream.is_sorted_by(|a, b| a < b));
        prop_assert_eq!(model.row.dropped, DroppedEvents::default());
    }

    /// Whatever an agent sends, nothing panics, each frame is counted once, and the row stays small.
    #[test]
    fn hostile_numbers_and_bytes_are_survived(
        frames in proptest::collection::vec(
            (0_usize..3, prop_oneof![0..20_u64, any::<u64>()], ".{0,70}", proptest::collection::vec(any::<u8>(), 0..40)),
            0..80,
        ),
        beyond in any::<u64>(),
    ) {
        let events: Vec<Event> = frames
            .into_iter()
            .map(|(log, n, kind, body)| {
                let log = ["", "a", "b"][log].to_owned();
                Event { log, n, kind, time_unix_ms: u64::MAX, uid: 0, gid: 0, pid: 0, body: body.into() }
            })
            .collect();
        let (now, mut row) = (Instant::now(), InsideRow::default());
        let (mut left, count) = (Allowance::full(PLENTY, now), events.len() as u64);
        let taken = take(&mut row, &mut left, PLENTY, &EventBatch { events, beyond }, now);
        prop_assert!(taken.len() as u64 + row.dropped.malformed + row.dropped.quota <= count);
        prop_assert!(row.log.len() <= 1 && row.dropped.count <= MAX_COUNT);
        prop_assert!(taken.iter().all(|event| event.time_unix_ms <= 1 << 53));
    }
}
