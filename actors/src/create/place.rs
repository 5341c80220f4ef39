//! The placed half of a create: reserve, make the row durable, take the name, begin.

use std::time::Duration;

use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::state::{Desired, VmState};
use drover_schemas::{ErrorBody, ErrorCode, Token};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tracing::{info, warn};

use super::{Creator, Wanted, interrupted};
use crate::bus::claims::{Claim, OwnOutcome, Phase};
use crate::chain;
use crate::fleet::presence::{features, offers};
use crate::host::Leases;
use crate::journal::{Batch, RequestRow, RequestState, VmRow};
use crate::manager::ManagerMsg;
use crate::services::now_ms;
use crate::spec::Resolved;
use crate::spec::security::offered;
use crate::spec::shape::{POOLS, enough_pages};
use crate::vm::actor::outcome_result;
use crate::vm::disks::{supported, tool};
use crate::vm::inside::InsideRow;
use crate::vm::machine::Machine;
use crate::vm::prepare::prepare;
use crate::vm::row::Live;

/// Why a host did not create what it was chosen for.
#[derive(Debug)]
pub(super) enum NotPlaced {
    /// Nothing was done, and nothing will be: another host may have it.
    Refused(ErrorBody),
    /// The claim went to another host meanwhile; what was done here is undone.
    Moved,
    /// It is accepted or may be, and this is its outcome or that of this attempt.
    Failed(ErrorBody),
}

impl Creator {
    /// Reserves, makes the row durable, takes the name, begins.
    pub(super) async fn place(
        &self,
        wanted: Wanted,
        claim: Claim,
        guard: OwnedMutexGuard<()>,
    ) -> Result<ChangeReply, NotPlaced> {
        let state = &self.services.state;
        let vm_id = claim.vm_id;
        let mut resolved = wanted.spec.clone().map_err(NotPlaced::Refused)?;
        for disk in &mut resolved.spec.disks {
            // One that is not there is refused with the leases.
            let volume = disk.volume.as_ref();
            disk.size_bytes =
                volume.map_or(disk.size_bytes, |name| state.volumes().size(&wanted.key.namespace, name));
        }
        if claim.phase != Phase::Placing {
            return Err(NotPlaced::Failed(lost(&claim)));
        }
        let ns = &wanted.key.namespace;
        let placed = self
            .allowed(ns, &resolved.spec)
            .and_then(|()| state.reserve(ns, vm_id, &resolved.spec))
            .and_then(|()| state.lease(ns, vm_id, &resolved.spec).inspect_err(|_| state.unreserve(vm_id)));
        let leases = placed.map_err(NotPlaced::Refused)?;
        let (machine, effects) = Machine::create(wanted.request_id, wanted.body.wait);
        let row = self.row(&wanted, resolved, &claim, &leases);
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
            return Err(NotPlaced::Refused(error.to_body()));
        }
        let mut row = prepared.row;
        let owned = self.services.claims.own(&wanted.key, &claim).await;
        match owned {
            Ok(OwnOutcome::Done { .. }) => {
                row.owned = true;
                self.services.journal.let_events_go(vm_id);
            }
            Ok(OwnOutcome::Lost { .. }) => {
                if let Err(error) = self.services.journal.commit(Batch::take_out(&row)).await {
                    warn!(error = %chain(&error), "the row of a lost create could not be removed");
                }
                self.services.journal.let_events_go(vm_id);
                state.release(&row, Duration::ZERO);
                return Err(NotPlaced::Moved);
            }
            Err(error) => {
                // The row is durable and the claim will be confirmed: adoption takes it from here.
                warn!(%vm_id, error = %chain(&error), "the name could not be taken yet");
                // A retry that waits for the guard must find that the row is there.
                self.directory.list(&self.services, &row).await;
                let _ = self.manager.cast(ManagerMsg::Adopt(Box::new(row)));
                return Err(NotPlaced::Failed(error.to_body()));
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
        let outcome = match due_now {
            Some(due) => outcome_result(due),
            None => outcome.await.unwrap_or_else(|_| Err(interrupted())),
        };
        outcome.map_err(NotPlaced::Failed)
    }

    fn allowed(&self, namespace: &Token, spec: &ResolvedSpec) -> Result<(), ErrorBody> {
        self.services.admits_events_of(namespace)?;
        supported(spec, tool(), self.services.programs.agent.as_deref())?;
        enough_pages(POOLS.as_ref(), spec)?;
        offered(spec, || offers(&self.services))?;
        let why = if self.services.state.draining() {
            return Err(draining(&self.services.host));
        } else if spec.placement.host.as_ref().is_some_and(|host| *host != self.services.host) {
            format!("placement asks for host {:?}, which is not here", spec.placement.host)
        } else {
            let labels = &self.services.labels;
            match spec.placement.labels.iter().find(|(key, value)| labels.get(*key) != Some(value)) {
                Some((key, value)) => {
                    format!("placement asks for label {key}={value}, which this host has not")
                }
                None => {
                    let offered = features(&self.services);
                    match spec.placement.features.iter().find(|feature| !offered.contains(feature)) {
                        Some(feature) => {
                            format!("placement asks for {feature}, which this host does not offer")
                        }
                        None => return Ok(()),
                    }
                }
            }
        };
        Err(ErrorBody::new(ErrorCode::ResourceExhausted, why).with("resource", "hosts"))
    }

    fn row(&self, wanted: &Wanted, resolved: Resolved, claim: &Claim, leases: &Leases) -> VmRow {
        let now = now_ms();
        let Resolved { spec, origins, user_data } = resolved;
        VmRow {
            vm_id: claim.vm_id,
            namespace: wanted.key.namespace.clone(),
            name: wanted.key.name.clone(),
            spec,
            origins,
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
            disks: Vec::new(),
            restarts: Vec::new(),
            operation: None,
            create_request: wanted.request_id,
            owned: false,
            create_sha256: wanted.digest.clone(),
            released: false,
            previous: claim.previous.clone(),
            quarantined: None,
            inside: InsideRow::default(),
        }
    }
}

/// The host takes no new VMs.
pub(super) fn draining(host: &Token) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Unavailable,
        "the host takes no new VMs: an operator drains it; another host may take this one",
    )
    .with("phase", "draining")
    .with("host", host)
}

/// The bus says that the host has the VM, and the host knows nothing of it: its journal was lost or is older.
fn lost(claim: &Claim) -> ErrorBody {
    let text = format!(
        "host {:?} owns VM {} by its claim and has no row of it; an operator should look at host.orphans, or free its \
         name with host.forget",
        claim.host.as_str(),
        claim.vm_id
    );
    let error =
        ErrorBody::new(ErrorCode::Unavailable, text).with("cause", "row_lost").with("host", &claim.host);
    error.retryable(false)
}
