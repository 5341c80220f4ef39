//! What goes into the machine of a VM and what comes out of it.

use drover_schemas::RequestId;
use drover_schemas::body::status::Cause;
use drover_schemas::body::vm::Wait;
use drover_schemas::event::VmEventKind;
use drover_schemas::state::{Verb, VmState};
use serde::{Deserialize, Serialize};

/// A verb that changes the spec alone, which is durable before anything is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecVerb {
    /// Ports of the host that lead to the guest.
    Forward,
    /// What the guest may reach.
    Egress,
    /// How fast the guest may be.
    Limit,
    /// How long a disk is.
    Grow,
}

impl SpecVerb {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Egress, Self::Limit, Self::Grow];

    /// The verb, if it is one of these.
    #[must_use]
    pub const fn of(verb: Verb) -> Option<Self> {
        match verb {
            Verb::Forward => Some(Self::Forward),
            Verb::Egress => Some(Self::Egress),
            Verb::Limit => Some(Self::Limit),
            Verb::Grow => Some(Self::Grow),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Egress => "egress",
            Self::Limit => "limit",
            Self::Grow => "grow",
        }
    }

    /// What it changes, in words.
    #[must_use]
    pub const fn changes(self) -> &'static str {
        match self {
            Self::Forward => "the forwards",
            Self::Egress => "what the guest may reach",
            Self::Limit => "how fast the guest may be",
            Self::Grow => "the size of a disk",
        }
    }
}

/// Work of the shell: at most one at a time for each VM, each ends in one [`Report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Makes everything of the runtime and boots the guest.
    Boot,
    /// Asks the guest to switch off and waits; releases the runtime if it does.
    Shutdown {
        /// How long the guest may take.
        timeout_ms: u64,
    },
    /// The whole ladder, then releases the runtime.
    Stop {
        /// How long the guest may take before it is forced; 0 does not ask it.
        grace_ms: u64,
    },
    /// Freezes the guest.
    Pause,
    /// Lets the guest go on.
    Resume,
    /// Reboots the guest.
    Reboot,
    /// Treats the guest as its spec says since this verb changed it.
    Spec(SpecVerb),
    /// Releases the runtime of a VM that ended by itself.
    Release,
    /// Kills and releases everything, disks and leases included.
    Delete,
}

impl Task {
    /// What it is called in a status and in logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Boot => "start",
            Self::Shutdown { .. } => "shutdown",
            Self::Stop { .. } => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reboot => "reboot",
            Self::Spec(verb) => verb.as_str(),
            Self::Release => "release",
            Self::Delete => "delete",
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The guest was started.
    Booted,
    /// A step failed; the runtime has been released.
    BootFailed(Cause),
    /// The VM is down and the runtime released.
    Stopped,
    /// The guest did not switch off in time.
    ShutdownTimedOut,
    /// The guest is frozen.
    Paused,
    /// The guest goes on.
    Resumed,
    /// The guest was rebooted.
    Rebooted,
    /// The guest is treated as its spec says.
    SpecChanged,
    /// Nothing of the runtime is left.
    Released,
    /// Nothing at all is left.
    Deleted,
    /// The task was cancelled, or it failed, and left the VM as it was.
    Failed(Cause),
}

/// What reaches the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A verb that was admitted by [`Machine::admit`].
    Command(Command),
    /// The end of the task under way.
    Report(Report),
    /// The VMM process ended.
    VmmExited(Cause),
    /// The guest switched itself off; the VMM lives.
    GuestPowerOff,
    /// The guest rebooted itself.
    GuestReboot,
    /// The guest's kernel panicked.
    GuestPanic(Cause),
    /// The agent answered its hello.
    AgentReady {
        /// Version and boot id, as evidence for the event.
        cause: Cause,
    },
    /// The link broke, never came up in time, or the guest reboots before it can come up.
    AgentLost(Cause),
    /// The pause before a restart is over.
    BackoffElapsed,
    /// What the VMM says of itself: a pause or resume that was given up may have been carried out all the same.
    Seen {
        /// The guest is frozen.
        paused: bool,
    },
    /// The daemon ends and was told to stop its VMs. What the VM shall be stays as it is.
    HostStopping {
        /// How long the guest may take to go by itself.
        grace_ms: u64,
    },
    /// The daemon started and found the VMM alive, paused or not.
    FoundAlive {
        /// It was found paused.
        paused: bool,
    },
    /// The daemon started and cannot tell.
    FoundUnclear(Cause),
    /// The daemon started and found no VMM.
    FoundGone {
        /// The host was rebooted since.
        host_rebooted: bool,
        /// What the holder recorded.
        cause: Cause,
    },
}

/// A mutating verb with what the machine needs of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Which.
    pub verb: Verb,
    /// Id of the request.
    pub request_id: RequestId,
    /// When the reply is due.
    pub wait: Option<Wait>,
    /// `timeout_ms` of shutdown or `grace_ms` of stop.
    pub time_ms: u64,
}

/// An accepted request whose reply is not due yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// The verb, for `busy` and for status.
    pub name: String,
    /// Id of the request; absent for what the policy does.
    pub request_id: Option<RequestId>,
    /// The reply is due when this holds.
    pub due: Due,
    /// How long the guest may take to go by itself, for shutdown and stop.
    #[serde(default)]
    pub time_ms: u64,
}

/// When an operation's reply is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Due {
    /// When it is accepted.
    Accepted,
    /// When the guest runs.
    Running,
    /// When the agent answers.
    Agent,
    /// When its task has ended.
    Done,
}

/// Answer to whether a verb may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may; pass it to [`Machine::apply`].
    Accept,
    /// It is so already.
    Already,
    /// The state does not allow it; these would.
    Denied {
        /// States in which the verb is accepted.
        would_do: Vec<VmState>,
    },
    /// Another operation is in the way.
    Busy {
        /// Its name.
        operation: String,
    },
    /// The daemon has not adopted the VM yet.
    Adopting,
}

/// How an operation ended, for its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// As asked.
    Ok,
    /// A later request took its place.
    Superseded,
    /// With a cause.
    Failed(Cause),
    /// A graceful shutdown was not heeded in time.
    TimedOut,
}

/// What the shell shall do, in order, after it has made the new machine durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Record an event.
    Event {
        /// Its kind.
        kind: VmEventKind,
        /// State before.
        previous: VmState,
        /// State after.
        state: VmState,
        /// Why.
        cause: Option<Cause>,
        /// The request that led to it.
        request_id: Option<RequestId>,
    },
    /// Start a task.
    Run(Task),
    /// Ask the task under way to end; its report still comes.
    Cancel,
    /// Answer an operation.
    Finish(Op, Ending),
    /// Send [`Input::BackoffElapsed`] after this time.
    Backoff {
        /// In milliseconds.
        delay_ms: u64,
    },
    /// Nothing is left; the row may go.
    Gone {
        /// The delete that was asked for.
        op: Option<Op>,
    },
}

impl PartialEq<Option<Task>> for Task {
    fn eq(&self, other: &Option<Task>) -> bool {
        other.as_ref() == Some(self)
    }
}
