//! The folder of a user: made for a new one, and removed with one that goes.
//!
//! Root makes and removes in folders only that nobody else can write: there no link is swapped in.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use drover_schemas::ErrorBody;

use super::plan::User;
use super::system::Files;
use super::table::fields;
use super::{as_user, below, conflict, guest_error, said_of};
use crate::work::whole::{is_there, said};

/// What of `/etc/skel` is taken: so many files, so deep, so many bytes of each.
const MAX_FILES: usize = 100;
const MAX_DEPTH: usize = 4;
const MAX_BYTES: u64 = 1 << 20;

/// Where a user's folder is, and what is to be done about it.
#[derive(Debug)]
pub(super) struct Home {
    root: PathBuf,
    is_there: bool,
}

/// The folder above, with the links on the way followed, if it and all above it are root's to write alone.
fn safe_parent(root: &Path, path: &Path) -> Result<PathBuf, ErrorBody> {
    let parent = below(root, path.parent().unwrap_or(Path::new("/")));
    let real = fs::canonicalize(&parent).map_err(said_of("reach", &parent))?;
    let root = fs::canonicalize(root).map_err(said_of("reach", root))?;
    for folder in real.ancestors().take_while(|folder| folder.starts_with(&root)) {
        let facts = fs::symlink_metadata(folder).map_err(said_of("look at", folder))?;
        if !facts.is_dir() || facts.uid() != 0 || facts.mode() & 0o022 != 0 {
            let text = format!(
                "{} can be written by others than root, so nothing is made or removed in it",
                folder.display()
            );
            return Err(conflict(text, "unsafe_folder").with("field", "home"));
        }
    }
    if real.starts_with(&root) {
        Ok(real)
    } else {
        Err(guest_error(format!("{} leads elsewhere", parent.display())))
    }
}

/// Looks at the folder of a user that is to have one.
///
/// # Errors
/// `conflict` if what is there is not the user's, or its place is not safe.
pub(super) fn look(root: &Path, user: &User) -> Result<Home, ErrorBody> {
    let path = below(root, &user.home);
    let home = |is_there| Home { root: root.to_owned(), is_there };
    match fs::symlink_metadata(&path) {
        // It is what it is, whoever made it so; links too.
        Ok(_) if user.uid == 0 => Ok(home(true)),
        Ok(facts) if facts.is_dir() && facts.uid() == user.uid => Ok(home(true)),
        Ok(_) => {
            let text = format!(
                "{} is there and is no folder of {:?} ({}); remove it, give it to the user, or choose another home",
                user.home.display(),
                user.name,
                user.uid
            );
            Err(conflict(text, "home").with("field", "home"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // `/home` itself may be missing on a small system, and nothing above it.
            let parent = user.home.parent().unwrap_or(Path::new("/"));
            let is_missing = !is_there(&below(root, parent));
            safe_parent(root, if is_missing { parent } else { &user.home })?;
            Ok(home(false))
        }
        Err(error) => Err(said_of("look at", &path)(error)),
    }
}

impl Home {
    /// Makes it if it is not there, with what the system gives new users; says whether it was made.
    pub(super) fn make(&self, user: &User) -> Result<bool, ErrorBody> {
        if self.is_there {
            return Ok(false);
        }
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| {
                guest_error(format!("the user is there, its folder is not: {}", said(what, &path)(error)))
                    .with("cause", "partial")
            }
        };
        let parent = below(&self.root, user.home.parent().unwrap_or(Path::new("/")));
        if !is_there(&parent) {
            DirBuilder::new().mode(0o755).create(&parent).map_err(failed("make", &parent))?;
            // Whatever the mask of the agent is.
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))
                .map_err(failed("guard", &parent))?;
        }
        let place = safe_parent(&self.root, &user.home)?.join(user.home.file_name().unwrap_or_default());
        DirBuilder::new().mode(0o700).create(&place).map_err(failed("make", &place))?;
        std::os::unix::fs::lchown(&place, Some(user.uid), Some(user.gid))
            .map_err(failed("give away", &place))?;
        let skel = self.root.join("etc/skel");
        as_user::run(user, || {
            let mut left = MAX_FILES;
            copy(&skel, &place, &mut left, MAX_DEPTH);
            Ok(())
        })?;
        Ok(true)
    }
}

/// What cannot be read or is something else than a file or a folder is left out: nobody needs it to log in.
fn copy(from: &Path, to: &Path, left: &mut usize, depth: usize) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if *left == 0 {
            return;
        }
        *left -= 1;
        if kind.is_dir() && depth > 0 {
            if DirBuilder::new().mode(0o700).create(&target).is_ok() {
                copy(&source, &target, left, depth - 1);
            }
        } else if kind.is_file() {
            let _ = copy_file(&source, &target);
        }
    }
}

fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(from)?;
    let mode = file.metadata()?.mode() & 0o755;
    let mut bytes = Vec::new();
    if file.take(MAX_BYTES + 1).read_to_end(&mut bytes)? as u64 <= MAX_BYTES {
        File::options().write(true).create_new(true).mode(mode).open(to)?.write_all(&bytes)?;
    }
    Ok(())
}

/// A folder that goes with its user.
#[derive(Debug)]
pub(super) struct Held {
    place: PathBuf,
    said: String,
}

/// The folder of a user that is about to go, if there is one.
///
/// # Errors
/// `conflict` if it is not the user's alone, or its place is not safe.
pub(super) fn to_remove(root: &Path, files: &Files, user: &User) -> Result<Option<Held>, ErrorBody> {
    let said = user.home.display().to_string();
    let refused =
        |why: &str| Err(conflict(format!("{said} is not removed: {why}; leave remove_home out"), "home"));
    if !user.home.is_absolute() || user.home.components().any(|c| c == std::path::Component::ParentDir) {
        return refused("it is no absolute path");
    }
    let Some(name) = user.home.file_name() else { return refused("it is the root folder") };
    let path = below(root, &user.home);
    if !is_there(&path) {
        return Ok(None);
    }
    let place = safe_parent(root, &user.home)?.join(name);
    let facts = fs::symlink_metadata(&place).map_err(said_of("look at", &place))?;
    if !facts.is_dir() || facts.uid() != user.uid {
        return refused("it is no folder of the user's");
    }
    let above = fs::metadata(place.parent().unwrap_or(root)).map_err(said_of("look at", &place))?;
    if above.dev() != facts.dev() {
        return refused("something is mounted there");
    }
    let theirs = |line: &&[u8]| {
        fields(line).nth(5).is_some_and(|home| {
            use std::os::unix::ffi::OsStrExt as _;
            Path::new(std::ffi::OsStr::from_bytes(home)).starts_with(&user.home)
        })
    };
    // The user's own line is gone from these already.
    if files.passwd.lines().any(|line| theirs(&line)) {
        return refused("another user has its folder there too");
    }
    Ok(Some(Held { place, said }))
}

impl Held {
    /// Removes it with all that is in it; no link is followed. Says what it was.
    pub(super) fn remove(self) -> Result<String, ErrorBody> {
        fs::remove_dir_all(&self.place).map_err(|error| {
            let why = said("remove", &self.place)(error);
            guest_error(format!("the user is gone, its folder is not: {why}; remove that by itself"))
                .with("cause", "partial")
        })?;
        Ok(self.said)
    }
}
