//! The state folder and its lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::DevError;

/// The folder of one `drover dev`, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it is absent, and locks it.
    pub fn open(root: Option<PathBuf>) -> Result<Self, DevError> {
        let root = match root {
            Some(root) => std::path::absolute(&root).map_err(DevError::file("resolve", root))?,
            None => default_root()?,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(DevError::file("make the folder", &root))?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(DevError::file("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DevError::InUse { path: root }),
            Err(errno) => Err(DevError::file("lock", path)(errno.into())),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a folder in the folder.
    pub fn folder(&self, name: &str) -> Result<PathBuf, DevError> {
        let path = self.path(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(DevError::file("make the folder", &path))?;
        Ok(path)
    }

    /// Writes a file that only its owner may read: under another name first, so that a reader sees
    /// all of it or the one before.
    pub fn write_private(&self, name: &str, content: &str) -> Result<PathBuf, DevError> {
        let (path, partial) = (self.path(name), self.path(&format!(".{name}.part")));
        let _ = std::fs::remove_file(&partial);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&partial)
            .map_err(DevError::file("create", &partial))?;
        file.write_all(content.as_bytes()).map_err(DevError::file("write", &partial))?;
        std::fs::rename(&partial, &path).map_err(DevError::file("write", &path))?;
        Ok(path)
    }
}

/// Where the state lies that no flag names.
pub fn default_root() -> Result<PathBuf, DevError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/drover/dev"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("drover/dev")).ok_or(DevError::NoHome)
}
