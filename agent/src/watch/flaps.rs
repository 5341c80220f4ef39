//! What changes again and again is told as that, and then no more until it has come to rest. Pure: the time is given.

use std::collections::VecDeque;
use std::time::Duration;

/// So many changes within [`WINDOW`] are told one by one; with the next one it flaps.
const CHANGES: usize = 6;
const WINDOW: Duration = Duration::from_secs(600);
/// After so long without a change it does not flap any more.
const QUIET: Duration = Duration::from_secs(300);

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News<T> {
    /// It is so now.
    Now(T),
    /// It changes too often for each change to be told.
    Flapping,
}

/// When something has changed lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Flaps {
    changes: VecDeque<Duration>,
    flapping: bool,
}

impl Flaps {
    /// Goes on with something that was told to flap, or not.
    pub(super) fn resumed(flapping: bool, at: Duration) -> Self {
        Self { changes: flapping.then_some(at).into_iter().collect(), flapping }
    }

    pub(super) const fn is_flapping(&self) -> bool {
        self.flapping
    }

    /// What to tell after a look that found `now`, and whether that is a change.
    pub(super) fn tell<T>(&mut self, now: T, has_changed: bool, at: Duration) -> Option<News<T>> {
        if !has_changed {
            let is_quiet = self.changes.back().is_none_or(|last| at.saturating_sub(*last) >= QUIET);
            let rests = self.flapping && is_quiet;
            if rests {
                *self = Self::default();
            }
            return rests.then_some(News::Now(now));
        }
        self.changes.retain(|change| at.saturating_sub(*change) < WINDOW);
        self.changes.push_back(at);
        if self.changes.len() <= CHANGES && !self.flapping {
            return Some(News::Now(now));
        }
        // The last one alone counts from here on.
        self.changes = VecDeque::from([at]);
        (!std::mem::replace(&mut self.flapping, true)).then_some(News::Flapping)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tell(flaps: &mut Flaps, now: u32, has_changed: bool, second: u64) -> Option<News<u32>> {
        flaps.tell(now, has_changed, Duration::from_secs(second))
    }

    #[test]
    fn what_changes_too_often_is_told_as_that_until_it_rests() {
        let mut flaps = Flaps::default();
        for n in 0..6 {
            assert_eq!(tell(&mut flaps, n, true, 10 * u64::from(n)), Some(News::Now(n)));
        }
        assert_eq!(tell(&mut flaps, 6, true, 60), Some(News::Flapping));
        assert_eq!((tell(&mut flaps, 7, true, 100), tell(&mut flaps, 7, false, 399)), (None, None));
        assert_eq!(tell(&mut flaps, 7, false, 400), Some(News::Now(7)));
        assert_eq!(
            (tell(&mut flaps, 7, false, 9_999), tell(&mut flaps, 8, true, 9_999)),
            (None, Some(News::Now(8)))
        );
        // Seldom enough it may change for ever.
        assert!((1..50).all(|n| tell(&mut flaps, n, true, 10_000 + 200 * u64::from(n)).is_some()));
        assert!(!flaps.is_flapping());
        let mut flaps = Flaps::resumed(true, Duration::from_secs(5));
        assert_eq!(
            (tell(&mut flaps, 1, false, 6), tell(&mut flaps, 1, false, 305)),
            (None, Some(News::Now(1)))
        );
    }

    proptest! {
        #[test]
        fn few_things_are_told_and_the_last_is_true(looks in proptest::collection::vec((0_u32..3, 1_u64..120), 1..300)) {
            let (mut flaps, mut now, mut at, mut told, mut shown) = (Flaps::default(), 0, 0, Vec::new(), 0);
            for (next, pause) in looks {
                at += pause;
                if let Some(news) = tell(&mut flaps, next, next != now, at) {
                    told.push(at);
                    if let News::Now(seen) = news {
                        shown = seen;
                    }
                }
                now = next;
                prop_assert!(flaps.is_flapping() || shown == now);
            }
            if let Some(News::Now(seen)) = tell(&mut flaps, now, false, at + QUIET.as_secs()) {
                shown = seen;
            }
            prop_assert_eq!(shown, now);
            for (i, first) in told.iter().enumerate() {
                let within = told[i..].iter().filter(|last| *last - first < WINDOW.as_secs()).count();
                prop_assert!(within <= 2 * CHANGES + 2, "{} in ten minutes", within);
            }
        }
    }
}
