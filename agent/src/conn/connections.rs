//! The connections of hosts: how many there are, and whether requests still belong on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_schemas::guest::{AgentFrame, Moved};
use tokio::sync::watch;

use super::outbox::Outbox;

/// How many connections are served at a time; further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 8;

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The way to each, once it was greeted, and whether its host said that no request follows.
    open: HashMap<u64, Open>,
}

#[derive(Debug, Default)]
struct Open {
    outbox: Option<Arc<Outbox>>,
    has_moved: bool,
}

/// All that are open.
#[derive(Debug)]
pub struct Connections {
    state: Mutex<State>,
    /// Whether further ones are taken.
    taking: watch::Sender<bool>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { state: Mutex::default(), taking: watch::Sender::new(true), changes: watch::Sender::new(0) }
    }
}

/// The place of one connection, for as long as it lives.
#[derive(Debug)]
pub struct Place {
    all: Arc<Connections>,
    id: u64,
}

impl Connections {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if there is one.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        if state.open.len() >= MAX_CONNECTIONS {
            return None;
        }
        state.next += 1;
        let id = state.next;
        state.open.insert(id, Open::default());
        Some(Place { all: Arc::clone(self), id })
    }

    /// Stops to take further ones, or goes on.
    pub(crate) fn take_more(&self, take: bool) {
        self.taking.send_replace(take);
    }

    /// Whether further ones are taken.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        *self.taking.borrow()
    }

    /// Waits until further ones are taken, or are not.
    pub async fn until(&self, taking: bool) {
        // The sender lives as long as this.
        let _ = self.taking.subscribe().wait_for(|now| *now == taking).await;
    }

    /// Says to each that was greeted that requests belong elsewhere.
    pub(crate) fn say_moved(&self) {
        for open in self.state().open.values_mut() {
            open.has_moved = false;
            if let Some(outbox) = &open.outbox {
                outbox.control(&AgentFrame::Moved(Moved {}));
            }
        }
    }

    /// Waits until no request can come on any of them.
    pub(crate) async fn have_moved(&self) {
        self.wait(|state| state.open.values().all(|open| open.has_moved || open.outbox.is_none())).await;
    }

    /// Waits until there are none.
    pub(crate) async fn none_left(&self) {
        self.wait(|state| state.open.is_empty()).await;
    }

    async fn wait(&self, what: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !what(&self.state()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

impl Place {
    /// The host was greeted, and is reached this way.
    pub(super) fn greeted(&self, outbox: &Arc<Outbox>) {
        if let Some(open) = self.all.state().open.get_mut(&self.id) {
            open.outbox = Some(Arc::clone(outbox));
        }
    }

    /// The host has said that no request follows.
    pub(super) fn moved(&self) {
        if let Some(open) = self.all.state().open.get_mut(&self.id) {
            open.has_moved = true;
        }
        self.all.changed();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.state().open.remove(&self.id);
        self.all.changed();
    }
}
