//! What one namespace, and one guest, may have of a host.

use std::collections::BTreeMap;

use drover_actors::quota::{Quota, Quotas};
use drover_actors::vm::inside::EventLimits;
use drover_schemas::Token;
use drover_schemas::size::ByteSize;
use serde::Deserialize;

/// The most that one namespace may have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotasConfig {
    /// Of every namespace.
    pub default: QuotaConfig,
    /// Of some; each value goes before its default.
    pub namespaces: BTreeMap<Token, QuotaConfig>,
}

/// Events that the programs of one guest may publish; its VM's spec may ask for less.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentEventsConfig {
    /// Each second, in the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
    /// Their data each second, in the long run; ten times as much at once.
    pub bytes_per_second: ByteSize,
}

impl Default for AgentEventsConfig {
    fn default() -> Self {
        let EventLimits { per_second, burst, bytes_per_second } = EventLimits::default();
        Self { per_second, burst, bytes_per_second: ByteSize(bytes_per_second) }
    }
}

impl AgentEventsConfig {
    /// As the host takes them.
    #[must_use]
    pub const fn limits(&self) -> EventLimits {
        EventLimits {
            per_second: self.per_second,
            burst: self.burst,
            bytes_per_second: self.bytes_per_second.0,
        }
    }
}

/// The most that a namespace may have; what is left out is bounded by the default, and by the host.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// VMs of any state.
    pub vms: Option<u64>,
    /// Virtual CPUs of VMs that run.
    pub cpus: Option<u64>,
    /// Memory of their guests.
    pub memory: Option<ByteSize>,
    /// Disks that VMs may write to, at their full length.
    pub disk: Option<ByteSize>,
    /// Requests in flight.
    pub requests: Option<u64>,
    /// Open streams.
    pub streams: Option<u64>,
    /// Events in an hour.
    pub events_per_hour: Option<u64>,
}

impl QuotasConfig {
    /// As the host takes them.
    #[must_use]
    pub fn quotas(&self) -> Quotas {
        let default = self.default.over(&Quota::default());
        let namespaces = self.namespaces.iter().map(|(ns, own)| (ns.clone(), own.over(&default)));
        Quotas { default, namespaces: namespaces.collect() }
    }
}

impl QuotaConfig {
    fn over(&self, default: &Quota) -> Quota {
        let bytes = |size: Option<ByteSize>| size.map(|size| size.0);
        Quota {
            vms: self.vms.or(default.vms),
            cpus: self.cpus.or(default.cpus),
            memory_bytes: bytes(self.memory).or(default.memory_bytes),
            disk_bytes: bytes(self.disk).or(default.disk_bytes),
            requests: self.requests.unwrap_or(default.requests),
            streams: self.streams.unwrap_or(default.streams),
            events_per_hour: self.events_per_hour.or(default.events_per_hour),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_values_and_the_defaults_for_the_rest() {
        let text = "default: {vms: 5, memory: 1GiB}\nnamespaces: {acme: {vms: 9, streams: 2}}";
        let config: QuotasConfig = serde_saphyr::from_str(text).unwrap();
        let quotas = config.quotas();
        let acme = quotas.of(&Token::new("acme").unwrap());
        assert_eq!((acme.vms, acme.memory_bytes, acme.streams), (Some(9), Some(1 << 30), 2));
        let other = quotas.of(&Token::new("other").unwrap());
        assert_eq!((other.vms, other.streams, other.cpus), (Some(5), 256, None));
        assert!(serde_saphyr::from_str::<QuotasConfig>("default: {vmz: 1}").is_err());
    }
}
