use proptest::prelude::*;

use super::*;

fn record(source: &str, event: &str, properties: &str) -> String {
    format!(
        "{{\n  \"timestamp\": {{\n    \"secs\": 1,\n    \"nanos\": 2\n  }},\n  \"source\": \"{source}\",\n  \
         \"event\": \"{event}\",\n  \"properties\": {properties}\n}}\n\n"
    )
}

fn kinds(events: &[VmmEvent]) -> Vec<EventKind> {
    events.iter().map(VmmEvent::kind).collect()
}

#[test]
fn records_come_out_whole_however_the_bytes_are_cut() {
    let text = record("vm", "booted", "null") + &record("guest", "panic", "{\"event\": \"panic\"}");
    let wanted = [EventKind::Booted, EventKind::GuestPanic { what: "panic".to_owned() }];
    for size in 1..text.len() {
        let mut parser = EventParser::new();
        let mut events = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            events.append(&mut parser.push(piece));
        }
        assert_eq!(kinds(&events), wanted, "in pieces of {size}");
        assert_eq!(parser.garbage(), 0);
    }
}

#[test]
fn a_record_that_broke_off_costs_itself_and_not_the_next() {
    let whole = record("vm", "shutdown", "null");
    for cut in 1..whole.len() - 2 {
        let mut parser = EventParser::new();
        let text = format!("{}{}", &whole[..cut], record("vm", "rebooted", "null"));
        let events = parser.push(text.as_bytes());
        assert_eq!(kinds(&events), [EventKind::Rebooted], "cut at {cut}");
        assert_eq!(parser.garbage(), 1, "cut at {cut}");
    }
}

#[test]
fn an_endless_record_is_dropped_in_bounded_memory_and_counted_once() {
    let mut parser = EventParser::new();
    for _ in 0..64 {
        assert!(parser.push(&[b'x'; RECORD_MAX]).is_empty());
        assert!(parser.buffer.len() <= 2 * RECORD_MAX);
    }
    let events = parser.push(("\n\n".to_owned() + &record("vm", "booted", "null")).as_bytes());
    assert_eq!((kinds(&events), parser.garbage()), (vec![EventKind::Booted], 1));
}

#[test]
fn an_unknown_event_is_of_no_consequence() {
    let events =
        EventParser::new().push(record("virtio-device", "activated", "{\"id\": \"net0\"}").as_bytes());
    assert_eq!(kinds(&events), [EventKind::Other]);
    let removed = EventParser::new().push(record("vm", "device-removed", "{\"id\": \"d\"}").as_bytes());
    assert_eq!(kinds(&removed), [EventKind::DeviceRemoved { id: "d".to_owned() }]);
}

#[test]
fn after_missing_bytes_a_begun_record_is_forgotten() {
    let mut parser = EventParser::new();
    parser.push(b"{\n  \"timestamp\": {");
    parser.reset();
    assert_eq!(kinds(&parser.push(record("vm", "paused", "null").as_bytes())), [EventKind::Paused]);
    assert_eq!(parser.garbage(), 1);
}

proptest! {
    #[test]
    fn no_bytes_harm_the_parser(pieces in prop::collection::vec(prop::collection::vec(
        prop_oneof![Just(b'\n'), Just(b'{'), Just(b'}'), Just(b'"'), any::<u8>()], 0..200), 0..50)) {
        let mut parser = EventParser::new();
        for piece in &pieces {
            parser.push(piece);
        }
        // Whatever came before, a record after a blank line is found.
        parser.push(b"\n\n");
        prop_assert_eq!(kinds(&parser.push(record("vm", "booted", "null").as_bytes())), [EventKind::Booted]);
    }
}
