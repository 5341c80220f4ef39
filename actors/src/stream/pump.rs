//! Moving the bytes of one stream, and what its end is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use drover_schemas::body::guest::ExecControl;
use drover_schemas::guest as proto;
use drover_schemas::stream::{
    Channel, KEEP_ALIVE_MS, MAX_CHUNK, Receiver, Sender, StreamEnd, StreamError, StreamFrame,
};
use drover_schemas::{ErrorBody, ErrorCode, codec};
use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::lane::{Lane, Lanes};
use super::{Far, Finish, Opening, Shape, Streams, WINDOW, linger};
use crate::bus::connect::{Bus, BusState};
use crate::guest::StreamEvent;
use crate::metrics::Metrics;

/// A connection that takes a frame no sooner is as good as lost; the frame is sent again.
const PUBLISH: Duration = Duration::from_secs(5);

/// The way to the client.
pub(super) struct Outlet {
    pub(super) streams: Streams,
    control: Bus,
    inbox: async_nats::Subject,
    lanes: Lanes,
    began: Instant,
    said: Instant,
    /// The client was heard, so it has the reply and frames may overtake each other.
    heard_once: bool,
    connects: [watch::Receiver<BusState>; 2],
    seen: [u64; 2],
}

impl Outlet {
    fn new(streams: &Streams, control: Bus, inbox: async_nats::Subject, shape: &Shape) -> Self {
        let now = Instant::now();
        let lanes = Lanes::of(shape.channels());
        let home = match lanes.home() {
            Lane::Control => &control,
            Lane::Bulk => &streams.bulk,
        };
        let connects = [home.state.clone(), streams.bulk.state.clone()];
        let seen = connects.each_ref().map(|state| state.borrow().connects);
        Self {
            streams: streams.clone(),
            control,
            inbox,
            lanes,
            began: now,
            said: now,
            heard_once: false,
            connects,
            seen,
        }
    }

    /// The newest inbox counts: the client may have connected anew.
    pub(super) fn follow(&mut self, frame: &Message) {
        self.heard_once = true;
        let Some(reply) = &frame.reply else { return };
        if self.streams.policy.allows(reply) {
            self.inbox = reply.clone();
        } else {
            self.streams.audit.refused_frame(&frame.subject, frame.headers.as_ref(), reply);
        }
    }

    /// A connection that this stream may use is back after it was lost.
    pub(super) async fn reconnected(&mut self) {
        let [home, bulk] = &mut self.connects;
        let [seen_home, seen_bulk] = self.seen;
        let alive = tokio::select! {
            state = home.wait_for(|s| s.connects > seen_home) => state.is_ok(),
            state = bulk.wait_for(|s| s.connects > seen_bulk) => state.is_ok(),
        };
        if !alive {
            // The host ends.
            return std::future::pending().await;
        }
        self.seen = self.connects.each_ref().map(|state| state.borrow().connects);
    }

    const fn on(&self, lane: Lane) -> &Bus {
        match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.streams.bulk,
        }
    }

    fn connected(&self) -> bool {
        self.on(self.lanes.home()).state.borrow().connected
    }

    /// Sends a frame; whether the connection took it.
    pub(super) async fn publish(&mut self, frame: &StreamFrame) -> bool {
        let len = frame.data.as_ref().map_or(0, |data| data.0.len());
        // The end of a channel too must not overtake its bytes: it would be lost.
        let mut lane = match frame.off {
            None => self.lanes.home(),
            Some(_) => self.lanes.of_data(len, self.began.elapsed()),
        };
        if !self.heard_once || !self.on(lane).state.borrow().connected {
            lane = self.lanes.home();
        }
        self.said = Instant::now();
        let bytes = match codec::encode(frame) {
            Ok(bytes) => bytes,
            Err(error) => {
                debug!(%error, "a frame could not be encoded");
                return false;
            }
        };
        let sent = self.on(lane).client.publish(self.inbox.clone(), bytes.into());
        match timeout(PUBLISH, sent).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%error, "a frame could not be published; it is sent again");
                false
            }
            Err(_) => {
                debug!(?lane, "a connection takes no frames");
                false
            }
        }
    }
}

struct Pump<'a> {
    outlet: Outlet,
    metrics: &'a Metrics,
    far: Arc<Far>,
    shape: Shape,
    down: BTreeMap<u8, Sender>,
    up: Option<Up>,
    /// What the client wants of a command; passed on at once.
    ctl: Option<Receiver>,
    heard: Instant,
    end: Option<StreamEnd>,
    /// The client gave up, and waits for nothing.
    cancelled: bool,
    /// What the metrics know of resent bytes.
    resent: u64,
}

/// The way from the client to the guest. A task of its own waits for the guest's credit; what it holds is
/// bounded by the window, which is counted from what has gone on. It ends with the stream, also when the guest
/// takes nothing: it must not keep the work in the guest alive.
struct Up {
    receiver: Receiver,
    window: u64,
    queue: mpsc::UnboundedSender<(Bytes, bool)>,
    forwarded: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Up {
    fn start(channel: Channel, far: Arc<Far>, progress: Arc<Notify>) -> Self {
        let (queue, mut queued) = mpsc::unbounded_channel::<(Bytes, bool)>();
        let forwarded = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&forwarded);
        let task = tokio::spawn(async move {
            while let Some((data, eof)) = queued.recv().await {
                let len = data.len() as u64;
                far.send(channel, data, eof).await;
                count.fetch_add(len, Ordering::Relaxed);
                progress.notify_one();
            }
        });
        let window = super::up_window(channel);
        let receiver = Receiver::new(channel, window);
        Self { receiver, window, queue, forwarded, _task: AbortOnDropHandle::new(task) }
    }

    fn poll_ack(&mut self, now: u64) -> Option<StreamFrame> {
        let may = self.forwarded.load(Ordering::Relaxed) + self.window;
        let window = may.saturating_sub(self.receiver.received());
        if may >= self.receiver.limit() + self.window / 4 {
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
        Channel::Ctl => 4,
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

/// Moves bytes until the far end's outcome was sent and acknowledged, or the client is gone.
pub(super) async fn run(metrics: &Metrics, streams: &Streams, opening: Opening, far: Far, finish: Finish) {
    let Opening { mut frames, inbox, shape, held, control, .. } = opening;
    let far = Arc::new(far);
    let progress = Arc::new(Notify::new());
    let mut pump = Pump {
        outlet: Outlet::new(streams, control, inbox, &shape),
        metrics,
        far: Arc::clone(&far),
        shape,
        down: shape.down.iter().map(|ch| (index(*ch), Sender::new(*ch, WINDOW))).collect(),
        up: shape.up.map(|ch| Up::start(ch, Arc::clone(&far), Arc::clone(&progress))),
        ctl: shape.ctl.then(|| Receiver::new(Channel::Ctl, super::up_window(Channel::Ctl))),
        heard: Instant::now(),
        end: None,
        cancelled: false,
        resent: 0,
    };
    drop(far);
    metrics.streams.inc();
    let ended = pump.work(&mut frames, &progress, finish).await;
    metrics.streams.dec();
    let cancelled = pump.cancelled;
    // The work in the guest, the place and the memory are free, whoever hears of it.
    let mut outlet = pump.into_outlet();
    drop(held);
    match ended {
        Some(end) if cancelled => {
            outlet.publish(&StreamFrame { end: Some(end), ..StreamFrame::default() }).await;
        }
        Some(end) => linger::tell(outlet, frames, end).await,
        None => {}
    }
}

impl Pump<'_> {
    fn into_outlet(self) -> Outlet {
        self.outlet
    }

    /// Gives the outcome for the client; none if the host ends.
    async fn work(
        &mut self,
        frames: &mut async_nats::Subscriber,
        progress: &Notify,
        finish: Finish,
    ) -> Option<StreamEnd> {
        let mut finish = Some(finish);
        loop {
            if self.end.is_some() && self.down.values().all(Sender::done) {
                return self.end.take();
            }
            self.send_due().await;
            let wake = self.wake_at();
            // A window that is full leaves the guest's bytes where they are.
            let may_receive = self.end.is_none() && self.down.values().all(|s| s.room() >= MAX_CHUNK);
            tokio::select! {
                message = frames.next() => {
                    if let Err(error) = self.on_message(message?) {
                        return Some(StreamEnd::Error(error));
                    }
                }
                event = self.far.recv(), if may_receive => self.on_guest(event, &mut finish),
                () = progress.notified() => {}
                () = self.outlet.reconnected() => {
                    let now = self.now_ms();
                    self.down.values_mut().for_each(|sender| sender.resend(now));
                    self.up.iter_mut().for_each(|up| up.receiver.repeat());
                    self.ctl.iter_mut().for_each(Receiver::repeat);
                }
                () = sleep_until(wake) => {
                    if self.heard.elapsed() > self.outlet.streams.peer_lost {
                        debug!("the client of a stream is gone");
                        return Some(StreamEnd::Error(self.lost()));
                    }
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.outlet.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The client was not heard: how far both ways are, so that somebody may go on from there.
    fn lost(&self) -> ErrorBody {
        let acked: u64 = self.down.values().map(Sender::acked).sum();
        let received = self.up.as_ref().map_or(0, |up| up.receiver.received());
        let seconds = self.outlet.streams.peer_lost.as_secs_f64();
        let text = format!("the client of the stream was not heard for {seconds:.0} s");
        ErrorBody::new(ErrorCode::Unavailable, text).with("acked_off", acked).with("received_off", received)
    }

    fn wake_at(&self) -> Instant {
        let keep_alive = self.outlet.said + Duration::from_millis(KEEP_ALIVE_MS);
        let lost = self.heard + self.outlet.streams.peer_lost + Duration::from_millis(10);
        let acks = self.up.iter().map(|up| &up.receiver).chain(&self.ctl).filter_map(Receiver::wake_at_ms);
        let ends = self.down.values().filter_map(Sender::wake_at_ms).chain(acks).min();
        let ends = ends.filter(|_| self.outlet.connected());
        let ends = ends.map_or(lost, |ms| self.outlet.began + Duration::from_millis(ms));
        keep_alive.min(lost).min(ends).max(Instant::now() + Duration::from_millis(1))
    }

    async fn send_due(&mut self) {
        // Without a connection whatever is sent would only wait in a queue, once for each resend.
        if !self.outlet.connected() {
            self.outlet.said = Instant::now();
            return;
        }
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
        frames.extend(self.ctl.as_mut().and_then(|ctl| ctl.poll_ack(super::up_window(Channel::Ctl), now)));
        if frames.is_empty() && self.outlet.said.elapsed() >= Duration::from_millis(KEEP_ALIVE_MS) {
            frames.push(StreamFrame { keep_alive: true, ..StreamFrame::default() });
        }
        for frame in frames {
            let len = frame.data.as_ref().map_or(0, |data| data.0.len());
            self.metrics.stream_sent_bytes.inc_by(len as u64);
            if !self.outlet.publish(&frame).await {
                break;
            }
        }
        let resent = self.down.values().map(Sender::resent).sum();
        self.metrics.stream_resent_bytes.inc_by(resent - self.resent);
        self.resent = resent;
    }

    fn on_message(&mut self, message: Message) -> Result<(), ErrorBody> {
        self.heard = Instant::now();
        self.outlet.follow(&message);
        let frame: StreamFrame = codec::decode(&message.payload).map_err(|e| {
            ErrorBody::new(ErrorCode::InvalidArgument, format!("a frame cannot be read: {e}"))
        })?;
        if frame.cancel {
            self.cancelled = true;
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
            (Some(Channel::Ctl), None, Some(off)) => {
                if let Some(ctl) = &mut self.ctl
                    && let Some(fresh) =
                        ctl.data(off, frame.data.unwrap_or_default().0, frame.eof).map_err(broken)?
                {
                    let controls: Vec<ExecControl> = codec::decode_each(&fresh).map_err(|e| {
                        let text = format!("what was sent on ctl cannot be read: {e}");
                        ErrorBody::new(ErrorCode::InvalidArgument, text)
                    })?;
                    controls.into_iter().for_each(|control| self.far.control(control));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_guest(&mut self, event: Option<StreamEvent>, finish: &mut Option<Finish>) {
        let now = self.now_ms();
        let end = match event {
            Some(StreamEvent::Head(_)) => return,
            Some(StreamEvent::Data { ch, off, data, eof }) => {
                let end = off + data.len() as u64;
                if let Some(sender) = self.down.get_mut(&index(from_proto(ch))) {
                    sender.push(data, now);
                    if eof {
                        sender.finish(now);
                    }
                }
                return self.far.grant(ch, end + WINDOW);
            }
            Some(StreamEvent::End(end)) => end.and_then(|bytes| match finish.take() {
                Some(finish) => finish(&bytes),
                None => Ok(bytes),
            }),
            None => Err(ErrorBody::new(
                ErrorCode::GuestUnreachable,
                "the link to the agent ended before the stream did",
            )),
        };
        self.end = Some(match end {
            Ok(bytes) => StreamEnd::Result(bytes.into()),
            Err(error) => StreamEnd::Error(error),
        });
        for sender in self.down.values_mut() {
            sender.finish(now);
        }
    }
}
