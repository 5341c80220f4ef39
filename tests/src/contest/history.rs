//! What was asked and answered, judged by the log of events. Pure.
//!
//! The log is what happened; nobody can answer against it. Of each request id it must show one effect at most, on
//! one VM; of each answer what the answer says; and of two requests of which one was answered before the other was
//! sent, that order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, VmId};

use crate::soak::Op;

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A change was answered.
    Done(Box<ChangeReply>),
    /// A command was answered; its output names the boot of the guest, unless the answer was repeated without it.
    Ran {
        /// The boot.
        boot: Option<String>,
    },
    /// It was refused for good.
    Refused(ErrorBody),
    /// The VM is not there any more. Whether the request was done before is not known.
    Gone,
}

/// A request with its first answer and those of its repetitions.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its id.
    pub id: RequestId,
    /// Name of the VM.
    pub name: String,
    /// What was asked.
    pub op: Op,
    /// When it was sent, since the run began.
    pub sent: Duration,
    /// When the first answer came.
    pub answered: Duration,
    /// The answer, and those to copies that were under way at the same time.
    pub first: Vec<Outcome>,
    /// The answers to repetitions that were sent later.
    pub later: Vec<Outcome>,
}

impl Record {
    /// Every answer.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.first.iter().chain(&self.later)
    }

    /// Whether [`Record::answered`] is when it was done; a refusal binds nothing, and a repetition may be carried out.
    #[must_use]
    pub fn is_done_at_first(&self) -> bool {
        self.first.iter().any(|outcome| matches!(outcome, Outcome::Done(_)))
    }

    /// The reply, if there was one.
    #[must_use]
    pub fn reply(&self) -> Option<&ChangeReply> {
        self.outcomes().find_map(|outcome| match outcome {
            Outcome::Done(reply) => Some(&**reply),
            _ => None,
        })
    }
}

/// Everything that is wrong with a history, in words; `events` in the order of the stream.
#[must_use]
pub fn judge(records: &[Record], events: &[VmEvent]) -> Vec<String> {
    let mut problems = Vec::new();
    lives(events, &mut problems);
    let effects = effects(events, &mut problems);
    let asked: HashSet<RequestId> = records.iter().map(|record| record.id).collect();
    for (id, events) in &effects {
        if !asked.contains(id) {
            problems.push(format!("nobody sent the request {id} of {:?}", events[0]));
        }
    }
    let deleted: HashSet<VmId> = events.iter().filter(|event| event.last).map(|event| event.vm_id).collect();
    for record in records {
        answers(record, effects.get(&record.id).map_or(&[], Vec::as_slice), &deleted, &mut problems);
    }
    order(records, &effects, &mut problems);
    problems
}

/// Two VMs of one name never overlap, and no request that is older than the end of one VM changes the next.
fn lives(events: &[VmEvent], problems: &mut Vec<String>) {
    let mut present: HashMap<&str, &VmEvent> = HashMap::new();
    let mut ended: HashMap<&str, &VmEvent> = HashMap::new();
    for event in events {
        let name = event.name.as_str();
        match present.insert(name, event) {
            Some(before) if before.vm_id != event.vm_id && !before.last => {
                problems.push(format!("two VMs are called {name}: {before:?} and {event:?}"));
            }
            Some(before) if before.vm_id != event.vm_id => {
                ended.insert(name, before);
            }
            _ => {}
        }
        if let (Some(id), Some(end)) = (event.request_id, ended.get(name))
            && id.unix_ms() < end.time_unix_ms
        {
            problems.push(format!("a request older than {end:?} changed the next VM: {event:?}"));
        }
    }
}

/// The events of each request. Each is about one VM, and goes each way once.
fn effects<'a>(events: &'a [VmEvent], problems: &mut Vec<String>) -> BTreeMap<RequestId, Vec<&'a VmEvent>> {
    let mut effects: BTreeMap<RequestId, Vec<&VmEvent>> = BTreeMap::new();
    for event in events {
        let Some(id) = event.request_id else { continue };
        let before = effects.entry(id).or_default();
        if let Some(other) = before.iter().find(|other| other.vm_id != event.vm_id) {
            problems.push(format!("{id} changed two VMs: {other:?} and {event:?}"));
        }
        let way = |event: &VmEvent| (event.previous, event.state);
        let moves = event.kind == VmEventKind::State && event.previous != Some(event.state);
        if moves && let Some(other) = before.iter().find(|other| way(other) == way(event)) {
            problems.push(format!("{id} had its effect twice: {other:?} and {event:?}"));
        }
        before.push(event);
    }
    effects
}

/// Every answer to one request is the same, possible, and what the log shows.
fn answers(record: &Record, effects: &[&VmEvent], deleted: &HashSet<VmId>, problems: &mut Vec<String>) {
    let Record { id, name, op, .. } = record;
    let what = format!("{} of {name}, {id}", op.verb());
    let reply = record.reply();
    for outcome in record.outcomes() {
        match (outcome, reply) {
            (Outcome::Done(again), Some(first)) if **again != *first => {
                problems.push(format!("{what}: two replies: {first:?} and {again:?}"));
            }
            (Outcome::Refused(error), _) if !may_be_refused(*op, error) => {
                problems.push(format!("{what}: {error:?}"));
            }
            _ => {}
        }
    }
    // What was answered stays answered, as long as there is a VM to ask.
    for (outcome, first) in
        record.later.iter().zip(reply.filter(|_| record.is_done_at_first()).into_iter().cycle())
    {
        let forgotten = match outcome {
            Outcome::Refused(error) => forgotten(error),
            Outcome::Gone => true,
            Outcome::Done(_) | Outcome::Ran { .. } => continue,
        };
        if !forgotten || !deleted.contains(&first.vm.vm_id) {
            problems.push(format!("{what}: {outcome:?} after {first:?}"));
        }
    }
    let Some(reply) = reply else { return };
    if reply.request_id != *id || reply.vm.name.as_str() != name {
        problems.push(format!("{what}: a reply to something else: {reply:?}"));
    }
    let shows = effects.iter().any(|event| event.vm_id == reply.vm.vm_id && is_effect(*op, event));
    if shows == reply.already {
        let told: Vec<_> = effects.iter().map(|event| (event.seq, event.previous, event.state)).collect();
        problems.push(format!("{what}: the reply is {reply:?}, the log has {told:?}"));
    }
    if *op == Op::Delete && !deleted.contains(&reply.vm.vm_id) {
        problems.push(format!("{what}: answered, and the log of {} does not end", reply.vm.vm_id));
    }
}

/// The event that shows that a request was carried out.
fn is_effect(op: Op, event: &VmEvent) -> bool {
    match op {
        Op::Create => event.seq == 1,
        Op::Pause => event.state == VmState::Paused,
        Op::Resume => event.previous == Some(VmState::Paused) && event.state == VmState::Running,
        Op::Stop | Op::Shutdown => matches!(event.state, VmState::Stopping | VmState::Stopped),
        Op::Start => event.state == VmState::Starting,
        Op::Delete => event.state == VmState::Deleting,
        Op::Reboot => event.kind == VmEventKind::Rebooted,
        Op::Exec => false,
    }
}

/// Refusals that a client can meet whose names are contested.
fn may_be_refused(op: Op, error: &ErrorBody) -> bool {
    let cause = error.details.get("cause").map(String::as_str);
    match error.code {
        ErrorCode::AlreadyExists => op == Op::Create,
        ErrorCode::Conflict => matches!(cause, Some("superseded" | "name_reused" | "guest_rebooted")),
        ErrorCode::InvalidState | ErrorCode::NotFound => op != Op::Create,
        // The agent ends what belongs to a daemon that died, or the VM was stopped or paused under the command.
        ErrorCode::Unavailable | ErrorCode::GuestUnreachable | ErrorCode::DeadlineExceeded => op == Op::Exec,
        _ => false,
    }
}

/// What a repetition is told of a VM that is gone.
fn forgotten(error: &ErrorBody) -> bool {
    match error.code {
        ErrorCode::NotFound | ErrorCode::AlreadyExists => true,
        ErrorCode::Conflict => error.details.get("cause").is_some_and(|cause| cause == "name_reused"),
        _ => false,
    }
}

/// What was answered before another request was sent stands before it in the log of the VM.
fn order(records: &[Record], effects: &BTreeMap<RequestId, Vec<&VmEvent>>, problems: &mut Vec<String>) {
    let mut by_vm: BTreeMap<VmId, Vec<(u64, &Record)>> = BTreeMap::new();
    for record in records {
        let Some(reply) = record.reply() else { continue };
        let vm_id = reply.vm.vm_id;
        let events = effects.get(&record.id).map_or(&[][..], Vec::as_slice);
        if let Some(event) = events.iter().find(|event| event.vm_id == vm_id && is_effect(record.op, event)) {
            by_vm.entry(vm_id).or_default().push((event.seq, record));
        }
    }
    for vm in by_vm.values_mut() {
        vm.sort_by_key(|(seq, _)| *seq);
        for (at, (_, earlier)) in vm.iter().enumerate() {
            for (_, later) in &vm[at + 1..] {
                if later.is_done_at_first() && later.answered < earlier.sent {
                    problems.push(format!("{later:?} was answered first, and stands behind {earlier:?}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
