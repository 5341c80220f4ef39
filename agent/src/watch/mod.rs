//! What the agent watches for those who declare it: checks of the VM's spec, told by the host at each greeting, and of
//! the guest's owner, in files. Each is run by a task of its own, and has a state that `health` shows; what changes is
//! told as an event, once, over the agent's own end too. Where nothing is declared nothing runs.
//!
//! The files are read when the agent starts, when the host has woken it up anyway (half a minute apart at the most),
//! and for `health`.

mod check;
mod files;
mod flaps;
mod judge;
mod run;
mod told;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::guest::{CheckSource, CheckSpec, CheckState, ConfigureRequest, RefusedFile, check_all};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::Semaphore;

use self::check::Check;
use self::files::Files;
use self::told::Told;
use crate::emit::Events;
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

/// How many checks run at a time.
const AT_ONCE: usize = 4;
/// Files are read this often at the most when the agent is awake anyway: a little less than the host's heartbeat.
const FILES_EVERY: Duration = Duration::from_secs(25);

/// What all checks share.
#[derive(Debug)]
struct Hands {
    events: Arc<Events>,
    policy: Arc<Policy>,
    freezer: Freezer,
    told: Told,
    at_once: Semaphore,
}

/// What is declared, those of the spec first.
#[derive(Debug, Default)]
struct Declared {
    checks: Vec<Check>,
    files: Files,
    /// When the files were read.
    read: Option<Instant>,
}

/// All that is watched.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    hands: Arc<Hands>,
    declared: Mutex<Declared>,
    /// Held while the files are read.
    reading: tokio::sync::Mutex<()>,
}

/// How all of it is.
#[derive(Debug, Clone, Default)]
pub struct States {
    /// Those of the spec first.
    pub checks: Vec<CheckState>,
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
        (run_dir, boot_id): (&Path, &str),
        events: Arc<Events>,
        policy: Arc<Policy>,
        freezer: Freezer,
    ) -> Arc<Self> {
        let (told, at_once) = (Told::open(run_dir, boot_id), Semaphore::new(AT_ONCE));
        let hands = Arc::new(Hands { events, policy, freezer, told, at_once });
        Arc::new(Self { folder, hands, declared: Mutex::default(), reading: tokio::sync::Mutex::default() })
    }

    /// Takes what the spec wants; what is as before goes on, as does what the owner declares.
    ///
    /// # Errors
    /// `invalid_argument` that names the field; then all is as before.
    pub fn configure(&self, request: ConfigureRequest) -> Result<(), ErrorBody> {
        check_all(&request.checks).map_err(|error| {
            ErrorBody::new(ErrorCode::InvalidArgument, error.to_string()).with("field", error.field)
        })?;
        self.declare(&mut lock(&self.declared), CheckSource::Spec, request.checks);
        Ok(())
    }

    /// The agent is awake: the files are read if that is due.
    pub fn awake(self: &Arc<Self>) {
        let is_due = lock(&self.declared).read.is_none_or(|read| read.elapsed() >= FILES_EVERY);
        if is_due && self.reading.try_lock().is_ok() {
            let watch = Arc::clone(self);
            tokio::spawn(async move { watch.read_files().await });
        }
    }

    /// Reads the owner's files anew, aside: a disk that hangs holds whoever reads it.
    pub async fn read_files(&self) {
        let _turn = self.reading.lock().await;
        let folder = self.folder.clone();
        let read = tokio::task::spawn_blocking(move || files::read(&folder)).await;
        let mut declared = lock(&self.declared);
        declared.read = Some(Instant::now());
        // Not where the agent is about to end.
        if let Ok(files) = read
            && declared.files != files
        {
            self.declare(&mut declared, CheckSource::Guest, files.checks.clone());
            declared.files = files;
        }
    }

    /// How all of it is.
    #[must_use]
    pub fn states(&self) -> States {
        let declared = lock(&self.declared);
        let checks = declared.checks.iter().map(Check::state).collect();
        States { checks, refused: declared.files.refused.clone() }
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
}

#[cfg(test)]
mod tests;
