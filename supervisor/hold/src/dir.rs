//! The run directory by descriptor: nothing in it is followed, and nothing is taken for what it is not.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

/// An open run directory.
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    /// Opens it; a link in its place is an error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Another descriptor of it.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(&self.0, 3)?))
    }

    fn open_at(&self, name: &str, flags: OFlags, kind: FileType) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600))?;
        let found = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if found != kind {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is a {found:?}")));
        }
        Ok(fd.into())
    }

    /// Opens a file for reading.
    pub fn read(&self, name: &str) -> io::Result<File> {
        self.open_at(name, OFlags::RDONLY, FileType::RegularFile)
    }

    /// Opens a file for appending.
    pub fn append(&self, name: &str) -> io::Result<File> {
        self.open_at(name, OFlags::RDWR | OFlags::APPEND, FileType::RegularFile)
    }

    /// Makes a file that must not be there.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        self.open_at(name, flags, FileType::RegularFile)
    }

    /// Opens a FIFO for both ways, so that it never reads as ended and its writers never wait for a reader.
    pub fn fifo(&self, name: &str) -> io::Result<File> {
        self.open_at(name, OFlags::RDWR, FileType::Fifo)
    }

    /// Removes a file; one that is not there is removed already.
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives a file another name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Writes a record so that a reader sees the old one or the new one; `durable` also survives a power cut.
    pub fn write(&self, name: &str, content: &[u8], durable: bool) -> io::Result<()> {
        let temp = format!("{name}.new");
        self.unlink(&temp)?;
        let mut file = self.create(&temp)?;
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        self.rename(&temp, name)?;
        if durable {
            rustix::fs::fsync(&self.0)?;
        }
        Ok(())
    }
}
