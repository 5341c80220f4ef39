//! Refusals that nobody waits for. A request without a reply subject learns its outcome from events; one
//! that is refused has no VM whose events could tell, so the refusal is an event of its namespace.
//!
//! Anybody who may send requests can cause these events, so they are few: what is beyond the rate is
//! counted and told by the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use drover_schemas::event::{RejectedEvent, ce};
use drover_schemas::subject::{Subject, Subjects};
use drover_schemas::{ErrorBody, RequestId, Token, codec};
use tracing::warn;
use ulid::Ulid;

use crate::chain;
use crate::cloud_event::attributes;
use crate::rate::{Rate, Shares};
use crate::services::now_ms;

/// Rejections of a namespace.
const RATE: Rate = Rate { burst: 20, refill: Duration::from_millis(200) };

/// Publishes rejections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Rejections {
    client: Client,
    subjects: Subjects,
    host: Token,
    shares: Arc<Mutex<Shares<Token>>>,
}

impl Rejections {
    /// Of this host.
    #[must_use]
    pub fn new(client: Client, subjects: Subjects, host: Token) -> Self {
        let shares = Arc::new(Mutex::new(Shares::new(RATE, Instant::now())));
        Self { client, subjects, host, shares }
    }

    fn admit(&self, namespace: &Token) -> Option<u64> {
        let now = Instant::now();
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).of(namespace, now).take(now)
    }

    /// Publishes that a request was refused. It is stored by the stream of events; if it is lost on the
    /// way, the id of the request tells by `vm.lookup` that it had no effect.
    pub async fn publish(
        &self,
        namespace: &Token,
        request_id: RequestId,
        subject: &Subject,
        error: ErrorBody,
    ) {
        let Some(suppressed) = self.admit(namespace) else { return };
        let now = now_ms();
        let event = RejectedEvent {
            host: self.host.clone(),
            request_id,
            subject: self.subjects.build(subject),
            error,
            time_unix_ms: now,
            suppressed,
        };
        let body = match codec::encode(&event) {
            Ok(body) => body,
            Err(cause) => return warn!(error = %chain(&cause), "a rejection could not be encoded"),
        };
        let id = Ulid::new().to_string();
        let mut headers = HeaderMap::new();
        headers.insert(ce::ID, id.as_str());
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
        for (name, value) in attributes(self.host.as_str(), "request.rejected", now, namespace.to_string()) {
            headers.insert(name, value);
        }
        let to = self.subjects.build(&Subject::RequestRejected { ns: namespace.clone() });
        if let Err(cause) = self.client.publish_with_headers(to, headers, body.into()).await {
            warn!(error = %chain(&cause), "a rejection could not be published");
        }
    }
}
