//! The ends of a stream on this machine: a source of bytes and any number of sinks.
//!
//! A sink is written by a task of its own, so that a slow terminal or disk delays no keep-alive; the
//! window that the host gets is what the sink has room for, so memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use drover_schemas::stream::{Channel, MAX_CHUNK, MAX_WINDOW, Receiver, Sender, StreamError, StreamFrame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::ClientError;

/// Where a channel's bytes come from.
pub struct Input {
    /// The channel.
    pub channel: Channel,
    /// The source; its end ends the channel.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
}

/// Where a channel's bytes go.
pub struct Output {
    /// The channel.
    pub channel: Channel,
    /// The sink; flushed whenever nothing waits for it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// The sending half: the source and the engine of its channel.
pub(super) struct Outgoing {
    input: Option<Input>,
    channel: Option<Channel>,
    sender: Option<Sender>,
    buffer: BytesMut,
}

impl Outgoing {
    pub(super) fn new(input: Option<Input>, window: u64) -> Self {
        let channel = input.as_ref().map(|i| i.channel);
        let sender = channel.map(|channel| Sender::new(channel, window));
        Self { input, channel, sender, buffer: BytesMut::new() }
    }

    pub(super) fn poll(&mut self, now: u64) -> Option<StreamFrame> {
        self.sender.as_mut()?.poll(now)
    }

    pub(super) fn wants_input(&self) -> bool {
        self.input.is_some() && self.sender.as_ref().is_some_and(|s| s.room() > 0)
    }

    /// Reads once. Cancel safe: what was read is in the buffer or not read.
    pub(super) async fn read(&mut self, now: u64) -> Result<(), ClientError> {
        let (Some(input), Some(sender)) = (&mut self.input, &mut self.sender) else { return Ok(()) };
        let limit = sender.room().min(MAX_CHUNK);
        self.buffer.reserve(limit);
        let mut limited = (&mut self.buffer).limit(limit);
        let count = input.reader.read_buf(&mut limited).await.map_err(ClientError::Input)?;
        if count == 0 {
            self.input = None;
            sender.finish(now);
        } else {
            sender.push(self.buffer.split().freeze(), now);
        }
        Ok(())
    }

    pub(super) fn ack(
        &mut self,
        ch: Channel,
        acked_off: u64,
        window: u64,
        now: u64,
    ) -> Result<(), ClientError> {
        let Some(sender) = self.sender.as_mut().filter(|_| self.channel == Some(ch)) else { return Ok(()) };
        sender.ack(acked_off, window, now).map_err(ClientError::Stream)
    }

    /// The connection is back after it was lost.
    pub(super) fn resend(&mut self, now: u64) {
        if let Some(sender) = &mut self.sender {
            sender.resend(now);
        }
    }

    /// Bytes that were sent again.
    pub(super) fn resent(&self) -> u64 {
        self.sender.as_ref().map_or(0, Sender::resent)
    }

    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        self.sender.as_ref().and_then(Sender::wake_at_ms)
    }

    pub(super) fn acked(&self) -> u64 {
        self.sender.as_ref().map_or(0, Sender::acked)
    }
}

/// The receiving half: all sinks.
pub(super) struct Incoming {
    sinks: Vec<Sink>,
    drained: Arc<Notify>,
}

struct Sink {
    receiver: Receiver,
    channel: Channel,
    queue: Option<mpsc::UnboundedSender<Bytes>>,
    task: Option<JoinHandle<std::io::Result<()>>>,
    written: Arc<AtomicU64>,
    /// How far the host may send, as it was last told.
    granted: u64,
    /// The furthest byte that was seen, in order or not.
    seen: u64,
}

impl Incoming {
    pub(super) fn new(outputs: Vec<Output>) -> Self {
        let drained = Arc::new(Notify::new());
        let sinks = outputs.into_iter().map(|output| Sink::start(output, &drained)).collect();
        Self { sinks, drained }
    }

    /// What tells the host how much this side takes.
    pub(super) fn first_acks(&mut self) -> Vec<StreamFrame> {
        self.sinks.iter_mut().map(|sink| sink.ack(0)).collect()
    }

    pub(super) fn acks(&mut self, now: u64) -> Vec<StreamFrame> {
        self.sinks.iter_mut().filter_map(|sink| sink.poll_ack(now)).collect()
    }

    /// The connection is back after it was lost.
    pub(super) fn repeat_acks(&mut self) {
        self.sinks.iter_mut().for_each(|sink| sink.receiver.repeat());
    }

    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        self.sinks.iter().filter_map(|sink| sink.receiver.wake_at_ms()).min()
    }

    pub(super) fn data(&mut self, ch: Channel, off: u64, data: Bytes, eof: bool) -> Result<(), ClientError> {
        let Some(sink) = self.sinks.iter_mut().find(|s| s.channel == ch) else { return Ok(()) };
        sink.data(off, data, eof)
    }

    /// A sink has room again.
    pub(super) async fn drained(&self) {
        self.drained.notified().await;
    }

    /// Nothing that the host sent is missing.
    pub(super) fn complete(&self) -> bool {
        self.sinks.iter().all(|s| {
            let gap = s.seen > s.receiver.received();
            !gap && (s.channel != Channel::Data || s.receiver.ended())
        })
    }

    pub(super) fn received(&self) -> u64 {
        self.sinks.iter().map(|s| s.receiver.received()).sum()
    }

    /// Waits until every sink has written and flushed what it was given; at most `grace` each, for a
    /// stream that failed: its reader may have stopped reading.
    pub(super) async fn close(mut self, grace: Option<Duration>) -> Result<(), ClientError> {
        let mut outcome = Ok(());
        for sink in &mut self.sinks {
            outcome = outcome.and(match grace {
                Some(grace) => tokio::time::timeout(grace, sink.close()).await.unwrap_or(Ok(())),
                None => sink.close().await,
            });
        }
        outcome
    }
}

impl Sink {
    fn start(output: Output, drained: &Arc<Notify>) -> Self {
        let (queue, rest) = mpsc::unbounded_channel();
        let written = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(write(output.writer, rest, Arc::clone(&written), Arc::clone(drained)));
        Self {
            receiver: Receiver::new(output.channel, MAX_WINDOW),
            channel: output.channel,
            queue: Some(queue),
            task: Some(task),
            written,
            granted: MAX_WINDOW,
            seen: 0,
        }
    }

    /// How much the sink takes beyond what was received.
    fn window(&self) -> u64 {
        let waiting = self.receiver.received() - self.written.load(Ordering::Acquire);
        MAX_WINDOW.saturating_sub(waiting)
    }

    fn ack(&mut self, now: u64) -> StreamFrame {
        let window = self.window();
        self.note_ack(window);
        self.receiver.ack(window, now)
    }

    fn poll_ack(&mut self, now: u64) -> Option<StreamFrame> {
        let window = self.window();
        let regained = (self.receiver.received() + window).saturating_sub(self.granted);
        if regained >= MAX_WINDOW / 4 && !self.receiver.ended() {
            return Some(self.ack(now));
        }
        let frame = self.receiver.poll_ack(window, now)?;
        self.note_ack(window);
        Some(frame)
    }

    fn note_ack(&mut self, window: u64) {
        self.granted = self.granted.max(self.receiver.received() + window);
    }

    fn data(&mut self, off: u64, data: Bytes, eof: bool) -> Result<(), ClientError> {
        self.seen = self.seen.max(off.saturating_add(data.len() as u64));
        let fresh = match self.receiver.data(off, data, eof) {
            Ok(fresh) => fresh,
            // A frame from before the last acknowledgement may cross a shrunken window; it comes again.
            Err(StreamError::BeyondWindow { .. }) if off > self.receiver.received() => None,
            Err(error) => return Err(ClientError::Stream(error)),
        };
        let Some(fresh) = fresh.filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        if self.queue.as_ref().is_none_or(|queue| queue.send(fresh).is_err()) {
            // The task has ended with the error that `close` reports.
            let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            return Err(ClientError::Output(gone));
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), ClientError> {
        self.queue = None;
        let Some(task) = self.task.take() else { return Ok(()) };
        match task.await {
            Ok(written) => written.map_err(ClientError::Output),
            Err(panicked) => Err(ClientError::Output(std::io::Error::other(panicked))),
        }
    }
}

async fn write(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    written: Arc<AtomicU64>,
    drained: Arc<Notify>,
) -> std::io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        writer.write_all(&bytes).await?;
        if queue.is_empty() {
            writer.flush().await?;
        }
        written.fetch_add(bytes.len() as u64, Ordering::Release);
        drained.notify_one();
    }
    writer.flush().await?;
    writer.shutdown().await
}
