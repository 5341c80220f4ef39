//! What a missing owner means: asked of `vm.lookup` whenever the bus says `503 no responders`.

use std::time::Duration;

use drover_schemas::body::vm::{ChangeReply, LookupReply, LookupRequest};
use drover_schemas::codec;
use drover_schemas::subject::{PoolVerb, Subject};
use drover_schemas::{ErrorBody, ErrorCode, Token};
use tokio::time::Instant;

use super::request::{CallOptions, read_reply, request_headers};
use super::{Client, ClientError, request};

/// How long a call waits for somebody who may come online but has not been heard.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(3);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the client makes of `503`.
pub(super) enum Absent {
    /// Nothing will change by itself.
    Final(ErrorBody),
    /// The outcome of this very request, stored with the name.
    Replay(Box<ChangeReply>),
    /// Somebody may answer soon.
    Later(ErrorBody),
}

/// How long the absence of an owner is borne: the whole deadline while its host is heard, a short
/// time otherwise, so that a wrong name or an empty bus is told soon.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Instant,
    started: Instant,
}

impl Patience {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline, started: Instant::now() }
    }

    /// Notes an absence: gives the error back to be retried, or as final when patience is over.
    pub(super) fn cut(&mut self, error: ErrorBody) -> Result<ErrorBody, ClientError> {
        let heard = error.details.get("online").is_some_and(|online| online == "true");
        let limit = if heard { self.deadline } else { self.started + OFFLINE_PATIENCE };
        if Instant::now() >= limit { Err(error.into()) } else { Ok(error) }
    }

    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Client {
    /// Says why nobody answered on `subject`.
    pub(super) async fn absent(&self, subject: &Subject, options: &CallOptions, deadline: Instant) -> Absent {
        let (ns, name, deletes) = match subject {
            Subject::Vm { ns, name, verb } => (ns, name, verb.as_str() == "delete"),
            Subject::Guest { ns, name, .. } => (ns, name, false),
            Subject::Host { host, .. } => {
                return Absent::Later(ErrorBody::new(
                    ErrorCode::Unavailable,
                    format!("no host named {host} is online"),
                ));
            }
            _ => return Absent::Later(nobody()),
        };
        let found = match self.ask_lookup(ns, name, deadline).await {
            Ok(found) => found,
            Err(error) => return Absent::Later(error),
        };
        match found {
            LookupReply::NotFound {} => Absent::Final(ErrorBody::new(
                ErrorCode::NotFound,
                format!("no VM is named {name} in namespace {ns}"),
            )),
            LookupReply::Placing { host, .. } => Absent::Later(
                ErrorBody::new(ErrorCode::Unavailable, format!("{name} is being placed on host {host}"))
                    .with("host", host)
                    .with("online", true),
            ),
            LookupReply::Owned { host, last_seen_unix_ms, online, .. } => {
                Absent::Later(offline(name, &host, last_seen_unix_ms, online))
            }
            LookupReply::Gone { request_id, reply: Some(reply), .. }
                if deletes && options.request_id == Some(request_id) =>
            {
                Absent::Replay(reply)
            }
            LookupReply::Gone { deleted_unix_ms, request_id, .. } => Absent::Final(
                ErrorBody::new(
                    ErrorCode::NotFound,
                    format!("{name} was deleted at {}", super::time::rfc3339(deleted_unix_ms)),
                )
                .with("deleted_unix_ms", deleted_unix_ms)
                .with("request_id", request_id),
            ),
        }
    }

    /// One try: the caller has a loop of its own.
    async fn ask_lookup(
        &self,
        ns: &Token,
        name: &Token,
        deadline: Instant,
    ) -> Result<LookupReply, ErrorBody> {
        let subject = self.subjects.build(&Subject::VmPool { ns: ns.clone(), verb: PoolVerb::Lookup });
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOKUP_TIMEOUT);
        let internal = |e: &dyn std::error::Error| {
            ErrorBody::new(ErrorCode::Internal, drover_actors::chain(e).to_string())
        };
        let body = codec::encode(&LookupRequest { name: name.clone() }).map_err(|e| internal(&e))?;
        let request = async_nats::Request::new()
            .payload(body.into())
            .headers(request_headers(None, left))
            .timeout(Some(left));
        match self.nats.send_request(subject, request).await {
            Ok(message) => match read_reply(message) {
                request::Attempt::Reply(body) => codec::decode(&body).map_err(|e| internal(&e)),
                request::Attempt::Error(error) => Err(error),
                request::Attempt::NoResponders | request::Attempt::Silence => Err(nobody()),
            },
            Err(_) => Err(nobody()),
        }
    }
}

fn nobody() -> ErrorBody {
    ErrorBody::new(ErrorCode::Unavailable, "no drover host is online on this bus")
}

fn offline(name: &Token, host: &Token, last_seen_unix_ms: Option<u64>, online: bool) -> ErrorBody {
    let heard = match last_seen_unix_ms {
        _ if online => "is online but does not answer for it yet".to_owned(),
        Some(ms) => format!("was last heard at {}", super::time::rfc3339(ms)),
        None => "has never been heard".to_owned(),
    };
    ErrorBody::new(ErrorCode::Unavailable, format!("{name} is owned by host {host}, which {heard}"))
        .with("host", host)
        .with("online", online)
}
