//! What two looks at the stream say together: pure.

use super::StreamLook;

/// How near to its limit of bytes a stream may be for its oldest events to go, in percent.
const NEAR: u64 = 90;
/// How much earlier than its age says the server may take an event out: clocks, and the time between looks.
const EARLY_MS: u64 = 30_000;

/// Something that happened to the stream and should not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is another one.
    Replaced,
    /// The oldest events are gone before their time.
    Purged {
        /// Position of the oldest before.
        first_before: u64,
        /// And now.
        first_now: u64,
    },
    /// Events between the oldest and the newest are gone.
    Deleted {
        /// How many more than before.
        count: u64,
    },
    /// The newest events are gone.
    WentBack {
        /// Position of the newest before.
        last_before: u64,
        /// And now.
        last_now: u64,
    },
}

/// What happened between two looks.
pub fn compare(before: &StreamLook, now: &StreamLook) -> Vec<Finding> {
    if before.created != now.created {
        return vec![Finding::Replaced];
    }
    let mut found = Vec::new();
    if now.last_seq < before.last_seq {
        found.push(Finding::WentBack { last_before: before.last_seq, last_now: now.last_seq });
        return found;
    }
    // Of an empty stream the oldest is whatever came next.
    let (oldest, since) = match before.messages {
        0 => (before.last_seq + 1, before.server_unix_ms),
        _ => (before.first_seq, before.first_unix_ms),
    };
    if now.first_seq > oldest && !may_trim(before, now, since) {
        found.push(Finding::Purged { first_before: oldest, first_now: now.first_seq });
    }
    if now.first_seq == before.first_seq && now.deleted > before.deleted {
        found.push(Finding::Deleted { count: now.deleted - before.deleted });
    }
    found
}

/// Whether the limits of the stream explain that its oldest event, which was stored at `since` or later, is gone.
fn may_trim(before: &StreamLook, now: &StreamLook, since: Option<u64>) -> bool {
    // Both limits may have been made smaller meanwhile.
    let max_bytes = before.max_bytes.into_iter().chain(now.max_bytes).min();
    let max_age = before.max_age_ms.into_iter().chain(now.max_age_ms).min();
    let stored = now.last_seq - before.last_seq;
    let each = [before, now].map(|look| look.bytes / look.messages.max(1)).into_iter().max();
    let most = before.bytes.saturating_add(stored.saturating_mul(each.unwrap_or_default().max(1)));
    let by_bytes = max_bytes.is_some_and(|max| most >= max / 100 * NEAR);
    let by_age = match (max_age, since, now.server_unix_ms) {
        (Some(max), Some(first), Some(at)) => at.saturating_sub(first).saturating_add(EARLY_MS) >= max,
        (Some(_), ..) => true,
        (None, ..) => false,
    };
    by_bytes || by_age
}

/// How a named reader of the stream stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reader {
    /// When it was made; another one of the same name is another reader.
    pub created: i128,
    /// Everything up to this position is acknowledged.
    pub read_to: u64,
    /// How many events it was sent.
    pub sent: u64,
    /// Events that it has not acknowledged.
    pub unread: u64,
    /// Position of the oldest of them, if there are any.
    pub oldest_unread: Option<u64>,
}

impl Reader {
    /// The positions between which it has lost events since it was `before`, if it has: the oldest event that it had
    /// not read is not kept any more, and was not sent to it; or of several fewer were sent than are gone.
    pub fn lost(&self, before: &Self, first_seq: u64) -> Option<(u64, u64)> {
        let oldest = before.oldest_unread.filter(|oldest| *oldest < first_seq)?;
        let sent = self.sent.saturating_sub(before.sent);
        // New events only hide a loss here, never make one up.
        let lost = sent == 0 || sent + self.unread < before.unread;
        lost.then(|| (oldest, first_seq - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(first_seq: u64, last_seq: u64) -> StreamLook {
        StreamLook {
            created: "a".into(),
            messages: last_seq + 1 - first_seq,
            bytes: (last_seq + 1 - first_seq) * 100,
            first_seq,
            first_unix_ms: Some(first_seq * 1_000),
            last_seq,
            max_age_ms: Some(1_000_000),
            max_bytes: Some(100_000),
            server_unix_ms: Some(last_seq * 1_000),
            ..StreamLook::default()
        }
    }

    #[test]
    fn what_the_limits_take_is_no_finding() {
        let before = look(1, 100);
        assert_eq!(compare(&before, &look(1, 120)), []);
        // Old enough.
        let now = StreamLook { server_unix_ms: Some(1_001_000), ..look(2, 120) };
        assert_eq!(compare(&before, &now), []);
        // Full.
        let full = StreamLook { bytes: 99_000, ..look(1, 100) };
        assert_eq!(compare(&full, &look(5, 104)), []);
        // It filled up between the looks.
        assert_eq!(compare(&before, &look(2_000, 3_000)), []);
        // Somebody made the limit smaller.
        let less = StreamLook { max_bytes: Some(5_000), ..look(60, 100) };
        assert_eq!(compare(&before, &less), []);
        // An empty stream begins with its first event.
        let empty = StreamLook { messages: 0, bytes: 0, first_unix_ms: None, ..look(1, 0) };
        assert_eq!(compare(&empty, &look(1, 3)), []);
        // And may have filled up since.
        assert_eq!(compare(&empty, &look(2_000, 3_000)), []);
    }

    #[test]
    fn what_somebody_takes_is_found() {
        let before = look(1, 100);
        let purged = compare(&before, &look(101, 100));
        assert_eq!(purged, [Finding::Purged { first_before: 1, first_now: 101 }]);
        let kept = compare(&before, &look(91, 105));
        assert_eq!(kept, [Finding::Purged { first_before: 1, first_now: 91 }]);
        // Also what came and went between two looks.
        let empty = StreamLook { messages: 0, bytes: 0, first_unix_ms: None, ..look(1, 0) };
        assert_eq!(compare(&empty, &look(4, 3)), [Finding::Purged { first_before: 1, first_now: 4 }]);
        let deleted = compare(&before, &StreamLook { deleted: 7, ..look(1, 110) });
        assert_eq!(deleted, [Finding::Deleted { count: 7 }]);
        let back = compare(&before, &look(1, 80));
        assert_eq!(back, [Finding::WentBack { last_before: 100, last_now: 80 }]);
        let other = compare(&before, &StreamLook { created: "b".into(), ..look(1, 2) });
        assert_eq!(other, [Finding::Replaced]);
    }

    #[test]
    fn a_reader_has_lost_what_it_had_not_read() {
        let before = Reader { read_to: 10, sent: 7, unread: 5, oldest_unread: Some(12), ..Reader::default() };
        let now = |sent, unread| Reader { sent, unread, ..Reader::default() };
        assert_eq!(now(7, 5).lost(&before, 12), None, "the oldest is still there");
        assert_eq!(now(7, 0).lost(&before, 20), Some((12, 19)));
        assert_eq!(now(7, 900).lost(&before, 20), Some((12, 19)), "new ones do not hide it");
        assert_eq!(now(12, 0).lost(&before, 20), None, "it has read all of it in time");
        assert_eq!(now(9, 3).lost(&before, 14), None, "it has read what went");
        assert_eq!(now(9, 1).lost(&before, 20), Some((12, 19)), "of five two were read and one is left");
        let idle = Reader { read_to: 3, ..Reader::default() };
        assert_eq!(now(0, 0).lost(&idle, 20), None, "nothing for it was among what went");
    }
}
