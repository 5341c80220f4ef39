//! Detached commands: runs that go on without a connection, and are looked at, read and ended later.
//!
//! A run belongs to one boot of the guest. It is a process of its own, so it goes on over the loss of every
//! connection, and over a restart or an upgrade of the agent. Its output is kept in a ring for each channel;
//! offsets are absolute, counted from the command's first byte.

use serde::{Deserialize, Serialize};

use crate::id::RequestId;

/// How a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The command runs.
    #[default]
    Running,
    /// It has ended; the result is kept.
    Ended,
    /// What kept its output was killed, so nobody knows how the command ended, or whether it did.
    Lost,
    /// A state that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// Which bytes of a channel are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Extent {
    /// Offset of the oldest byte that is kept; what was before is lost.
    pub start: u64,
    /// Offset of the next byte that the command will write.
    pub end: u64,
}

/// How a detached command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunResult {
    /// Its exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The number of the signal that killed it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether its time was over.
    #[serde(default)]
    pub timed_out: bool,
    /// When it ended, by the guest's clock: milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// Wall time, in milliseconds.
    pub duration_ms: u64,
    /// CPU time in user mode, in milliseconds.
    #[serde(default)]
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    #[serde(default)]
    pub sys_ms: u64,
    /// The most memory that the largest of its processes had resident, in KiB.
    #[serde(default)]
    pub max_rss_kib: u64,
}

/// A detached command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunInfo {
    /// Its name: the id of the request that started it.
    pub run: RequestId,
    /// The program and its arguments, cut to 1 KiB in all.
    pub argv: Vec<String>,
    /// As whom it runs.
    #[serde(default)]
    pub user: String,
    /// Whether it is at a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether whoever attaches can write to it.
    #[serde(default)]
    pub stdin: bool,
    /// Its process id in the guest.
    pub pid: u32,
    /// How it is.
    pub state: RunState,
    /// When it was started, by the guest's clock: milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Its output.
    pub stdout: Extent,
    /// Its error output.
    pub stderr: Extent,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
}

/// Lists the runs of this boot, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunsRequest {
    /// This one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RequestId>,
}

/// The runs of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunsResult {
    /// Oldest first.
    pub runs: Vec<RunInfo>,
}

/// Reads the output of a run, from where the reader is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttachRequest {
    /// Which run.
    pub run: RequestId,
    /// The first byte of its output that is wanted; the oldest that is kept if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_off: Option<u64>,
    /// The same for its error output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_off: Option<u64>,
    /// Whether input will be sent. It goes to the command beside that of others who are attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// End with what is there, rather than with the command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_follow: bool,
}

/// Where the bytes of one channel begin that are coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttachedAt {
    /// Absolute offset of the stream's first byte.
    pub off: u64,
    /// Bytes before this offset that were asked for are not kept any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_before: Option<u64>,
}

/// What is coming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttachHead {
    /// The run as it was then.
    pub run: RunInfo,
    /// Its output.
    pub stdout: AttachedAt,
    /// Its error output.
    pub stderr: AttachedAt,
}

/// Everything that was asked for was sent. A reader so slow that the ring has moved on below it gets
/// `conflict{cause: output_lost, channel, off, lost_before}` in place of this, and may attach again from there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttachResult {
    /// How the run is.
    pub state: RunState,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Absolute offset after the last byte of its output that was sent.
    pub stdout_off: u64,
    /// The same for its error output.
    pub stderr_off: u64,
}

/// Sends a signal to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KillRequest {
    /// Which run.
    pub run: RequestId,
    /// The signal's number; SIGTERM (15) if left out. SIGKILL (9) ends everything that the command started,
    /// others go to its process group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}
