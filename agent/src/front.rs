//! The process that whoever supervises the agent knows: a small parent of the one that serves.
//!
//! It stays the same process over every upgrade, so neither systemd nor OpenRC, nor an init that starts again what ends,
//! takes the end of an old agent for the end of the service. It is a fork before anything else was done, so it shares
//! what it has with the agent; it adopts and reaps what agents leave, passes signals on, and ends as the agent that
//! serves ends. When it is killed, all agents end with it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::unistd::{ForkResult, Pid, fork};
use tokio::io::Interest;

use crate::process::watch;

/// Signals that end the agent; they are passed on.
const PASSED: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// What the code of a process is that a signal ended, after the shells.
const BY_SIGNAL: i32 = 128;

/// The way of an agent to its front.
#[derive(Debug)]
pub struct Front(OwnedFd);

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Role {
    /// The agent.
    Agent(Front),
    /// The front, whose agent has ended: it ends with this code.
    Ended(i32),
}

/// Splits the process. The front returns when its agent has ended.
///
/// # Errors
/// No process can be made.
pub fn split() -> io::Result<Role> {
    let (own, theirs) = UnixStream::pair()?;
    // Blocked before there is a child, so that none is missed; the child gets the old mask back.
    let mut before = MaybeUninit::uninit();
    let watched = watched();
    // SAFETY: both point to sets that live, and the kernel fills the second.
    let before = unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const watched, before.as_mut_ptr());
        before.assume_init()
    };
    // SAFETY: called by main before any other thread exists.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(own);
            // SAFETY: the set lives.
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
            Ok(Role::Agent(Front(theirs.into())))
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            own.set_nonblocking(true)?;
            Ok(Role::Ended(stay(&own, child, &watched)))
        }
    }
}

fn watched() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the first call makes the set, the others add to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in PASSED.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

fn stay(words: &UnixStream, agent: Pid, watched: &libc::sigset_t) -> i32 {
    let mut agent = agent.as_raw();
    // SAFETY: system calls on integers and constants.
    unsafe {
        // Agents that follow are started by the one before them, and come here when it ends.
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"drover-front".as_ptr(), 0, 0, 0);
        // The default of SIGCHLD: whoever started this may have chosen that nobody is told.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: both point to values that live; all-zero is a `siginfo_t`.
        let signal = unsafe { libc::sigwaitinfo(&raw const *watched, info.as_mut_ptr()) };
        serving(words, &mut agent);
        if signal == libc::SIGCHLD {
            if let Some(code) = reap(words, &mut agent) {
                return code;
            }
        } else if signal > 0 {
            // SAFETY: filled by the kernel, with a sender, as signals of processes have.
            let sender = unsafe { info.assume_init().si_pid() };
            pass_on(agent, signal, sender);
        }
    }
}

/// Which agent serves now, if it was said.
fn serving(words: &UnixStream, agent: &mut i32) {
    let mut word = [0; 4];
    while rustix::io::read(words, &mut word).is_ok_and(|n| n == word.len()) {
        *agent = i32::from_ne_bytes(word);
    }
}

/// Reaps what has ended; the code if that was the agent.
fn reap(words: &UnixStream, agent: &mut i32) -> Option<i32> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is valid for the write.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None;
        }
        // It may have said who follows, and ended.
        serving(words, agent);
        if pid == *agent {
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                BY_SIGNAL + libc::WTERMSIG(status)
            };
            return Some(code);
        }
    }
}

/// Passes a signal on, with who sent it: that of init means something else than that of a person.
fn pass_on(agent: i32, signal: libc::c_int, sender: i32) {
    let value = libc::sigval { sival_ptr: sender as usize as *mut libc::c_void };
    // SAFETY: a system call on values; the pointer is a number that nobody follows.
    unsafe { libc::sigqueue(agent, signal, value) };
}

impl Front {
    /// Takes a descriptor that an agent before this one has handed over.
    #[must_use]
    pub const fn inherited(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another way to the same front, to be handed on.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn again(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Says that this process is the agent that serves from now on.
    ///
    /// # Errors
    /// The front has gone.
    pub fn serve(&self) -> io::Result<()> {
        // It reads it before it does anything about a signal or an end.
        rustix::io::write(&self.0, &std::process::id().to_ne_bytes())?;
        Ok(())
    }

    /// Waits for the end of the front: then the agent must end.
    pub async fn gone(&self) {
        let watched = self.0.try_clone().and_then(|fd| {
            rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK)?;
            watch(fd, Interest::READABLE)
        });
        // It says nothing: what can be read is its end.
        let Ok(watched) = watched else { return std::future::pending().await };
        if watched.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
