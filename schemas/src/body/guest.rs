//! Requests and replies of `vm.<name>.guest.*` as a client sees them. The frames between the daemon
//! and the agent are another contract.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::blob::Blob;
use crate::guest::{AttachedAt, FileRange, PackHead, ResourceLimit, RunInfo, TermSize};
use crate::secret::Secret;
use crate::stream::StreamOpened;

/// Reply of `guest.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PingReply {
    /// Round trip between daemon and agent, in microseconds.
    pub round_trip_us: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// Boot id of the guest.
    pub boot_id: String,
}

/// Request of `guest.exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecRequest {
    /// Program and arguments; no shell is added.
    pub argv: Vec<String>,
    /// Added to a plain environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// Directory to run in; the user's home if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid` by the guest's own files; root if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Groups, by name or number, in place of those that the guest gives the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// The mask of new files' permissions; 0o022 (18) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Limits of its processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<ResourceLimit>,
    /// At a terminal of its own; its output comes on `stdout` alone. Sizes and signals go over the stream's
    /// channel `ctl`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The terminal's size at the start; 24 lines of 80 columns if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TermSize>,
    /// Start it, answer with the run, and let it go on by itself; `guest.attach` reads its output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// Let those who attach write to it; only with `detach`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// How much of each output channel the guest keeps of it, in bytes; only with `detach`. 1 MiB if left out,
    /// 8 MiB at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_bytes: Option<u64>,
    /// The guest ends the command and everything that it started after this time, in milliseconds; 30,000 if
    /// left out and neither streamed nor detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Fed to the program; only where `stream` is false. At most 48 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Blob>,
    /// Answer with a stream; else output is collected, up to 128 KiB each for stdout and stderr.
    #[serde(default)]
    pub stream: bool,
}

/// Result of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecResult {
    /// Its exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it, otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its time was over.
    #[serde(default)]
    pub timed_out: bool,
    /// When it was started, by the guest's clock: milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// When it ended, likewise.
    #[serde(default)]
    pub ended_unix_ms: u64,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// CPU time in user mode, of it and of the processes that it waited for, in milliseconds.
    #[serde(default)]
    pub user_ms: u64,
    /// CPU time in the kernel, likewise.
    #[serde(default)]
    pub sys_ms: u64,
    /// The most memory that the largest of these processes had resident, in KiB.
    #[serde(default)]
    pub max_rss_kib: u64,
    /// Output, where it was not streamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Blob>,
    /// Error output, where it was not streamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Blob>,
    /// More was written than is here: too much for a reply (use a stream), or the request was a repeated
    /// one, whose result is remembered without its output.
    #[serde(default)]
    pub truncated: bool,
}

/// Reply of `guest.exec`: a result, or where its stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecReply {
    /// It has ended.
    Result(ExecResult),
    /// It runs; frames follow. The stream's result is an [`ExecResult`].
    Stream(StreamOpened),
    /// It runs by itself.
    Run(RunInfo),
}

/// A message of the channel `ctl`, for a command at a terminal. A frame of the channel holds whole ones,
/// one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecControl {
    /// The terminal has this size now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TermSize>,
    /// The command's process group gets the signal of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// Reply of `guest.attach`; the stream's offsets count from `off` of each channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachReply {
    /// The run.
    pub run: RunInfo,
    /// Where its output begins.
    pub stdout: AttachedAt,
    /// Where its error output begins.
    pub stderr: AttachedAt,
    /// The stream. Its result is an [`AttachResult`](crate::guest::AttachResult).
    pub stream: StreamOpened,
}

/// Request of `guest.put`; the data follows on channel `data` of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PutRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// The file's size.
    pub size_bytes: u64,
    /// Permissions; 0644 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// SHA-256 of the data in hexadecimal, if it is known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Make missing directories.
    #[serde(default)]
    pub create_dirs: bool,
    /// `name`, `uid`, `name:group` or `uid:gid` of the guest; the agent's user if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it was last written, in milliseconds since the Unix epoch; now if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ms: Option<i64>,
    /// The bytes that will follow, in order and at most 1,024 ranges; all of them if left out. Elsewhere the file is
    /// zero and takes no room, or has what an earlier transfer with the same `partial` brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<FileRange>>,
    /// Keeps what came of a transfer that breaks, under this name of at most 64 letters, digits, `-` and `_`.
    /// `guest.stat` with it says how much that is; a put with it goes on with `ranges` from there, and takes the place
    /// of one that still runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// Request of `guest.get`; the data comes on channel `data` of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// Refuse a file larger than this, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// The bytes that are wanted, in order and at most 1,024 ranges; all of them if left out. The digest is over the
    /// whole file all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<FileRange>>,
}

/// Result of a transfer; compare the digest with your own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileResult {
    /// Length of the file.
    pub size_bytes: u64,
    /// SHA-256 in hexadecimal, by the guest.
    pub sha256: String,
    /// Permissions.
    pub mode: u32,
    /// When a file that was read was last written: milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ms: Option<i64>,
    /// Owner of a file that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of a file that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// Reply of `guest.pack`; the folder comes on channel `data` of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackReply {
    /// What is coming.
    pub folder: PackHead,
    /// The stream. Its result is a [`TreeResult`](crate::guest::TreeResult).
    pub stream: StreamOpened,
}

/// How `guest.shutdown` ends the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Switch off; the VM's desired state stays as it is.
    #[default]
    PowerOff,
    /// Start anew.
    Reboot,
}

/// Request of `guest.shutdown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestShutdownRequest {
    /// How.
    #[serde(default)]
    pub mode: ShutdownMode,
}

/// Request of `guest.clock`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClockRequest {
    /// Set it by the host's clock; else it is only looked at.
    #[serde(default)]
    pub set: bool,
    /// How far it may be off to be set by running a little faster or slower, in milliseconds; 500 if left out. Beyond
    /// that it jumps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slew_ms: Option<u64>,
}

/// What was done about a guest's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockChange {
    /// It is right, or was only looked at.
    #[default]
    None,
    /// It runs a little faster or slower until it is right.
    Slewed,
    /// It has jumped.
    Stepped,
    /// A change that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// Reply of `guest.clock`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClockReply {
    /// How far the guest's clock was ahead of the host's, in microseconds.
    pub ahead_us: i64,
    /// How far off this may be: half of the round trip, in microseconds.
    pub error_us: u64,
    /// What was done.
    pub change: ClockChange,
}

/// An empty request or reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}
