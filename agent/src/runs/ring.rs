//! The last bytes of an endless stream, in a file: one process writes, any number read.
//!
//! The file begins with four numbers: a mark, the capacity, how far bytes are or are about to be written, and
//! how far they are written. A byte is kept as long as it is within one capacity of the third number, so a
//! reader that looks at it again after reading knows whether what it read was overwritten meanwhile. The
//! file lies in memory (tmpfs), where a write is seen by the next read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use drover_schemas::guest::Extent;

const MARK: u64 = u64::from_le_bytes(*b"DRVRING1");
const HEADER: u64 = 32;
const RESERVED: u64 = 16;
const WRITTEN: u64 = 24;
/// The least capacity, in bytes.
pub(super) const LEAST: u64 = 4 * 1024;

fn number(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Writer {
    file: File,
    capacity: u64,
    reserved: u64,
    end: u64,
}

impl Writer {
    /// Makes the file.
    pub(super) fn create(path: &Path, capacity: u64) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        for (at, value) in [(RESERVED, 0), (WRITTEN, 0), (8, capacity), (0, MARK)] {
            file.write_all_at(&u64::to_le_bytes(value), at)?;
        }
        Ok(Self { file, capacity, reserved: 0, end: 0 })
    }

    /// Adds bytes. Where the guest has no memory for them they are counted as lost.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // In pieces: a reader that is a little behind loses as little as need be.
        for piece in bytes.chunks((self.capacity / 4) as usize) {
            let end = self.end + piece.len() as u64;
            self.reserve(end)?;
            if self.write(piece).is_err() {
                self.reserve(end + self.capacity)?;
            }
            self.end = end;
            self.file.write_all_at(&end.to_le_bytes(), WRITTEN)?;
        }
        Ok(())
    }

    fn reserve(&mut self, end: u64) -> io::Result<()> {
        self.reserved = self.reserved.max(end);
        self.file.write_all_at(&self.reserved.to_le_bytes(), RESERVED)
    }

    fn write(&self, piece: &[u8]) -> io::Result<()> {
        let at = self.end % self.capacity;
        let (first, rest) = piece.split_at(piece.len().min((self.capacity - at) as usize));
        self.file.write_all_at(first, HEADER + at)?;
        self.file.write_all_at(rest, HEADER)
    }
}

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They are not kept any more.
    #[error("bytes before {start} are not kept any more")]
    Lost {
        /// Where what is kept begins.
        start: u64,
    },
    /// The file cannot be read, or is none.
    #[error("the output that was kept cannot be read")]
    Io {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for ReadError {
    fn from(source: io::Error) -> Self {
        Self::Io { source }
    }
}

/// A reading end.
#[derive(Debug)]
pub struct Reader {
    file: File,
    capacity: u64,
}

impl Reader {
    /// Opens the file.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let capacity = number(&file, 8)?;
        if number(&file, 0)? != MARK || capacity < LEAST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { file, capacity })
    }

    /// What is kept now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn extent(&self) -> io::Result<Extent> {
        // The first number never shrinks, so what is kept after a look is at most what was kept before it.
        let end = number(&self.file, WRITTEN)?;
        let start = number(&self.file, RESERVED)?.saturating_sub(self.capacity);
        Ok(Extent { start, end: end.max(start) })
    }

    /// The bytes from `off` on, at most `max`; none where nothing was written yet.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn read(&self, off: u64, max: usize) -> Result<Bytes, ReadError> {
        let Extent { start, end } = self.extent()?;
        if off < start {
            return Err(ReadError::Lost { start });
        }
        let mut bytes = BytesMut::zeroed(end.saturating_sub(off).min(max as u64) as usize);
        let at = off % self.capacity;
        let first = bytes.len().min((self.capacity - at) as usize);
        let (first, rest) = bytes.split_at_mut(first);
        self.file.read_exact_at(first, HEADER + at)?;
        self.file.read_exact_at(rest, HEADER)?;
        let start = self.extent()?.start;
        if off < start { Err(ReadError::Lost { start }) } else { Ok(bytes.freeze()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(capacity: u64) -> (tempfile::TempDir, Writer, Reader) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        let writer = Writer::create(&path, capacity).unwrap();
        let reader = Reader::open(&path).unwrap();
        (dir, writer, reader)
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_and_nothing_else(
            sizes in prop::collection::vec(1usize..9_000, 1..20),
            max in 1usize..10_000,
        ) {
            let (_dir, mut writer, reader) = ring(LEAST);
            let mut all = Vec::new();
            for (n, size) in sizes.iter().enumerate() {
                let bytes: Vec<u8> = (0..*size).map(|i| (i * 31 + n) as u8).collect();
                writer.append(&bytes).unwrap();
                all.extend_from_slice(&bytes);
                let kept = reader.extent().unwrap();
                prop_assert_eq!(kept.end as usize, all.len());
                prop_assert_eq!(kept.start as usize, all.len().saturating_sub(LEAST as usize));
                let mut off = kept.start;
                while off < kept.end {
                    let bytes = reader.read(off, max).unwrap();
                    prop_assert!(!bytes.is_empty() && bytes[..] == all[off as usize..off as usize + bytes.len()]);
                    off += bytes.len() as u64;
                }
                prop_assert!(reader.read(kept.end, max).unwrap().is_empty());
                if let Some(before) = kept.start.checked_sub(1) {
                    let lost = reader.read(before, max);
                    let is_told = matches!(lost, Err(ReadError::Lost { start }) if start == kept.start);
                    prop_assert!(is_told);
                }
            }
        }
    }

    #[test]
    fn a_reader_beside_the_writer_gets_each_byte_once_or_is_told() {
        let (_dir, mut writer, reader) = ring(LEAST);
        const TOTAL: u64 = 4 << 20;
        let byte = |off: u64| (off ^ (off >> 8) ^ (off >> 16)) as u8;
        let writing = std::thread::spawn(move || {
            let mut off = 0;
            while off < TOTAL {
                let piece: Vec<u8> = (off..off + 1_000).map(byte).collect();
                writer.append(&piece).unwrap();
                off += 1_000;
            }
            writer
        });
        let (mut off, mut seen) = (0, 0u64);
        while off < TOTAL {
            match reader.read(off, 700) {
                Ok(bytes) => {
                    assert!(bytes.iter().zip(off..).all(|(b, off)| *b == byte(off)), "at {off}");
                    off += bytes.len() as u64;
                    seen += bytes.len() as u64;
                }
                Err(ReadError::Lost { start }) => {
                    assert!(start > off);
                    off = start;
                }
                Err(error) => panic!("{error}"),
            }
        }
        writing.join().unwrap();
        assert!(seen > 0);
    }

    #[test]
    fn a_file_that_is_no_ring_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), [0; 64]).unwrap();
        assert!(Reader::open(&dir.path().join("x")).is_err());
        assert!(Reader::open(&dir.path().join("y")).is_err());
    }
}
