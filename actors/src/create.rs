//! `vm.create`: claim the name, find a host, make the row durable, take the name, begin.
//!
//! | step | what a crash after it leaves | who mends it |
//! |---|---|---|
//! | claim `placing` | a claim with a deadline | a retry, or a takeover after the deadline |
//! | row and request durable | a row that is not `owned` | adoption confirms the claim or undoes the row |
//! | claim `owned` | a VM that is `creating` | adoption begins its boot |
//!
//! Any host takes a create and goes on with what the claim says: [`Creator::create`]. The host that the claim names
//! does the work: [`Creator::create_here`]. A refusal moves the claim to the next candidate; a silent host is asked
//! again until the claim's deadline. Whatever moves a claim raises its epoch by compare-and-set, and a host begins
//! only after it has turned that very claim into `owned`: two hosts never both do.

mod place;
mod relay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use drover_schemas::body::host::{PlacedReply, PlacedRequest};
use drover_schemas::body::vm::{ChangeReply, CreateRequest};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, VmId, codec, headers};
use futures_util::future::BoxFuture;
use ractor::ActorRef;
use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use tracing::{Instrument as _, info, warn};

use self::place::{NotPlaced, draining};
use self::relay::{REFUSED, Relayed};
use crate::bus::claims::decide::Attempt;
use crate::bus::claims::{Claim, ClaimError, ClaimOutcome, NameKey, Phase};
use crate::chain;
use crate::directory::Directory;
use crate::fleet::demand::Demand;
use crate::fleet::placement::{Candidate, Pending, rank};
use crate::fleet::presence::record;
use crate::images::Pinned;
use crate::ingress::request::{Request, header};
use crate::manager::ManagerMsg;
use crate::router::HostPhase;
use crate::services::{Shared, now_ms};
use crate::spec::{Resolved, resolve};
use crate::vm::actor::{Remembered, adopting, name_reused, other_body, remembered};
use crate::vm::message::VmMsg;

/// How long a claim may stay in `placing`.
const PLACING_MS: u64 = 15_000;
/// How long a host that has just started waits to learn who else is there.
const INVENTORY_WITHIN: Duration = Duration::from_secs(2);
/// Hosts that an error names.
const NAMED: usize = 16;

/// Creates VMs.
#[derive(Debug, Clone)]
pub struct Creator {
    services: Shared,
    directory: Arc<Directory>,
    manager: ActorRef<ManagerMsg>,
    phase: watch::Receiver<HostPhase>,
    names: Arc<Mutex<HashMap<NameKey, Arc<tokio::sync::Mutex<()>>>>>,
}

/// The answer to a create.
#[derive(Debug)]
pub enum Created {
    /// By this host.
    Here(Box<ChangeReply>),
    /// By another host, in the request's format.
    Relayed(Bytes),
}

/// A create, decoded and checked.
#[derive(Debug, Clone)]
struct Wanted {
    key: NameKey,
    body: CreateRequest,
    demand: Demand,
    /// The spec as this host resolves it; another one may have other templates and images.
    spec: Result<Resolved, ErrorBody>,
    /// Its images stay until its row tells of them.
    _pinned: Option<Arc<Pinned>>,
    request_id: RequestId,
    digest: String,
}

/// The hosts that may get a VM, in order, and why the others do not.
#[derive(Debug, Default)]
struct Candidates {
    left: std::collections::VecDeque<Token>,
    not: BTreeMap<Token, String>,
    /// All that do not fit might later, without a change.
    passes: bool,
    /// What this host itself had to say.
    own: Option<ErrorBody>,
}

impl Creator {
    /// A creator of this host.
    #[must_use]
    pub fn new(
        services: Shared,
        directory: Arc<Directory>,
        manager: ActorRef<ManagerMsg>,
        phase: watch::Receiver<HostPhase>,
    ) -> Self {
        Self { services, directory, manager, phase, names: Arc::default() }
    }

    fn want(&self, namespace: &Token, request: &Request) -> Result<Wanted, ErrorBody> {
        let body: CreateRequest = request.decode()?;
        let services = &self.services;
        let spec = resolve(namespace, &body.spec, &services.templates, &services.images);
        let pinned = spec.as_ref().ok().and_then(|resolved| services.images.pin(&resolved.spec));
        let spec = if pinned.is_some() { spec } else { spec.and_then(|_| Err(going())) };
        Ok(Wanted {
            key: NameKey { namespace: namespace.clone(), name: body.name.clone() },
            demand: Demand::of(namespace, &body.spec, &services.templates),
            spec,
            _pinned: pinned.map(Arc::new),
            body,
            request_id: request.request_id.unwrap_or_else(RequestId::generate),
            digest: request.digest(),
        })
    }

    /// Carries out a create on whichever host it fits, or finds what became of it.
    ///
    /// # Errors
    /// The coded error for the caller.
    pub async fn create(&self, namespace: &Token, request: &Request) -> Result<Created, ErrorBody> {
        let wanted = self.want(namespace, request)?;
        // Two copies of one request meet here: the second finds what the first has made durable.
        let mut guard = Some(self.name_lock(&wanted.key).lock_owned().await);
        if let Some(answer) = self.known(&wanted) {
            drop(guard);
            return answer.await.map(|reply| Created::Here(Box::new(reply)));
        }
        let mut candidates = self.candidates(&wanted).await?;
        self.services.assets().await?;
        let mut held: Option<(Box<Claim>, u64)> = None;
        loop {
            let (claim, revision) = match self.claim(&wanted, &mut candidates, held.take()).await? {
                Next::Ask(claim, revision) => (claim, revision),
                Next::Reply(reply) => return Ok(Created::Here(reply)),
            };
            if claim.host == self.services.host {
                let lock = match guard.take() {
                    Some(guard) => guard,
                    None => {
                        let lock = self.name_lock(&wanted.key).lock_owned().await;
                        // While the claim was elsewhere another copy of the request may have brought it here, and
                        // be done.
                        if let Some(answer) = self.known(&wanted) {
                            drop(lock);
                            return answer.await.map(|reply| Created::Here(Box::new(reply)));
                        }
                        lock
                    }
                };
                match self.carry_out(wanted.clone(), (*claim).clone(), lock).await {
                    Ok(reply) => return Ok(Created::Here(Box::new(reply))),
                    Err(NotPlaced::Refused(error)) => {
                        candidates.refused(&claim.host, &error);
                        candidates.own = Some(error);
                        held = Some((claim, revision));
                    }
                    Err(NotPlaced::Moved) => {}
                    Err(NotPlaced::Failed(error)) => return Err(error),
                }
                continue;
            }
            // Copies are kept apart by the claim from here on.
            guard = None;
            match self.relay(&wanted, request, &claim).await {
                Relayed::Reply(bytes) => return Ok(Created::Relayed(bytes)),
                Relayed::Failed(error) => return Err(error),
                Relayed::Moved => {}
                // There is nothing left to be done by anybody.
                Relayed::Refused(error) if claim.phase == Phase::Gone => return Err(error),
                Relayed::Refused(error) => {
                    info!(host = %claim.host, reason = error.message, "a host does not take a VM");
                    candidates.refused(&claim.host, &error);
                    held = Some((claim, revision));
                }
                Relayed::Stuck(claim, revision) => {
                    warn!(host = %claim.host, "a host is silent about a create; another one takes it over");
                    candidates.silent(&claim.host);
                    held = Some((claim, revision));
                }
            }
        }
    }

    /// The placed half: carries out a create that another host placed here, or an operator.
    ///
    /// # Errors
    /// The coded error for the caller; `details.refused` if another host may have it.
    pub async fn create_here(&self, namespace: &Token, request: &Request) -> Result<ChangeReply, ErrorBody> {
        let refuse = |error: ErrorBody| error.with(REFUSED, true);
        let wanted = self.want(namespace, request).map_err(refuse)?;
        let epoch = header(&request.headers, headers::OWNER_EPOCH).map(str::parse::<u64>).transpose();
        let epoch = epoch.map_err(|_| {
            let text = format!("header {} must be a number", headers::OWNER_EPOCH);
            ErrorBody::new(ErrorCode::InvalidArgument, text)
        })?;
        let guard = self.name_lock(&wanted.key).lock_owned().await;
        if let Some(answer) = self.known(&wanted) {
            drop(guard);
            return answer.await;
        }
        self.services.assets().await?;
        let attempt = self.attempt(&wanted, &self.services.host);
        let claims = &self.services.claims;
        // Without an epoch it was asked for by hand, and has no claim yet.
        let outcome = match epoch {
            Some(_) => claims.judge_create(&wanted.key, &attempt).await,
            None => claims.claim_create(&wanted.key, &attempt).await.map(Some),
        };
        let claim = match outcome.map_err(|e| failed(&e))? {
            Some(ClaimOutcome::Claimed { claim, .. } | ClaimOutcome::SameRequest { claim, .. })
                if claim.host == self.services.host
                    && epoch.is_none_or(|epoch| epoch == claim.owner_epoch) =>
            {
                claim
            }
            Some(ClaimOutcome::Elsewhere { deleted_unix_ms, .. }) => {
                return Err(name_reused(deleted_unix_ms));
            }
            _ => return Err(refuse(moved())),
        };
        match self.carry_out(wanted.clone(), (*claim).clone(), guard).await {
            Ok(reply) => Ok(reply),
            Err(NotPlaced::Failed(error)) => Err(error),
            Err(NotPlaced::Moved) => Err(moved()),
            Err(NotPlaced::Refused(error)) => {
                if epoch.is_none() {
                    self.undo_claim(&wanted.key, &claim).await;
                }
                Err(refuse(error))
            }
        }
    }

    /// Whether this host works on a create, or has its VM.
    #[must_use]
    pub fn placed(&self, asked: &PlacedRequest) -> PlacedReply {
        let key = NameKey { namespace: asked.namespace.clone(), name: asked.name.clone() };
        let has = self.directory.get(&key.namespace, &key.name).is_some_and(|slot| slot.vm_id == asked.vm_id);
        PlacedReply { known: has || self.name_lock(&key).try_lock().is_err() }
    }

    /// Whoever asked may stop waiting at any moment. What was begun is carried out or undone all the same.
    async fn carry_out(
        &self,
        wanted: Wanted,
        claim: Claim,
        guard: OwnedMutexGuard<()>,
    ) -> Result<ChangeReply, NotPlaced> {
        let creator = self.clone();
        let work = async move { Box::pin(creator.place(wanted, claim, guard)).await };
        tokio::spawn(work.in_current_span()).await.unwrap_or_else(|_| Err(NotPlaced::Failed(interrupted())))
    }

    fn name_lock(&self, key: &NameKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() > 1_024 {
            names.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(names.entry(key.clone()).or_default())
    }

    /// What this host knows of the request id already.
    fn known(&self, wanted: &Wanted) -> Option<BoxFuture<'static, Result<ChangeReply, ErrorBody>>> {
        let ready = |result| -> Option<BoxFuture<'static, _>> { Some(Box::pin(std::future::ready(result))) };
        let Wanted { key, request_id, digest, .. } = wanted;
        let request_id = *request_id;
        match remembered(&self.services.journal, &key.namespace, request_id, "create", digest) {
            Remembered::Nothing => None,
            Remembered::Refused(error) => ready(Err(error)),
            Remembered::Done(result) => ready(*result),
            Remembered::InFlight => {
                // Without a VM the create was undone, most likely taken over: the claim tells by whom.
                let slot = self.directory.get(&key.namespace, &key.name)?;
                Some(Box::pin(async move {
                    let actor = slot.actor().ok_or_else(adopting)?;
                    let (reply, outcome) = oneshot::channel();
                    let _ = actor.cast(VmMsg::Attach { request_id, reply });
                    outcome.await.unwrap_or_else(|_| Err(interrupted()))
                }))
            }
        }
    }

    fn attempt(&self, wanted: &Wanted, host: &Token) -> Attempt {
        let now = now_ms();
        Attempt {
            vm_id: VmId::generate(),
            request_id: wanted.request_id,
            body_sha256: wanted.digest.clone(),
            host: host.clone(),
            now_unix_ms: now,
            deadline_unix_ms: now + PLACING_MS,
        }
    }

    async fn undo_claim(&self, key: &NameKey, claim: &Claim) {
        if let Err(error) = self.services.claims.undo(key, claim, now_ms()).await {
            warn!(error = %chain(&error), "a claim could not be given back; it runs into its deadline");
        }
    }

    /// The hosts that fit, the best one first.
    async fn candidates(&self, wanted: &Wanted) -> Result<Candidates, ErrorBody> {
        let own = &self.services.host;
        let inventory = &self.services.inventory;
        let loaded = inventory.loaded(INVENTORY_WITHIN).await;
        let others =
            || inventory.candidates(|all| all.iter().filter(|host| host.record.host != *own).count());
        let alone = !loaded || others() == 0;
        if alone {
            // A host that is alone says itself what is in the way, in more words.
            wanted.spec.as_ref().map_err(Clone::clone)?;
            if self.services.state.draining() {
                let own_word = Some(draining(own));
                return Ok(Candidates { passes: true, own: own_word, ..Candidates::default() });
            }
            return Ok(Candidates { left: [own.clone()].into(), ..Candidates::default() });
        }
        // What no host could take is told at once; what this one lacks another one may have.
        if let Err(error) = &wanted.spec
            && !lacks(error)
        {
            return Err(error.clone());
        }
        let row = record(&self.services, *self.phase.borrow());
        let mine = Candidate { record: &row, heard: Duration::ZERO, pending: Pending::default(), own: true };
        let seed = wanted.request_id.as_u128();
        let ranking = inventory.candidates(|all| {
            let others = all.into_iter().filter(|host| host.record.host != *own);
            rank(&wanted.demand, others.chain([mine]), seed)
        });
        let passes = ranking.unfit.values().all(|reason| reason.passes());
        let not = ranking.unfit.into_iter().map(|(host, reason)| (host, reason.to_string())).collect();
        // Nobody has what this host lacks: it says best what that is.
        let own_word = wanted.spec.as_ref().err().cloned();
        Ok(Candidates { left: ranking.fit.into(), not, passes, own: own_word })
    }

    /// Makes, moves or reads the claim: says whom to ask next.
    async fn claim(
        &self,
        wanted: &Wanted,
        candidates: &mut Candidates,
        held: Option<(Box<Claim>, u64)>,
    ) -> Result<Next, ErrorBody> {
        let claims = &self.services.claims;
        let next = candidates.left.pop_front();
        let chosen = |host: &Token| {
            if *host != self.services.host {
                let demand = &wanted.demand;
                let (cpus, memory) = (demand.cpus.unwrap_or(0), demand.memory_bytes.unwrap_or(0));
                self.services.inventory.sent(host, cpus, memory);
            }
            self.attempt(wanted, host)
        };
        let outcome = match (held, &next) {
            (Some((claim, revision)), Some(host)) => {
                claims.takeover(&wanted.key, &claim, revision, &chosen(host)).await.map(Some)
            }
            (Some((claim, _)), None) => {
                self.undo_claim(&wanted.key, &claim).await;
                return Err(candidates.none());
            }
            (None, Some(host)) => claims.claim_create(&wanted.key, &chosen(host)).await.map(Some),
            (None, None) => {
                claims.judge_create(&wanted.key, &self.attempt(wanted, &self.services.host)).await
            }
        };
        let outcome = outcome.map_err(|error| failed(&error))?.ok_or_else(|| candidates.none())?;
        if !matches!(&outcome, ClaimOutcome::Claimed { .. }) {
            // It was not asked; it may be still.
            candidates.left.extend(next);
        }
        self.follow(wanted, outcome).await
    }

    async fn follow(&self, wanted: &Wanted, outcome: ClaimOutcome) -> Result<Next, ErrorBody> {
        Ok(match outcome {
            ClaimOutcome::Claimed { claim, revision } | ClaimOutcome::SameRequest { claim, revision, .. } => {
                Next::Ask(claim, revision)
            }
            ClaimOutcome::AlreadyExists { stuck: Some((claim, revision)), .. }
                if !self.is_placed(&wanted.key, &claim).await =>
            {
                // Its host knows nothing of it or is silent, and its time is over.
                warn!(host = %claim.host, vm_id = %claim.vm_id, "a create that was given up is replaced by another");
                let attempt = self.attempt(wanted, &self.services.host);
                let claims = &self.services.claims;
                let taken = claims.takeover(&wanted.key, &claim, revision, &attempt).await;
                match taken.map_err(|error| failed(&error))? {
                    ClaimOutcome::Claimed { claim, revision } => Next::Ask(claim, revision),
                    _ => return Err(exists(wanted, claim.vm_id, &claim.host)),
                }
            }
            ClaimOutcome::AlreadyExists { vm_id, host, .. } => return Err(exists(wanted, vm_id, &host)),
            ClaimOutcome::Conflict => return Err(other_body(wanted.request_id)),
            ClaimOutcome::Replay(reply) => {
                let reply = codec::decode(reply.as_slice())
                    .map_err(|_| ErrorBody::new(ErrorCode::Internal, "the stored reply cannot be read"))?;
                Next::Reply(Box::new(reply))
            }
            ClaimOutcome::Elsewhere { host, deleted_unix_ms } if host == self.services.host => {
                return Err(name_reused(deleted_unix_ms));
            }
            // That host remembers the reply; the claim says only where.
            ClaimOutcome::Elsewhere { host, .. } => Next::Ask(Box::new(self.gone_claim(wanted, host)), 0),
            ClaimOutcome::NameReused { deleted_unix_ms } => return Err(name_reused(deleted_unix_ms)),
        })
    }

    fn gone_claim(&self, wanted: &Wanted, host: Token) -> Claim {
        Claim {
            vm_id: VmId::from_u128(0),
            request_id: wanted.request_id,
            body_sha256: wanted.digest.clone(),
            host,
            // Under no epoch is there anything left to do.
            owner_epoch: 0,
            phase: Phase::Gone,
            deadline_unix_ms: 0,
            previous: Vec::new(),
            gone: None,
        }
    }
}

/// Where a create goes on.
enum Next {
    /// The host of this claim, at this revision.
    Ask(Box<Claim>, u64),
    /// Nowhere: it deleted a VM of this name.
    Reply(Box<ChangeReply>),
}

impl Candidates {
    fn refused(&mut self, host: &Token, error: &ErrorBody) {
        self.left.retain(|left| left != host);
        self.passes &= error.code == ErrorCode::Unavailable;
        self.not.insert(host.clone(), error.message.clone());
    }

    fn silent(&mut self, host: &Token) {
        self.left.retain(|left| left != host);
        self.not.insert(host.clone(), "does not answer".to_owned());
    }

    /// Nobody takes it.
    fn none(&self) -> ErrorBody {
        let hosts: BTreeSet<&Token> = self.not.keys().collect();
        if let Some(own) =
            self.own.clone().filter(|_| hosts.len() <= 1 || self.own.as_ref().is_some_and(lacks))
        {
            return own;
        }
        let reasons = self.not.iter().take(NAMED).map(|(host, reason)| format!("{host}: {reason}"));
        let mut reasons = reasons.collect::<Vec<_>>().join("; ");
        if self.not.len() > NAMED {
            reasons.push_str(&format!("; and {} more", self.not.len() - NAMED));
        }
        let code = if self.passes { ErrorCode::Unavailable } else { ErrorCode::ResourceExhausted };
        let text = format!("no host of the fleet takes the VM: {reasons}");
        ErrorBody::new(code, text).with("resource", "hosts").with("hosts", reasons)
    }
}

/// A host lacks a template or an image that another one may have.
fn lacks(error: &ErrorBody) -> bool {
    let field = error.details.get("field").map(String::as_str).unwrap_or_default();
    error.code == ErrorCode::NotFound || field == "spec.template"
}

fn failed(error: &ClaimError) -> ErrorBody {
    warn!(error = %chain(error), "a name could not be claimed");
    error.to_body()
}

fn exists(wanted: &Wanted, vm_id: VmId, host: &Token) -> ErrorBody {
    let (name, namespace) = (wanted.key.name.as_str(), wanted.key.namespace.as_str());
    ErrorBody::new(
        ErrorCode::AlreadyExists,
        format!("there is a VM {name:?} in namespace {namespace:?}; use another name or delete it"),
    )
    .with("vm_id", vm_id)
    .with("host", host)
}

/// The claim does not say that the create is this host's.
fn moved() -> ErrorBody {
    ErrorBody::new(ErrorCode::Conflict, "the create is another host's").with("cause", "superseded")
}

/// The actor was lost while somebody waited.
pub fn interrupted() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Unavailable,
        "the host lost track of the request; repeat it with the same request id for its outcome",
    )
}

/// An image of the spec is being removed at this moment.
fn going() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Conflict,
        "an image of the VM is being removed; import it again, or name another",
    )
    .with("cause", "image_removed")
}
