//! Events of the guest that wait for the VM's actor: bounded, whatever the agent does.

use std::sync::Arc;

use drover_schemas::guest::event::{EVENT_BYTES_IN_FLIGHT, EVENTS_IN_FLIGHT, MAX_EVENT_LOG, MAX_EVENT_TYPE};
use drover_schemas::guest::{Event, EventAck, HostFrame, wire};

use super::link::Link;
use super::table::Shared;

/// Events beyond what an agent may send that are counted before the link is closed: one of ours sends none.
pub(super) const MAX_BEYOND: u64 = 1_000;

/// What has come and was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    events: Vec<Event>,
    bytes: usize,
    beyond: u64,
    /// The same, since the link began.
    total_beyond: u64,
}

/// Events that came together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// In the order in which they came.
    pub events: Vec<Event>,
    /// How many more were sent than may be, and are lost.
    pub beyond: u64,
}

impl Inbox {
    /// Takes one. Answers how many were too many so far if this one was.
    pub(super) fn push(&mut self, event: Event) -> Result<(), u64> {
        // As the agent counts, and what only a liar sends beside.
        let more =
            event.kind.len().saturating_sub(MAX_EVENT_TYPE) + event.log.len().saturating_sub(MAX_EVENT_LOG);
        let bytes = event.body.as_slice().len() + more;
        let full = self.events.len() >= EVENTS_IN_FLIGHT || self.bytes > EVENT_BYTES_IN_FLIGHT;
        if full {
            self.beyond += 1;
            self.total_beyond += 1;
            return Err(self.total_beyond);
        }
        self.bytes += bytes;
        self.events.push(event);
        Ok(())
    }

    fn take(&mut self) -> Option<EventBatch> {
        let batch =
            EventBatch { events: std::mem::take(&mut self.events), beyond: std::mem::take(&mut self.beyond) };
        self.bytes = 0;
        (batch != EventBatch::default()).then_some(batch)
    }
}

/// Takes the events of a link, and answers them. It does not keep the link.
#[derive(Debug)]
pub struct EventReader(Arc<Shared>);

impl Link {
    /// Where the events of the guest are taken; by one reader.
    #[must_use]
    pub fn events(&self) -> EventReader {
        EventReader(self.share())
    }
}

impl EventReader {
    /// The next ones, as many as there are; `None` at the end of the link, when all were taken.
    pub async fn next(&self) -> Option<EventBatch> {
        loop {
            {
                let mut state = self.0.state();
                if let Some(batch) = state.inbox.take() {
                    return Some(batch);
                }
                if state.closed.is_some() {
                    return None;
                }
            }
            // Keeps a bell that rang before.
            self.0.events.notified().await;
        }
    }

    /// Whether more can come.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.state().closed.is_none()
    }

    /// Tells the agent what it need not send again.
    pub fn acknowledge(&self, ack: EventAck) {
        // It fits into a frame: its text came in one.
        if let Ok(bytes) = wire::encode(&HostFrame::EventAck(ack)) {
            self.0.state().acknowledge(bytes);
            self.0.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64, bytes: usize) -> Event {
        let body = vec![0; bytes].into();
        Event { log: "l".into(), n, time_unix_ms: 0, uid: 0, gid: 0, pid: 1, kind: "k".into(), body }
    }

    #[test]
    fn what_an_agent_sends_beyond_its_window_is_counted_and_not_kept() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.take(), None);
        for n in 0..EVENTS_IN_FLIGHT as u64 {
            assert_eq!(inbox.push(event(n, 10)), Ok(()));
        }
        for n in 1..=5 {
            assert_eq!(inbox.push(event(99, 10)), Err(n));
        }
        let batch = inbox.take().unwrap();
        assert_eq!((batch.events.len(), batch.beyond), (EVENTS_IN_FLIGHT, 5));
        // A frame's worth each: not more of them than one beyond the bytes that may be on their way.
        let taken = (0..100).filter(|n| inbox.push(event(*n, 100_000)).is_ok()).count();
        assert_eq!((taken, inbox.take().unwrap().beyond), (1, 99));
        assert_eq!(inbox.take(), None);
    }
}
