//! What to do with an event whose fate is not known: pure, from the last message of the VM's filter.
//!
//! ```text
//! last message under the filter      verdict
//! none                               publish, expecting nothing (trimmed or new stream: reported)
//! this event, or a later one of ours acknowledged up to it (if the bytes are ours)
//! an earlier one of this VM          publish, expecting it
//! another VM's, our first event      publish, expecting it (an old name used again)
//! another VM's otherwise             stop: somebody else owns the name
//! a later one that is not ours       stop: the journal is older than the stream (restored)
//! ```

use drover_schemas::VmId;

use crate::journal::Position;

/// The last message under the filter of a VM's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Whose event it is, from its `ce-id`; `None` if that is not one of ours.
    pub event: Option<(VmId, u64)>,
    /// Its place in the stream.
    pub stream_seq: u64,
    /// The same event waits in our outbox with the same bytes.
    pub is_in_outbox: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The stream has everything up to this event.
    Acknowledged {
        /// The last event that it has.
        seq: u64,
        /// Its place.
        stream_seq: u64,
    },
    /// Publish, expecting this last sequence under the filter.
    Publish {
        /// The expected sequence, 0 for none.
        expected: u64,
        /// Something that should not be, though the order is safe.
        anomaly: Option<Anomaly>,
    },
    /// Publish nothing more of this VM.
    Stop(StopReason),
}

/// Events are missing from the stream that were acknowledged before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    /// No event of the VM is left: the stream was trimmed, purged or made anew.
    Trimmed,
    /// The last events of the VM are gone: the stream was restored from a backup.
    WentBack,
}

/// Why the events of a VM cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// Another VM's event follows ours under the name.
    #[error("message {stream_seq} under this VM's subjects belongs to {owner}: another host owns the name")]
    Foreign {
        /// Whose it is.
        owner: String,
        /// Its place in the stream.
        stream_seq: u64,
    },
    /// The stream has an event of this VM that this journal never made.
    #[error(
        "the stream holds event {found} of this VM, which this journal did not make: the journal was restored from a backup"
    )]
    Ahead {
        /// Sequence of that event.
        found: u64,
    },
    /// The event is larger than the server takes.
    #[error("the event of {bytes} bytes is larger than the server's max_payload")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The journal cannot give the event.
    #[error("the journal cannot be read: {reason}")]
    Journal {
        /// Why.
        reason: String,
    },
}

/// Decides about event `seq` of `key`. `position` is the last acknowledged event of the VM.
#[must_use]
pub fn decide(key: VmId, seq: u64, position: Option<Position>, last: Option<&Last>) -> Verdict {
    let Some(last) = last else {
        return Verdict::Publish { expected: 0, anomaly: position.map(|_| Anomaly::Trimmed) };
    };
    match last.event {
        Some((owner, found)) if owner == key && found >= seq => {
            if last.is_in_outbox {
                Verdict::Acknowledged { seq: found, stream_seq: last.stream_seq }
            } else {
                Verdict::Stop(StopReason::Ahead { found })
            }
        }
        Some((owner, found)) if owner == key => {
            let went_back = position.is_some_and(|p| p.seq > found);
            Verdict::Publish { expected: last.stream_seq, anomaly: went_back.then_some(Anomaly::WentBack) }
        }
        _ if seq == 1 && position.is_none() => Verdict::Publish { expected: last.stream_seq, anomaly: None },
        event => {
            let owner = event.map_or_else(|| "an unknown publisher".to_owned(), |(k, n)| format!("{k}.{n}"));
            Verdict::Stop(StopReason::Foreign { owner, stream_seq: last.stream_seq })
        }
    }
}

/// Reads `<vm_id>.<seq>`.
#[must_use]
pub fn parse_event_id(text: &str) -> Option<(VmId, u64)> {
    let (key, seq) = text.split_once('.')?;
    Some((key.parse().ok()?, seq.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: VmId = VmId::from_u128(1);
    const OTHER: VmId = VmId::from_u128(2);

    fn last(key: VmId, seq: u64, stream_seq: u64, is_in_outbox: bool) -> Last {
        Last { event: Some((key, seq)), stream_seq, is_in_outbox }
    }

    fn at(seq: u64) -> Option<Position> {
        Some(Position { seq, stream_seq: seq * 10 })
    }

    fn publish(expected: u64, anomaly: Option<Anomaly>) -> Verdict {
        Verdict::Publish { expected, anomaly }
    }

    #[test]
    fn the_last_message_decides() {
        let cases = [
            (1, None, None, publish(0, None)),
            (4, at(3), None, publish(0, Some(Anomaly::Trimmed))),
            (4, at(3), Some(last(VM, 3, 30, false)), publish(30, None)),
            (4, at(3), Some(last(VM, 2, 20, false)), publish(20, Some(Anomaly::WentBack))),
            (4, at(3), Some(last(VM, 4, 44, true)), Verdict::Acknowledged { seq: 4, stream_seq: 44 }),
            // The acknowledgements of 4 and 5 were lost with the daemon.
            (4, at(3), Some(last(VM, 5, 55, true)), Verdict::Acknowledged { seq: 5, stream_seq: 55 }),
            (4, at(3), Some(last(VM, 4, 44, false)), Verdict::Stop(StopReason::Ahead { found: 4 })),
            (4, at(3), Some(last(VM, 9, 99, false)), Verdict::Stop(StopReason::Ahead { found: 9 })),
            // An old name used again.
            (1, None, Some(last(OTHER, 7, 70, false)), publish(70, None)),
        ];
        for (seq, position, last, verdict) in cases {
            assert_eq!(decide(VM, seq, position, last.as_ref()), verdict, "{seq} {position:?} {last:?}");
        }
        for position in [None, at(3)] {
            let verdict = decide(VM, 4, position, Some(&last(OTHER, 1, 70, false)));
            assert!(matches!(verdict, Verdict::Stop(StopReason::Foreign { stream_seq: 70, .. })));
        }
    }

    #[test]
    fn event_ids_read_back() {
        assert_eq!(parse_event_id(&crate::journal::event_id(VM, 7)), Some((VM, 7)));
        assert_eq!(parse_event_id("VM.7"), None);
        assert_eq!(parse_event_id(""), None);
    }
}
