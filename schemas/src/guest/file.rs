//! `put` and `get`: files of the guest.

use serde::{Deserialize, Serialize};

/// Writes a file: to a temporary name in the same directory, checked, then renamed over the path,
/// so that a reader sees the old file or the whole new one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PutRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// How many bytes will come on the channel `data`.
    pub size: u64,
    /// Permission bits (default 0o644 = 420).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// SHA-256 of the bytes in lower-case hex, if known beforehand; the result carries it in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Makes missing parent directories, mode 0o755.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create_dirs: bool,
    /// `name`, `uid`, `name:group` or `uid:gid`; else the agent's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// The file is in place and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PutResult {
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of what was written, lower-case hex.
    pub sha256: String,
}

/// Reads a file, from `offset`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GetRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// The first byte wanted.
    #[serde(default)]
    pub offset: u64,
    /// At most so many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// What is coming.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GetHead {
    /// The file's size in bytes when it was opened.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last written: milliseconds since the Unix epoch.
    pub mtime_ms: i64,
}

/// All bytes were sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GetResult {
    /// How many bytes were sent.
    pub size: u64,
    /// SHA-256 of the bytes that were sent, lower-case hex.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// When it was last written: milliseconds since the Unix epoch.
    pub mtime_ms: i64,
}
