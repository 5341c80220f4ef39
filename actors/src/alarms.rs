//! What is wrong now: alarms that last. Each begins and ends with an event of the host, stands in `host.info` while
//! it lasts, and is a metric.
//!
//! | alarm | begins | ends |
//! |---|---|---|
//! | `slow_consumer` | a subscription lost messages, which clients must repeat | none was lost for a minute |
//! | `outbox_filling` | the outbox is fuller than 80 % | it is at 60 % or below |
//! | `network_broken` | something of the VMs' network is wrong and cannot be mended | all of it is as it should be |
//! | `dhcp_unserved` | the guests of a network that has DHCP are not heard | those of every network are |
//! | `dns_unserved` | the guests of a network that has names cannot ask for them | those of every network can |
//! | `clock_offset` | the clock is more than 1 s off the bus server's | it is within half a second |
//! | `events_compressed` | the server compresses the stream of events | it does not any more |

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::body::usage::{Alarm, EventLog};

use crate::host_log::{HostLog, HostNote};
use crate::metrics::{AlarmLabels, Metrics};
use crate::services::now_ms;

/// How long after the last lost message a subscription counts as quick again.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// A value that is wrong above one bound, and right again at another, so that it does not flicker.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    /// Name of the alarm.
    pub alarm: &'static str,
    /// Above this it begins.
    pub begin: u64,
    /// At this or below it ends.
    pub end: u64,
    /// What it means, for a person.
    pub message: &'static str,
}

/// Messages that subscriptions lost lately.
pub const SLOW_CONSUMER: Level = Level {
    alarm: "slow_consumer",
    begin: 0,
    end: 0,
    message: "more requests come than the host takes off the bus, and some were lost; their clients repeat them",
};
/// Percent of the outbox.
pub const OUTBOX: Level = Level {
    alarm: "outbox_filling",
    begin: 80,
    end: 60,
    message: "events wait for the bus; above 95 % verbs that change a VM are refused: see that the stream takes events",
};
/// What of the network is wrong and stays so.
pub const NETWORK: Level = Level {
    alarm: "network_broken",
    begin: 0,
    end: 0,
    message: "the network of VMs was changed by others and cannot be mended; the alarm `network_unmended` says what",
};
/// Networks whose guests are not given their addresses.
pub const DHCP: Level = Level {
    alarm: "dhcp_unserved",
    begin: 0,
    end: 0,
    message: "guests of a network that ask by DHCP are not heard; the alarm `guests_unserved` says why",
};
/// Networks whose guests cannot ask for names.
pub const DNS: Level = Level {
    alarm: "dns_unserved",
    begin: 0,
    end: 0,
    message: "guests of a network cannot ask for names; the alarm `guests_unserved` says why and what to do",
};
/// Milliseconds between the clocks, for certain.
pub const CLOCK: Level = Level {
    alarm: "clock_offset",
    begin: 1_000,
    end: 500,
    message: "the host's clock differs from the bus server's; times of events are not to be trusted: see to NTP",
};
/// Whether the server compresses the stream of events, as earlier versions made it.
pub const COMPRESSED: Level = Level {
    alarm: "events_compressed",
    begin: 0,
    end: 0,
    message: "the server compresses the stream of events, and may not be able to read it any more after a crash: an \
              operator should run `drover bus upgrade`",
};

impl Level {
    /// Whether `value` is wrong, given whether it was.
    #[must_use]
    pub const fn is_wrong(&self, was: bool, value: u64) -> bool {
        if was { value > self.end } else { value > self.begin }
    }
}

/// The alarms of a host.
#[derive(Debug)]
pub struct Alarms {
    log: HostLog,
    metrics: Metrics,
    active: Mutex<BTreeMap<&'static str, Alarm>>,
}

impl Alarms {
    /// None yet.
    #[must_use]
    pub fn new(log: HostLog, metrics: Metrics) -> Self {
        for level in [SLOW_CONSUMER, OUTBOX, NETWORK, DHCP, DNS, CLOCK, COMPRESSED] {
            metrics.alarms.get_or_create(&AlarmLabels { alarm: level.alarm }).set(0);
        }
        Self { log, metrics, active: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Alarm>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a value, and tells if that begins or ends an alarm.
    pub fn note(&self, level: &Level, value: u64) {
        let mut active = self.lock();
        let was = active.contains_key(level.alarm);
        let wrong = level.is_wrong(was, value);
        if wrong == was {
            return;
        }
        self.metrics.alarms.get_or_create(&AlarmLabels { alarm: level.alarm }).set(wrong.into());
        let note = HostNote::alarm(level.alarm, level.message).with("value", value);
        if wrong {
            tracing::warn!(alarm = level.alarm, value, "{}", level.message);
            let (alarm, message) = (level.alarm.to_owned(), level.message.to_owned());
            active.insert(level.alarm, Alarm { alarm, since_unix_ms: now_ms(), message });
            self.log.note(note.with("phase", "begin"));
        } else {
            tracing::info!(alarm = level.alarm, value, "the alarm is over");
            active.remove(level.alarm);
            self.log.note(note.with("phase", "end"));
        }
    }

    /// Those that last, by name.
    #[must_use]
    pub fn active(&self) -> Vec<Alarm> {
        self.lock().values().cloned().collect()
    }
}

/// Tells lately lost messages from those of long ago.
#[derive(Debug, Default)]
pub struct Lost {
    total: u64,
    last: Option<Instant>,
}

impl Lost {
    /// How often messages were lost in all, if some were lately; else 0.
    pub fn lately(&mut self, total: u64, now: Instant) -> u64 {
        if total > self.total {
            self.total = total;
            self.last = Some(now);
        }
        let lately = self.last.is_some_and(|last| now.saturating_duration_since(last) < SLOW_FOR);
        if lately { self.total } else { 0 }
    }
}

/// How the stream of events and the clock were when they were last looked at.
#[derive(Debug, Default)]
pub struct Seen(Mutex<(Option<EventLog>, Option<i64>)>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, (Option<EventLog>, Option<i64>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how they are.
    pub fn note(&self, log: EventLog, clock_offset_ms: Option<i64>) {
        *self.lock() = (Some(log), clock_offset_ms);
    }

    /// The stream.
    #[must_use]
    pub fn log(&self) -> Option<EventLog> {
        self.lock().0.clone()
    }

    /// How far the host's clock is ahead of the bus server's.
    #[must_use]
    pub fn clock_offset_ms(&self) -> Option<i64> {
        self.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_does_not_flicker() {
        let told: Vec<bool> = [79, 80, 81, 80, 61, 60, 80, 81]
            .iter()
            .scan(false, |was, value| {
                *was = OUTBOX.is_wrong(*was, *value);
                Some(*was)
            })
            .collect();
        assert_eq!(told, [false, false, true, true, true, false, false, true]);
    }

    #[test]
    fn messages_that_were_lost_long_ago_are_not_an_alarm() {
        let (mut lost, start) = (Lost::default(), Instant::now());
        assert_eq!(lost.lately(0, start), 0);
        assert_eq!(lost.lately(3, start), 3);
        assert_eq!(lost.lately(3, start + SLOW_FOR / 2), 3);
        assert_eq!(lost.lately(4, start + SLOW_FOR / 2), 4);
        assert_eq!(lost.lately(4, start + SLOW_FOR), 4);
        assert_eq!(lost.lately(4, start + SLOW_FOR * 2), 0);
    }
}
