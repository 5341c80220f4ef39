//! The lock that everybody takes who changes users: shadow-utils, systemd and this agent.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use drover_schemas::{ErrorBody, ErrorCode};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::pause;
use crate::work::guest_error;

/// As long as lckpwdf(3) waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not looked at")] File);

impl Lock {
    /// Waits for the lock of the system below `root`. It belongs to the file that was opened, not to the process: two
    /// requests of one agent exclude each other too.
    ///
    /// # Errors
    /// `busy` if somebody has it for long; else what the system said.
    pub(super) fn take(root: &Path) -> Result<Self, ErrorBody> {
        Self::wait(root, PATIENCE)
    }

    fn wait(root: &Path, patience: Duration) -> Result<Self, ErrorBody> {
        let path = root.join("etc/.pwd.lock");
        let failed = |error: std::io::Error| {
            guest_error(format!("cannot lock the users by {}: {error}", path.display()))
        };
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(&path).map_err(failed)?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let until = Instant::now() + patience;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
                Ok(_) => return Ok(Self(file)),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if Instant::now() < until => {
                    pause();
                }
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let text = "another program of the guest is changing users; try again";
                    return Err(ErrorBody::new(ErrorCode::Busy, text).with("cause", "users_locked"));
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let error = Lock::wait(dir.path(), Duration::ZERO).unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy);
        drop(first);
        Lock::wait(dir.path(), Duration::ZERO).unwrap();
        // A link in its place is not followed.
        std::fs::remove_file(dir.path().join("etc/.pwd.lock")).unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("etc/.pwd.lock")).unwrap();
        assert_eq!(Lock::take(dir.path()).unwrap_err().code, ErrorCode::GuestError);
    }
}
