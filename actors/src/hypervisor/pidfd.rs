//! Processes that are not our children: identity by start time, waiting and killing through a pidfd.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's id of the current boot.
///
/// # Errors
/// `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When process `pid` started, in clock ticks after boot; `None` if there is no such process or it is a
/// zombie, which runs nothing any more.
#[must_use]
pub fn starttime(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses: fields count from the last one. State is the 3rd field.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether the environment of process `pid` holds `name=value`.
#[must_use]
pub fn has_env(pid: u32, name: &str, value: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| env_value(&environ, name) == Some(value.as_bytes()))
}

/// The value of `name` in an environment as `/proc/PID/environ` shows it.
#[must_use]
pub fn env_value<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// A process, fixed: a later process with the same number is not it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    starttime: u64,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Fixes process `pid` if it is the one that started at `starttime`; `None` if that one is gone.
    ///
    /// # Errors
    /// The kernel has no pidfds, or no descriptor is left.
    pub fn open(pid: u32, starttime: u64) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let fd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Asked after the descriptor was made: what it shows is the process that the descriptor holds.
        if self::starttime(pid) != Some(starttime) {
            return Ok(None);
        }
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on, which never hands it out, so it stays
        // open and the same until the registration ends.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Some(Self { pid, starttime, fd }))
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks after boot.
    #[must_use]
    pub fn starttime(&self) -> u64 {
        self.starttime
    }

    /// Returns when it has ended.
    pub async fn ended(&self) {
        loop {
            match self.fd.readable().await {
                // A pidfd stays readable once its process has ended, so the readiness is never cleared
                // on the way out; a spurious wake-up is asked again.
                Ok(mut guard) => {
                    if self.has_ended() {
                        return;
                    }
                    guard.clear_ready();
                }
                // The runtime is shutting down: nobody is left to be told.
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
    }

    /// Sends it a signal; one that has ended already is a success.
    ///
    /// # Errors
    /// We may not signal it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
