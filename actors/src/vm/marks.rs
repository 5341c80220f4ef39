//! What is held against the agent of a VM, and for how long it is left alone for it.
//!
//! An agent that broke a rule of the protocol is not what it should be. It is dialled again, for it may have been
//! replaced, but after a pause that doubles with each breach: a liar costs its host next to nothing, however often it
//! lies. Marks live as long as the VM runs; reboots of the guest do not end them, and a stop does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::body::status::{AgentFault, AgentFaultCode, Cause, CauseKind};

use crate::chain;
use crate::guest::LinkError;

/// The pause after the first breach.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(300);
/// Pause before an agent of another version is dialled again: it may be replaced at any time.
const INCOMPATIBLE: Duration = Duration::from_secs(5);
/// After so long without a breach the next is the first again.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Breaches of one agent. Pure: the time is told.
#[derive(Debug, Clone, Copy, Default)]
struct Breaches {
    count: u32,
    /// When the pause after the last one is over.
    until: Option<Instant>,
}

impl Breaches {
    /// One more: how long the agent is left alone.
    fn note(&mut self, now: Instant) -> Duration {
        if self.until.is_some_and(|until| now.saturating_duration_since(until) >= FORGIVEN) {
            self.count = 0;
        }
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.count).unwrap_or(u32::MAX));
        let pause = doubled.min(LONGEST);
        self.count = self.count.saturating_add(1);
        self.until = Some(now + pause);
        pause
    }
}

#[derive(Debug, Default)]
struct State {
    breaches: Breaches,
    fault: Option<AgentFault>,
    unwatched: Option<String>,
}

/// The marks of one VM; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Marks(Arc<Mutex<State>>);

impl Marks {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock guards plain data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the agent did wrong last.
    #[must_use]
    pub fn fault(&self) -> Option<AgentFault> {
        self.state().fault.clone()
    }

    /// Why what the spec wants watched is not watched.
    #[must_use]
    pub fn unwatched(&self) -> Option<String> {
        self.state().unwatched.clone()
    }

    /// Says so, or that it is.
    pub fn set_unwatched(&self, why: Option<String>) {
        self.state().unwatched = why;
    }

    /// Takes the end of a link, or of a try to make one: for how long the agent is left alone.
    pub fn note(&self, error: &LinkError, now: Instant, unix_ms: u64) -> Duration {
        let Some(code) = error.fault() else { return Duration::ZERO };
        let mut state = self.state();
        let pause = match code {
            AgentFaultCode::Silent => Duration::ZERO,
            AgentFaultCode::Incompatible => INCOMPATIBLE,
            _ => state.breaches.note(now),
        };
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        state.fault = Some(AgentFault {
            code,
            message: chain(error).to_string(),
            breaches: state.breaches.count,
            at_unix_ms: unix_ms,
            retry_unix_ms: (!pause.is_zero()).then(|| unix_ms.saturating_add(pause_ms)),
        });
        pause
    }
}

/// Why an agent is lost whose link ended with `error`, after which it is left alone for `pause`.
#[must_use]
pub fn cause(error: &LinkError, pause: Duration) -> Cause {
    let what = chain(error);
    let fault = error.fault();
    let cause = match fault {
        None | Some(AgentFaultCode::Silent) => {
            Cause::new(CauseKind::AgentLost, format!("the link to the agent ended: {what}"))
        }
        Some(AgentFaultCode::Incompatible) => Cause::new(
            CauseKind::AgentIncompatible,
            format!("{what}; install the agent of this host's version in the guest"),
        ),
        Some(_) => Cause::new(
            CauseKind::AgentBreach,
            format!(
                "{what}; it is left alone for {} s: see who has replaced the agent in the guest, and install that of this host's version",
                pause.as_secs()
            ),
        ),
    };
    match fault {
        Some(code) => cause.with("fault", code.as_str()),
        None => cause,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BREACH: LinkError = LinkError::UnknownStream { stream: 9 };

    #[test]
    fn each_breach_is_followed_by_a_longer_pause_until_it_is_forgiven() {
        let (marks, mut now) = (Marks::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let pause = marks.note(&BREACH, now, 1_000);
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let fault = marks.fault().unwrap();
        assert_eq!((fault.code, fault.breaches), (AgentFaultCode::StreamId, 12));
        assert_eq!((fault.at_unix_ms, fault.retry_unix_ms), (1_000, Some(301_000)));
        assert_eq!(marks.note(&BREACH, now + FORGIVEN, 2_000), FIRST);
        assert_eq!(marks.fault().unwrap().breaches, 1);
    }

    #[test]
    fn what_is_no_breach_is_told_and_not_held_against_anybody() {
        let (marks, now) = (Marks::default(), Instant::now());
        assert_eq!(marks.note(&LinkError::Closed, now, 1), Duration::ZERO);
        assert_eq!(marks.fault(), None);
        assert_eq!(marks.note(&LinkError::Silent { after_ms: 40_000 }, now, 1), Duration::ZERO);
        let fault = marks.fault().unwrap();
        assert_eq!((fault.code, fault.breaches, fault.retry_unix_ms), (AgentFaultCode::Silent, 0, None));
        let cause = cause(&BREACH, FIRST);
        assert_eq!((cause.kind, cause.evidence["fault"].as_str()), (CauseKind::AgentBreach, "stream_id"));
    }

    proptest! {
        /// However an agent times its breaches, it is dialled at most so often: a handful at first, then once in the
        /// longest pause.
        #[test]
        fn a_liar_is_dialled_seldom(after in proptest::collection::vec(0_u64..600, 1..200)) {
            let begin = Instant::now();
            let (mut now, mut breaches) = (begin, Breaches::default());
            for (count, after) in (1_u64..).zip(after) {
                let pause = breaches.note(now);
                prop_assert!(pause >= FIRST && pause <= LONGEST);
                now += pause + Duration::from_secs(after);
                if count > 9 {
                    prop_assert!((now - begin).as_secs() >= 511 + (count - 9) * LONGEST.as_secs());
                }
            }
        }
    }
}
