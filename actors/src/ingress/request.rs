//! One request as it arrived, and the one reply that it gets.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use drover_schemas::codec::{self, DecodeError, Format};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, headers};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tracing::{debug, error, warn};
use ulid::Ulid;

use crate::bus::permissions::{INBOX, RELAYED};
use crate::rejections::Rejections;

/// Requests above this many bytes are refused.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Subjects and headers above this many bytes too.
const MAX_HEADERS: usize = 16 * 1024;
/// Replies stay below this many bytes, and below half of what the server takes.
pub const MAX_REPLY: usize = 512 * 1024;

/// A request with everything that its headers say.
#[derive(Debug)]
pub struct Request {
    /// What was asked for.
    pub subject: Subject,
    /// The body as it arrived; a placer relays these very bytes.
    pub body: Bytes,
    /// How the body is written, and how the reply shall be.
    pub format: Format,
    /// The caller's id of the request.
    pub request_id: Option<RequestId>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The headers as they arrived.
    pub headers: HeaderMap,
    /// Who gets the reply.
    pub responder: Responder,
}

/// Answers one request exactly once.
#[derive(Debug)]
pub struct Responder {
    client: Client,
    reply: Option<async_nats::Subject>,
    format: Format,
    max_reply: usize,
    answered: bool,
    unanswerable: Option<Unanswerable>,
}

/// A request whose caller left no reply subject but an id: it is told by an event if it is refused.
#[derive(Debug, Clone)]
struct Unanswerable {
    rejections: Rejections,
    namespace: Token,
    request_id: RequestId,
    subject: Subject,
}

/// Subjects that a reply may go to: in one account, a reply subject of somebody's choice would let a
/// client make the host publish anywhere.
#[derive(Debug, Clone)]
pub struct ReplyPolicy {
    prefixes: Vec<String>,
}

impl ReplyPolicy {
    /// Inboxes of clients, replies that cross accounts, and `extra` prefixes.
    #[must_use]
    pub fn new(extra: &[String]) -> Self {
        let mut prefixes = vec![format!("{INBOX}."), format!("{INBOX}_"), format!("{RELAYED}.")];
        prefixes.extend(extra.iter().cloned());
        Self { prefixes }
    }

    /// Whether a reply may go there.
    #[must_use]
    pub fn allows(&self, subject: &str) -> bool {
        self.prefixes.iter().any(|p| subject.starts_with(p.as_str()))
    }
}

/// A message as it came off a subscription, without what would keep more memory than it needs.
#[derive(Debug)]
pub struct Arrived {
    message: Message,
    at: Instant,
    /// Bytes of the whole message, where that is too many; its body is gone then.
    too_large: Option<usize>,
}

impl Arrived {
    /// Takes a message over. One that is too large loses its body here, before anything waits.
    #[must_use]
    pub fn new(mut message: Message) -> Self {
        let at = Instant::now();
        let headers = message.length.saturating_sub(message.payload.len());
        let too_large = match message.payload.len() {
            size if size > MAX_REQUEST => Some(size),
            _ if headers > MAX_HEADERS => Some(message.length),
            _ => None,
        };
        // A copy: the bytes themselves hold on to everything that the connection read with them.
        let keep = if too_large.is_some() { message.payload.len().min(1) } else { message.payload.len() };
        message.payload = Bytes::copy_from_slice(&message.payload[..keep]);
        if let Some(all) = message.headers.take_if(|_| headers > MAX_HEADERS) {
            let kept = [headers::CONTENT_TYPE, headers::REQUEST_ID];
            let kept = kept.iter().filter_map(|name| Some((*name, all.get(*name)?.as_str())));
            let mut few = HeaderMap::new();
            for (name, value) in kept.filter(|(_, value)| value.len() <= 128) {
                few.insert(name, value);
            }
            message.headers = Some(few);
        }
        Self { message, at, too_large }
    }

    /// What it was sent to.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.message.subject
    }
}

/// A message that is answered already or cannot be answered at all; what is left of it is for the audit.
#[derive(Debug)]
pub struct Refused {
    /// What was asked for.
    pub subject: Subject,
    /// The headers as they arrived.
    pub headers: HeaderMap,
    /// Where the reply was to go.
    pub reply: Option<async_nats::Subject>,
    /// What was wrong with it.
    pub code: ErrorCode,
}

impl Request {
    /// Who asks, as the audit tells it, in a few words.
    #[must_use]
    pub fn caller(&self) -> String {
        let reply = self.responder.reply_subject().map(async_nats::Subject::as_str);
        crate::audit::caller::of(&self.headers, reply).line()
    }

    /// Reads what the message says of itself. A message that says it wrongly is answered here.
    ///
    /// # Errors
    /// [`Refused`] when there is nothing left to do.
    pub async fn read(
        client: &Client,
        policy: &ReplyPolicy,
        rejections: &Rejections,
        subject: Subject,
        arrived: Arrived,
    ) -> Result<Self, Box<Refused>> {
        let Arrived { message, at, too_large } = arrived;
        let headers = message.headers.unwrap_or_default();
        let content_type = header(&headers, headers::CONTENT_TYPE);
        let reply = message.reply;
        if let Some(reply) = reply.as_ref().filter(|reply| !policy.allows(reply)) {
            warn!(%reply, "dropped a request whose reply subject is not an inbox");
            let (reply, code) = (Some(reply.clone()), ErrorCode::PermissionDenied);
            return Err(Box::new(Refused { subject, headers, reply, code }));
        }
        let max_reply = MAX_REPLY.min(client.server_info().max_payload / 2);
        let request_id = header(&headers, headers::REQUEST_ID).map(str::parse::<RequestId>).transpose();
        let unanswerable = match (&reply, &request_id, namespace_of(&subject)) {
            (None, Ok(Some(request_id)), Some(namespace)) => Some(Unanswerable {
                rejections: rejections.clone(),
                namespace: namespace.clone(),
                request_id: *request_id,
                subject: subject.clone(),
            }),
            _ => None,
        };
        let format = Format::detect(content_type, &message.payload);
        let responder = Responder {
            client: client.clone(),
            reply,
            format: format.as_ref().map_or(Format::MsgPack, |format| *format),
            max_reply,
            answered: false,
            unanswerable,
        };
        let said = format.map_err(|error| decode_error(&error)).and_then(|_| said(&headers, too_large));
        match said {
            Ok((request_id, deadline_ms)) => Ok(Self {
                subject,
                body: message.payload,
                format: responder.format,
                request_id,
                deadline: at + Duration::from_millis(deadline_ms),
                headers,
                responder,
            }),
            Err(error) => {
                let (reply, code) = (responder.reply_subject().cloned(), error.code);
                responder.error(error).await;
                Err(Box::new(Refused { subject, headers, reply, code }))
            }
        }
    }

    /// Reads the body as a request.
    ///
    /// # Errors
    /// `invalid_argument` that names the field or says what the bytes are not.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ErrorBody> {
        codec::decode_request(self.format, &self.body).map_err(|e| decode_error(&e))
    }

    /// Identifies the body: the same request id with another digest is a conflict.
    #[must_use]
    pub fn digest(&self) -> String {
        crate::images::hex(&Sha256::digest(&self.body))
    }

    /// Whether anybody waits for a reply.
    #[must_use]
    pub const fn wants_reply(&self) -> bool {
        self.responder.reply.is_some()
    }
}

/// The id and the deadline, in milliseconds, that the headers of a message say.
fn said(headers: &HeaderMap, too_large: Option<usize>) -> Result<(Option<RequestId>, u64), ErrorBody> {
    let wrong = |text: String| ErrorBody::new(ErrorCode::InvalidArgument, text);
    if let Some(size) = too_large {
        let text =
            format!("the request has {size} bytes, at most {MAX_REQUEST} are taken; use a stream for data");
        return Err(wrong(text).with("size", size).with("limit", MAX_REQUEST));
    }
    let request_id = header(headers, headers::REQUEST_ID).map(str::parse::<RequestId>).transpose();
    let request_id = request_id.map_err(|error| wrong(format!("header {}: {error}", headers::REQUEST_ID)))?;
    let deadline_ms = header(headers, headers::DEADLINE_MS).map(str::parse::<u64>).transpose();
    let deadline_ms = deadline_ms
        .map_err(|_| wrong(format!("header {} must be a number of milliseconds", headers::DEADLINE_MS)))?;
    let deadline_ms = deadline_ms.unwrap_or(headers::DEFAULT_DEADLINE_MS).min(headers::MAX_DEADLINE_MS);
    Ok((request_id, deadline_ms))
}

/// The value of a header.
#[must_use]
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(async_nats::HeaderValue::as_str)
}

/// The reply to a body that could not be read.
#[must_use]
pub fn decode_error(error: &DecodeError) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, error.to_string())
}

impl Responder {
    /// Answers over another connection: that of the frames that are to follow the reply, so that none of them
    /// comes before it.
    #[must_use]
    pub fn over(mut self, client: Client) -> Self {
        self.client = client;
        self
    }

    /// Answers with a result.
    pub async fn ok<T: Serialize + Sync>(self, value: &T) {
        match codec::encode_as(self.format, value) {
            Ok(body) => self.ok_bytes(body.into()).await,
            Err(cause) => {
                error!(error = %crate::chain(&cause), "a reply could not be encoded");
                self.error(ErrorBody::new(ErrorCode::Internal, "the reply could not be encoded")).await;
            }
        }
    }

    /// Answers with a result that is encoded already, in the request's format.
    pub async fn ok_bytes(mut self, body: Bytes) {
        if body.len() > self.max_reply {
            let error = ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!("the reply has {} bytes, at most {} fit; ask for less", body.len(), self.max_reply),
            );
            let error = error.with("size", body.len()).with("limit", self.max_reply).retryable(false);
            return self.error(error).await;
        }
        let mut headers = HeaderMap::new();
        headers.insert(headers::CONTENT_TYPE, self.format.content_type());
        self.publish(headers, body).await;
    }

    /// Answers with an error, giving it an id for the log.
    pub async fn error(mut self, mut error: ErrorBody) {
        if error.error_id.is_empty() {
            error.error_id = Ulid::new().to_string();
        }
        debug!(code = %error.code, error_id = error.error_id, message = error.message, "request refused");
        if let Some(Unanswerable { rejections, namespace, request_id, subject }) = self.unanswerable.take() {
            self.answered = true;
            return rejections.publish(&namespace, request_id, &subject, error).await;
        }
        let mut headers = HeaderMap::new();
        headers.insert(headers::CONTENT_TYPE, self.format.content_type());
        headers.insert(headers::ERROR_CODE, error.code.status().to_string().as_str());
        headers.insert(headers::ERROR, error.header_line().as_str());
        match codec::encode_as(self.format, &error) {
            Ok(body) => self.publish(headers, body.into()).await,
            Err(cause) => error!(error = %crate::chain(&cause), "an error reply could not be encoded"),
        }
    }

    /// Answers nothing: the request is somebody else's to answer.
    pub fn silence(mut self) {
        self.answered = true;
    }

    /// Answers with a result or an error.
    pub async fn result<T: Serialize + Sync>(self, result: Result<T, ErrorBody>) {
        match result {
            Ok(value) => self.ok(&value).await,
            Err(error) => self.error(error).await,
        }
    }

    /// The format that the caller reads.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The most bytes that a reply may have.
    #[must_use]
    pub const fn max_reply(&self) -> usize {
        self.max_reply
    }

    /// Where the reply goes; a stream's frames follow it there.
    #[must_use]
    pub const fn reply_subject(&self) -> Option<&async_nats::Subject> {
        self.reply.as_ref()
    }

    async fn publish(&mut self, headers: HeaderMap, body: Bytes) {
        self.answered = true;
        let Some(reply) = self.reply.take() else { return };
        if let Err(error) = self.client.publish_with_headers(reply, headers, body).await {
            warn!(error = %crate::chain(&error), "a reply could not be published");
        }
    }
}

impl Drop for Responder {
    /// Promise 1 holds also for a handler that is lost to a panic or a shutdown.
    fn drop(&mut self) {
        if self.answered || (self.reply.is_none() && self.unanswerable.is_none()) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let rest = Self {
            client: self.client.clone(),
            reply: self.reply.take(),
            format: self.format,
            max_reply: self.max_reply,
            answered: false,
            unanswerable: self.unanswerable.take(),
        };
        runtime.spawn(rest.error(ErrorBody::new(
            ErrorCode::Unavailable,
            "the host ended the request without an outcome; repeat it with the same request id",
        )));
    }
}

/// The namespace that a request is about; the host's own verbs have none.
#[must_use]
pub const fn namespace_of(subject: &Subject) -> Option<&Token> {
    match subject {
        Subject::VmPool { ns, .. }
        | Subject::Vm { ns, .. }
        | Subject::Guest { ns, .. }
        | Subject::Registry { ns, .. } => Some(ns),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_to_inboxes_only() {
        let policy = ReplyPolicy::new(&["_TENANT.".into()]);
        for good in ["_INBOX.a.b", "_INBOX_h1.x", "_R_.abc.def", "_TENANT.x"] {
            assert!(policy.allows(good), "{good}");
        }
        for bad in ["$JS.API.STREAM.DELETE.X", "drover.v1.evt.host.a.b", "_INBOX", "x._INBOX.a"] {
            assert!(!policy.allows(bad), "{bad}");
        }
    }
}
