//! Requests that change the VM: each id has one effect and one outcome, which whoever asks again is told.

use drover_schemas::body::vm::{ChangeReply, Outcome};
use drover_schemas::state::Verb;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, codec};

use super::{VmActorState, VmRef};
use crate::bus::claims::decide::{PreviousVerdict, judge_previous};
use crate::journal::{Batch, JournalHandle, Op as Write, RequestLookup, RequestRow, RequestState};
use crate::services::now_ms;
use crate::vm::machine::{Admission, Command, Input};
use crate::vm::message::{Change, ChangeSender};

impl VmActorState {
    pub(super) async fn on_change(&mut self, myself: &VmRef, change: Change) {
        let Change { request_id, name, ref digest, .. } = change;
        match remembered(&self.services.journal, &self.row.namespace, request_id, name, digest) {
            Remembered::Nothing => {
                if let Some(verdict) = judge_previous(&self.row.previous, request_id) {
                    let _ = change.reply.send(of_before(request_id, name, verdict));
                    return;
                }
            }
            Remembered::Refused(error) => {
                let _ = change.reply.send(Err(error));
                return;
            }
            Remembered::Done(result) => {
                let _ = change.reply.send(*result);
                return;
            }
            Remembered::InFlight => return self.on_attach(request_id, change.reply),
        }
        if let Err(error) = self.preconditions(&change).and_then(|()| self.admit(&change)) {
            // A start reserves before it is admitted.
            self.give_back_capacity();
            let _ = change.reply.send(Err(error));
            return;
        }
        let row = RequestRow {
            verb: change.name.to_owned(),
            body_sha256: change.digest,
            bound_unix_ms: now_ms(),
            state: RequestState::InFlight { vm_id: self.row.vm_id, phase: "accepted".into() },
        };
        if self.machine.admit(change.verb) == Admission::Already {
            self.answer_already(change.request_id, row, change.reply).await;
            return;
        }
        let before = match change.spec.as_ref().map(|asked| self.change_spec(asked)).transpose() {
            Ok(None) => None,
            Ok(Some(Some(before))) => Some(before),
            Ok(Some(None)) => {
                self.answer_already(change.request_id, row, change.reply).await;
                return;
            }
            Err(error) => {
                let _ = change.reply.send(Err(error));
                return;
            }
        };
        let command = Command {
            verb: change.verb,
            request_id: change.request_id,
            wait: change.wait,
            time_ms: change.time_ms,
        };
        let (next, effects) = self.machine.apply(Input::Command(command), &self.context());
        self.trace = change.trace;
        self.waiters.entry(change.request_id).or_default().push(change.reply);
        self.permits.insert(change.request_id, change.permit);
        let result = self.commit(myself, next, effects, Some((change.request_id, row))).await;
        if let Err(error) = result {
            if let Some(before) = before {
                self.spec_as_before(before);
            }
            self.give_back_capacity();
            self.permits.remove(&change.request_id);
            for waiter in self.waiters.remove(&change.request_id).unwrap_or_default() {
                let _ = waiter.send(Err(error.to_body()));
            }
        }
    }

    fn preconditions(&self, change: &Change) -> Result<(), ErrorBody> {
        if change.if_vm_id.is_some_and(|id| id != self.row.vm_id) {
            let message = format!("the VM of this name is {}, not the one that was meant", self.row.vm_id);
            return Err(ErrorBody::new(ErrorCode::Conflict, message)
                .with("cause", "vm_id")
                .with("vm_id", self.row.vm_id));
        }
        if change.if_revision.is_some_and(|r| r != self.row.revision) {
            let message =
                format!("the spec has revision {}; read it again and decide anew", self.row.revision);
            return Err(ErrorBody::new(ErrorCode::Conflict, message)
                .with("cause", "revision")
                .with("revision", self.row.revision));
        }
        Ok(())
    }

    fn admit(&self, change: &Change) -> Result<(), ErrorBody> {
        let state = self.machine.state;
        match self.machine.admit(change.verb) {
            Admission::Accept | Admission::Already => {}
            Admission::Denied { would_do } => {
                let states: Vec<&str> = would_do.iter().map(|s| s.as_str()).collect();
                let states = states.join(", ");
                let message = format!(
                    "a VM that is {state} cannot do {}; it would have to be one of: {states}",
                    change.name
                );
                return Err(ErrorBody::new(ErrorCode::InvalidState, message)
                    .with("state", state)
                    .with("allowed", states));
            }
            Admission::Busy { operation } => {
                let message = format!("{operation} is under way; repeat {} when it is over", change.name);
                return Err(ErrorBody::new(ErrorCode::Busy, message).with("operation", operation));
            }
            Admission::Adopting => return Err(adopting()),
        }
        // What gives something back is never refused for lack of room.
        let frees = matches!(change.verb, Verb::Delete | Verb::Stop | Verb::StopForce | Verb::Shutdown);
        if !frees && self.machine.admit(change.verb) == Admission::Accept {
            self.services.admits_events_of(&self.row.namespace)?;
        }
        if self.gone.is_some() {
            return Err(ErrorBody::new(ErrorCode::NotFound, "the VM has just been deleted"));
        }
        Ok(())
    }

    async fn answer_already(&mut self, request_id: RequestId, mut row: RequestRow, reply: ChangeSender) {
        let outcome = self.reply(request_id, true);
        row.state =
            RequestState::Done { outcome: Outcome::Reply(Box::new(outcome.clone())), at_unix_ms: now_ms() };
        let batch = Batch::new().with(Write::PutRequest {
            namespace: self.row.namespace.clone(),
            request_id,
            row: Box::new(row),
        });
        let result = self.services.journal.commit(batch).await.map(|()| outcome).map_err(|e| e.to_body());
        let _ = reply.send(result);
    }

    pub(super) fn on_attach(&mut self, request_id: RequestId, reply: ChangeSender) {
        let open = self.machine.op.as_ref().and_then(|op| op.request_id) == Some(request_id)
            || self.waiters.contains_key(&request_id)
            || self.gone.as_ref().and_then(Option::as_ref).and_then(|op| op.request_id) == Some(request_id);
        if open {
            self.waiters.entry(request_id).or_default().push(reply);
            return;
        }
        // It ended between the caller's look and this message.
        let result = match self.services.journal.request(&self.row.namespace, request_id, now_ms()) {
            Ok(RequestLookup::Bound(row)) => match row.state {
                RequestState::Done { outcome, .. } => outcome_result(outcome),
                // Nobody here works on it: it is answered by whoever does, or when it is looked at again.
                RequestState::InFlight { .. } => Err(crate::create::interrupted()),
            },
            Ok(_) => Err(too_old(request_id)),
            Err(error) => Err(error.to_body()),
        };
        let _ = reply.send(result);
    }
}

/// What the journal knows of a request id.
#[derive(Debug)]
pub enum Remembered {
    /// Nothing: it may run.
    Nothing,
    /// It must not run: too old, used with another body, or the journal cannot be read.
    Refused(ErrorBody),
    /// Its outcome.
    Done(Box<Result<ChangeReply, ErrorBody>>),
    /// It was accepted and is not answered yet.
    InFlight,
}

/// Looks a request up by its id, and compares it with what was asked under it first.
#[must_use]
pub fn remembered(
    journal: &JournalHandle,
    namespace: &Token,
    request_id: RequestId,
    verb: &str,
    digest: &str,
) -> Remembered {
    match journal.request(namespace, request_id, now_ms()) {
        Ok(RequestLookup::Unknown) => Remembered::Nothing,
        Ok(RequestLookup::TooOld) => Remembered::Refused(too_old(request_id)),
        Ok(RequestLookup::TooNew) => Remembered::Refused(too_new(request_id)),
        Ok(RequestLookup::Bound(row)) if row.verb != verb || row.body_sha256 != digest => {
            Remembered::Refused(other_body(request_id))
        }
        Ok(RequestLookup::Bound(row)) => match row.state {
            RequestState::Done { outcome, .. } => Remembered::Done(Box::new(outcome_result(outcome))),
            RequestState::InFlight { .. } => Remembered::InFlight,
        },
        Err(error) => Remembered::Refused(error.to_body()),
    }
}

/// The answer to a request that was meant for a VM that had the name before.
fn of_before(request_id: RequestId, verb: &str, verdict: PreviousVerdict) -> Result<ChangeReply, ErrorBody> {
    match verdict {
        PreviousVerdict::Replay(_) if verb != "delete" => Err(other_body(request_id)),
        PreviousVerdict::Replay(reply) => codec::decode(reply.as_slice())
            .map_err(|_| ErrorBody::new(ErrorCode::Internal, "the stored reply cannot be read")),
        PreviousVerdict::NameReused { deleted_unix_ms } => Err(name_reused(deleted_unix_ms)),
    }
}

/// The request is older than the end of the VM that had the name before.
pub fn name_reused(deleted_unix_ms: u64) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Conflict,
        "the request is older than the last delete of this name; make a new request id",
    )
    .with("cause", "name_reused")
    .with("deleted_unix_ms", deleted_unix_ms)
}

/// The reply of a stored outcome.
pub fn outcome_result(outcome: Outcome) -> Result<ChangeReply, ErrorBody> {
    match outcome {
        Outcome::Reply(reply) => Ok(*reply),
        Outcome::Error(error) => Err(error),
    }
}

/// How the VM is is not known yet.
pub fn adopting() -> ErrorBody {
    let text = "the host is finding out how the VM is; repeat the request";
    ErrorBody::new(ErrorCode::Unavailable, text).with("phase", "adopting")
}

/// A request id that may have been forgotten is refused, never run.
pub fn too_old(request_id: RequestId) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::InvalidArgument,
        format!("request id {request_id} is older than the 24 h for which ids are kept; make a new one"),
    )
}

/// A request id that could not be remembered for as long as it is valid.
fn too_new(request_id: RequestId) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::InvalidArgument,
        format!(
            "request id {request_id} was made more than an hour from now by this host's clock; set the client's clock \
             and make a new one"
        ),
    )
}

/// The id was used with another body.
pub fn other_body(request_id: RequestId) -> ErrorBody {
    ErrorBody::new(
        ErrorCode::Conflict,
        format!(
            "request id {request_id} was used with another verb or body; a retry must repeat the same bytes"
        ),
    )
    .with("cause", "request_id")
}
