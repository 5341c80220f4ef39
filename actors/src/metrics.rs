//! Every metric of the daemon, with its description and unit. A name ends in its unit; counters get
//! `_total` on the page.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The verb; `unknown` for what is not in the table, so that callers cannot add labels.
    pub verb: &'static str,
    /// `ok` or an error code.
    pub code: &'static str,
}

/// Labels of alarms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AlarmLabels {
    /// Name of the alarm.
    pub alarm: &'static str,
}

/// Labels of quotas.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QuotaLabels {
    /// The namespace; one that uses nothing any more is dropped.
    pub namespace: String,
    /// Name of the quota, as in `host.info`.
    pub quota: &'static str,
}

/// Labels of what a boot does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BootLabels {
    /// A step of the host's: from the network to the VMM that has begun to run the guest.
    pub step: &'static str,
}

/// Labels of what guests ask the host's own services.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// What became of it.
    pub outcome: &'static str,
}

/// The metrics of a host.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Time from arrival to reply.
    pub request_duration: Histogram,
    /// Requests that met a full mailbox or share.
    pub busy: Counter,
    /// Streams that are open.
    pub streams: Gauge,
    /// Memory that their windows may take.
    pub stream_windows: Gauge<u64, AtomicU64>,
    /// Bytes of streams that were sent to clients, also those that were sent again.
    pub stream_sent_bytes: Counter,
    /// Bytes of streams that were sent again.
    pub stream_resent_bytes: Counter,
    /// VMs in the journal.
    pub vms: Gauge,
    /// VMs whose VMM runs.
    pub vms_running: Gauge,
    /// Time that each step of a boot took which came to its end.
    pub boot_steps: Family<BootLabels, Histogram>,
    /// VMMs that ended without being asked to.
    pub vmm_exits: Counter,
    /// Releases that did not succeed at once.
    pub release_retries: Counter,
    /// Actors of VMs that were lost and started again.
    pub actor_restarts: Counter,
    /// Clocks of guests that were set after a resume.
    pub guest_clocks_set: Counter,
    /// Messages of DHCP that reached the host's bridges.
    pub dhcp_messages: Family<OutcomeLabels, Counter>,
    /// Questions for names that guests asked.
    pub dns_questions: Family<OutcomeLabels, Counter>,
    /// Whether the bus is there: 0 or 1.
    pub bus_connected: Gauge,
    /// Messages that were lost because a subscription was too slow. An alarm.
    pub slow_consumers: Gauge<i64, AtomicI64>,
    /// Events that wait for the bus.
    pub outbox_events: Gauge<i64, AtomicI64>,
    /// Events that the stream has acknowledged.
    pub events_published: Gauge<u64, AtomicU64>,
    /// How full the outbox is, in percent.
    pub outbox_fill: Gauge<u64, AtomicU64>,
    /// How far the host's clock is ahead of the bus server's.
    pub clock_offset: Gauge<f64, AtomicU64>,
    /// Alarms that last: 0 or 1.
    pub alarms: Family<AlarmLabels, Gauge>,
    /// Named readers of the stream that have not read everything.
    pub readers_behind: Gauge<u64, AtomicU64>,
    /// Times that events were trimmed before a named reader had read them.
    pub trimmed_unread: Counter,
    /// What namespaces use of their quotas.
    pub quota_used: Family<QuotaLabels, Gauge<u64, AtomicU64>>,
    /// The quotas, where there are any.
    pub quota_limit: Family<QuotaLabels, Gauge<u64, AtomicU64>>,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("drover");
        let mut m = Self {
            requests: Family::default(),
            request_duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            busy: Counter::default(),
            streams: Gauge::default(),
            stream_windows: Gauge::default(),
            stream_sent_bytes: Counter::default(),
            stream_resent_bytes: Counter::default(),
            vms: Gauge::default(),
            vms_running: Gauge::default(),
            boot_steps: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            vmm_exits: Counter::default(),
            release_retries: Counter::default(),
            actor_restarts: Counter::default(),
            guest_clocks_set: Counter::default(),
            dhcp_messages: Family::default(),
            dns_questions: Family::default(),
            bus_connected: Gauge::default(),
            slow_consumers: Gauge::default(),
            outbox_events: Gauge::default(),
            events_published: Gauge::default(),
            outbox_fill: Gauge::default(),
            clock_offset: Gauge::default(),
            alarms: Family::default(),
            readers_behind: Gauge::default(),
            trimmed_unread: Counter::default(),
            quota_used: Family::default(),
            quota_limit: Family::default(),
            registry: Arc::default(),
        };
        registry.register("requests", "Requests that were answered", m.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from arrival to reply",
            Unit::Seconds,
            m.request_duration.clone(),
        );
        registry.register("requests_busy", "Requests refused for lack of a permit", m.busy.clone());
        registry.register("streams", "Streams that are open", m.streams.clone());
        let (windows, sent, resent) = ("stream_windows", "stream_sent", "stream_resent");
        let of = (m.stream_windows.clone(), m.stream_sent_bytes.clone(), m.stream_resent_bytes.clone());
        registry.register_with_unit(windows, "Memory that windows of streams may take", Unit::Bytes, of.0);
        registry.register_with_unit(sent, "Bytes sent to clients over streams", Unit::Bytes, of.1);
        registry.register_with_unit(resent, "Those of them that were sent again", Unit::Bytes, of.2);
        registry.register("vms", "VMs in the journal", m.vms.clone());
        registry.register("vms_running", "VMs whose VMM runs", m.vms_running.clone());
        registry.register_with_unit(
            "boot_step",
            "Time that a step of a boot took",
            Unit::Seconds,
            m.boot_steps.clone(),
        );
        registry.register("vmm_exits", "VMMs that ended unasked", m.vmm_exits.clone());
        registry.register(
            "release_retries",
            "Releases that needed another attempt",
            m.release_retries.clone(),
        );
        registry.register(
            "actor_restarts",
            "VM actors that were lost and replaced",
            m.actor_restarts.clone(),
        );
        registry.register(
            "guest_clocks_set",
            "Clocks of guests that were set after a resume",
            m.guest_clocks_set.clone(),
        );
        registry.register(
            "dhcp_messages",
            "Messages of DHCP that reached the bridges",
            m.dhcp_messages.clone(),
        );
        registry.register("dns_questions", "Questions for names that guests asked", m.dns_questions.clone());
        registry.register("bus_connected", "Whether the bus is there", m.bus_connected.clone());
        registry.register(
            "bus_slow_consumers",
            "Times a subscription lost messages",
            m.slow_consumers.clone(),
        );
        registry.register("outbox_events", "Events that wait for the bus", m.outbox_events.clone());
        registry.register(
            "events_published",
            "Events acknowledged by the stream",
            m.events_published.clone(),
        );
        registry.register("outbox_fill_percent", "How full the outbox is", m.outbox_fill.clone());
        registry.register_with_unit(
            "clock_offset",
            "How far the host's clock is ahead of the bus server's",
            Unit::Seconds,
            m.clock_offset.clone(),
        );
        registry.register("alarm", "Whether an alarm lasts", m.alarms.clone());
        registry.register(
            "events_readers_behind",
            "Named readers of the stream that have not read everything",
            m.readers_behind.clone(),
        );
        registry.register(
            "events_trimmed_unread",
            "Times that events were trimmed before a named reader had read them",
            m.trimmed_unread.clone(),
        );
        registry.register("quota_used", "What a namespace uses of a quota", m.quota_used.clone());
        registry.register("quota_limit", "The most that a namespace may use", m.quota_limit.clone());
        m.registry = Arc::new(registry);
        m
    }
}

impl Metrics {
    /// The page for Prometheus, in the OpenMetrics text format.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_has_every_metric() {
        let metrics = super::Metrics::default();
        metrics.requests.get_or_create(&super::RequestLabels { verb: "get", code: "ok" }).inc();
        metrics.boot_steps.get_or_create(&super::BootLabels { step: "disks" }).observe(0.25);
        let page = metrics.page();
        for name in [
            "drover_requests_total{verb=\"get\",code=\"ok\"} 1",
            "drover_vms 0",
            "drover_outbox_events 0",
            "drover_boot_step_seconds_sum{step=\"disks\"} 0.25",
            "drover_boot_step_seconds_count{step=\"disks\"} 1",
        ] {
            assert!(page.contains(name), "{page}");
        }
    }
}
