//! The log of what the host asked for: who by the host's word, what, and how it ended; never a secret.
//!
//! A line is short and so is their number in a time: a host that asks a thousand times a second does not fill the
//! guest's disk. What was left out is counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::ErrorBody;
use drover_schemas::audit::{GuestTarget, MAX_NAME, told};
use drover_schemas::codec::Format;
use drover_schemas::guest::{Request, verb};

use crate::log;

/// Lines that may come at once.
const BURST: u32 = 50;
/// How long it takes until there is room for one more.
const EACH: Duration = Duration::from_millis(200);

/// Writes the log; at most five lines a second over time.
#[derive(Debug)]
pub struct Commands(Mutex<Room>);

#[derive(Debug)]
struct Room {
    lines: u32,
    since: Instant,
    left_out: u64,
}

impl Default for Commands {
    fn default() -> Self {
        Self(Mutex::new(Room { lines: BURST, since: Instant::now(), left_out: 0 }))
    }
}

impl Commands {
    /// Notes how a request ended. What only looks at the guest as a whole is left to `--log debug`.
    pub fn note(&self, request: &Request, error: Option<&ErrorBody>) {
        let text = line(request, error);
        let looks = [verb::PING, verb::INFO, verb::HEALTH, verb::FROZEN, verb::SAMPLE, verb::CONFIGURE];
        if looks.contains(&request.verb.as_str()) && error.is_none() {
            return log::debug(format_args!("{text}"));
        }
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            None => {}
            Some(0) => log::info(format_args!("{text}")),
            Some(left_out) => log::info(format_args!("{text} ({left_out} before it are not told)")),
        }
    }
}

impl Room {
    /// Room for a line: how many were left out since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.since).as_millis() / EACH.as_millis();
        if more > 0 {
            self.lines = BURST.min(self.lines.saturating_add(u32::try_from(more).unwrap_or(BURST)));
            self.since = now;
        }
        match self.lines.checked_sub(1) {
            Some(lines) => {
                self.lines = lines;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

fn line(request: &Request, error: Option<&ErrorBody>) -> String {
    let verb = told(&request.verb, 32);
    let caller = told(request.caller.as_deref().unwrap_or("the host"), 2 * MAX_NAME);
    let target = GuestTarget::of(Format::MsgPack, request.body.as_slice());
    let target = target.map_or_else(String::new, |target| format!(" {}", target.line()));
    let id = request.request_id.map_or_else(String::new, |id| format!(" id={id}"));
    let outcome = error.map_or("ok", |error| error.code.as_str());
    format!("{caller}: {verb}{target}{id}: {outcome}")
}

#[cfg(test)]
mod tests {
    use drover_schemas::ErrorCode;
    use drover_schemas::codec;

    use super::*;

    fn request(verb: &str, body: &serde_json::Value) -> Request {
        Request {
            stream: 1,
            verb: verb.into(),
            request_id: None,
            deadline_ms: None,
            traceparent: None,
            caller: Some("acme/alice at 10.0.0.7".into()),
            credit: 0,
            body: codec::encode(body).unwrap().into(),
        }
    }

    #[test]
    fn a_line_says_who_what_and_how_and_no_secret() {
        let body = serde_json::json!({"argv": ["mysql", "-psecret"], "env": {"T": "secret"}, "user": "app"});
        let text = line(&request("exec", &body), None);
        assert_eq!(text, "acme/alice at 10.0.0.7: exec program=mysql user=app: ok");
        let refused = ErrorBody::new(ErrorCode::PermissionDenied, "secret");
        let text = line(&request("put", &serde_json::json!({"path": "/etc/a\nb"})), Some(&refused));
        assert_eq!(text, "acme/alice at 10.0.0.7: put path=/etc/a\u{fffd}b: permission_denied");
        let long = request(&"x".repeat(9_000), &serde_json::json!({"path": "y".repeat(9_000)}));
        assert!(line(&Request { caller: Some("z".repeat(9_000)), ..long }, None).len() < 700);
    }

    #[test]
    fn a_flood_is_counted_and_the_log_goes_on_after_it() {
        let now = Instant::now();
        let mut room = Room { lines: BURST, since: now, left_out: 0 };
        let told = (0..1_000).filter(|_| room.take(now).is_some()).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(room.take(now + EACH), Some(1_000 - u64::from(BURST)));
        assert_eq!(room.take(now + EACH), None);
        assert_eq!(room.take(now + Duration::from_secs(3_600)), Some(1));
    }
}
