//! Requests and replies of `vm.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::samples::NicSample;
use super::spec::{EgressDefault, EgressRule, ForwardSpec, NicLimits, Protocol, ResolvedSpec, VmSpec};
use super::status::VmStatus;
use super::template::SpecValue;
use crate::error::ErrorBody;
use crate::guest::InterfaceUse;
use crate::id::{RequestId, VmId};
use crate::size::ByteSize;
use crate::stream::StreamOpened;
use crate::token::Token;

/// How long a reply waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Until the guest runs.
    Running,
    /// Until the guest agent answers.
    Agent,
}

/// The longest `wait`, in milliseconds.
pub const MAX_WAIT_MS: u64 = 90_000;

/// Request of `vm.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateRequest {
    /// Name of the VM within the namespace of the subject.
    pub name: Token,
    /// What it shall be; all of it may come from the template.
    #[serde(default)]
    pub spec: VmSpec,
    /// Delays the reply to the outcome; without it the reply comes when the create is durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
}

/// Preconditions and waiting, common to every verb that changes a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Delays the reply to the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
}

/// Request of `shutdown`: the guest is asked (agent, then power button), never forced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// How long the guest may take, in milliseconds; 60,000 if left out, 90,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Request of `stop`: the whole ladder from the agent to a kill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// How long the guest may take before it is forced, in milliseconds; 10,000 if left out,
    /// 60,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Do not ask the guest; also ends an operation that is in the way.
    #[serde(default)]
    pub force: bool,
}

/// Request of `forward`: ports of the host that shall lead to the guest, or not any more. Either all of it is done or
/// nothing; what is so already stays. Connections through a forward that is removed are cut, unless another one leads from
/// there to the same port of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    #[serde(default)]
    pub nic: u32,
    /// Forwards of it that go, before others come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<ForwardRef>,
    /// Forwards that come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<ForwardSpec>,
}

/// A forward by where the host takes it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardRef {
    /// What is forwarded; TCP if left out.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's port.
    pub host_port: u16,
    /// The host's address as the forward has it; left out for one of all addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
}

/// Request of `egress`: what the guest may reach by an interface from now on. Either all of it is done or nothing; what
/// is so already stays. What is refused from now on ends at once, also in the midst of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    #[serde(default)]
    pub nic: u32,
    /// Everything that was said of the interface goes first; with nothing else beside it, its guest reaches what the
    /// host's network lets through.
    #[serde(default)]
    pub replace: bool,
    /// What becomes of all that is not named; as it is if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<EgressDefault>,
    /// Rules that go, before others come; each as it stands in the spec.
    #[serde(default, skip_serializing_if = "EgressRules::is_empty")]
    pub remove: EgressRules,
    /// Rules that come.
    #[serde(default, skip_serializing_if = "EgressRules::is_empty")]
    pub add: EgressRules,
}

/// Request of `limit`: how fast the guest may be by an interface from now on, in the place of what was said before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    #[serde(default)]
    pub nic: u32,
    /// The limits; a direction that is left out has none.
    #[serde(default)]
    pub limits: NicLimits,
}

/// Reply of `stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatsReply {
    /// The VM.
    pub vm_id: VmId,
    /// When the host looked, by its clock.
    pub time_unix_ms: u64,
    /// Its interfaces as the host counts them since they were made; none while the VM is down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSample>,
    /// The same as the guest counts them, if its agent answers at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest: Vec<InterfaceUse>,
    /// Why the guest says nothing, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_silent: Option<String>,
}

/// Rules of egress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressRules {
    /// Of what passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<EgressRule>,
    /// Of what is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<EgressRule>,
}

impl EgressRules {
    /// There are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// Request of `grow`: a disk of the VM becomes longer, and never shorter. A guest that runs sees it at once; its
/// file systems grow when it makes them (`resize2fs`). A paused guest cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GrowRequest {
    /// Refuse with `conflict` unless the VM has this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_vm_id: Option<VmId>,
    /// Refuse with `conflict` unless the spec has this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// The disk, by its name.
    pub disk: Token,
    /// How long it shall be, a multiple of 1 MiB.
    pub size_bytes: ByteSize,
}

/// Request of `list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListRequest {
    /// At most this many; 100 if left out, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply of `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListReply {
    /// VMs by name, without their specs. Those of other hosts than the one that answers are as their last
    /// acknowledged event left them.
    pub vms: Vec<VmStatus>,
    /// Hosts of VMs in this page that are not heard now: how those VMs are is what was known last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts_not_seen: Vec<HostNotSeen>,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A host that is not heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostNotSeen {
    /// The host.
    pub host: Token,
    /// When it was heard last, by its own clock; absent if that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_unix_ms: Option<u64>,
}

/// Reply of the verbs that change a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeReply {
    /// The VM when the reply was made.
    pub vm: VmStatus,
    /// It was so already, and nothing was done.
    #[serde(default)]
    pub already: bool,
    /// Id of the request, also where the host made it.
    pub request_id: RequestId,
    /// Until when the same request id gives the same reply.
    pub replay_until_unix_ms: u64,
}

/// Request of `lookup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LookupRequest {
    /// Name of the VM.
    pub name: Token,
}

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum LookupReply {
    /// No VM has this name, and none had it in the last 24 hours.
    NotFound {},
    /// A create is deciding where it goes.
    Placing {
        /// Identity of the VM to be.
        vm_id: VmId,
        /// The host that was chosen.
        host: Token,
        /// The request that creates it.
        request_id: RequestId,
    },
    /// A host owns it. Whether the host is online shows when it is asked.
    Owned {
        /// Identity of the VM.
        vm_id: VmId,
        /// Its owner.
        host: Token,
        /// When the owner last said anything to the bus; absent if never.
        last_seen_unix_ms: Option<u64>,
        /// The owner has been heard within its lease.
        online: bool,
    },
    /// It was deleted in the last 24 hours.
    Gone {
        /// Identity of the VM that was.
        vm_id: VmId,
        /// Its last owner.
        host: Token,
        /// When its delete was complete.
        deleted_unix_ms: u64,
        /// The request that deleted it.
        request_id: RequestId,
        /// The reply of that request; absent where the VM was not deleted but forgotten with its host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<Box<ChangeReply>>,
    },
}

/// Request of `validate`: as `create`, without effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateRequest {
    /// Name of the VM to be; `example` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Token>,
    /// The spec to check.
    #[serde(default)]
    pub spec: VmSpec,
}

/// Reply of `validate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateReply {
    /// The spec with nothing left open.
    pub spec: ResolvedSpec,
    /// The VMM's configuration, as JSON text; paths are placeholders.
    pub vmm_config: String,
    /// The values of the spec, and where each comes from; empty from a host of an earlier version.
    #[serde(default)]
    pub values: Vec<SpecValue>,
}

/// Request of `logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogsRequest {
    /// Which log; `console` if left out.
    #[serde(default)]
    pub source: LogSource,
    /// At most this many bytes from the end; 64 KiB if left out, 256 KiB at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_bytes: Option<u64>,
    /// Goes on with what comes, as a stream with the channel `stdout`, until the VM is deleted. Of the console
    /// only. The request needs a reply subject of its own for the frames.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// A log of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The guest's serial console.
    #[default]
    Console,
    /// What the VMM wrote to its standard error and log.
    Vmm,
}

/// Reply of `logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogsReply {
    /// The bytes; none if they come in the stream.
    pub data: crate::blob::Blob,
    /// Offset of the first byte, here or in the stream, in everything that was ever written.
    pub offset: u64,
    /// The stream, if the log is followed. Its result is a `ConsoleResult`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamOpened>,
}

/// Request of `console`: the serial console as a stream with the channels `stdin` and `stdout`, for one writer at
/// a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsoleRequest {
    /// Begins with this many of the last bytes; 4 KiB if left out, 256 KiB at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_bytes: Option<u64>,
    /// Takes the console from whoever writes to it; else that is `busy`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
}

/// Reply of `console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsoleReply {
    /// Offset of the stream's first byte in everything that the console ever wrote.
    pub offset: u64,
    /// The stream. Its result is a `ConsoleResult`.
    pub stream: StreamOpened,
}

/// How a stream of the console ended: `stdin` was closed, or the VM was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsoleResult {
    /// Offset behind the last byte that was sent.
    pub offset: u64,
    /// Bytes that were overwritten before this reader came to them; a line in the stream says where.
    pub lost_bytes: u64,
}

/// Reply of `explain`: why a VM is as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainReply {
    /// The VM.
    pub vm: VmStatus,
    /// What to make of it, sentence by sentence.
    pub findings: Vec<String>,
    /// The VMM's configuration, as JSON text.
    pub vmm_config: String,
    /// The VMM's command line.
    pub vmm_command: Vec<String>,
    /// Its last events, oldest first, as sentences.
    pub history: Vec<String>,
    /// The values of its spec, and where each comes from; empty where that is not known, as of an earlier version's VM.
    #[serde(default)]
    pub values: Vec<SpecValue>,
}

/// The outcome stored for a request id: a reply or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The reply.
    Reply(Box<ChangeReply>),
    /// The error.
    Error(ErrorBody),
}
