//! Connections whose host says anything in any order: each request has one end, and no byte is sent without credit.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::guest::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::echo::Echo;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn frame() -> impl Strategy<Value = HostFrame> {
    let stream = 0_u32..6;
    let ch = prop_oneof![
        4 => Just(Channel::Stdin),
        2 => Just(Channel::Stdout),
        1 => Just(Channel::Stderr),
        1 => Just(Channel::Data),
    ];
    let verb = prop_oneof![
        4 => Just("echo"),
        2 => Just("flood"),
        2 => Just("hang"),
        1 => Just("no such verb"),
    ];
    let credit = prop_oneof![Just(0_u64), 1_u64..200, Just(1 << 20), Just(u64::MAX)];
    prop_oneof![
        5 => (stream.clone(), verb, credit.clone()).prop_map(|(stream, verb, credit)| {
            let (verb, body) = (verb.to_owned(), Blob::default());
            let (request_id, deadline_ms, traceparent, caller) = Default::default();
            HostFrame::Req(Request { stream, verb, request_id, deadline_ms, traceparent, caller, credit, body })
        }),
        // Mostly what comes next on a channel that has not begun.
        8 => (stream.clone(), ch.clone(), prop_oneof![9 => Just(0_u64), 1 => any::<u64>()], 0_usize..300, any::<bool>())
            .prop_map(|(stream, ch, off, len, eof)| {
                HostFrame::Data(Data { stream, ch, off, data: vec![1; len].into(), eof })
            }),
        4 => (stream.clone(), ch, credit).prop_map(|(stream, ch, limit)| {
            HostFrame::Credit(Credit { stream, ch, limit })
        }),
        3 => stream.clone().prop_map(|stream| HostFrame::Cancel(Cancel { stream })),
        1 => (stream, any::<Option<i32>>()).prop_map(|(stream, signal)| {
            HostFrame::Control(Control { stream, size: None, signal })
        }),
        1 => any::<u64>().prop_map(|nonce| HostFrame::Ping(Ping { nonce })),
        1 => any::<u64>().prop_map(|nonce| HostFrame::Pong(Pong { nonce })),
        1 => any::<u64>().prop_map(|n| HostFrame::EventAck(EventAck { log: "l".into(), n })),
    ]
}

fn hello(min: u32, max: u32) -> HostFrame {
    let (version, features) = ("test".to_owned(), vec![EVENTS.to_owned()]);
    HostFrame::Hello(HostHello { proto_min: min, proto_max: max, version, features })
}

async fn next(socket: &mut DuplexStream, decoder: &mut Decoder) -> Option<AgentFrame> {
    loop {
        if let Some(frame) = decoder.frame().unwrap() {
            return Some(frame);
        }
        if socket.read_buf(decoder.room()).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// What a host has said and heard of one number.
#[derive(Debug, Default)]
struct Seen {
    asked: usize,
    answered: usize,
    /// The most that it ever let come.
    limit: u64,
    /// What has come on each channel since the last answer.
    come: BTreeMap<Channel, u64>,
}

async fn converses(frames: Vec<HostFrame>, cut: bool) {
    let (host, guest) = duplex(4 * 1024);
    let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
    let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
    for frame in &frames {
        match frame {
            HostFrame::Req(request) => {
                let seen = seen.entry(request.stream).or_default();
                seen.asked += 1;
                seen.limit = seen.limit.max(request.credit);
            }
            HostFrame::Credit(credit) => {
                let seen = seen.entry(credit.stream).or_default();
                seen.limit = seen.limit.max(credit.limit);
            }
            _ => {}
        }
    }
    let ids: Vec<u32> = seen.keys().copied().collect();
    let (mut reads, mut writes) = tokio::io::split(host);
    let writing = tokio::spawn(async move {
        let cancels = ids.into_iter().map(|stream| HostFrame::Cancel(Cancel { stream }));
        let all: Vec<u8> = std::iter::once(hello(1, 1))
            .chain(frames)
            .chain(cancels)
            .flat_map(|frame| wire::encode(&frame).unwrap())
            .collect();
        let len = if cut { all.len() - 3 } else { all.len() };
        // The agent may have hung up.
        let _ = writes.write_all(&all[..len]).await;
        if cut {
            let _ = writes.shutdown().await;
        }
        writes
    });
    let mut decoder = Decoder::default();
    let ended = loop {
        let frame = loop {
            if let Some(frame) = decoder.frame::<AgentFrame>().unwrap() {
                break Some(frame);
            }
            if reads.read_buf(decoder.room()).await.unwrap_or(0) == 0 {
                break None;
            }
        };
        match frame {
            None | Some(AgentFrame::Bye(_)) => break true,
            Some(AgentFrame::Res(res)) => {
                let seen = seen.get_mut(&res.stream).expect("a number that was used");
                seen.answered += 1;
                seen.come.clear();
                assert!(seen.answered <= seen.asked, "{}: {seen:?}", res.stream);
                assert!(res.body.is_some() != res.error.is_some());
            }
            Some(AgentFrame::Data(data)) => {
                let seen = seen.get_mut(&data.stream).expect("a number that was used");
                let come = seen.come.entry(data.ch).or_default();
                // A number that is used again before its answer was read has no order.
                assert!(seen.asked > 1 || data.off == *come, "{}: no byte is skipped", data.stream);
                *come = data.off + data.data.as_slice().len() as u64;
                assert!(*come <= seen.limit, "{}: {seen:?}", data.stream);
            }
            Some(_) => {}
        }
        if !cut && seen.values().all(|seen| seen.answered == seen.asked) {
            break false;
        }
    };
    let writes = writing.await.unwrap();
    drop((reads, writes));
    serving.await.unwrap();
    if !ended {
        assert!(seen.values().all(|seen| seen.answered == seen.asked), "{seen:?}");
    }
}

fn in_time(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, work).await.expect("it ends") });
}

proptest! {
    #[test]
    fn whatever_a_host_says_is_survived_and_each_request_has_one_end(
        frames in proptest::collection::vec(frame(), 0..80),
        cut in any::<bool>(),
    ) {
        in_time(converses(frames, cut));
    }

    #[test]
    fn any_bytes_after_the_greeting_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        greets in any::<bool>(),
    ) {
        in_time(async move {
            let (mut host, guest) = duplex(4 * 1024);
            let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
            if greets {
                host.write_all(&wire::encode(&hello(1, 1)).unwrap()).await.unwrap();
            }
            let _ = host.write_all(&bytes).await;
            let _ = host.shutdown().await;
            let mut decoder = Decoder::default();
            while next(&mut host, &mut decoder).await.is_some() {}
            serving.await.unwrap();
        });
    }
}

#[test]
fn a_host_that_asks_and_does_not_read_is_hung_up_on() {
    in_time(async {
        let (mut host, guest) = duplex(1024);
        let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
        host.write_all(&wire::encode(&hello(1, 1)).unwrap()).await.unwrap();
        let ping = wire::encode(&HostFrame::Ping(Ping { nonce: 1 })).unwrap();
        let mut asked = 0;
        while host.write_all(&ping).await.is_ok() {
            asked += 1;
            assert!(asked < 100_000, "what is not read is kept");
        }
        serving.await.unwrap();
    });
}

#[test]
fn the_newest_version_of_both_is_spoken_or_it_is_said_why_none_is() {
    let answer = |min, max| {
        let mut said = None;
        in_time(async {
            let (mut host, guest) = duplex(4 * 1024);
            let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
            host.write_all(&wire::encode(&hello(min, max)).unwrap()).await.unwrap();
            said = next(&mut host, &mut Decoder::default()).await;
            drop(host);
            serving.await.unwrap();
        });
        said
    };
    for (min, max) in [(PROTO_MIN, PROTO_MAX), (0, PROTO_MAX), (PROTO_MIN, PROTO_MAX + 9), (0, u32::MAX)] {
        let said = answer(min, max);
        assert!(matches!(&said, Some(AgentFrame::Hello(hello)) if hello.proto == PROTO_MAX), "{said:?}");
    }
    for (min, max) in [(PROTO_MAX + 1, PROTO_MAX + 3), (0, PROTO_MIN - 1), (PROTO_MAX, PROTO_MIN - 1)] {
        let said = answer(min, max);
        let Some(AgentFrame::Bye(Bye { error: Some(error) })) = said else { panic!("{said:?}") };
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("install a matching agent or host"), "{error}");
    }
}

#[test]
fn a_later_hosts_fields_and_frames_are_passed_over() {
    let raw = |value: serde_json::Value| {
        let body = drover_schemas::codec::encode(&value).unwrap();
        [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
    };
    let later = serde_json::json!({
        "t": "hello", "proto_min": 1, "proto_max": 7, "version": "9.0.0",
        "features": ["events", "teleport"], "tenant": {"a": [1, 2, null]},
    });
    in_time(async move {
        let (mut host, guest) = duplex(4 * 1024);
        let serving = tokio::spawn(serve(Box::new(guest), Arc::new(Echo::default())));
        let mut all = raw(later);
        all.extend(raw(serde_json::json!({"t": "teleport", "where": "there"})));
        all.extend(raw(serde_json::json!({"t": "ping", "nonce": 7, "why": "because"})));
        host.write_all(&all).await.unwrap();
        let mut decoder = Decoder::default();
        let hello = next(&mut host, &mut decoder).await;
        assert!(matches!(hello, Some(AgentFrame::Hello(hello)) if hello.proto == PROTO_MAX));
        let pong = next(&mut host, &mut decoder).await;
        assert_eq!(pong, Some(AgentFrame::Pong(Pong { nonce: 7 })));
        drop(host);
        serving.await.unwrap();
    });
}
