//! From a stream to a folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use tar::EntryType;

use crate::error::failed;
use crate::header::{self, Entry};
use crate::stream::Metered;
use crate::{MAX_DEPTH, Tally, TreeError};

/// What is written in one go, in bytes; a whole batch of zeros becomes a hole.
const BATCH: usize = 64 * 1024;
/// Of folders that a stream does not name.
const PLAIN_MODE: u32 = 0o755;

/// Which symbolic links are made. None is followed, whatever is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// All of them.
    All,
    /// Those that lead to something in the folder, wherever it will lie; others count as skipped.
    Inside,
}

/// What may come, and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// User and group that own everything; else who unpacks.
    pub owner: Option<(u32, u32)>,
    /// The permission bits that are taken over.
    pub mode_mask: u32,
    /// Which links are made.
    pub links: Links,
    /// How many entries may come.
    pub max_entries: u64,
    /// How much the files may have, in bytes.
    pub max_bytes: u64,
}

/// Reads a folder from `input`, to its end, into an empty folder that nobody else reaches.
///
/// # Errors
/// A stream that is cut, malformed, or breaks the rules; a disk that takes no more. What was written stays.
pub fn unpack(input: impl Read, folder: &OwnedFd, rules: &Rules) -> Result<Tally, TreeError> {
    let mut input = Metered::new(input);
    let mut work =
        Work { folder, rules, tally: Tally::default(), root: Looks::of(PLAIN_MODE, None), open: Vec::new() };
    while let Some(entry) = header::next(&mut input)? {
        work.entry(&mut input, entry)?;
    }
    work.leave(0)?;
    work.root.give(folder, Path::new(""), rules)?;
    Ok(Tally { stream_bytes: input.bytes, sha256: input.sha256(), ..work.tally })
}

/// Permissions and time of a folder: given when nothing more comes into it.
#[derive(Clone, Copy)]
struct Looks {
    mode: u32,
    mtime: Option<i64>,
}

/// A folder on the way to where entries land.
struct Open {
    name: OsString,
    dir: OwnedFd,
    /// `None`: it was given them before.
    looks: Option<Looks>,
}

struct Work<'r> {
    folder: &'r OwnedFd,
    rules: &'r Rules,
    tally: Tally,
    root: Looks,
    /// From the folder down.
    open: Vec<Open>,
}

impl Looks {
    const fn of(mode: u32, mtime: Option<i64>) -> Self {
        Self { mode, mtime }
    }

    fn give(self, file: &impl AsFd, path: &Path, rules: &Rules) -> Result<(), TreeError> {
        let file = file.as_fd();
        if let Some((uid, gid)) = rules.owner {
            fchown(file, Some(uid), Some(gid)).map_err(failed("change the owner of", path))?;
        }
        // After the owner: a change of owner clears the set-id bits.
        fs::fchmod(file, Mode::from_raw_mode(self.mode & rules.mode_mask))
            .map_err(failed("set the mode of", path))?;
        if let Some(seconds) = self.mtime {
            let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
            let at = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: omit, last_modification: at };
            fs::futimens(file, &times).map_err(failed("set the time of", path))?;
        }
        Ok(())
    }
}

impl Work<'_> {
    fn entry(&mut self, input: &mut impl Read, entry: Entry) -> Result<(), TreeError> {
        let names = names(&entry.path)?;
        // Only files have bytes that anybody wants.
        let is_file = matches!(entry.kind, EntryType::Regular | EntryType::Continuous);
        let size = entry.size;
        let padded = |size: u64| {
            size.checked_add(header::padding(size))
                .ok_or(TreeError::Malformed { what: "a size beyond all bounds" })
        };
        let Some((name, above)) = names.split_last() else {
            if entry.kind != EntryType::Directory {
                return Err(TreeError::Path { path: entry.path });
            }
            self.root = Looks::of(entry.mode, Some(entry.mtime));
            return header::pass(input, padded(size)?);
        };
        self.tally.entries += 1;
        if self.tally.entries > self.rules.max_entries {
            return Err(TreeError::TooMuch { what: "entries", max: self.rules.max_entries });
        }
        let path: PathBuf = names.iter().collect();
        if is_file {
            self.tally.size_bytes = self.tally.size_bytes.saturating_add(size);
            if self.tally.size_bytes > self.rules.max_bytes {
                return Err(TreeError::TooMuch { what: "bytes", max: self.rules.max_bytes });
            }
            self.enter(above)?;
            self.file(input, name, &path, &entry)?;
            return header::pass(input, header::padding(size));
        }
        match entry.kind {
            EntryType::Directory => self.directory(above, name, &path, &entry)?,
            EntryType::Symlink => {
                let target = entry.link.unwrap_or_default();
                if self.rules.links == Links::Inside && !leads_inside(&target, above.len()) {
                    self.skip();
                } else {
                    self.enter(above)?;
                    let dir = self.dir();
                    fs::symlinkat(&target, dir, *name).map_err(failed("make the link", &path))?;
                    if let Some((uid, gid)) = self.rules.owner {
                        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                        fs::chownat(dir, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(failed("change the owner of", &path))?;
                    }
                }
            }
            EntryType::Link => self.hard_link(above, name, &path, &entry)?,
            _ => self.skip(),
        }
        header::pass(input, padded(size)?)
    }

    /// What was counted is not made.
    fn skip(&mut self) {
        self.tally.entries -= 1;
        self.tally.skipped += 1;
    }

    fn file(&self, input: &mut impl Read, name: &OsStr, path: &Path, entry: &Entry) -> Result<(), TreeError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = fs::openat(self.dir(), name, flags, Mode::from_raw_mode(0o600))
            .map_err(failed("make", path))?
            .into();
        let mut buf = vec![0; (entry.size.min(BATCH as u64)) as usize];
        let mut at = 0;
        while at < entry.size {
            let batch = (entry.size - at).min(BATCH as u64) as usize;
            let batch = &mut buf[..batch];
            input.read_exact(batch).map_err(|source| match source.kind() {
                std::io::ErrorKind::UnexpectedEof => TreeError::Cut,
                _ => TreeError::Read { source },
            })?;
            if batch.iter().any(|byte| *byte != 0) {
                file.write_all_at(batch, at).map_err(failed("write", path))?;
            }
            at += batch.len() as u64;
        }
        file.set_len(entry.size).map_err(failed("write", path))?;
        Looks::of(entry.mode, Some(entry.mtime)).give(&file, path, self.rules)
    }

    fn directory(
        &mut self,
        above: &[&OsStr],
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), TreeError> {
        self.enter(above)?;
        match fs::mkdirat(self.dir(), name, Mode::from_raw_mode(0o700)) {
            // Something in it came first, or it comes twice: the last word counts.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make", path)(errno)),
        }
        let dir = open(self.dir(), name).map_err(failed("open", path))?;
        let looks = Some(Looks::of(entry.mode, Some(entry.mtime)));
        self.open.push(Open { name: name.to_owned(), dir, looks });
        Ok(())
    }

    /// A further name of a file that has come before. To unpack it is to make that name, and never to follow a link.
    fn hard_link(
        &mut self,
        above: &[&OsStr],
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), TreeError> {
        let target = entry.link.clone().unwrap_or_default();
        let names = names(&target)?;
        let Some((old, old_above)) = names.split_last() else { return Err(TreeError::Path { path: target }) };
        let mut held: Option<OwnedFd> = None;
        for name in old_above {
            let from = held.as_ref().unwrap_or(self.folder);
            held = Some(open(from, name).map_err(failed("open", &target))?);
        }
        let from = held.as_ref().unwrap_or(self.folder);
        let stat = fs::statat(from, *old, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", &target))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TreeError::Path { path: target });
        }
        self.enter(above)?;
        fs::linkat(held.as_ref().unwrap_or(self.folder), *old, self.dir(), name, AtFlags::empty())
            .map_err(failed("make the link", path))
    }

    /// Goes to the folder that `above` names, and makes it where it is missing.
    fn enter(&mut self, above: &[&OsStr]) -> Result<(), TreeError> {
        let shared = self.open.iter().zip(above).take_while(|(open, name)| open.name == **name).count();
        self.leave(shared)?;
        for (depth, name) in above.iter().enumerate().skip(shared) {
            let path = || above[..=depth].iter().collect::<PathBuf>();
            let dir = self.dir();
            let (dir, looks) = match open(dir, name) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(dir, *name, Mode::from_raw_mode(0o700)).map_err(failed("make", &path()))?;
                    let made = open(dir, name).map_err(failed("open", &path()))?;
                    (made, Some(Looks::of(PLAIN_MODE, None)))
                }
                found => (found.map_err(failed("open", &path()))?, None),
            };
            self.open.push(Open { name: (*name).to_owned(), dir, looks });
        }
        Ok(())
    }

    /// Where entries land now.
    fn dir(&self) -> &OwnedFd {
        self.open.last().map_or(self.folder, |open| &open.dir)
    }

    /// Goes up until so many folders are open, and gives those behind it what they are to look like.
    fn leave(&mut self, depth: usize) -> Result<(), TreeError> {
        while self.open.len() > depth {
            let Some(Open { name, dir, looks }) = self.open.pop() else { break };
            if let Some(looks) = looks {
                let path: PathBuf = self.open.iter().map(|open| &open.name).chain([&name]).collect();
                looks.give(&dir, &path, self.rules)?;
            }
        }
        Ok(())
    }
}

/// A folder in a folder, and nothing that a link names.
fn open(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// The names on a path below the folder.
fn names(path: &Path) -> Result<Vec<&OsStr>, TreeError> {
    use std::os::unix::ffi::OsStrExt as _;
    let refused = || TreeError::Path { path: path.to_owned() };
    if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return Err(refused());
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refused()),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err(TreeError::Deep { path: path.to_owned() });
    }
    Ok(names)
}

/// Whether a link that lies `depth` folders below the folder leads to something in it. Steps upwards count only where
/// the target begins: behind a name they may begin at what another link names.
fn leads_inside(target: &Path, depth: usize) -> bool {
    let mut components = target.components().filter(|c| *c != Component::CurDir).peekable();
    let mut up = 0;
    while components.peek() == Some(&Component::ParentDir) {
        components.next();
        up += 1;
    }
    up <= depth && !target.as_os_str().is_empty() && components.all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests;
