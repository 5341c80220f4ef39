//! Into the stream, each event once: it says which one it expects before it, and how far the log was read.

use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::{Client, HeaderMap};
use drover_actors::audit::{row_of, vm_of};
use drover_actors::bus::assets::AssetsConfig;
use drover_actors::bus::egress::EXPECTED_SUBJECT;
use drover_actors::cloud_event::attributes;
use drover_actors::ingress::request::namespace_of;
use drover_schemas::audit::{AuditEvent, AuditKind};
use drover_schemas::event::ce;
use drover_schemas::subject::{Subject, Subjects};
use drover_schemas::{Token, codec, headers};

use super::Told;
use super::file::Position;

/// How long the stream may take for an answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Where the denials of one server go.
#[derive(Debug)]
pub struct AuditStream {
    js: Context,
    subjects: Subjects,
    stream: String,
    server: Token,
}

/// The last event that the stream has of a server.
#[derive(Debug, Clone, Default)]
pub struct Last {
    /// Its number in the server's audit; 0 for none.
    seq: u64,
    /// Its place in the stream; 0 for none.
    stream_seq: u64,
    /// How far the log was read for it.
    pub(super) position: Option<Position>,
    /// What was counted up to there and not told.
    pub(super) untold: u64,
}

/// An event did not get into the stream, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// The last one cannot be read.
    #[error("ask for the last event of the server's audit")]
    Last(#[source] async_nats::jetstream::stream::DirectGetError),
    /// The last one is not one of ours.
    #[error("the last event of the server's audit is not what this version knows")]
    Strange(#[source] codec::DecodeError),
    /// It cannot be encoded.
    #[error("encode an event of the audit")]
    Encode(#[source] codec::EncodeError),
    /// The stream did not take it.
    #[error("publish an event of the audit")]
    Publish(#[source] async_nats::jetstream::context::PublishError),
    /// Somebody else has told of the server meanwhile.
    #[error("the server's audit has gone on meanwhile: is its log followed twice?")]
    Overtaken,
}

impl AuditStream {
    /// For the server of this name.
    pub fn new(client: &Client, subjects: &Subjects, server: Token) -> Self {
        let js = ContextBuilder::new().timeout(WITHIN).build(client.clone());
        let stream = AssetsConfig::new(subjects.root().clone()).events_stream();
        Self { js, subjects: subjects.clone(), stream, server }
    }

    fn subject(&self, kind: AuditKind) -> String {
        let kind = Token::new(kind.as_str()).unwrap_or_else(|_| self.server.clone());
        self.subjects.build(&Subject::BusAudit { server: self.server.clone(), kind })
    }

    /// The last event of the server.
    ///
    /// # Errors
    /// [`TellError`].
    pub async fn last(&self) -> Result<Last, TellError> {
        let mut last = Last::default();
        for kind in [AuditKind::Denied, AuditKind::Suppressed] {
            // No request to the stream: only what is read by subject may be read.
            let stream = self.js.get_stream_no_info(&self.stream).await;
            let Ok(stream) = stream else { continue };
            match stream.direct_get_last_for_subject(self.subject(kind)).await {
                Ok(message) if message.sequence > last.stream_seq => {
                    let event: AuditEvent = codec::decode(&message.payload).map_err(TellError::Strange)?;
                    let header = |name| message.headers.get(name).map(|value| value.as_str());
                    last = Last {
                        seq: event.seq,
                        stream_seq: message.sequence,
                        position: header(headers::LOG_POSITION).and_then(|text| text.parse().ok()),
                        untold: header(headers::LOG_UNTOLD).and_then(|text| text.parse().ok()).unwrap_or(0),
                    };
                }
                Ok(_) => {}
                Err(failure) if failure.kind() == DirectGetErrorKind::NotFound => {}
                Err(failure) => return Err(TellError::Last(failure)),
            }
        }
        Ok(last)
    }

    /// Stores an event behind `last`, which it then is. Of what stands `behind` it, `untold` denials were only counted.
    ///
    /// # Errors
    /// [`TellError`]: whether it is stored, [`AuditStream::last`] tells.
    pub async fn tell(
        &self,
        last: &mut Last,
        told: Told,
        behind: &Position,
        untold: u64,
    ) -> Result<(), TellError> {
        let seq = last.seq + 1;
        let subject = self.subject(told.kind);
        let event = self.event(told, seq);
        let mut headers = HeaderMap::new();
        let (by, what) = (format!("bus/{}", self.server), format!("audit.{}", event.kind.as_str()));
        for (name, value) in attributes(&by, &what, event.time_unix_ms, self.server.to_string()) {
            headers.insert(name, value);
        }
        for (name, value) in [
            (ce::ID, format!("bus.{}.{seq}", self.server)),
            (headers::LOG_POSITION, behind.to_string()),
            (headers::LOG_UNTOLD, untold.to_string()),
            (EXPECTED_SUBJECT, self.subjects.bus_audit(&self.server)),
        ] {
            headers.insert(name, value.as_str());
        }
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.stream_seq.to_string());
        headers.insert(NATS_EXPECTED_STREAM, self.stream.as_str());
        let body = codec::encode(&event).map_err(TellError::Encode)?;
        let message = PublishMessage::build().payload(body.into()).headers(headers);
        let sent = match self.js.send_publish(subject, message).await {
            Ok(sent) => sent.await,
            Err(failure) => Err(failure),
        };
        let stored = sent.map_err(|failure| match failure.kind() {
            PublishErrorKind::WrongLastSequence => TellError::Overtaken,
            _ => TellError::Publish(failure),
        })?;
        *last = Last { seq, stream_seq: stored.sequence, position: Some(behind.clone()), untold };
        Ok(())
    }

    fn event(&self, told: Told, seq: u64) -> AuditEvent {
        let Told { kind, time_unix_ms, mut caller, action, subject, count } = told;
        if caller.connection.is_some() {
            caller.server = Some(self.server.to_string());
        }
        let named = self.subjects.parse(&subject);
        let named = named.as_ref();
        AuditEvent {
            reporter: self.server.clone(),
            seq,
            kind,
            time_unix_ms,
            action,
            caller,
            namespace: named.and_then(|subject| namespace_of(subject).cloned()),
            vm: named.and_then(|subject| vm_of(subject).cloned()),
            verb: named.and_then(row_of).map(|row| row.verb.to_owned()),
            target: None,
            request_id: None,
            error: None,
            subject,
            count,
        }
    }
}
