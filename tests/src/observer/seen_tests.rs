use super::*;
use drover_schemas::ErrorCode;
use drover_schemas::blob::Blob;
use drover_schemas::body::vm::LogsReply;
use drover_schemas::stream::StreamOpened;
use serde_json::json;

const LOOKUP: &str = "drover.v1.cmd.default.vm.lookup";
const EXEC: &str = "drover.v1.cmd.default.vm.a.guest.exec";
const TYPED: &str = "NATS/1.0\r\nContent-Type: application/msgpack\r\n\r\n";

fn message(subject: &str, reply: Option<&str>, headers: &str, body: &impl serde::Serialize) -> Publication {
    let (payload, headers) = (codec::encode(body).unwrap().into(), headers.as_bytes().to_vec().into());
    Publication { subject: subject.to_owned(), reply: reply.map(str::to_owned), headers, payload }
}

fn counts(seen: &Seen) -> Vec<(&str, u64)> {
    seen.counts.iter().map(|(kind, count)| (&**kind, *count)).collect()
}

#[test]
fn replies_are_held_against_the_verb_that_was_asked_for() {
    let mut seen = Seen::default();
    for (inbox, found) in [("_INBOX.a", "not_found"), ("_INBOX.b", "perhaps")] {
        seen.heard(&message(LOOKUP, Some(inbox), "", &json!({"name": "a"})));
        seen.said(&message(inbox, None, TYPED, &json!({"found": found})));
    }
    assert_eq!(counts(&seen), [("pool.lookup reply", 1), ("pool.lookup request", 2)]);
    assert!(seen.deviations.len() == 1 && seen.deviations.first().unwrap().contains("perhaps"));
}

#[test]
fn what_nobody_asked_for_and_what_has_no_channel_is_found() {
    let mut seen = Seen::default();
    seen.said(&message("_INBOX.a", None, TYPED, &json!({})));
    seen.said(&message("drover.v1.evt.surprise", None, "", &json!({})));
    seen.said(&message("drover.v1.io.default.x", None, "", &json!({})));
    seen.said(&message("elsewhere", None, "", &json!({})));
    assert_eq!(seen.deviations.len(), 4, "{:?}", seen.deviations);
    // Its own inbox is another matter.
    let mut seen = Seen::default();
    seen.line(b"SUB _INBOX.own 7\r\n");
    seen.said(&Publication { subject: "_INBOX.own".into(), ..Publication::default() });
    seen.said(&message("$JS.API.STREAM.INFO.DROVER_EVENTS", Some("_INBOX.own"), "", &json!({})));
    assert!(seen.deviations.is_empty());
    assert_eq!(counts(&seen), [("$JS.API.>", 1)]);
}

#[test]
fn a_malformed_request_may_be_refused_but_not_carried_out() {
    let mut seen = Seen::default();
    let error = ErrorBody::new(ErrorCode::InvalidArgument, "no field is called nmae");
    let refused = |status: u16| {
        format!("NATS/1.0\r\nNats-Service-Error-Code: {status}\r\nNats-Service-Error: no\r\n\r\n")
    };
    seen.heard(&message(LOOKUP, Some("_INBOX.a"), "", &json!({"nmae": "a"})));
    seen.said(&message("_INBOX.a", None, &refused(400), &error));
    assert!(seen.deviations.is_empty(), "{:?}", seen.deviations);
    assert_eq!(counts(&seen), [("error invalid_argument", 1), ("pool.lookup error", 1)]);
    seen.heard(&message(LOOKUP, Some("_INBOX.b"), "", &json!({"nmae": "a"})));
    seen.said(&message("_INBOX.b", None, TYPED, &json!({"found": "not_found"})));
    assert!(seen.deviations.pop_first().unwrap().contains("was carried out all the same"));
    seen.heard(&message(LOOKUP, Some("_INBOX.c"), "", &json!({"name": "a"})));
    seen.said(&message("_INBOX.c", None, &refused(500), &error));
    assert!(seen.deviations.pop_first().unwrap().contains("500"));
}

#[test]
fn streams_are_followed_from_their_reply_to_their_result() {
    let mut seen = Seen::default();
    seen.heard(&message(EXEC, Some("_INBOX.a"), "", &json!({"argv": ["cat"], "stream": true})));
    let opened = json!({"stream": {"io_subject": "drover.v1.io.default.x", "window": 1, "stream": "x"}});
    seen.said(&message("_INBOX.a", None, TYPED, &opened));
    // Its client is elsewhere now.
    let here = StreamFrame { keep_alive: true, ..StreamFrame::default() };
    seen.heard(&message("drover.v1.io.default.x", Some("_INBOX.b"), "", &here));
    seen.said(&message("_INBOX.b", None, "", &here));
    let end = |result: &Value| {
        let result = Blob(codec::encode(result).unwrap().into());
        StreamFrame { end: Some(StreamEnd::Result(result)), ..StreamFrame::default() }
    };
    seen.said(&message("_INBOX.b", None, "", &end(&json!({"exit_code": "three"}))));
    let result = seen.deviations.iter().find(|text| text.contains("three"));
    assert!(result.is_some_and(|text| text.starts_with("guest.exec result")), "{:?}", seen.deviations);
    assert_eq!(seen.counts["guest.exec frame of a client"], 1);
    assert_eq!(seen.counts["guest.exec frame of a host"], 2);
}

#[test]
fn a_reply_with_bytes_opens_a_stream_too() {
    let mut seen = Seen::default();
    seen.heard(&message("drover.v1.cmd.default.vm.a.logs", Some("_INBOX.a"), "", &json!({"follow": true})));
    let stream = StreamOpened { io_subject: "drover.v1.io.default.x".into(), window: 1 };
    let reply = LogsReply { data: Blob::default(), offset: 0, stream: Some(stream) };
    seen.said(&message("_INBOX.a", None, TYPED, &reply));
    seen.said(&message("_INBOX.a", None, "", &StreamFrame { keep_alive: true, ..StreamFrame::default() }));
    assert!(seen.deviations.is_empty(), "{:?}", seen.deviations);
    assert_eq!(seen.counts["vm.logs frame of a host"], 1);
}

#[test]
fn what_a_test_says_beforehand_is_excused_and_must_come() {
    let mut seen = Seen::default();
    seen.expect_malformed("drover.v1.io.");
    assert_eq!(seen.not_come(), ["drover.v1.io."]);
    seen.heard(&message("drover.v1.io.default.x", None, "", &json!({"keep_alive": "yes"})));
    assert!(seen.not_come().is_empty() && seen.deviations.is_empty());
    seen.heard(&message(LOOKUP, None, "", &json!({"nmae": "a"})));
    assert_eq!(seen.deviations.len(), 1);
}
