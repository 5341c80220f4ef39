//! `events.*`: the log for those who may not touch JetStream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{RejectedEvent, VmEvent, VmEventKind};
use crate::id::RequestId;
use crate::token::Token;

/// Request of `events.read`. Without filters it reads every event of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReadRequest {
    /// Only events of this VM name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Token>,
    /// Only events of these kinds; all if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<VmEventKind>,
    /// Only events that this request led to, its rejection among them. Without `after` and `since_unix_ms` the
    /// log is read from an hour before the id was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Only events after this position of the stream (`next_cursor` of the page before).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only events at or after this time; `after` goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_ms: Option<u64>,
    /// At most this many; 100 if left out, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// One event with its place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredEvent {
    /// Position in the stream; grows, with gaps.
    pub cursor: u64,
    /// The event.
    pub event: VmEvent,
}

/// A request that was refused and that nobody waited for, with its place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredRejection {
    /// Position in the stream.
    pub cursor: u64,
    /// The event.
    pub event: RejectedEvent,
}

/// Reply of `events.read`. A page may be empty although there is more: the host looks at a few thousand events
/// for each. Go on until `end`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReadReply {
    /// Events in order.
    pub events: Vec<StoredEvent>,
    /// Rejections among them; none if the events of one VM or of some kinds were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejections: Vec<StoredRejection>,
    /// Pass it as `after` to go on.
    pub next_cursor: u64,
    /// No event was stored after these when the page was read.
    pub end: bool,
    /// Events behind `after` are not kept any more: some may have been missed.
    #[serde(default)]
    pub trimmed: bool,
}

/// Request of `events.last`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsLastRequest {
    /// At most this many VMs; 100 if left out, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply of `events.last`: where the VMs of the namespace are, and where their log goes on.
///
/// Whoever reads all pages and then `events.read` from `after` on misses nothing: an event whose `seq` is not
/// above that of the VM's here is known already. A VM that has not changed for as long as events are kept is not
/// here; `vm.list` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsLastReply {
    /// The last event of kind `state` of each VM that is not deleted, by the time of its change. A VM that
    /// changes while pages are read comes again on a later one.
    pub events: Vec<StoredEvent>,
    /// Pass it to `events.read` when all pages are read; the same on every page.
    pub after: u64,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
