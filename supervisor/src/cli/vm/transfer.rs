//! A file of this machine at one end of a copy: read and written by a thread, with its holes left out, and gone on with
//! where an earlier copy broke.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use drover_actors::images::hex;
use drover_schemas::guest::FileRange;
use drover_schemas::guest::ranges::{self, Walk};
use drover_schemas::{ErrorBody, ErrorCode};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FlockOperation, OFlags, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::super::exit::CliError;
use crate::client::ClientError;

/// The most that is read in one go, in bytes.
const BATCH: u64 = 256 * 1024;

/// Opens what is to be sent, and looks at what it is. Without waiting: a pipe is to be refused, and not waited for.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), CliError> {
    let failed = |action| move |source| CliError::File { action, path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    let file: File = file.map_err(|e| failed("open")(e.into()))?.into();
    let metadata = file.metadata().map_err(failed("look at"))?;
    Ok((file, metadata))
}

/// The bytes of a file that are not holes.
pub(super) fn data(file: &File, size: u64) -> io::Result<Vec<FileRange>> {
    ranges::scan(size, |from| {
        let data = match rustix::fs::seek(file, SeekFrom::Data(from)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, size))),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some((data, rustix::fs::seek(file, SeekFrom::Hole(data))?)))
    })
}

/// A name for what a copy leaves if it breaks: the same for the same copy of the same, unchanged file.
pub(super) fn token(parts: &[&dyn std::fmt::Debug]) -> String {
    let text = format!("{parts:?}");
    let mut name = hex(&Sha256::digest(text.as_bytes()));
    name.truncate(32);
    name
}

/// The SHA-256 of a file as it is.
pub(super) async fn digest(file: &File, size: u64) -> io::Result<String> {
    let file = file.try_clone()?;
    let work = move || {
        let mut hash = Sha256::new();
        pass(&file, 0, size, &mut hash)?;
        Ok(hex(&hash.finalize()))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Takes what is in the file into the digest; beyond its end that is zeros.
fn pass(file: &File, off: u64, len: u64, hash: &mut Sha256) -> io::Result<()> {
    let mut buf = vec![0; len.min(BATCH) as usize];
    let mut at = 0;
    while at < len {
        let want = (len - at).min(BATCH) as usize;
        let got = match file.read_at(&mut buf[..want], off + at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            got => got?,
        };
        if got == 0 {
            buf.fill(0);
            while at < len {
                let zeros = (len - at).min(BATCH);
                hash.update(&buf[..zeros as usize]);
                at += zeros;
            }
            return Ok(());
        }
        hash.update(&buf[..got]);
        at += got as u64;
    }
    Ok(())
}

/// Reads the ranges of a file into a pipe. The task's result is the digest of the whole file.
pub(super) fn feed(
    file: File,
    mut walk: Walk,
    bar: ProgressBar,
) -> io::Result<(pipe::Receiver, JoinHandle<io::Result<String>>)> {
    let (reader, mut writer) = io::pipe()?;
    let work = move || {
        let mut hash = Sha256::new();
        let mut buf = vec![0; BATCH as usize];
        while let Some(step) = walk.step(BATCH) {
            pass(&file, step.off - step.gap, step.gap, &mut hash)?;
            let part = &mut buf[..step.len as usize];
            file.read_exact_at(part, step.off)?;
            hash.update(&*part);
            writer.write_all(part)?;
            bar.inc(step.len);
        }
        // The pipe's end tells the other side that all has come, while the tail is still read.
        drop(writer);
        pass(&file, walk.size() - walk.rest(), walk.rest(), &mut hash)?;
        Ok(hex(&hash.finalize()))
    };
    Ok((pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?, tokio::task::spawn_blocking(work)))
}

/// Writes what comes out of a pipe to the ranges of a file. The task's result is the digest of the whole file.
pub(super) fn store(
    file: File,
    mut walk: Walk,
    bar: ProgressBar,
) -> io::Result<(pipe::Sender, JoinHandle<io::Result<String>>)> {
    let (mut reader, writer) = io::pipe()?;
    let work = move || {
        let mut hash = Sha256::new();
        let mut buf = vec![0; BATCH as usize];
        while let Some(mut step) = walk.step(u64::MAX) {
            pass(&file, step.off - step.gap, step.gap, &mut hash)?;
            while step.len > 0 {
                // As much as is there: what came before a copy breaks is then in the file.
                let want = step.len.min(BATCH) as usize;
                let got = match reader.read(&mut buf[..want]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    got => got?,
                };
                file.write_all_at(&buf[..got], step.off)?;
                hash.update(&buf[..got]);
                bar.inc(got as u64);
                step.off += got as u64;
                step.len -= got as u64;
            }
        }
        pass(&file, walk.size() - walk.rest(), walk.rest(), &mut hash)?;
        file.set_len(walk.size())?;
        file.sync_all()?;
        Ok(hex(&hash.finalize()))
    };
    Ok((pipe::Sender::from_owned_fd(OwnedFd::from(writer))?, tokio::task::spawn_blocking(work)))
}

/// What the name `name` of this machine is called until its copy is complete.
pub(super) fn hidden(name: &OsStr, token: &str) -> OsString {
    let mut hidden = OsString::from(".");
    // Leaves room for the rest within the 255 bytes of a name.
    hidden.push(name.to_string_lossy().chars().take(40).collect::<String>());
    hidden.push(format!(".{token}.part"));
    hidden
}

/// Where in the guest something called `name` goes: into a folder if the path ends like one.
pub(super) fn place(to: String, name: Option<&OsStr>) -> String {
    match name {
        Some(name) if to.ends_with('/') => format!("{to}{}", name.to_string_lossy()),
        _ => to,
    }
}

/// What the thread at this end of a stream came to.
pub(super) async fn here(
    thread: JoinHandle<io::Result<String>>,
    failed: impl FnOnce(io::Error) -> CliError,
) -> Result<String, CliError> {
    thread.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(failed)
}

/// The results of a stream and of its end here. A stream that broke because this end did is this end's failure.
pub(super) fn both<R, T>(
    ended: Result<R, ClientError>,
    here: Result<T, CliError>,
) -> Result<(R, T), CliError> {
    match (ended, here) {
        (Ok(result), Ok(here)) => Ok((result, here)),
        (Ok(_) | Err(ClientError::Input(_) | ClientError::Output(_)), Err(error)) => Err(error),
        (Err(error), _) => Err(error.into()),
    }
}

/// What has come of a copy to this machine, under a name of its own until it is complete.
pub(super) struct Partial {
    pub(super) file: File,
    path: PathBuf,
    /// Whether it stays if it is not kept: it may be gone on with.
    pub(super) stays: bool,
}

impl Partial {
    /// Opens it, beside `target`.
    pub(super) fn beside(target: &Path, token: &str) -> Result<Self, CliError> {
        let name = target
            .file_name()
            .ok_or_else(|| CliError::Usage(format!("{} names no file", target.display())))?;
        let path = target.with_file_name(hidden(name, token));
        let failed = |action, source: io::Error| CliError::File { action, path: path.clone(), source };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, rustix::fs::Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| failed("create", e.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let text = format!("another copy to {} is on its way; wait for its end", target.display());
                Err(refused(ErrorBody::new(ErrorCode::Busy, text)))
            }
            // Not every file system has locks.
            _ => Ok(Self { file, path, stays: false }),
        }
    }

    /// How much has come, in bytes.
    pub(super) fn len(&self) -> Result<u64, CliError> {
        let meta = self.file.metadata();
        let failed = |source| CliError::File { action: "look at", path: self.path.clone(), source };
        let meta = meta.map_err(failed)?;
        if !meta.is_file() {
            return Err(CliError::Usage(format!("{} is not a file; remove it", self.path.display())));
        }
        Ok(meta.len())
    }

    /// Refuses a disk that has no room for `needed` bytes.
    pub(super) fn room(&self, needed: u64) -> Result<(), CliError> {
        room(&self.file, &self.path, needed)
    }

    /// Gives it its permissions, its time and its name.
    pub(super) fn keep(mut self, target: &Path, mode: u32, mtime_ms: Option<i64>) -> Result<(), CliError> {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = |action| {
            let path = target.to_owned();
            move |source| CliError::File { action, path, source }
        };
        // A guest says who may read and write, and nothing about whose rights the file runs with here.
        let permissions = std::fs::Permissions::from_mode(mode & 0o777);
        self.file.set_permissions(permissions).map_err(failed("set the mode of"))?;
        if let Some(time) = mtime_ms.and_then(time) {
            self.file.set_modified(time).map_err(failed("set the time of"))?;
        }
        std::fs::rename(&self.path, target).map_err(failed("rename the copy to"))?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.stays {
            // Nobody is left to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Refuses a disk that has no room for `needed` bytes at `path`.
pub(super) fn room(on: &impl AsFd, path: &Path, needed: u64) -> Result<(), CliError> {
    // A file system that cannot tell is written to until it is full.
    let Ok(stat) = rustix::fs::fstatvfs(on) else { return Ok(()) };
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if stat.f_blocks == 0 || needed <= available {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let text = format!("the copy needs {needed} bytes, and the disk of {} has {available}", dir.display());
    let error = ErrorBody::new(ErrorCode::ResourceExhausted, text);
    Err(refused(error.with("needed_bytes", needed).with("available_bytes", available)))
}

/// How far a copy of so many bytes is, where somebody looks.
pub(super) fn bar(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// `None` for a time that this machine has no way to state.
fn time(ms: i64) -> Option<std::time::SystemTime> {
    let span = std::time::Duration::from_millis(ms.unsigned_abs());
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    if ms < 0 { epoch.checked_sub(span) } else { epoch.checked_add(span) }
}

pub(super) fn refused(error: ErrorBody) -> CliError {
    CliError::Client(ClientError::from(error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn a_partial_file_outlives_a_failure_only_if_it_may_be_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        let mut partial = Partial::beside(&target, "t").unwrap();
        partial.file.write_all(b"half").unwrap();
        assert!(Partial::beside(&target, "t").is_err(), "one copy at a time");
        partial.stays = true;
        drop(partial);
        let partial = Partial::beside(&target, "t").unwrap();
        assert_eq!(partial.len().unwrap(), 4);
        drop(partial);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_a_partial_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join(".x.t.part")).unwrap();
        assert!(Partial::beside(&dir.path().join("x"), "t").is_err());
        assert!(!dir.path().join("victim").exists());
    }

    #[tokio::test]
    async fn holes_do_not_travel_and_both_ends_see_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let source =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("a")).unwrap();
        let size = 64 << 20;
        source.set_len(size).unwrap();
        source.write_all_at(&[7; 9_000], 5 << 20).unwrap();
        source.write_all_at(&[8; 100], size - 100).unwrap();
        let whole = digest(&source, size).await.unwrap();
        let ranges = data(&source, size).unwrap();
        let walk = Walk::new(size, Some(&ranges)).unwrap();
        assert!(walk.travelling() < 1 << 20, "{ranges:?}");

        let copy =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("b")).unwrap();
        let (mut from, fed) = feed(source.try_clone().unwrap(), walk.clone(), ProgressBar::hidden()).unwrap();
        let (mut to, stored) = store(copy.try_clone().unwrap(), walk.clone(), ProgressBar::hidden()).unwrap();
        assert_eq!(tokio::io::copy(&mut from, &mut to).await.unwrap(), walk.travelling());
        drop(to);
        assert_eq!(fed.await.unwrap().unwrap(), whole);
        assert_eq!(stored.await.unwrap().unwrap(), whole);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "it has its holes still");

        // Gone on with from the middle: only what is left travels, and the digest is that of the whole.
        copy.set_len(5 << 20 | 100).unwrap();
        let left = Walk::new(size, Some(&ranges::from(&ranges, 5 << 20 | 100))).unwrap();
        let (mut from, fed) = feed(source, left.clone(), ProgressBar::hidden()).unwrap();
        let (mut to, stored) = store(copy, left.clone(), ProgressBar::hidden()).unwrap();
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len() as u64, left.travelling());
        tokio::io::AsyncWriteExt::write_all(&mut to, &bytes).await.unwrap();
        drop(to);
        assert_eq!(fed.await.unwrap().unwrap(), whole);
        assert_eq!(stored.await.unwrap().unwrap(), whole);
    }
}
