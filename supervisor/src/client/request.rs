//! Calls: one request, retried with the same id until its deadline.

use std::time::Duration;

use async_nats::{HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use drover_schemas::codec::{self, Format};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, headers};
use rand::Rng as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::debug;

use super::lookup::{Absent, Patience};
use super::{Client, ClientError, trace};

/// A request without an answer is repeated after this time: a host that lost it would never answer,
/// and a host that has it attaches the repetition to the same outcome.
/// The time doubles, so that a long wait is not a stream of repetitions.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub struct CallOptions {
    /// Names the request across retries; mutating verbs carry one.
    pub request_id: Option<RequestId>,
    /// When the caller stops waiting, retries included.
    pub deadline: Duration,
}

impl CallOptions {
    /// A call that changes nothing.
    pub const fn read(deadline: Duration) -> Self {
        Self { request_id: None, deadline }
    }

    /// A call with an effect, under a new id.
    pub fn change(deadline: Duration) -> Self {
        Self { request_id: Some(RequestId::generate()), deadline }
    }
}

/// What one attempt gave.
pub(super) enum Attempt {
    Reply(Bytes),
    /// A coded error of the host.
    Error(ErrorBody),
    /// `503`: nobody listens there now.
    NoResponders,
    /// Nothing came in time.
    Silence,
}

/// Pauses between attempts: doubling, with jitter, so that many clients do not return at once.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) const fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// The next pause, cut to what is left; `None` when nothing is left.
    pub(super) fn next(&mut self, deadline: Instant) -> Option<Duration> {
        let left = deadline.saturating_duration_since(Instant::now());
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        (pause < left).then_some(pause)
    }
}

impl Client {
    /// Asks and reads the reply.
    ///
    /// # Errors
    /// A coded error of the host, or one made here for the host that did not answer.
    pub async fn call<Q, R>(
        &self,
        subject: &Subject,
        body: &Q,
        options: CallOptions,
    ) -> Result<R, ClientError>
    where
        Q: Serialize + Sync,
        R: DeserializeOwned,
    {
        let body = codec::encode(body).map_err(ClientError::Encode)?;
        let reply = self.call_bytes(subject, body.into(), options).await?;
        codec::decode(&reply)
            .map_err(|source| ClientError::Decode { subject: self.subjects.build(subject), source })
    }

    /// Asks with a written body; gives the bytes of the reply.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_bytes(
        &self,
        subject: &Subject,
        body: Bytes,
        options: CallOptions,
    ) -> Result<Bytes, ClientError> {
        let text = self.subjects.build(subject);
        let deadline = Instant::now() + options.deadline;
        let mut backoff = Backoff::new();
        let mut patience = Patience::new(deadline);
        let mut within = FIRST_ATTEMPT;
        loop {
            let attempt = self.attempt(&text, &body, &options, deadline, within).await?;
            within *= 2;
            let failure = match attempt {
                Attempt::Reply(reply) => return Ok(reply),
                Attempt::Error(error) if worth_repeating(&error) => error,
                Attempt::Error(error) => return Err(named(error, &options).into()),
                Attempt::Silence => silence(&text, &options),
                Attempt::NoResponders => match self.absent(subject, &options, deadline).await {
                    Absent::Final(error) => return Err(error.into()),
                    Absent::Replay(reply) => {
                        return codec::encode(&*reply).map(Bytes::from).map_err(ClientError::Encode);
                    }
                    Absent::Later(error) => patience.cut(error)?,
                },
            };
            debug!(subject = text, code = %failure.code, "request will be repeated");
            match backoff.next(patience.deadline()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(failure.into()),
            }
        }
    }

    async fn attempt(
        &self,
        subject: &str,
        body: &Bytes,
        options: &CallOptions,
        deadline: Instant,
        within: Duration,
    ) -> Result<Attempt, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = async_nats::Request::new()
            .payload(body.clone())
            .headers(request_headers(options.request_id, left))
            .timeout(Some(left.min(within)));
        match self.nats.send_request(subject.to_owned(), request).await {
            Ok(message) => Ok(read_reply(message)),
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(Attempt::NoResponders),
                RequestErrorKind::TimedOut => Ok(Attempt::Silence),
                _ => Err(ClientError::Send { subject: subject.to_owned(), source: Box::new(error) }),
            },
        }
    }
}

/// Headers of a request whose caller waits for `left` more.
pub(super) fn request_headers(request_id: Option<RequestId>, left: Duration) -> HeaderMap {
    let mut map = HeaderMap::new();
    if let Some(id) = request_id {
        map.insert(headers::REQUEST_ID, id.to_string().as_str());
    }
    map.insert(headers::DEADLINE_MS, left.as_millis().to_string().as_str());
    map.insert(headers::CONTENT_TYPE, codec::MSGPACK);
    trace::inject_context(&trace::current_context(), &mut map);
    map
}

/// Reads the headers before the body.
pub(super) fn read_reply(message: Message) -> Attempt {
    if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
        return Attempt::NoResponders;
    }
    let header = |name: &str| {
        message.headers.as_ref().and_then(|map| map.get(name)).map(async_nats::HeaderValue::as_str)
    };
    let Some(status) = header(headers::ERROR_CODE) else { return Attempt::Reply(message.payload) };
    let format = Format::detect(header(headers::CONTENT_TYPE), &message.payload).unwrap_or(Format::MsgPack);
    let body = codec::decode_as::<ErrorBody>(format, &message.payload).unwrap_or_else(|_| {
        // Another service's error: the headers say all there is.
        let line = header(headers::ERROR).unwrap_or("no message");
        ErrorBody::new(ErrorCode::Internal, format!("error {status}: {line}"))
    });
    Attempt::Error(body)
}

/// Whether a host's error passes by itself: it is starting, ending or fenced. `busy` and exhausted
/// capacity do not, and the caller decides.
fn worth_repeating(error: &ErrorBody) -> bool {
    error.code == ErrorCode::Unavailable && error.retryable
}

/// An outcome that is still open is asked for by the request's name.
fn named(error: ErrorBody, options: &CallOptions) -> ErrorBody {
    match options.request_id {
        Some(id) if error.code == ErrorCode::DeadlineExceeded => error.with("request_id", id),
        _ => error,
    }
}

/// The error for a request that nobody answered.
pub(super) fn silence(subject: &str, options: &CallOptions) -> ErrorBody {
    let seconds = options.deadline.as_secs_f64();
    let outcome = match options.request_id {
        Some(id) => format!("; the outcome is unknown, repeat it with --request-id {id}"),
        None => String::new(),
    };
    let error = ErrorBody::new(
        ErrorCode::DeadlineExceeded,
        format!("no answer from {subject} within {seconds:.0} s{outcome}"),
    );
    match options.request_id {
        Some(id) => error.with("request_id", id),
        None => error,
    }
}
