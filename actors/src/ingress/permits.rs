//! Requests in flight and streams, bounded at the edge: mailboxes behind it are unbounded.
//!
//! A permit rides with its request and is given back when the request is dropped, so the sum of all
//! mailboxes never exceeds the permits.
//!
//! Shares are fair without anybody counting who is there: a namespace may have as many requests in flight as are
//! still free for everybody. One that floods gets half of the host's permits at the most, four that flood get a
//! fifth each, and whoever comes next finds room. Its quota is the other bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_schemas::body::usage::QuotaUse;
use drover_schemas::{ErrorBody, ErrorCode, Token};

use crate::quota::{Quotas, check};

/// Requests in flight of operators, which no namespace can take.
const OPERATORS: usize = 64;

/// The right to have one request in flight, or one stream open.
#[derive(Debug)]
pub struct Permit {
    permits: Permits,
    whose: Option<Token>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Stream,
}

/// Hands out permits.
#[derive(Debug, Clone)]
pub struct Permits {
    host: usize,
    quotas: Arc<Quotas>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Requests of all namespaces.
    requests: usize,
    operators: usize,
    /// Those that have anything; so there are never more of them than permits and streams.
    namespaces: HashMap<Token, Share>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Share {
    requests: usize,
    streams: usize,
}

impl Permits {
    /// `host` requests in flight of all namespaces, and of each as `quotas` say.
    #[must_use]
    pub fn new(host: usize, quotas: Arc<Quotas>) -> Self {
        Self { host, quotas, inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit for a request of a namespace, or of the host's operators; or `busy` at once.
    ///
    /// # Errors
    /// `busy` that says whose limit was reached.
    pub fn acquire(&self, namespace: Option<&Token>) -> Result<Permit, ErrorBody> {
        let mut inner = self.lock();
        let Some(ns) = namespace else {
            if inner.operators >= OPERATORS {
                return Err(busy("the host's operators have", "operators", OPERATORS, inner.operators));
            }
            inner.operators += 1;
            return Ok(self.permit(None, Kind::Request));
        };
        let used = inner.namespaces.get(ns).map_or(0, |share| share.requests);
        let quota = usize::try_from(self.quotas.of(ns).requests).unwrap_or(usize::MAX);
        if used >= quota {
            return Err(busy("the namespace has", "requests", quota, used));
        }
        if used >= self.host.saturating_sub(inner.requests) {
            return Err(busy("the host has", "host", self.host, inner.requests));
        }
        inner.requests += 1;
        inner.namespaces.entry(ns.clone()).or_default().requests += 1;
        Ok(self.permit(Some(ns.clone()), Kind::Request))
    }

    /// A permit for a stream, to be had before anything of it is begun.
    ///
    /// # Errors
    /// `resource_exhausted{quota: streams}`.
    pub fn stream(&self, ns: &Token) -> Result<Permit, ErrorBody> {
        let mut inner = self.lock();
        let used = inner.namespaces.get(ns).map_or(0, |share| share.streams);
        check(ns, "streams", "open streams", Some(self.quotas.of(ns).streams), used as u64, 1)?;
        inner.namespaces.entry(ns.clone()).or_default().streams += 1;
        Ok(self.permit(Some(ns.clone()), Kind::Stream))
    }

    fn permit(&self, whose: Option<Token>, kind: Kind) -> Permit {
        Permit { permits: self.clone(), whose, kind }
    }

    /// Requests in flight and open streams of a namespace, with their limits.
    #[must_use]
    pub fn used(&self, ns: &Token) -> (QuotaUse, QuotaUse) {
        let share = self.lock().namespaces.get(ns).copied().unwrap_or_default();
        let quota = self.quotas.of(ns);
        let of = |used: usize, limit: u64| QuotaUse { used: used as u64, limit: Some(limit) };
        (of(share.requests, quota.requests), of(share.streams, quota.streams))
    }

    /// Namespaces that have anything in flight or open.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Token> {
        self.lock().namespaces.keys().cloned().collect()
    }
}

fn busy(whose: &str, what: &str, limit: usize, used: usize) -> ErrorBody {
    let text = format!("{whose} too many requests in flight; repeat it later");
    let error = ErrorBody::new(ErrorCode::Busy, text).with("operation", "requests").with("quota", what);
    error.with("limit", limit).with("used", used).with("asked", 1)
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.permits.lock();
        let Some(ns) = &self.whose else {
            inner.operators = inner.operators.saturating_sub(1);
            return;
        };
        if self.kind == Kind::Request {
            inner.requests = inner.requests.saturating_sub(1);
        }
        if let Some(share) = inner.namespaces.get_mut(ns) {
            match self.kind {
                Kind::Request => share.requests = share.requests.saturating_sub(1),
                Kind::Stream => share.streams = share.streams.saturating_sub(1),
            }
            if share.requests == 0 && share.streams == 0 {
                inner.namespaces.remove(ns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quota::Quota;

    fn permits(host: usize, requests: u64, streams: u64) -> Permits {
        let default = Quota { requests, streams, ..Quota::default() };
        Permits::new(host, Arc::new(Quotas { default, namespaces: std::collections::BTreeMap::new() }))
    }

    fn ns(number: usize) -> Token {
        Token::new(&format!("n{number}")).unwrap()
    }

    /// Takes until it is refused.
    fn flood(permits: &Permits, ns: &Token) -> Vec<Permit> {
        std::iter::from_fn(|| permits.acquire(Some(ns)).ok()).collect()
    }

    #[test]
    fn whoever_floods_leaves_as_much_as_it_has() {
        let permits = permits(100, 1_000, 1);
        let one = flood(&permits, &ns(1));
        assert_eq!(one.len(), 50);
        let two = flood(&permits, &ns(2));
        assert_eq!(two.len(), 25);
        // Ten more floods do not keep a newcomer out.
        let others: Vec<_> = (3..13).map(|n| flood(&permits, &ns(n))).collect();
        let error = permits.acquire(Some(&ns(1))).unwrap_err();
        assert_eq!((error.code, error.details["quota"].as_str()), (ErrorCode::Busy, "host"));
        drop((one, two, others));
        assert!(permits.namespaces().is_empty(), "nobody is remembered who has nothing");
        assert_eq!(flood(&permits, &ns(1)).len(), 50);
    }

    #[test]
    fn a_quota_bounds_one_namespace_and_operators_have_their_own() {
        let permits = permits(100, 2, 1);
        let held = flood(&permits, &ns(1));
        assert_eq!(held.len(), 2);
        let error = permits.acquire(Some(&ns(1))).unwrap_err();
        assert_eq!((error.details["quota"].as_str(), error.details["used"].as_str()), ("requests", "2"));
        let operators: Vec<_> = std::iter::from_fn(|| permits.acquire(None).ok()).collect();
        assert_eq!(operators.len(), OPERATORS);
        assert!(permits.acquire(Some(&ns(2))).is_ok());
    }

    #[test]
    fn streams_are_counted_apart_from_requests() {
        let permits = permits(10, 1, 2);
        let streams = [permits.stream(&ns(1)).unwrap(), permits.stream(&ns(1)).unwrap()];
        let error = permits.stream(&ns(1)).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert_eq!((error.details["quota"].as_str(), error.details["used"].as_str()), ("streams", "2"));
        let request = permits.acquire(Some(&ns(1))).unwrap();
        assert_eq!(permits.used(&ns(1)).1.used, 2);
        drop(streams);
        assert_eq!((permits.used(&ns(1)).0.used, permits.used(&ns(1)).1.used), (1, 0));
        drop(request);
        assert!(permits.stream(&ns(1)).is_ok());
    }

    proptest! {
        /// While fewer namespaces ask than there are permits, each gets one at any moment, and there are never
        /// more than the host has.
        #[test]
        fn every_namespace_finds_room(steps in proptest::collection::vec((0_usize..6, any::<bool>()), 1..400)) {
            let permits = permits(64, 40, 1);
            let mut held: HashMap<usize, Vec<Permit>> = HashMap::new();
            for (who, take) in steps {
                let own = held.entry(who).or_default();
                if take {
                    match permits.acquire(Some(&ns(who))) {
                        Ok(permit) => own.push(permit),
                        Err(_) => prop_assert!(!own.is_empty(), "{who} has none and is refused"),
                    }
                } else {
                    own.pop();
                }
                let sum = held.values().map(Vec::len).sum::<usize>();
                prop_assert!(sum <= 64 && permits.lock().requests == sum);
            }
        }
    }
}
