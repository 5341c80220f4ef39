//! The guest's clock, set by the host's: how far it is off is measured here, and the guest moves it by so much.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use drover_schemas::body::guest::{ClockChange, ClockReply, ClockRequest};
use drover_schemas::guest::{GuestKind, MoveClockRequest, MoveClockResult, verb};
use drover_schemas::{ErrorBody, ErrorCode};
use tracing::{info, warn};

use super::guest_calls::alike;
use crate::chain::chain;
use crate::guest::Link;
use crate::metrics::Metrics;

/// How far it may be off to be slewed, if the caller does not say.
const SLEW_MS: u64 = 500;
/// The most that is slewed: the kernel takes about half a millisecond a second.
const MAX_SLEW_MS: u64 = 60_000;
/// What nobody minds.
const NOTHING_US: u64 = 2_000;
/// How long the guest may take to be looked at after it was resumed.
const AFTER_RESUME: Duration = Duration::from_secs(10);
/// How often it is tried.
const ATTEMPTS: usize = 30;

fn host_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// How far the guest is ahead, and how wrong this may be, from its clock and the host's before and after.
fn ahead(guest_us: i64, before_us: i64, round_trip_us: u64) -> (i64, u64) {
    let half = round_trip_us / 2;
    let middle = before_us.saturating_add(i64::try_from(half).unwrap_or(i64::MAX));
    (guest_us.saturating_sub(middle), half)
}

/// What is to be done about a clock that is so much ahead.
fn decide(ahead_us: i64, error_us: u64, slew_ms: u64) -> ClockChange {
    match ahead_us.unsigned_abs() {
        off if off <= error_us.max(NOTHING_US) => ClockChange::None,
        off if off <= slew_ms.saturating_mul(1000) => ClockChange::Slewed,
        _ => ClockChange::Stepped,
    }
}

/// `guest.clock`
///
/// # Errors
/// The coded error for the caller.
pub async fn clock(link: &Link, left: Duration, request: &ClockRequest) -> Result<ClockReply, ErrorBody> {
    let slew_ms = request.slew_ms.unwrap_or(SLEW_MS).min(MAX_SLEW_MS);
    let deadline = Instant::now() + left;
    let _turn = if request.set {
        let turn = tokio::time::timeout(left, link.clock_turn()).await;
        Some(turn.map_err(|_| {
            let text = "another request sets the guest's clock and has not ended; try again";
            ErrorBody::new(ErrorCode::DeadlineExceeded, text)
        })?)
    } else {
        None
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let (before_us, began) = (host_us(), Instant::now());
    let look = MoveClockRequest::default();
    let read: MoveClockResult = alike(link, verb::CLOCK, None, left, &look).await?;
    let round_trip = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (ahead_us, error_us) = ahead(read.unix_us, before_us, round_trip);
    let change = if request.set { decide(ahead_us, error_us, slew_ms) } else { ClockChange::None };
    if change != ClockChange::None {
        let move_us = Some(ahead_us.saturating_neg());
        let body = MoveClockRequest { move_us, step: change == ClockChange::Stepped };
        let left = deadline.saturating_duration_since(Instant::now());
        // Without an id: a repetition measures anew, and moves by what is left.
        let _: MoveClockResult = alike(link, verb::CLOCK, None, left, &body).await?;
    }
    Ok(ClockReply { ahead_us, error_us, change })
}

/// Sets the clock of a guest that stood still while it was paused.
pub fn set_after_resume(link: Link, metrics: Metrics) {
    let hello = link.hello();
    // Processes have their host's clock; an agent of an earlier version cannot.
    if hello.guest != GuestKind::Vm || link.offers(verb::CLOCK).is_err() {
        return;
    }
    tokio::spawn(async move {
        let request = ClockRequest { set: true, slew_ms: None };
        let mut done = clock(&link, AFTER_RESUME, &request).await;
        // Others were resumed with it, perhaps, and its turn is late: it has one for as long as it is there at all.
        for _ in 1..ATTEMPTS {
            let is_late = done.as_ref().is_err_and(|error| error.code == ErrorCode::DeadlineExceeded);
            if !(is_late && link.is_open()) {
                break;
            }
            done = clock(&link, AFTER_RESUME, &request).await;
        }
        match done {
            Ok(reply) if reply.change == ClockChange::None => {}
            Ok(reply) => {
                metrics.guest_clocks_set.inc();
                info!(ahead_us = reply.ahead_us, change = ?reply.change, "the guest's clock was set after it was resumed");
            }
            // Its owner may have forbidden it.
            Err(error) => warn!(error = %chain(&error), "the guest's clock was not set after it was resumed"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_with_the_middle_of_the_round_trip() {
        assert_eq!(ahead(1_000_500, 1_000_000, 1_000), (0, 500));
        assert_eq!(ahead(0, 1_000_000, 0), (-1_000_000, 0));
        // A guest says what it likes.
        assert_eq!(ahead(i64::MIN, 1, u64::MAX).0, i64::MIN);
        assert_eq!(ahead(i64::MAX, -1, 0).0, i64::MAX);
    }

    #[test]
    fn a_clock_that_is_off_is_slewed_or_jumps() {
        assert_eq!(decide(1_999, 10, 500), ClockChange::None);
        assert_eq!(decide(-40_000, 40_000, 500), ClockChange::None);
        assert_eq!(decide(-40_001, 40_000, 500), ClockChange::Slewed);
        assert_eq!(decide(500_000, 10, 500), ClockChange::Slewed);
        assert_eq!(decide(500_001, 10, 500), ClockChange::Stepped);
        assert_eq!(decide(i64::MIN, 10, 0), ClockChange::Stepped);
    }
}
