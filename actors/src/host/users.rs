//! Which Unix users are this installation's for its VMs, on a machine that it may share with others.
//!
//! Were one user given to VMs of two installations, either VMM could do to the other what a user may do to itself. So each
//! claims its range before it gives any, in a folder that all of the machine know: a file for each installation. A claim
//! holds for as long as the journal that it names is there, whether a daemon runs or not, and over reboots: VMs keep their
//! users. Which range it is decides [`choose`], which is pure.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::InstallationId;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::journal::folder::JOURNAL_FILE;

/// Where ranges begin that nobody chose.
const FIRST: u32 = 200_000;
/// Users beyond this are no users for some programs.
const LAST: u32 = i32::MAX as u32;
/// The longest claim that is read, in bytes.
const MAX_CLAIM: u64 = 64 * 1024;
/// How long others may take to claim theirs.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Users in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl UserRange {
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    fn holds(self, uid: u32) -> bool {
        uid >= self.first && u64::from(uid) < self.end()
    }

    fn meets(self, other: Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct WantedUsers {
    /// Where the machine's installations say what is theirs.
    pub folder: PathBuf,
    /// The first user, if somebody chose it.
    pub first: Option<u32>,
    /// How many.
    pub count: u32,
}

/// What an installation says is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// The folder of its journal.
    state: PathBuf,
    /// The range that it gives users from; after it those that VMs of its own have still.
    ranges: Vec<UserRange>,
}

/// No users can be given to VMs.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// Another installation has some of the range.
    #[error(
        "users {first} to {last} of `capacity.first_uid` are taken: those of the installation in {of} begin at {theirs}. \
         Leave it out, or use {free} or more"
    )]
    Taken {
        /// The first that was wanted.
        first: u32,
        /// The last.
        last: u64,
        /// Whose they are.
        of: PathBuf,
        /// Where that one's begin.
        theirs: u32,
        /// Where nobody's are.
        free: u32,
    },
    /// There are not so many users left.
    #[error("no {count} users in a row are free for VMs; use a smaller `capacity.uids`")]
    None {
        /// How many were wanted.
        count: u32,
    },
    /// Another installation claims in this moment.
    #[error("another installation on this machine claims users and does not end; its lock is {path}")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// What is claimed cannot be looked at or said.
    #[error("the claims of users in {path} cannot be {what}; see `users_dir`")]
    Folder {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Chooses a range: the one that was chosen by somebody; else the one that the installation has; else the first that
/// neither another one has, nor the system has set aside for users of its users (`reserved`).
fn choose(
    wanted: &WantedUsers,
    own: &[UserRange],
    in_use: &[u32],
    others: &[Claim],
    reserved: &[UserRange],
) -> Result<UserRange, UsersError> {
    let count = wanted.count;
    let at = |first| UserRange { first, count };
    let taken = |range: UserRange| {
        let claimed =
            others.iter().flat_map(|claim| claim.ranges.iter().map(|theirs| (*theirs, &claim.state)));
        claimed.filter(|(theirs, _)| theirs.meets(range)).max_by_key(|(theirs, _)| theirs.end())
    };
    let free = || {
        let mut first = FIRST;
        loop {
            let range = at(first);
            if range.end() > u64::from(LAST) {
                return Err(UsersError::None { count });
            }
            let reserved = reserved.iter().copied().filter(|reserved| reserved.meets(range));
            let ends = taken(range).map(|(theirs, _)| theirs).into_iter().chain(reserved).map(UserRange::end);
            match ends.max() {
                None => return Ok(range),
                Some(end) => first = u32::try_from(end).map_err(|_| UsersError::None { count })?,
            }
        }
    };
    if let Some(first) = wanted.first {
        let range = at(first);
        return match taken(range) {
            None => Ok(range),
            Some((theirs, of)) => Err(UsersError::Taken {
                first,
                last: range.end().saturating_sub(1),
                of: of.clone(),
                theirs: theirs.first,
                free: free()?.first,
            }),
        };
    }
    // One of an earlier version has claimed none, and has its VMs' users from where ranges begin.
    let before = own.first().map(|range| range.first);
    let before = before.or_else(|| in_use.iter().any(|uid| at(FIRST).holds(*uid)).then_some(FIRST));
    match before.map(at).filter(|range| taken(*range).is_none() && range.end() <= u64::from(LAST)) {
        Some(range) => Ok(range),
        None => free(),
    }
}

/// What is claimed then: earlier ranges for as long as a VM has a user of one.
fn claimed(range: UserRange, own: &[UserRange], in_use: &[u32]) -> Vec<UserRange> {
    let earlier = own.iter().copied().filter(|earlier| *earlier != range);
    let used = earlier.filter(|earlier| in_use.iter().any(|uid| earlier.holds(*uid) && !range.holds(*uid)));
    std::iter::once(range).chain(used).collect()
}

/// The ranges of `/etc/subuid`: users that containers of the machine's users have.
fn reserved(text: &str) -> Vec<UserRange> {
    let range = |line: &str| {
        let mut words = line.split(':').skip(1).map(|word| word.trim().parse().ok());
        Some(UserRange { first: words.next()??, count: words.next()?? })
    };
    text.lines().filter_map(range).collect()
}

/// Claims users for the VMs of an installation, of which some have users already (`in_use`). Where there is no other user
/// than this one, nothing is claimed.
///
/// # Errors
/// [`UsersError`]; the claim is as it was.
pub fn claim(
    installation: InstallationId,
    state: &Path,
    wanted: &WantedUsers,
    in_use: &[u32],
) -> Result<UserRange, UsersError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(UserRange { first: wanted.first.unwrap_or(FIRST), count: wanted.count });
    }
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| UsersError::Folder { what, path, source }
    };
    let folder = &wanted.folder;
    fs::create_dir_all(folder).map_err(failed("made", folder))?;
    let lock = folder.join("lock");
    let turn = File::options().create(true).truncate(false).write(true).open(&lock);
    match turn.as_ref().map(File::try_lock) {
        Ok(Ok(())) => {}
        Ok(Err(TryLockError::WouldBlock)) => return Err(UsersError::Busy { path: lock }),
        Ok(Err(TryLockError::Error(error))) => return Err(failed("locked", &lock)(error)),
        Err(error) => return Err(failed("locked", &lock)(io::Error::from(error.kind()))),
    }
    let state = fs::canonicalize(state).map_err(failed("found", state))?;
    let own_file = folder.join(format!("{installation}.json"));
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(failed("listed", folder))? {
        let path = entry.map_err(failed("listed", folder))?.path();
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let claim = read(&path).map_err(failed("read", &path))?;
        if path == own_file {
            own = claim.ranges;
        } else if is_over(&claim, &state) {
            info!(of = %claim.state.display(), "the users of an installation that is gone are free");
            fs::remove_file(&path).map_err(failed("removed", &path))?;
        } else {
            others.push(claim);
        }
    }
    let reserved = reserved(&fs::read_to_string("/etc/subuid").unwrap_or_default());
    let range = choose(wanted, &own, in_use, &others, &reserved)?;
    for claim in &others {
        let both = |uid: &&u32| claim.ranges.iter().any(|theirs| theirs.holds(**uid));
        if let Some(uid) = in_use.iter().find(both) {
            // Both are of a version that did not claim: nothing but a new VM has another user.
            warn!(uid, of = %claim.state.display(), "a VM has a user that another installation gives too; create it anew");
        }
    }
    let claim = Claim { state, ranges: claimed(range, &own, in_use) };
    write(&own_file, &claim).map_err(failed("written", &own_file))?;
    Ok(range)
}

/// As [`claim`], off the runtime; others that claim at the same time are waited for.
///
/// # Errors
/// As [`claim`].
pub async fn claim_in_turn(
    installation: InstallationId,
    state: PathBuf,
    wanted: WantedUsers,
    in_use: Vec<u32>,
) -> Result<UserRange, UsersError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (state, wanted, in_use) = (state.clone(), wanted.clone(), in_use.clone());
        let work = move || claim(installation, &state, &wanted, &in_use);
        match tokio::task::spawn_blocking(work).await {
            Ok(Err(UsersError::Busy { .. })) if Instant::now() < until => sleep(PAUSE).await,
            Ok(claimed) => return claimed,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn read(path: &Path) -> io::Result<Claim> {
    let length = fs::metadata(path)?.len();
    if length > MAX_CLAIM {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes are no claim")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write(path: &Path, claim: &Claim) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(claim)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Whether nobody needs these users any more: the journal has gone, or is this installation's now, and what an
/// installation without one may have left does not run.
fn is_over(claim: &Claim, state: &Path) -> bool {
    if claim.state != state && claim.state.join(JOURNAL_FILE).exists() {
        return false;
    }
    use std::os::unix::fs::MetadataExt as _;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut uids = processes.filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some(entry.metadata().ok()?.uid())
    });
    !uids.any(|uid| claim.ranges.iter().any(|range| range.holds(uid)))
}

#[cfg(test)]
mod tests;
