//! Files of the guest: `put`, `get`, `stat`, `ls`, `rm`, `mkdir`.
//!
//! # Paths
//! A path is absolute and has no `..`. Symbolic links on the way are followed, as for every program of the guest, but
//! for the magic links of `/proc`, which are refused. A folder is looked up once and then held: a link that is swapped
//! in while the work goes on changes nothing. `put` and `rm` act on a link itself and never on what it names; `get`
//! follows one. Pipes, sockets and devices are never opened, nor replaced by `put`. A file that states no size but has
//! bytes, as those of `/proc`, is read as a whole up to [`MAX_UNSIZED`] bytes.

use serde::{Deserialize, Serialize};

use super::ranges::FileRange;

/// The most that is read of a file that states no size, in bytes.
pub const MAX_UNSIZED: u64 = 1024 * 1024;
/// The most entries that one answer of `ls` holds.
pub const MAX_ENTRIES: u32 = 256;

/// Writes a file: to a temporary name in the same directory, checked, then renamed over the path,
/// so that a reader sees the old file or the whole new one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PutRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// The file's size in bytes.
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
    /// When it was last written, in milliseconds since the Unix epoch; else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ms: Option<i64>,
    /// Which bytes will come on the channel `data`, in order; else all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<FileRange>>,
    /// Keeps what came of a transfer that breaks, under this name of at most 64 letters, digits, `-` and `_`: `stat`
    /// with the same name says how much that is, and another `put` with it goes on with `ranges` from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// The file is in place and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PutResult {
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of what was written, lower-case hex.
    pub sha256: String,
}

/// Reads a file, as long as it was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GetRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Which bytes are wanted, in order; else all of them. The digest is over the whole file all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<FileRange>>,
    /// Refuses a file of more bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
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
    /// The size of the file, sent or not.
    pub size: u64,
    /// SHA-256 of the whole file, lower-case hex.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
    /// When it was last written: milliseconds since the Unix epoch.
    pub mtime_ms: i64,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    #[default]
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe with a name.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A device.
    Device,
    /// A kind that this reader does not know.
    #[serde(other)]
    Other,
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Its size.
    pub size_bytes: u64,
    /// What it takes on its disk: less than its size where it has holes.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last written: milliseconds since the Unix epoch.
    pub mtime_ms: i64,
    /// What a symbolic link names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The bytes of a file that are not holes, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<FileRange>>,
}

/// Asks what a name is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StatRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Looks at what a symbolic link names, and not at the link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// Says which bytes of a file are not holes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ranges: bool,
    /// Looks at what a broken `put` to this path with the same `partial` has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// Asks for the names in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LsRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Only names that come after this one, byte by byte: the last of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many names; 256 if left out, which is the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DirEntry {
    /// Its name, without a slash.
    pub name: String,
    /// What it is; a link is not followed.
    pub stat: FileStat,
}

/// The names in a folder, sorted byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LsReply {
    /// The names.
    pub entries: Vec<DirEntry>,
    /// There are further ones: ask again with `after`.
    #[serde(default)]
    pub more: bool,
    /// How many names of the folder are not UTF-8, and so in no answer.
    #[serde(default)]
    pub unreadable: u64,
}

/// Removes a name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RmRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Removes a folder with everything in it; else a folder must be empty. Links are removed, never followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
}

/// Makes a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MkdirRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Permission bits (default 0o755 = 493).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Makes missing folders above it too, mode 0o755, and is content with one that is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parents: bool,
}
