//! How often something may be told, with what was kept back counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Keys that are told apart: most are somebody's choice.
const KEYS: usize = 1_024;

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

/// The same rate for each of many, in bounded memory: those beyond a number share what one has, the crowd.
#[derive(Debug)]
pub struct Shares<K> {
    rate: Rate,
    known: HashMap<K, Bucket>,
    crowd: Bucket,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// A full one for everybody.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, known: HashMap::new(), crowd: Bucket::new(rate, now) }
    }

    /// The rate of one of them.
    pub fn of(&mut self, key: &K, now: Instant) -> &mut Bucket {
        if !self.known.contains_key(key) {
            if self.known.len() >= KEYS {
                self.known.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.known.len() >= KEYS {
                return &mut self.crowd;
            }
        }
        self.known.entry(key.clone()).or_insert_with(|| Bucket::new(self.rate, now))
    }

    /// The rate of those who are not told apart.
    pub const fn crowd(&mut self) -> &mut Bucket {
        &mut self.crowd
    }

    /// Takes the counts of what was suppressed, as far as there is room to tell of it. `None` is the crowd.
    pub fn take_suppressed(&mut self, now: Instant) -> Vec<(Option<K>, u64)> {
        let known = self.known.iter_mut().map(|(key, bucket)| (Some(key), bucket));
        let counts = known.chain([(None, &mut self.crowd)]).filter_map(|(key, bucket)| {
            let count = bucket.take_suppressed(now)?;
            Some((key.cloned(), count))
        });
        counts.collect()
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

    #[test]
    fn keys_of_a_callers_choice_take_bounded_memory_and_all_are_counted() {
        let start = Instant::now();
        let mut shares = Shares::new(RATE, start);
        for key in 0..5_000 {
            for _ in 0..RATE.burst + 1 {
                shares.of(&key, start).take(start);
            }
        }
        assert_eq!(shares.known.len(), KEYS);
        let told: u64 = shares.take_suppressed(start + RATE.refill).iter().map(|(_, count)| count).sum();
        let of_crowd = (5_000 - KEYS as u64) * u64::from(RATE.burst + 1) - u64::from(RATE.burst);
        assert_eq!(told, KEYS as u64 + of_crowd);
        // Those who were quiet since make room.
        let later = start + RATE.refill * 1_000;
        assert_eq!(shares.of(&9_999, later).take(later), Some(0));
        assert!(shares.known.len() < KEYS);
    }
}
