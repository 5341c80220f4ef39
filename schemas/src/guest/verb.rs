//! The verbs of the agent.
//!
//! | verb | request | head | data | result | repeatable |
//! |---|---|---|---|---|---|
//! | `ping` | – | | | [`PingResult`](super::PingResult) | yes |
//! | `exec` | [`ExecRequest`](super::ExecRequest) | | host: `stdin`; agent: `stdout`, `stderr` | [`ExecResult`](super::ExecResult) | by id |
//! | `exec` with `detach` | the same | | | [`RunInfo`](super::RunInfo) | by id |
//! | `runs` | [`RunsRequest`](super::RunsRequest) | | | [`RunsResult`](super::RunsResult) | yes |
//! | `attach` | [`AttachRequest`](super::AttachRequest) | [`AttachHead`](super::AttachHead) | host: `stdin`; agent: `stdout`, `stderr` | [`AttachResult`](super::AttachResult) | yes |
//! | `kill` | [`KillRequest`](super::KillRequest) | | | empty map | by id |
//! | `put` | [`PutRequest`](super::PutRequest) | | host: `data` | [`PutResult`](super::PutResult) | by id |
//! | `get` | [`GetRequest`](super::GetRequest) | [`GetHead`](super::GetHead) | agent: `data` | [`GetResult`](super::GetResult) | yes |
//! | `stat` | [`StatRequest`](super::StatRequest) | | | [`FileStat`](super::FileStat) | yes |
//! | `ls` | [`LsRequest`](super::LsRequest) | | | [`LsReply`](super::LsReply) | yes |
//! | `rm` | [`RmRequest`](super::RmRequest) | | | empty | by id |
//! | `mkdir` | [`MkdirRequest`](super::MkdirRequest) | | | empty | by id |
//! | `pack` | [`PackRequest`](super::PackRequest) | [`PackHead`](super::PackHead) | agent: `data` | [`TreeResult`](super::TreeResult) | yes |
//! | `unpack` | [`UnpackRequest`](super::UnpackRequest) | | host: `data` | [`TreeResult`](super::TreeResult) | by id |
//! | `info` | – | | | [`InfoResult`](super::InfoResult) | yes |
//! | `health` | – | | | [`HealthResult`](super::HealthResult) | yes |
//! | `freeze` | [`FreezeRequest`](super::FreezeRequest) | | | [`FreezeResult`](super::FreezeResult) | by id |
//! | `thaw` | – | | | [`ThawResult`](super::ThawResult) | by id |
//! | `frozen` | – | | | [`FrozenResult`](super::FrozenResult) | yes |
//! | `processes` | [`ProcessesRequest`](super::ProcessesRequest) | | | [`ProcessesResult`](super::ProcessesResult) | yes |
//! | `sample` | – | | | [`SampleResult`](super::SampleResult) | yes |
//! | `configure` | [`ConfigureRequest`](super::ConfigureRequest) | | | empty | yes |
//! | `clock` | [`MoveClockRequest`](super::MoveClockRequest) | | | [`MoveClockResult`](super::MoveClockResult) | by id |
//! | `online` | [`OnlineRequest`](super::OnlineRequest) | | | [`OnlineResult`](super::OnlineResult) | by id |
//! | `trim` | [`TrimRequest`](super::TrimRequest) | | | [`TrimResult`](super::TrimResult) | by id |
//! | `reseed` | [`ReseedRequest`](super::ReseedRequest) | | | empty | yes |
//! | `identity` | [`IdentityRequest`](super::IdentityRequest) | | | [`IdentityResult`](super::IdentityResult) | by id |
//! | `upgrade` | [`UpgradeRequest`](super::UpgradeRequest) | | host: `data` | [`UpgradeResult`](super::UpgradeResult) | by id |
//! | `users` | [`UsersRequest`](super::UsersRequest) | | | [`UsersResult`](super::UsersResult) | yes |
//! | `user_add` | [`UserAddRequest`](super::UserAddRequest) | | | [`UserAddResult`](super::UserAddResult) | by id |
//! | `user_rm` | [`UserRmRequest`](super::UserRmRequest) | | | [`UserRmResult`](super::UserRmResult) | by id |
//! | `keys` | [`KeysRequest`](super::KeysRequest) | | | [`KeysResult`](super::KeysResult) | yes |
//! | `keys_change` | [`KeysChangeRequest`](super::KeysChangeRequest) | | | [`KeysChangeResult`](super::KeysChangeResult) | by id |
//! | `network` | [`NetworkRequest`](super::NetworkRequest) | | | [`NetworkResult`](super::NetworkResult) | by id |
//! | `shutdown` | [`ShutdownRequest`](super::ShutdownRequest) | | | [`ShutdownResult`](super::ShutdownResult) | by id |
//!
//! Verbs are text on the wire, so that an agent can name one it does not know (`unsupported`). What
//! an agent offers stands in `capabilities` of its greeting.

/// No verb, but in the greeting of an agent whose `exec` knows `tty`, `size`, `groups`, `umask` and `limits`, and
/// which takes `control` frames.
pub const EXEC_SETTINGS: &str = "exec.settings";

/// Answers at once: the agent lives.
pub const PING: &str = "ping";
/// Runs a command.
pub const EXEC: &str = "exec";
/// Lists detached commands.
pub const RUNS: &str = "runs";
/// Reads the output of a detached command.
pub const ATTACH: &str = "attach";
/// Sends a signal to a detached command.
pub const KILL: &str = "kill";
/// Writes a file.
pub const PUT: &str = "put";
/// Reads a file.
pub const GET: &str = "get";
/// What a name is.
pub const STAT: &str = "stat";
/// The names in a folder.
pub const LS: &str = "ls";
/// Removes a name.
pub const RM: &str = "rm";
/// Makes a folder.
pub const MKDIR: &str = "mkdir";
/// Reads a folder.
pub const PACK: &str = "pack";
/// Writes a folder.
pub const UNPACK: &str = "unpack";
/// What the guest is.
pub const INFO: &str = "info";
/// How the guest is.
pub const HEALTH: &str = "health";
/// Lets file systems stand still.
pub const FREEZE: &str = "freeze";
/// Lets them go on.
pub const THAW: &str = "thaw";
/// What stands still.
pub const FROZEN: &str = "frozen";
/// What the guest does.
pub const PROCESSES: &str = "processes";
/// Numbers of one moment, for the host's own samples; not on the bus.
pub const SAMPLE: &str = "sample";
/// What the spec wants of the agent, told at each greeting; not on the bus.
pub const CONFIGURE: &str = "configure";
/// Reads and moves the clock.
pub const CLOCK: &str = "clock";
/// Brings CPUs and memory online.
pub const ONLINE: &str = "online";
/// Gives unused blocks back.
pub const TRIM: &str = "trim";
/// Takes randomness from the host; hosts send it before `identity`.
pub const RESEED: &str = "reseed";
/// Makes a clone another guest.
pub const IDENTITY: &str = "identity";
/// Puts another agent in the place of this one.
pub const UPGRADE: &str = "upgrade";
/// Lists users.
pub const USERS: &str = "users";
/// Makes or changes a user.
pub const USER_ADD: &str = "user_add";
/// Removes a user.
pub const USER_RM: &str = "user_rm";
/// Lists the SSH keys of a user.
pub const KEYS: &str = "keys";
/// Changes the SSH keys of a user.
pub const KEYS_CHANGE: &str = "keys_change";
/// Looks at an interface, and sets it up.
pub const NETWORK: &str = "network";
/// Powers the guest off, or reboots it.
pub const SHUTDOWN: &str = "shutdown";
