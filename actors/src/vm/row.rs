//! Between the machine, the journal's row and the status that clients see: pure.

use drover_schemas::body::spec::NicSpec;
use drover_schemas::body::status::{AgentState, AgentStatus, Cause, NicStatus, VmStatus};
use drover_schemas::event::{AgentEvent, DroppedEvents, VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use drover_schemas::subject::{Subject, Subjects};
use drover_schemas::{RequestId, Token, codec};

use super::machine::{Due, Machine, Op};
use super::marks::Marks;
use super::message::View;
use crate::chain;
use crate::cloud_event::attributes;
use crate::guest::LastError;
use crate::journal::{OutboxRow, PendingOp, StatusUpdate, VmRow};
use crate::services::Services;

/// The machine as the row remembers it; nothing is under way.
#[must_use]
pub fn machine_of(row: &VmRow) -> Machine {
    let op = row.operation.as_ref().map(|pending| Op {
        name: pending.verb.clone(),
        request_id: pending.request_id,
        due: match pending.phase.as_str() {
            "running" => Due::Running,
            "agent" => Due::Agent,
            "done" => Due::Done,
            _ => Due::Accepted,
        },
        time_ms: pending.time_ms,
    });
    Machine {
        state: row.state,
        desired: row.desired,
        incarnation: row.incarnation,
        cause: row.cause.clone(),
        restarts: row.restarts.clone(),
        op,
        agent: AgentState::Absent,
        task: None,
        queued: None,
        exited: None,
        again: false,
    }
}

/// Writes the machine into the row.
pub fn write_machine(row: &mut VmRow, machine: &Machine) {
    row.state = machine.state;
    row.desired = machine.desired;
    row.incarnation = machine.incarnation;
    row.cause.clone_from(&machine.cause);
    row.restarts.clone_from(&machine.restarts);
    row.operation = machine.op.as_ref().map(|op| PendingOp {
        verb: op.name.clone(),
        request_id: op.request_id,
        phase: match op.due {
            Due::Accepted => "accepted",
            Due::Running => "running",
            Due::Agent => "agent",
            Due::Done => "done",
        }
        .to_owned(),
        time_ms: op.time_ms,
    });
}

/// What is known beside the row while the VM runs.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Version of the agent and boot id of the guest, while the link is up.
    pub agent: Option<(String, String)>,
    /// Why the agent was not reached, while it is looked for.
    pub last_error: Option<LastError>,
    /// What is held against its agent.
    pub marks: Marks,
    /// Process id of the VMM.
    pub pid: Option<u32>,
}

/// The status of a VM.
#[must_use]
pub fn status(host: &Token, row: &VmRow, machine: &Machine, live: &Live, with_spec: bool) -> VmStatus {
    let (version, boot_id) = match &live.agent {
        Some((version, boot_id)) => (Some(version.clone()), Some(boot_id.clone())),
        None => (None, None),
    };
    let dropped_events = Some(row.inside.dropped).filter(|dropped| dropped.count > 0);
    let last_error = live.last_error.as_ref().and_then(LastError::get).map(|e| chain(&e).to_string());
    VmStatus {
        namespace: row.namespace.clone(),
        name: row.name.clone(),
        vm_id: row.vm_id,
        host: host.clone(),
        state: machine.state,
        desired: machine.desired,
        revision: row.revision,
        incarnation: machine.incarnation,
        seq: row.seq,
        cpus: row.spec.cpus,
        memory_bytes: row.spec.memory_bytes,
        created_unix_ms: row.created_unix_ms,
        state_since_unix_ms: row.state_since_unix_ms,
        operation: machine.operation(),
        cause: machine.cause.clone(),
        agent: AgentStatus {
            state: machine.agent,
            version,
            boot_id,
            last_error,
            dropped_events,
            fault: live.marks.fault(),
            unwatched: live.marks.unwatched().filter(|_| live.agent.is_some()),
        },
        nics: nics(row),
        disks: if with_spec { super::disks::status(row) } else { Vec::new() },
        vmm_pid: live.pid,
        restarts: u32::try_from(machine.restarts.len()).unwrap_or(u32::MAX),
        spec: with_spec.then(|| Box::new(row.spec.clone())),
    }
}

/// The status of a VM with its spec, and with the lengths that its volumes have now.
#[must_use]
pub fn shown(services: &Services, view: &View) -> VmStatus {
    let mut status = status(&services.host, &view.row, &view.machine, &view.live, true);
    for (disk, spec) in status.disks.iter_mut().zip(&view.row.spec.disks) {
        let volume = spec.volume.as_ref();
        let length = volume.and_then(|name| services.state.volumes().size(&view.row.namespace, name));
        disk.size_bytes = length.unwrap_or(disk.size_bytes);
    }
    status
}

/// The interfaces of a VM.
#[must_use]
pub fn nics(row: &VmRow) -> Vec<NicStatus> {
    let leases = row.nics.iter().map(crate::network::NicLease::status);
    let with = |(status, nic): (NicStatus, &NicSpec)| NicStatus {
        forwards: nic.forwards.clone(),
        egress: nic.egress.clone(),
        limits: nic.limits,
        ..status
    };
    leases.zip(&row.spec.nics).map(with).collect()
}

/// What an event says beside what the row says.
#[derive(Debug, Clone)]
pub struct EventDraft {
    /// Its kind.
    pub kind: VmEventKind,
    /// State before; `None` for the first event.
    pub previous: Option<VmState>,
    /// State after.
    pub state: VmState,
    /// Why.
    pub cause: Option<Cause>,
    /// The request that led to it.
    pub request_id: Option<RequestId>,
    /// The VM is gone with it.
    pub last: bool,
    /// What the guest says.
    pub agent_event: Option<AgentEvent>,
    /// What of that was dropped.
    pub dropped: Option<DroppedEvents>,
}

impl EventDraft {
    /// Of the VM's own, without a cause.
    #[must_use]
    pub const fn new(kind: VmEventKind, previous: Option<VmState>, state: VmState) -> Self {
        Self {
            kind,
            previous,
            state,
            cause: None,
            request_id: None,
            last: false,
            agent_event: None,
            dropped: None,
        }
    }
}

/// The key of a VM in the buckets.
#[must_use]
pub fn bucket_key(namespace: &Token, name: &Token) -> String {
    format!("{namespace}.{name}")
}

/// The event as the outbox keeps it. `row.seq` is the event's sequence already.
///
/// # Errors
/// The event cannot be encoded, which a test excludes.
pub fn outbox_row(
    subjects: &Subjects,
    host: &Token,
    row: &VmRow,
    draft: &EventDraft,
    status: Option<&VmStatus>,
    now_ms: u64,
) -> Result<OutboxRow, codec::EncodeError> {
    let event = VmEvent {
        namespace: row.namespace.clone(),
        name: row.name.clone(),
        vm_id: row.vm_id,
        seq: row.seq,
        time_unix_ms: now_ms,
        kind: draft.kind,
        incarnation: row.incarnation,
        revision: row.revision,
        request_id: draft.request_id,
        previous: draft.previous,
        state: draft.state,
        last: draft.last,
        step: None,
        cause: draft.cause.clone(),
        agent_event: draft.agent_event.clone(),
        dropped: draft.dropped,
    };
    let kind = Token::new(draft.kind.as_str()).unwrap_or_else(|_| row.name.clone());
    let subject = Subject::VmEvent { ns: row.namespace.clone(), name: row.name.clone(), kind };
    let (what, about) = (format!("vm.{}", draft.kind.as_str()), format!("{}/{}", row.namespace, row.name));
    let headers = attributes(host.as_str(), &what, now_ms, about);
    let key = bucket_key(&row.namespace, &row.name);
    let status = match status {
        _ if draft.last => Some(StatusUpdate::Delete { key }),
        Some(status) => Some(StatusUpdate::Put { key, value: codec::encode(status)?.into() }),
        None => None,
    };
    Ok(OutboxRow {
        key: row.vm_id,
        seq: row.seq,
        subject: subjects.build(&subject),
        filter: subjects.vm_events(&row.namespace, &row.name),
        headers,
        body: codec::encode(&event)?.into(),
        status,
    })
}
