//! The entries of a stream, read with bounded memory: the library's own reader keeps whatever a name claims to be long.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use tar::{EntryType, Header, PaxExtensions};

use crate::{MAX_PATH, TreeError};

const BLOCK: usize = 512;
/// The most that is kept of what a stream says of one entry, in bytes.
const MAX_EXTENSION: u64 = 64 * 1024;
/// The most that may follow the end mark, in bytes: programs fill up their last record.
const MAX_TAIL: usize = 1024 * 1024;

/// One entry; its bytes follow in the stream.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryType,
    /// Its path, as the stream names it.
    pub path: PathBuf,
    /// Where it leads, if it is a link.
    pub link: Option<PathBuf>,
    /// How many bytes follow, without those up to the next block.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Seconds since the Unix epoch.
    pub mtime: i64,
}

/// What entries before an entry said of it.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
}

/// The next entry; `None` behind the end mark, with the rest of the stream read.
///
/// # Errors
/// A stream that is cut or no `tar`.
pub fn next(input: &mut impl Read) -> Result<Option<Entry>, TreeError> {
    let mut said = Said::default();
    // Bounded: each of these says one thing of the next entry.
    for _ in 0..16 {
        let mut header = Header::new_old();
        fill(input, header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            tail(input)?;
            return Ok(None);
        }
        check(&header)?;
        let bad = |what| move |_: io::Error| TreeError::Malformed { what };
        let size = header.entry_size().map_err(bad("a size that is no number"))?;
        let kind = header.entry_type();
        match kind {
            EntryType::GNULongName => said.path = Some(text(input, size)?),
            EntryType::GNULongLink => said.link = Some(text(input, size)?),
            EntryType::XHeader => said.read(&extension(input, size)?)?,
            // Says of all entries what nobody asks here, such as who wrote the stream.
            EntryType::XGlobalHeader => drop(extension(input, size)?),
            EntryType::GNUSparse => return Err(TreeError::Unsupported { what: "sparse files" }),
            kind => {
                let path = said.path.unwrap_or_else(|| header.path_bytes().into_owned());
                let link = said.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                let longest = path.len().max(link.as_ref().map_or(0, Vec::len));
                if longest > MAX_PATH {
                    return Err(TreeError::Malformed { what: "a name that is too long" });
                }
                let mtime = header.mtime().map_err(bad("a time that is no number"))?;
                return Ok(Some(Entry {
                    kind,
                    path: path_of(path),
                    link: link.map(path_of),
                    size: said.size.unwrap_or(size),
                    mode: header.mode().map_err(bad("a mode that is no number"))?,
                    mtime: said.mtime.unwrap_or_else(|| i64::try_from(mtime).unwrap_or(i64::MAX)),
                }));
            }
        }
    }
    Err(TreeError::Malformed { what: "it says much and names nothing" })
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// How much follows `size` bytes of an entry until the next block, in bytes.
#[must_use]
pub const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Reads past bytes that nobody wants.
///
/// # Errors
/// The stream is cut or cannot be read.
pub fn pass(input: &mut impl Read, bytes: u64) -> Result<(), TreeError> {
    let passed = io::copy(&mut input.take(bytes), &mut io::sink());
    if passed.map_err(|source| TreeError::Read { source })? < bytes { Err(TreeError::Cut) } else { Ok(()) }
}

fn fill(input: &mut impl Read, buf: &mut [u8]) -> Result<(), TreeError> {
    input.read_exact(buf).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => TreeError::Cut,
        _ => TreeError::Read { source },
    })
}

fn check(header: &Header) -> Result<(), TreeError> {
    let bytes = header.as_bytes();
    let sum = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    match header.cksum() {
        Ok(stated) if stated == sum => Ok(()),
        _ => Err(TreeError::Malformed { what: "a header's sum is wrong" }),
    }
}

fn extension(input: &mut impl Read, size: u64) -> Result<Vec<u8>, TreeError> {
    if size > MAX_EXTENSION {
        return Err(TreeError::Malformed { what: "a name that is too long" });
    }
    let mut bytes = vec![0; size as usize];
    fill(input, &mut bytes)?;
    pass(input, padding(size))?;
    Ok(bytes)
}

/// A name, which has a zero at its end.
fn text(input: &mut impl Read, size: u64) -> Result<Vec<u8>, TreeError> {
    let mut bytes = extension(input, size)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn tail(input: &mut impl Read) -> Result<(), TreeError> {
    let mut buf = [0; 4096];
    let mut came = 0;
    loop {
        match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(got) => came += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(TreeError::Read { source }),
        }
        if came > MAX_TAIL {
            return Err(TreeError::Malformed { what: "it goes on behind its end" });
        }
    }
}

impl Said {
    /// Takes what pax says of the next entry.
    fn read(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        let malformed = || TreeError::Malformed { what: "a record of pax that is none" };
        for record in PaxExtensions::new(bytes) {
            let Ok(record) = record else { return Err(malformed()) };
            let value = record.value_bytes();
            let number = || std::str::from_utf8(value).ok();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => match number().and_then(|text| text.parse().ok()) {
                    Some(size) => self.size = Some(size),
                    None => return Err(malformed()),
                },
                // With a fraction that is left out.
                b"mtime" => {
                    let whole = number().and_then(|text| text.split('.').next()?.parse().ok());
                    self.mtime = Some(whole.ok_or_else(malformed)?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(TreeError::Unsupported { what: "sparse files" });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
