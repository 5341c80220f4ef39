//! How often something may be told, with what was kept back counted.

use std::time::{Duration, Instant};

/// So many at once, and one more after each refill.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// How many may come at once.
    pub burst: u32,
    /// After so long one more may come; at least a millisecond.
    pub refill: Duration,
}

/// The state of one rate.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    left: u32,
    since: Instant,
    suppressed: u64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, since: now, suppressed: 0 }
    }

    /// Takes one if there is one; counts nothing.
    pub fn admit(&mut self, now: Instant) -> bool {
        let due = self.due(now);
        if due > 0 {
            self.left = self.left.saturating_add(due).min(self.rate.burst);
            self.since = now;
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }

    /// Takes one, answering how many were suppressed before it; or counts it as suppressed.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        if self.admit(now) {
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppress(1);
        None
    }

    /// Counts what could not be told after all.
    pub const fn suppress(&mut self, count: u64) {
        self.suppressed = self.suppressed.saturating_add(count);
    }

    /// Takes one only to tell of those that were suppressed.
    pub fn take_suppressed(&mut self, now: Instant) -> Option<u64> {
        (self.suppressed > 0 && self.admit(now)).then(|| std::mem::take(&mut self.suppressed))
    }

    /// Nothing is lost if it is forgotten.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.suppressed == 0 && now.saturating_duration_since(self.since) > self.rate.refill * self.rate.burst
    }

    fn due(&self, now: Instant) -> u32 {
        let due = now.saturating_duration_since(self.since).as_millis() / self.rate.refill.as_millis().max(1);
        u32::try_from(due).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 20, refill: Duration::from_millis(200) };

    #[test]
    fn a_flood_is_counted_and_told_with_the_next_one() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        for _ in 0..RATE.burst {
            assert_eq!(bucket.take(start), Some(0));
        }
        for _ in 0..1_000 {
            assert_eq!(bucket.take(start), None);
        }
        assert_eq!(bucket.take(start + RATE.refill), Some(1_000));
        assert_eq!(bucket.take(start + RATE.refill), None);
        let later = start + RATE.refill * 1_000;
        assert_eq!((0..100).filter(|_| bucket.take(later).is_some()).count(), RATE.burst as usize);
    }

    #[test]
    fn what_was_suppressed_is_told_when_nothing_follows() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        assert_eq!(bucket.take_suppressed(start), None);
        for _ in 0..RATE.burst + 5 {
            bucket.take(start);
        }
        assert_eq!(bucket.take_suppressed(start), None, "there is no room yet");
        assert!(!bucket.is_full(start + RATE.refill * 1_000));
        assert_eq!(bucket.take_suppressed(start + RATE.refill), Some(5));
        assert_eq!(bucket.take_suppressed(start + RATE.refill * 2), None);
        assert!(bucket.is_full(start + RATE.refill * 1_000));
    }
}
