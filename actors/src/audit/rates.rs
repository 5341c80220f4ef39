//! How many notes a namespace may cause. Anybody who may send requests can cause them, and they share the stream
//! with the events of VMs, so what is beyond the rate is counted and told as a sum.

use std::time::{Duration, Instant};

use drover_schemas::Token;

use crate::rate::{Bucket, Rate, Shares};

/// Changes of VMs and settings: as many as real work makes.
const CHANGES: Rate = Rate { burst: 1_000, refill: Duration::from_millis(100) };
/// Work in guests, of which there may be thousands a second.
const GUEST: Rate = Rate { burst: 200, refill: Duration::from_millis(200) };
/// Refusals, which cost a caller nothing.
const REFUSALS: Rate = Rate { burst: 100, refill: Duration::from_millis(1_000) };
/// Refusals of everybody together: where no server keeps namespaces apart, a caller may name thousands.
const ALL_REFUSALS: Rate = Rate { burst: 1_000, refill: Duration::from_millis(100) };
/// In the order of [`Sort`].
const RATES: [Rate; 3] = [CHANGES, GUEST, REFUSALS];

/// One rate each, so that a flood of refusals hides no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Change,
    Guest,
    Refusal,
}

impl Sort {
    const ALL: [Self; 3] = [Self::Change, Self::Guest, Self::Refusal];
}

/// Whose share a note takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    Namespace(Token),
    /// Requests to the host itself, and what names no namespace.
    Host,
    /// Namespaces beyond those that are told apart.
    Crowd,
}

#[derive(Debug)]
pub(super) struct Rates {
    namespaces: [Shares<Token>; 3],
    host: [Bucket; 3],
    refusals: Bucket,
}

impl Rates {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            namespaces: RATES.map(|rate| Shares::new(rate, now)),
            host: RATES.map(|rate| Bucket::new(rate, now)),
            refusals: Bucket::new(ALL_REFUSALS, now),
        }
    }

    fn of(&mut self, namespace: Option<&Token>, sort: Sort, now: Instant) -> &mut Bucket {
        match namespace {
            None => &mut self.host[sort as usize],
            Some(ns) => self.namespaces[sort as usize].of(ns, now),
        }
    }

    /// Whether a note may be told; if not, it was counted.
    pub(super) fn admit(&mut self, namespace: Option<&Token>, sort: Sort, now: Instant) -> bool {
        let admitted =
            self.of(namespace, sort, now).admit(now) && (sort != Sort::Refusal || self.refusals.admit(now));
        if !admitted {
            self.suppress(namespace, sort, 1, now);
        }
        admitted
    }

    /// Counts what was admitted and could not be told after all.
    pub(super) fn suppress(&mut self, namespace: Option<&Token>, sort: Sort, count: u64, now: Instant) {
        self.of(namespace, sort, now).suppress(count);
    }

    /// Takes the counts that may be told now.
    pub(super) fn suppressed(&mut self, now: Instant) -> Vec<(Whose, Sort, u64)> {
        let mut counts = Vec::new();
        for sort in Sort::ALL {
            let host = self.host[sort as usize].take_suppressed(now);
            counts.extend(host.map(|count| (Whose::Host, sort, count)));
            let shares = self.namespaces[sort as usize].take_suppressed(now).into_iter();
            counts.extend(shares.map(|(ns, count)| (ns.map_or(Whose::Crowd, Whose::Namespace), sort, count)));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Token {
        Token::new(&format!("n{number}")).unwrap()
    }

    fn told(counts: &[(Whose, Sort, u64)]) -> u64 {
        counts.iter().map(|(_, _, count)| count).sum()
    }

    #[test]
    fn a_flood_is_counted_and_hides_neither_a_change_nor_what_others_do() {
        let now = Instant::now();
        let mut rates = Rates::new(now);
        let (flood, quiet) = (name(1), name(2));
        let admitted = (0..5_000).filter(|_| rates.admit(Some(&flood), Sort::Refusal, now)).count();
        assert_eq!(admitted, REFUSALS.burst as usize);
        assert!(rates.admit(Some(&flood), Sort::Change, now));
        assert!(rates.admit(Some(&quiet), Sort::Refusal, now) && rates.admit(None, Sort::Refusal, now));
        assert_eq!(rates.suppressed(now), [], "there is no room yet");
        let counts = rates.suppressed(now + REFUSALS.refill);
        assert_eq!(counts, [(Whose::Namespace(flood), Sort::Refusal, 5_000 - u64::from(REFUSALS.burst))]);
        assert_eq!(rates.suppressed(now + REFUSALS.refill * 9), []);
    }

    #[test]
    fn refusals_of_namespaces_of_a_callers_choice_have_a_limit_together() {
        let now = Instant::now();
        let mut rates = Rates::new(now);
        let admitted = (0..10_000).filter(|n| rates.admit(Some(&name(*n)), Sort::Refusal, now)).count();
        assert_eq!(admitted, ALL_REFUSALS.burst as usize);
        let counts = rates.suppressed(now + Duration::from_secs(3_600));
        assert_eq!(told(&counts) + admitted as u64, 10_000);
        assert!(counts.iter().any(|(whose, ..)| *whose == Whose::Crowd));
    }

    #[test]
    fn what_could_not_be_told_is_counted() {
        let now = Instant::now();
        let mut rates = Rates::new(now);
        assert!(rates.admit(Some(&name(1)), Sort::Guest, now));
        for ns in [Some(&name(1)), Some(&name(2)), None] {
            rates.suppress(ns, Sort::Guest, 3, now);
        }
        assert_eq!(told(&rates.suppressed(now)), 9);
    }
}
