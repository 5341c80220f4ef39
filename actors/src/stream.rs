//! The host's end of a stream: between a client on the bus and the agent of a guest, or a VM's console.
//!
//! Bytes are read from the guest only with room in the client's window, and taken from the client only
//! with room towards the guest, so a slow end slows the other and memory stays within the windows. All
//! frames of streams go over the bulk connection.
//!
//! Unhappy paths: a frame that is lost is sent again; a client that is silent for a minute is given up;
//! a client that breaks the rules of a channel ends its stream with `invalid_argument`; an agent that is
//! lost ends it with `guest_unreachable`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use drover_schemas::guest as proto;
use drover_schemas::stream::{
    Channel, KEEP_ALIVE_MS, MAX_WINDOW, PEER_LOST_MS, Receiver, Sender, StreamEnd, StreamError, StreamFrame,
    StreamOpened,
};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, Token, codec};
use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::console::Console;
use crate::guest::{GuestStream, StreamEvent};
use crate::services::Services;

/// The window of each channel on the bus and towards the guest.
pub const WINDOW: u64 = MAX_WINDOW;

/// Which channels a stream has, and which way they go.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// From the guest to the client.
    pub down: &'static [Channel],
    /// From the client to the guest.
    pub up: Option<Channel>,
}

/// Where a stream's bytes come from and go to, beyond this host's end.
#[derive(Debug)]
pub enum Far {
    /// Work of the agent.
    Guest(GuestStream),
    /// The serial console.
    Console(Box<Console>),
}

impl Far {
    /// The next event; `None` after the end. Nothing is lost if the future is dropped.
    async fn recv(&self) -> Option<StreamEvent> {
        match self {
            Self::Guest(guest) => guest.recv().await,
            Self::Console(console) => console.recv().await,
        }
    }

    async fn send(&self, channel: Channel, data: Bytes, eof: bool) {
        match self {
            Self::Guest(guest) => {
                if let Err(error) = guest.send(to_proto(channel), data, eof).await {
                    // The guest's end of the stream, or of the link, comes to the pump.
                    debug!(%error, "the guest takes no more");
                }
            }
            Self::Console(console) => console.send(&data, eof).await,
        }
    }

    /// Lets bytes below `limit` come. A console's are read when they are wanted.
    fn grant(&self, channel: proto::Channel, limit: u64) {
        if let Self::Guest(guest) = self {
            guest.grant(channel, limit);
        }
    }
}

/// Makes the client's result of the agent's.
pub type Finish = Box<dyn FnOnce(&[u8]) -> Result<Bytes, ErrorBody> + Send>;

/// A stream that was opened on the bus and whose reply is not sent yet.
#[derive(Debug)]
pub struct Opening {
    frames: async_nats::Subscriber,
    inbox: async_nats::Subject,
    /// The reply for the client.
    pub opened: StreamOpened,
}

/// Subscribes for a client's frames.
///
/// # Errors
/// `invalid_argument` without a reply subject, `unavailable` without the bus.
pub async fn open(
    services: &Services,
    namespace: &Token,
    inbox: Option<&async_nats::Subject>,
) -> Result<Opening, ErrorBody> {
    let Some(inbox) = inbox.cloned() else {
        return Err(ErrorBody::new(
            ErrorCode::InvalidArgument,
            "a stream needs a reply subject for its frames",
        ));
    };
    let token = format!("{:032x}", rand::random::<u128>());
    let token = Token::new(&token).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
    let io_subject = services.subjects.build(&Subject::Io { ns: namespace.clone(), token });
    let unavailable = |e: &dyn std::fmt::Display| {
        ErrorBody::new(ErrorCode::Unavailable, format!("the stream could not be opened: {e}"))
    };
    let frames = services.bulk.subscribe(io_subject.clone()).await.map_err(|e| unavailable(&e))?;
    // The client may send at once: the server must know of the subscription before the reply leaves.
    services.bulk.flush().await.map_err(|e| unavailable(&e))?;
    Ok(Opening { frames, inbox, opened: StreamOpened { io_subject, window: WINDOW } })
}

struct Pump<'a> {
    services: &'a Services,
    inbox: async_nats::Subject,
    far: Arc<Far>,
    shape: Shape,
    began: Instant,
    down: BTreeMap<u8, Sender>,
    up: Option<Up>,
    heard: Instant,
    said: Instant,
    end: Option<StreamEnd>,
}

/// The way from the client to the guest. A task of its own waits for the guest's credit; what it holds is
/// bounded by the window, which is counted from what has gone on.
struct Up {
    receiver: Receiver,
    queue: mpsc::UnboundedSender<(Bytes, bool)>,
    forwarded: Arc<AtomicU64>,
}

impl Up {
    fn start(channel: Channel, far: Arc<Far>, progress: Arc<Notify>) -> Self {
        let (queue, mut queued) = mpsc::unbounded_channel::<(Bytes, bool)>();
        let forwarded = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&forwarded);
        tokio::spawn(async move {
            while let Some((data, eof)) = queued.recv().await {
                let len = data.len() as u64;
                far.send(channel, data, eof).await;
                count.fetch_add(len, Ordering::Relaxed);
                progress.notify_one();
            }
        });
        Self { receiver: Receiver::new(channel, WINDOW), queue, forwarded }
    }

    fn poll_ack(&mut self, now: u64) -> Option<StreamFrame> {
        let may = self.forwarded.load(Ordering::Relaxed) + WINDOW;
        let window = may.saturating_sub(self.receiver.received());
        if may >= self.receiver.limit() + WINDOW / 4 {
            return Some(self.receiver.ack(window, now));
        }
        self.receiver.poll_ack(window, now)
    }
}

const fn index(channel: Channel) -> u8 {
    match channel {
        Channel::Stdin => 0,
        Channel::Stdout => 1,
        Channel::Stderr => 2,
        Channel::Data => 3,
    }
}

const fn to_proto(channel: Channel) -> proto::Channel {
    match channel {
        Channel::Stdin => proto::Channel::Stdin,
        Channel::Stdout => proto::Channel::Stdout,
        Channel::Stderr => proto::Channel::Stderr,
        Channel::Data => proto::Channel::Data,
    }
}

const fn from_proto(channel: proto::Channel) -> Channel {
    match channel {
        proto::Channel::Stdin => Channel::Stdin,
        proto::Channel::Stdout => Channel::Stdout,
        proto::Channel::Stderr => Channel::Stderr,
        proto::Channel::Data => Channel::Data,
    }
}

/// Moves bytes until the agent's end was sent and acknowledged, or the client is gone.
pub async fn run(services: &Services, opening: Opening, far: Far, shape: Shape, finish: Finish) {
    let now = Instant::now();
    let mut frames = opening.frames;
    let far = Arc::new(far);
    let progress = Arc::new(Notify::new());
    let mut pump = Pump {
        services,
        inbox: opening.inbox,
        far: Arc::clone(&far),
        shape,
        began: now,
        down: shape.down.iter().map(|ch| (index(*ch), Sender::new(*ch, WINDOW))).collect(),
        up: shape.up.map(|ch| Up::start(ch, Arc::clone(&far), Arc::clone(&progress))),
        heard: now,
        said: now,
        end: None,
    };
    let mut finish = Some(finish);
    loop {
        if pump.end.is_some() && pump.down.values().all(Sender::done) {
            break;
        }
        pump.send_due().await;
        let wake = pump.wake_at();
        // A window that is full leaves the guest's bytes where they are.
        let may_receive =
            pump.end.is_none() && pump.down.values().all(|s| s.room() >= drover_schemas::stream::MAX_CHUNK);
        tokio::select! {
            message = frames.next() => match message {
                Some(message) => {
                    if let Err(error) = pump.on_message(message) {
                        pump.finish_with(StreamEnd::Error(error)).await;
                        return;
                    }
                }
                None => return,
            },
            event = pump.far.recv(), if may_receive => {
                pump.on_guest(event, &mut finish);
            }
            () = progress.notified() => {}
            () = sleep_until(wake) => {
                if pump.heard.elapsed() > Duration::from_millis(PEER_LOST_MS) {
                    debug!("the client of a stream is gone");
                    let lost = ErrorBody::new(ErrorCode::Unavailable, pump.lost_message());
                    pump.finish_with(StreamEnd::Error(lost)).await;
                    return;
                }
            }
        }
    }
    if let Some(end) = pump.end.take() {
        pump.finish_with(end).await;
    }
}

impl Pump<'_> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lost_message(&self) -> String {
        let sent: Vec<String> = self.down.values().map(|s| s.acked().to_string()).collect();
        let got = self.up.as_ref().map_or(0, |up| up.receiver.received());
        format!("the client was silent for a minute; acknowledged {} bytes, received {got}", sent.join("+"))
    }

    fn wake_at(&self) -> Instant {
        let keep_alive = self.said + Duration::from_millis(KEEP_ALIVE_MS);
        let lost = self.heard + Duration::from_millis(PEER_LOST_MS + 10);
        let resend = self.down.values().filter_map(Sender::wake_at_ms).min();
        let resend = resend.map_or(lost, |ms| self.began + Duration::from_millis(ms));
        keep_alive.min(lost).min(resend).max(Instant::now() + Duration::from_millis(1))
    }

    async fn send_due(&mut self) {
        let now = self.now_ms();
        let mut frames = Vec::new();
        for sender in self.down.values_mut() {
            while let Some(frame) = sender.poll(now) {
                frames.push(frame);
            }
        }
        if let Some(ack) = self.up.as_mut().and_then(|up| up.poll_ack(now)) {
            frames.push(ack);
        }
        if frames.is_empty() && self.said.elapsed() >= Duration::from_millis(KEEP_ALIVE_MS) {
            frames.push(StreamFrame { keep_alive: true, ..StreamFrame::default() });
        }
        for frame in frames {
            self.publish(&frame).await;
        }
    }

    async fn publish(&mut self, frame: &StreamFrame) {
        self.said = Instant::now();
        match codec::encode(frame) {
            Ok(bytes) => {
                if let Err(error) = self.services.bulk.publish(self.inbox.clone(), bytes.into()).await {
                    debug!(%error, "a frame could not be published; it is sent again");
                }
            }
            Err(error) => debug!(%error, "a frame could not be encoded"),
        }
    }

    async fn finish_with(&mut self, end: StreamEnd) {
        self.publish(&StreamFrame { end: Some(end), ..StreamFrame::default() }).await;
    }

    fn on_message(&mut self, message: Message) -> Result<(), ErrorBody> {
        self.heard = Instant::now();
        if let Some(reply) = message.reply
            && crate::ingress::request::ReplyPolicy::new(&[]).allows(&reply)
        {
            // The newest inbox counts: the client may have connected anew.
            self.inbox = reply;
        }
        let frame: StreamFrame = codec::decode(&message.payload).map_err(|e| {
            ErrorBody::new(ErrorCode::InvalidArgument, format!("a frame cannot be read: {e}"))
        })?;
        if frame.cancel {
            return Err(ErrorBody::new(ErrorCode::Conflict, "the client cancelled the stream")
                .with("cause", "cancelled"));
        }
        let broken = |e: StreamError| {
            ErrorBody::new(ErrorCode::InvalidArgument, format!("the client broke the stream: {e}"))
        };
        let now = self.now_ms();
        match (frame.ch, frame.acked_off, frame.off) {
            (Some(channel), Some(acked), _) => {
                if let Some(sender) = self.down.get_mut(&index(channel)) {
                    sender.ack(acked, frame.window.unwrap_or(0), now).map_err(broken)?;
                }
            }
            (Some(channel), None, Some(off)) if self.shape.up == Some(channel) => {
                if let Some(up) = &mut self.up {
                    let data = frame.data.unwrap_or_default().0;
                    if let Some(fresh) = up.receiver.data(off, data, frame.eof).map_err(broken)? {
                        let _ = up.queue.send((fresh, frame.eof));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_guest(&mut self, event: Option<StreamEvent>, finish: &mut Option<Finish>) {
        let now = self.now_ms();
        match event {
            Some(StreamEvent::Head(_)) => {}
            Some(StreamEvent::Data { ch, off, data, eof }) => {
                let end = off + data.len() as u64;
                if let Some(sender) = self.down.get_mut(&index(from_proto(ch))) {
                    sender.push(data, now);
                    if eof {
                        sender.finish(now);
                    }
                }
                self.far.grant(ch, end + WINDOW);
            }
            Some(StreamEvent::End(end)) => {
                let end = end.and_then(|bytes| match finish.take() {
                    Some(finish) => finish(&bytes),
                    None => Ok(bytes),
                });
                self.end = Some(match end {
                    Ok(bytes) => StreamEnd::Result(bytes.into()),
                    Err(error) => StreamEnd::Error(error),
                });
                for sender in self.down.values_mut() {
                    sender.finish(now);
                }
            }
            None => {
                let lost = ErrorBody::new(
                    ErrorCode::GuestUnreachable,
                    "the link to the agent ended before the stream did",
                );
                self.end = Some(StreamEnd::Error(lost));
                for sender in self.down.values_mut() {
                    sender.finish(now);
                }
            }
        }
    }
}
