//! The guest protocol: what the daemon and the agent inside a guest say to each other.
//!
//! # Transport
//! The agent listens on vsock port [`PORT`], which is privileged, so no user of the guest can take
//! its place, and serves the host (CID 2) only. The daemon dials the hypervisor's hybrid socket:
//! `CONNECT 1023\n`, then one line `OK <port>\n`, then the bytes of this protocol. A closed socket
//! in place of `OK` means that nobody listens yet.
//!
//! # Frames
//! A frame is a big-endian `u32`, the length of what follows (at most [`MAX_FRAME`], checked before
//! anything is allocated), and one MessagePack map with named fields. The field `t` says which
//! frame it is; [`HostFrame`] and [`AgentFrame`] list them for each direction. Readers ignore
//! fields and, once greeted, frames that they do not know; what breaks a rule of this page ends the
//! connection.
//!
//! # Greeting
//! The host speaks first: `hello{proto_min, proto_max, …}`. The agent answers `hello{proto, …}` with
//! the highest version of both ranges, or `bye{error}` and closes. The agent waits
//! [`HELLO_TIMEOUT_MS`] for the host's greeting. `boot_id` changes with every boot of the guest: a
//! request id is remembered for one boot.
//!
//! # Requests
//! `req{stream, verb, body, …}` opens a stream; `res{stream, body | error}` ends it, exactly once,
//! whatever happens; only then may the host use the number again. `body` holds the bytes of the
//! verb's own type (module [`verb`] lists them), so a relay never encodes anew. `head{stream, body}`
//! may come once before the data and tells what is coming. `deadline_ms` counts from arrival; when
//! it passes, the work is ended as by `cancel` and the answer is `deadline_exceeded`.
//! `cancel{stream}` ends the work (a command is killed with everything that it started, a half-written
//! file is removed, or kept if the request says so); the answer still comes. A lost connection cancels its
//! streams. A detached command has no stream: neither ends it, nor does the end of the agent.
//! `control{stream, size, signal}` goes to the command of an `exec` or an `attach`: its terminal has a new
//! size, its process group gets a signal.
//!
//! # Data and credit
//! Bytes travel as `data{stream, ch, off, data, eof}` of at most [`MAX_DATA`] bytes, `off` being the
//! absolute offset in that channel. A sender sends bytes below the receiver's latest
//! `credit{stream, ch, limit}` only; a limit never shrinks, and a repeated one is harmless. Without
//! a credit frame the limit of a new stream is `req.credit` for every channel that the agent sends
//! and [`AgentHello::stream_credit`] for every channel that the host sends. `eof` may come alone,
//! with no bytes; an empty frame without it is a fault. `res` ends every channel of its stream. The
//! agent reads no byte from a pipe or a file without credit in hand.
//!
//! A connection has one order of bytes, and control goes before bulk: a sender puts at most a few
//! data frames into the transport and sends every other frame before the next of them.
//!
//! # Once only
//! A request that changes the guest carries a `request_id`. The agent remembers the last
//! [`REMEMBERED`] of them, for [`REMEMBERED_MS`], for all connections of one boot: the same id with
//! the same verb and body attaches to the work in flight or gets the same result again (output is
//! not kept), another body gets `conflict`. What failed before it had an effect is not remembered.
//! An agent that was started again has forgotten them and says so by another `instance` in its greeting;
//! detached commands it still knows.
//!
//! # Events
//! A host that takes events says so (feature [`EVENTS`] of its greeting). The agent then sends those that it keeps as
//! `event{log, n, …}`, in order of their numbers, at most [`event::EVENTS_IN_FLIGHT`] before the host has answered
//! `event_ack{log, n}`: its journal has that one and all before it, and the agent forgets them. With each connection the
//! agent begins anew with the first that was not acknowledged; with several, it sends them on the newest alone.
//!
//! # Health of the link
//! Either side answers `ping{nonce}` with `pong{nonce}`. The host pings after 30 s of silence and
//! gives a link up 10 s later; the agent drops a connection that was silent for [`SILENCE_MS`].
//! `bye` says why a connection ends.

mod accounts;
mod check;
pub mod event;
mod exec;
mod file;
pub mod flow;
mod frame;
mod freeze;
mod look;
mod network;
pub mod ranges;
mod run;
mod state;
mod threshold;
mod tree;
mod upgrade;
pub mod verb;
pub mod wire;
mod work;

pub use accounts::{
    AccountChange, AuthorizedKey, KeysChangeRequest, KeysChangeResult, KeysRequest, KeysResult, MAX_ACCOUNTS,
    MAX_KEY_LINE, MAX_KEYS_CHANGED, PasswordState, UserAddRequest, UserAddResult, UserInfo, UserRmRequest,
    UserRmResult, UsersRequest, UsersResult,
};
pub use check::{
    CheckSource, CheckSpec, CheckState, CheckStatus, ConfigureRequest, MAX_CHECK_OUTPUT, MAX_CHECKS,
    MAX_WATCH_MS, RefusedFile, SettingError, check_all,
};
pub use event::{EVENTS, Event, EventAck, EventData, EventType};
pub use exec::{ExecRequest, ExecResult, Resource, ResourceLimit, TermSize};
pub use file::{
    DirEntry, FileKind, FileStat, GetHead, GetRequest, GetResult, LsReply, LsRequest, MAX_ENTRIES,
    MAX_UNSIZED, MkdirRequest, PutRequest, PutResult, RmRequest, StatRequest,
};
pub use frame::{
    AgentFrame, AgentHello, Bye, Cancel, Channel, Control, Credit, Data, FrameKind, GuestKind, Head,
    HostFrame, HostHello, Moved, Ping, Pong, Request, Response,
};
pub use freeze::{
    FREEZE_MS, FreezeRequest, FreezeResult, FreezeState, FrozenMount, FrozenResult, MAX_FREEZE_MS,
    MAX_FROZEN, SkippedMount, ThawResult, ThawedBy,
};
pub use look::{
    DiskInfo, DiskUse, HealthResult, HealthStatus, InfoResult, InterfaceInfo, InterfaceUse, MAX_PROCESSES,
    MAX_SAMPLE_MS, MountInfo, PROCESSES, ProcessInfo, ProcessOrder, ProcessesRequest, ProcessesResult,
    SampleResult,
};
pub use network::{MAX_NETWORK, NetworkRequest, NetworkResult, NetworkRoute, NetworkState};
pub use ranges::FileRange;
pub use run::{
    AttachHead, AttachRequest, AttachResult, AttachedAt, Extent, KillRequest, RunInfo, RunResult, RunState,
    RunsRequest, RunsResult,
};
pub use state::{PingResult, ShutdownMode, ShutdownRequest, ShutdownResult};
pub use threshold::{
    MAX_THRESHOLDS, Measure, ThresholdSpec, ThresholdState, ThresholdStatus, check_thresholds,
};
pub use tree::{MAX_TREE, PackHead, PackRequest, TreeResult, UnpackRequest};
pub use upgrade::{MAX_PROGRAM, UpgradeRequest, UpgradeResult};
pub use work::{
    IdentityPart, IdentityRequest, IdentityResult, MoveClockRequest, MoveClockResult, OnlineRequest,
    OnlineResult, PartOutcome, PartResult, ReseedRequest, TrimRequest, TrimResult, TrimmedMount,
};

/// The vsock port of the agent: the last privileged one, so a guest's user cannot bind it.
pub const PORT: u32 = 1023;
/// The oldest protocol version that this crate speaks.
pub const PROTO_MIN: u32 = 1;
/// The newest protocol version that this crate speaks.
pub const PROTO_MAX: u32 = 1;
/// The longest frame, without its length, in bytes.
pub const MAX_FRAME: usize = 128 * 1024;
/// The most bytes in one data frame.
pub const MAX_DATA: usize = 64 * 1024;
/// How many streams one connection may have open.
pub const MAX_STREAMS: usize = 64;
/// How long the agent waits for the host's greeting, in milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 5_000;
/// How many request ids the agent remembers.
pub const REMEMBERED: usize = 1_000;
/// For how long the agent remembers a request id, in milliseconds.
pub const REMEMBERED_MS: u64 = 600_000;
/// How many detached commands the agent keeps, ended ones included; those that ended first go first.
pub const MAX_RUNS: usize = 32;
/// How long the result and the output of a detached command are kept after its end, in milliseconds.
pub const RUN_KEPT_MS: u64 = 24 * 3_600_000;
/// How much of each output channel of a detached command is kept if its request does not say, in bytes.
pub const RING_BYTES: u64 = 1024 * 1024;
/// The most that is kept of a channel.
pub const MAX_RING_BYTES: u64 = 8 * 1024 * 1024;
/// What all detached commands together may keep, in bytes; on a guest of less than 512 MiB a 32nd of its
/// memory.
pub const MAX_RINGS_BYTES: u64 = 16 * 1024 * 1024;
/// After how much silence of the host the agent drops a connection, in milliseconds.
pub const SILENCE_MS: u64 = 120_000;
