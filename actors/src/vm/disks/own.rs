//! A VM's own disk file, made once. It appears under its name only when it is whole and on disk. All of it blocks.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use drover_schemas::body::status::DiskMade;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::agent::AgentProgramError;
use super::format::{self, FormatError};
use super::overlay::{Overlay, OverlayError};

/// What is copied between two looks at whether it is still wanted.
const STEP: u64 = 16 << 20;
/// ext4 writes no more than this part of a disk when it is made: one block in so many.
const METADATA: u64 = 64;

/// A disk that shall be there.
#[derive(Debug)]
pub struct Wanted {
    /// Where.
    pub own: PathBuf,
    /// What it may be in its place, where the file system shares no blocks.
    pub overlay: Option<Overlay>,
    /// What it starts as.
    pub source: Source,
    /// How long it has become since it was made, if it may have.
    pub length: Option<u64>,
    /// Whose it is; ours if nobody's.
    pub owner: Option<u32>,
    /// How it was made, if it was there before.
    pub was_made: Option<DiskMade>,
}

/// What a disk starts as.
#[derive(Debug)]
pub enum Source {
    /// The content of an image.
    Image {
        /// Its file.
        path: PathBuf,
        /// The disk's length, if it is more.
        size: Option<u64>,
    },
    /// Zeros, or an empty file system.
    Blank {
        /// Its length.
        size: u64,
        /// It has a file system.
        ext4: bool,
        /// Which has a label.
        label: Option<String>,
    },
}

/// A disk that is not there.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its folder cannot be made.
    #[error("make its folder")]
    Folder(#[source] io::Error),
    /// The image cannot be read.
    #[error("read the image")]
    Image(#[source] io::Error),
    /// There is too little room.
    #[error(
        "No space left: {needed} bytes have to be written and {left} are free; free some of the host's disk, or use another host"
    )]
    Room {
        /// What is written at once.
        needed: u64,
        /// What is free.
        left: u64,
    },
    /// It cannot be written.
    #[error("write it")]
    Write(#[source] io::Error),
    /// It was there before.
    #[error("its file is gone, and with it all that the guest wrote; put it back, or delete the VM")]
    Gone,
    /// It is a volume that cannot be used.
    #[error("use the volume")]
    Volume(#[source] io::Error),
    /// The file system cannot be made.
    #[error("format it")]
    Format(#[source] FormatError),
    /// What lies over the image cannot be used.
    #[error("lay it over the image")]
    Overlay(#[source] OverlayError),
    /// The guest was to have the agent.
    #[error(
        "the guest is to have the agent (spec.seed.agent), and the host has none for guests; name its program as guest_agent in the host's configuration"
    )]
    NoAgent,
    /// The agent cannot be given to guests.
    #[error("read the agent that guests are given (guest_agent of the host's configuration)")]
    Agent(#[source] AgentProgramError),
    /// A later request needs no disk.
    #[error("a later request ended the boot")]
    Stopped,
}

/// Makes a disk unless it is there, until `stop` says that it is not wanted any more; a part of it is made anew.
///
/// # Errors
/// [`DiskError`]; nothing has its name then.
pub fn make(wanted: &Wanted, stop: &AtomicBool) -> Result<DiskMade, DiskError> {
    let Wanted { own, overlay, source, length, owner, was_made } = wanted;
    // Once the folder is the VM's, its user may have put a link there: nothing in it is followed.
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let laid = overlay.as_ref().filter(|overlay| overlay.own != *own && is_there(&overlay.own));
    let was_laid = *was_made == Some(DiskMade::Overlay);
    if was_made.is_some() && if was_laid { laid.is_none() } else { !is_there(own) } {
        return Err(DiskError::Gone);
    }
    if let Some(dir) = own.parent() {
        folder(dir, *owner).map_err(DiskError::Folder)?;
    }
    if let Some(overlay) = laid.filter(|_| was_laid || was_made.is_none()) {
        lchown(&overlay.own, *owner, *owner).map_err(DiskError::Write)?;
        overlay.lengthen().map_err(DiskError::Overlay)?;
        return Ok(DiskMade::Overlay);
    }
    if is_there(own) {
        lchown(own, *owner, *owner).map_err(DiskError::Write)?;
        if let Some(length) = length {
            lengthen(own, *length).map_err(DiskError::Write)?;
        }
        return Ok(DiskMade::Kept);
    }
    let partial = own.with_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DiskError::Write(error)),
        _ => {}
    }
    let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial);
    let to = open().map_err(DiskError::Write)?;
    let filled = fill(&to, source, overlay.as_ref(), *owner, stop).and_then(|made| {
        to.sync_all().map_err(DiskError::Write)?;
        fchown(&to, *owner, *owner).map_err(DiskError::Write)?;
        let own = overlay.as_ref().filter(|_| made == DiskMade::Overlay).map_or(own, |overlay| &overlay.own);
        fs::rename(&partial, own).map_err(DiskError::Write)?;
        own.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all()).map_err(DiskError::Write)?;
        Ok(made)
    });
    if filled.is_err() {
        // What is left of it takes room that others may want; a later boot would remove it too.
        let _ = fs::remove_file(&partial);
    }
    filled
}

/// Makes a disk's file as long as it shall be; a longer one stays. What is no file is left to whoever uses it.
fn lengthen(own: &Path, length: u64) -> io::Result<()> {
    let meta = fs::symlink_metadata(own)?;
    if meta.is_file() && meta.len() < length { at_least(own, length) } else { Ok(()) }
}

/// Makes a file at least so long, on disk; it is no link.
pub(super) fn at_least(path: &Path, length: u64) -> io::Result<()> {
    let file = open(path, OpenOptions::new().write(true))?;
    if file.metadata()?.len() < length {
        file.set_len(length)?;
    }
    file.sync_all()
}

/// Opens what is in a VM's folder: no link is followed, and nothing is waited for.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    options.custom_flags(i32::try_from(flags).unwrap_or_default()).open(path)
}

/// Puts a file, which is filled here, in the place of one that may be there.
///
/// # Errors
/// [`DiskError`]; the place has what it had.
pub fn replace(
    own: &Path,
    owner: Option<u32>,
    fill: impl FnOnce(&File) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    if let Some(dir) = own.parent() {
        folder(dir, owner).map_err(DiskError::Folder)?;
    }
    let partial = own.with_extension("partial");
    let write = || {
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DiskError::Write(error)),
            _ => {}
        }
        let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial);
        let to = open().map_err(DiskError::Write)?;
        fill(&to)?;
        // It is made anew at each start, so it may be lost with the host.
        fchown(&to, owner, owner).map_err(DiskError::Write)?;
        fs::rename(&partial, own).map_err(DiskError::Write)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

fn folder(dir: &Path, owner: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    lchown(dir, owner, owner)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

fn fill(
    to: &File,
    source: &Source,
    overlay: Option<&Overlay>,
    owner: Option<u32>,
    stop: &AtomicBool,
) -> Result<DiskMade, DiskError> {
    match source {
        Source::Image { path, size } => {
            let from = File::open(path).map_err(DiskError::Image)?;
            // A reflink shares blocks with the image, and an overlay the image itself.
            let made = match (rustix::fs::ioctl_ficlone(to, &from), overlay) {
                (Ok(()), _) => DiskMade::Reflink,
                (Err(_), Some(overlay)) => {
                    overlay.create(to).map_err(DiskError::Overlay)?;
                    return Ok(DiskMade::Overlay);
                }
                (Err(_), None) => {
                    let allocated = from.metadata().map_err(DiskError::Image)?.blocks().saturating_mul(512);
                    room(to, allocated)?;
                    copy(&from, to, stop)?;
                    DiskMade::Copy
                }
            };
            if let Some(size) = size {
                to.set_len(*size).map_err(DiskError::Write)?;
            }
            Ok(made)
        }
        Source::Blank { size, ext4, label } => {
            to.set_len(*size).map_err(DiskError::Write)?;
            if *ext4 {
                room(to, size / METADATA)?;
                fchown(to, owner, owner).map_err(DiskError::Write)?;
                match format::ext4(to, *size, label.as_deref(), owner, stop) {
                    Err(FormatError::Stopped) => return Err(DiskError::Stopped),
                    formatted => formatted.map_err(DiskError::Format)?,
                }
            }
            Ok(DiskMade::Blank)
        }
    }
}

/// What is written now must fit; what a guest may write later is promised by the host's capacity.
fn room(to: &File, needed: u64) -> Result<(), DiskError> {
    let stat = rustix::fs::fstatvfs(to).map_err(|errno| DiskError::Write(errno.into()))?;
    let left = stat.f_bavail.saturating_mul(stat.f_frsize);
    if needed > left { Err(DiskError::Room { needed, left }) } else { Ok(()) }
}

/// Copies what is data; a hole stays one.
fn copy(mut from: &File, mut to: &File, stop: &AtomicBool) -> Result<(), DiskError> {
    let length = from.metadata().map_err(DiskError::Image)?.len();
    let mut at = 0;
    while let Some(begin) = data(from, at).map_err(DiskError::Image)?.filter(|begin| *begin < length) {
        let end = hole(from, begin).map_err(DiskError::Image)?.min(length);
        at = begin;
        while at < end {
            if stop.load(Ordering::Relaxed) {
                return Err(DiskError::Stopped);
            }
            from.seek(SeekFrom::Start(at)).map_err(DiskError::Image)?;
            to.seek(SeekFrom::Start(at)).map_err(DiskError::Write)?;
            let copied = io::copy(&mut from.take(STEP.min(end - at)), &mut to).map_err(DiskError::Write)?;
            if copied == 0 {
                return Err(DiskError::Image(io::ErrorKind::UnexpectedEof.into()));
            }
            at += copied;
        }
    }
    to.set_len(length).map_err(DiskError::Write)
}

/// Where data begins, at `from` or later. A file system that does not tell has data everywhere.
fn data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(from)),
        Err(errno) => Err(errno.into()),
    }
}

/// Where the data that begins at `from` ends.
fn hole(file: &File, from: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(from)) {
        Ok(at) => Ok(at),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
        Err(errno) => Err(errno.into()),
    }
}
