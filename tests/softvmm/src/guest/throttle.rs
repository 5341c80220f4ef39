//! Limits of disks, as QEMU is told them: pure.

use crate::config::{RateLimiterConfig, TokenBucketConfig};

/// QEMU's limits of a disk. A bucket of its own holds what may come at once; one that is used up once only it does not
/// know, so a burst comes back here.
pub fn throttling(limits: &RateLimiterConfig) -> String {
    let bucket = |name: &str, bucket: &Option<TokenBucketConfig>| {
        let Some(TokenBucketConfig { size, one_time_burst, refill_time }) = *bucket else {
            return String::new();
        };
        let each_second = (size.saturating_mul(1_000) / refill_time.max(1)).max(1);
        let at_once = size.saturating_add(one_time_burst.unwrap_or(0)).max(each_second);
        format!(",throttling.{name}={each_second},throttling.{name}-max={at_once}")
    };
    bucket("bps-total", &limits.bandwidth) + &bucket("iops-total", &limits.ops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_become_what_qemu_has() {
        let limits = r#"{"bandwidth": {"size": 4096, "one_time_burst": 100, "refill_time": 2000},
                         "ops": {"size": 50, "refill_time": 1000}}"#;
        let limits: RateLimiterConfig = serde_json::from_str(limits).expect("limits");
        let wanted = ",throttling.bps-total=2048,throttling.bps-total-max=4196\
                      ,throttling.iops-total=50,throttling.iops-total-max=50";
        assert_eq!(throttling(&limits), wanted);
        assert_eq!(throttling(&RateLimiterConfig { bandwidth: None, ops: None }), "");
    }
}
