//! The end of a VMM: its status and usage, the end of what it left behind, and the record of it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{Timespec, poll};
use rustix::process::{Pid, Signal};

use crate::dir::Dir;
use crate::record::{ExitRecord, VERSION, file, oom_kills};
use crate::spawn::Vmm;

/// How long what the VMM left behind may take to end after SIGKILL.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Ends a VMM that must not run.
pub fn kill(vmm: &Vmm) {
    // It may have ended by itself.
    let _ = rustix::process::pidfd_send_signal(&vmm.pidfd, Signal::KILL);
    let _ = end(vmm, &[]);
}

/// Reaps an ended VMM and ends everything that it started within `cgroups`.
pub fn end(vmm: &Vmm, cgroups: &[PathBuf]) -> ExitRecord {
    // First the VMM: what is left behind is ended by us, and its usage does not count.
    let record = ExitRecord { oom_kills: oom_kills(cgroups), ..reap(vmm) };
    end_leftovers(vmm);
    record
}

fn reap(vmm: &Vmm) -> ExitRecord {
    let mut status: libc::c_int = 0;
    // SAFETY: `rusage` is plain data for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = vmm.pid.cast_signed();
    // SAFETY: both out-pointers are valid for the call.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ExitRecord {
                unrecorded: Some(format!("cannot wait for it: {}", io::Error::last_os_error())),
                ..base(vmm)
            };
        }
    }
    ExitRecord {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        core_dumped: libc::WIFSIGNALED(status) && libc::WCOREDUMP(status),
        utime_us: micros(usage.ru_utime),
        stime_us: micros(usage.ru_stime),
        maxrss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        ..base(vmm)
    }
}

fn base(vmm: &Vmm) -> ExitRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    ExitRecord { version: VERSION, unix_ms, vmm_pid: vmm.pid, ..ExitRecord::default() }
}

fn micros(time: libc::timeval) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
}

/// Kills the VMM's process group and whatever became our child when its parent ended, until nothing is left
/// or the time is up.
fn end_leftovers(vmm: &Vmm) {
    let deadline = Instant::now() + LEFTOVERS;
    if let Some(group) = Pid::from_raw(vmm.pid.cast_signed()) {
        // Usually the group is gone with its leader.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    loop {
        for child in children() {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        // SAFETY: waits for any child of ours without blocking; no status is wanted.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            // None left.
            -1 => return,
            0 if Instant::now() >= deadline => return,
            0 => {
                // Nothing to wait for but time: a killed process needs a moment to end.
                let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
            }
            _ => {}
        }
    }
}

/// Our children, among them orphans of the VMM's.
fn children() -> Vec<Pid> {
    let own = std::process::id();
    let listed = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    listed.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Writes the record so that it survives even a power cut.
pub fn write_exit(dir: &Dir, record: ExitRecord) -> io::Result<()> {
    dir.write(file::EXIT, &serde_json::to_vec(&record)?, true)
}
