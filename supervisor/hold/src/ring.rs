//! A capped log: two files under one sequence of offsets (format: `record.rs`; reader: the daemon's `ring`).

use std::fs::File;
use std::io::{self, Read, Write};

use crate::dir::Dir;
use crate::record::{RING_HEADER, RingHeader, VERSION};

/// The writing end of a ring.
pub struct Ring {
    dir: Dir,
    name: &'static str,
    half: u64,
    file: File,
    base: u64,
    len: u64,
    lost: u64,
}

impl Ring {
    /// Goes on where an earlier holder stopped, or begins at offset 0.
    pub fn open(dir: &Dir, name: &'static str, half: u64) -> io::Result<Self> {
        let dir = dir.try_clone()?;
        let found = match existing(&dir, name) {
            Ok(Some(found)) => Some(found),
            Ok(None) => None,
            // Not one of ours or cut off: kept as the older part, out of the way of the new one.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                dir.rename(name, &older(name))?;
                None
            }
            Err(error) => return Err(error),
        };
        // Broken off between the two renames of a rotation: the older part says where to go on.
        let found = match found {
            Some(found) => found,
            None => {
                let base = match existing(&dir, &older(name)) {
                    Ok(Some((_, base, len))) => base + len,
                    _ => 0,
                };
                (begin(&dir, name, base)?, base, 0)
            }
        };
        let (file, base, len) = found;
        Ok(Self { dir, name, half, file, base, len, lost: 0 })
    }

    /// Offset of the end.
    pub fn end(&self) -> u64 {
        self.base + self.len
    }

    /// Bytes that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends. What cannot be written is counted and has no offset.
    pub fn append(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.len >= self.half && self.rotate().is_err() {
                self.lost += data.len() as u64;
                return;
            }
            let room = usize::try_from(self.half - self.len).unwrap_or(usize::MAX);
            let (now, rest) = data.split_at(data.len().min(room));
            match self.file.write(now) {
                Ok(0) | Err(_) => {
                    self.lost += data.len() as u64;
                    return;
                }
                Ok(written) => {
                    self.len += written as u64;
                    data = if written == now.len() { rest } else { &data[written..] };
                }
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let base = self.end();
        // In this order a reader always finds the newest bytes in one of the two.
        self.dir.rename(self.name, &older(self.name))?;
        self.file = begin(&self.dir, self.name, base)?;
        self.base = base;
        self.len = 0;
        Ok(())
    }
}

fn older(name: &str) -> String {
    format!("{name}.1")
}

/// A part that is there: its file, base and length.
fn existing(dir: &Dir, name: &str) -> io::Result<Option<(File, u64, u64)>> {
    let mut file = match dir.append(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no header of a ring");
    let mut header = [0; RING_HEADER];
    file.read_exact(&mut header).map_err(|_| invalid())?;
    let header: RingHeader = serde_json::from_slice(&header).map_err(|_| invalid())?;
    let len = file.metadata()?.len().saturating_sub(RING_HEADER as u64);
    Ok(Some((file, header.base, len)))
}

fn begin(dir: &Dir, name: &str, base: u64) -> io::Result<File> {
    let mut header = serde_json::to_vec(&RingHeader { version: VERSION, base })?;
    header.resize(RING_HEADER - 1, b' ');
    header.push(b'\n');
    let temp = format!("{name}.new");
    dir.unlink(&temp)?;
    let mut file = dir.create(&temp)?;
    file.write_all(&header)?;
    dir.rename(&temp, name)?;
    Ok(file)
}
