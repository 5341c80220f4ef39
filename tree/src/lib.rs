//! A folder as a stream of bytes, in the format of `tar`: packed at one end, unpacked at the other.
//!
//! Either end may be hostile. What is packed is looked up once and then held, so a link that is swapped in leads
//! nowhere; what is unpacked lands in a folder of its own, that nothing else reaches until it is whole, and no link of
//! the stream is ever followed. Memory does not grow with the folder, nor with what a stream claims.
//!
//! # What travels
//! Folders, regular files and symbolic links, with permissions and times. Sockets, pipes, devices and what is mounted
//! below the folder do not: they are counted as skipped. A hard link travels as a file of its own. Holes travel as
//! zeros, and are holes again where they arrive. Streams of other programs are read in the formats `ustar`, GNU and
//! pax, without sparse files.

mod draft;
mod error;
pub mod header;
mod pack;
mod stream;
mod unpack;

pub use draft::Draft;
pub use error::TreeError;
pub use pack::{Survey, pack, survey};
pub use unpack::{Links, Rules, unpack};

/// How many folders a path may go through.
pub const MAX_DEPTH: usize = 128;
/// The longest path, in bytes.
pub const MAX_PATH: usize = 4096;

/// What went by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Folders, files and links, without the folder itself.
    pub entries: u64,
    /// What is in the files, in bytes.
    pub size_bytes: u64,
    /// What was there and did not travel.
    pub skipped: u64,
    /// The length of the stream, in bytes.
    pub stream_bytes: u64,
    /// SHA-256 of the stream, in lower-case hex.
    pub sha256: String,
}
