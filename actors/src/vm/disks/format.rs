//! An empty file system on a blank disk, made by a process with the rights of the VM's user and little of everything.

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::PidfdFlags;

/// The program.
const PROGRAM: &str = "mkfs.ext4";
/// Where it lies though a daemon that a user started does not look there.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How long it may take. It writes little, so a disk that is slower than this serves no VM either.
const WITHIN: Duration = Duration::from_secs(60);
/// From one look at whether it is still wanted to the next.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// What it may map, in bytes.
const MEMORY: u64 = 1 << 30;
/// What is kept of its complaint.
const MAX_TEXT: u64 = 1_024;
/// The disk, which is its standard input: the folder may be closed to its user.
const DISK: &str = "/proc/self/fd/0";

/// A disk that could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The program is not there.
    #[error("the host has no mkfs.ext4; install e2fsprogs on it, or leave the disk blank")]
    NoTool,
    /// It could not be started or waited for.
    #[error("start mkfs.ext4")]
    Start(#[source] io::Error),
    /// It failed.
    #[error("mkfs.ext4 ended with {status}: {text}")]
    Failed {
        /// How it ended.
        status: String,
        /// What it said.
        text: String,
    },
    /// It took too long.
    #[error("mkfs.ext4 took more than {} s", WITHIN.as_secs())]
    Slow,
    /// It is not wanted any more.
    #[error("it is not wanted any more")]
    Stopped,
}

/// The program that formats, if the host has it.
#[must_use]
pub fn tool() -> Option<PathBuf> {
    find(env::split_paths(&env::var_os("PATH").unwrap_or_default()).chain(SYSTEM.map(PathBuf::from)))
}

fn find(dirs: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.into_iter().filter(|dir| dir.is_absolute()).map(|dir| dir.join(PROGRAM)).find(|path| path.is_file())
}

/// Formats `disk`, which has `size` bytes and belongs to `owner`.
///
/// # Errors
/// [`FormatError`]; the program has ended then.
pub fn ext4(
    disk: &File,
    size: u64,
    label: Option<&str>,
    owner: Option<u32>,
    stop: &AtomicBool,
) -> Result<(), FormatError> {
    let mut child = Ended(
        start(&tool().ok_or(FormatError::NoTool)?, disk, size, label, owner).map_err(FormatError::Start)?,
    );
    let pid = rustix::process::Pid::from_child(&child.0);
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| FormatError::Start(e.into()))?;
    let until = Instant::now() + WITHIN;
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(FormatError::Start)? {
            break status;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(FormatError::Stopped);
        }
        if Instant::now() > until {
            return Err(FormatError::Slow);
        }
        look(&pidfd).map_err(FormatError::Start)?;
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    if let Some(stderr) = child.0.stderr.take() {
        // What cannot be read of its complaint is missing in ours.
        let _ = stderr.take(MAX_TEXT).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(FormatError::Failed { status: status.to_string(), text })
}

/// Waits until the process has ended, or for a while.
fn look(pidfd: &OwnedFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&LOOK)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A process that has ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(tool: &Path, disk: &File, size: u64, label: Option<&str>, owner: Option<u32>) -> io::Result<Child> {
    let mut command = Command::new(tool);
    command.args(["-q", "-F", "-E", "nodiscard,root_owner=0:0"]);
    if let Some(label) = label {
        command.args(["-L", label]);
    }
    command.arg(DISK).env_clear().current_dir("/");
    command.stdin(disk.try_clone()?).stdout(Stdio::null()).stderr(Stdio::piped());
    let user = owner.filter(|_| Uid::effective().is_root());
    // SAFETY: only system calls between fork and exec, and nothing that allocates.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_FSIZE, size, size)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
            setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
            if let Some(user) = user {
                setgroups(&[])?;
                let (gid, uid) = (Gid::from_raw(user), Uid::from_raw(user));
                setresgid(gid, gid, gid)?;
                setresuid(uid, uid, uid)?;
            }
            // The thread that starts it waits for it.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            prctl::set_no_new_privs()?;
            Ok(())
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_is_looked_for_in_absolute_folders_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find([dir.path().to_owned(), PathBuf::from("bin")]), None);
        std::fs::write(dir.path().join(PROGRAM), "").unwrap();
        assert_eq!(find(["".into(), dir.path().to_owned()]), Some(dir.path().join(PROGRAM)));
    }
}
