//! The file below redb, with one addition: until [`GuardedBackend::release`] every write is kept in
//! memory. So a journal is opened, repaired and verified first, and a damaged one is still byte for
//! byte what it was when the open has failed.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// What redb did to the file while it was guarded, in order.
enum Held {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Sync,
}

struct Inner {
    file: FileBackend,
    /// `None` once writes go through.
    held: Mutex<Option<Vec<Held>>>,
    passing: AtomicBool,
    faults: Faults,
}

/// A disk that can be full, for tests. Costs one relaxed load a write.
#[derive(Clone, Default)]
pub(super) struct Faults {
    /// Writes to the journal fail.
    full: Arc<AtomicBool>,
    /// The space set aside cannot be had back.
    scarce: Arc<AtomicBool>,
}

impl Faults {
    /// Makes every write and growth fail with `ENOSPC` until the reserve is released; `false` ends
    /// the shortage.
    #[cfg(test)]
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
        self.scarce.store(full, Ordering::Relaxed);
    }

    pub(super) fn reserve_released(&self) {
        self.full.store(false, Ordering::Relaxed);
    }

    pub(super) fn check_reserve(&self) -> io::Result<()> {
        no_space_if(self.scarce.load(Ordering::Relaxed))
    }

    fn check(&self) -> io::Result<()> {
        no_space_if(self.full.load(Ordering::Relaxed))
    }
}

fn no_space_if(full: bool) -> io::Result<()> {
    if full { Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)) } else { Ok(()) }
}

/// A redb backend whose writes can be held back; clones share the file.
#[derive(Clone)]
pub(super) struct GuardedBackend(Arc<Inner>);

impl fmt::Debug for GuardedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBackend").finish_non_exhaustive()
    }
}

impl GuardedBackend {
    pub(super) fn new(file: File, faults: Faults) -> Result<Self, redb::DatabaseError> {
        Ok(Self(Arc::new(Inner {
            file: FileBackend::new(file)?,
            held: Mutex::new(Some(Vec::new())),
            passing: AtomicBool::new(false),
            faults,
        })))
    }

    /// Writes what was held, in the order and with the barriers of redb, and lets writes through.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        for op in held.iter().flatten() {
            match op {
                Held::Write { offset, data } => {
                    self.0.faults.check()?;
                    self.0.file.write(*offset, data)?;
                }
                Held::SetLen(len) => self.0.file.set_len(*len)?,
                Held::Sync => self.0.file.sync_data()?,
            }
        }
        *held = None;
        self.0.passing.store(true, Ordering::Release);
        Ok(())
    }

    /// Runs `guarded` on the held writes, or `through` on the file once writes go through.
    fn either<T>(
        &self,
        guarded: impl FnOnce(&FileBackend, &mut Vec<Held>) -> io::Result<T>,
        through: impl FnOnce(&FileBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        if !self.0.passing.load(Ordering::Acquire) {
            let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = held.as_mut() {
                return guarded(&self.0.file, held);
            }
        }
        through(&self.0.file)
    }
}

fn guarded_len(file: &FileBackend, held: &[Held]) -> io::Result<u64> {
    let mut len = file.len()?;
    for op in held {
        match op {
            Held::SetLen(n) => len = *n,
            Held::Write { offset, data } => len = len.max(offset + data.len() as u64),
            Held::Sync => {}
        }
    }
    Ok(len)
}

/// Reads as if the held writes had been made.
fn guarded_read(file: &FileBackend, held: &[Held], offset: u64, out: &mut [u8]) -> io::Result<()> {
    let end = offset + out.len() as u64;
    if end > guarded_len(file, held)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let in_file = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
    if in_file > 0 {
        file.read(offset, &mut out[..in_file])?;
    }
    out[in_file..].fill(0);
    for op in held {
        match op {
            Held::Write { offset: at, data } => {
                let (from, to) = (offset.max(*at), end.min(at + data.len() as u64));
                if from < to {
                    let (dst, src, n) =
                        ((from - offset) as usize, (from - at) as usize, (to - from) as usize);
                    out[dst..dst + n].copy_from_slice(&data[src..src + n]);
                }
            }
            Held::SetLen(len) if *len < end => out[len.saturating_sub(offset) as usize..].fill(0),
            Held::SetLen(_) | Held::Sync => {}
        }
    }
    Ok(())
}

impl StorageBackend for GuardedBackend {
    fn len(&self) -> io::Result<u64> {
        self.either(|file, held| guarded_len(file, held), StorageBackend::len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.0.passing.load(Ordering::Acquire) {
            return self.0.file.read(offset, out);
        }
        self.either(
            |file, held| guarded_read(file, held, offset, out),
            |_| Err(io::Error::other("the guard was released during a read")),
        )
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.faults.check()?;
        self.either(
            |_, held| {
                held.push(Held::SetLen(len));
                Ok(())
            },
            |file| file.set_len(len),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.either(
            |_, held| {
                held.push(Held::Sync);
                Ok(())
            },
            StorageBackend::sync_data,
        )
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.faults.check()?;
        self.either(
            |_, held| {
                held.push(Held::Write { offset, data: data.to_vec() });
                Ok(())
            },
            |file| file.write(offset, data),
        )
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}
