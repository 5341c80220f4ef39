//! The journal: the only writer of what must survive the daemon (VMs, leases, request ids with
//! their outcomes, events that the bus does not have yet), in one redb file.
//!
//! Everyone commits through [`JournalHandle::commit`]: when it returns `Ok`, the batch is on disk;
//! when it returns an error, nothing of the batch is. Many callers share one flush ([`writer`]).
//! The actors hold their rows in memory, so reads happen at start ([`JournalHandle::load`]), for
//! request ids and for the egress; they are short (a page-cache hit in redb's B-tree) and are made
//! in the caller's task.
//!
//! Unhappy paths:
//! * A folder of a newer drover, a folder in use, a damaged file: a typed [`OpenError`], and nothing
//!   is changed ([`backend`] holds every write back until the file has proved to be sound).
//! * A row that cannot be read: listed in [`Snapshot::unreadable`] and left alone.
//! * A full or failing disk: see [`writer`].
//! * kill -9 at any instant: redb keeps whole commits, and quick repair makes the next open fast.

mod backend;
mod batch;
mod error;
pub(crate) mod folder;
mod inspect;
mod migrate;
mod outbox;
mod read;
pub mod restore;
mod rows;
mod store;
mod tables;
mod writer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::{InstallationId, VmId};
use tokio::sync::{mpsc, oneshot, watch};

pub use batch::{Batch, EventClass, Op};
pub use error::{JournalError, OpenError};
pub use folder::STATE_VERSION;
pub use outbox::{OutboxFill, OutboxLimits};
pub use read::{InFlightRequest, RequestLookup, Snapshot, Unreadable};
pub use rows::{
    LeaseRow, OutboxRow, PendingOp, Position, ROW_VERSION, RequestRow, RequestState, RowError, StatusUpdate,
    UidRow, VmRow, audit_stream_key, event_id, host_stream_key,
};
pub use writer::JournalHealth;

use backend::Faults;
use folder::Folder;
use outbox::OutboxLevel;
use store::{META, META_INSTALLATION, Store};
use writer::{Command, QUEUE, Writer};

/// A journal whose commits take longer takes no new VMs.
const SLOW: Duration = Duration::from_secs(1);
/// How long a request id is kept, in milliseconds.
pub const REQUEST_WINDOW_MS: u64 = 24 * 60 * 60 * 1000;

/// How far a client's clock may be ahead, in milliseconds: an id that is made later still is refused, for it would
/// outlive the memory of what it did.
pub const REQUEST_AHEAD_MS: u64 = 60 * 60 * 1000;

/// Where the journal is and what it may hold.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The state folder; made with mode 0700 if it is not there.
    pub folder: PathBuf,
    /// Limits of the outbox.
    pub outbox: OutboxLimits,
    /// The most request ids that are kept for one namespace.
    pub requests_per_namespace: u64,
    /// Space set aside on the disk, in bytes.
    pub reserve_bytes: u64,
}

impl JournalConfig {
    /// The usual limits.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            outbox: OutboxLimits::default(),
            requests_per_namespace: 100_000,
            reserve_bytes: 16 << 20,
        }
    }
}

struct Shared {
    store: Arc<Store>,
    outbox: Arc<OutboxLevel>,
    queue: mpsc::Sender<Command>,
    health: watch::Receiver<JournalHealth>,
    /// Commits under way: since when, and which of those that began at that moment.
    waiting: Mutex<BTreeSet<(Instant, u64)>>,
    commits: AtomicU64,
    installation: InstallationId,
    /// Holds the lock of the state folder.
    _folder: Folder,
}

/// A commit under way, for as long as somebody waits for it.
struct Waits<'a>(&'a Shared, (Instant, u64));

impl<'a> Waits<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let key = (Instant::now(), shared.commits.fetch_add(1, Ordering::Relaxed));
        shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        Self(shared, key)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A cheap handle of the journal. The state folder stays locked until the last one is gone.
#[derive(Clone)]
pub struct JournalHandle(Arc<Shared>);

impl std::fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalHandle").field("installation", &self.0.installation).finish_non_exhaustive()
    }
}

/// Opens or makes the journal and starts its writer. Blocks for as long as it takes to read the
/// file once; call it before the runtime has work, or from `spawn_blocking`.
///
/// # Errors
/// [`OpenError`]; the folder is then as it was.
pub fn open(config: &JournalConfig) -> Result<JournalHandle, OpenError> {
    open_with(config, Faults::default())
}

fn open_with(config: &JournalConfig, faults: Faults) -> Result<JournalHandle, OpenError> {
    let folder = Folder::open(&config.folder)?;
    let path = folder.journal();
    let wrap = |source: JournalError| OpenError::Open { path: path.clone(), source: Box::new(source) };
    let store = Arc::new(Store::open(&path, config.requests_per_namespace, faults.clone())?);
    let recorded = store
        .read("meta", |txn| Ok(txn.open_table(META)?.get(META_INSTALLATION)?.map(|v| v.value().to_owned())))
        .map_err(wrap)?;
    let installation = folder.installation(recorded.as_deref())?;
    if recorded.is_none() {
        store.put_installation(installation).map_err(wrap)?;
    }
    let reserve = folder.reserve(config.reserve_bytes, faults);
    let health = match reserve.take() {
        Ok(()) => JournalHealth::Healthy,
        Err(error) => {
            tracing::warn!(%error, "no space could be set aside for the journal");
            JournalHealth::NoSpace
        }
    };
    let outbox = Arc::new(OutboxLevel::new(config.outbox));
    outbox.recount(&store);
    let (queue, commands) = mpsc::channel(QUEUE);
    let (health, health_seen) = watch::channel(health);
    let writer = Writer {
        store: Arc::clone(&store),
        outbox: Arc::clone(&outbox),
        reserve,
        health,
        last_reserve_try: None,
    };
    std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || writer.run(commands))
        .map_err(|source| OpenError::Thread { source })?;
    let (waiting, commits) = (Mutex::default(), AtomicU64::new(0));
    let health = health_seen;
    let shared = Shared { store, outbox, queue, health, waiting, commits, installation, _folder: folder };
    Ok(JournalHandle(Arc::new(shared)))
}

impl JournalHandle {
    /// The id of this installation.
    #[must_use]
    pub fn installation(&self) -> InstallationId {
        self.0.installation
    }

    /// Makes a batch durable. If the caller is dropped while it waits, the batch may still commit.
    ///
    /// # Errors
    /// [`JournalError`]; nothing of the batch is kept then.
    pub async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        if batch.is_empty() {
            return Ok(());
        }
        if batch.has_agent_events() {
            self.0.outbox.admit_agent_events()?;
        }
        let batch = batch.encode()?;
        let _waits = Waits::begin(&self.0);
        let (answer, answered) = oneshot::channel();
        let sent = self.0.queue.send(Command::Commit { batch, answer }).await;
        sent.map_err(|_| JournalError::Closed)?;
        answered.await.map_err(|_| JournalError::Closed)?
    }

    /// Everything commits, and soon: the oldest commit under way has not waited for longer than a second.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let oldest = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).first().map(|(at, _)| *at);
        *self.0.health.borrow() == JournalHealth::Healthy && oldest.is_none_or(|at| at.elapsed() < SLOW)
    }

    /// How the journal is, and how that changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<JournalHealth> {
        self.0.health.clone()
    }

    /// What still goes into the outbox; the edge refuses verbs at [`OutboxFill::NoChanges`].
    #[must_use]
    pub fn outbox_fill(&self) -> OutboxFill {
        self.0.outbox.fill()
    }

    /// Whether verbs that change a VM may still write events.
    ///
    /// # Errors
    /// [`JournalError::OutboxFull`].
    pub fn admit_changes(&self) -> Result<(), JournalError> {
        self.0.outbox.admit_changes()
    }

    /// How full the outbox is, in percent; above 100 when state events went beyond its limit.
    #[must_use]
    pub fn outbox_percent(&self) -> u32 {
        self.0.outbox.percent()
    }

    /// Rows and bytes of the outbox.
    #[must_use]
    pub fn outbox_used(&self) -> (u64, u64) {
        self.0.outbox.used()
    }

    /// Waits until VMs have new events and takes their keys; for the egress, of which there is one.
    pub async fn outbox_woken(&self) -> BTreeSet<VmId> {
        self.0.outbox.woken().await
    }

    /// Keeps the events of a VM from the egress until [`JournalHandle::let_events_go`]: a create that
    /// does not own its name yet must not speak under it. Forgotten when the daemon ends.
    pub fn hold_events(&self, vm_id: VmId) {
        self.0.outbox.hold(vm_id);
    }

    /// Whether the events of a VM are held; if so, the egress leaves those that it has taken for when they are not.
    #[must_use]
    pub fn leaves_if_held(&self, vm_id: VmId) -> bool {
        self.0.outbox.leave_if_held(vm_id)
    }

    /// Ends [`JournalHandle::hold_events`].
    pub fn let_events_go(&self, vm_id: VmId) {
        self.0.outbox.let_go(vm_id);
    }

    /// Finishes what is queued and closes the file; later commits and reads get
    /// [`JournalError::Closed`].
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.0.queue.send(Command::Stop { done }).await.is_ok() {
            let _ = closed.await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
