//! Events: what a host publishes about its VMs and itself, as CloudEvents 1.0 in binary mode.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::body::status::Cause;
use crate::error::ErrorBody;
use crate::guest::event::{EventData, EventType};
use crate::id::{RequestId, VmId};
use crate::state::VmState;
use crate::token::Token;

/// Names of the CloudEvents attributes as NATS headers (CloudEvents NATS binding 1.0.2).
pub mod ce {
    /// Always [`SPEC_VERSION`].
    pub const SPECVERSION: &str = "ce-specversion";
    /// `<vm_id>.<seq>`.
    pub const ID: &str = "ce-id";
    /// `drover/<host>`.
    pub const SOURCE: &str = "ce-source";
    /// `drover.vm.<kind>.v1`.
    pub const TYPE: &str = "ce-type";
    /// RFC 3339.
    pub const TIME: &str = "ce-time";
    /// `<namespace>/<name>`.
    pub const SUBJECT: &str = "ce-subject";
    /// The media type of the body.
    pub const DATACONTENTTYPE: &str = "ce-datacontenttype";
    /// The only version there is.
    pub const SPEC_VERSION: &str = "1.0";
}

/// Kinds of VM events; the last token of the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmEventKind {
    /// The VM entered a state.
    State,
    /// An operation made a step (a boot's milestones); the state is the same.
    Progress,
    /// The spec was changed: `revision` is that of the new one. The state is the same.
    Changed,
    /// An operation failed and the VM is as it was.
    OperationFailed,
    /// The guest rebooted itself or was rebooted.
    Rebooted,
    /// The guest's kernel panicked.
    Panic,
    /// Something happened inside the guest (`agent_event` says what), or the link to the agent changed (`cause`).
    Agent,
    /// Events of the guest's programs were dropped: `dropped` says how many, and why.
    AgentDropped,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl VmEventKind {
    /// Every kind that is sent.
    pub const ALL: [Self; 8] = [
        Self::State,
        Self::Progress,
        Self::Changed,
        Self::OperationFailed,
        Self::Rebooted,
        Self::Panic,
        Self::Agent,
        Self::AgentDropped,
    ];

    /// The token of the subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Progress => "progress",
            Self::Changed => "changed",
            Self::OperationFailed => "operation-failed",
            Self::Rebooted => "rebooted",
            Self::Panic => "panic",
            Self::Agent => "agent",
            Self::AgentDropped => "agent-dropped",
            Self::Unknown => "unknown",
        }
    }
}

/// The body of a VM event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmEvent {
    /// Namespace of the VM.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Its identity.
    pub vm_id: VmId,
    /// Position in the VM's log, from 1, without gaps.
    pub seq: u64,
    /// When it happened, by the host's clock.
    pub time_unix_ms: u64,
    /// What kind of event.
    pub kind: VmEventKind,
    /// VMM process it is about; 0 before the first.
    pub incarnation: u64,
    /// Revision of the spec.
    pub revision: u64,
    /// The request that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// State before; absent for the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<VmState>,
    /// State after.
    pub state: VmState,
    /// The VM is gone with this event; it is the last of its log.
    #[serde(default)]
    pub last: bool,
    /// What made a step, for `progress`: `disks`, `network`, `vmm`, `boot` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What a program of the guest, or its agent, has published, for `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_event: Option<AgentEvent>,
    /// What was dropped since the last event of its kind, for `agent-dropped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DroppedEvents>,
}

/// An event from inside a guest. The guest says all of it: who it is of is as true as its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentEvent {
    /// What happened; what begins with `drover.` is said by the agent itself.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// User of the process that published it.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process id.
    pub pid: u32,
    /// When, by the guest's clock.
    pub time_unix_ms: u64,
    /// What the publisher says about it.
    #[serde(default)]
    pub data: EventData,
}

/// Events of a guest that were dropped, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DroppedEvents {
    /// All of them.
    pub count: u64,
    /// More or larger ones than the quota of the VM allows.
    pub quota: u64,
    /// What cannot be read: a type that is none, data that is none or too long.
    pub malformed: u64,
    /// More at once than an agent may send before they are acknowledged: not one of ours does so.
    pub window: u64,
    /// Refused by the agent in the guest, beyond its quota for a user or for all, or as too many waited for the host.
    pub guest: u64,
}

impl DroppedEvents {
    /// Adds others.
    pub const fn add(&mut self, other: Self) {
        self.quota = self.quota.saturating_add(other.quota);
        self.malformed = self.malformed.saturating_add(other.malformed);
        self.window = self.window.saturating_add(other.window);
        self.guest = self.guest.saturating_add(other.guest);
        let (some, rest) =
            (self.quota.saturating_add(self.malformed), self.window.saturating_add(self.guest));
        self.count = some.saturating_add(rest);
    }
}

impl std::fmt::Display for DroppedEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.quota, "beyond the quota of the VM"),
            (self.malformed, "could not be read"),
            (self.window, "more at once than an agent may send"),
            (self.guest, "refused by the agent"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = parts.map(|(count, why)| format!("{count} {why}")).collect();
        write!(f, "{} events of the guest were dropped: {}", self.count, parts.join(", "))
    }
}

/// Kinds of host events; the last token of the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostEventKind {
    /// The daemon started; `details` say what it found.
    Started,
    /// Every VM of the journal was looked at and the host takes requests.
    Ready,
    /// The daemon stops in order; its VMs run on.
    Stopping,
    /// Something that an operator should look at; `details.alarm` names it.
    Alarm,
    /// An image is being imported, is there, or is gone; `details` say which, and how far it is.
    Image,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl HostEventKind {
    /// The token of the subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Alarm => "alarm",
            Self::Image => "image",
            Self::Unknown => "unknown",
        }
    }
}

/// The body of `request.rejected`: a request without a reply subject that had no effect.
///
/// At most a few each second are published for a namespace; the rest is counted in `suppressed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RejectedEvent {
    /// The host that refused it.
    pub host: Token,
    /// Id of the request.
    pub request_id: RequestId,
    /// The subject it was sent to.
    pub subject: String,
    /// Why.
    pub error: ErrorBody,
    /// When, by the host's clock.
    pub time_unix_ms: u64,
    /// How many rejections of the namespace were not published since the last one.
    #[serde(default)]
    pub suppressed: u64,
}

/// The body of a host event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEvent {
    /// The host.
    pub host: Token,
    /// Position in the host's log.
    pub seq: u64,
    /// When it happened, by the host's clock.
    pub time_unix_ms: u64,
    /// What kind of event; the last token of the subject.
    pub kind: HostEventKind,
    /// One sentence for a person.
    pub message: String,
    /// Facts by name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub details: std::collections::BTreeMap<String, String>,
}

/// The `ce-id` of a VM's event.
#[must_use]
pub fn event_id(vm_id: VmId, seq: u64) -> String {
    format!("{vm_id}.{seq}")
}
