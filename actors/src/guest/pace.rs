//! How fast the frames of one agent are taken. Pure: the time is told.
//!
//! Two bounds. All frames but full pieces of data, which credit bounds already, are taken at a rate beyond which the
//! link's task reads no more for a while: the bytes wait in the guest, and no core is spent on them. Frames that carry
//! nothing have a bound of their own, far above what an honest agent sends: beyond it the link ends.

use std::time::Duration;

use tokio::time::Instant;

/// Frames each second, in the long run. An honest agent sends some for each request.
const FRAMES: Rate = Rate { per_second: 10_000.0, burst: 10_000.0 };
/// Frames that carry nothing each second, in the long run. An honest agent sends one for each heartbeat.
const EMPTY: Rate = Rate { per_second: 200.0, burst: 2_000.0 };
/// Bytes of a frame that count as one more.
const BYTES: usize = 4 * 1024;
/// Reading goes on when so many frames may be taken at once: not at each of them.
const AT_ONCE: f64 = 500.0;

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: f64,
}

/// What of a rate is left: below zero it is owed.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    const fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    fn take(&mut self, cost: f64, now: Instant) {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + gone * self.rate.per_second).min(self.rate.burst) - cost;
        self.at = now;
    }
}

/// What a frame was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// A piece of data that is worth its frame; its credit bounds it.
    Bulk,
    /// Something.
    Something,
    /// Nothing: a sign of life that nobody asked for, what is not known, what is too much.
    Nothing,
}

/// The bounds of one link.
#[derive(Debug)]
pub(super) struct Pace {
    frames: Bucket,
    empty: Bucket,
    /// Frames that carried nothing since the link began.
    nothing: u64,
    rests_until: Option<Instant>,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        let (frames, empty) = (Bucket::full(FRAMES, now), Bucket::full(EMPTY, now));
        Self { frames, empty, nothing: 0, rests_until: None }
    }

    /// Counts a frame of `bytes` bytes. Answers how many of its kind have come if that is too many.
    pub(super) fn note(&mut self, carries: Carries, bytes: usize, now: Instant) -> Result<(), u64> {
        if carries == Carries::Bulk {
            return Ok(());
        }
        let cost = 1.0 + (bytes / BYTES) as f64;
        self.frames.take(cost, now);
        if self.frames.left < 0.0 {
            let missing = (AT_ONCE - self.frames.left) / self.frames.rate.per_second;
            self.rests_until = Some(now + Duration::from_secs_f64(missing));
        }
        if carries == Carries::Nothing {
            self.nothing += 1;
            self.empty.take(cost, now);
            if self.empty.left < 0.0 {
                return Err(self.nothing);
            }
        }
        Ok(())
    }

    /// Until when nothing more is read.
    pub(super) fn rests_until(&mut self, now: Instant) -> Option<Instant> {
        self.rests_until = self.rests_until.filter(|until| *until > now);
        self.rests_until
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_honest_agent_is_never_held_up() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        // An hour of a hundred requests a second, with a heartbeat every ten seconds and a gigabyte of bulk.
        for second in 0..3_600 {
            for _ in 0..300 {
                pace.note(Carries::Something, 200, now).unwrap();
            }
            for _ in 0..16_384 {
                pace.note(Carries::Bulk, 65_600, now).unwrap();
            }
            if second % 10 == 0 {
                pace.note(Carries::Nothing, 20, now).unwrap();
            }
            assert_eq!(pace.rests_until(now), None);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn frames_that_carry_nothing_come_to_an_end() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let ended = (0..100_000).find_map(|_| pace.note(Carries::Nothing, 10, now).err());
        assert_eq!(ended, Some(2_001));
        let mut pace = Pace::new(now);
        let ended = (0..100_000).find_map(|_| pace.note(Carries::Nothing, 128 * 1024, now).err());
        assert_eq!(ended, Some(61), "long ones sooner");
    }

    proptest! {
        /// Whatever the sizes and the times are, no more is taken in any span than the burst and the rate allow.
        #[test]
        fn the_rate_holds_over_any_span(
            frames in proptest::collection::vec((0_usize..131_072, 0_u64..2_000), 1..2_000),
        ) {
            let begin = Instant::now();
            let (mut now, mut pace, mut taken) = (begin, Pace::new(begin), 0.0);
            for (bytes, pause_us) in frames {
                now += Duration::from_micros(pause_us);
                if let Some(until) = pace.rests_until(now) {
                    prop_assert!(until > now && until <= now + Duration::from_secs(1));
                    now = until;
                }
                pace.note(Carries::Something, bytes, now).unwrap();
                taken += 1.0 + (bytes / BYTES) as f64;
                let allowed = FRAMES.burst + FRAMES.per_second * (now - begin).as_secs_f64();
                // The last one may be owed.
                prop_assert!(taken <= allowed + 33.0, "{taken} of {allowed}");
            }
        }
    }
}
