//! On which side of its limit a value is. Pure: the time is given.

use std::time::Duration;

/// The values of one threshold so far.
#[derive(Debug, Clone)]
pub(super) struct Crossing {
    /// It is exceeded from this value on.
    above: u32,
    /// And over below this one.
    below: u32,
    /// For so long every look must find it so.
    needs: Duration,
    exceeded: bool,
    /// Since when every look has found it on the other side.
    since: Option<Duration>,
}

impl Crossing {
    /// Begins on the side that was told last.
    pub(super) const fn new(above: u32, below: u32, needs: Duration, exceeded: bool) -> Self {
        Self { above, below, needs, exceeded, since: None }
    }

    pub(super) const fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    /// Takes the value of a look; whether the side has changed. One that is not known changes nothing.
    pub(super) fn take(&mut self, value: Option<u32>, at: Duration) -> bool {
        let is_beyond = value.is_some_and(|value| match self.exceeded {
            true => value < self.below,
            false => value >= self.above,
        });
        if !is_beyond {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(at);
        let has_changed = at.saturating_sub(since) >= self.needs;
        if has_changed {
            (self.exceeded, self.since) = (!self.exceeded, None);
        }
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn crossing(above: u32, below: u32, seconds: u64) -> Crossing {
        Crossing::new(above, below, Duration::from_secs(seconds), false)
    }

    #[test]
    fn a_crossing_lasts_and_has_two_sides() {
        let mut memory = crossing(90, 80, 2);
        let mut at = |value: u32, second| {
            let has_changed = memory.take(Some(value), Duration::from_secs(second));
            has_changed.then(|| memory.is_exceeded())
        };
        assert_eq!((at(95, 0), at(95, 1), at(89, 2), at(95, 3), at(90, 4)), (None, None, None, None, None));
        assert_eq!(at(90, 5), Some(true));
        assert_eq!(
            (at(85, 6), at(80, 9), at(79, 10), at(80, 11), at(10, 12)),
            (None, None, None, None, None)
        );
        assert_eq!((at(10, 14), at(10, 99)), (Some(false), None));
        // Without a time one look is enough; what is not known changes nothing.
        let mut full = crossing(90, 80, 0);
        assert!(full.take(Some(90), Duration::ZERO));
        assert!(!full.take(None, Duration::from_secs(9)) && full.is_exceeded());
        assert!(full.take(Some(79), Duration::ZERO));
    }

    proptest! {
        /// Beside the words of the contract: each look of the time before a change has found it so.
        #[test]
        fn it_changes_when_all_looks_of_its_time_say_so(
            values in proptest::collection::vec(proptest::option::of(0u32..=100), 0..200),
            above in 1u32..=100, gap in 0u32..20, needs in 0u64..6,
        ) {
            let below = above.saturating_sub(gap).max(1);
            let mut crossing = crossing(above, below, needs);
            let (mut exceeded, mut changed) = (false, 0);
            for (second, value) in values.iter().enumerate() {
                let beyond = |value: &Option<u32>| value.is_some_and(|v| if exceeded { v < below } else { v >= above });
                let from = second.saturating_sub(needs as usize);
                let wanted = from >= changed && second >= needs as usize && values[from..=second].iter().all(beyond);
                prop_assert_eq!(crossing.take(*value, Duration::from_secs(second as u64)), wanted, "at {}", second);
                if wanted {
                    (exceeded, changed) = (!exceeded, second + 1);
                }
                prop_assert_eq!(crossing.is_exceeded(), exceeded);
            }
        }
    }
}
