//! What the agent itself tells the host of: processes that the kernel killed for memory, services that failed, the end of
//! the guest; also what it watches ([`crate::watch`]). None of it costs anything while nothing happens: the kernel's
//! messages wake the agent up by themselves, and services are told of by systemd, which runs `drover-agent unit-failed`
//! (see `deploy/agent`).
//!
//! In a guest of processes the kernel is the host's own: only its end is told there.

pub mod end;
pub mod oom;

use drover_schemas::guest::EventType;

use super::Publisher;

/// A process was killed for memory.
pub const OOM_KILL: &str = "drover.oom-kill";
/// The guest is about to end, in order.
pub const SHUTDOWN: &str = "drover.shutdown";
/// A service failed.
pub const UNIT_FAILED: &str = "drover.unit-failed";

/// Whether a program may publish an event of this type of the agent's own: what root runs for systemd does.
pub(super) fn may_say(kind: &EventType, who: Publisher) -> bool {
    who.uid == 0 && kind.as_str() == UNIT_FAILED
}
