//! The server's log as one sequence of lines, over rotations and our own end.
//!
//! The server renames a log that is full to `<log>.<time>` and begins a new one; other programs do alike. A file is
//! known by its first line, which has the time in microseconds: a name moves on, and the number of an inode is used
//! again.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The longest line that is read whole; of a longer one the end is left out. A subject has at most 4 KiB, each byte
/// of which may take four in quotes.
const LINE: usize = 64 * 1024;
/// How much is read at a time.
const CHUNK: usize = 64 * 1024;

/// A place in the log: behind a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which file; see [`Self::fmt`].
    pub file: String,
    /// Bytes of it that were read.
    pub offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.file, self.offset)
    }
}

impl std::str::FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (file, offset) = text.split_once('.').ok_or(())?;
        Ok(Self { file: file.to_owned(), offset: offset.parse().map_err(|_| ())? })
    }
}

/// A line, and the place behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Without its end.
    pub text: String,
    /// Where to go on.
    pub end: Position,
}

/// The log while it is read.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    open: Option<Open>,
    /// Where to go on when the log is there.
    from: Option<Position>,
    /// Lines may have been missed: the file that was read last is gone.
    lost: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    id: String,
    inode: u64,
    /// Up to where lines were given.
    offset: u64,
    /// Read and not given yet; the start of a line.
    rest: Vec<u8>,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
}

impl Log {
    /// The log at `path`, from a place on, or all of it that is kept.
    pub fn new(path: &Path, from: Option<Position>) -> Self {
        Self { path: path.to_owned(), open: None, from, lost: false }
    }

    /// Whether lines may have been missed since this was asked last.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The next lines, in order; none if there are no more now. Blocks on the disk only.
    ///
    /// # Errors
    /// The log cannot be read. One that is not there is not an error: it may come.
    pub fn read(&mut self) -> io::Result<Vec<Line>> {
        if self.open.is_none() {
            self.open = self.find()?;
        }
        loop {
            let Some(open) = &mut self.open else { return Ok(Vec::new()) };
            let now = match fs::metadata(&self.path) {
                Ok(now) => now,
                // Between the two steps of a rotation, or the server has never been started.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return open.lines(),
                Err(error) => return Err(error),
            };
            // After the look at the name: what the server has still written to the old file is read below.
            let lines = open.lines()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            let same = now.ino() == open.inode;
            if same && now.len() >= open.offset {
                return Ok(Vec::new());
            }
            let last = if same { None } else { open.last_line() };
            let next = if same { Open::begin(&self.path)? } else { self.successor()? };
            // A new file says nothing of itself before its first line.
            let Some(next) = next else { return Ok(last.into_iter().collect()) };
            self.open = Some(next);
            if let Some(last) = last {
                return Ok(vec![last]);
            }
        }
    }

    /// The file to begin with.
    fn find(&mut self) -> io::Result<Option<Open>> {
        let files = self.files()?;
        let mut opened = Vec::new();
        for path in &files {
            opened.extend(Open::begin(path)?);
        }
        if let Some(from) = &self.from {
            let known = opened.iter().position(|open| open.id == from.file);
            if let Some(known) = known {
                let mut open = opened.swap_remove(known);
                open.offset = from.offset.min(open.file.metadata()?.len());
                open.file.seek(SeekFrom::Start(open.offset))?;
                return Ok(Some(open));
            }
            self.lost |= !opened.is_empty();
        }
        Ok((!opened.is_empty()).then(|| opened.swap_remove(0)))
    }

    /// The file after the one that is open.
    fn successor(&mut self) -> io::Result<Option<Open>> {
        let inode = self.open.as_ref().map(|open| open.inode);
        let files = self.files()?;
        let mut known = None;
        for (n, path) in files.iter().enumerate() {
            if fs::metadata(path).is_ok_and(|found| Some(found.ino()) == inode) {
                known = Some(n);
            }
        }
        self.lost |= known.is_none();
        match files.get(known.map_or(0, |known| known + 1)) {
            Some(path) => Open::begin(path),
            None => Ok(None),
        }
    }

    /// Every file of the log, the oldest first: what the server sets aside is named by the time.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let Some(name) = self.path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            return Ok(Vec::new());
        };
        let mut old = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or_else(|| Path::new(".")))? {
            let entry = entry?;
            let found = entry.file_name();
            let Some(rest) = found.to_str().and_then(|f| f.strip_prefix(&name)?.strip_prefix('.')) else {
                continue;
            };
            if rest.starts_with(|c: char| c.is_ascii_digit()) && entry.file_type()?.is_file() {
                old.push(entry.path());
            }
        }
        old.sort();
        old.push(self.path.clone());
        Ok(old)
    }
}

impl Open {
    /// Opens a file at its start, if it has a line yet.
    fn begin(path: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut head = Vec::new();
        (&mut file).take(LINE as u64).read_to_end(&mut head)?;
        let Some(end) = head.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let digest = Sha256::digest(&head[..end]);
        let id = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let inode = file.metadata()?.ino();
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(Self { file, id, inode, offset: 0, rest: Vec::new(), skipping: false }))
    }

    /// The whole lines of the next bytes; none at the end of the file.
    fn lines(&mut self) -> io::Result<Vec<Line>> {
        loop {
            let before = self.rest.len();
            (&mut self.file).take(CHUNK as u64).read_to_end(&mut self.rest)?;
            if self.rest.len() == before {
                return Ok(Vec::new());
            }
            let bytes = std::mem::take(&mut self.rest);
            let mut lines = Vec::new();
            let mut at = 0;
            while let Some(len) = bytes[at..].iter().position(|byte| *byte == b'\n') {
                let text = &bytes[at..at + len];
                at += len + 1;
                self.offset += len as u64 + 1;
                if !std::mem::take(&mut self.skipping) {
                    lines.push(self.line(text));
                }
            }
            if bytes.len() - at > LINE {
                self.offset += (bytes.len() - at) as u64;
                self.skipping = true;
            } else {
                self.rest = bytes[at..].to_vec();
            }
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// What stands at the end of a file that is written no more.
    fn last_line(&mut self) -> Option<Line> {
        let rest = std::mem::take(&mut self.rest);
        self.offset += rest.len() as u64;
        (!rest.is_empty() && !self.skipping).then(|| self.line(&rest))
    }

    fn line(&self, text: &[u8]) -> Line {
        let end = Position { file: self.id.clone(), offset: self.offset };
        Line { text: String::from_utf8_lossy(text).into_owned(), end }
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
