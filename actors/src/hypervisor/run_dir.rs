//! The run directory of a VM: paths, creation, safe opening, records and removal.
//!
//! It is root's, with one sub-directory that the VMM may own and that holds nothing but sockets. A VMM can be
//! hostile, so nothing here follows a link: files are opened `O_NOFOLLOW|O_NONBLOCK` and must be what they
//! are supposed to be. Paths are short because a socket's path ends at 107 bytes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use drover_schemas::id::VmId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{ExitRecord, PidRecord, VERSION, file};
use super::ring;

/// The longest path of a run root: `/` + 26 + `/s/v_65535` must fit the 107 bytes of a socket's path.
const ROOT_MAX: usize = 107 - 27 - 10;
/// Longest record that is read.
const RECORD_MAX: u64 = 1 << 20;

/// A directory cannot hold run directories.
#[derive(Debug, thiserror::Error)]
pub enum RunRootError {
    /// Sockets below it would have paths that the kernel refuses.
    #[error("run directory {path:?} is too long: at most {ROOT_MAX} bytes, because socket paths end at 107")]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
    /// The VMM's option parser would misread it.
    #[error("run directory {path:?} must be absolute and free of spaces, commas, quotes, brackets and `=`")]
    BadCharacter {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot create run directory {path:?}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be listed.
    #[error("cannot list run directory {path:?}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One step with a file of a run directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path:?}")]
pub struct RunDirError {
    /// What was tried.
    pub step: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// The directory that holds the run directories of one installation.
#[derive(Debug, Clone)]
pub struct RunRoot {
    path: PathBuf,
}

impl RunRoot {
    /// Checks that sockets below `path` will work; touches nothing.
    ///
    /// # Errors
    /// The path is too long, relative, or has characters that the VMM's options cannot carry.
    pub fn new(path: &Path) -> Result<Self, RunRootError> {
        let path = path.to_owned();
        if path.as_os_str().len() > ROOT_MAX {
            return Err(RunRootError::TooLong { path });
        }
        let safe = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
        if !path.is_absolute() || !path.to_str().is_some_and(|text| text.chars().all(safe)) {
            return Err(RunRootError::BadCharacter { path });
        }
        Ok(Self { path })
    }

    /// Makes the directory, readable by all, writable by us.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&self) -> Result<(), RunRootError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.path)
            .map_err(|source| RunRootError::Create { path: self.path.clone(), source })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run directory of `vm_id`.
    #[must_use]
    pub fn vm(&self, vm_id: VmId) -> RunDir {
        RunDir { path: self.path.join(vm_id.to_string().to_ascii_lowercase()), vm_id }
    }

    /// Where holders send their notices.
    #[must_use]
    pub fn notify_socket(&self) -> PathBuf {
        self.path.join(file::NOTIFY_SOCKET)
    }

    /// The run directories that exist, of VMs known or not.
    ///
    /// # Errors
    /// The directory cannot be listed; a missing one is empty.
    pub fn list(&self) -> Result<Vec<RunDir>, RunRootError> {
        let failed = |source| RunRootError::List { path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let id = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
            if let (Some(id), true) = (id, entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                found.push(self.vm(id));
            }
        }
        Ok(found)
    }
}

/// The run directory of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    vm_id: VmId,
}

impl RunDir {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VM that it belongs to.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.vm_id
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of the sockets, the VMM's own.
    #[must_use]
    pub fn sockets(&self) -> PathBuf {
        self.path.join(file::SOCKETS)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets().join(name)
    }

    /// The VMM's HTTP API.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.socket(file::API_SOCKET)
    }

    /// The hybrid vsock: the host connects and names the guest's port.
    #[must_use]
    pub fn vsock_socket(&self) -> PathBuf {
        self.socket(file::VSOCK_SOCKET)
    }

    /// The serial console; the holder is its only client.
    #[must_use]
    pub fn serial_socket(&self) -> PathBuf {
        self.socket(file::SERIAL_SOCKET)
    }

    /// The FIFO of the VMM's events.
    #[must_use]
    pub fn event_fifo(&self) -> PathBuf {
        self.file(file::EVENT_FIFO)
    }

    /// The FIFO whose bytes go to the guest's serial console.
    #[must_use]
    pub fn console_in(&self) -> PathBuf {
        self.file(file::CONSOLE_IN)
    }

    /// Makes the directory and its sub-directory for sockets; `owner` is the uid of the VMM if not ours.
    ///
    /// # Errors
    /// A directory cannot be made or given to the owner.
    pub fn create(&self, owner: Option<u32>) -> Result<(), RunDirError> {
        let sockets = self.sockets();
        for dir in [&self.path, &sockets] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .and_then(|()| must_be_dir(dir))
                .map_err(|source| self.failed("create directory", dir, source))?;
        }
        if let Some(uid) = owner {
            std::os::unix::fs::lchown(&sockets, Some(uid), Some(uid))
                .map_err(|source| self.failed("give away", &sockets, source))?;
            fs::set_permissions(&sockets, Permissions::from_mode(0o700))
                .map_err(|source| self.failed("set the mode of", &sockets, source))?;
        }
        Ok(())
    }

    /// Removes what an earlier process left and makes the FIFOs, so that a new process can start; `owner` is
    /// the uid of the VMM if not ours.
    ///
    /// The rings stay: their offsets go on.
    ///
    /// # Errors
    /// A file cannot be removed or made.
    pub fn prepare(&self, owner: Option<u32>) -> Result<(), RunDirError> {
        for name in [file::PID, file::EXIT, file::EVENT_FIFO, file::CONSOLE_IN, file::STDERR] {
            self.unlink(&self.file(name))?;
        }
        self.unlink(&self.file(file::STDERR_TAIL))?;
        self.unlink(&self.file(&format!("{}.1", file::STDERR_TAIL)))?;
        self.clear_sockets()?;
        for name in [file::EVENT_FIFO, file::CONSOLE_IN] {
            let path = self.file(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                .map_err(|errno| self.failed("create FIFO", &path, errno.into()))?;
        }
        if let Some(uid) = owner {
            // The VMM may write events, and do nothing else with the FIFO.
            let path = self.event_fifo();
            std::os::unix::fs::lchown(&path, None, Some(uid))
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o620)))
                .map_err(|source| self.failed("give away", &path, source))?;
        }
        Ok(())
    }

    /// Removes everything in the directory of the sockets: a VMM does not start over stale ones. What an
    /// earlier one put there is the VM's user's own, so no link in it is followed.
    fn clear_sockets(&self) -> Result<(), RunDirError> {
        let dir = self.sockets();
        let entries = fs::read_dir(&dir).map_err(|source| self.failed("list", &dir, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| self.failed("list", &dir, source))?;
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir_all(&path).map_err(|source| self.failed("remove", &path, source))?;
            } else {
                self.unlink(&path)?;
            }
        }
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), RunDirError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", path, error)),
            _ => Ok(()),
        }
    }

    /// Opens a regular file for reading; a link, FIFO or device in its place is an error.
    ///
    /// # Errors
    /// The file is not there, cannot be opened, or is not a regular file.
    pub fn open_regular(&self, name: &str) -> io::Result<File> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(self.file(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        Ok(file)
    }

    /// Opens `console.in` for writing without waiting; an error means that no holder reads it.
    ///
    /// # Errors
    /// No holder has it open, or it is not a FIFO.
    pub fn open_console_in(&self) -> io::Result<File> {
        use std::os::unix::fs::FileTypeExt;
        let file = fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(self.console_in())?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a FIFO"));
        }
        Ok(file)
    }

    /// Opens (and makes) the file that is locked for as long as a holder lives, without locking it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open_lock(&self) -> Result<File, RunDirError> {
        let path = self.file(file::LOCK);
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .map_err(|source| self.failed("open", &path, source))
    }

    /// A holder lives, or is being started.
    ///
    /// # Errors
    /// The lock cannot be asked.
    pub fn is_held(&self) -> Result<bool, RunDirError> {
        let path = self.file(file::LOCK);
        let lock = match self.open_regular(file::LOCK) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(self.failed("open", &path, source)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(source)) => Err(self.failed("ask the lock of", &path, source)),
        }
    }

    /// Reads a record; `None` if there is no such file.
    fn read_record<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RunDirError> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let failed = |step, source| self.failed(step, &self.file(name), source);
        let opened = match self.open_regular(name) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", error)),
        };
        let mut text = Vec::new();
        opened.take(RECORD_MAX).read_to_end(&mut text).map_err(|e| failed("read", e))?;
        let invalid =
            |e: serde_json::Error| failed("understand", io::Error::new(io::ErrorKind::InvalidData, e));
        let Version { version } = serde_json::from_slice(&text).map_err(invalid)?;
        if version > VERSION {
            let text = format!("it has version {version}, this program reads up to {VERSION}");
            return Err(failed("understand", io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        serde_json::from_slice(&text).map(Some).map_err(invalid)
    }

    /// The launch record as the daemon wrote it.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn launch_record(&self) -> Result<Option<super::process::LaunchRecord>, RunDirError> {
        self.read_record(file::RECORD)
    }

    /// The running process as the holder wrote it.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn pid_record(&self) -> Result<Option<PidRecord>, RunDirError> {
        self.read_record(file::PID)
    }

    /// The end of the last process as the holder wrote it.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn exit_record(&self) -> Result<Option<ExitRecord>, RunDirError> {
        self.read_record(file::EXIT)
    }

    /// Writes a record so that a reader sees the old one or the new one and nothing else.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_record<T: Serialize>(&self, name: &str, record: &T) -> Result<(), RunDirError> {
        let path = self.file(name);
        let temp = self.file(&format!("{name}.new"));
        self.unlink(&temp)?;
        let text = serde_json::to_vec(record)
            .map_err(|e| self.failed("encode", &path, io::Error::new(io::ErrorKind::InvalidData, e)))?;
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&temp)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temp, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| self.failed("write", &path, source))
    }

    /// The end of what the VMM wrote to stdout and stderr, at most `max` bytes, as text.
    #[must_use]
    pub fn stderr_tail(&self, max: usize) -> String {
        let mut bytes = ring::tail(self, file::STDERR_TAIL, max).map(|chunk| chunk.data).unwrap_or_default();
        if bytes.len() < max {
            let mut head = Vec::new();
            if let Ok(opened) = self.open_regular(file::STDERR) {
                // A head that cannot be read is evidence that is missing, not a failure of the caller's.
                let _ = opened.take(super::record::STDERR_HEAD).read_to_end(&mut head);
            }
            let from = head.len().saturating_sub(max - bytes.len());
            let mut joined = head.split_off(from);
            joined.append(&mut bytes);
            bytes = joined;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of the serial console's output, at most `max` bytes, as text.
    #[must_use]
    pub fn console_tail(&self, max: usize) -> String {
        let bytes = ring::tail(self, file::CONSOLE, max).map(|chunk| chunk.data).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Removes the directory with everything in it; one that is not there is removed already.
    ///
    /// # Errors
    /// Something in it cannot be removed, or a holder still lives in it.
    pub fn remove(&self) -> Result<(), RunDirError> {
        if self.is_held()? {
            let busy = io::Error::new(io::ErrorKind::ResourceBusy, "a holder still lives in it");
            return Err(self.failed("remove", &self.path, busy));
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, step: &'static str, path: &Path, source: io::Error) -> RunDirError {
        RunDirError { step, path: path.to_owned(), source }
    }
}

fn must_be_dir(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "something else is in its place"));
    }
    // Anyone else's directory could be swapped under us.
    if meta.uid() != nix::unistd::geteuid().as_raw() && !path.ends_with(file::SOCKETS) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    Ok(())
}
