//! Who did what, as the stream of events has it.

use std::collections::BTreeMap;

use drover_schemas::Token;
use drover_schemas::audit::AuditEvent;

use crate::client::Bus;
use crate::events::stored;
use crate::wait::until;

/// The whole audit, in the order of the stream; that of each reporter has no gap.
///
/// # Panics
/// It has one, or holds what the contract does not know.
pub async fn read(bus: &Bus) -> Vec<AuditEvent> {
    let all: Vec<AuditEvent> = stored(bus, "drover.v1.evt.audit.").await;
    let mut last: BTreeMap<&Token, u64> = BTreeMap::new();
    for event in &all {
        let last = last.entry(&event.reporter).or_default();
        assert_eq!(event.seq, *last + 1, "a gap before {event:?}");
        *last = event.seq;
    }
    all
}

/// Waits until the audit tells of something.
///
/// # Panics
/// It does not in time.
pub async fn told(bus: &Bus, what: &str, look: impl Fn(&AuditEvent) -> bool) -> AuditEvent {
    until(&format!("the audit tells of {what}"), async || read(bus).await.into_iter().find(&look)).await
}
