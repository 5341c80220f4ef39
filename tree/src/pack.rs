//! From a folder to a stream.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::error::failed;
use crate::stream::Metered;
use crate::{MAX_DEPTH, Tally, TreeError};

/// What is written in one go, in bytes.
const BATCH: usize = 64 * 1024;

/// What a folder holds, before it is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Folders, files and links.
    pub entries: u64,
    /// What is in the files, in bytes.
    pub size_bytes: u64,
}

/// Counts what [`pack`] would pack now.
///
/// # Errors
/// A look at something in the folder that failed.
pub fn survey(folder: &OwnedFd) -> Result<Survey, TreeError> {
    let mut survey = Survey::default();
    walk(folder, &mut |_, _, found| {
        match found {
            Found::Skipped => return Ok(()),
            Found::File { stat, .. } => survey.size_bytes += stat.st_size.cast_unsigned(),
            Found::Dir { .. } | Found::Link { .. } => {}
        }
        survey.entries += 1;
        Ok(())
    })?;
    Ok(survey)
}

/// Writes a folder to `out`.
///
/// # Errors
/// Something in the folder that cannot be read, or an `out` that takes no more.
pub fn pack(folder: &OwnedFd, out: impl Write) -> Result<Tally, TreeError> {
    let write = |source| TreeError::Write { source };
    let mut tar = Builder::new(BufWriter::with_capacity(BATCH, Metered::new(out)));
    let mut tally = Tally::default();
    let stat = fs::fstat(folder).map_err(failed("look at", Path::new("")))?;
    // The library takes no path without a name.
    let mut root = header(&stat, EntryType::Directory, 0);
    root.as_old_mut().name[0] = b'.';
    root.set_cksum();
    tar.append(&root, io::empty()).map_err(write)?;
    walk(folder, &mut |dir, path, found| {
        match found {
            Found::Skipped => {
                tally.skipped += 1;
                return Ok(());
            }
            Found::Dir { stat } => {
                let mut header = header(stat, EntryType::Directory, 0);
                tar.append_data(&mut header, path, io::empty()).map_err(write)?;
            }
            Found::Link { stat } => {
                let name = path.file_name().unwrap_or_default();
                let target = match fs::readlinkat(dir, name, Vec::new()) {
                    Err(Errno::NOENT) => return Ok(()),
                    target => target.map_err(failed("read", path))?,
                };
                link(&mut tar, path, stat, target.as_bytes()).map_err(write)?;
            }
            Found::File { stat, handle } => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
                let file: File =
                    fs::openat(CWD, again, flags, Mode::empty()).map_err(failed("open", path))?.into();
                // A file that grows meanwhile is packed as long as it was.
                let size = stat.st_size.cast_unsigned();
                let mut header = header(stat, EntryType::Regular, size);
                let mut source = Source { file: file.take(size), left: size, failure: None };
                let written = tar.append_data(&mut header, path, &mut source);
                match (written, source.failure) {
                    (_, Some(failure)) => return Err(failed("read", path)(failure)),
                    (Ok(()), None) if source.left > 0 => {
                        return Err(TreeError::Shrunk { path: path.to_owned() });
                    }
                    (written, None) => written.map_err(write)?,
                }
                tally.size_bytes += size;
            }
        }
        tally.entries += 1;
        Ok(())
    })?;
    let out = tar.into_inner().map_err(write)?;
    let out = out.into_inner().map_err(|e| write(e.into_error()))?;
    tally.stream_bytes = out.bytes;
    tally.sha256 = out.sha256();
    Ok(tally)
}

/// Adds a link. The library would tidy its target up, which is what a program reads and compares.
fn link(tar: &mut Builder<impl Write>, path: &Path, stat: &Stat, target: &[u8]) -> io::Result<()> {
    let mut header = header(stat, EntryType::Symlink, 0);
    if header.set_link_name_literal(target).is_err() {
        let mut long = Header::new_gnu();
        let name = b"././@LongLink";
        long.as_old_mut().name[..name.len()].copy_from_slice(name);
        long.set_entry_type(EntryType::GNULongLink);
        long.set_mode(0o644);
        long.set_size(target.len() as u64 + 1);
        long.set_cksum();
        tar.append(&long, target.chain(&[0][..]))?;
    }
    tar.append_data(&mut header, path, io::empty())
}

/// A file whose failures are told from those of what it is written to.
struct Source {
    file: io::Take<File>,
    left: u64,
    failure: Option<io::Error>,
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buf) {
            Ok(got) => {
                self.left -= got as u64;
                Ok(got)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.failure = Some(error);
                Err(told)
            }
        }
    }
}

fn header(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(size);
    header
}

/// Something in the folder.
enum Found<'a> {
    Dir { stat: &'a Stat },
    File { stat: &'a Stat, handle: &'a OwnedFd },
    Link { stat: &'a Stat },
    Skipped,
}

type Visit<'v> = dyn FnMut(&OwnedFd, &Path, Found<'_>) -> Result<(), TreeError> + 'v;

/// Goes through a folder by descriptors, each folder before what is in it.
fn walk(folder: &OwnedFd, visit: &mut Visit<'_>) -> Result<(), TreeError> {
    let stat = fs::fstat(folder).map_err(failed("look at", Path::new("")))?;
    within(folder, Path::new(""), stat.st_dev, 0, visit)
}

fn within(
    dir: &OwnedFd,
    at: &Path,
    device: u64,
    depth: usize,
    visit: &mut Visit<'_>,
) -> Result<(), TreeError> {
    if depth >= MAX_DEPTH {
        return Err(TreeError::Deep { path: at.to_owned() });
    }
    // A descriptor of its own: where a folder was read to belongs to the descriptor.
    let listed =
        open(dir, c".".to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("list", at))?;
    for entry in Dir::new(listed).map_err(failed("list", at))? {
        let entry = entry.map_err(failed("list", at))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let path = at.join(OsStr::from_bytes(name));
        let handle = match open(dir, name, OFlags::PATH | OFlags::NOFOLLOW) {
            // It has gone meanwhile.
            Err(Errno::NOENT) => continue,
            handle => handle.map_err(failed("look at", &path))?,
        };
        let stat = fs::fstat(&handle).map_err(failed("look at", &path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if stat.st_dev == device => {
                visit(dir, &path, Found::Dir { stat: &stat })?;
                let inner =
                    open(&handle, b".", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open", &path))?;
                within(&inner, &path, device, depth + 1, visit)?;
            }
            FileType::RegularFile => visit(dir, &path, Found::File { stat: &stat, handle: &handle })?,
            FileType::Symlink => visit(dir, &path, Found::Link { stat: &stat })?,
            _ => visit(dir, &path, Found::Skipped)?,
        }
    }
    Ok(())
}

fn open(dir: &impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())
}
