//! Agents that lie: each lie closes the link with its own reason, and costs bounded memory.

use std::sync::Arc;

use drover_schemas::blob::Blob;
use drover_schemas::body::spec::AgentSpec;
use drover_schemas::guest::wire::{self, Decoder};
use drover_schemas::guest::*;
use drover_schemas::{ErrorBody, ErrorCode, Token};

use super::*;

fn hello() -> AgentHello {
    AgentHello {
        proto: 1,
        version: "evil".into(),
        boot_id: "b".into(),
        instance: "i".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: String::new(),
        hostname: String::new(),
        allowed: None,
        capabilities: vec![verb::EXEC.into(), verb::PING.into()],
        guest: GuestKind::Vm,
        stream_credit: 1000,
        max_streams: 64,
    }
}

/// Waits for the host's next frame, then says `frames`, raw.
async fn answer(socket: &mut UnixStream, frames: &[Bytes]) {
    let mut decoder = Decoder::default();
    while decoder.frame::<HostFrame>().unwrap().is_none() {
        if socket.read_buf(decoder.room()).await.unwrap_or(0) == 0 {
            return;
        }
    }
    for frame in frames {
        if socket.write_all(frame).await.is_err() {
            return;
        }
    }
}

fn bytes(frame: &AgentFrame) -> Bytes {
    wire::encode(frame).unwrap()
}

/// An agent that greets, and answers the first request with `lie`; then it holds the line.
fn liar(lie: Vec<Bytes>) -> Hypervisor {
    let lie = Arc::new(lie);
    Hypervisor::start(move |mut socket| {
        let lie = Arc::clone(&lie);
        async move {
            answer(&mut socket, &[bytes(&AgentFrame::Hello(hello()))]).await;
            answer(&mut socket, &lie).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    })
}

fn data(stream: u32, ch: Channel, off: u64, len: usize) -> Bytes {
    bytes(&AgentFrame::Data(Data { stream, ch, off, data: vec![1; len].into(), eof: false }))
}

async fn reason(lie: Vec<Bytes>) -> LinkError {
    let guest = liar(lie);
    let link = connect(&guest.socket()).await.unwrap();
    let stream = link.open(Open { verb: "exec".into(), credit: 100, ..Open::default() }).unwrap();
    let reason = tokio::time::timeout(DEADLINE, link.closed()).await.unwrap();
    // Whoever waits on a stream hears of it too.
    let mut last = None;
    while let Some(event) = stream.recv().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(StreamEvent::End(Err(_)))), "{last:?}");
    reason
}

#[tokio::test]
async fn a_length_bomb_closes_the_link() {
    let error = reason(vec![Bytes::from_static(&[0xff; 4])]).await;
    assert!(
        matches!(&error, LinkError::Wire { source } if matches!(**source, wire::WireError::Length { .. }))
    );
    let body: ErrorBody = error.into();
    assert_eq!(body.code, ErrorCode::GuestUnreachable);
}

#[tokio::test]
async fn garbage_closes_the_link() {
    let error = reason(vec![Bytes::from_static(b"\0\0\0\x05hello")]).await;
    assert!(matches!(error, LinkError::Wire { .. }));
}

#[tokio::test]
async fn wrong_stream_numbers_close_the_link() {
    for frame in [
        data(9, Channel::Stdout, 0, 1),
        bytes(&AgentFrame::Res(Response { stream: 9, body: Some(Blob::default()), error: None })),
        bytes(&AgentFrame::Head(Head { stream: 9, body: Blob::default() })),
        bytes(&AgentFrame::Credit(Credit { stream: 9, ch: Channel::Stdin, limit: 1 })),
    ] {
        assert!(matches!(reason(vec![frame]).await, LinkError::UnknownStream { stream: 9 }));
    }
}

#[tokio::test]
async fn more_than_the_credit_closes_the_link() {
    let error = reason(vec![data(1, Channel::Stdout, 0, 100), data(1, Channel::Stdout, 100, 1)]).await;
    assert!(matches!(
        error,
        LinkError::Flow { stream: 1, source: flow::FlowError::Credit { limit: 100, end: 101 } }
    ));
    let error = reason(vec![data(1, Channel::Stderr, 5, 1)]).await;
    assert!(matches!(error, LinkError::Flow { source: flow::FlowError::Offset { .. }, .. }));
}

#[tokio::test]
async fn frames_out_of_place_close_the_link() {
    for frame in [
        AgentFrame::Hello(hello()),
        AgentFrame::Res(Response { stream: 1, body: None, error: None }),
        AgentFrame::Data(Data { stream: 1, ch: Channel::Stdin, off: 0, data: vec![1].into(), eof: false }),
    ] {
        assert!(matches!(reason(vec![bytes(&frame)]).await, LinkError::Unexpected { .. }));
    }
    let bye = ErrorBody::new(ErrorCode::Busy, "upgrading");
    let error = reason(vec![bytes(&AgentFrame::Bye(Bye { error: Some(bye.clone()) }))]).await;
    assert!(matches!(error, LinkError::Bye { error } if error == bye));
}

#[tokio::test]
async fn a_second_answer_closes_the_link() {
    let res = bytes(&AgentFrame::Res(Response { stream: 1, body: Some(Blob::default()), error: None }));
    let guest = liar(vec![res.clone(), res]);
    let link = connect(&guest.socket()).await.unwrap();
    let _stream = link.open(Open { verb: verb::PING.into(), ..Open::default() }).unwrap();
    assert!(matches!(link.closed().await, LinkError::UnknownStream { stream: 1 }));
}

#[tokio::test]
async fn a_version_that_was_not_offered_is_refused() {
    let answers = [
        AgentFrame::Hello(AgentHello { proto: 99, ..hello() }),
        AgentFrame::Pong(Pong { nonce: 0 }),
        AgentFrame::Bye(Bye { error: Some(ErrorBody::new(ErrorCode::Unsupported, "too old")) }),
    ];
    for first in answers {
        let first = bytes(&first);
        let guest = Hypervisor::start(move |mut socket| {
            let first = first.clone();
            async move { answer(&mut socket, &[first]).await }
        });
        let error = connect(&guest.socket()).await.unwrap_err();
        assert!(matches!(error, LinkError::Unexpected { .. } | LinkError::Bye { .. }), "{error}");
        assert!(!error.may_pass());
    }
}

#[tokio::test]
async fn a_silent_agent_is_found_by_the_heartbeat() {
    let guest = liar(Vec::new());
    let info = HelloInfo {
        heartbeat: Duration::from_millis(20),
        patience: Duration::from_millis(20),
        ..HelloInfo::default()
    };
    let (link, _) = Link::connect(&guest.socket(), &info, DEADLINE).await.unwrap();
    let reason = tokio::time::timeout(DEADLINE, link.closed()).await.unwrap();
    assert!(matches!(reason, LinkError::Silent { after_ms } if after_ms >= 40), "{reason}");
}

#[tokio::test]
async fn an_agent_that_never_greets_is_given_up() {
    let guest = Hypervisor::start(|mut socket| async move {
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let result = Link::connect(&guest.socket(), &HelloInfo::default(), Duration::from_millis(50)).await;
    assert!(matches!(result, Err(LinkError::Deadline { after_ms: 50, .. })));
}

#[tokio::test]
async fn an_agent_that_answers_no_request_keeps_no_caller() {
    let guest = liar(Vec::new());
    let link = connect(&guest.socket()).await.unwrap();
    let error = link.call("ping", None, Duration::from_millis(10), Bytes::new()).await.unwrap_err();
    assert!(matches!(error, CallError::Link(LinkError::Deadline { .. })));
    assert_eq!(ErrorBody::from(error).code, ErrorCode::DeadlineExceeded);
    // Its number stays taken, so an agent like this cannot make the daemon's table grow.
    assert_eq!(link.shared().state().streams.len(), 1);
}

/// The agent of a guest is as old as its image: what it does not offer is said, and not sent.
#[tokio::test]
async fn an_agent_that_is_older_is_asked_for_what_it_offers() {
    let res = bytes(&AgentFrame::Res(Response { stream: 1, body: Some(Blob::default()), error: None }));
    let guest = liar(vec![res]);
    let link = connect(&guest.socket()).await.unwrap();
    let error = link.open(Open { verb: verb::PUT.into(), ..Open::default() }).unwrap_err();
    let error = ErrorBody::from(error);
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("\"evil\"") && error.message.contains("install the agent"), "{error}");
    assert!(
        link.call(verb::PING, None, DEADLINE, Bytes::new()).await.is_ok(),
        "the first stream is still free"
    );
}

#[tokio::test]
async fn frames_of_a_later_version_are_counted_and_ignored() {
    let later = drover_schemas::codec::encode(&serde_json::json!({"t": "teleport"})).unwrap();
    let mut frame = (later.len() as u32).to_be_bytes().to_vec();
    frame.extend(later);
    let res = bytes(&AgentFrame::Res(Response { stream: 1, body: Some(Blob::default()), error: None }));
    let guest = liar(vec![frame.into(), res]);
    let link = connect(&guest.socket()).await.unwrap();
    assert_eq!(link.call("ping", None, DEADLINE, Bytes::new()).await.unwrap(), Bytes::new());
    assert_eq!(link.shared().state().unknown, 1);
}

#[tokio::test]
async fn sending_waits_for_the_agents_credit() {
    let guest = liar(Vec::new());
    let link = connect(&guest.socket()).await.unwrap();
    let stream = link.open(Open { verb: verb::PING.into(), ..Open::default() }).unwrap();
    stream.send(Channel::Stdin, vec![0; 1000].into(), false).await.unwrap();
    let more = stream.send(Channel::Stdin, vec![0; 1].into(), false);
    assert!(tokio::time::timeout(Duration::from_millis(20), more).await.is_err());
}

fn event(n: u64) -> Bytes {
    let (log, kind, body) = ("l".into(), "a".into(), Blob::default());
    bytes(&AgentFrame::Event(Event { log, n, time_unix_ms: 0, uid: 0, gid: 0, pid: 0, kind, body }))
}

#[tokio::test]
async fn events_wait_for_their_reader_and_are_answered() {
    let (heard, hears) = tokio::sync::oneshot::channel();
    let heard = std::sync::Mutex::new(Some(heard));
    let guest = Hypervisor::start(move |mut socket| {
        let heard = heard.lock().unwrap().take();
        async move {
            let frames = [bytes(&AgentFrame::Hello(hello())), event(1), event(2)];
            answer(&mut socket, &frames).await;
            let mut decoder = Decoder::default();
            loop {
                match decoder.frame::<HostFrame>().unwrap() {
                    Some(HostFrame::EventAck(ack)) => break drop(heard.unwrap().send(ack)),
                    Some(_) => {}
                    None => assert!(socket.read_buf(decoder.room()).await.unwrap() > 0),
                }
            }
        }
    });
    let link = connect(&guest.socket()).await.unwrap();
    let reader = link.events();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(reader.next().await.unwrap().events.into_iter().map(|event| event.n));
    }
    assert_eq!(seen, [1, 2]);
    let ack = EventAck { log: "l".into(), n: 2 };
    reader.acknowledge(ack.clone());
    assert_eq!(hears.await.unwrap(), ack);
    assert_eq!(reader.next().await, None, "the end of the link");
}

#[tokio::test]
async fn a_flood_of_events_closes_the_link_and_is_counted() {
    let flood = std::iter::once(bytes(&AgentFrame::Hello(hello()))).chain((0..10_000).map(|_| event(1)));
    let flood: Arc<Vec<Bytes>> = Arc::new(flood.collect());
    let guest = Hypervisor::start(move |mut socket| {
        let flood = Arc::clone(&flood);
        async move {
            answer(&mut socket, &flood).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    });
    let link = connect(&guest.socket()).await.unwrap();
    let reader = link.events();
    let reason = tokio::time::timeout(DEADLINE, link.closed()).await.unwrap();
    let LinkError::Flood { beyond } = reason else { panic!("{reason}") };
    let batch = reader.next().await.unwrap();
    assert_eq!((batch.events.len(), batch.beyond), (event::EVENTS_IN_FLIGHT, beyond));
    assert_eq!(reader.next().await, None);
    assert!(!reader.is_open());
}

#[tokio::test]
async fn what_an_old_agent_cannot_watch_is_told_with_its_health() {
    let guest = Hypervisor::start(|mut socket| async move {
        let old = AgentHello { capabilities: vec![verb::HEALTH.into()], version: "0.0.9".into(), ..hello() };
        answer(&mut socket, &[bytes(&AgentFrame::Hello(old))]).await;
        for stream in 1..=2 {
            let health = Blob::from(body(&HealthResult::default()).to_vec());
            let well = AgentFrame::Res(Response { stream, body: Some(health), error: None });
            answer(&mut socket, &[bytes(&well)]).await;
        }
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let link = connect(&guest.socket()).await.unwrap();
    let threshold = ThresholdSpec::new(Token::new("a").unwrap(), Measure::Cpu, 90);
    let wanted = AgentSpec { thresholds: vec![threshold], ..AgentSpec::default() };
    let health = crate::vm::guest_calls::health(&link, DEADLINE, &wanted).await.unwrap();
    assert_eq!(health.status, HealthStatus::Warn);
    assert!(health.reasons[0].contains("0.0.9"), "{:?}", health.reasons);
    let nothing = AgentSpec::default();
    let health = crate::vm::guest_calls::health(&link, DEADLINE, &nothing).await.unwrap();
    assert_eq!((health.status, health.reasons), (HealthStatus::Ok, Vec::new()));
}

#[tokio::test]
async fn an_agent_that_says_it_moves_is_only_heard() {
    let moved = || bytes(&AgentFrame::Moved(Moved {}));
    let guest = liar((0..1000).map(|_| moved()).collect());
    let link = connect(&guest.socket()).await.unwrap();
    let _stream = link.open(Open { verb: "exec".into(), ..Open::default() }).unwrap();
    tokio::time::timeout(DEADLINE, link.moving()).await.unwrap();
    assert!(link.is_open());
    link.stay();
}

/// An agent that greets with these bytes.
fn greets(bytes: Vec<u8>) -> Hypervisor {
    let greeting = Bytes::from(bytes);
    Hypervisor::start(move |mut socket| {
        let greeting = greeting.clone();
        async move {
            answer(&mut socket, &[greeting]).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    })
}

#[tokio::test]
async fn an_agent_of_a_later_version_is_understood_as_far_as_it_is_known() {
    let later = serde_json::json!({
        "t": "hello", "proto": PROTO_MAX, "proto_next": 9, "version": "9.0.0", "boot_id": "b", "os": "plan9",
        "arch": "riscv64", "kernel": "", "hostname": "", "guest": "something new", "stream_credit": 1, "max_streams": 1,
        "capabilities": ["ping", "teleport"], "attested": {"by": [1, 2, null]},
    });
    let body = codec::encode(&later).unwrap();
    let guest = greets([&(body.len() as u32).to_be_bytes()[..], &body].concat());
    let link = connect(&guest.socket()).await.unwrap();
    assert_eq!((link.hello().guest, link.hello().instance.as_str()), (GuestKind::Unknown, ""));
    assert!(link.offers(verb::PING).is_ok() && link.offers(verb::EXEC).is_err());
}

#[tokio::test]
async fn an_agent_without_a_version_in_common_is_told_from_one_that_lies() {
    use drover_schemas::body::status::{AgentFaultCode, CauseKind};
    let error = ErrorBody::new(ErrorCode::Unsupported, "this agent speaks 7 to 9");
    let guest = greets(bytes(&AgentFrame::Bye(Bye { error: Some(error) })).to_vec());
    let error = connect(&guest.socket()).await.unwrap_err();
    assert_eq!(error.fault(), Some(AgentFaultCode::Incompatible));
    let cause = crate::vm::marks::cause(&error, Duration::from_secs(5));
    assert_eq!(cause.kind, CauseKind::AgentIncompatible);
    assert!(cause.message.contains("install the agent of this host's version"), "{}", cause.message);
    // A version that was not offered is a lie.
    let guest = greets(bytes(&AgentFrame::Hello(AgentHello { proto: PROTO_MAX + 1, ..hello() })).to_vec());
    let error = connect(&guest.socket()).await.unwrap_err();
    assert_eq!(error.fault(), Some(AgentFaultCode::OutOfPlace));
}

#[tokio::test]
async fn a_greeting_without_measure_is_not_kept() {
    let capabilities = vec!["x".to_owned(); 40_000];
    let wide = AgentHello { capabilities, ..hello() };
    let long = AgentHello { kernel: "k".repeat(100_000), ..hello() };
    for greeting in [wide, long] {
        let guest = greets(bytes(&AgentFrame::Hello(greeting)).to_vec());
        assert!(matches!(connect(&guest.socket()).await, Err(LinkError::Unexpected { .. })));
    }
}

#[tokio::test]
async fn frames_without_end_that_carry_nothing_close_the_link() {
    let pong = bytes(&AgentFrame::Pong(Pong { nonce: 1 }));
    let error = reason(vec![Bytes::from(pong.repeat(5_000))]).await;
    assert!(matches!(error, LinkError::Endless { frames } if frames > 2_000), "{error}");
    let head = bytes(&AgentFrame::Head(Head { stream: 1, body: Blob::default() }));
    assert!(matches!(reason(vec![head.clone(), head]).await, LinkError::Unexpected { .. }));
}

/// Credit for a request that is not answered breaks no rule. What comes of it faster than it is read waits in the guest,
/// and what the host has to say goes out meanwhile.
#[tokio::test]
async fn frames_that_come_too_fast_wait() {
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counts = Arc::clone(&sent);
    let guest = Hypervisor::start(move |mut socket| {
        let counts = Arc::clone(&counts);
        async move {
            answer(&mut socket, &[bytes(&AgentFrame::Hello(hello()))]).await;
            answer(&mut socket, &[]).await;
            let mut limit = 1_000;
            loop {
                limit += 5_000;
                let credit = Credit { stream: 1, ch: Channel::Stdin, limit };
                if socket.write_all(&bytes(&AgentFrame::Credit(credit))).await.is_err() {
                    return;
                }
                counts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let link = connect(&guest.socket()).await.unwrap();
    let began = Instant::now();
    let _stream = link.open(Open { verb: verb::PING.into(), ..Open::default() }).unwrap();
    let count = || sent.load(std::sync::atomic::Ordering::Relaxed);
    until("the burst is used up", || count() > 12_000).await;
    let frames = count();
    // What sockets hold was sent and not read.
    let bound = 10_000.0 * (2.0 + began.elapsed().as_secs_f64()) + 20_000.0;
    assert!((frames as f64) < bound, "{frames} of {bound} in {:?}", began.elapsed());
    assert!(link.is_open());
}
