//! The parent of one command: a fork of the agent that stays between the two.
//!
//! It is the subreaper of everything that the command starts, so a process that forked twice and made a
//! session of its own is still below it, and can be found and killed. It alone reaps the command, and it
//! alone signals the command's group, so a number that was given to others is never signalled. It ends with
//! the last process below it. When the agent ends it goes on.
//!
//! Between `fork` and its end it makes system calls only, on its own stack: other threads of the agent may
//! have held any lock.

use std::io;
use std::os::fd::RawFd;

/// What is said over the report pipe. The command itself tells its process id before it begins; its end is
/// told with the wait status and what it used: user and system CPU in microseconds, largest resident set in KiB.
pub(super) type Record = [u64; 4];
/// The length of a record on the pipe.
pub(super) const RECORD: usize = size_of::<Record>();

/// Where the keeper has its ends of the pipes.
const REPORT: RawFd = 0;
const CONTROL: RawFd = 1;
/// Above every number that is given a meaning here.
const ASIDE: libc::c_int = 16;

/// Splits the child: the grandchild returns and becomes the command, the child stays as its keeper.
///
/// # Errors
/// No process can be made.
///
/// # Safety
/// To be called in a forked child that has one thread, with both descriptors open.
pub(super) unsafe fn split(report: RawFd, control: RawFd) -> io::Result<()> {
    // SAFETY: system calls on integers; the caller promises that this is a child of its own.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                defaults();
                say(report, [libc::getpid() as u64, 0, 0, 0])
            }
            command => keep(command, report, control),
        }
    }
}

/// Every signal does what it usually does, whatever the agent was started with: one that is ignored stays so over
/// `exec`, and a command of an agent that `nohup` or a shell's background began would not end by Ctrl-C.
fn defaults() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: a system call on integers. Those that cannot be set have their default.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn say(to: RawFd, record: Record) -> io::Result<()> {
    // SAFETY: the record is RECORD bytes long. A pipe takes so few at once or not at all.
    let written = unsafe { libc::write(to, record.as_ptr().cast(), RECORD) };
    if written == RECORD as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// As [`split`].
unsafe fn keep(mut command: libc::pid_t, report: RawFd, control: RawFd) -> ! {
    // SAFETY: system calls on integers and on values of this frame. Nothing is allocated.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let report = libc::fcntl(report, libc::F_DUPFD, ASIDE);
        let control = libc::fcntl(control, libc::F_DUPFD, ASIDE);
        libc::dup2(report, REPORT);
        libc::dup2(control, CONTROL);
        // The command's own pipes above all: their ends must come when the command closes them.
        if libc::syscall(libc::SYS_close_range, CONTROL + 1, libc::c_uint::MAX, 0) != 0 {
            for fd in CONTROL + 1..4096 {
                libc::close(fd);
            }
        }
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"drover-keeper".as_ptr(), 0, 0, 0);
        let mut ends: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut ends);
        libc::sigaddset(&raw mut ends, libc::SIGCHLD);
        let signals = libc::signalfd(-1, &raw const ends, libc::SFD_NONBLOCK);
        let mut watched = [
            libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: CONTROL, events: libc::POLLIN, revents: 0 },
        ];
        loop {
            reap(&mut command);
            if libc::poll(watched.as_mut_ptr(), 2, -1) < 0 {
                continue;
            }
            let mut news = [0u8; 128];
            while libc::read(signals, news.as_mut_ptr().cast(), news.len()) > 0 {}
            if watched[1].revents != 0 {
                let mut signal: libc::c_int = 0;
                let size = size_of::<libc::c_int>();
                if libc::read(CONTROL, (&raw mut signal).cast(), size) != size as isize {
                    // The agent has gone, or has no more to say.
                    watched[1].fd = -1;
                } else if command > 0 && libc::kill(-command, signal) != 0 {
                    // It may not have made its session yet.
                    libc::kill(command, signal);
                }
            }
        }
    }
}

/// Reaps what has ended; tells of the command, and ends with the last process.
///
/// # Safety
/// As [`split`].
unsafe fn reap(command: &mut libc::pid_t) {
    loop {
        let mut status = 0;
        // SAFETY: all-zero is a valid rusage, and both pointers are valid for writes.
        let (pid, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
        };
        match pid {
            0 => return,
            -1 => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                // SAFETY: ends this process at once, as is right for a fork.
                _ => unsafe { libc::_exit(0) },
            },
            pid if pid == *command => {
                *command = 0;
                let us = |t: libc::timeval| (t.tv_sec as u64) * 1_000_000 + t.tv_usec as u64;
                let record = [status as u64, us(usage.ru_utime), us(usage.ru_stime), usage.ru_maxrss as u64];
                let _ = say(REPORT, record);
            }
            _ => {}
        }
    }
}
