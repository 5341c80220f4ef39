//! `events.read`: the log for those who may not touch JetStream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::VmEvent;
use crate::token::Token;

/// Request of `events.read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReadRequest {
    /// Only events of this VM name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Token>,
    /// Only events after this position of the stream (`next_cursor` of the page before).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only events at or after this time.
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

/// Reply of `events.read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReadReply {
    /// Events in order.
    pub events: Vec<StoredEvent>,
    /// Pass it as `after` to go on.
    pub next_cursor: u64,
    /// No event was stored after these when the page was read.
    pub end: bool,
}
