//! Quotas: the most that one namespace may have of this host, however much the host has left.
//!
//! They are looked at before anything is promised, where what they count is kept: VMs, CPUs, memory and disk in
//! [`crate::host`], requests and streams in [`crate::ingress::permits`], events here. What a namespace has
//! already when its quota becomes smaller stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use drover_schemas::body::usage::QuotaUse;
use drover_schemas::{ErrorBody, ErrorCode, Token};

/// The most that a namespace may have; what is `None` is bounded by the host alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// VMs of any state.
    pub vms: Option<u64>,
    /// Virtual CPUs of VMs that run.
    pub cpus: Option<u64>,
    /// Memory of their guests, in bytes.
    pub memory_bytes: Option<u64>,
    /// Disks that VMs may write to, in bytes at their full length.
    pub disk_bytes: Option<u64>,
    /// Requests in flight.
    pub requests: u64,
    /// Streams that are open.
    pub streams: u64,
    /// Events in an hour.
    pub events_per_hour: Option<u64>,
}

impl Default for Quota {
    /// A quarter of the host's permits, 256 streams, and nothing else.
    fn default() -> Self {
        Self {
            vms: None,
            cpus: None,
            memory_bytes: None,
            disk_bytes: None,
            requests: 256,
            streams: 256,
            events_per_hour: None,
        }
    }
}

/// The quota of every namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of those that have none of their own.
    pub default: Quota,
    /// Of those that do.
    pub namespaces: BTreeMap<Token, Quota>,
}

impl Quotas {
    /// That of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &Token) -> &Quota {
        self.namespaces.get(namespace).unwrap_or(&self.default)
    }
}

/// Whether a namespace that uses `used` of `limit` may have `asked` more. `quota` is the quota's name in
/// `host.info`, `what` says it in words.
///
/// # Errors
/// `resource_exhausted` with the four values.
pub fn check(
    namespace: &Token,
    quota: &str,
    what: &str,
    limit: Option<u64>,
    used: u64,
    asked: u64,
) -> Result<(), ErrorBody> {
    match limit {
        Some(limit) if used.saturating_add(asked) > limit => {
            let text = format!(
                "namespace {namespace:?} may have {limit} {what} on this host, has {used} and asks for {asked} \
                 more; give some back, or have its quota raised (`quotas` in the host's configuration)"
            );
            let error = ErrorBody::new(ErrorCode::ResourceExhausted, text);
            Err(error.with("quota", quota).with("limit", limit).with("used", used).with("asked", asked))
        }
        _ => Ok(()),
    }
}

/// Counts the events of namespaces that have a limit of them.
///
/// State events are never refused, since they tell what has happened. A namespace that has used its share up is
/// refused the verbs that would cause more.
#[derive(Debug, Clone)]
pub struct EventBudget {
    quotas: Arc<Quotas>,
    levels: Arc<Mutex<HashMap<Token, Level>>>,
}

/// A bucket that is filled by events and empties evenly within an hour.
#[derive(Debug, Clone, Copy)]
struct Level {
    events: f64,
    at: Instant,
}

impl Level {
    fn now(self, per_hour: u64, now: Instant) -> f64 {
        let gone = now.saturating_duration_since(self.at).as_secs_f64() / 3_600.0 * per_hour as f64;
        (self.events - gone).max(0.0)
    }
}

impl EventBudget {
    /// Nothing is used yet: what was before the daemon started is forgotten.
    #[must_use]
    pub fn new(quotas: Arc<Quotas>) -> Self {
        Self { quotas, levels: Arc::default() }
    }

    fn level(&self, namespace: &Token, now: Instant) -> Option<(u64, f64)> {
        let limit = self.quotas.of(namespace).events_per_hour?;
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        Some((limit, levels.get(namespace).map_or(0.0, |level| level.now(limit, now))))
    }

    /// Counts an event.
    pub fn spend(&self, namespace: &Token) {
        self.spend_at(namespace, Instant::now());
    }

    fn spend_at(&self, namespace: &Token, now: Instant) {
        let Some((_, level)) = self.level(namespace, now) else { return };
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if levels.len() >= 4_096 {
            levels.retain(|ns, level| {
                self.quotas.of(ns).events_per_hour.is_some_and(|limit| level.now(limit, now) > 0.0)
            });
        }
        levels.insert(namespace.clone(), Level { events: level + 1.0, at: now });
    }

    /// Whether the namespace may cause more events.
    ///
    /// # Errors
    /// `resource_exhausted{quota: events_per_hour}`.
    pub fn check(&self, namespace: &Token) -> Result<(), ErrorBody> {
        self.check_at(namespace, Instant::now())
    }

    fn check_at(&self, namespace: &Token, now: Instant) -> Result<(), ErrorBody> {
        let Some((limit, level)) = self.level(namespace, now) else { return Ok(()) };
        check(namespace, "events_per_hour", "events in an hour", Some(limit), level.ceil() as u64, 1)
    }

    /// What a namespace has used, and its limit.
    #[must_use]
    pub fn used(&self, namespace: &Token) -> QuotaUse {
        match self.level(namespace, Instant::now()) {
            Some((limit, level)) => QuotaUse { used: level.ceil() as u64, limit: Some(limit) },
            None => QuotaUse::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ns(name: &str) -> Token {
        Token::new(name).unwrap()
    }

    #[test]
    fn a_refusal_says_what_is_used_and_what_was_asked_for() {
        assert!(check(&ns("a"), "vms", "VMs", None, u64::MAX, 1).is_ok());
        assert!(check(&ns("a"), "vms", "VMs", Some(4), 3, 1).is_ok());
        let error = check(&ns("a"), "cpus", "virtual CPUs", Some(4), 3, 2).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        let values: Vec<_> = error.details.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(values, ["asked=2", "limit=4", "quota=cpus", "used=3"]);
        assert!(check(&ns("a"), "vms", "VMs", Some(4), u64::MAX, 1).is_err(), "no sum overflows");
    }

    #[test]
    fn the_events_of_one_namespace_are_its_own_and_come_back_within_the_hour() {
        let limited = Quota { events_per_hour: Some(60), ..Quota::default() };
        let quotas = Quotas { default: Quota::default(), namespaces: [(ns("a"), limited)].into() };
        let budget = EventBudget::new(Arc::new(quotas));
        let start = Instant::now();
        for _ in 0..60 {
            assert!(budget.check_at(&ns("a"), start).is_ok());
            budget.spend_at(&ns("a"), start);
            budget.spend_at(&ns("b"), start);
        }
        let error = budget.check_at(&ns("a"), start).unwrap_err();
        assert_eq!((error.details["used"].as_str(), error.details["limit"].as_str()), ("60", "60"));
        // What has happened is told all the same, and has to be waited for.
        for _ in 0..10 {
            budget.spend_at(&ns("a"), start);
        }
        assert!(budget.check_at(&ns("a"), start + Duration::from_secs(9 * 60)).is_err());
        assert!(budget.check_at(&ns("a"), start + Duration::from_secs(11 * 60 + 1)).is_ok());
        assert!(budget.check_at(&ns("b"), start).is_ok(), "it has no limit");
        assert_eq!(budget.levels.lock().unwrap().len(), 1);
    }
}
