//! Formats of the files through which the holder and the daemon speak.
//!
//! This file is compiled into both programs (the holder links neither tokio nor this crate), so it holds
//! types and constants only and depends on serde alone. A reader refuses a `version` above its own and
//! ignores fields that it does not know.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of every format in this file.
pub const VERSION: u32 = 2;

/// Names within a run directory.
pub mod file {
    /// Why the process exists, written by the daemon before the holder starts.
    pub const RECORD: &str = "hold.json";
    /// Locked for as long as a holder lives.
    pub const LOCK: &str = "hold.lock";
    /// The running VMM and its holder, written by the holder.
    pub const PID: &str = "vmm.pid";
    /// How the VMM ended, written by the holder.
    pub const EXIT: &str = "exit";
    /// FIFO that the VMM writes events to.
    pub const EVENT_FIFO: &str = "ev";
    /// Ring of the events as they came.
    pub const EVENTS: &str = "events.log";
    /// Ring of the serial console's output.
    pub const CONSOLE: &str = "console.log";
    /// FIFO whose bytes go to the serial console.
    pub const CONSOLE_IN: &str = "console.in";
    /// The first bytes that the VMM wrote to stdout or stderr.
    pub const STDERR: &str = "stderr.log";
    /// Ring of what came after those.
    pub const STDERR_TAIL: &str = "stderr.tail";
    /// Directory of the sockets.
    pub const SOCKETS: &str = "s";
    /// Directory over which the VMM's own root is mounted, in its mount namespace only.
    pub const ROOT: &str = "root";
    /// The VMM's HTTP API, below [`SOCKETS`].
    pub const API_SOCKET: &str = "api";
    /// The hybrid vsock, below [`SOCKETS`].
    pub const VSOCK_SOCKET: &str = "v";
    /// The serial console, below [`SOCKETS`].
    pub const SERIAL_SOCKET: &str = "serial";
    /// Datagram socket of the daemon, beside the run directories.
    pub const NOTIFY_SOCKET: &str = "notify";
}

/// The cgroup of the holder within a scope of systemd.
pub const SCOPE_HOLDER: &str = "holder";
/// The cgroup of the VMM within a scope of systemd.
pub const SCOPE_VMM: &str = "vmm";

/// Bytes that one file of a ring holds after its header; a ring has two files.
pub const RING_HALF: u64 = 512 * 1024;
/// Bytes that one file of the ring of late stderr holds.
pub const STDERR_HALF: u64 = 16 * 1024;
/// Bytes kept of the beginning of stderr.
pub const STDERR_HEAD: u64 = 32 * 1024;
/// Length of the header of a ring file: a JSON object, padded with spaces, ended by a newline.
pub const RING_HEADER: usize = 64;

/// The header of a ring file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingHeader {
    /// Version of the format.
    pub version: u32,
    /// Absolute offset of the first byte after the header.
    pub base: u64,
}

/// What the holder reads of [`file::RECORD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    /// Version of the format.
    pub version: u32,
    /// The installation's id.
    pub installation: String,
    /// The VM's id.
    pub vm_id: String,
    /// What the VMM is confined to; without it the VMM runs as its holder does.
    #[serde(default)]
    pub confinement: Option<Confinement>,
}

/// All that a VMM can reach. Its root is a file system of its own that holds these paths and devices and
/// nothing else; it has no capability and cannot gain one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Its user, and its only group.
    pub uid: u32,
    /// Files and directories under their own names, a directory before what lies in it. What is not there
    /// is left out.
    pub paths: Vec<VisiblePath>,
    /// Device nodes that it may use; what the host does not have is left out.
    pub devices: Vec<String>,
    /// Descriptors that it may have open.
    pub files: u64,
    /// Processes and threads that its user may have.
    pub processes: u64,
}

/// A path that a confined VMM sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisiblePath {
    /// The path, absolute.
    pub path: std::path::PathBuf,
    /// It may be written, as far as its owner and mode allow.
    #[serde(default)]
    pub writable: bool,
}

/// The running VMM and its holder ([`file::PID`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidRecord {
    /// Version of the format.
    pub version: u32,
    /// Process id of the VMM.
    pub pid: u32,
    /// Start time of the VMM in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub starttime: u64,
    /// The kernel's boot id; a record of another boot says nothing about live processes.
    pub boot_id: String,
    /// Process id of the holder.
    pub holder_pid: u32,
    /// Start time of the holder.
    pub holder_starttime: u64,
    /// Where this process's events begin in [`file::EVENTS`].
    pub events_offset: u64,
    /// Where this process's output begins in [`file::CONSOLE`].
    pub console_offset: u64,
    /// Set-up steps that failed without harm, each with its reason.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A step of the set-up that failed, so that no VMM runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnError {
    /// What was tried.
    pub step: String,
    /// The error number, 0 if there is none.
    pub errno: i32,
    /// The system's words for it.
    pub text: String,
}

/// How a VMM ended ([`file::EXIT`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of the format.
    pub version: u32,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Process id that it had; 0 if it never had one.
    pub vmm_pid: u32,
    /// Exit status, unless a signal ended it.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// It left a core file.
    #[serde(default)]
    pub core_dumped: bool,
    /// Processor time in user mode, in microseconds.
    #[serde(default)]
    pub utime_us: u64,
    /// Processor time in the kernel, in microseconds.
    #[serde(default)]
    pub stime_us: u64,
    /// Largest resident set, in KiB.
    #[serde(default)]
    pub maxrss_kib: u64,
    /// It never ran: this step failed.
    #[serde(default)]
    pub spawn_error: Option<SpawnError>,
    /// How many processes of its cgroup the kernel killed for memory; absent if nobody counts. The cgroup may be
    /// gone with its last process.
    #[serde(default)]
    pub oom_kills: Option<u64>,
    /// Bytes of events, console and stderr that could not be written.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Why there is neither `code` nor `signal` nor `spawn_error`: the holder died before the VMM.
    #[serde(default)]
    pub unrecorded: Option<String>,
}

/// How often the kernel killed a process of a cgroup for memory; `None` if nobody counts. `dirs` are its directories,
/// one for each hierarchy (`memory.events` of v2, `memory.oom_control` of v1).
pub fn oom_kills(dirs: &[PathBuf]) -> Option<u64> {
    dirs.iter().find_map(|dir| {
        ["memory.events", "memory.oom_control"].iter().find_map(|file| {
            let text = std::fs::read_to_string(dir.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
    })
}
