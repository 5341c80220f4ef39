//! Times and their percentiles.

use std::future::Future;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Times that were taken.
#[derive(Debug, Default)]
pub struct Sample(Vec<Duration>);

/// What a sample says, in the unit of its row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// How many were taken.
    pub count: usize,
}

impl Sample {
    /// Takes the time of a call that succeeds.
    ///
    /// # Errors
    /// Those of the call; its time does not count.
    pub async fn time<T, E>(&mut self, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let started = Instant::now();
        let value = call.await?;
        self.0.push(started.elapsed());
        Ok(value)
    }

    /// The percentiles, `scale` units to the second.
    pub fn percentiles(mut self, scale: f64) -> Percentiles {
        self.0.sort_unstable();
        let at = |share: f64| {
            let rank = (self.0.len() as f64 * share).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map_or(0.0, |d| d.as_secs_f64() * scale)
        };
        Percentiles { p50: at(0.5), p99: at(0.99), count: self.0.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let sample = Sample((1..=100).rev().map(Duration::from_millis).collect());
        let found = sample.percentiles(1e3);
        assert_eq!((found.p50, found.p99, found.count), (50.0, 99.0, 100));
        assert_eq!(Sample::default().percentiles(1.0).count, 0);
    }
}
