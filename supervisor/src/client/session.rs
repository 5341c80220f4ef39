//! Opening a stream and moving its bytes: the client's half of `schemas::stream`.
//!
//! The client subscribes to an inbox of its own before it asks; the first message there is the
//! verb's reply, all later ones are frames. Frames to the host go to the reply's `io_subject`, the
//! first after each connect and every keep-alive with the inbox as reply subject, so that the host
//! always knows where the client is now.

use std::time::Duration;

use async_nats::Subscriber;
use async_nats::connection::State;
use bytes::Bytes;
use drover_schemas::codec;
use drover_schemas::stream::{KEEP_ALIVE_MS, PEER_LOST_MS, StreamEnd, StreamFrame, StreamOpened};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::lookup::{Absent, Patience};
use super::request::{Attempt, Backoff, read_reply, request_headers, silence};
use super::session_io::{Incoming, Input, Outgoing, Output};
use super::{CallOptions, Client, ClientError};

/// Opening is repeated later than other calls: a guest may take its time to start a program.
const OPEN_ATTEMPT: Duration = Duration::from_secs(15);
/// How long the host may take to confirm a cancel, and to resend what was lost before the end.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the sinks of a failed stream may take to write what they have.
const DISCARD: Duration = Duration::from_millis(500);
/// While there is no connection, it is looked for this often.
const OFFLINE_LOOK: Duration = Duration::from_millis(250);
/// After the host was absent, its return is asked for this often, in milliseconds.
const ABSENT_KEEP_ALIVE_MS: u64 = 1_000;

/// A stream verb that was answered.
#[derive(Debug)]
pub struct Opening {
    client: Client,
    subject: String,
    inbox: String,
    subscriber: Subscriber,
    first: Bytes,
}

impl Client {
    /// Asks for a stream.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn open<Q: Serialize + Sync>(
        &self,
        subject: &Subject,
        body: &Q,
        options: CallOptions,
    ) -> Result<Opening, ClientError> {
        let text = self.subjects.build(subject);
        let body: Bytes = codec::encode(body).map_err(ClientError::Encode)?.into();
        let inbox = self.nats.new_inbox();
        let mut subscriber = self
            .nats
            .subscribe(inbox.clone())
            .await
            .map_err(|source| ClientError::Subscribe { subject: inbox.clone(), source })?;
        let deadline = Instant::now() + options.deadline;
        let (mut backoff, mut patience) = (Backoff::new(), Patience::new(deadline));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let headers = request_headers(options.request_id, left);
            self.nats
                .publish_with_reply_and_headers(text.clone(), inbox.clone(), headers, body.clone())
                .await
                .map_err(|source| ClientError::Send { subject: text.clone(), source: Box::new(source) })?;
            let until = deadline.min(Instant::now() + OPEN_ATTEMPT);
            let attempt = match timeout_at(until, subscriber.next()).await {
                Ok(Some(message)) => read_reply(message),
                Ok(None) => return Err(ClientError::Closed),
                Err(_) => Attempt::Silence,
            };
            let failure = match attempt {
                Attempt::Reply(first) => {
                    return Ok(Opening { client: self.clone(), subject: text, inbox, subscriber, first });
                }
                Attempt::Error(error) => return Err(error.into()),
                Attempt::Silence => silence(&text, &options),
                Attempt::NoResponders => match self.absent(subject, &options, deadline).await {
                    Absent::Final(error) => return Err(error.into()),
                    Absent::Replay(_) => return Err(silence(&text, &options).into()),
                    Absent::Later(error) => patience.cut(error)?,
                },
            };
            match backoff.next(patience.deadline()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(failure.into()),
            }
        }
    }
}

impl Opening {
    /// The reply of the verb.
    ///
    /// # Errors
    /// The reply is not of this type.
    pub fn reply<R: DeserializeOwned>(&self) -> Result<R, ClientError> {
        codec::decode(&self.first)
            .map_err(|source| ClientError::Decode { subject: self.subject.clone(), source })
    }

    /// The stream that the reply names.
    ///
    /// # Errors
    /// The reply names a subject that is no stream: nothing is ever published there.
    pub fn session(self, opened: &StreamOpened) -> Result<Session, ClientError> {
        if !matches!(self.client.subjects.parse(&opened.io_subject), Some(Subject::Io { .. })) {
            let text = format!("the host named {:?} for the stream, which is none", opened.io_subject);
            return Err(ErrorBody::new(ErrorCode::Internal, text).into());
        }
        Ok(Session {
            client: self.client,
            inbox: self.inbox,
            subscriber: self.subscriber,
            io_subject: opened.io_subject.clone(),
            window: opened.window,
            started: Instant::now(),
            heard_ms: 0,
            keep_alive_at_ms: 0,
        })
    }
}

/// One open stream.
#[derive(Debug)]
pub struct Session {
    client: Client,
    inbox: String,
    subscriber: Subscriber,
    io_subject: String,
    /// What the host takes of each channel before it has acknowledged anything.
    window: u64,
    started: Instant,
    heard_ms: u64,
    keep_alive_at_ms: u64,
}

impl Session {
    /// Moves bytes both ways until the host says how it ended; gives the verb's result.
    ///
    /// # Errors
    /// The host's error, `unavailable` with the offsets when the host is gone for a minute, a
    /// failure to read or write on this side, or [`ClientError::Cancelled`].
    pub async fn run<R: DeserializeOwned>(
        self,
        input: Option<Input>,
        outputs: Vec<Output>,
        cancel: CancellationToken,
    ) -> Result<R, ClientError> {
        self.run_with([input, None], outputs, cancel).await
    }

    /// As [`Session::run`], with two channels to the host. Of [`Channel::Ctl`](drover_schemas::stream::Channel::Ctl)
    /// each read must give whole messages.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub async fn run_with<R: DeserializeOwned>(
        mut self,
        inputs: [Option<Input>; 2],
        outputs: Vec<Output>,
        cancel: CancellationToken,
    ) -> Result<R, ClientError> {
        let mut outgoing = inputs.map(|input| Outgoing::new(input, self.window));
        let mut incoming = Incoming::new(outputs);
        let outcome = self.pump(&mut outgoing, &mut incoming, &cancel).await;
        // The host may still be at work for nobody, or tell the end again until it knows that it was heard; if this
        // is lost it costs the host its own time-out.
        let (cancel, done) = (outcome.is_err(), outcome.is_ok());
        let _ = self.send(&StreamFrame { cancel, done, ..StreamFrame::default() }).await;
        tracing::debug!(resent_bytes = outgoing.iter().map(Outgoing::resent).sum::<u64>(), "stream ended");
        let written = incoming.close(outcome.is_err().then_some(DISCARD)).await;
        let _ = self.client.nats.flush().await;
        let body = outcome?;
        written?;
        codec::decode(&body)
            .map_err(|source| ClientError::Decode { subject: self.io_subject.clone(), source })
    }

    async fn pump(
        &mut self,
        outgoing: &mut [Outgoing; 2],
        incoming: &mut Incoming,
        cancel: &CancellationToken,
    ) -> Result<Bytes, ClientError> {
        let mut connects = self.client.connects.clone();
        connects.mark_unchanged();
        let mut cancelled: Option<Instant> = None;
        let mut ended: Option<(Bytes, Instant)> = None;
        for frame in incoming.first_acks() {
            self.send_with_inbox(&frame).await?;
        }
        loop {
            let now = self.now_ms();
            self.check_peer(now, outgoing, incoming)?;
            // Without a connection whatever is sent would only wait in a queue, once for each resend.
            let connected = self.client.nats.connection_state() == State::Connected;
            if connected {
                self.send_due(now, outgoing, incoming).await?;
            }
            if let Some((body, until)) = &ended
                && (incoming.complete() || Instant::now() >= *until)
            {
                return Ok(body.clone());
            }
            if cancelled.is_some_and(|until| Instant::now() >= until) {
                return Err(ClientError::Cancelled);
            }
            let wake = match connected {
                true => self.wake(now, outgoing, incoming),
                false => Instant::now() + OFFLINE_LOOK,
            };
            let deadlines = [cancelled, ended.as_ref().map(|e| e.1)];
            let wake = deadlines.into_iter().flatten().fold(wake, Instant::min);
            tokio::select! {
                message = self.subscriber.next() => {
                    let message = message.ok_or(ClientError::Closed)?;
                    if let Some(end) = self.take(message, outgoing, incoming)? {
                        match end {
                            StreamEnd::Error(error) if cancelled.is_some() => {
                                tracing::debug!(error = %error, "stream ended after the cancel");
                                return Err(ClientError::Cancelled);
                            }
                            StreamEnd::Error(error) => return Err(error.into()),
                            StreamEnd::Result(blob) => ended = Some((blob.0, Instant::now() + SETTLE)),
                        }
                    }
                }
                read = read_any(outgoing, now) => read?,
                () = incoming.drained() => {}
                Ok(()) = connects.changed() => {
                    self.keep_alive_at_ms = 0;
                    outgoing.iter_mut().for_each(|outgoing| outgoing.resend(now));
                    incoming.repeat_acks();
                }
                () = cancel.cancelled(), if cancelled.is_none() => {
                    self.send(&StreamFrame { cancel: true, ..StreamFrame::default() }).await?;
                    cancelled = Some(Instant::now() + SETTLE);
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn send_due(
        &mut self,
        now: u64,
        outgoing: &mut [Outgoing; 2],
        incoming: &mut Incoming,
    ) -> Result<(), ClientError> {
        if now >= self.keep_alive_at_ms {
            self.send_with_inbox(&StreamFrame { keep_alive: true, ..StreamFrame::default() }).await?;
            self.keep_alive_at_ms = now + KEEP_ALIVE_MS;
        }
        for outgoing in outgoing {
            while let Some(frame) = outgoing.poll(now) {
                self.send(&frame).await?;
            }
        }
        for frame in incoming.acks(now) {
            self.send(&frame).await?;
        }
        Ok(())
    }

    /// Takes one message of the inbox; gives the outcome when it is the last frame.
    fn take(
        &mut self,
        message: async_nats::Message,
        outgoing: &mut [Outgoing; 2],
        incoming: &mut Incoming,
    ) -> Result<Option<StreamEnd>, ClientError> {
        let now = self.now_ms();
        let payload = match read_reply(message) {
            Attempt::Reply(payload) => payload,
            Attempt::Error(error) => return Err(error.into()),
            Attempt::NoResponders | Attempt::Silence => {
                // The host is reconnecting, or gone; ask again soon rather than in 20 s.
                self.keep_alive_at_ms = self.keep_alive_at_ms.min(now + ABSENT_KEEP_ALIVE_MS);
                return Ok(None);
            }
        };
        let frame: StreamFrame = codec::decode(&payload)
            .map_err(|source| ClientError::Decode { subject: self.inbox.clone(), source })?;
        self.heard_ms = now;
        if let Some(end) = frame.end {
            return Ok(Some(end));
        }
        if let (Some(ch), Some(acked_off), Some(window)) = (frame.ch, frame.acked_off, frame.window) {
            for outgoing in outgoing {
                outgoing.ack(ch, acked_off, window, now)?;
            }
        }
        if let (Some(ch), Some(off)) = (frame.ch, frame.off) {
            incoming.data(ch, off, frame.data.unwrap_or_default().0, frame.eof)?;
        }
        Ok(None)
    }

    fn check_peer(&self, now: u64, outgoing: &[Outgoing; 2], incoming: &Incoming) -> Result<(), ClientError> {
        if now.saturating_sub(self.heard_ms) < PEER_LOST_MS {
            return Ok(());
        }
        let error = ErrorBody::new(
            ErrorCode::Unavailable,
            format!(
                "the host of the stream was not heard for {} s; what runs in the guest may go on",
                PEER_LOST_MS / 1_000
            ),
        );
        Err(error.with("acked_off", outgoing[0].acked()).with("received_off", incoming.received()).into())
    }

    fn wake(&self, now: u64, outgoing: &[Outgoing; 2], incoming: &Incoming) -> Instant {
        let at = self.keep_alive_at_ms.min(self.heard_ms + PEER_LOST_MS);
        let ends = outgoing.iter().map(Outgoing::wake_at_ms).chain([incoming.wake_at_ms()]);
        let at = ends.flatten().fold(at, u64::min);
        self.started + Duration::from_millis(at.max(now + 1))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn send(&self, frame: &StreamFrame) -> Result<(), ClientError> {
        let body = codec::encode(frame).map_err(ClientError::Encode)?;
        let sent = self.client.nats.publish(self.io_subject.clone(), body.into()).await;
        sent.map_err(|source| self.unsent(source))
    }

    async fn send_with_inbox(&self, frame: &StreamFrame) -> Result<(), ClientError> {
        let body = codec::encode(frame).map_err(ClientError::Encode)?;
        let (subject, inbox) = (self.io_subject.clone(), self.inbox.clone());
        let sent = self.client.nats.publish_with_reply(subject, inbox, body.into()).await;
        sent.map_err(|source| self.unsent(source))
    }

    fn unsent(&self, source: async_nats::PublishError) -> ClientError {
        ClientError::Send { subject: self.io_subject.clone(), source: Box::new(source) }
    }
}

/// Reads once from whichever has something; never ends while none may be read.
async fn read_any(outgoing: &mut [Outgoing; 2], now: u64) -> Result<(), ClientError> {
    let [data, control] = outgoing;
    let (wants_data, wants_control) = (data.wants_input(), control.wants_input());
    tokio::select! {
        read = control.read(now), if wants_control => read,
        read = data.read(now), if wants_data => read,
        else => std::future::pending().await,
    }
}
