//! Streams against a host's end that loses what it is told to lose.

use bytes::Bytes;
use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{FileResult, GetRequest, PutRequest};
use drover_schemas::stream::{Channel, MAX_WINDOW, Receiver, Sender, StreamEnd, StreamFrame, StreamOpened};
use drover_schemas::{ErrorBody, ErrorCode};
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{SOON, TestBus, connect, token};
use crate::client::{CallOptions, ClientError, Input, Output};

const IO: &str = "drover.v1.io.default.abc";

/// The host's end of one stream.
struct Host {
    nats: async_nats::Client,
    frames: async_nats::Subscriber,
    inbox: async_nats::Subject,
    began: Instant,
}

impl Host {
    /// Opens the stream of the next request on `verb` and answers it.
    async fn open(bus: &TestBus, verb: &str) -> tokio::task::JoinHandle<Self> {
        let nats = connect(bus).await.nats().clone();
        let frames = nats.subscribe(IO).await.unwrap();
        let mut requests =
            nats.subscribe(format!("drover.v1.cmd.default.vm.web.guest.{verb}")).await.unwrap();
        let _ = nats.request("$JS.API.INFO", "".into()).await.unwrap();
        tokio::spawn(async move {
            let request = requests.next().await.unwrap();
            let inbox = request.reply.unwrap();
            let opened = StreamOpened { io_subject: IO.into(), window: MAX_WINDOW };
            let body = drover_schemas::codec::encode(&opened).unwrap();
            nats.publish(inbox.clone(), body.into()).await.unwrap();
            Self { nats, frames, inbox, began: Instant::now() }
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    async fn next(&mut self) -> Option<StreamFrame> {
        let message = timeout(std::time::Duration::from_millis(100), self.frames.next()).await.ok()??;
        Some(drover_schemas::codec::decode(&message.payload).unwrap())
    }

    async fn send(&self, frame: StreamFrame) {
        let body = drover_schemas::codec::encode(&frame).unwrap();
        self.nats.publish(self.inbox.clone(), body.into()).await.unwrap();
    }

    async fn end(&self, end: StreamEnd) {
        self.send(StreamFrame { end: Some(end), ..StreamFrame::default() }).await;
        // What is dropped unflushed was never sent.
        self.nats.flush().await.unwrap();
    }
}

fn result(size_bytes: u64) -> StreamEnd {
    let result = FileResult { size_bytes, sha256: "x".into(), mode: 0o644, ..FileResult::default() };
    StreamEnd::Result(Blob(drover_schemas::codec::encode(&result).unwrap().into()))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_lost_on_the_way_to_the_host_is_sent_again() {
    let Some(bus) = TestBus::start().await else { return };
    let opening_host = Host::open(&bus, "put").await;
    let data = pattern(1_500_000);
    let size_bytes = data.len() as u64;
    let host = tokio::spawn(async move {
        let mut host = opening_host.await.unwrap();
        let mut receiver = Receiver::new(Channel::Data, MAX_WINDOW);
        let (mut got, mut lost) = (Vec::new(), 0);
        while !receiver.ended() {
            if let Some(frame) = host.next().await
                && let (Some(Channel::Data), Some(off)) = (frame.ch, frame.off)
            {
                // The third chunk and, later, the last one do not arrive at first.
                if (off == 131_072 && lost == 0) || (frame.eof && lost == 1) {
                    lost += 1;
                    continue;
                }
                let bytes = frame.data.unwrap().0;
                if let Some(fresh) = receiver.data(off, bytes, frame.eof).unwrap() {
                    got.extend_from_slice(&fresh);
                }
            }
            if let Some(ack) = receiver.poll_ack(MAX_WINDOW, host.now()) {
                host.send(ack).await;
            }
        }
        assert_eq!(lost, 2);
        host.end(result(size_bytes)).await;
        got
    });
    let client = connect(&bus).await;
    let request = PutRequest { path: "/x".into(), size_bytes, ..PutRequest::default() };
    let subject = client.guest_subject(&token("web"), "put").unwrap();
    let opening = client.open(&subject, &request, CallOptions::change(SOON)).await.unwrap();
    let opened: StreamOpened = opening.reply().unwrap();
    let input = Input { channel: Channel::Data, reader: Box::new(std::io::Cursor::new(data.clone())) };
    let session = opening.session(&opened).unwrap();
    let got: FileResult = session.run(Some(input), Vec::new(), CancellationToken::new()).await.unwrap();
    assert_eq!(got.size_bytes, size_bytes);
    assert!(host.await.unwrap() == data, "other bytes arrived");
}

#[tokio::test]
async fn what_is_lost_on_the_way_to_the_client_is_asked_for_again() {
    let Some(bus) = TestBus::start().await else { return };
    let opening_host = Host::open(&bus, "get").await;
    let data = pattern(1_500_000);
    let mut rest = Bytes::from(data.clone());
    let host = tokio::spawn(async move {
        let mut host = opening_host.await.unwrap();
        let mut sender = Sender::new(Channel::Data, MAX_WINDOW);
        let (mut lost, size) = (false, rest.len() as u64);
        while !sender.done() {
            let room = sender.room().min(rest.len());
            if room > 0 {
                sender.push(rest.split_to(room), host.now());
            }
            if rest.is_empty() {
                sender.finish(host.now());
            }
            while let Some(frame) = sender.poll(host.now()) {
                if frame.off == Some(196_608) && !lost {
                    lost = true;
                    continue;
                }
                host.send(frame).await;
            }
            if let Some(StreamFrame { acked_off: Some(acked), window: Some(window), .. }) = host.next().await
            {
                sender.ack(acked, window, host.now()).unwrap();
            }
        }
        assert!(lost && sender.resent() > 0);
        host.end(result(size)).await;
    });
    let client = connect(&bus).await;
    let subject = client.guest_subject(&token("web"), "get").unwrap();
    let request = GetRequest { path: "/x".into(), ..GetRequest::default() };
    let opening = client.open(&subject, &request, CallOptions::change(SOON)).await.unwrap();
    let opened: StreamOpened = opening.reply().unwrap();
    let (ours, mut theirs) = tokio::io::duplex(8 * 1024);
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        got
    });
    let output = Output { channel: Channel::Data, writer: Box::new(ours) };
    let session = opening.session(&opened).unwrap();
    let got: FileResult = session.run(None, vec![output], CancellationToken::new()).await.unwrap();
    assert_eq!(got.size_bytes, data.len() as u64);
    assert!(reading.await.unwrap() == data, "other bytes arrived");
    host.await.unwrap();
}

#[tokio::test]
async fn a_cancel_reaches_the_host_and_ends_the_stream() {
    let Some(bus) = TestBus::start().await else { return };
    let opening_host = Host::open(&bus, "put").await;
    let host = tokio::spawn(async move {
        let mut host = opening_host.await.unwrap();
        loop {
            if host.next().await.is_some_and(|frame| frame.cancel) {
                let error = ErrorBody::new(ErrorCode::Conflict, "cancelled").with("cause", "cancelled");
                return host.end(StreamEnd::Error(error)).await;
            }
        }
    });
    let client = connect(&bus).await;
    let request = PutRequest { path: "/x".into(), size_bytes: 9, ..PutRequest::default() };
    let subject = client.guest_subject(&token("web"), "put").unwrap();
    let opening = client.open(&subject, &request, CallOptions::change(SOON)).await.unwrap();
    let opened: StreamOpened = opening.reply().unwrap();
    let (ours, _kept_open) = tokio::io::duplex(64);
    let input = Input { channel: Channel::Data, reader: Box::new(ours) };
    let cancel = CancellationToken::new();
    cancel.cancel();
    let got = opening.session(&opened).unwrap().run::<FileResult>(Some(input), Vec::new(), cancel).await;
    assert!(matches!(got, Err(ClientError::Cancelled)), "{got:?}");
    host.await.unwrap();
}

#[tokio::test]
async fn a_subject_that_is_no_stream_is_never_published_to() {
    let Some(bus) = TestBus::start().await else { return };
    let _host = super::respond(&bus, "cmd.default.vm.web.guest.get", |_, _| {
        let opened = StreamOpened { io_subject: "$JS.API.STREAM.DELETE.X".into(), window: 1 };
        Some(super::ok(&opened))
    })
    .await;
    let client = connect(&bus).await;
    let subject = client.guest_subject(&token("web"), "get").unwrap();
    let request = GetRequest { path: "/x".into(), ..GetRequest::default() };
    let opening = client.open(&subject, &request, CallOptions::change(SOON)).await.unwrap();
    let opened: StreamOpened = opening.reply().unwrap();
    assert!(matches!(opening.session(&opened), Err(ClientError::Refused(_))));
}
