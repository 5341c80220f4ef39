//! A command in a session of its own: started, fed, read, signalled, killed with all that it started.

mod keeper;
mod pipe;
mod pty;
mod tree;

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use drover_schemas::guest::{Resource, ResourceLimit, TermSize};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use self::pipe::{Pipe, watch};
use crate::account::Account;
use crate::log;

/// The mask of new files' permissions if the request has none.
const UMASK: u32 = 0o022;

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
    /// The size of its terminal, if it has one.
    pub tty: Option<TermSize>,
    /// The mask of new files' permissions.
    pub umask: Option<u32>,
    /// Limits of its processes.
    pub limits: &'a [ResourceLimit],
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
    /// The guest has no terminal for it.
    #[error("cannot make a terminal")]
    Terminal {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A pipe cannot be made.
    #[error("cannot make a pipe for the command")]
    Pipe {
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
    /// The most resident memory of one process, in KiB.
    pub max_rss_kib: u64,
}

/// A command that runs.
///
/// Dropped before its end was told, it is killed with everything that it started.
#[derive(Debug)]
pub struct Running {
    keeper: Pid,
    pid: u32,
    report: AsyncFd<OwnedFd>,
    control: OwnedFd,
    ended: bool,
    terminal: Option<OwnedFd>,
    /// Its standard input, if it has one.
    pub stdin: Option<Pipe>,
    /// Its output.
    pub stdout: Pipe,
    /// Its error output; at a terminal there is none.
    pub stderr: Option<Pipe>,
}

/// Starts a command.
///
/// # Errors
/// [`SpawnError::Start`] carries the system's own code: `NotFound`, `PermissionDenied` …
pub fn spawn(plan: &Plan<'_>) -> Result<Running, SpawnError> {
    let (program, args) = plan.argv.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(plan.env.iter().map(|(k, v)| (k, v))).current_dir(plan.cwd);
    let mut terminal = None;
    match plan.tty {
        Some(size) => {
            let failed = |source| SpawnError::Terminal { source };
            let (master, slave) = pty::open(size, plan.account).map_err(failed)?;
            command.stdin(slave.try_clone().map_err(failed)?).stdout(slave.try_clone().map_err(failed)?);
            command.stderr(slave);
            terminal = Some(master);
        }
        None => {
            command.stdin(if plan.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    let (report, reporter) = pipe().map_err(|source| SpawnError::Pipe { source })?;
    let (controlled, control) = pipe().map_err(|source| SpawnError::Pipe { source })?;
    let setup = Setup {
        account: plan.account.cloned(),
        terminal: plan.tty.is_some(),
        umask: plan.umask.unwrap_or(UMASK) & 0o777,
        limits: plan.limits.iter().map(rlimit).collect(),
    };
    let (reporter_fd, controlled_fd) = (reporter.as_raw_fd(), controlled.as_raw_fd());
    // SAFETY: between fork and exec only async-signal-safe calls are made, on memory that was
    // allocated before the fork; both descriptors stay open until the command was started.
    unsafe {
        command.pre_exec(move || {
            keeper::split(reporter_fd, controlled_fd)?;
            setup.enter()
        });
    }
    let started = command.spawn();
    drop((reporter, controlled));
    let mut child = started.map_err(|source| SpawnError::Start { program: program.to_owned(), source })?;
    // Of the terminal the command alone has this end from now on.
    drop(command);
    let keeper = Pid::from_raw(child.id() as i32);
    let mut watched = || -> io::Result<_> {
        // Told before it began, so this does not wait.
        let [pid, ..] = read_record(&report)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let stdin = match &terminal {
            Some(master) if plan.stdin => Some(Pipe::new(master.try_clone()?, Interest::WRITABLE)?),
            Some(_) => None,
            None => child.stdin.take().map(|s| Pipe::new(s.into(), Interest::WRITABLE)).transpose()?,
        };
        let stdout = match &terminal {
            Some(master) => master.try_clone()?,
            None => child.stdout.take().map(OwnedFd::from).ok_or(io::ErrorKind::Other)?,
        };
        let stderr = child.stderr.take().map(|s| Pipe::new(s.into(), Interest::READABLE)).transpose()?;
        rustix::fs::fcntl_setfl(&report, rustix::fs::OFlags::NONBLOCK)?;
        rustix::fs::fcntl_setfl(&control, rustix::fs::OFlags::NONBLOCK)?;
        Ok((pid as u32, stdin, Pipe::new(stdout, Interest::READABLE)?, stderr))
    };
    let watched = watched().and_then(|rest| Ok((rest, watch(report, Interest::READABLE)?)));
    match watched {
        Ok(((pid, stdin, stdout, stderr), report)) => {
            Ok(Running { keeper, pid, report, control, ended: false, terminal, stdin, stdout, stderr })
        }
        Err(source) => {
            tree::signal(keeper.as_raw(), Signal::SIGKILL);
            bury(keeper);
            Err(SpawnError::Watch { source })
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors, which are new and ours alone.
    unsafe {
        match libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) {
            0 => Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The next record of a keeper; `None` at its end.
fn read_record(report: &OwnedFd) -> io::Result<Option<keeper::Record>> {
    let mut bytes = [0; keeper::RECORD];
    // A record is written at once, so it is read at once.
    match rustix::io::read(report, &mut bytes)? {
        keeper::RECORD => {
            let mut record = [0; 4];
            for (value, bytes) in record.iter_mut().zip(bytes.chunks_exact(8)) {
                *value = u64::from_ne_bytes(bytes.try_into().map_err(io::Error::other)?);
            }
            Ok(Some(record))
        }
        _ => Ok(None),
    }
}

fn rlimit(limit: &ResourceLimit) -> (libc::__rlimit_resource_t, libc::rlimit) {
    let resource = match limit.resource {
        Resource::As => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    };
    let value = |v: Option<u64>| v.unwrap_or(libc::RLIM_INFINITY);
    (resource, libc::rlimit { rlim_cur: value(limit.soft), rlim_max: value(limit.hard) })
}

/// What a command becomes before it begins.
struct Setup {
    account: Option<Account>,
    terminal: bool,
    umask: libc::mode_t,
    limits: Vec<(libc::__rlimit_resource_t, libc::rlimit)>,
}

impl Setup {
    /// In the child, before exec: a session of its own, nothing inherited, then the user's rights.
    fn enter(&self) -> io::Result<()> {
        let check = |result: libc::c_int| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: plain system calls on integers and on memory that outlives them.
        unsafe {
            check(libc::setsid())?;
            if self.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            // The agent is the last to be killed for memory; its commands are not. Fails harmlessly
            // where there is no /proc.
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, c"0".as_ptr().cast(), 1);
                libc::close(fd);
            }
            // Every descriptor here is close-on-exec already; this holds for those of libraries too.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::umask(self.umask);
            for (resource, limit) in &self.limits {
                check(libc::setrlimit(*resource, limit))?;
            }
            if let Some(account) = &self.account {
                check(libc::setgroups(account.groups.len(), account.groups.as_ptr()))?;
                check(libc::setresgid(account.gid, account.gid, account.gid))?;
                check(libc::setresuid(account.uid, account.uid, account.uid))?;
            }
        }
        Ok(())
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it is at a terminal.
    #[must_use]
    pub const fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sends a signal to every process of its group. Nothing happens once it has ended.
    pub fn signal_group(&self, signal: i32) {
        if let Err(errno) = rustix::io::write(&self.control, &signal.to_ne_bytes()) {
            log::debug(format_args!("a signal was not sent: {errno}"));
        }
    }

    /// Sends a signal to everything that it started and that still runs.
    pub fn signal_all(&self, signal: Signal) {
        tree::signal(self.keeper.as_raw(), signal);
    }

    /// Kills everything that it started and that still runs; returns when it is gone.
    pub async fn kill(&self) {
        tree::kill(self.keeper.as_raw()).await;
    }

    /// Kills what it left behind when it ended; costs next to nothing if that is nothing.
    pub async fn kill_rest(&self) {
        if tree::has_children(self.keeper.as_raw()) {
            tree::kill(self.keeper.as_raw()).await;
        }
    }

    /// Gives its terminal another size.
    pub fn resize(&self, size: TermSize) {
        if let Some(Err(error)) = self.terminal.as_ref().map(|t| pty::resize(t, size)) {
            log::debug(format_args!("a terminal keeps its size: {error}"));
        }
    }

    /// What ends the input of a program at this terminal: Ctrl-D, unless the program chose another.
    #[must_use]
    pub fn end_of_file(&self) -> Option<u8> {
        let terminal = self.terminal.as_ref()?;
        // SAFETY: all-zero is a valid termios, and the kernel writes one.
        let termios = unsafe {
            let mut termios: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(terminal.as_raw_fd(), &raw mut termios) == 0).then_some(termios)
        };
        Some(termios.map_or(4, |t| t.c_cc[libc::VEOF]))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn exited(&self) -> io::Result<()> {
        self.report.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// How it ended, which it has.
    ///
    /// # Errors
    /// Its keeper was killed.
    pub fn reap(&mut self) -> io::Result<Exit> {
        let record = read_record(self.report.get_ref());
        self.ended = true;
        bury(self.keeper);
        let [status, user_us, sys_us, max_rss_kib] = record?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = status as libc::c_int;
        Ok(Exit {
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            user_ms: user_us / 1000,
            sys_ms: sys_us / 1000,
            max_rss_kib,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let keeper = self.keeper;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    tree::kill(keeper.as_raw()).await;
                    bury(keeper);
                });
            }
            Err(_) => tree::signal(keeper.as_raw(), Signal::SIGKILL),
        }
    }
}

/// Reaps a keeper when it ends: at once, or with the last process that its command left behind.
fn bury(keeper: Pid) {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    if !matches!(waitpid(keeper, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
        return;
    }
    let handle = rustix::process::Pid::from_raw(keeper.as_raw())
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        .and_then(|fd| watch(fd, Interest::READABLE).ok());
    match (handle, tokio::runtime::Handle::try_current()) {
        (Some(handle), Ok(runtime)) => {
            runtime.spawn(async move {
                let _ = handle.readable().await;
                let _ = waitpid(keeper, None);
            });
        }
        // Linux before 5.3 has no such handles.
        _ => drop(std::thread::spawn(move || waitpid(keeper, None))),
    }
}
