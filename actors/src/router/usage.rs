//! What namespaces use of the host, for `host.info` and as metrics.

use std::collections::BTreeSet;

use drover_schemas::Token;
use drover_schemas::body::usage::{NamespaceUse, QuotaUse};

use super::Router;
use crate::metrics::{Metrics, QuotaLabels};

/// Namespaces that are told of: more would not fit into a reply.
const NAMESPACES: usize = 500;

impl Router {
    /// What each namespace uses that uses anything, by name.
    pub(crate) fn namespace_uses(&self) -> Vec<NamespaceUse> {
        let mut names = self.services.state.namespaces();
        names.extend(self.permits.namespaces());
        names.iter().take(NAMESPACES).map(|ns| self.namespace_use(ns)).collect()
    }

    fn namespace_use(&self, ns: &Token) -> NamespaceUse {
        let state = &self.services.state;
        let (used, quota) = (state.used(ns), state.quotas().of(ns));
        let (requests, streams) = self.permits.used(ns);
        let of = |used, limit| QuotaUse { used, limit };
        NamespaceUse {
            namespace: ns.clone(),
            vms: of(used.vms, quota.vms),
            cpus: of(used.cpus, quota.cpus),
            memory_bytes: of(used.memory_bytes, quota.memory_bytes),
            disk_bytes: of(used.disk_bytes, quota.disk_bytes),
            requests,
            streams,
            events_per_hour: self.services.budget.used(ns),
        }
    }
}

/// The gauges of quotas; those of namespaces that are gone are taken away.
#[derive(Debug, Default)]
pub(crate) struct QuotaGauges(BTreeSet<String>);

impl QuotaGauges {
    /// Shows what is used now.
    pub(crate) fn set(&mut self, metrics: &Metrics, uses: &[NamespaceUse]) {
        let now: BTreeSet<String> = uses.iter().map(|of| of.namespace.to_string()).collect();
        for namespace in self.0.difference(&now) {
            for quota in QUOTAS {
                let labels = QuotaLabels { namespace: namespace.clone(), quota };
                metrics.quota_used.remove(&labels);
                metrics.quota_limit.remove(&labels);
            }
        }
        for of in uses {
            let values = [
                of.vms,
                of.cpus,
                of.memory_bytes,
                of.disk_bytes,
                of.requests,
                of.streams,
                of.events_per_hour,
            ];
            for (quota, QuotaUse { used, limit }) in QUOTAS.into_iter().zip(values) {
                let labels = QuotaLabels { namespace: of.namespace.to_string(), quota };
                metrics.quota_used.get_or_create(&labels).set(used);
                if let Some(limit) = limit {
                    metrics.quota_limit.get_or_create(&labels).set(limit);
                }
            }
        }
        self.0 = now;
    }
}

/// Names of the quotas, in the order of [`NamespaceUse`].
const QUOTAS: [&str; 7] =
    ["vms", "cpus", "memory_bytes", "disk_bytes", "requests", "streams", "events_per_hour"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_uses_nothing_any_more_has_no_gauges() {
        let (metrics, mut gauges) = (Metrics::default(), QuotaGauges::default());
        let one = NamespaceUse {
            namespace: Token::new("acme").unwrap(),
            vms: QuotaUse { used: 3, limit: Some(5) },
            cpus: QuotaUse::default(),
            memory_bytes: QuotaUse::default(),
            disk_bytes: QuotaUse::default(),
            requests: QuotaUse::default(),
            streams: QuotaUse::default(),
            events_per_hour: QuotaUse::default(),
        };
        gauges.set(&metrics, &[one]);
        let page = metrics.page();
        for line in [
            "quota_used{namespace=\"acme\",quota=\"vms\"} 3",
            "quota_limit{namespace=\"acme\",quota=\"vms\"} 5",
        ] {
            assert!(page.contains(line), "{page}");
        }
        gauges.set(&metrics, &[]);
        assert!(!metrics.page().contains("acme"));
    }
}
