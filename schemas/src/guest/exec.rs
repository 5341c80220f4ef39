//! `exec`: a command in the guest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    /// Whether `stdin` will be sent; else it is `/dev/null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// After so many milliseconds the whole process group gets SIGTERM, and SIGKILL after
    /// `kill_grace_ms`.
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
    /// Wall time, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// CPU time in user mode, in milliseconds.
    #[serde(default)]
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    #[serde(default)]
    pub sys_ms: u64,
    /// The most memory it had resident, in KiB.
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
