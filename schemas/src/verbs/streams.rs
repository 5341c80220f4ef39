//! What the streams carry that verbs open.

use super::Plane;
use crate::stream::Channel;

/// The stream of one verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRow {
    /// Where the verb is asked for.
    pub plane: Plane,
    /// The verb.
    pub verb: &'static str,
    /// Channels whose bytes the client sends.
    pub client: &'static [Channel],
    /// Channels whose bytes the host sends.
    pub host: &'static [Channel],
    /// Name of the type that the last frame's `end.result` holds.
    pub result: &'static str,
}

/// Every verb that opens a stream, always or when it is asked to.
pub const STREAMS: &[StreamRow] = &[
    StreamRow {
        plane: Plane::Vm,
        verb: "console",
        client: &[Channel::Stdin],
        host: &[Channel::Stdout],
        result: "ConsoleResult",
    },
    StreamRow {
        plane: Plane::Vm,
        verb: "logs",
        client: &[],
        host: &[Channel::Stdout],
        result: "ConsoleResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "exec",
        client: &[Channel::Stdin, Channel::Ctl],
        host: &[Channel::Stdout, Channel::Stderr],
        result: "ExecResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "attach",
        client: &[Channel::Stdin, Channel::Ctl],
        host: &[Channel::Stdout, Channel::Stderr],
        result: "AttachResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "put",
        client: &[Channel::Data],
        host: &[],
        result: "FileResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "get",
        client: &[],
        host: &[Channel::Data],
        result: "FileResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "pack",
        client: &[],
        host: &[Channel::Data],
        result: "TreeResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "unpack",
        client: &[Channel::Data],
        host: &[],
        result: "TreeResult",
    },
    StreamRow {
        plane: Plane::VmGuest,
        verb: "upgrade",
        client: &[Channel::Data],
        host: &[],
        result: "UpgradeResult",
    },
];

/// The stream of a verb, if it opens one.
#[must_use]
pub fn stream(plane: Plane, verb: &str) -> Option<&'static StreamRow> {
    STREAMS.iter().find(|row| row.plane == plane && row.verb == verb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::{Class, VERBS, find};

    #[test]
    fn what_opens_a_stream_is_a_verb_and_each_verb_of_that_class_has_one() {
        for row in STREAMS {
            assert!(find(row.plane, row.verb).is_some(), "{row:?}");
        }
        for row in VERBS.iter().filter(|row| row.class == Class::Stream) {
            assert!(stream(row.plane, row.verb).is_some(), "{row:?}");
        }
    }
}
