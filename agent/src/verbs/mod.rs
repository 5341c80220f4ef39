//! What the agent can do: decode, run once, bound in time.

mod accounts;
mod attach;
mod exec;
mod file;
mod for_host;
mod freeze;
mod get;
mod held;
mod names;
mod partial;
pub(crate) mod put;
mod shutdown;
mod tree;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use drover_schemas::body::guest::Empty;
use drover_schemas::codec::{self, Format};
use drover_schemas::guest::{
    Channel, ExecRequest, InfoResult, KillRequest, PingResult, Request, RunsRequest, RunsResult, verb,
};
use drover_schemas::{ErrorBody, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::timeout;

pub use self::partial::Partials;
use crate::Agent;
use crate::conn::Stream;
use crate::dedupe::{Admission, Outcome};
use crate::policy::Permit;
use crate::{facts, upgrade, work};

/// Whether a request may have changed the guest already: its failure is remembered from then on.
#[derive(Debug, Default)]
pub struct Effect(AtomicBool);

impl Effect {
    /// From now on.
    pub fn begins(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The channel on which a verb takes bytes from the host.
#[must_use]
pub fn takes(verb: &str) -> Option<Channel> {
    match verb {
        verb::EXEC | verb::ATTACH => Some(Channel::Stdin),
        verb::PUT | verb::UNPACK | verb::UPGRADE => Some(Channel::Data),
        _ => None,
    }
}

/// Runs a request, once per request id and boot.
pub async fn run(agent: &Arc<Agent>, stream: &Stream, request: &Request) -> Outcome {
    // Before its id is looked at: what is refused is not bound to it.
    let permit = agent.policy.check(&request.verb)?;
    let mutating = matches!(
        request.verb.as_str(),
        verb::EXEC
            | verb::KILL
            | verb::PUT
            | verb::UNPACK
            | verb::RM
            | verb::MKDIR
            | verb::FREEZE
            | verb::THAW
            | verb::CLOCK
            | verb::ONLINE
            | verb::TRIM
            | verb::IDENTITY
            | verb::UPGRADE
            | verb::NETWORK
            | verb::USER_ADD
            | verb::USER_RM
            | verb::KEYS_CHANGE
            | verb::SHUTDOWN
    );
    let effect = Effect::default();
    match request.request_id.filter(|_| mutating) {
        None => in_time(stream, request, work(agent, stream, request, &permit, &effect)).await,
        Some(id) => match agent.memory.admit(id, &request.verb, request.body.as_slice()) {
            Admission::Run(ticket) => {
                let outcome = in_time(stream, request, work(agent, stream, request, &permit, &effect)).await;
                ticket.finish(&outcome, effect.0.load(Ordering::Acquire));
                outcome
            }
            Admission::Attach(outcome) => {
                in_time(stream, request, or_ending(stream, attached(outcome))).await
            }
            Admission::Refuse(error) => Err(error),
        },
    }
}

/// When the deadline passes the stream is told to end, and its work winds up by itself.
async fn in_time(stream: &Stream, request: &Request, work: impl Future<Output = Outcome>) -> Outcome {
    let mut work = Box::pin(work);
    if let Some(ms) = request.deadline_ms {
        match timeout(Duration::from_millis(ms), &mut work).await {
            Ok(outcome) => return outcome,
            Err(_) => stream.end(crate::conn::Ending::Deadline),
        }
    }
    work.await
}

/// Work that may be dropped anywhere.
async fn or_ending(stream: &Stream, work: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        biased;
        ending = stream.ending() => Err(ending.error()),
        outcome = work => outcome,
    }
}

async fn attached(mut outcome: watch::Receiver<Option<Outcome>>) -> Outcome {
    match outcome.wait_for(Option::is_some).await {
        Ok(found) => found.clone().unwrap_or_else(|| Err(failed())),
        Err(_) => Err(failed()),
    }
}

fn failed() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Internal,
        "the first request of this id failed inside the agent; send a new one",
    )
}

async fn work(
    agent: &Arc<Agent>,
    stream: &Stream,
    request: &Request,
    permit: &Permit,
    effect: &Effect,
) -> Outcome {
    let body = request.body.as_slice();
    let reach = &permit.reach;
    agent.freezer.admit(&request.verb)?;
    match request.verb.as_str() {
        verb if !agent.facts.release.has(verb) => Err(no_verb(verb)),
        verb::PING => reply(&PingResult {
            boot_id: agent.facts.boot_id.clone(),
            unix_ms: facts::unix_ms(),
            uptime_ms: agent.facts.uptime_ms(),
        }),
        // A command is never dropped half-way: it ends what it started itself.
        verb::EXEC => {
            let command = decode::<ExecRequest>(body)?;
            permit.runs(&command)?;
            if command.detach {
                start_run(agent, request, command, effect).await
            } else {
                exec::run(stream, command, effect).await
            }
        }
        verb::RUNS => {
            let runs = match decode::<RunsRequest>(body)?.run {
                Some(run) => vec![agent.runs.get(run)?.1],
                None => agent.runs.list(),
            };
            reply(&RunsResult { runs })
        }
        verb::ATTACH => or_ending(stream, attach::run(agent, stream, decode(body)?)).await,
        verb::KILL => {
            let KillRequest { run, signal } = decode(body)?;
            agent.runs.kill(run, signal)?;
            effect.begins();
            reply(&Empty {})
        }
        verb::PUT => or_ending(stream, put::run(agent, stream, decode(body)?, reach, effect)).await,
        verb::GET => or_ending(stream, get::run(agent, stream, decode(body)?, reach)).await,
        verb::PACK => or_ending(stream, tree::pack(agent, stream, decode(body)?, reach)).await,
        verb::UNPACK => or_ending(stream, tree::unpack(agent, stream, decode(body)?, reach, effect)).await,
        verb::STAT => or_ending(stream, names::stat(decode(body)?, reach)).await,
        verb::LS => or_ending(stream, names::ls(decode(body)?, reach)).await,
        verb::RM => names::rm(decode(body)?, reach, effect).await,
        verb::MKDIR => names::mkdir(decode(body)?, reach, effect).await,
        verb::INFO => {
            let allowed = agent.policy.allowed(&facts::capabilities(agent.facts.release));
            or_ending(stream, async {
                reply(&InfoResult { allowed, ..agent.look.info(&agent.facts).await? })
            })
            .await
        }
        verb::HEALTH => {
            or_ending(stream, async {
                agent.watch.look().await;
                reply(&agent.look.health(&agent.facts, agent.watch.states()).await?)
            })
            .await
        }
        verb::CONFIGURE => {
            agent.watch.configure(decode(body)?)?;
            reply(&Empty {})
        }
        verb::PROCESSES => {
            let request = decode(body)?;
            or_ending(stream, async { reply(&agent.look.processes(request).await?) }).await
        }
        verb::SAMPLE => or_ending(stream, async { reply(&agent.look.sample().await?) }).await,
        verb::FREEZE | verb::THAW | verb::FROZEN => freeze::run(agent, stream, request, effect).await,
        verb::CLOCK | verb::ONLINE | verb::TRIM | verb::RESEED | verb::IDENTITY | verb::NETWORK => {
            work::own_kernel(&agent.facts, for_host::what(&request.verb))?;
            for_host::run(request, effect).await
        }
        verb::UPGRADE => upgrade::run(agent, stream, decode(body)?, effect).await,
        verb::USERS | verb::USER_ADD | verb::USER_RM | verb::KEYS | verb::KEYS_CHANGE => {
            accounts::run(request, permit, effect).await
        }
        verb::SHUTDOWN => {
            agent.freezer.release().await;
            shutdown::run(agent, decode(body)?, effect)
        }
        other => Err(no_verb(other)),
    }
}

fn no_verb(verb: &str) -> ErrorBody {
    let text = format!("this agent has no verb {verb:?}; its greeting lists what it can do");
    ErrorBody::new(ErrorCode::Unsupported, text)
}

/// Starts a detached command. Its end is looked for in its own folder, so nothing ends it here.
async fn start_run(agent: &Agent, request: &Request, command: ExecRequest, effect: &Effect) -> Outcome {
    let Some(id) = request.request_id else {
        return Err(invalid("a detached command needs a request id: it is the name of the run"));
    };
    let run = agent.runs.start(id, command, request.body.as_slice()).await?;
    effect.begins();
    reply(&run)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorBody> {
    codec::decode_request(Format::MsgPack, body)
        .map_err(|e| ErrorBody::new(ErrorCode::InvalidArgument, e.to_string()))
}

pub(crate) fn reply<T: Serialize>(result: &T) -> Outcome {
    codec::encode(result)
        .map(Bytes::from)
        .map_err(|e| ErrorBody::new(ErrorCode::Internal, crate::log::chain(&e)))
}

fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, message)
}
