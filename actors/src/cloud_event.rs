//! The attributes of an event as headers: CloudEvents 1.0 over NATS, in binary mode.

use drover_schemas::event::ce;
use drover_schemas::{codec, headers};

/// The headers of every event but its id: told by `drover/<by>`, of the type `drover.<what>.v1`, about `subject`, with a
/// body in MessagePack.
#[must_use]
pub fn attributes(by: &str, what: &str, unix_ms: u64, subject: String) -> Vec<(String, String)> {
    let attributes = [
        (ce::SPECVERSION, ce::SPEC_VERSION.to_owned()),
        (ce::SOURCE, format!("drover/{by}")),
        (ce::TYPE, format!("drover.{what}.v1")),
        (ce::TIME, rfc3339(unix_ms)),
        (ce::SUBJECT, subject),
        (ce::DATACONTENTTYPE, codec::MSGPACK.to_owned()),
        (headers::CONTENT_TYPE, codec::MSGPACK.to_owned()),
    ];
    attributes.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// A time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_386_615_042), "2026-11-22T22:30:15.042Z");
    }
}
