//! How full the outbox is, and which VMs have new events: what the journal tells the egress and
//! the edge without a read.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_schemas::VmId;
use redb::ReadableTable as _;
use tokio::sync::Notify;

use super::error::JournalError;
use super::store::{Changes, OUTBOX_AGENT, OUTBOX_STATE, OutboxUse, Store};
use super::tables::row_cost;

/// How much the outbox may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// What counts as full. State events are stored beyond it: refusing verbs bounds them.
    pub max_bytes: u64,
    /// Above this share, in percent, events of the guests' programs are refused.
    pub agent_percent: u32,
    /// Above this share, in percent, verbs that change a VM are refused.
    pub verbs_percent: u32,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, agent_percent: 80, verbs_percent: 95 }
    }
}

/// What still goes into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutboxFill {
    /// Everything.
    Normal,
    /// No events of the guests' programs.
    NoAgentEvents,
    /// No verbs that change a VM either; ends and deletes are still recorded.
    NoChanges,
}

pub(super) struct OutboxLevel {
    limits: OutboxLimits,
    rows: AtomicU64,
    bytes: AtomicU64,
    /// Keys with events that the egress has not looked at.
    woken: Mutex<Woken>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Woken {
    keys: BTreeSet<u128>,
    /// Keys whose events wait, though they are durable.
    held: BTreeSet<u128>,
}

impl OutboxLevel {
    pub(super) fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            woken: Mutex::default(),
            notify: Notify::new(),
        }
    }

    /// Counts what the file holds, at start and after it was opened again.
    pub(super) fn recount(&self, store: &Store) {
        let counted = store.read("outbox", |txn| {
            let mut total = OutboxUse::default();
            let mut keys = BTreeSet::new();
            for table in [OUTBOX_STATE, OUTBOX_AGENT] {
                for entry in txn.open_table(table)?.iter()? {
                    let (key, row) = entry?;
                    total.rows += 1;
                    total.bytes += row_cost(row.value().len());
                    keys.insert(key.value().0);
                }
            }
            Ok((total, keys))
        });
        match counted {
            Ok((total, keys)) => {
                self.rows.store(total.rows, Ordering::Relaxed);
                self.bytes.store(total.bytes, Ordering::Relaxed);
                self.wake(keys);
            }
            Err(error) => tracing::error!(%error, "the outbox could not be counted"),
        }
    }

    /// Called by the writer after a commit; the only one who changes the counts.
    pub(super) fn committed(&self, changes: Changes) {
        let add = |counter: &AtomicU64, added: u64, removed: u64| {
            let now = counter.load(Ordering::Relaxed) + added;
            counter.store(now.saturating_sub(removed), Ordering::Relaxed);
        };
        add(&self.rows, changes.added.rows, changes.removed.rows);
        add(&self.bytes, changes.added.bytes, changes.removed.bytes);
        self.wake(changes.woken);
    }

    fn wake(&self, keys: impl IntoIterator<Item = u128>) {
        let mut keys = keys.into_iter().peekable();
        if keys.peek().is_some() {
            self.lock().keys.extend(keys);
            self.notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Woken> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(&self, key: VmId) {
        self.lock().held.insert(key.as_u128());
    }

    pub(super) fn let_go(&self, key: VmId) {
        if self.lock().held.remove(&key.as_u128()) {
            self.notify.notify_one();
        }
    }

    /// Whether the events of a key wait; whoever was about to publish them leaves them to a later [`Self::woken`].
    pub(super) fn leave_if_held(&self, key: VmId) -> bool {
        let key = key.as_u128();
        let mut woken = self.lock();
        let is_held = woken.held.contains(&key);
        if is_held {
            woken.keys.insert(key);
        }
        is_held
    }

    /// Waits until some keys have new events that are not held, and takes them.
    pub(super) async fn woken(&self) -> BTreeSet<VmId> {
        loop {
            {
                let mut woken = self.lock();
                let Woken { keys, held } = &mut *woken;
                let (waiting, taken) = std::mem::take(keys).into_iter().partition(|key| held.contains(key));
                *keys = waiting;
                let taken: BTreeSet<u128> = taken;
                if !taken.is_empty() {
                    return taken.into_iter().map(VmId::from_u128).collect();
                }
            }
            self.notify.notified().await;
        }
    }

    pub(super) fn used(&self) -> (u64, u64) {
        (self.rows.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Share of the limit in percent; above 100 when state events went beyond it.
    pub(super) fn percent(&self) -> u32 {
        let share = self.used().1.saturating_mul(100) / self.limits.max_bytes.max(1);
        u32::try_from(share).unwrap_or(u32::MAX)
    }

    pub(super) fn fill(&self) -> OutboxFill {
        match self.percent() {
            p if p > self.limits.verbs_percent => OutboxFill::NoChanges,
            p if p > self.limits.agent_percent => OutboxFill::NoAgentEvents,
            _ => OutboxFill::Normal,
        }
    }

    pub(super) fn admit_changes(&self) -> Result<(), JournalError> {
        match self.fill() {
            OutboxFill::NoChanges => Err(JournalError::OutboxFull { percent: self.percent() }),
            _ => Ok(()),
        }
    }

    pub(super) fn admit_agent_events(&self) -> Result<(), JournalError> {
        match self.fill() {
            OutboxFill::Normal => Ok(()),
            _ => Err(JournalError::OutboxFull { percent: self.percent() }),
        }
    }
}
