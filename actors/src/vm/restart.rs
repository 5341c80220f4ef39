//! Restart policy: pure.

use drover_schemas::body::spec::{RestartPolicy, RestartSpec};

/// How a VM came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    Clean,
    /// Anything else that nobody asked for.
    Failure,
}

/// What the policy makes of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays down, cleanly.
    Stopped,
    /// It stays down, as a failure.
    Failed,
    /// It stays down: too many restarts.
    CrashLoop,
    /// It starts again after this pause.
    RestartAfter {
        /// The pause, in milliseconds.
        delay_ms: u64,
    },
}

/// Judges an end. `restarts` are the times of earlier restarts; those out of the window are removed,
/// and a new restart is added. `jitter` is between 0 and 1 and shortens the pause by up to a quarter,
/// so that VMs which failed together do not start together.
pub fn judge(spec: &RestartSpec, end: End, restarts: &mut Vec<u64>, now_ms: u64, jitter: f64) -> Verdict {
    let restart = match (spec.policy, end) {
        (RestartPolicy::Always, _) | (RestartPolicy::OnFailure, End::Failure) => true,
        (RestartPolicy::OnFailure | RestartPolicy::Never, End::Clean) => return Verdict::Stopped,
        (RestartPolicy::Never, End::Failure) => false,
    };
    if !restart {
        return Verdict::Failed;
    }
    restarts.retain(|at| at.saturating_add(spec.window_ms) > now_ms);
    if restarts.len() >= spec.limit as usize {
        return Verdict::CrashLoop;
    }
    let doublings = u32::try_from(restarts.len()).unwrap_or(u32::MAX).min(32);
    let full = spec.backoff_ms.saturating_mul(1_u64 << doublings).min(spec.backoff_max_ms);
    restarts.push(now_ms);
    let cut = (full as f64 * 0.25 * jitter.clamp(0.0, 1.0)) as u64;
    Verdict::RestartAfter { delay_ms: full - cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(policy: RestartPolicy) -> RestartSpec {
        RestartSpec { policy, limit: 3, window_ms: 1_000, backoff_ms: 10, backoff_max_ms: 25 }
    }

    #[test]
    fn each_policy_judges_clean_and_failed_ends() {
        let judge = |policy, end| judge(&spec(policy), end, &mut vec![], 0, 0.0);
        assert_eq!(judge(RestartPolicy::Never, End::Clean), Verdict::Stopped);
        assert_eq!(judge(RestartPolicy::Never, End::Failure), Verdict::Failed);
        assert_eq!(judge(RestartPolicy::OnFailure, End::Clean), Verdict::Stopped);
        assert_eq!(judge(RestartPolicy::OnFailure, End::Failure), Verdict::RestartAfter { delay_ms: 10 });
        assert_eq!(judge(RestartPolicy::Always, End::Clean), Verdict::RestartAfter { delay_ms: 10 });
    }

    #[test]
    fn a_crash_loop_ends_and_the_pause_doubles_up_to_its_cap() {
        let mut restarts = vec![];
        let spec = spec(RestartPolicy::Always);
        let mut next = |now| judge(&spec, End::Failure, &mut restarts, now, 0.0);
        assert_eq!(next(1), Verdict::RestartAfter { delay_ms: 10 });
        assert_eq!(next(2), Verdict::RestartAfter { delay_ms: 20 });
        assert_eq!(next(3), Verdict::RestartAfter { delay_ms: 25 });
        assert_eq!(next(4), Verdict::CrashLoop);
        assert_eq!(next(1_001), Verdict::RestartAfter { delay_ms: 25 });
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_a_window(
            limit in 0_u32..6, window in 1_u64..100, steps in proptest::collection::vec(0_u64..40, 1..60),
            jitter in 0.0_f64..1.0,
        ) {
            let spec = RestartSpec { policy: RestartPolicy::Always, limit, window_ms: window, backoff_ms: 8, backoff_max_ms: 64 };
            let (mut restarts, mut now, mut granted) = (vec![], 0, Vec::<u64>::new());
            for step in steps {
                now += step;
                if let Verdict::RestartAfter { delay_ms } = judge(&spec, End::Failure, &mut restarts, now, jitter) {
                    prop_assert!((6..=64).contains(&delay_ms));
                    granted.push(now);
                }
                let within = granted.iter().filter(|at| **at + window > now).count();
                prop_assert!(within <= limit as usize);
                prop_assert!(restarts.len() <= limit as usize);
            }
        }
    }
}
