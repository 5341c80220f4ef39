//! What one step of the machine writes to the journal: the row, its events, the outcomes of requests.
//! All of it is one batch, so a reply, its event and the state it tells of are durable together.

use drover_schemas::body::status::{Cause, CauseKind, VmStatus};
use drover_schemas::body::vm::{ChangeReply, Outcome};
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use tracing::error;

use super::explain::error_of;
use super::machine::{Effect, Ending, Machine, Op};
use super::row::{EventDraft, Live, outbox_row, status, write_machine};
use crate::chain;
use crate::journal::{
    Batch, EventClass, Op as Write, REQUEST_WINDOW_MS, RequestLookup, RequestRow, RequestState, VmRow,
};
use crate::services::{Services, now_ms};

/// A step, ready to be committed.
#[derive(Debug)]
pub struct Prepared {
    /// The row after it.
    pub row: VmRow,
    /// What is written; empty if nothing changed.
    pub batch: Batch,
    /// Requests that end with it.
    pub outcomes: Vec<(RequestId, Outcome)>,
}

/// Prepares the step from `row` to `next`. `bind` is a request that is accepted with it.
#[must_use]
pub fn prepare(
    services: &Services,
    row: &VmRow,
    live: &Live,
    next: &Machine,
    effects: &[Effect],
    bind: Option<(RequestId, RequestRow)>,
) -> Prepared {
    let now = now_ms();
    let before = row;
    let mut row = row.clone();
    write_machine(&mut row, next);
    let mut batch = Batch::new();
    if !matches!(next.state, VmState::Creating | VmState::Starting) {
        batch = batch.essential();
    }
    for draft in effects.iter().filter_map(|effect| draft_of(effect, next)) {
        if draft.previous != Some(draft.state) {
            row.state_since_unix_ms = now;
        }
        row.released |= draft.last;
        push_event(services, &mut batch, &mut row, live, next, &draft, now);
    }
    let mut outcomes = Vec::new();
    let mut bind = bind;
    for effect in effects {
        let Effect::Finish(Op { request_id: Some(request_id), name, .. }, ending) = effect else { continue };
        let outcome = outcome(services, &row, live, next, *request_id, name, ending);
        let own = bind.take_if(|(id, _)| id == request_id).map(|(_, row)| row);
        if let Some(mut request) = own.or_else(|| bound_row(services, &row, *request_id)) {
            request.state = RequestState::Done { outcome: outcome.clone(), at_unix_ms: now };
            push_request(&mut batch, &row, *request_id, request);
        }
        outcomes.push((*request_id, outcome));
    }
    if let Some((request_id, request)) = bind {
        push_request(&mut batch, &row, request_id, request);
    }
    if row != *before || !batch.is_empty() {
        batch.push(Write::PutVm(Box::new(row.clone())));
    }
    Prepared { row, batch, outcomes }
}

fn draft_of(effect: &Effect, next: &Machine) -> Option<EventDraft> {
    match effect {
        Effect::Event { kind, previous, state, cause, request_id } => Some(EventDraft {
            cause: cause.clone(),
            request_id: *request_id,
            ..EventDraft::new(*kind, Some(*previous), *state)
        }),
        Effect::Gone { op } => Some(EventDraft {
            cause: Some(Cause::new(CauseKind::UserDelete, "nothing of the VM is left")),
            request_id: op.as_ref().and_then(|op| op.request_id),
            last: true,
            ..EventDraft::new(VmEventKind::State, Some(next.state), VmState::Deleting)
        }),
        Effect::Finish(..) | Effect::Run(_) | Effect::Cancel | Effect::Backoff { .. } => None,
    }
}

/// Writes the request row of an id.
pub fn push_request(batch: &mut Batch, row: &VmRow, request_id: RequestId, request: RequestRow) {
    batch.push(Write::PutRequest { namespace: row.namespace.clone(), request_id, row: Box::new(request) });
}

/// What the journal has bound a request id to.
#[must_use]
pub fn bound_row(services: &Services, row: &VmRow, request_id: RequestId) -> Option<RequestRow> {
    match services.journal.request(&row.namespace, request_id, now_ms()) {
        Ok(RequestLookup::Bound(row)) => Some(*row),
        _ => None,
    }
}

fn push_event(
    services: &Services,
    batch: &mut Batch,
    row: &mut VmRow,
    live: &Live,
    next: &Machine,
    draft: &EventDraft,
    now: u64,
) {
    let status = |row: &VmRow| Some(status(&services.host, row, next, live, false));
    if append(services, batch, row, EventClass::State, draft, status, now) {
        services.budget.spend(&row.namespace);
    }
}

/// Adds the next event of a VM to a batch, with its status as of then if that is told too; whether it did.
pub fn append(
    services: &Services,
    batch: &mut Batch,
    row: &mut VmRow,
    class: EventClass,
    draft: &EventDraft,
    status: impl FnOnce(&VmRow) -> Option<VmStatus>,
    now: u64,
) -> bool {
    row.seq += 1;
    let status = status(row);
    match outbox_row(&services.subjects, &services.host, row, draft, status.as_ref(), now) {
        Ok(outbox) => {
            batch.push(Write::PutOutbox { class, row: Box::new(outbox) });
            true
        }
        // Cannot happen with these types; the sequence stays gapless all the same.
        Err(error) => {
            row.seq -= 1;
            error!(error = %chain(&error), "an event could not be encoded");
            false
        }
    }
}

/// The reply of a change.
#[must_use]
pub fn reply(
    services: &Services,
    row: &VmRow,
    live: &Live,
    machine: &Machine,
    request_id: RequestId,
    already: bool,
) -> ChangeReply {
    ChangeReply {
        vm: status(&services.host, row, machine, live, false),
        already,
        request_id,
        replay_until_unix_ms: request_id.unix_ms() + REQUEST_WINDOW_MS,
    }
}

fn outcome(
    services: &Services,
    row: &VmRow,
    live: &Live,
    next: &Machine,
    request_id: RequestId,
    name: &str,
    ending: &Ending,
) -> Outcome {
    let error = match ending {
        Ending::Ok => {
            return Outcome::Reply(Box::new(reply(services, row, live, next, request_id, false)));
        }
        Ending::Superseded => ErrorBody::new(ErrorCode::Conflict, format!("a later request ended {name}"))
            .with("cause", "superseded"),
        Ending::TimedOut => ErrorBody::new(
            ErrorCode::DeadlineExceeded,
            "the guest did not switch off in time and runs on; use stop to force it",
        )
        .retryable(false),
        Ending::Failed(cause) => error_of(cause),
    };
    Outcome::Error(error.with("vm_id", row.vm_id))
}
