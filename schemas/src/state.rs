//! The life of a VM as a table: states × inputs.
//!
//! [`cell`] is part of the contract. Admission and the machine of the daemon are tested against it
//! cell by cell, and `docs`-like renderings ([`markdown`], [`mermaid`]) are generated from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod table;

pub use table::{cell, markdown, mermaid};

/// What a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Accepted and journalled; disks and network are being made for the first time.
    Creating,
    /// Its VMM is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is frozen in memory.
    Paused,
    /// It is being stopped.
    Stopping,
    /// It holds its row, name, address and disks; no process, TAP, cgroup, memory or CPU.
    Stopped,
    /// As `stopped`, and will be started again by its restart policy.
    Backoff,
    /// As `stopped`, with its memory on disk.
    Hibernated,
    /// As `stopped`, after an end that nobody asked for.
    Failed,
    /// Everything of it is being released.
    Deleting,
    /// The host is finding out.
    Unknown,
    /// A state that this reader does not know.
    #[serde(other)]
    Unrecognized,
}

impl VmState {
    /// Every state that a VM can be in.
    pub const ALL: [Self; 11] = [
        Self::Creating,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Backoff,
        Self::Hibernated,
        Self::Failed,
        Self::Deleting,
        Self::Unknown,
    ];

    /// Whether the VM holds runtime resources (process, TAP, cgroup, memory, CPU) in this state.
    #[must_use]
    pub const fn holds_runtime(self) -> bool {
        matches!(
            self,
            Self::Creating
                | Self::Starting
                | Self::Running
                | Self::Paused
                | Self::Stopping
                | Self::Deleting
                | Self::Unknown
        )
    }

    /// The state's name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Backoff => "backoff",
            Self::Hibernated => "hibernated",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
            Self::Unknown => "unknown",
            Self::Unrecognized => "unrecognized",
        }
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a VM shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Running.
    Running,
    /// Stopped.
    Stopped,
    /// Paused.
    Paused,
    /// Gone.
    Deleted,
    /// A state that this reader does not know.
    #[serde(other)]
    Unrecognized,
}

/// A mutating verb as the table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// `start`
    Start,
    /// `shutdown`
    Shutdown,
    /// `stop`
    Stop,
    /// `stop` with `force: true`
    StopForce,
    /// `reboot`
    Reboot,
    /// `pause`
    Pause,
    /// `resume`
    Resume,
    /// `forward`
    Forward,
    /// `egress`
    Egress,
    /// `limit`
    Limit,
    /// `grow`
    Grow,
    /// `delete`
    Delete,
}

/// What happens to a VM from outside the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Happening {
    /// Disks, network and VMM are up and the guest was started.
    Booted,
    /// A step of creating or starting failed.
    BootFailed,
    /// The VMM process ended without being asked to.
    VmmExited,
    /// The guest switched itself off.
    GuestPowerOff,
    /// The guest rebooted itself.
    GuestReboot,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest agent fell silent, or did not come up in time.
    AgentLost,
    /// A pause was carried out.
    Paused,
    /// A resume was carried out.
    Resumed,
    /// A stop was carried out and everything of the runtime released.
    Stopped,
    /// A graceful stop ran out of time; the guest still runs.
    ShutdownTimedOut,
    /// Everything of a delete was released.
    Deleted,
    /// The back-off before a restart is over.
    BackoffElapsed,
    /// The daemon started; the VMM lives.
    DaemonStartAlive,
    /// The daemon started; the VMM is gone, and the host was not rebooted.
    DaemonStartGone,
    /// The daemon started after the host was rebooted.
    HostRebooted,
    /// The daemon ends and was told to stop its VMs.
    HostStopping,
    /// The daemon started and cannot tell whether the VMM lives.
    DaemonStartUnclear,
}

/// One column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// A verb.
    Verb(Verb),
    /// Something that happened.
    Happened(Happening),
}

impl Input {
    /// Every column, verbs first.
    pub const ALL: [Self; 30] = [
        Self::Verb(Verb::Start),
        Self::Verb(Verb::Shutdown),
        Self::Verb(Verb::Stop),
        Self::Verb(Verb::StopForce),
        Self::Verb(Verb::Reboot),
        Self::Verb(Verb::Pause),
        Self::Verb(Verb::Resume),
        Self::Verb(Verb::Forward),
        Self::Verb(Verb::Egress),
        Self::Verb(Verb::Limit),
        Self::Verb(Verb::Grow),
        Self::Verb(Verb::Delete),
        Self::Happened(Happening::Booted),
        Self::Happened(Happening::BootFailed),
        Self::Happened(Happening::VmmExited),
        Self::Happened(Happening::GuestPowerOff),
        Self::Happened(Happening::GuestReboot),
        Self::Happened(Happening::GuestPanic),
        Self::Happened(Happening::AgentLost),
        Self::Happened(Happening::Paused),
        Self::Happened(Happening::Resumed),
        Self::Happened(Happening::Stopped),
        Self::Happened(Happening::ShutdownTimedOut),
        Self::Happened(Happening::Deleted),
        Self::Happened(Happening::BackoffElapsed),
        Self::Happened(Happening::DaemonStartAlive),
        Self::Happened(Happening::DaemonStartGone),
        Self::Happened(Happening::HostRebooted),
        Self::Happened(Happening::HostStopping),
        Self::Happened(Happening::DaemonStartUnclear),
    ];

    /// The column's heading.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verb(v) => match v {
                Verb::Start => "start",
                Verb::Shutdown => "shutdown",
                Verb::Stop => "stop",
                Verb::StopForce => "stop{force}",
                Verb::Reboot => "reboot",
                Verb::Pause => "pause",
                Verb::Resume => "resume",
                Verb::Forward => "forward",
                Verb::Egress => "egress",
                Verb::Limit => "limit",
                Verb::Grow => "grow",
                Verb::Delete => "delete",
            },
            Self::Happened(h) => match h {
                Happening::Booted => "booted",
                Happening::BootFailed => "boot failed",
                Happening::VmmExited => "VMM exited",
                Happening::GuestPowerOff => "guest power-off",
                Happening::GuestReboot => "guest reboot",
                Happening::GuestPanic => "guest panic",
                Happening::AgentLost => "agent lost",
                Happening::Paused => "paused",
                Happening::Resumed => "resumed",
                Happening::Stopped => "stopped",
                Happening::ShutdownTimedOut => "shutdown timed out",
                Happening::Deleted => "released",
                Happening::BackoffElapsed => "back-off over",
                Happening::DaemonStartAlive => "daemon start, VMM alive",
                Happening::DaemonStartGone => "daemon start, VMM gone",
                Happening::HostRebooted => "host rebooted",
                Happening::HostStopping => "host stops its VMs",
                Happening::DaemonStartUnclear => "daemon start, unclear",
            },
        }
    }
}

/// What a cell of the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// The verb is accepted and the VM enters this state.
    Accept(VmState),
    /// The verb ends the operation under way (its caller gets `conflict{cause: superseded}`) and the
    /// VM enters this state.
    Preempt(VmState),
    /// The VM is so already, or on its way: answered with `already: true`.
    Already,
    /// `invalid_state`; the reply names the states that would do.
    Deny,
    /// `busy`; the reply names the operation in the way.
    Busy,
    /// `unavailable{phase: adopting}`.
    Adopting,
    /// The VM enters this state.
    Enter(VmState),
    /// An end that the restart policy judges: `backoff`, `failed`, or `stopped` for a clean end.
    Policy,
    /// The desired state decides: `running` and `paused` start again, the rest stays down.
    ByDesired,
    /// An event is recorded; the state stays.
    Note,
    /// A late report; it changes nothing.
    Ignore,
}
