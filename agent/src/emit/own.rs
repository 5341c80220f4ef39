//! What the agent itself tells the host of: processes that the kernel killed for memory, file systems that are almost
//! full, services that failed, the end of the guest. None of it costs anything while nothing happens: the kernel's
//! messages wake the agent up by themselves, file systems are looked at when the host's heartbeat has woken it up
//! anyway, and services are told of by systemd, which runs `drover-agent unit-failed` (see `deploy/agent`).
//!
//! In a guest of processes kernel and file systems are the host's own: only its end is told there.

pub mod disks;
pub mod end;
pub mod oom;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drover_schemas::guest::{EventType, GuestKind};

use self::disks::Disks;
use super::{Events, Publisher};
use crate::look::local_disks;

/// A process was killed for memory.
pub const OOM_KILL: &str = "drover.oom-kill";
/// A file system is almost full.
pub const DISK_LOW: &str = "drover.disk-low";
/// It is not any more.
pub const DISK_OK: &str = "drover.disk-ok";
/// The guest is about to end, in order.
pub const SHUTDOWN: &str = "drover.shutdown";
/// A service failed.
pub const UNIT_FAILED: &str = "drover.unit-failed";

/// File systems are looked at this often at the most: a little less than the host's heartbeat.
const DISKS_EVERY: Duration = Duration::from_secs(25);

/// Whether a program may publish an event of this type of the agent's own: what root runs for systemd does.
pub(super) fn may_say(kind: &EventType, who: Publisher) -> bool {
    who.uid == 0 && kind.as_str() == UNIT_FAILED
}

/// File systems as they were, and when they were looked at last.
type LastLook = (Disks, Option<Instant>);

/// What is looked at when the agent is awake anyway.
#[derive(Debug)]
pub struct Watched {
    events: Arc<Events>,
    disks: Option<Arc<Mutex<LastLook>>>,
}

impl Watched {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(kind: GuestKind, events: Arc<Events>) -> Self {
        Self { events, disks: (kind != GuestKind::Process).then(Arc::default) }
    }

    /// The host has sent something. Nobody is told of anything while no host takes events.
    pub fn awake(&self) {
        let Some(disks) = self.disks.as_ref().filter(|_| self.events.was_joined()) else { return };
        let due = |last: Option<Instant>| last.is_none_or(|last| last.elapsed() >= DISKS_EVERY);
        // It is held for as long as a look lasts.
        if !disks.try_lock().is_ok_and(|held| due(held.1)) {
            return;
        }
        let (disks, events) = (Arc::clone(disks), Arc::clone(&self.events));
        // Aside: a disk that hangs holds whoever asks how full it is.
        tokio::task::spawn_blocking(move || {
            let Ok(mut held) = disks.try_lock() else { return };
            let (disks, last) = &mut *held;
            *last = Some(Instant::now());
            for (kind, data) in disks.look(&local_disks()) {
                events.say(kind, data);
            }
        });
    }
}
