//! Rows of many calls in flight: rates and times of `get` beside a bare echo, by turns.

use bytes::Bytes;
use drover_schemas::{ErrorCode, Token};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::host::{Echo, GetCall};
use super::report::Row;
use super::sample::{Percentiles, Sample};
use crate::client::{Client, ClientError};

/// How many calls are in flight.
const LEVELS: [usize; 3] = [1, 16, 256];
/// Turns of each side.
const ROUNDS: usize = 5;
const ECHO: &str = "a bare NATS request and echo of the same size, as many in flight";

/// What one side gave at one level.
#[derive(Default)]
struct Side {
    rates: Vec<f64>,
    times: Sample,
}

impl Side {
    /// `calls` calls, of which `in_flight` at once.
    async fn round<F, E>(&mut self, calls: usize, in_flight: usize, call: impl Fn() -> F) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
    {
        let began = Instant::now();
        let timed = stream::iter(0..calls).map(|_| async {
            let began = Instant::now();
            call().await.map(|()| began.elapsed())
        });
        let times: Vec<_> = timed.buffer_unordered(in_flight).try_collect().await?;
        self.rates.push(calls as f64 / began.elapsed().as_secs_f64());
        times.into_iter().for_each(|time| self.times.push(time));
        Ok(())
    }
}

/// Two rows for each level: requests in a second, and how long one took.
///
/// # Errors
/// A call that failed; one that the host had no room for is told in the row.
pub async fn rows(client: &Client, name: &Token, calls: usize) -> Result<Vec<Row>, ClientError> {
    let get = GetCall::new(client, name)?;
    let echo = Echo::start(client, get.ask().await?).await?;
    let mut rows = Vec::new();
    for level in LEVELS {
        let (mut drover, mut bare) = (Side::default(), Side::default());
        // As long for the most in flight as for one.
        let calls = calls.max(ROUNDS * level * 4) / ROUNDS;
        let mut busy = None;
        for _ in 0..ROUNDS {
            match drover.round(calls, level, async || get.ask().await.map(drop)).await {
                Ok(()) => {}
                Err(ClientError::Refused(error)) if error.code == ErrorCode::Busy => busy = Some(error),
                Err(error) => return Err(error),
            }
            bare.round(calls, level, || echo.ask(Bytes::clone(&get.body))).await?;
        }
        let rate = Row::new(&format!("get, {level} in flight"), "1/s", Percentiles::of_rates(drover.rates))
            .against(ECHO, Ok(Percentiles::of_rates(bare.rates)));
        let time = Row::new(&format!("get, {level} in flight, one"), "us", drover.times.percentiles(1e6))
            .against(ECHO, Ok(bare.times.percentiles(1e6)));
        rows.extend([rate, time].map(|row| match &busy {
            Some(error) => row.unmeasured(&error.message),
            None => row,
        }));
    }
    Ok(rows)
}
