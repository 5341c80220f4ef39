//! Starts pid 1 of a guest of processes: one `clone` into new namespaces, then this program again.
//!
//! Root makes the namespaces directly. Everybody else makes a user namespace first, in which the
//! caller's uid is root; the maps are written before the `exec`, which would take the rights away.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, clone};
use nix::unistd::{Pid, getegid, geteuid};

/// The first argument that makes this program pid 1 of a guest.
pub const INIT_FLAG: &str = "--process-init";
/// The descriptor of the control socket in pid 1.
pub const CONTROL_FD: RawFd = 3;

const STACK: usize = 64 << 10;

/// Why pid 1 could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// An argument has a NUL byte in it.
    #[error("argument with a NUL byte")]
    Argument(#[source] NulError),
    /// No socket pair, or no pidfd.
    #[error("cannot prepare the namespaces")]
    Prepare(#[source] io::Error),
    /// `clone` failed.
    #[error("cannot make the namespaces")]
    Clone(#[source] io::Error),
}

/// Pid 1 as its parent sees it.
pub struct Spawned {
    /// Its pid, outside.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Commands to it; its end is the end of the guest.
    pub control: UnixStream,
    /// Its standard streams.
    pub serial: UnixStream,
}

struct Child {
    path: CString,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    serial: RawFd,
    control: RawFd,
    maps: Option<[(CString, String); 3]>,
}

/// Starts pid 1 with a description of the guest as its argument.
///
/// # Errors
/// The system refused; nothing is left.
pub fn spawn(description: &str) -> Result<Spawned, SpawnError> {
    let (serial, serial_child) = UnixStream::pair().map_err(SpawnError::Prepare)?;
    let (control, control_child) = UnixStream::pair().map_err(SpawnError::Prepare)?;
    let text = |s: &str| CString::new(s).map_err(SpawnError::Argument);
    let args = [text("softvmm-init")?, text(INIT_FLAG)?, text(description)?];
    let mut flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    let mut maps = None;
    if !geteuid().is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
        maps = Some([
            (text("/proc/self/setgroups")?, "deny".to_owned()),
            (text("/proc/self/uid_map")?, format!("0 {} 1", geteuid())),
            (text("/proc/self/gid_map")?, format!("0 {} 1", getegid())),
        ]);
    }
    let child = Child {
        path: text("/proc/self/exe")?,
        argv: args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect(),
        envp: vec![std::ptr::null()],
        serial: serial_child.as_raw_fd(),
        control: control_child.as_raw_fd(),
        maps,
    };
    let mut stack = vec![0u8; STACK];
    // SAFETY: no CLONE_VM, so the child has its own copy of this memory, the stack included, and the
    // caller's stays as it is. The callback makes system calls on data prepared above and allocates
    // nothing, so a lock that another thread held at the fork cannot block it.
    let pid = unsafe { clone(Box::new(|| run(&child)), &mut stack, flags, Some(libc::SIGCHLD)) }
        .map_err(|e| SpawnError::Clone(e.into()))?;
    // SAFETY: a system call without pointers; the pid is our child, which nobody has reaped yet.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(SpawnError::Prepare(error));
    }
    // SAFETY: the descriptor was just made and is ours alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    Ok(Spawned { pid, pidfd, control, serial })
}

/// In the child: streams into place, maps, then this program as pid 1.
fn run(child: &Child) -> isize {
    // SAFETY: plain system calls on valid descriptors and NUL-terminated strings that the parent
    // prepared; `execve` replaces the process, and on failure the child ends at once.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for (path, text) in child.maps.iter().flatten() {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
            if fd < 0 || libc::write(fd, text.as_ptr().cast(), text.len()) < 0 {
                return 126;
            }
            libc::close(fd);
        }
        // The control socket first moves out of the way of the streams that land on 0 to 3.
        let control = libc::fcntl(child.control, libc::F_DUPFD, 10);
        let serial = libc::fcntl(child.serial, libc::F_DUPFD, 10);
        for fd in 0..CONTROL_FD {
            libc::dup2(serial, fd);
        }
        libc::dup2(control, CONTROL_FD);
        libc::syscall(libc::SYS_close_range, CONTROL_FD + 1, libc::c_uint::MAX, 0);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(child.path.as_ptr(), child.argv.as_ptr(), child.envp.as_ptr());
    }
    127
}

/// Sends a command to pid 1 and does not wait for its answer.
///
/// # Errors
/// It is gone.
pub fn command(mut control: &UnixStream, command: u8) -> io::Result<()> {
    control.write_all(&[command])
}

/// The control socket as pid 1 finds it.
pub fn inherited_control() -> File {
    // SAFETY: `run` put the control socket there before the `exec`, and this is called once.
    unsafe { File::from_raw_fd(CONTROL_FD) }
}
