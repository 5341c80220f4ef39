//! Waiting for a level, never for an edge: what is looked at may have come true long ago.

use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take that has no reason to take long, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// How much slower than usual this machine is, from `DROVER_PATIENCE`: the emulated host of `tests/nested`.
#[must_use]
pub fn patience_factor() -> u32 {
    std::env::var("DROVER_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Looks until `look` finds something; the only place where a test lets time pass.
///
/// # Panics
/// Nothing was found within [`PATIENCE`].
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look).await
}

/// As [`until`], within `patience`.
///
/// # Panics
/// Nothing was found in time.
pub async fn until_within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let patience = patience * patience_factor();
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Lets `time` pass where the passing itself is what a test needs, as with a window that must be over.
pub async fn pass(time: Duration) {
    let end = Instant::now() + time;
    until_within(time * 2 + PATIENCE, "time", async || (Instant::now() >= end).then_some(())).await;
}
