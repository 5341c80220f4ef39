//! A client's end of a stream that does what a test tells it, frame by frame.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use drover_schemas::blob::Blob;
use drover_schemas::codec;
use drover_schemas::stream::{Channel, StreamFrame, StreamOpened};
use drover_schemas::{ErrorBody, RequestId, headers};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::client::{Bus, Failure};
use crate::wait::{PATIENCE, patience_factor};

/// How much later than the deadline a reply may come.
const GRACE: Duration = Duration::from_secs(2);

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    nats: Client,
    inbox: String,
    frames: Subscriber,
    /// What the host said of it.
    pub opened: StreamOpened,
}

#[derive(Deserialize)]
struct Told {
    stream: StreamOpened,
}

impl Stream {
    /// Asks for a stream and says where its client is.
    ///
    /// # Errors
    /// As the host says.
    ///
    /// # Panics
    /// The reply is not one.
    pub async fn open(bus: &Bus, tail: &str, body: &Value) -> Result<Self, Failure> {
        Self::open_as(bus, tail, body, RequestId::generate(), PATIENCE * patience_factor()).await
    }

    /// As [`Self::open`], with this id of the request and its deadline.
    ///
    /// # Errors
    /// As the host says, or that it says nothing.
    ///
    /// # Panics
    /// As [`Self::open`].
    pub async fn open_as(
        bus: &Bus,
        tail: &str,
        body: &Value,
        id: RequestId,
        within: Duration,
    ) -> Result<Self, Failure> {
        let nats = bus.nats.clone();
        let inbox = nats.new_inbox();
        let mut frames = nats.subscribe(inbox.clone()).await.expect("a subscription");
        let subject = format!("drover.v1.cmd.default.{tail}");
        let mut sent = HeaderMap::new();
        sent.insert(headers::REQUEST_ID, id.to_string().as_str());
        sent.insert(headers::DEADLINE_MS, within.as_millis().to_string().as_str());
        let body = codec::encode(body).expect("a body");
        nats.publish_with_reply_and_headers(subject.clone(), inbox.clone(), sent, body.into())
            .await
            .expect("a request");
        let Ok(reply) = timeout(within + GRACE, frames.next()).await else {
            return Err(Failure::Silence(format!("no reply within {within:?}")));
        };
        let reply = reply.expect("a connection");
        if reply.status.is_some() {
            return Err(Failure::Nobody);
        }
        let failed = reply.headers.as_ref().is_some_and(|h| h.get(headers::ERROR_CODE).is_some());
        if failed {
            let error: ErrorBody = codec::decode(&reply.payload).expect("an error");
            return Err(Failure::Coded(error));
        }
        // Alone, or beside more that the verb says.
        let opened = match codec::decode::<Told>(&reply.payload) {
            Ok(told) => told.stream,
            Err(_) => codec::decode(&reply.payload).expect("a stream"),
        };
        let this = Self { nats, inbox, frames, opened };
        this.here().await;
        Ok(this)
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// The connection has ended.
    pub async fn send(&self, frame: &StreamFrame) {
        self.publish(frame, None).await;
    }

    /// Says where the client is.
    pub async fn here(&self) {
        self.at(&self.inbox).await;
    }

    /// Says that the client is elsewhere.
    pub async fn at(&self, inbox: &str) {
        self.publish(&StreamFrame { keep_alive: true, ..StreamFrame::default() }, Some(inbox)).await;
    }

    /// Takes an inbox of its own anew, as a client that was away, and says so.
    ///
    /// # Panics
    /// The connection has ended.
    pub async fn move_on(&mut self) {
        self.inbox = self.nats.new_inbox();
        self.frames = self.nats.subscribe(self.inbox.clone()).await.expect("a subscription");
        self.here().await;
    }

    /// Sends bytes of a channel.
    pub async fn data(&self, ch: Channel, off: u64, data: &[u8]) {
        let data = Some(Blob(bytes::Bytes::copy_from_slice(data)));
        self.send(&StreamFrame { ch: Some(ch), off: Some(off), data, ..StreamFrame::default() }).await;
    }

    /// Acknowledges bytes of a channel.
    pub async fn ack(&self, ch: Channel, acked: u64, window: u64) {
        let (ch, acked_off, window) = (Some(ch), Some(acked), Some(window));
        self.send(&StreamFrame { ch, acked_off, window, ..StreamFrame::default() }).await;
    }

    /// Gives the stream up.
    pub async fn cancel(&self) {
        self.send(&StreamFrame { cancel: true, ..StreamFrame::default() }).await;
    }

    async fn publish(&self, frame: &StreamFrame, reply: Option<&str>) {
        let body: bytes::Bytes = codec::encode(frame).expect("a frame").into();
        let to = self.opened.io_subject.clone();
        match reply {
            Some(reply) => self.nats.publish_with_reply(to, reply.to_owned(), body).await,
            None => self.nats.publish(to, body).await,
        }
        .expect("a connection");
    }

    /// The next frame of the host.
    ///
    /// # Panics
    /// None comes, or one that is not as the contract says.
    pub async fn next(&mut self) -> StreamFrame {
        let message = message(&mut self.frames).await;
        codec::decode(&message.payload).expect("a frame")
    }

    /// The next frame of the host, if one comes in time.
    ///
    /// # Panics
    /// As [`Self::next`].
    pub async fn next_within(&mut self, within: Duration) -> Option<StreamFrame> {
        let message = timeout(within, self.frames.next()).await.ok()?.expect("a connection");
        Some(codec::decode(&message.payload).expect("a frame"))
    }

    /// A frame of the host that has come and was not taken yet.
    ///
    /// # Panics
    /// The connection has ended.
    pub fn waiting(&mut self) -> Option<StreamFrame> {
        let message = self.frames.next().now_or_never()?.expect("a connection");
        Some(codec::decode(&message.payload).expect("a frame"))
    }

    /// The next frame that `wanted` takes; others are dropped.
    ///
    /// # Panics
    /// As [`Self::next`].
    pub async fn find(&mut self, wanted: impl Fn(&StreamFrame) -> bool) -> StreamFrame {
        loop {
            let frame = self.next().await;
            if wanted(&frame) {
                return frame;
            }
        }
    }
}

async fn message(frames: &mut Subscriber) -> Message {
    let within = PATIENCE * patience_factor();
    timeout(within, frames.next()).await.expect("a frame comes in time").expect("a connection")
}
