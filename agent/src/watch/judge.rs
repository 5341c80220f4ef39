//! What the runs of a check mean. Pure: the time is given.

use std::time::Duration;

use drover_schemas::guest::{CheckSpec, CheckStatus};

use super::flaps::{Flaps, News};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Well.
    Well,
    /// Not well.
    Failed,
    /// The owner of the guest did not let it begin.
    Refused,
}

/// The runs of one check so far.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    /// So many in a row make it failing.
    failures: u32,
    /// So many in a row make it well.
    successes: u32,
    status: CheckStatus,
    good: u32,
    bad: u32,
    flaps: Flaps,
}

impl Judge {
    /// Goes on from what was told last; `Starting` if nothing was.
    pub(super) fn resumed(spec: &CheckSpec, status: CheckStatus, flapping: bool, at: Duration) -> Self {
        let (failures, successes) = (spec.failures, spec.successes);
        Self { failures, successes, status, good: 0, bad: 0, flaps: Flaps::resumed(flapping, at) }
    }

    /// Takes a run; what there is to tell. Failures within the time of grace do not count before it is told how it is.
    pub(super) fn take(&mut self, run: Run, in_grace: bool, at: Duration) -> Option<News<CheckStatus>> {
        let (good, bad) = (self.good, self.bad);
        (self.good, self.bad) = match run {
            Run::Well => (good.saturating_add(1), 0),
            Run::Failed if in_grace && self.status == CheckStatus::Starting => (0, bad),
            Run::Failed => (0, bad.saturating_add(1)),
            Run::Refused => (0, 0),
        };
        let status = match run {
            Run::Refused => CheckStatus::Refused,
            Run::Well if self.good >= self.successes => CheckStatus::Ok,
            Run::Failed if self.bad >= self.failures => CheckStatus::Failing,
            _ => self.status,
        };
        let before = std::mem::replace(&mut self.status, status);
        self.flaps.tell(status, status != before, at)
    }

    pub(super) const fn status(&self) -> CheckStatus {
        self.status
    }

    /// Failures in a row that count.
    pub(super) const fn in_a_row(&self) -> u32 {
        self.bad
    }

    pub(super) const fn is_flapping(&self) -> bool {
        self.flaps.is_flapping()
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::Token;
    use proptest::prelude::*;

    use super::CheckStatus::{Failing, Ok, Refused, Starting};
    use super::*;

    fn judge(failures: u32, successes: u32) -> Judge {
        let spec = CheckSpec { failures, successes, ..CheckSpec::new(Token::new("a").unwrap(), Vec::new()) };
        Judge::resumed(&spec, Starting, false, Duration::ZERO)
    }

    /// What is told of runs, `+`, `-` and `!`, ten minutes apart.
    fn told(judge: &mut Judge, runs: &str, in_grace: bool) -> Vec<CheckStatus> {
        let run = |c| match c {
            '+' => Run::Well,
            '-' => Run::Failed,
            _ => Run::Refused,
        };
        let mut at = Duration::ZERO;
        let news = runs.chars().filter_map(|c| {
            at += Duration::from_secs(600);
            judge.take(run(c), in_grace, at)
        });
        news.map(|news| if let News::Now(status) = news { status } else { Starting }).collect()
    }

    #[test]
    fn it_changes_by_runs_in_a_row() {
        let mut one = judge(3, 2);
        assert_eq!(told(&mut one, "+-+--+", false), []);
        assert_eq!(told(&mut one, "+", false), [Ok]);
        assert_eq!(told(&mut one, "--+--", false), []);
        assert_eq!((told(&mut one, "-", false), one.in_a_row()), (vec![Failing], 3));
        assert_eq!(told(&mut one, "---+-+", false), []);
        assert_eq!((told(&mut one, "+", false), one.in_a_row()), (vec![Ok], 0));
        assert_eq!(told(&mut one, "!!--!", false), [Refused]);
        assert_eq!(told(&mut one, "--", false), []);
        assert_eq!(told(&mut one, "-", false), [Failing]);
    }

    #[test]
    fn failures_in_the_time_of_grace_count_once_it_was_well() {
        let mut one = judge(2, 1);
        assert_eq!((told(&mut one, "-----", true), one.in_a_row()), (vec![], 0));
        assert_eq!(told(&mut one.clone(), "-", false), []);
        assert_eq!(told(&mut one.clone(), "--", false), [Failing]);
        assert_eq!(told(&mut one, "+--", true), [Ok, Failing]);
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let spec = CheckSpec { failures: 1, ..CheckSpec::new(Token::new("a").unwrap(), Vec::new()) };
        let mut one = Judge::resumed(&spec, Failing, false, Duration::ZERO);
        // What was failing has no grace.
        assert_eq!((told(&mut one, "--", true), told(&mut one, "+", true)), (vec![], vec![Ok]));
    }

    proptest! {
        /// Beside a model that looks at all runs anew each time.
        #[test]
        fn it_is_what_the_last_runs_say(
            runs in proptest::collection::vec((0_u8..8, any::<bool>()), 0..120), failures in 1_u32..5, successes in 1_u32..5,
        ) {
            let mut one = judge(failures, successes);
            let mut past: Vec<(Run, bool)> = Vec::new();
            let mut status = Starting;
            for (at, (kind, in_grace)) in runs.into_iter().enumerate() {
                let run = match kind {
                    0 => Run::Refused,
                    1..=3 => Run::Well,
                    _ => Run::Failed,
                };
                past.push((run, in_grace && status == Starting));
                let row = past.iter().rev().take_while(|(other, _)| *other == run);
                let all = row.clone().count();
                let counted = row.filter(|(_, forgiven)| !forgiven).count();
                one.take(run, in_grace, Duration::from_secs(at as u64));
                status = match run {
                    Run::Refused => Refused,
                    Run::Well if all >= successes as usize => Ok,
                    Run::Failed if counted >= failures as usize => Failing,
                    _ => status,
                };
                prop_assert_eq!(one.in_a_row() as usize, if run == Run::Failed { counted } else { 0 });
                prop_assert_eq!(one.status(), status);
            }
        }
    }
}
