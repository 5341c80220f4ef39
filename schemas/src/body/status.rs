//! What is known about a VM: the reply of `get`, of most verbs, and the items of `list`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{EgressSpec, ForwardSpec, NicLimits, ResolvedSpec};
use crate::event::DroppedEvents;
use crate::id::VmId;
use crate::state::{Desired, VmState};
use crate::token::Token;

/// Why a VM ended, did not boot, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// A request asked for it.
    Request,
    /// A request stopped it.
    UserStop,
    /// A request deleted it.
    UserDelete,
    /// The guest switched itself off.
    GuestPowerOff,
    /// The guest rebooted itself.
    GuestReboot,
    /// The guest rebooted itself again and again, and its agent never answered in between.
    RebootLoop,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The VMM exited with a status.
    VmmExit,
    /// The VMM was ended by a signal.
    VmmSignal,
    /// The kernel killed the VMM for memory.
    OutOfMemory,
    /// The VMM refused a call.
    VmmError,
    /// The VMM did not answer in time.
    VmmTimeout,
    /// The VMM could not be started.
    VmmSpawn,
    /// The kernel image is not bootable.
    KernelFormat,
    /// The firmware image is not bootable.
    FirmwareFormat,
    /// A disk could not be made or opened.
    DiskRefused,
    /// The network interface could not be made or opened.
    TapRefused,
    /// A file of the host could not be made.
    HostResource,
    /// The guest agent did not come up in time.
    AgentTimeout,
    /// The guest agent came up.
    AgentReady,
    /// The link to the guest agent broke.
    AgentLost,
    /// The guest agent broke a rule of its protocol: it is not what it should be.
    AgentBreach,
    /// The guest agent and the host have no version of their protocol in common.
    AgentIncompatible,
    /// The host was rebooted.
    HostReboot,
    /// The daemon ended and was told to stop its VMs; they start again with it.
    HostShutdown,
    /// The daemon started and found it so.
    Adopted,
    /// The restart policy acted.
    RestartPolicy,
    /// Too many restarts in the window.
    CrashLoop,
    /// A later request took its place.
    Superseded,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A cause with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// What kind.
    pub kind: CauseKind,
    /// One sentence for a person.
    pub message: String,
    /// Facts by name: `exit_code`, `signal`, `vmm_error`, `console_tail`, `stderr_tail`, `step` …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, String>,
}

impl Cause {
    /// A cause without evidence yet.
    pub fn new(kind: CauseKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), evidence: BTreeMap::new() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.evidence.insert(key.to_owned(), value.to_string());
        self
    }
}

/// How the link to the guest agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// The VM has none, or is not running.
    Absent,
    /// The daemon is trying to reach it.
    Connecting,
    /// It answers.
    Ready,
    /// It answered before and does not now.
    Lost,
    /// A state that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// What a guest agent did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentFaultCode {
    /// A frame of no byte, or of more than a frame may have.
    FrameLength,
    /// A frame that cannot be read.
    FrameFormat,
    /// More bytes than it had credit for.
    Credit,
    /// Bytes skipped, repeated, after their end or too many in a frame.
    Offset,
    /// It spoke of a stream that is not open.
    StreamId,
    /// A frame that has no place there.
    OutOfPlace,
    /// Far more events than it may send before they are acknowledged.
    EventFlood,
    /// Frames without end that carry nothing.
    FrameFlood,
    /// It said nothing for too long.
    Silent,
    /// It speaks no version of the protocol that the host speaks.
    Incompatible,
    /// A code that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl AgentFaultCode {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrameLength => "frame_length",
            Self::FrameFormat => "frame_format",
            Self::Credit => "credit",
            Self::Offset => "offset",
            Self::StreamId => "stream_id",
            Self::OutOfPlace => "out_of_place",
            Self::EventFlood => "event_flood",
            Self::FrameFlood => "frame_flood",
            Self::Silent => "silent",
            Self::Incompatible => "incompatible",
            Self::Unknown => "unknown",
        }
    }
}

/// What the agent of a VM did wrong last, since the VM was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentFault {
    /// What.
    pub code: AgentFaultCode,
    /// The same for a person.
    pub message: String,
    /// How often it broke a rule of the protocol lately; each time it is left alone for longer.
    #[serde(default)]
    pub breaches: u32,
    /// When it was noticed.
    pub at_unix_ms: u64,
    /// Until when it is left alone, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_unix_ms: Option<u64>,
}

/// The guest agent of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// How the link stands.
    pub state: AgentState,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Boot id of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// While it is looked for: why the last try to reach it failed, or why the link ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Events of the guest that were dropped since the VM was created, if any were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_events: Option<DroppedEvents>,
    /// What it did wrong last, since the VM was started, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<AgentFault>,
    /// Why what the spec wants watched in the guest is not watched, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwatched: Option<String>,
}

/// One interface of a VM as the host made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicStatus {
    /// The host's network.
    pub network: Token,
    /// Name of the TAP device on the host.
    pub tap: String,
    /// MAC address.
    pub mac: String,
    /// IPv4 address of the guest.
    pub ipv4: String,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The network's gateway: the host's bridge.
    pub gateway: String,
    /// IPv6 address of the guest, if its network has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// Length of that network's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_prefix_len: Option<u8>,
    /// The network's gateway of IPv6: the host's bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<String>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardSpec>,
    /// What the guest may reach by it, if its spec says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSpec>,
    /// How fast the guest may be by it, if its spec says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NicLimits>,
}

/// How a disk of a VM was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskMade {
    /// It shares blocks with its image until they are written to.
    Reflink,
    /// It lies over its image, from which all is read that the guest has not written, where the file system shares no
    /// blocks. It becomes longer while its VM is stopped only.
    Overlay,
    /// All of its image was copied, where neither can be.
    Copy,
    /// It began blank, with a file system or without.
    Blank,
    /// It is the image itself, which the guest cannot write to.
    Shared,
    /// It is a volume of the namespace, which stays when the VM is deleted.
    Volume,
    /// It was there, and how it was made is not known any more.
    Kept,
    /// A way that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl DiskMade {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Overlay => "overlay",
            Self::Copy => "copy",
            Self::Blank => "blank",
            Self::Shared => "shared",
            Self::Volume => "volume",
            Self::Kept => "kept",
            Self::Unknown => "unknown",
        }
    }
}

/// One disk of a VM as the host made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskStatus {
    /// How the guest finds it: the serial number of the device.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// How it was made.
    pub made: DiskMade,
}

/// The status of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmStatus {
    /// Namespace.
    pub namespace: Token,
    /// Name within the namespace.
    pub name: Token,
    /// Immutable identity.
    pub vm_id: VmId,
    /// The host that owns it.
    pub host: Token,
    /// What it is.
    pub state: VmState,
    /// What it shall be.
    pub desired: Desired,
    /// Counts changes of the spec, from 1.
    pub revision: u64,
    /// Counts VMM processes, from 1; 0 before the first.
    pub incarnation: u64,
    /// Sequence of its last event.
    pub seq: u64,
    /// Virtual CPUs of the spec.
    #[serde(default)]
    pub cpus: u32,
    /// Memory of the spec, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// When it was created.
    pub created_unix_ms: u64,
    /// When `state` was entered.
    pub state_since_unix_ms: u64,
    /// The operation under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Why it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The guest agent.
    pub agent: AgentStatus,
    /// Interfaces.
    pub nics: Vec<NicStatus>,
    /// Disks, once they are made; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskStatus>,
    /// Process id of the VMM on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// Restarts by policy within the window.
    #[serde(default)]
    pub restarts: u32,
    /// The spec with nothing left open; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<ResolvedSpec>>,
}
