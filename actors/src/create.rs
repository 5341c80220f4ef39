//! `vm.create`: claim the name, find a host, make the row durable, take the name, begin.
//!
//! | step | what a crash after it leaves | who mends it |
//! |---|---|---|
//! | claim `placing` | a claim with a deadline | a retry, or a takeover after the deadline |
//! | row and request durable | a row that is not `owned` | adoption confirms the claim or undoes the row |
//! | claim `owned` | a VM that is `creating` | adoption begins its boot |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::body::spec::{ResolvedSpec, VmSpec};
use drover_schemas::body::vm::{ChangeReply, CreateRequest};
use drover_schemas::state::{Desired, VmState};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, VmId, codec, headers};
use futures_util::future::BoxFuture;
use ractor::ActorRef;
use tokio::sync::oneshot;
use tracing::{Instrument as _, info, warn};

use crate::bus::claims::decide::Attempt;
use crate::bus::claims::{Claim, ClaimOutcome, NameKey, OwnOutcome};
use crate::chain;
use crate::directory::Directory;
use crate::ingress::request::Request;
use crate::journal::{Batch, RequestRow, RequestState, VmRow};
use crate::manager::ManagerMsg;
use crate::services::{Shared, now_ms};
use crate::spec::resolve;
use crate::vm::actor::{Remembered, adopting, other_body, outcome_result, remembered};
use crate::vm::machine::Machine;
use crate::vm::message::VmMsg;
use crate::vm::prepare::prepare;
use crate::vm::row::Live;

/// How long a claim may stay in `placing`.
const PLACING_MS: u64 = 30_000;

/// Creates VMs.
#[derive(Debug, Clone)]
pub struct Creator {
    services: Shared,
    directory: Arc<Directory>,
    manager: ActorRef<ManagerMsg>,
    names: Arc<Mutex<HashMap<NameKey, Arc<tokio::sync::Mutex<()>>>>>,
}

/// A create, decoded and checked.
struct Wanted {
    key: NameKey,
    body: CreateRequest,
    spec: ResolvedSpec,
    request_id: RequestId,
    digest: String,
}

impl Creator {
    /// A creator of this host.
    #[must_use]
    pub fn new(services: Shared, directory: Arc<Directory>, manager: ActorRef<ManagerMsg>) -> Self {
        Self { services, directory, manager, names: Arc::default() }
    }

    /// Carries out a create, or finds what became of it.
    ///
    /// # Errors
    /// The coded error for the caller.
    pub async fn create(&self, namespace: &Token, request: &Request) -> Result<ChangeReply, ErrorBody> {
        let body: CreateRequest = request.decode()?;
        let spec = resolve(&body.spec, &self.services.templates, &self.services.images)?;
        let wanted = Wanted {
            key: NameKey { namespace: namespace.clone(), name: body.name.clone() },
            body,
            spec,
            request_id: request.request_id.unwrap_or_else(RequestId::generate),
            digest: request.digest(),
        };
        // Two copies of one request meet here: the second finds what the first has made durable.
        let lock = self.name_lock(&wanted.key);
        let guard = lock.lock_owned().await;
        if let Some(answer) = self.known(&wanted) {
            drop(guard);
            return answer.await;
        }
        if self.services.state.draining() {
            return Err(ErrorBody::new(
                ErrorCode::Unavailable,
                "the host takes no new VMs: an operator drains it; another host may take this one",
            )
            .with("phase", "draining")
            .with("host", &self.services.host));
        }
        self.services.assets().await?;
        let attempt = self.attempt(&wanted);
        let outcome = self.services.claims.claim_create(&wanted.key, &attempt).await.map_err(|e| {
            warn!(error = %chain(&e), "a name could not be claimed");
            e.to_body()
        })?;
        let claim = match outcome {
            ClaimOutcome::Claimed { claim, .. } => *claim,
            ClaimOutcome::SameRequest { claim, .. } if claim.host == self.services.host => *claim,
            ClaimOutcome::SameRequest { claim, .. } => {
                drop(guard);
                return self.forward(&claim.host, namespace, request, wanted.request_id).await;
            }
            ClaimOutcome::Conflict => return Err(other_body(wanted.request_id)),
            ClaimOutcome::AlreadyExists { vm_id, host, .. } => {
                return Err(ErrorBody::new(
                    ErrorCode::AlreadyExists,
                    format!(
                        "there is a VM {:?} in namespace {namespace:?}; use another name or delete it",
                        wanted.body.name.as_str()
                    ),
                )
                .with("vm_id", vm_id)
                .with("host", host));
            }
            ClaimOutcome::Replay(reply) => {
                return codec::decode(reply.as_slice())
                    .map_err(|_| ErrorBody::new(ErrorCode::Internal, "the stored reply cannot be read"));
            }
            ClaimOutcome::NameReused { deleted_unix_ms } => {
                return Err(ErrorBody::new(
                    ErrorCode::Conflict,
                    "the request is older than the last delete of this name; make a new request id",
                )
                .with("cause", "name_reused")
                .with("deleted_unix_ms", deleted_unix_ms));
            }
        };
        // Whoever asked may stop waiting at any moment. What was begun is carried out or undone all the same.
        let creator = self.clone();
        let placed = tokio::spawn(async move { creator.place(wanted, claim, guard).await }.in_current_span());
        placed.await.unwrap_or_else(|_| Err(interrupted()))
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

    fn attempt(&self, wanted: &Wanted) -> Attempt {
        let now = now_ms();
        Attempt {
            vm_id: VmId::generate(),
            request_id: wanted.request_id,
            body_sha256: wanted.digest.clone(),
            host: self.services.host.clone(),
            now_unix_ms: now,
            deadline_unix_ms: now + PLACING_MS,
        }
    }

    /// Reserves, makes the row durable, takes the name, begins.
    async fn place(
        &self,
        wanted: Wanted,
        claim: Claim,
        guard: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<ChangeReply, ErrorBody> {
        let state = &self.services.state;
        let vm_id = claim.vm_id;
        let ns = &wanted.key.namespace;
        let placed = self
            .allowed(ns, &wanted.spec)
            .and_then(|()| state.reserve(ns, vm_id, &wanted.spec))
            .and_then(|()| state.lease(ns, vm_id, &wanted.spec).inspect_err(|_| state.unreserve(vm_id)));
        let leases = match placed {
            Ok(leases) => leases,
            Err(error) => {
                self.undo_claim(&wanted.key, &claim).await;
                return Err(error);
            }
        };
        let (machine, effects) = Machine::create(wanted.request_id, wanted.body.wait);
        let row = self.row(&wanted, &claim, &leases);
        let request = RequestRow {
            verb: "create".into(),
            body_sha256: wanted.digest.clone(),
            bound_unix_ms: now_ms(),
            state: RequestState::InFlight { vm_id, phase: "creating".into() },
        };
        let bind = Some((wanted.request_id, request));
        let prepared = prepare(&self.services, &row, &Live::default(), &machine, &effects, bind);
        let mut batch = prepared.batch;
        batch.push_leases(&row);
        // Nobody may hear of a VM whose name another host has: the first event waits for the claim.
        self.services.journal.hold_events(vm_id);
        if let Err(error) = self.services.journal.commit(batch).await {
            self.services.journal.let_events_go(vm_id);
            state.unreserve(vm_id);
            state.give_back(&leases);
            self.undo_claim(&wanted.key, &claim).await;
            return Err(error.to_body());
        }
        let mut row = prepared.row;
        let owned = self.services.claims.own(&wanted.key, &claim).await;
        match owned {
            Ok(OwnOutcome::Done { .. }) => {
                row.owned = true;
                self.services.journal.let_events_go(vm_id);
            }
            Ok(OwnOutcome::Lost { .. }) => {
                if let Err(error) = self.services.journal.commit(Batch::undo_create(vm_id)).await {
                    warn!(error = %chain(&error), "the row of a lost create could not be removed");
                }
                self.services.journal.let_events_go(vm_id);
                state.release(&row, Duration::ZERO);
                return Err(ErrorBody::new(ErrorCode::Conflict, "another host took the create over")
                    .with("cause", "superseded"));
            }
            Err(error) => {
                // The row is durable and the claim will be confirmed: adoption takes it from here.
                warn!(%vm_id, error = %chain(&error), "the name could not be taken yet");
                // A retry that waits for the guard must find that the row is there.
                self.directory.list(&self.services, &row).await;
                let _ = self.manager.cast(ManagerMsg::Adopt(Box::new(row)));
                return Err(error.to_body());
            }
        }
        info!(%vm_id, name = %row.name, namespace = %row.namespace, "created");
        // Whoever gets the reply may ask at once.
        self.directory.list(&self.services, &row).await;
        let due_now = prepared.outcomes.into_iter().next().map(|(_, outcome)| outcome);
        let (reply, outcome) = oneshot::channel();
        let waiter = due_now.is_none().then_some((wanted.request_id, reply));
        let (began, when_begun) = oneshot::channel();
        let _ = self.manager.cast(ManagerMsg::Spawn {
            row: Box::new(row),
            machine: Box::new(machine),
            effects,
            trace: crate::trace::current(),
            waiter,
            began,
        });
        // A duplicate that waits for the guard attaches to the actor, so there must be one.
        let _ = when_begun.await;
        drop(guard);
        match due_now {
            Some(due) => outcome_result(due),
            None => outcome.await.unwrap_or_else(|_| Err(interrupted())),
        }
    }

    fn allowed(&self, namespace: &Token, spec: &ResolvedSpec) -> Result<(), ErrorBody> {
        self.services.admits_events_of(namespace)?;
        match &spec.placement.host {
            Some(host) if *host != self.services.host => Err(ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!("placement asks for host {host:?}, which is not here"),
            )
            .with("resource", "hosts")),
            _ => Ok(()),
        }
    }

    async fn undo_claim(&self, key: &NameKey, claim: &Claim) {
        if let Err(error) = self.services.claims.undo(key, claim, now_ms()).await {
            warn!(error = %chain(&error), "a claim could not be given back; it runs into its deadline");
        }
    }

    fn row(&self, wanted: &Wanted, claim: &Claim, leases: &crate::host::Leases) -> VmRow {
        let now = now_ms();
        let VmSpec { user_data, .. } = wanted.body.spec.clone();
        VmRow {
            vm_id: claim.vm_id,
            namespace: wanted.key.namespace.clone(),
            name: wanted.key.name.clone(),
            spec: wanted.spec.clone(),
            user_data,
            state: VmState::Creating,
            desired: Desired::Running,
            revision: 1,
            incarnation: 1,
            seq: 0,
            owner_epoch: claim.owner_epoch,
            created_unix_ms: now,
            state_since_unix_ms: now,
            cause: None,
            uid: leases.uid,
            nics: leases.nics.clone(),
            restarts: Vec::new(),
            operation: None,
            create_request: wanted.request_id,
            owned: false,
            create_sha256: wanted.digest.clone(),
            released: false,
        }
    }

    /// The host that has the claim answers, with the very bytes of the request.
    async fn forward(
        &self,
        host: &Token,
        namespace: &Token,
        request: &Request,
        request_id: RequestId,
    ) -> Result<ChangeReply, ErrorBody> {
        let subject = self
            .services
            .subjects
            .build(&drover_schemas::subject::Subject::Host { host: host.clone(), verb: "create".into() });
        let left = request.deadline.saturating_duration_since(Instant::now());
        let mut header = request.headers.clone();
        header.insert(headers::NAMESPACE, namespace.as_str());
        header.insert(headers::REQUEST_ID, request_id.to_string().as_str());
        header.insert(headers::DEADLINE_MS, left.as_millis().to_string().as_str());
        let client = &self.services.client;
        let relayed = async_nats::Request::new()
            .inbox(client.new_inbox())
            .headers(header)
            .payload(request.body.clone())
            .timeout(Some(left));
        let reply = client.send_request(subject, relayed).await.map_err(|error| {
            ErrorBody::new(
                ErrorCode::Unavailable,
                format!("host {host:?}, which has this create, does not answer; repeat the request"),
            )
            .with("host", host)
            .with("reason", error)
        })?;
        let failed = reply.headers.as_ref().is_some_and(|h| h.get(headers::ERROR_CODE).is_some());
        let unreadable = |e: codec::DecodeError| {
            ErrorBody::new(ErrorCode::Internal, format!("host {host:?} answered: {e}"))
        };
        if failed {
            Err(codec::decode_as(request.format, &reply.payload).map_err(unreadable)?)
        } else {
            codec::decode_as(request.format, &reply.payload).map_err(unreadable)
        }
    }
}

/// The actor was lost while somebody waited.
pub fn interrupted() -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Unavailable,
        "the host lost track of the request; repeat it with the same request id for its outcome",
    )
}
