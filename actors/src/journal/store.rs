//! The redb file: tables, one write transaction for a group of batches, and reads.
//!
//! redb refuses everything after an I/O error until the file is opened again
//! (`StorageError::PreviousIo`), so the database sits behind a lock that [`Store::reopen`] takes
//! alone. Readers hold it shared for microseconds.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use drover_schemas::InstallationId;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition,
};

use super::backend::{Faults, GuardedBackend};
use super::batch::EncodedBatch;
use super::error::{JournalError, OpenError};
use super::tables;

pub(super) type Bytes = &'static [u8];
pub(super) const VMS: TableDefinition<'_, u128, Bytes> = TableDefinition::new("vms");
/// (namespace, name) → VM.
pub(super) const NAMES: TableDefinition<'_, (&str, &str), u128> = TableDefinition::new("names");
/// (namespace, request) → row.
pub(super) const REQUESTS: TableDefinition<'_, (&str, u128), Bytes> = TableDefinition::new("requests");
/// (namespace, bound at, request): finds what is oldest without reading rows.
pub(super) const REQUEST_TIMES: TableDefinition<'_, (&str, u64, u128), ()> =
    TableDefinition::new("request_times");
/// Requests that are not done.
pub(super) const IN_FLIGHT: TableDefinition<'_, (&str, u128), ()> = TableDefinition::new("in_flight");
/// namespace → (requests kept, newest id time that was evicted for want of room).
pub(super) const REQUEST_COUNTS: TableDefinition<'_, &str, (u64, u64)> =
    TableDefinition::new("request_counts");
/// (network, address) → row.
pub(super) const LEASES: TableDefinition<'_, (&str, u32), Bytes> = TableDefinition::new("leases");
pub(super) const UIDS: TableDefinition<'_, u32, Bytes> = TableDefinition::new("uids");
/// (VM, sequence) → row.
pub(super) const OUTBOX_STATE: TableDefinition<'_, (u128, u64), Bytes> = TableDefinition::new("outbox_state");
/// As [`OUTBOX_STATE`], for events of the guests' programs.
pub(super) const OUTBOX_AGENT: TableDefinition<'_, (u128, u64), Bytes> = TableDefinition::new("outbox_agent");
/// VM → (sequence, stream sequence) of its last acknowledged event.
pub(super) const POSITIONS: TableDefinition<'_, u128, (u64, u64)> = TableDefinition::new("positions");
pub(super) const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

pub(super) const META_INSTALLATION: &str = "installation";
pub(super) const META_STREAM: &str = "stream";
pub(super) const META_BOOT: &str = "boot";
pub(super) const META_DRAINING: &str = "draining";
pub(super) const META_SUBNETS: &str = "subnets";
pub(super) const META_NETWORKS: &str = "networks";
const COUNTER_COMMITS: &str = "commits";

/// Memory for redb's page cache. The journal of 1,000 VMs is a few MiB.
const CACHE_BYTES: usize = 16 << 20;
/// A larger journal is opened without reading every page for its checksum.
const VERIFY_BYTES: u64 = 512 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the outbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct OutboxUse {
    pub rows: u64,
    pub bytes: u64,
}

/// What a group of batches changed, for the listeners.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Keys with new events.
    pub woken: Vec<u128>,
    pub added: OutboxUse,
    pub removed: OutboxUse,
}

/// A group was not committed.
#[derive(Debug)]
pub(super) enum GroupFailure {
    NoSpace,
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

pub(super) struct Store {
    path: PathBuf,
    faults: Faults,
    db: RwLock<Option<Database>>,
    request_cap: u64,
}

impl Store {
    pub(super) fn open(path: &Path, request_cap: u64, faults: Faults) -> Result<Self, OpenError> {
        let db = open_database(path, faults.clone(), true)?;
        Ok(Self { path: path.to_owned(), faults, db: RwLock::new(Some(db)), request_cap })
    }

    /// Closes the file and opens it again, after an I/O error.
    pub(super) fn reopen(&self) -> Result<(), OpenError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        drop(db.take());
        *db = Some(open_database(&self.path, self.faults.clone(), false)?);
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.db.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn close(&self) {
        drop(self.db.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Runs `read` in a read transaction.
    pub(super) fn read<T>(
        &self,
        table: &'static str,
        read: impl FnOnce(&ReadTransaction) -> Result<T, ReadFailure>,
    ) -> Result<T, JournalError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(JournalError::Closed)?;
        let wrap = |source: BoxError| JournalError::Read { table, source: source.into() };
        let txn = db.begin_read().map_err(|e| wrap(e.into()))?;
        read(&txn).map_err(|e| match e {
            ReadFailure::Redb(source) => wrap(source.into()),
            ReadFailure::Row { table, key, source } => {
                JournalError::Row { table, key, source: source.into() }
            }
        })
    }

    /// Writes the installation's id into a new journal, before the writer starts.
    pub(super) fn put_installation(&self, id: InstallationId) -> Result<(), JournalError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(JournalError::Closed)?;
        let write = || -> Result<(), redb::Error> {
            let mut txn = db.begin_write()?;
            txn.set_quick_repair(true);
            txn.open_table(META)?.insert(META_INSTALLATION, id.to_string().as_str())?;
            txn.commit()?;
            Ok(())
        };
        write().map_err(|source| JournalError::Write { source: Arc::new(source) })
    }

    /// How many groups were ever committed.
    pub(super) fn commits(&self) -> Result<u64, JournalError> {
        self.read("counters", |txn| {
            Ok(txn.open_table(COUNTERS)?.get(COUNTER_COMMITS)?.map_or(0, |v| v.value()))
        })
    }

    /// Commits a group in one transaction. A batch that contradicts the rows is left out and
    /// answered with its own error; the others commit.
    pub(super) fn commit_group<'b>(
        &self,
        batches: impl Iterator<Item = &'b EncodedBatch>,
    ) -> Result<(Vec<Result<(), JournalError>>, Changes), GroupFailure> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| GroupFailure::Other(Arc::new(JournalError::Closed)))?;
        let mut txn = db.begin_write().map_err(|e| failure(e.into()))?;
        txn.set_durability(Durability::Immediate).map_err(|e| failure_other(e.into()))?;
        txn.set_quick_repair(true);
        let mut changes = Changes::default();
        let mut answers = Vec::new();
        {
            let mut tables = tables::Tables::open(&txn).map_err(failure)?;
            for batch in batches {
                let answer = tables.check(batch).map_err(failure)?;
                if answer.is_ok() {
                    for op in &batch.ops {
                        tables.apply(op, self.request_cap, &mut changes).map_err(failure)?;
                    }
                }
                answers.push(answer);
            }
            let mut counters = txn.open_table(COUNTERS).map_err(|e| failure(e.into()))?;
            let commits = counters.get(COUNTER_COMMITS).map_err(|e| failure(e.into()))?;
            let commits = commits.map_or(0, |v| v.value());
            counters.insert(COUNTER_COMMITS, commits + 1).map_err(|e| failure(e.into()))?;
        }
        txn.commit().map_err(|e| failure(e.into()))?;
        Ok((answers, changes))
    }

    /// Copies every table into a new journal at `path`, as of one moment.
    pub(super) fn copy_to(&self, path: &Path) -> Result<(), OpenError> {
        let wrap = |source: BoxError| OpenError::Open { path: path.to_owned(), source };
        let target = open_database(path, Faults::default(), true)?;
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| wrap(JournalError::Closed.into()))?;
        let from = db.begin_read().map_err(|e| wrap(e.into()))?;
        let mut to = target.begin_write().map_err(|e| wrap(e.into()))?;
        to.set_quick_repair(true);
        tables::copy_all(&from, &to).map_err(|e| wrap(e.into()))?;
        to.commit().map_err(|e| wrap(e.into()))
    }
}

/// A read failed below the store.
#[derive(Debug)]
pub(super) enum ReadFailure {
    Redb(redb::Error),
    Row { table: &'static str, key: String, source: super::rows::RowError },
}

impl<E: Into<redb::Error>> From<E> for ReadFailure {
    fn from(e: E) -> Self {
        Self::Redb(e.into())
    }
}

fn failure(error: redb::Error) -> GroupFailure {
    if let redb::Error::Io(io) = &error
        && matches!(io.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EDQUOT))
    {
        return GroupFailure::NoSpace;
    }
    GroupFailure::Other(Arc::new(error))
}

fn failure_other(source: BoxError) -> GroupFailure {
    GroupFailure::Other(source.into())
}

/// Opens the file behind the guard: verified and repaired in memory first, written only if that went
/// well. `verify` reads every page; after an I/O error in a running daemon the pages are known.
fn open_database(path: &Path, faults: Faults, verify: bool) -> Result<Database, OpenError> {
    let wrap = |source: BoxError| OpenError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| wrap(e.into()))?;
    let len = file.metadata().map_err(|e| wrap(e.into()))?.len();
    let backend = GuardedBackend::new(file, faults).map_err(|e| wrap(e.into()))?;
    let guard = backend.clone();
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(verify && len > 0 && len <= VERIFY_BYTES);
    // redb may panic on pages that it did not write.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let db = builder.create_with_backend(backend)?;
        if len == 0 {
            tables::create_all(&db)?;
        }
        Ok::<_, redb::Error>(db)
    }));
    let db = match opened {
        Ok(Ok(db)) => db,
        Ok(Err(error)) => return Err(classify_open(path, error)),
        Err(panic) => {
            let source = format!("redb panicked: {}", panic_message(&*panic)).into();
            return Err(OpenError::Damaged { path: path.to_owned(), source });
        }
    };
    guard.release().map_err(|e| wrap(e.into()))?;
    Ok(db)
}

fn classify_open(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    let damaged = match &error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => true,
        redb::Error::Io(e) => {
            matches!(e.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    };
    let source = Box::new(error);
    if damaged { OpenError::Damaged { path, source } } else { OpenError::Open { path, source } }
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl From<StorageError> for GroupFailure {
    fn from(e: StorageError) -> Self {
        failure(e.into())
    }
}
