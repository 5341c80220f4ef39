//! `.ssh/authorized_keys` in a user's folder, as sshd demands it. All of it is done with the user's rights, by handles
//! that follow no link.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::plan::User;
use super::{below, conflict, guest_error};

const FILE: &str = "authorized_keys";
const BESIDE: &str = ".authorized_keys.drover";
/// The most that a file of keys has.
const MAX_FILE: u64 = 1 << 20;

static TURN: Mutex<()> = Mutex::new(());

/// One change at a time: each reads what the other has written.
pub(super) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A user's folder, and `.ssh` in it if that is there.
#[derive(Debug)]
pub(super) struct Folder {
    home: OwnedFd,
    ssh: Option<OwnedFd>,
    user: User,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: String,
    pub(super) text: Vec<u8>,
    pub(super) warnings: Vec<String>,
    is_file: bool,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

impl Folder {
    pub(super) fn look(root: &Path, user: &User) -> Result<Self, ErrorBody> {
        let path = below(root, &user.home);
        let home = match openat(CWD, &path, FOLDER, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let text = format!("the folder of {:?}, {}, is not there", user.name, user.home.display());
                return Err(ErrorBody::new(ErrorCode::NotFound, text).with("cause", "home"));
            }
            opened => opened.map_err(|errno| failed("open", &user.home, errno))?,
        };
        let (whose, path) = (user.clone(), user.home.join(".ssh"));
        let ssh = match openat(&home, ".ssh", FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(ssh) => Some(ssh),
            Err(Errno::NOENT) => None,
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(no_link(&path, "folder")),
            Err(errno) => return Err(failed("open", &path, errno)),
        };
        Ok(Self { home, ssh, user: whose })
    }

    fn path(&self) -> PathBuf {
        self.user.home.join(".ssh").join(FILE)
    }

    /// Reads the file; one that is not there has nothing in it.
    pub(super) fn read(&self) -> Result<Found, ErrorBody> {
        let path = self.path();
        let mut found = Found {
            path: path.display().to_string(),
            text: Vec::new(),
            warnings: Vec::new(),
            is_file: false,
        };
        self.warn(&mut found, &self.home, &self.user.home)?;
        let Some(ssh) = &self.ssh else { return Ok(found) };
        self.warn(&mut found, ssh, &self.user.home.join(".ssh"))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(ssh, FILE, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(found),
            Err(Errno::LOOP | Errno::NXIO) => return Err(no_link(&path, "file")),
            Err(errno) => return Err(failed("open", &path, errno)),
        };
        let stat = fstat(&file).map_err(|errno| failed("look at", &path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(no_link(&path, "file"));
        }
        self.warn(&mut found, &file, &path)?;
        let read = file.take(MAX_FILE + 1).read_to_end(&mut found.text);
        read.map_err(|error| guest_error(format!("cannot read {}: {error}", path.display())))?;
        if found.text.len() as u64 > MAX_FILE {
            return Err(guest_error(format!("{} has more than {MAX_FILE} bytes", path.display())));
        }
        found.is_file = true;
        Ok(found)
    }

    /// Notes what the SSH server refuses.
    fn warn(&self, found: &mut Found, what: &impl std::os::fd::AsFd, path: &Path) -> Result<(), ErrorBody> {
        let stat = fstat(what).map_err(|errno| failed("look at", path, errno))?;
        found
            .warnings
            .extend(unsafe_for_sshd(&stat, self.user.uid).map(|why| format!("{} {why}", path.display())));
        Ok(())
    }

    /// Puts a text in the file's place, with the owner and the modes that sshd demands; what else it refuses is
    /// answered.
    pub(super) fn write(&self, before: &Found, text: &[u8]) -> Result<Vec<String>, ErrorBody> {
        let path = self.path();
        let above = self.user.home.join(".ssh");
        if text.len() as u64 > MAX_FILE {
            let text = format!("{} would have more than {MAX_FILE} bytes", path.display());
            return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text));
        }
        // Nothing to be written where there is nothing.
        if !before.is_file && text.is_empty() {
            return Ok(before.warnings.clone());
        }
        let made;
        let ssh = match &self.ssh {
            Some(ssh) => ssh,
            None => {
                let done = mkdirat(&self.home, ".ssh", Mode::RWXU);
                done.map_err(|errno| failed("make", &above, errno))?;
                let opened = openat(&self.home, ".ssh", FOLDER | OFlags::NOFOLLOW, Mode::empty());
                made = opened.map_err(|errno| failed("open", &above, errno))?;
                &made
            }
        };
        let stat = fstat(ssh).map_err(|errno| failed("look at", &above, errno))?;
        if stat.st_mode & 0o022 != 0 && stat.st_uid == self.user.uid {
            fchmod(ssh, Mode::RWXU).map_err(|errno| failed("guard", &above, errno))?;
        }
        if text != before.text || !before.is_file || before.warnings.iter().any(|why| why.contains(FILE)) {
            put(ssh, text).map_err(|errno| failed("write", &path, errno))?;
        }
        // As it is now: what could be mended was.
        Ok(Self::look_again(self, ssh)?.warnings)
    }

    fn look_again(&self, ssh: &OwnedFd) -> Result<Found, ErrorBody> {
        let copy = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| guest_error(format!("cannot hold a folder: {error}")))
        };
        Self { home: copy(&self.home)?, ssh: Some(copy(ssh)?), user: self.user.clone() }.read()
    }
}

/// Why sshd takes nothing from there, with its usual `StrictModes`.
fn unsafe_for_sshd(stat: &Stat, uid: u32) -> Option<String> {
    if stat.st_uid != uid && stat.st_uid != 0 {
        return Some(format!("belongs to another user ({}), so sshd takes no keys from it", stat.st_uid));
    }
    (stat.st_mode & 0o022 != 0).then(|| "can be written by others, so sshd takes no keys from it".to_owned())
}

/// Whole and on disk, or not at all.
fn put(ssh: &OwnedFd, text: &[u8]) -> Result<(), Errno> {
    let _ = unlinkat(ssh, BESIDE, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = (|| {
        let mut file = File::from(openat(ssh, BESIDE, flags, Mode::RUSR | Mode::WUSR)?);
        // Whatever the mask of the agent is.
        fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        let io = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        file.write_all(text).map_err(io)?;
        file.sync_all().map_err(io)?;
        renameat(ssh, BESIDE, ssh, FILE)?;
        rustix::fs::fsync(ssh)
    })();
    if written.is_err() {
        let _ = unlinkat(ssh, BESIDE, AtFlags::empty());
    }
    written
}

fn no_link(path: &Path, what: &str) -> ErrorBody {
    let text = format!("{} is no {what}; a link is not followed: put a {what} in its place", path.display());
    conflict(text, "link").with("path", path.display())
}

fn failed(what: &str, path: &Path, errno: Errno) -> ErrorBody {
    let code = match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ErrorCode::PermissionDenied,
        Errno::NOSPC | Errno::DQUOT => ErrorCode::ResourceExhausted,
        _ => ErrorCode::GuestError,
    };
    let text = format!("cannot {what} {} as its user: {}", path.display(), io::Error::from(errno));
    ErrorBody::new(code, text).with("path", path.display())
}
