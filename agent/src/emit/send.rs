//! Events over one connection.

use std::sync::Arc;

use drover_schemas::guest::AgentFrame;
use tokio::task::JoinHandle;

use super::Events;
use crate::conn::Outbox;

/// Sends events over a connection until it is dropped, or a newer connection does so.
#[derive(Debug)]
pub struct Sending(JoinHandle<()>);

impl Sending {
    /// Begins with the first event that the host has not acknowledged.
    #[must_use]
    pub fn start(events: &Arc<Events>, outbox: &Arc<Outbox>) -> Self {
        let (events, outbox, link) = (Arc::clone(events), Arc::clone(outbox), events.join());
        Self(tokio::spawn(async move {
            let mut progress = events.progress.subscribe();
            let mut sent = 0;
            loop {
                let now = *progress.borrow_and_update();
                if now.link != link {
                    return;
                }
                match events.next(sent.max(now.acked)) {
                    Some(event) => {
                        sent = event.n;
                        // Beside files and output, each in its turn.
                        outbox.bulk(&AgentFrame::Event(event)).await;
                    }
                    None if progress.changed().await.is_err() => return,
                    None => {}
                }
            }
        }))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}
