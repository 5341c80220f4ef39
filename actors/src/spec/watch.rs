//! What a spec wants watched in its guest.

use std::ops::RangeInclusive;

use drover_schemas::ErrorBody;
use drover_schemas::body::spec::AgentSpec;
use drover_schemas::guest::{check_all, check_thresholds};

use super::invalid;

/// From one sample of a guest's figures to the next.
const METRICS_INTERVAL_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// Says what can never be carried out.
pub(super) fn check(agent: &AgentSpec) -> Result<(), ErrorBody> {
    match agent.metrics_interval_ms {
        Some(every) if !METRICS_INTERVAL_MS.contains(&every) => {
            let (least, most) = (METRICS_INTERVAL_MS.start(), METRICS_INTERVAL_MS.end());
            let text = format!("{every} is not possible; use {least} to {most}, or leave it out");
            return Err(invalid("spec.agent.metrics_interval_ms", text));
        }
        _ => {}
    }
    check_all(&agent.checks)
        .and_then(|()| check_thresholds(&agent.thresholds))
        .map_err(|error| invalid(&format!("spec.agent.{}", error.field), error.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_taken_at_a_bounded_rate() {
        let every = |ms| check(&AgentSpec { metrics_interval_ms: Some(ms), ..AgentSpec::default() });
        assert_eq!(every(1_000), Ok(()));
        assert_eq!(check(&AgentSpec::default()), Ok(()));
        for bad in [0, 999, u64::MAX] {
            assert!(every(bad).unwrap_err().message.contains("leave it out"));
        }
    }
}
