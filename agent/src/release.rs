//! What an agent says that it is, and what it speaks: all that is told apart between agents of several versions.
//!
//! The program has [`Release::THIS`]. Tests make agents of others from the same code, and so try what hosts do with them.

use std::ops::RangeInclusive;

use drover_schemas::guest::{PROTO_MAX, PROTO_MIN};

/// A version of the agent.
#[derive(Debug, Clone)]
pub struct Release {
    /// Its version, as text.
    pub version: &'static str,
    /// The versions of the guest protocol that it speaks.
    pub proto: RangeInclusive<u32>,
    /// Verbs and optional parts that it has not got: an earlier one.
    pub lacks: &'static [&'static str],
    /// Verbs and optional parts that it says it has beside: a later one.
    pub more: &'static [&'static str],
}

impl Release {
    /// The one that this code is.
    pub const THIS: Self =
        Self { version: env!("CARGO_PKG_VERSION"), proto: PROTO_MIN..=PROTO_MAX, lacks: &[], more: &[] };

    /// Whether it has a verb or an optional part that this code has.
    #[must_use]
    pub fn has(&self, what: &str) -> bool {
        !self.lacks.contains(&what)
    }

    /// The highest version of the protocol that both speak.
    #[must_use]
    pub fn agree(&self, host: &RangeInclusive<u32>) -> Option<u32> {
        let proto = (*host.end()).min(*self.proto.end());
        (proto >= (*host.start()).max(*self.proto.start())).then_some(proto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_that_both_speak_is_spoken() {
        let speaks = |proto| Release { proto, ..Release::THIS };
        assert_eq!(speaks(1..=2).agree(&(1..=1)), Some(1));
        assert_eq!(speaks(1..=2).agree(&(2..=9)), Some(2));
        assert_eq!(speaks(1..=2).agree(&(3..=9)), None);
        assert_eq!(speaks(2..=3).agree(&(0..=1)), None);
        // What a host says of itself may be nonsense.
        #[allow(clippy::reversed_empty_ranges, reason = "nonsense")]
        let nonsense = 9..=0;
        assert_eq!(speaks(1..=2).agree(&nonsense), None);
    }
}
