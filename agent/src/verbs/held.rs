//! Names looked up once: folders and files that are held by descriptor, so that a link swapped in later changes nothing.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use drover_schemas::ErrorBody;
use drover_schemas::guest::FileRange;
use drover_schemas::guest::ranges;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::{file, invalid};

/// Opens `path`, with links on the way followed but for the magic ones of `/proc`.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        // Before Linux 5.6; such a guest follows its magic links.
        Err(Errno::NOSYS) => Ok(fs::openat(CWD, path, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// A handle that looks at what `path` is without opening it, so neither a pipe nor a device notices.
pub(super) fn look(path: &Path, follow: bool) -> io::Result<OwnedFd> {
    open(path, if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW })
}

/// The path of a held file: it names that file whatever became of its name.
pub(super) fn again(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A regular file behind a handle, to be read. Never waits.
pub(super) fn readable(handle: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(CWD, again(handle), flags, Mode::empty())?))
}

/// A name in a folder that is held.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) dir: File,
    pub(super) name: OsString,
    /// As the caller wrote it, for messages.
    pub(super) path: PathBuf,
}

impl Name {
    /// Holds the folder of `path`.
    pub(super) fn find(path: PathBuf) -> Result<Self, ErrorBody> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(invalid(format!("{} is not a name in a folder", path.display())));
        };
        let held = open(dir, OFlags::RDONLY | OFlags::DIRECTORY);
        let dir = held.map_err(|e| file::refused("open the directory", dir, &e))?.into();
        Ok(Self { dir, name: name.to_owned(), path })
    }

    /// What has the name; `None` if nothing has. A link is not followed.
    pub(super) fn stat(&self) -> Result<Option<Stat>, ErrorBody> {
        match fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.refused("look at", errno)),
        }
    }

    /// What the system said about the name.
    pub(super) fn refused(&self, act: &str, error: impl Into<io::Error>) -> ErrorBody {
        file::refused(act, &self.path, &error.into())
    }

    /// A path of a name beside this one.
    pub(super) fn beside(&self, name: &OsStr) -> PathBuf {
        again(&self.dir).join(name)
    }
}

/// Which kind of file a mode states.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Milliseconds since the Unix epoch.
pub(super) const fn mtime_ms(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000)
}

/// The bytes of a file that are not holes. A file system that cannot tell has none.
pub(super) fn data(file: &impl AsFd, size: u64) -> io::Result<Vec<FileRange>> {
    ranges::scan(size, |from| {
        let data = match fs::seek(file, SeekFrom::Data(from)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, size))),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some((data, fs::seek(file, SeekFrom::Hole(data))?)))
    })
}
