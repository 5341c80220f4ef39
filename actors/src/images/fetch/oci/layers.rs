//! The one file of a container disk, out of its layers as they come: nothing is unpacked but into a pipe, nothing is
//! kept, and no name or link of a layer leads anywhere.

use std::io::{self, Read, Write};
use std::path::{Component, Path};

use drover_tree::TreeError;
use drover_tree::header::{self, Entry};
use tar::EntryType;

use super::refused::{Refused, shown};

/// The folder of the disk.
const FOLDER: &str = "disk";
/// What the layers may hold beside the disk, in bytes, where the longest image is not shorter.
const MAX_BESIDE: u64 = 1 << 30;
/// What is read in one go, in bytes.
const BATCH: usize = 64 * 1024;

/// Where the file goes.
pub(super) trait Out: Write {
    /// It begins, and has so many bytes.
    fn begin(&mut self, size: u64) -> io::Result<()>;
}

/// Looks for the file in one layer after another.
#[derive(Debug)]
pub(super) struct Pick<O> {
    out: O,
    max_bytes: u64,
    /// The name of the file, once it was found.
    found: Option<String>,
    beside: u64,
}

impl<O: Out> Pick<O> {
    pub(super) fn new(out: O, max_bytes: u64) -> Self {
        Self { out, max_bytes, found: None, beside: MAX_BESIDE.min(max_bytes) }
    }

    /// Reads a layer to its end.
    ///
    /// # Errors
    /// [`Refused`]; what was written is no image then.
    pub(super) fn layer(&mut self, input: impl Read) -> Result<(), Refused> {
        let limit = MAX_BESIDE.min(self.max_bytes);
        let mut input = Measured { input, left: self.beside };
        let mut read = || {
            while let Some(entry) = header::next(&mut input).map_err(Refused::Layer)? {
                self.entry(&mut input, &entry)?;
            }
            Ok(())
        };
        let read = read();
        self.beside = input.left;
        read.map_err(|error| match error {
            Refused::Layer(TreeError::Read { source })
                if source.get_ref().is_some_and(|e| e.is::<TooMuch>()) =>
            {
                Refused::Beside { limit }
            }
            error => error,
        })
    }

    /// All layers were read.
    ///
    /// # Errors
    /// There was no file.
    pub(super) fn end(mut self) -> Result<(), Refused> {
        match self.found {
            Some(_) => self.out.flush().map_err(Refused::Out),
            None => Err(Refused::NoDisk),
        }
    }

    fn entry(&mut self, input: &mut Measured<impl Read>, entry: &Entry) -> Result<(), Refused> {
        let path = shown(&entry.path.to_string_lossy());
        let names = names(&entry.path).ok_or_else(|| Refused::Path { path: path.clone() })?;
        let what = match entry.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => None,
            EntryType::Symlink => Some("a symbolic link"),
            EntryType::Link => Some("a hard link"),
            EntryType::Char | EntryType::Block => Some("a device"),
            EntryType::Fifo => Some("a pipe"),
            _ => Some("something of an unknown kind"),
        };
        // It takes away what a layer below has: what is left then would depend on who reads.
        let is_whiteout = names.iter().any(|name| name.as_encoded_bytes().starts_with(b".wh."));
        if let Some(what) = what.or_else(|| is_whiteout.then_some("a whiteout")) {
            return Err(Refused::Member { what, path });
        }
        let is_file = entry.kind != EntryType::Directory;
        if is_file && names.len() > 1 && names[0] == FOLDER {
            if let Some(first) = &self.found {
                return Err(Refused::Several { first: first.clone(), second: path });
            }
            self.file(input, entry.size)?;
            self.found = Some(path);
            return header::pass(input, header::padding(entry.size)).map_err(Refused::Layer);
        }
        let padded = entry.size.checked_add(header::padding(entry.size));
        let padded = padded.ok_or(TreeError::Malformed { what: "a size beyond all bounds" });
        padded.and_then(|size| header::pass(input, size)).map_err(Refused::Layer)
    }

    fn file(&mut self, input: &mut Measured<impl Read>, size: u64) -> Result<(), Refused> {
        if size > self.max_bytes {
            return Err(Refused::Large {
                what: "the disk in the layer",
                needed: size,
                limit: self.max_bytes,
            });
        }
        input.left = input.left.saturating_add(size);
        self.out.begin(size).map_err(Refused::Out)?;
        let (mut left, mut batch) = (size, vec![0; BATCH]);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            let read = match input.read(&mut batch[..most]) {
                Ok(0) => return Err(Refused::Layer(TreeError::Cut)),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Refused::Layer(TreeError::Read { source })),
            };
            self.out.write_all(&batch[..read]).map_err(Refused::Out)?;
            left -= read as u64;
        }
        Ok(())
    }
}

/// The components of a path; nothing if one of them leads out.
fn names(path: &Path) -> Option<Vec<&std::ffi::OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(names)
}

/// What unpacks endlessly ends.
struct Measured<R> {
    input: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more than may be unpacked")]
struct TooMuch;

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(TooMuch)),
        }
        Ok(read)
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
