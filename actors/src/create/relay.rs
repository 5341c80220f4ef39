//! The way of a create to the host that its claim names: the very bytes of the request, and the very bytes of the
//! reply back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_schemas::body::host::{PlacedReply, PlacedRequest};
use drover_schemas::codec::{self, Format};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, Token, headers};
use tracing::debug;

use super::{Creator, Wanted};
use crate::bus::claims::{Claim, NameKey, Phase};
use crate::ingress::request::{Request, header};
use crate::services::now_ms;

/// How long a host may be silent before its claim is looked at. A create with a `wait` is silent for long.
const FIRST_SILENCE: Duration = Duration::from_secs(2);
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// Pause before a host that could not say is asked again.
const PAUSE: Duration = Duration::from_millis(150);
/// How long a host may take to say whether it works on a create.
const PLACED_WITHIN: Duration = Duration::from_secs(2);
/// What an error says that was made before anything was done.
pub(super) const REFUSED: &str = "refused";

/// What became of a relayed create.
pub(super) enum Relayed {
    /// The reply.
    Reply(Bytes),
    /// Its outcome, or one that a repetition may change.
    Failed(ErrorBody),
    /// The host does not take it, or is not there: the claim may go to another one.
    Refused(ErrorBody),
    /// The claim names another host by now, or nobody.
    Moved,
    /// The host is silent beyond the claim's deadline.
    Stuck(Box<Claim>, u64),
}

enum Answer {
    Reply(Bytes),
    Error(ErrorBody),
    Nobody,
    Silence,
}

impl Creator {
    /// Asks the host of a claim, again and again while its answer is not known.
    pub(super) async fn relay(&self, wanted: &Wanted, request: &Request, claim: &Claim) -> Relayed {
        let mut within = FIRST_SILENCE;
        loop {
            match self.ask(wanted, request, claim, within).await {
                Answer::Reply(bytes) => return Relayed::Reply(bytes),
                Answer::Error(error) if error.details.contains_key(REFUSED) => {
                    return Relayed::Refused(error);
                }
                Answer::Error(error) if error.code == ErrorCode::Unavailable && error.retryable => {
                    debug!(host = %claim.host, error = error.message, "the host cannot say yet");
                    tokio::time::sleep(PAUSE).await;
                }
                Answer::Error(error) => return Relayed::Failed(error),
                // It never had this request, so nothing is unknown; should it have had an earlier copy, the
                // claim decides.
                Answer::Nobody if claim.phase == Phase::Placing => {
                    return Relayed::Refused(offline(&claim.host));
                }
                Answer::Nobody => return Relayed::Failed(offline(&claim.host)),
                Answer::Silence => within = (within * 2).min(LONGEST_SILENCE),
            }
            match self.services.claims.lookup(&wanted.key).await {
                Ok(Some((now, _))) if now.vm_id != claim.vm_id || now.owner_epoch != claim.owner_epoch => {
                    return Relayed::Moved;
                }
                Ok(Some((now, revision)))
                    if now.phase == Phase::Placing && now_ms() > now.deadline_unix_ms =>
                {
                    return Relayed::Stuck(Box::new(now), revision);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Relayed::Moved,
                Err(error) => debug!(%error, "the claim cannot be read"),
            }
        }
    }

    async fn ask(&self, wanted: &Wanted, request: &Request, claim: &Claim, within: Duration) -> Answer {
        let left = request.deadline.saturating_duration_since(Instant::now());
        let mut map = request.headers.clone();
        map.insert(headers::NAMESPACE, wanted.key.namespace.as_str());
        map.insert(headers::REQUEST_ID, wanted.request_id.to_string().as_str());
        map.insert(headers::OWNER_EPOCH, claim.owner_epoch.to_string().as_str());
        map.insert(headers::DEADLINE_MS, left.as_millis().to_string().as_str());
        let asked = self.send(&claim.host, "create", map, request.body.clone(), left.min(within)).await;
        let reply = match asked {
            Ok(reply) => reply,
            Err(answer) => return answer,
        };
        let found = reply.headers.as_ref();
        match found.and_then(|map| header(map, headers::ERROR_CODE)) {
            None => Answer::Reply(reply.payload),
            Some(_) => Answer::Error(read_error(&claim.host, request.format, &reply.payload)),
        }
    }

    /// Whether the host of a claim works on its create; `false` also if it does not say so in time.
    pub(super) async fn is_placed(&self, key: &NameKey, claim: &Claim) -> bool {
        let body =
            PlacedRequest { namespace: key.namespace.clone(), name: key.name.clone(), vm_id: claim.vm_id };
        if claim.host == self.services.host {
            // Whoever asks has the name here, so nobody else works on it.
            let slot = self.directory.get(&key.namespace, &key.name);
            return slot.is_some_and(|slot| slot.vm_id == claim.vm_id);
        }
        let Ok(body) = codec::encode(&body) else { return false };
        let mut map = async_nats::HeaderMap::new();
        map.insert(headers::CONTENT_TYPE, codec::MSGPACK);
        let asked = self.send(&claim.host, "placed", map, body.into(), PLACED_WITHIN).await;
        let reply = asked.ok().and_then(|reply| codec::decode::<PlacedReply>(&reply.payload).ok());
        reply.is_some_and(|reply| reply.known)
    }

    async fn send(
        &self,
        host: &Token,
        verb: &str,
        map: async_nats::HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<async_nats::Message, Answer> {
        let client = &self.services.client;
        let subject =
            self.services.subjects.build(&Subject::Host { host: host.clone(), verb: verb.to_owned() });
        // An inbox of its own: the client forgets no request that is never answered otherwise.
        let asked = async_nats::Request::new().inbox(client.new_inbox()).headers(map).payload(body);
        let sent = client.send_request(subject, asked.timeout(Some(within))).await;
        match sent {
            Ok(reply) if reply.status == Some(async_nats::StatusCode::NO_RESPONDERS) => Err(Answer::Nobody),
            Ok(reply) => Ok(reply),
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Err(Answer::Nobody),
            Err(_) => Err(Answer::Silence),
        }
    }
}

fn offline(host: &Token) -> ErrorBody {
    let text = format!("host {:?}, which has this create, is not online; repeat the request", host.as_str());
    ErrorBody::new(ErrorCode::Unavailable, text).with("host", host)
}

fn read_error(host: &Token, format: Format, payload: &[u8]) -> ErrorBody {
    codec::decode_as(format, payload).unwrap_or_else(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("host {:?} answered: {error}", host.as_str()))
    })
}
