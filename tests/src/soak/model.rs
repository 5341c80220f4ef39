//! What a name must be after what was answered.

use drover_schemas::VmId;
use drover_schemas::state::VmState;
use rand::Rng;

/// What can be asked of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `vm.create` with `wait: agent`.
    Create,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `stop` by force.
    Stop,
    /// `shutdown`, by asking.
    Shutdown,
    /// `start` with `wait: agent`.
    Start,
    /// `reboot`.
    Reboot,
    /// `delete`.
    Delete,
    /// A command in the guest that leaves a line.
    Exec,
}

impl Op {
    /// The verb's last token; of commands, below `guest`.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Shutdown => "shutdown",
            Self::Start => "start",
            Self::Reboot => "reboot",
            Self::Delete => "delete",
            Self::Exec => "exec",
        }
    }
}

/// A name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Model(Option<(VmId, VmState)>);

impl Model {
    /// A name that a VM has.
    #[must_use]
    pub const fn of(vm_id: VmId, state: VmState) -> Self {
        Self(Some((vm_id, state)))
    }

    /// How the VM must be; `None` if there must be none.
    #[must_use]
    pub fn state(&self) -> Option<VmState> {
        self.0.map(|(_, state)| state)
    }

    /// Which VM it must be.
    #[must_use]
    pub fn vm_id(&self) -> Option<VmId> {
        self.0.map(|(vm_id, _)| vm_id)
    }

    /// Whether a VMM must run.
    #[must_use]
    pub fn has_process(&self) -> bool {
        matches!(self.state(), Some(VmState::Running | VmState::Paused))
    }

    /// Something that can be done to it now.
    pub fn choose(&self, random: &mut impl Rng) -> Op {
        let from: &[Op] = match self.state() {
            None => &[Op::Create],
            Some(VmState::Running) => {
                &[Op::Exec, Op::Exec, Op::Exec, Op::Pause, Op::Stop, Op::Shutdown, Op::Reboot, Op::Delete]
            }
            Some(VmState::Paused) => &[Op::Resume, Op::Resume, Op::Stop, Op::Delete],
            Some(_) => &[Op::Start, Op::Start, Op::Delete],
        };
        from[random.random_range(0..from.len())]
    }

    /// What it is when `op` was done; `vm_id` is the new one of a create.
    #[must_use]
    pub fn after(&self, op: Op, vm_id: VmId) -> Self {
        let state = match op {
            Op::Create | Op::Start | Op::Resume | Op::Reboot | Op::Exec => VmState::Running,
            Op::Pause => VmState::Paused,
            Op::Stop | Op::Shutdown => VmState::Stopped,
            Op::Delete => return Self(None),
        };
        Self(Some((self.vm_id().unwrap_or(vm_id), state)))
    }
}
