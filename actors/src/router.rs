//! From a subject to what answers it. Every request that gets here is answered, by a result or a coded
//! error, within its deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, Message};
use drover_schemas::body::guest::{
    Empty, ExecReply, ExecRequest, GetRequest, GuestShutdownRequest, PutRequest,
};
use drover_schemas::body::host::{
    DrainRequest, ForgetRequest, HostsRequest, OrphanRemoveRequest, PlacedRequest,
};
use drover_schemas::body::image::{
    ImageGetRequest, ImageImportRequest, ImageNameRequest, ImagePullRequest, ImageShareRequest,
    ImageTagRequest, ImageUnshareRequest, ImagesRequest,
};
use drover_schemas::body::vm::{
    ChangeReply, ListRequest, LookupReply, LookupRequest, ValidateReply, ValidateRequest, Wait,
};
use drover_schemas::state::Verb;
use drover_schemas::stream::Channel;
use drover_schemas::subject::{Family, PoolVerb, Subject};
use drover_schemas::verbs::{self, Class, Plane};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, codec, headers};
use ractor::ActorRef;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout_at;
use tracing::{Instrument as _, debug, info_span};

use crate::audit::{Asked, plane_of, row_of};
use crate::bus::claims::{NameKey, Phase};
use crate::create::{Creator, interrupted};
use crate::directory::{Directory, Slot};
use crate::images::{fleet as shared, import as images, look, tag};
use crate::ingress::permits::{Permit, Permits};
use crate::ingress::request::{Arrived, Refused, ReplyPolicy, Request, header, namespace_of};
use crate::manager::ManagerMsg;
use crate::metrics::RequestLabels;
use crate::rejections::Rejections;
use crate::services::{Shared, now_ms};
use crate::stream::{self, Shape};
use crate::vm::explain::{config_text, explain};
use crate::vm::message::{View, VmMsg};
use crate::vm::row::shown;
use crate::vm::{guest_calls, run_calls};

mod changes;
mod console;
mod contract;
mod events;
mod fleet;
mod guest;
mod networks;
mod pool;
mod stats;
mod templates;
mod usage;
mod volumes;
mod work;

pub(crate) use usage::QuotaGauges;

/// The reply leaves this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(50);
/// Requests in flight of the whole host.
const HOST_PERMITS: usize = 1_024;
/// Refusals that are being written at once, beside the requests in flight.
const REFUSALS: usize = 512;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPhase {
    /// VMs of the journal are being adopted.
    Adopting,
    /// Everything is answered.
    Ready,
}

impl HostPhase {
    /// Its name in `host.info` and in errors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopting => "adopting",
            Self::Ready => "ready",
        }
    }
}

/// Routes requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Router {
    services: Shared,
    directory: Arc<Directory>,
    creator: Creator,
    permits: Permits,
    refusals: Arc<Semaphore>,
    policy: ReplyPolicy,
    rejections: Rejections,
    phase: watch::Receiver<HostPhase>,
    started_unix_ms: u64,
}

type Answer = Result<Reply, ErrorBody>;

/// A reply, encoded in the request's format when it is sent; or a stream that goes on by itself.
enum Reply {
    Body(Vec<u8>),
    /// The reply, the connection of the frames that follow it, and their pump.
    Stream(Vec<u8>, Client, std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Router {
    /// A router of this host.
    #[must_use]
    pub fn new(
        services: Shared,
        directory: Arc<Directory>,
        manager: ActorRef<ManagerMsg>,
        policy: ReplyPolicy,
        phase: watch::Receiver<HostPhase>,
    ) -> Self {
        let creator = Creator::new(services.clone(), Arc::clone(&directory), manager, phase.clone());
        let permits = Permits::new(HOST_PERMITS, Arc::clone(services.state.quotas()));
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        let rejections =
            Rejections::new(services.client.clone(), services.subjects.clone(), services.host.clone());
        let started_unix_ms = now_ms();
        Self { services, directory, creator, permits, refusals, policy, rejections, phase, started_unix_ms }
    }

    /// Takes a message off a subscription. The reader of a subscription does no more than this, so that it keeps up
    /// with a flood: what it cannot take is lost within the client. It waits only while too many refusals are being
    /// written.
    pub async fn accept(&self, client: &Client, message: Message) {
        let subject = self.services.subjects.parse(&message.subject);
        let (router, client) = (self.clone(), client.clone());
        match self.permits.acquire(subject.as_ref().and_then(namespace_of)) {
            Ok(permit) => {
                let arrived = Arrived::new(message);
                tokio::spawn(async move { router.serve(&client, subject, arrived, permit).await });
            }
            Err(error) => {
                self.services.metrics.busy.inc();
                let arrived = Arrived::new(message);
                match Arc::clone(&self.refusals).try_acquire_owned() {
                    Ok(writing) => {
                        tokio::spawn(async move {
                            router.refuse(&client, subject, arrived, error).await;
                            drop(writing);
                        });
                    }
                    Err(_) => router.refuse(&client, subject, arrived, error).await,
                }
            }
        }
    }

    async fn refuse(&self, client: &Client, subject: Option<Subject>, arrived: Arrived, error: ErrorBody) {
        let Some(subject) = subject else { return self.refuse_unknown(client, arrived).await };
        if let Some(request) = self.read(client, subject, arrived).await {
            self.audit(&request, Err(error.code));
            request.responder.error(error).await;
        }
    }

    /// A request, if what arrived is one that can be answered.
    async fn read(&self, client: &Client, subject: Subject, arrived: Arrived) -> Option<Request> {
        match Request::read(client, &self.policy, &self.rejections, subject, arrived).await {
            Ok(request) => Some(request),
            Err(refused) => {
                let Refused { subject, headers, reply, code } = &*refused;
                let asked = Asked { subject: Ok(subject), headers, reply: reply.as_deref(), body: None };
                self.services.audit.note(&asked, Err(*code));
                None
            }
        }
    }

    fn audit(&self, request: &Request, outcome: Result<(), ErrorCode>) {
        let reply = request.responder.reply_subject().map(async_nats::Subject::as_str);
        let body = Some((request.format, request.body.as_ref()));
        let asked = Asked { subject: Ok(&request.subject), headers: &request.headers, reply, body };
        self.services.audit.note(&asked, outcome);
    }

    async fn serve(self, client: &Client, subject: Option<Subject>, arrived: Arrived, permit: Permit) {
        let Some(subject) = subject else { return self.refuse_unknown(client, arrived).await };
        let Some(request) = self.read(client, subject, arrived).await else { return };
        if !request.wants_reply() && request.request_id.is_none() {
            // Nobody could ever learn the outcome.
            self.audit(&request, Err(ErrorCode::InvalidArgument));
            debug!(subject = ?request.subject, "dropped a request without reply subject and id");
            return;
        }
        let span = info_span!("request", id = ?request.request_id, subject = ?request.subject);
        crate::trace::adopt(&span, &request.headers);
        self.handle(request, permit).instrument(span).await;
    }

    async fn refuse_unknown(&self, client: &Client, arrived: Arrived) {
        let text: String = arrived.subject().chars().take(200).collect();
        let vm = Token::new("unknown");
        let (Ok(ns), Ok(name), Ok(verb)) = (vm.clone(), vm.clone(), vm) else { return };
        let subject = Subject::Vm { ns, name, verb };
        let read = Request::read(client, &self.policy, &self.rejections, subject, arrived).await;
        let (headers, reply) = match &read {
            Ok(request) => (&request.headers, request.responder.reply_subject()),
            Err(refused) => (&refused.headers, refused.reply.as_ref()),
        };
        let reply = reply.map(async_nats::Subject::as_str);
        self.services.audit.note(
            &Asked { subject: Err(&text), headers, reply, body: None },
            Err(ErrorCode::InvalidArgument),
        );
        let Ok(request) = read else { return };
        let error = ErrorBody::new(
            ErrorCode::InvalidArgument,
            format!(
                "{text:?} is not a subject of this contract; verbs of a VM are {}, of its guest {}",
                verbs::names(Plane::Vm),
                verbs::names(Plane::VmGuest)
            ),
        );
        request.responder.error(error).await;
    }

    async fn handle(self, request: Request, permit: Permit) {
        let began = Instant::now();
        let (verb, known) = label_of(&request.subject);
        let due =
            tokio::time::Instant::from_std(request.deadline.checked_sub(MARGIN).unwrap_or(request.deadline));
        let answer = if known {
            // The answer is boxed: requests differ much in size, and most are small.
            match timeout_at(due, Box::pin(self.answer(&request, permit))).await {
                Ok(answer) => answer,
                Err(_) => Err(ErrorBody::new(
                    ErrorCode::DeadlineExceeded,
                    "the outcome is not known yet; repeat the request with the same id, or watch its events",
                )),
            }
        } else {
            Err(unknown_verb(&request.subject))
        };
        let code = match &answer {
            Ok(_) => "ok",
            Err(error) => error.code.as_str(),
        };
        let metrics = &self.services.metrics;
        metrics.requests.get_or_create(&RequestLabels { verb, code }).inc();
        metrics.request_duration.observe(began.elapsed().as_secs_f64());
        if self.is_anothers(&request.subject) {
            return request.responder.silence();
        }
        self.audit(&request, answer.as_ref().map(|_| ()).map_err(|error| error.code));
        let responder = match verb {
            // On the connection on which the VM was subscribed for: who asks for it next is heard.
            "create" => match created_in(&request) {
                Some(ns) => request.responder.over(self.services.lanes.of(&ns).await.client),
                None => request.responder,
            },
            _ => request.responder,
        };
        match answer {
            Ok(Reply::Body(body)) => responder.ok_bytes(body.into()).await,
            Ok(Reply::Stream(body, client, pump)) => {
                responder.over(client).ok_bytes(body.into()).await;
                pump.await;
            }
            Err(error) => responder.error(error).await,
        }
    }

    async fn answer(&self, request: &Request, permit: Permit) -> Answer {
        match &request.subject {
            Subject::VmPool { ns, verb } => self.pool(ns, *verb, request).await,
            Subject::Vm { ns, name, verb } => {
                self.fence(Plane::Vm, verb.as_str()).await?;
                self.vm(ns, name, verb.as_str(), request, permit).await
            }
            Subject::Guest { ns, name, verb } => {
                self.fence(Plane::VmGuest, verb.as_str()).await?;
                self.guest(ns, name, verb.as_str(), request).await
            }
            Subject::Registry { ns, family: Family::Events, verb } => match verb.as_str() {
                "read" => {
                    let (body, bounds) = (request.decode()?, events::Bounds::of(request));
                    body_of(request, &events::read(&self.services, ns, &body, bounds).await?)
                }
                _ => {
                    let (body, bounds) = (request.decode()?, events::Bounds::of(request));
                    body_of(request, &events::last(&self.services, ns, &body, bounds).await?)
                }
            },
            Subject::Registry { ns, family: Family::Template, verb } => match verb.as_str() {
                "list" => {
                    let _: Empty = request.decode()?;
                    body_of(request, &templates::list(&self.services, ns))
                }
                _ => body_of(request, &templates::get(&self.services, ns, &request.decode()?)?),
            },
            Subject::Registry { family: Family::Contract, verb, .. } if verb.as_str() == "read" => {
                let _: Empty = request.decode()?;
                body_of(request, &*contract::CONTRACT)
            }
            Subject::Registry { family, .. } => Err(ErrorBody::new(
                ErrorCode::Unsupported,
                format!("{} verbs are not offered by this version", family.as_str()),
            )),
            Subject::Host { verb, .. } => self.host(verb, request).await,
            _ => Err(unknown_verb(&request.subject)),
        }
    }

    /// Before the claims are read, only what looks is answered.
    async fn fence(&self, plane: Plane, verb: &str) -> Result<(), ErrorBody> {
        let passed = self.services.fence.pass().await;
        if verbs::find(plane, verb).is_some_and(|row| row.class == Class::Read) { Ok(()) } else { passed }
    }

    /// The request is about a VM that was this host's: whoever has the name now answers.
    fn is_anothers(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Vm { ns, name, .. } | Subject::Guest { ns, name, .. } => {
                self.services.quarantined.has(ns, name) && self.directory.get(ns, name).is_none()
            }
            _ => false,
        }
    }

    fn slot(&self, ns: &Token, name: &Token) -> Result<Arc<Slot>, ErrorBody> {
        self.directory.get(ns, name).ok_or_else(|| {
            ErrorBody::new(
                ErrorCode::NotFound,
                format!("there is no VM {name:?} in namespace {ns:?} on this host"),
            )
        })
    }

    fn actor(&self, ns: &Token, name: &Token) -> Result<crate::vm::actor::VmRef, ErrorBody> {
        self.slot(ns, name)?.actor().ok_or_else(adopting)
    }

    async fn view(&self, ns: &Token, name: &Token) -> Result<Box<View>, ErrorBody> {
        crate::vm::actor::view(&self.actor(ns, name)?).await.ok_or_else(interrupted)
    }

    async fn vm(&self, ns: &Token, name: &Token, verb: &str, request: &Request, permit: Permit) -> Answer {
        match verb {
            "get" => {
                let _: Empty = request.decode()?;
                let view = self.view(ns, name).await?;
                body_of(request, &shown(&self.services, &view))
            }
            "logs" => self.logs(ns, name, request).await,
            "console" => self.console(ns, name, request).await,
            "stats" => stats::stats(self, ns, name, request).await,
            "explain" => {
                let _: Empty = request.decode()?;
                let view = self.view(ns, name).await?;
                let history = events::history(&self.services, ns, name).await.unwrap_or_default();
                body_of(request, &explain(&self.services, &view, history))
            }
            _ => {
                let reply = changes::change(self, ns, name, verb, request, permit).await?;
                body_of(request, &reply)
            }
        }
    }

    async fn host(&self, verb: &str, request: &Request) -> Answer {
        match verb {
            "info" => {
                let _: Empty = request.decode()?;
                body_of(request, &pool::host_info(self).await)
            }
            "backup" => {
                let _: Empty = request.decode()?;
                body_of(request, &pool::backup(self).await?)
            }
            "drain" => {
                let body: DrainRequest = request.decode()?;
                body_of(request, &pool::drain(self, body).await?)
            }
            "orphans" => {
                let _: Empty = request.decode()?;
                body_of(request, &pool::orphans(self).await?)
            }
            "orphans.remove" => {
                let body: OrphanRemoveRequest = request.decode()?;
                body_of(request, &pool::remove_orphan(self, body).await?)
            }
            "list" => {
                let body: HostsRequest = request.decode()?;
                body_of(request, &fleet::hosts(self, &body))
            }
            "forget" => {
                let body: ForgetRequest = request.decode()?;
                body_of(request, &fleet::forget_host(self, body, request.request_id).await?)
            }
            "image.list" => {
                let body: ImagesRequest = request.decode()?;
                body_of(request, &look::list(&self.services, &body).await?)
            }
            "image.get" => {
                let body: ImageGetRequest = request.decode()?;
                body_of(request, &look::get(&self.services, &body).await?)
            }
            "image.import" => {
                let body: ImageImportRequest = request.decode()?;
                body_of(request, &images::import(&self.services, body).await?)
            }
            "image.tag" => {
                let body: ImageTagRequest = request.decode()?;
                body_of(request, &tag::tag(&self.services, body).await?)
            }
            "image.verify" => {
                let body: ImageNameRequest = request.decode()?;
                body_of(request, &images::verify(&self.services, &body).await?)
            }
            "image.remove" => {
                let body: ImageNameRequest = request.decode()?;
                body_of(request, &images::remove(&self.services, body).await?)
            }
            "image.gc" => {
                let _: Empty = request.decode()?;
                body_of(request, &images::collect(&self.services).await?)
            }
            "image.share" => {
                let body: ImageShareRequest = request.decode()?;
                body_of(request, &shared::share(&self.services, body).await?)
            }
            "image.unshare" => {
                let body: ImageUnshareRequest = request.decode()?;
                body_of(request, &shared::unshare(&self.services, &body).await?)
            }
            "image.pull" => {
                let body: ImagePullRequest = request.decode()?;
                body_of(request, &shared::pull(&self.services, body).await?)
            }
            "image.shared" => {
                let body: ImagesRequest = request.decode()?;
                body_of(request, &shared::list(&self.services, &body).await?)
            }
            "volume.create" | "volume.grow" | "volume.list" | "volume.remove" => {
                self.volumes(verb, request).await
            }
            "network.create" | "network.list" | "network.remove" => self.networks(verb, request).await,
            "placed" => {
                let body: PlacedRequest = request.decode()?;
                body_of(request, &self.creator.placed(&body))
            }
            "create" => {
                let namespace = header(&request.headers, headers::NAMESPACE).ok_or_else(|| {
                    let message = format!("header {} is missing", headers::NAMESPACE);
                    ErrorBody::new(ErrorCode::InvalidArgument, message)
                })?;
                let namespace = Token::new(namespace)
                    .map_err(|e| ErrorBody::new(ErrorCode::InvalidArgument, format!("namespace: {e}")))?;
                body_of(request, &self.creator.create_here(&namespace, request).await?)
            }
            _ => Err(unknown_verb(&request.subject)),
        }
    }
}

/// Whoever asked may be gone: what was begun is ended all the same.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, ErrorBody>> + Send + 'static,
) -> Result<T, ErrorBody> {
    let panicked = |error: tokio::task::JoinError| ErrorBody::new(ErrorCode::Internal, error.to_string());
    tokio::spawn(work).await.unwrap_or_else(|error| Err(panicked(error)))
}

/// The namespace of a create; that of a placed one stands in a header.
fn created_in(request: &Request) -> Option<Token> {
    let placed = || Token::new(header(&request.headers, headers::NAMESPACE)?).ok();
    namespace_of(&request.subject).cloned().or_else(placed)
}

/// Encodes a reply in the request's format.
fn body_of<T: serde::Serialize>(request: &Request, value: &T) -> Answer {
    codec::encode_as(request.format, value)
        .map(Reply::Body)
        .map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the reply could not be encoded: {e}")))
}

fn adopting() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Unavailable,
        "the host has just started and is finding out how the VM is; repeat the request",
    )
    .with("phase", "adopting")
}

/// The verb for metrics, and whether the table has it.
fn label_of(subject: &Subject) -> (&'static str, bool) {
    match (row_of(subject), subject) {
        (Some(row), _) => (row.verb, true),
        (None, Subject::Registry { family, .. }) if plane_of(*family).is_none() => ("registry", true),
        (None, _) => ("unknown", false),
    }
}

fn unknown_verb(subject: &Subject) -> ErrorBody {
    let (plane, verb) = match subject {
        Subject::Guest { verb, .. } => (Plane::VmGuest, verb.as_str().to_owned()),
        Subject::Host { verb, .. } => (Plane::Host, verb.clone()),
        Subject::Vm { verb, .. } => (Plane::Vm, verb.to_string()),
        Subject::Registry { family, verb, .. } => {
            (plane_of(*family).unwrap_or(Plane::Events), verb.to_string())
        }
        _ => (Plane::Pool, String::new()),
    };
    let known = verbs::names(plane);
    let names: Vec<&str> = known.split(", ").collect();
    let hint = crate::spec::hint(&verb, &names);
    ErrorBody::new(ErrorCode::Unsupported, format!("there is no verb {verb:?} here; {hint}known: {known}"))
}
