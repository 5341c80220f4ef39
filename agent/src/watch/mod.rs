//! What the agent watches for those who declare it: checks and thresholds of the VM's spec, told by the host at each
//! greeting, and checks of the guest's owner, in files. Each is kept by a task of its own, and has a state that `health`
//! shows; what changes is told as an event, once, over the agent's own end too. Where nothing is declared nothing runs.
//!
//! The files are read when the agent starts, when the host has woken it up anyway (half a minute apart at the most),
//! and for `health`. With them file systems are looked at that are almost full, whatever anybody declares; in a guest of
//! processes these are the host's own.

mod check;
mod crossing;
mod disks;
mod files;
mod flaps;
mod judge;
mod run;
mod threshold;
mod told;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::guest::{
    CheckSource, CheckSpec, CheckState, ConfigureRequest, GuestKind, RefusedFile, ThresholdSpec,
    ThresholdState, check_all, check_thresholds,
};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::check::Check;
use self::disks::Disks;
use self::files::Files;
use self::threshold::Threshold;
use self::told::Told;
use crate::emit::Events;
use crate::facts::Facts;
use crate::look::local_disks;
use crate::policy::Policy;
use crate::work::freeze::Freezer;

/// Where the guest's owner declares checks.
pub const CHECKS_DIR: &str = "/etc/drover-agent/checks.d";
/// A check has failed often enough.
pub const CHECK_FAILED: &str = "drover.check-failed";
/// A check has succeeded often enough.
pub const CHECK_OK: &str = "drover.check-ok";
/// The guest's owner does not let the host run a check.
pub const CHECK_REFUSED: &str = "drover.check-refused";
/// A check changes so often that changes are not told until it rests.
pub const CHECK_CHANGES: &str = "drover.check-flapping";
/// A check that was not well is declared no more.
pub const CHECK_REMOVED: &str = "drover.check-removed";

/// A value is beyond its limit.
pub const THRESHOLD_EXCEEDED: &str = "drover.threshold-exceeded";
/// It is not any more.
pub const THRESHOLD_ENDED: &str = "drover.threshold-ended";
/// The guest's owner does not let the host know a value.
pub const THRESHOLD_REFUSED: &str = "drover.threshold-refused";
/// A value crosses its limit so often that it is not told until it rests.
pub const THRESHOLD_CHANGES: &str = "drover.threshold-flapping";
/// A threshold that was exceeded is declared no more.
pub const THRESHOLD_REMOVED: &str = "drover.threshold-removed";
/// A file system is almost full.
pub const DISK_LOW: &str = "drover.disk-low";
/// It is not any more.
pub const DISK_OK: &str = "drover.disk-ok";

/// How many checks of one source run at a time.
const AT_ONCE: usize = 4;
/// It looks this often at the most when the agent is awake anyway: a little less than the host's heartbeat.
const LOOK_EVERY: Duration = Duration::from_secs(25);
/// How long the run of a check may take to be given up.
const LEAVING: Duration = Duration::from_secs(2);

/// What all checks share.
#[derive(Debug)]
struct Hands {
    events: Arc<Events>,
    policy: Arc<Policy>,
    freezer: Freezer,
    told: Told,
    /// Turns of the spec's checks, and of the owner's: neither waits for the other.
    spec_turns: Semaphore,
    guest_turns: Semaphore,
}

impl Hands {
    const fn turns(&self, source: CheckSource) -> &Semaphore {
        match source {
            CheckSource::Guest => &self.guest_turns,
            _ => &self.spec_turns,
        }
    }
}

/// What is declared, those of the spec first.
#[derive(Debug, Default)]
struct Declared {
    checks: Vec<Check>,
    thresholds: Vec<Threshold>,
    files: Files,
    /// Another agent watches now.
    is_left: bool,
    /// When it looked last, and whether a host was there to be told.
    looked: Option<(Instant, bool)>,
}

/// All that is watched.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    hands: Arc<Hands>,
    declared: Mutex<Declared>,
    /// File systems as they were, if they are the guest's own; held while it looks.
    disks: Arc<tokio::sync::Mutex<Option<Disks>>>,
}

/// How all of it is.
#[derive(Debug, Clone, Default)]
pub struct States {
    /// Those of the spec first.
    pub checks: Vec<CheckState>,
    /// In the order of the spec.
    pub thresholds: Vec<ThresholdState>,
    /// Files that declare nothing.
    pub refused: Vec<RefusedFile>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock guards plain values that every holder leaves whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Nothing is watched yet. The owner's checks are in `folder`; what was told stands in `run_dir`, for one boot.
    #[must_use]
    pub fn new(
        folder: PathBuf,
        run_dir: &Path,
        facts: &Facts,
        events: Arc<Events>,
        policy: Arc<Policy>,
        freezer: Freezer,
    ) -> Arc<Self> {
        let told = Told::open(run_dir, &facts.boot_id);
        let (spec_turns, guest_turns) = (Semaphore::new(AT_ONCE), Semaphore::new(AT_ONCE));
        let hands = Arc::new(Hands { events, policy, freezer, told, spec_turns, guest_turns });
        let disks = (facts.kind != GuestKind::Process).then(Disks::default);
        Arc::new(Self { folder, hands, declared: Mutex::default(), disks: Arc::new(disks.into()) })
    }

    /// Takes what the spec wants; what is as before goes on, as does what the owner declares.
    ///
    /// # Errors
    /// `invalid_argument` that names the field; then all is as before.
    pub fn configure(&self, request: ConfigureRequest) -> Result<(), ErrorBody> {
        let possible = check_all(&request.checks).and_then(|()| check_thresholds(&request.thresholds));
        possible.map_err(|error| {
            ErrorBody::new(ErrorCode::InvalidArgument, error.to_string()).with("field", error.field)
        })?;
        let mut declared = lock(&self.declared);
        if declared.is_left {
            // It is told to the next agent, too.
            return Ok(());
        }
        self.declare(&mut declared, CheckSource::Spec, request.checks);
        self.declare_thresholds(&mut declared, request.thresholds);
        Ok(())
    }

    /// Ends all of it without a word, for another agent that goes on from what was told.
    pub(crate) async fn leave(&self) {
        let (checks, thresholds) = {
            let mut declared = lock(&self.declared);
            declared.is_left = true;
            (std::mem::take(&mut declared.checks), std::mem::take(&mut declared.thresholds))
        };
        drop(thresholds);
        let ends: Vec<_> = checks.into_iter().map(Check::end).collect();
        for end in ends {
            // A program that waits for a device does not hold the next agent up.
            let _ = timeout(LEAVING, end).await;
        }
    }

    /// The agent is awake: the files are read if that is due.
    pub fn awake(self: &Arc<Self>) {
        let (looked, is_left) = {
            let declared = lock(&self.declared);
            (declared.looked, declared.is_left)
        };
        if is_left {
            return;
        }
        let is_due = looked.is_none_or(|(at, was_heard)| {
            at.elapsed() >= LOOK_EVERY || (!was_heard && self.hands.events.was_joined())
        });
        if is_due && self.disks.try_lock().is_ok() {
            let watch = Arc::clone(self);
            tokio::spawn(async move { watch.look().await });
        }
    }

    /// Reads the owner's files anew and looks at file systems, aside: a disk that hangs holds whoever asks it. Nobody is
    /// told how full they are before a host that takes events was there.
    pub async fn look(&self) {
        let mut disks = Arc::clone(&self.disks).lock_owned().await;
        let is_heard = self.hands.events.was_joined();
        let (files, _held) = if disks.is_none() && !self.folder.exists() {
            // As in most guests of processes: not worth a thread.
            (Files::default(), disks)
        } else {
            let (folder, events) = (self.folder.clone(), Arc::clone(&self.hands.events));
            let looked = tokio::task::spawn_blocking(move || {
                if let Some(disks) = disks.as_mut().filter(|_| is_heard) {
                    for (kind, data) in disks.look(&local_disks()) {
                        events.say(kind, data);
                    }
                }
                (files::read(&folder), disks)
            });
            // The agent is about to end.
            let Ok(looked) = looked.await else { return };
            looked
        };
        let mut declared = lock(&self.declared);
        declared.looked = Some((Instant::now(), is_heard));
        if declared.files != files && !declared.is_left {
            self.declare(&mut declared, CheckSource::Guest, files.checks.clone());
            declared.files = files;
        }
    }

    /// How all of it is.
    #[must_use]
    pub fn states(&self) -> States {
        let declared = lock(&self.declared);
        let checks = declared.checks.iter().map(Check::state).collect();
        let thresholds = declared.thresholds.iter().map(Threshold::state).collect();
        States { checks, thresholds, refused: declared.files.refused.clone() }
    }

    /// Keeps what is wanted still, ends what is not, begins the rest.
    fn declare(&self, declared: &mut Declared, source: CheckSource, wanted: Vec<CheckSpec>) {
        check::forget(&self.hands, source, &wanted);
        let (mut before, mut checks): (Vec<_>, Vec<_>) =
            declared.checks.drain(..).partition(|check| check.source == source);
        for spec in wanted {
            let known = before.iter().position(|check| check.spec.name == spec.name);
            let known = known.map(|at| before.swap_remove(at));
            checks.push(match known {
                Some(same) if same.spec == spec => same,
                other => Check::begin(source, spec, other, &self.hands),
            });
        }
        checks.sort_by_key(|check| check.source);
        declared.checks = checks;
    }

    fn declare_thresholds(&self, declared: &mut Declared, wanted: Vec<ThresholdSpec>) {
        threshold::forget(&self.hands, &wanted);
        let mut before = std::mem::take(&mut declared.thresholds);
        for spec in wanted {
            let same = before.iter().position(|threshold| threshold.spec == spec);
            let same = same.map(|at| before.swap_remove(at));
            declared.thresholds.push(same.unwrap_or_else(|| Threshold::begin(spec, &self.hands)));
        }
    }
}

#[cfg(test)]
mod tests;
