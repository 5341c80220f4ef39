//! Folders of the guest: `pack`, `unpack`. They travel in the format of `tar`, on the channel `data`.
//!
//! # What travels
//! Folders, regular files and symbolic links, with permissions and the seconds of their times. Sockets, pipes, devices
//! and what is mounted below the folder do not, and are counted as skipped. Links are never followed, neither those of
//! the folder nor those that a stream brings. The path follows the rules of files: see `put`.
//!
//! A stream is refused whole if a name of it leads out of the folder, goes through a link, or comes twice. The formats
//! `ustar`, GNU and pax are read, without sparse files; holes travel as zeros.

use serde::{Deserialize, Serialize};

/// The most entries that one stream may bring to a guest.
pub const MAX_TREE: u64 = 1_000_000;

/// Reads a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PackRequest {
    /// Absolute path of a folder in the guest.
    pub path: String,
    /// Refuses a folder whose files have more bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
}

/// What is coming, as the folder was when it was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PackHead {
    /// Folders, files and links in it.
    pub entries: u64,
    /// What is in its files.
    pub size_bytes: u64,
}

/// Writes a folder: beside its path, checked, then renamed, so that a reader sees the whole folder or nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UnpackRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// What the folder's files have in all; more is refused, and so is a disk without room for it.
    pub size_bytes: u64,
    /// `name`, `uid`, `name:group` or `uid:gid` that everything will belong to; else the agent's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Makes missing parent directories, mode 0o755.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create_dirs: bool,
    /// Takes the place of what has the path now, which is removed afterwards; else that is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// The folder has travelled. Compare the digest with your own of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TreeResult {
    /// Folders, files and links, without the folder itself.
    pub entries: u64,
    /// What is in the files.
    pub size_bytes: u64,
    /// What was there and does not travel.
    pub skipped: u64,
    /// The length of the stream.
    pub stream_bytes: u64,
    /// SHA-256 of the stream, lower-case hex.
    pub sha256: String,
}
