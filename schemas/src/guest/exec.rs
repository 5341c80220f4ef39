//! `exec`: a command in the guest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TermSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl Default for TermSize {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// What `setrlimit` of the guest limits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Address space, in bytes.
    As,
    /// Size of a core file, in bytes.
    Core,
    /// CPU time, in seconds.
    Cpu,
    /// Data segment, in bytes.
    Data,
    /// Size of a file that is written, in bytes.
    Fsize,
    /// Locked memory, in bytes.
    Memlock,
    /// Open files.
    Nofile,
    /// Processes of the user.
    Nproc,
    /// Stack, in bytes.
    Stack,
}

/// A limit of a command's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceLimit {
    /// Of what.
    pub resource: Resource,
    /// What is enforced; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// How far the command may raise it; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
}

/// Runs a command in a session and process group of its own.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ExecRequest {
    /// The program and its arguments; a program without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables beside the usual `PATH HOME USER LOGNAME SHELL LANG`; the agent's own are not given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it runs; else the user's home, else `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`, from the guest's own `/etc/passwd` and `/etc/group`;
    /// else the agent's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Groups, by name or number, in place of those that `/etc/group` gives the user; the primary one
    /// stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// The mask of new files' permissions; 0o022 (18) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Limits of its processes; the agent's own if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<ResourceLimit>,
    /// Whether `stdin` will be sent; else it is `/dev/null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// At a terminal of its own: all output comes on `stdout`, and the end of `stdin` is typed as the
    /// terminal's own end-of-file character.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The terminal's size at the start; 24 lines of 80 columns if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TermSize>,
    /// Answers at once with a [`RunInfo`](super::RunInfo) and lets the command run on its own; its output is
    /// kept in the guest. Needs a request id, which names the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// How much of each output channel of a detached command is kept, in bytes; the older bytes go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_bytes: Option<u64>,
    /// After so many milliseconds the command and everything that it started, in whatever session, gets
    /// SIGTERM, and SIGKILL after `kill_grace_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds between SIGTERM and SIGKILL (default 2,000; 0 kills at once).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_grace_ms: Option<u64>,
    /// Output beyond so many bytes, both channels together, is thrown away and the result says
    /// `truncated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<u64>,
}

impl std::fmt::Debug for ExecRequest {
    /// Values of variables are often secrets: only their names are shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecRequest")
            .field("argv", &self.argv)
            .field("env", &self.env.keys())
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("stdin", &self.stdin)
            .field("tty", &self.tty)
            .field("detach", &self.detach)
            .field("timeout_ms", &self.timeout_ms)
            .finish_non_exhaustive()
    }
}

/// How a command ended. What it left running in the background lives on, without its output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ExecResult {
    /// Its exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The number of the signal that killed it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether `timeout_ms` ended it.
    #[serde(default)]
    pub timed_out: bool,
    /// When it was started, by the guest's clock: milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// When it ended, likewise.
    #[serde(default)]
    pub ended_unix_ms: u64,
    /// Wall time, in milliseconds.
    #[serde(default)]
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
    /// Bytes it wrote to its output, sent or not.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// Bytes it wrote to its error output, sent or not.
    #[serde(default)]
    pub stderr_bytes: u64,
    /// Whether output was thrown away for `max_output_bytes`.
    #[serde(default)]
    pub truncated: bool,
}
