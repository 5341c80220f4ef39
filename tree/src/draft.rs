//! A folder on its way: under a name of its own until it is whole.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::TreeError;
use crate::error::failed;

/// The folder that will have a name in another one; removed when dropped, unless it was placed.
#[derive(Debug)]
pub struct Draft {
    above: OwnedFd,
    hidden: OsString,
    folder: OwnedFd,
    is_placed: bool,
}

impl Draft {
    /// Makes it in `above`, as `hidden`, with rights for its maker alone.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn new(above: OwnedFd, hidden: OsString) -> Result<Self, TreeError> {
        let path = Path::new(&hidden);
        fs::mkdirat(&above, path, Mode::from_raw_mode(0o700)).map_err(failed("make", path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = fs::openat(&above, path, flags, Mode::empty()).map_err(failed("open", path))?;
        Ok(Self { above, hidden, folder, is_placed: false })
    }

    /// The folder.
    #[must_use]
    pub const fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Gives it its name. What had the name before is removed afterwards, if it may be replaced: a reader sees the one
    /// or the other.
    ///
    /// # Errors
    /// [`TreeError::Taken`], or the system's refusal: then nothing has changed.
    pub fn place(mut self, name: &Path, replace: bool) -> Result<(), TreeError> {
        let hidden = self.hidden.clone();
        let rename = |flags| fs::renameat_with(&self.above, &hidden, &self.above, name, flags);
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => self.is_placed = true,
            // Then the hidden name has what is to be removed.
            Err(Errno::EXIST) if replace => rename(RenameFlags::EXCHANGE).map_err(failed("replace", name))?,
            Err(Errno::EXIST) => return Err(TreeError::Taken { path: name.to_owned() }),
            Err(errno) => return Err(failed("rename the folder to", name)(errno)),
        }
        // The rename itself must survive a crash.
        fs::fsync(&self.above).map_err(failed("write to disk", name))
    }

    /// The hidden name's path: it leads there whatever becomes of the names above.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.above.as_raw_fd())).join(&self.hidden)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_placed {
            return;
        }
        // Follows no link; what had the name before may be a file or a link.
        if std::fs::remove_dir_all(self.path()).is_err() {
            let _ = fs::unlinkat(&self.above, &self.hidden, AtFlags::empty());
        }
    }
}
