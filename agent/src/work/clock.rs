//! `clock`: read, or moved by so much. The host measures how far it is off; the way there and back does not matter then.

use std::io;

use drover_schemas::guest::{MoveClockRequest, MoveClockResult};
use drover_schemas::{ErrorBody, ErrorCode};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::guest_error;

/// The most that it is moved at a time: a hundred years.
const MAX_US: i64 = 100 * 366 * 86_400 * 1_000_000;
/// The most that the kernel takes for a slow correction.
const MAX_SLEW_US: i64 = 2_000_000_000;

/// Reads the clock, or moves it.
///
/// # Errors
/// What the kernel said.
pub(crate) fn run(request: &MoveClockRequest) -> Result<MoveClockResult, ErrorBody> {
    match request.move_us {
        None | Some(0) => {}
        Some(us) if us.saturating_abs() > MAX_US => {
            let text = format!("move_us is {us}; the most is a hundred years");
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "move_us"));
        }
        Some(us) if request.step => step(us)?,
        Some(us) if us.saturating_abs() > MAX_SLEW_US => {
            let text = format!("move_us is {us}; so much is not slewed, set step");
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "move_us"));
        }
        Some(us) => slew(us)?,
    }
    Ok(MoveClockResult { unix_us: now_us()? })
}

fn now_us() -> Result<i64, ErrorBody> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(|e| failed("read", e.into()))?;
    Ok(now.tv_sec().saturating_mul(1_000_000).saturating_add(now.tv_nsec() / 1000))
}

fn failed(what: &str, error: io::Error) -> ErrorBody {
    guest_error(format!("the guest's clock cannot be {what}: {error}"))
}

fn step(us: i64) -> Result<(), ErrorBody> {
    let then = now_us()?.saturating_add(us);
    let then = TimeSpec::new(then.div_euclid(1_000_000), then.rem_euclid(1_000_000) * 1000);
    clock_settime(ClockId::CLOCK_REALTIME, then).map_err(|e| failed("set", e.into()))
}

fn slew(us: i64) -> Result<(), ErrorBody> {
    // SAFETY: all-zero is a valid timex, and the kernel reads and writes one.
    let done = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
        timex.offset = us;
        libc::adjtimex(&raw mut timex)
    };
    if done < 0 { Err(failed("slewed", io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_and_not_moved_beyond_reason() {
        let before = now_us().unwrap();
        let read = run(&MoveClockRequest::default()).unwrap().unix_us;
        assert!(read >= before);
        for (move_us, step) in [(i64::MAX, true), (i64::MIN, true), (MAX_SLEW_US + 1, false)] {
            let error = run(&MoveClockRequest { move_us: Some(move_us), step }).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
        }
    }
}
