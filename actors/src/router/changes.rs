//! Verbs that change a VM: decoded here, decided and remembered by its actor.

use drover_schemas::VmId;
use drover_schemas::body::vm::{
    ChangeRequest, EgressRequest, ForwardRequest, GrowRequest, LimitRequest, ShutdownRequest, StopRequest,
};

use super::{
    ChangeReply, ErrorBody, Request, RequestId, Router, Token, Verb, VmMsg, Wait, adopting, interrupted,
    oneshot, unknown_verb,
};
use crate::ingress::permits::Permit;
use crate::vm::actor::{Remembered, VmRef, remembered, view};
use crate::vm::message::{Change, SpecChange};

const SHUTDOWN_MS: u64 = 60_000;
const SHUTDOWN_MAX_MS: u64 = 90_000;
const STOP_GRACE_MS: u64 = 10_000;
const STOP_GRACE_MAX_MS: u64 = 60_000;

struct Decoded {
    verb: Verb,
    name: &'static str,
    if_vm_id: Option<VmId>,
    if_revision: Option<u64>,
    wait: Option<Wait>,
    time_ms: u64,
    spec: Option<SpecChange>,
}

const fn of_spec(
    verb: Verb,
    name: &'static str,
    if_vm_id: Option<VmId>,
    if_revision: Option<u64>,
    change: SpecChange,
) -> Decoded {
    Decoded { verb, name, if_vm_id, if_revision, wait: None, time_ms: 0, spec: Some(change) }
}

fn decode(verb: &str, request: &Request) -> Result<Decoded, ErrorBody> {
    let plain = |verb, name| -> Result<Decoded, ErrorBody> {
        let body: ChangeRequest = request.decode()?;
        let ChangeRequest { if_vm_id, if_revision, wait } = body;
        Ok(Decoded { verb, name, if_vm_id, if_revision, wait, time_ms: 0, spec: None })
    };
    match verb {
        "start" => plain(Verb::Start, "start"),
        "reboot" => plain(Verb::Reboot, "reboot"),
        "pause" => plain(Verb::Pause, "pause"),
        "resume" => plain(Verb::Resume, "resume"),
        "delete" => plain(Verb::Delete, "delete"),
        "shutdown" => {
            let ShutdownRequest { if_vm_id, if_revision, timeout_ms } = request.decode()?;
            let time_ms = timeout_ms.unwrap_or(SHUTDOWN_MS).min(SHUTDOWN_MAX_MS);
            let (verb, name) = (Verb::Shutdown, "shutdown");
            Ok(Decoded { verb, name, if_vm_id, if_revision, wait: None, time_ms, spec: None })
        }
        "stop" => {
            let StopRequest { if_vm_id, if_revision, grace_ms, force } = request.decode()?;
            let verb = if force { Verb::StopForce } else { Verb::Stop };
            let time_ms = grace_ms.unwrap_or(STOP_GRACE_MS).min(STOP_GRACE_MAX_MS);
            Ok(Decoded { verb, name: "stop", if_vm_id, if_revision, wait: None, time_ms, spec: None })
        }
        "forward" => {
            let body: ForwardRequest = request.decode()?;
            let ForwardRequest { if_vm_id, if_revision, .. } = body;
            Ok(of_spec(Verb::Forward, "forward", if_vm_id, if_revision, SpecChange::Forward(body)))
        }
        "egress" => {
            let body: EgressRequest = request.decode()?;
            let EgressRequest { if_vm_id, if_revision, .. } = body;
            Ok(of_spec(Verb::Egress, "egress", if_vm_id, if_revision, SpecChange::Egress(body)))
        }
        "grow" => {
            let body: GrowRequest = request.decode()?;
            let GrowRequest { if_vm_id, if_revision, .. } = body;
            let change = SpecChange::Grow(body);
            Ok(of_spec(Verb::Grow, "grow", if_vm_id, if_revision, change))
        }
        "limit" => {
            let body: LimitRequest = request.decode()?;
            let LimitRequest { if_vm_id, if_revision, .. } = body;
            Ok(of_spec(Verb::Limit, "limit", if_vm_id, if_revision, SpecChange::Limit(body)))
        }
        _ => Err(unknown_verb(&request.subject)),
    }
}

pub(super) async fn change(
    router: &Router,
    ns: &Token,
    name: &Token,
    verb: &str,
    request: &Request,
    permit: Permit,
) -> Result<ChangeReply, ErrorBody> {
    let decoded = decode(verb, request)?;
    let found = router.slot(ns, name).and_then(|slot| Ok((slot.actor().ok_or_else(adopting)?, slot)));
    let (actor, slot) = match found {
        Ok(found) => found,
        Err(error) => {
            // A VM that is gone: a delete whose reply was lost comes again.
            let Some(id) = request.request_id else { return Err(error) };
            let journal = &router.services.journal;
            return match remembered(journal, ns, id, decoded.name, &request.digest()) {
                Remembered::Done(result) => *result,
                _ => Err(error),
            };
        }
    };
    if decoded.verb == Verb::Start {
        reserve(router, &actor).await?;
    }
    let (reply, outcome) = oneshot::channel();
    let change = Change {
        verb: decoded.verb,
        name: decoded.name,
        if_vm_id: decoded.if_vm_id,
        if_revision: decoded.if_revision,
        wait: decoded.wait,
        time_ms: decoded.time_ms,
        spec: decoded.spec,
        request_id: request.request_id.unwrap_or_else(RequestId::generate),
        digest: request.digest(),
        trace: crate::trace::current(),
        reply,
        permit,
    };
    let _ = actor.cast(VmMsg::Change(Box::new(change)));
    let outcome = outcome.await.unwrap_or_else(|_| Err(interrupted()));
    if decoded.verb == Verb::Delete && outcome.is_ok() {
        slot.unheard().await;
    }
    outcome
}

/// A start takes capacity before anything is promised; a VM that is up has it already.
async fn reserve(router: &Router, actor: &VmRef) -> Result<(), ErrorBody> {
    let view = view(actor).await.ok_or_else(interrupted)?;
    router.services.state.reserve(&view.row.namespace, view.row.vm_id, &view.row.spec)
}
