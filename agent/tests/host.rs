//! The agent against hosts that break the rules. What works is tested from the daemon's end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::io::Read as _;

use drover_agent::conn::MAX_CONNECTIONS;
use drover_agent::listen::{Address, Listener};
use drover_schemas::guest::wire::{self, Decoder};
use drover_schemas::guest::*;
use drover_schemas::{ErrorCode, codec};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use common::{DEADLINE, Guest, Host, agent, hello, sh};

fn request(stream: u32, verb: &str, body: Vec<u8>) -> HostFrame {
    HostFrame::Req(Request {
        stream,
        verb: verb.into(),
        request_id: None,
        deadline_ms: None,
        traceparent: None,
        caller: None,
        credit: 0,
        body: body.into(),
    })
}

fn cat() -> Vec<u8> {
    let cat = ExecRequest { argv: vec!["cat".into()], stdin: true, ..Default::default() };
    codec::encode(&cat).unwrap()
}

fn data(off: u64, len: usize) -> HostFrame {
    HostFrame::Data(Data { stream: 1, ch: Channel::Stdin, off, data: vec![0; len].into(), eof: false })
}

#[tokio::test]
async fn versions_that_do_not_meet_are_told_so() {
    for (min, max) in [(2, 9), (0, 0), (9, 1)] {
        let mut host = Host::new(&agent());
        host.say(&hello(min, max)).await;
        assert_eq!(host.hung_up_on().await, ErrorCode::Unsupported);
    }
    let mut host = Host::new(&agent());
    host.say(&hello(0, 99)).await;
    assert!(matches!(host.hear().await, Some(AgentFrame::Hello(h)) if h.proto == PROTO_MAX));
}

#[tokio::test]
async fn a_verb_of_a_later_host_is_answered() {
    let mut host = Host::greeted().await;
    host.say(&request(1, "dance", Vec::new())).await;
    let Some(AgentFrame::Res(res)) = host.hear().await else { panic!("an answer") };
    assert_eq!(res.error.unwrap().code, ErrorCode::Unsupported);
}

#[tokio::test]
async fn who_does_not_greet_first_hung_up_on() {
    let mut host = Host::new(&agent());
    host.say(&request(1, verb::PING, Vec::new())).await;
    assert_eq!(host.hung_up_on().await, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn broken_frames_are_hung_up_on() {
    for bytes in [&[0xff; 8][..], &[0; 4], b"\0\0\0\x03abc", b"\0\0\0\x01\x80"] {
        let mut host = Host::greeted().await;
        host.socket.write_all(bytes).await.unwrap();
        assert_eq!(host.hung_up_on().await, ErrorCode::InvalidArgument, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_stream_number_in_use_is_refused() {
    let mut host = Host::greeted().await;
    host.say(&request(1, verb::EXEC, cat())).await;
    host.say(&request(1, verb::PING, Vec::new())).await;
    assert_eq!(host.hung_up_on().await, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn data_beyond_the_credit_or_out_of_order_is_refused() {
    let mut host = Host::greeted().await;
    host.say(&request(1, verb::EXEC, cat())).await;
    host.say(&data(1, 1)).await;
    assert_eq!(host.hung_up_on().await, ErrorCode::InvalidArgument);
    // The command's output has no credit, so its input backs up until its credit ends too.
    let mut host = Host::greeted().await;
    host.say(&request(1, verb::EXEC, cat())).await;
    for n in 0..64 {
        let frame = wire::encode(&data(n * MAX_DATA as u64, MAX_DATA)).unwrap();
        if host.socket.write_all(&frame).await.is_err() {
            break;
        }
    }
    // Whether the reason still arrives depends on who was faster; that the line is cut does not.
    while host.hear().await.is_some_and(|frame| !matches!(frame, AgentFrame::Res(_))) {}
}

#[tokio::test]
async fn frames_for_streams_that_have_ended_are_normal() {
    let mut host = Host::greeted().await;
    host.say(&data(0, 10)).await;
    host.say(&HostFrame::Cancel(Cancel { stream: 5 })).await;
    host.say(&HostFrame::Credit(Credit { stream: 5, ch: Channel::Stdout, limit: 1 })).await;
    host.say(&HostFrame::Ping(Ping { nonce: 77 })).await;
    assert_eq!(host.hear().await, Some(AgentFrame::Pong(Pong { nonce: 77 })));
}

#[tokio::test]
async fn a_cancelled_request_is_still_answered() {
    let mut host = Host::greeted().await;
    host.say(&request(1, verb::EXEC, cat())).await;
    host.say(&HostFrame::Cancel(Cancel { stream: 1 })).await;
    let Some(AgentFrame::Res(res)) = host.hear().await else { panic!("an answer") };
    assert_eq!(res.error.unwrap().details["cause"], "cancelled");
    // And its number is free.
    host.say(&request(1, verb::PING, Vec::new())).await;
    assert!(matches!(host.hear().await, Some(AgentFrame::Res(Response { stream: 1, error: None, .. }))));
}

#[tokio::test]
async fn connections_are_capped() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&Address::Unix(dir.path().join("a.sock"))).unwrap();
    let door = agent();
    let serving = tokio::spawn(async move { door.serve(listener).await });
    let dial = async || {
        let socket = UnixStream::connect(dir.path().join("a.sock")).await.unwrap();
        let mut host = Host { socket, decoder: Decoder::default() };
        // A refused one may be closed before this is written.
        let _ = host.socket.write_all(&wire::encode(&hello(1, 1)).unwrap()).await;
        host.hear().await.map(|_| host)
    };
    let mut hosts = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        hosts.push(dial().await.unwrap());
    }
    assert!(dial().await.is_none());
    drop(hosts.pop());
    timeout(DEADLINE, async { while dial().await.is_none() {} }).await.unwrap();
    serving.abort();
}

#[test]
fn addresses_are_read() {
    assert_eq!("vsock:1023".parse(), Ok(Address::Vsock(1023)));
    assert_eq!("unix:/a:b".parse(), Ok(Address::Unix("/a:b".into())));
    for bad in ["", "vsock", "vsock:x", "unix:", "tcp:1"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

/// Connects and goes away: two lines each time.
async fn connect(guest: &Guest, times: usize) {
    for _ in 0..times {
        guest.host().await;
    }
}

#[tokio::test]
async fn an_agent_whose_log_nobody_reads_serves() {
    let mut guest = Guest::start_unread();
    // More than a pipe has room for.
    connect(&guest, 1_500).await;
    let (_, end) = guest.host().await.exec(&sh("exit 3")).await;
    assert_eq!(end.unwrap().exit_code, Some(3));
    // Somebody begins to read.
    let mut says = guest.says();
    let reading = std::thread::spawn(move || {
        let mut said = String::new();
        let mut piece = [0; 4096];
        while !said.contains("lines were not written") {
            let read = says.read(&mut piece).unwrap();
            assert_ne!(read, 0, "the agent has ended");
            said.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        said
    });
    let until = std::time::Instant::now() + DEADLINE;
    while !reading.is_finished() && std::time::Instant::now() < until {
        connect(&guest, 1).await;
    }
    assert!(reading.is_finished(), "it is not told what was lost");
    let said = reading.join().unwrap();
    assert!(said.contains("a connection has ended"), "{said}");
}
