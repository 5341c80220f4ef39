//! Times and their percentiles.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Times that were taken.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<Duration>);

/// What a sample says, in the unit of its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// 99 of 100 are below; of rates, 99 of 100 are above.
    pub p99: f64,
    /// How many were taken.
    pub count: usize,
}

impl Percentiles {
    /// Of any numbers, by the nearest rank.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p99: at(0.99), count: values.len() }
    }

    /// Of rates: 99 of 100 are above the second number.
    pub fn of_rates(rates: Vec<f64>) -> Self {
        let Self { p50, p99, count } = Self::of(rates.into_iter().map(|rate| -rate).collect());
        Self { p50: -p50, p99: -p99, count }
    }
}

impl Sample {
    /// Adds a time.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Takes the time of a call that succeeds.
    ///
    /// # Errors
    /// Those of the call; its time does not count.
    pub async fn time<T, E>(&mut self, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let started = Instant::now();
        let value = call.await?;
        self.push(started.elapsed());
        Ok(value)
    }

    /// The percentiles, `scale` units to the second.
    pub fn percentiles(&self, scale: f64) -> Percentiles {
        Percentiles::of(self.0.iter().map(|time| time.as_secs_f64() * scale).collect())
    }

    /// The rates at which `bytes` went, in MiB/s.
    pub fn rates(&self, bytes: u64) -> Percentiles {
        let times = self.percentiles(1.0);
        let rate = |seconds: f64| match seconds {
            0.0 => 0.0,
            seconds => bytes as f64 / f64::from(1 << 20) / seconds,
        };
        Percentiles { p50: rate(times.p50), p99: rate(times.p99), count: times.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let sample = Sample((1..=100).rev().map(Duration::from_millis).collect());
        let rates = Percentiles::of_rates((1..=100).map(f64::from).collect());
        assert_eq!((rates.p50, rates.p99), (51.0, 2.0));
        let found = sample.percentiles(1e3);
        assert_eq!((found.p50, found.p99, found.count), (50.0, 99.0, 100));
        assert_eq!(Sample::default().percentiles(1.0).count, 0);
    }

    #[test]
    fn the_99th_rate_is_a_slow_one() {
        let sample = Sample(vec![Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(4)]);
        let rates = sample.rates(8 << 20);
        assert_eq!((rates.p50, rates.p99), (8.0, 2.0));
    }
}
