//! A command in a session of its own: started, fed, read, signalled as a group, reaped.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use bytes::{Bytes, BytesMut};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::account::Account;

/// The first and the largest buffer of one read, in bytes.
const FIRST_READ: usize = 4 * 1024;
const MAX_READ: usize = 64 * 1024;

/// What to run.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Every variable.
    pub env: Vec<(String, String)>,
    /// Where.
    pub cwd: &'a str,
    /// As whom, if not as the agent.
    pub account: Option<&'a Account>,
    /// Whether there is a standard input.
    pub stdin: bool,
}

/// The command could not be started, by what step.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program cannot be executed, or no process can be made.
    #[error("cannot start {program:?}")]
    Start {
        /// Which program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A pipe or the process's handle cannot be watched.
    #[error("cannot watch the command")]
    Watch {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How a command ended and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one killed it.
    pub signal: Option<i32>,
    /// CPU time in user mode, in milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    pub sys_ms: u64,
    /// The most resident memory, in KiB.
    pub max_rss_kib: u64,
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd
    // owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// One end of a pipe to a command.
#[derive(Debug)]
pub struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        watch(fd, interest).map(Self)
    }

    /// Reads at most `max` bytes; empty at the end of the pipe.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing now.
    pub fn read(&self, max: usize, last: usize) -> io::Result<Bytes> {
        // Twice what came last: an idle pipe costs nothing, a busy one gets large reads.
        let size = (2 * last).clamp(FIRST_READ, MAX_READ).min(max);
        let mut buf = BytesMut::zeroed(size);
        match rustix::io::read(self.0.get_ref(), &mut buf[..]) {
            Ok(n) => {
                buf.truncate(n);
                Ok(buf.freeze())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn wait_readable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // Tests the pipe itself within the guard: readiness that came in between is kept.
            match guard.try_io(|fd| poll_readable(fd.get_ref())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Whether there is nothing to read now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        rustix::io::ioctl_fionread(self.0.get_ref()).is_ok_and(|n| n == 0)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// `BrokenPipe` when nobody reads any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.ready(Interest::WRITABLE).await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready_matching(Ready::WRITABLE),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn poll_readable(fd: &OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A command that runs.
///
/// Dropped before it was reaped, its group is killed and a task reaps it.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    handle: Option<AsyncFd<OwnedFd>>,
    reaped: bool,
    /// Its standard input, if it has one.
    pub stdin: Option<Pipe>,
    /// Its output.
    pub stdout: Pipe,
    /// Its error output.
    pub stderr: Pipe,
}

/// Starts a command.
///
/// # Errors
/// [`SpawnError::Start`] carries the system's own code: `NotFound`, `PermissionDenied` …
pub fn spawn(plan: &Plan<'_>) -> Result<Running, SpawnError> {
    let (program, args) = plan.argv.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let failed = |source| SpawnError::Start { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(plan.env.iter().map(|(k, v)| (k, v))).current_dir(plan.cwd);
    command.stdin(if plan.stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let account = plan.account.cloned();
    // SAFETY: between fork and exec only async-signal-safe calls are made, on memory that was
    // allocated before the fork.
    unsafe { command.pre_exec(move || enter(account.as_ref())) };
    let mut child = command.spawn().map_err(failed)?;

    let pid = Pid::from_raw(child.id() as i32);
    // Without pidfds (Linux before 5.3) a thread waits instead.
    let handle = rustix::process::Pid::from_raw(pid.as_raw())
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        .and_then(|fd| watch(fd, Interest::READABLE).ok());
    let mut pipes = || -> io::Result<_> {
        let out = child.stdout.take().map(OwnedFd::from).ok_or(io::ErrorKind::Other)?;
        let err = child.stderr.take().map(OwnedFd::from).ok_or(io::ErrorKind::Other)?;
        let stdin = child.stdin.take().map(|s| Pipe::new(s.into(), Interest::WRITABLE)).transpose()?;
        Ok((stdin, Pipe::new(out, Interest::READABLE)?, Pipe::new(err, Interest::READABLE)?))
    };
    match pipes() {
        Ok((stdin, stdout, stderr)) => Ok(Running { pid, handle, reaped: false, stdin, stdout, stderr }),
        Err(source) => {
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = child.wait();
            Err(SpawnError::Watch { source })
        }
    }
}

/// In the child, before exec: a session of its own, nothing inherited, then the user's rights.
fn enter(account: Option<&Account>) -> io::Result<()> {
    let check = |result: libc::c_int| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on integers and on memory that outlives them.
    unsafe {
        check(libc::setsid())?;
        // The agent is the last to be killed for memory; its commands are not. Fails harmlessly
        // where there is no /proc.
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, c"0".as_ptr().cast(), 1);
            libc::close(fd);
        }
        // Every descriptor here is close-on-exec already; this holds for those of libraries too.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::umask(0o022);
        if let Some(account) = account {
            check(libc::setgroups(account.groups.len(), account.groups.as_ptr()))?;
            check(libc::setresgid(account.gid, account.gid, account.gid))?;
            check(libc::setresuid(account.uid, account.uid, account.uid))?;
        }
    }
    Ok(())
}

impl Running {
    /// Sends a signal to every process of the group. Nothing happens once it was reaped.
    pub fn signal(&self, signal: Signal) {
        // The unreaped leader, even dead, keeps the number from being used again.
        if !self.reaped {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Waits until the leader has exited, without reaping it.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn exited(&self) -> io::Result<()> {
        match &self.handle {
            Some(handle) => handle.readable().await.map(|mut guard| guard.retain_ready()),
            None => {
                let pid = self.pid;
                tokio::task::spawn_blocking(move || wait_exited(pid)).await.map_err(io::Error::other)?
            }
        }
    }

    /// Reaps the leader, which has exited.
    ///
    /// # Errors
    /// When somebody else has reaped it.
    pub fn reap(&mut self) -> io::Result<Exit> {
        let exit = reap(self.pid)?;
        self.reaped = true;
        Ok(exit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.signal(Signal::SIGKILL);
        self.reaped = true;
        let pid = self.pid;
        let wait = move || {
            let _ = reap(pid);
        };
        // SIGKILL takes effect at once, save for a process in an uninterruptible wait.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(wait)),
            Err(_) => wait(),
        }
    }
}

fn wait_exited(pid: Pid) -> io::Result<()> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).map(drop).map_err(Into::into)
}

fn reap(pid: Pid) -> io::Result<Exit> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for writes for the length of the call.
        let result = unsafe { libc::wait4(pid.as_raw(), &mut status, 0, &mut usage) };
        if result != -1 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
    let ms = |t: libc::timeval| (t.tv_sec as u64) * 1000 + (t.tv_usec as u64) / 1000;
    Ok(Exit {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        user_ms: ms(usage.ru_utime),
        sys_ms: ms(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss as u64,
    })
}

/// Where the agent is the first process: a small parent that reaps orphans, for which the agent
/// itself is no parent. Answers in the child; the parent leaves the process with the child's code.
///
/// # Errors
/// When no process can be made.
pub fn split_from_pid_1() -> io::Result<Option<i32>> {
    if std::process::id() != 1 {
        return Ok(None);
    }
    // SAFETY: called by main before any other thread exists.
    let child = match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => return Ok(None),
        nix::unistd::ForkResult::Parent { child } => child,
    };
    loop {
        use nix::sys::wait::{WaitStatus, waitpid};
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(Some(128 + signal as i32)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
