//! The state folder around the journal: its version, its lock, the installation's id, and the space
//! set aside.
//!
//! Order at start: the version is read before anything is opened, locked or made, so that a folder
//! of a newer drover is not touched; then the lock, then the id.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_schemas::InstallationId;

use super::backend::Faults;
use super::error::OpenError;
use super::migrate::{STEPS, migrate};

/// Version of the state folder that this drover writes, and the newest that it reads.
pub const STATE_VERSION: u32 = 1;

pub(super) const VERSION_FILE: &str = "state.version";
const LOCK_FILE: &str = "lock";
const INSTALLATION_FILE: &str = "installation";
pub(crate) const JOURNAL_FILE: &str = "journal.redb";
const RESERVE_FILE: &str = "reserve";

/// How long a lock is waited for.
const LOCK_WITHIN: Duration = Duration::from_millis(500);
/// Pause between attempts to lock.
const LOCK_AGAIN: Duration = Duration::from_millis(10);

pub(super) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File { operation, path, source }
}

/// A locked state folder. The lock goes with the value (and with the process).
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Checks, makes and locks the folder.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        check_version(path)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(file_error("make the state folder", path))?;
        let lock = lock(path)?;
        // Again under the lock: another daemon may have upgraded the folder in between.
        let found = check_version(path)?;
        if let Some(from) = found.filter(|found| *found < STATE_VERSION) {
            migrate(path, from, STATE_VERSION, STEPS)?;
        }
        if found != Some(STATE_VERSION) {
            write_whole(path, VERSION_FILE, format!("{STATE_VERSION}\n").as_bytes())?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL_FILE)
    }

    pub(super) fn reserve(&self, bytes: u64, faults: Faults) -> Reserve {
        Reserve { path: self.path.join(RESERVE_FILE), bytes, faults }
    }

    /// The installation's id: from the folder, else from the journal, else a new one; written to the
    /// folder where it is missing.
    pub(super) fn installation(&self, journal: Option<&str>) -> Result<InstallationId, OpenError> {
        let path = self.path.join(INSTALLATION_FILE);
        let folder = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(file_error("read", &path)(e)),
        };
        let parse = |text: &str| {
            text.parse::<InstallationId>()
                .map_err(|e| file_error("understand", &path)(io::Error::new(io::ErrorKind::InvalidData, e)))
        };
        match (folder.as_deref(), journal) {
            (Some(folder), Some(journal)) if folder != journal => {
                Err(OpenError::Installation { journal: journal.to_owned(), folder: folder.to_owned() })
            }
            (Some(id), _) => parse(id),
            (None, journal) => {
                let id = journal.map_or_else(|| Ok(InstallationId::generate()), parse)?;
                write_whole(&self.path, INSTALLATION_FILE, format!("{id}\n").as_bytes())?;
                Ok(id)
            }
        }
    }
}

/// The version of the folder, or `None` for one that is still to be made.
fn check_version(folder: &Path) -> Result<Option<u32>, OpenError> {
    let path = folder.join(VERSION_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if folder.join(JOURNAL_FILE).exists() {
                let reason = "it is missing beside a journal".to_owned();
                return Err(OpenError::Version { path, reason });
            }
            return Ok(None);
        }
        Err(e) => return Err(file_error("read", &path)(e)),
    };
    let found: u32 = text.trim().parse().map_err(|_| OpenError::Version {
        path,
        reason: format!("found {:?}", text.chars().take(32).collect::<String>()),
    })?;
    if found > STATE_VERSION {
        return Err(OpenError::Newer { path: folder.to_owned(), found, supported: STATE_VERSION });
    }
    Ok(Some(found))
}

#[allow(
    clippy::disallowed_methods,
    reason = "a start is off the runtime, and a lock tells nobody when it is free"
)]
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file_error("open", &path))?;
    // A process that was being started by the one before holds the lock until it runs its own program.
    let until = Instant::now() + LOCK_WITHIN;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < until {
        std::thread::sleep(LOCK_AGAIN);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let holder = match file.read_to_string(&mut holder) {
                Ok(n) if n > 0 => Some(holder.trim().to_owned()),
                _ => None,
            };
            return Err(OpenError::InUse { path: folder.to_owned(), holder });
        }
        Err(TryLockError::Error(e)) => return Err(file_error("lock", &path)(e)),
    }
    let mut write_pid = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid().map_err(file_error("write the process id to", &path))?;
    Ok(file)
}

/// Writes a small file so that after a crash it is there whole or not at all.
fn write_whole(folder: &Path, name: &str, content: &[u8]) -> Result<(), OpenError> {
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(file_error("write", &path))
}

/// Space set aside on the disk of the journal, given up when the disk is full so that deletes and
/// ends of VMs still commit.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    faults: Faults,
}

impl Reserve {
    /// Sets the space aside, where it is not yet.
    pub(super) fn take(&self) -> io::Result<()> {
        self.faults.check_reserve()?;
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes.max(1));
        match taken {
            Ok(()) => Ok(()),
            // A file system that cannot preallocate has nothing to set aside.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => {
                self.release();
                Err(e.into())
            }
        }
    }

    /// Gives the space up.
    pub(super) fn release(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "space set aside could not be released");
        }
        self.faults.reserve_released();
    }
}
