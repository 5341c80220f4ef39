//! Reads the rings that the holder writes: two capped files under one sequence of absolute offsets.
//!
//! The newer file is `NAME`, the older `NAME.1`. Each begins with a [`RingHeader`] that says at which offset
//! its content begins, so an offset never means two different bytes. The holder may rotate while we read: a
//! reader that finds its offset older than both files goes on at the oldest byte there is and says so.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::record::{RING_HEADER, RingHeader, VERSION};
use super::run_dir::RunDir;

/// Bytes of a ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RingChunk {
    /// Absolute offset of the first byte of `data`; larger than asked for if older bytes are gone.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
    /// Absolute offset of the end of the ring when it was read.
    pub end: u64,
}

struct Part {
    file: File,
    base: u64,
    len: u64,
}

fn open_part(dir: &RunDir, name: &str) -> io::Result<Option<Part>> {
    let file = match dir.open_regular(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; RING_HEADER];
    file.read_exact_at(&mut header, 0)?;
    let header: RingHeader =
        serde_json::from_slice(&header).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    if header.version > VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the ring has version {}, this program reads up to {VERSION}", header.version),
        ));
    }
    let len = file.metadata()?.size().saturating_sub(RING_HEADER as u64);
    Ok(Some(Part { file, base: header.base, len }))
}

/// Newest part first; opened in this order so that a rotation in between loses nothing.
fn open_parts(dir: &RunDir, name: &str) -> io::Result<(Option<Part>, Option<Part>)> {
    let new = open_part(dir, name)?;
    let old = open_part(dir, &format!("{name}.1"))?;
    Ok((new, old))
}

/// Absolute offset of the end of ring `name`; 0 if there is none yet.
///
/// # Errors
/// A file cannot be read or has another format.
pub fn end(dir: &RunDir, name: &str) -> io::Result<u64> {
    let (new, old) = open_parts(dir, name)?;
    Ok(new.or(old).map_or(0, |part| part.base + part.len))
}

/// At most `max` bytes of ring `name` from absolute `offset` on.
///
/// # Errors
/// A file cannot be read or has another format.
pub fn read(dir: &RunDir, name: &str, offset: u64, max: usize) -> io::Result<RingChunk> {
    let (new, old) = open_parts(dir, name)?;
    let end = new.as_ref().or(old.as_ref()).map_or(0, |part| part.base + part.len);
    let mut chunk = RingChunk { offset, data: Vec::new(), end };
    // The older part first; a part that was both (rotated between the opens) is read once, by offset.
    for part in [old, new].into_iter().flatten() {
        let at = chunk.offset + chunk.data.len() as u64;
        if at >= part.base + part.len || chunk.data.len() >= max {
            continue;
        }
        if at < part.base {
            if !chunk.data.is_empty() {
                break;
            }
            chunk.offset = part.base;
        }
        let from = chunk.offset + chunk.data.len() as u64 - part.base;
        let room = (max - chunk.data.len()).min(usize::try_from(part.len - from).unwrap_or(max));
        let had = chunk.data.len();
        chunk.data.resize(had + room, 0);
        let got = read_full(&part.file, &mut chunk.data[had..], from + RING_HEADER as u64)?;
        chunk.data.truncate(had + got);
    }
    Ok(chunk)
}

/// The last `max` bytes of ring `name`.
///
/// # Errors
/// A file cannot be read or has another format.
pub fn tail(dir: &RunDir, name: &str, max: usize) -> io::Result<RingChunk> {
    let end = end(dir, name)?;
    read(dir, name, end.saturating_sub(max as u64), max)
}

fn read_full(file: &File, buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
