//! What namespaces use of a host, how its log of events stands, and what it alarms about: parts of `host.info`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::token::Token;

/// How much of a quota is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuotaUse {
    /// Used now.
    pub used: u64,
    /// The most that may be; absent where the host's own limits are the only ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// What a namespace uses of a host, and the most that it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamespaceUse {
    /// The namespace.
    pub namespace: Token,
    /// VMs of any state.
    pub vms: QuotaUse,
    /// Virtual CPUs of VMs that run or have been promised to.
    pub cpus: QuotaUse,
    /// Memory of their guests.
    pub memory_bytes: QuotaUse,
    /// Disks that VMs of any state may write to, at their full length.
    pub disk_bytes: QuotaUse,
    /// Requests in flight.
    pub requests: QuotaUse,
    /// Streams that are open.
    pub streams: QuotaUse,
    /// Events of the last hour, by a bucket that empties evenly; counted where there is a limit.
    pub events_per_hour: QuotaUse,
}

/// How the stream of events stands and how long it keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventLog {
    /// Name of the stream.
    pub stream: String,
    /// How long events are kept; absent for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// How much of them is kept; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// How many are kept now, of all hosts and namespaces.
    pub events: u64,
    /// How much they are.
    pub bytes: u64,
    /// Position of the oldest.
    pub first_cursor: u64,
    /// Position of the newest.
    pub last_cursor: u64,
    /// When the oldest was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unix_ms: Option<u64>,
    /// Readers that the stream knows by name (durable consumers) and that have not read everything.
    pub readers_behind: u64,
    /// When all this was seen, by the host's clock.
    pub seen_unix_ms: u64,
}

/// Something that an operator should look at, for as long as it is so. Its begin and its end are events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alarm {
    /// What a rule can match: `slow_consumer`, `outbox_filling`, `clock_offset`, `events_compressed`.
    pub alarm: String,
    /// Since when.
    pub since_unix_ms: u64,
    /// One sentence for a person.
    pub message: String,
}
