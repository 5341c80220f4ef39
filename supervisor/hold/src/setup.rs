//! From a fresh process to a running VMM; each step that fails ends the start and is named.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::args::Args;
use crate::dir::Dir;
use crate::notify::Notify;
use crate::notify_path;
use crate::pump::{Pump, Stderr};
use crate::record::{PidRecord, RING_HALF, RecordHead, SpawnError, VERSION, file};
use crate::ring::Ring;
use crate::serial::Serial;
use crate::spawn::{self, IGNORED, Plan};
use crate::step;

/// Longest launch record that is read.
const RECORD_MAX: u64 = 1 << 20;
/// Size of the event FIFO: what fits is not lost while we do not look.
const FIFO_SIZE: usize = 1 << 20;

/// Does everything up to the first look at the VMM.
pub fn set_up(args: &Args, dir: &Dir) -> Result<Pump, SpawnError> {
    let mut warnings = Vec::new();
    let null = leave_daemon()?;
    for cgroup in &args.holder_cgroups {
        let joined = spawn::open_procs(cgroup)?.write_all(b"0");
        step(format!("enter the cgroup {}", cgroup.display()), joined)?;
    }
    let head = read_head(args, dir)?;
    let events = step(format!("open the FIFO {}", file::EVENT_FIFO), dir.fifo(file::EVENT_FIFO))?;
    // More room only lowers the chance of a lost event; a container may forbid it.
    if let Err(errno) = rustix::pipe::fcntl_setpipe_size(&events, FIFO_SIZE) {
        warnings.push(format!("the event FIFO keeps its default size: {errno}"));
    }
    let console_in = step(format!("open the FIFO {}", file::CONSOLE_IN), dir.fifo(file::CONSOLE_IN))?;
    let event_ring = step(format!("open {}", file::EVENTS), Ring::open(dir, file::EVENTS, RING_HALF))?;
    let console = step(format!("open {}", file::CONSOLE), Ring::open(dir, file::CONSOLE, RING_HALF))?;
    let stderr = Stderr::open(dir)?;
    let (output_read, output_write) =
        step("make a pipe for the output", rustix::pipe::pipe_with(PipeFlags::CLOEXEC))?;
    // Our end only: a VMM does not expect that its stderr refuses.
    step("unblock the pipe", rustix::io::ioctl_fionbio(&output_read, true))?;
    let notify = step("make the socket for notices", Notify::new(&notify_path(args), head.vm_id.clone()))?;

    let environment = environment(&head);
    let confinement = head.confinement.map(|confinement| (confinement, args.run_dir.join(file::ROOT)));
    let plan = Plan::new(&args.command, environment, &args.cgroups, confinement)?;
    let vmm = spawn::spawn(&plan, &null, &output_write)?;
    drop(output_write);
    let pids = PidRecord {
        version: VERSION,
        pid: vmm.pid,
        starttime: starttime(vmm.pid).unwrap_or(0),
        boot_id: boot_id().unwrap_or_default(),
        holder_pid: std::process::id(),
        holder_starttime: starttime(std::process::id()).unwrap_or(0),
        events_offset: event_ring.end(),
        console_offset: console.end(),
        warnings,
    };
    let text = serde_json::to_vec(&pids).unwrap_or_default();
    if let Err(error) = step(format!("write {}", file::PID), dir.write(file::PID, &text, false)) {
        // Nobody could find it again.
        crate::end::kill(&vmm);
        return Err(error);
    }
    let dir = step("copy a descriptor", dir.try_clone())?;
    Ok(Pump {
        dir,
        vmm,
        notify,
        events,
        event_ring,
        console_in,
        console,
        output: Some(output_read),
        stderr,
        serial: Serial::default(),
    })
}

/// Cuts every tie to the daemon but the lock, which comes as standard input and moves out of the way.
fn leave_daemon() -> Result<OwnedFd, SpawnError> {
    for signal in IGNORED {
        // SAFETY: sets a signal to be ignored; no handler is involved.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return step("ignore signals", Err(io::Error::last_os_error()));
        }
    }
    step("adopt orphans", rustix::process::set_child_subreaper(Some(rustix::process::getpid())))?;
    step("go to /", rustix::process::chdir("/"))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let lock = step("keep the lock", rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3))?;
    // Open until this process ends, which is what locks the run directory.
    let _: i32 = std::os::fd::IntoRawFd::into_raw_fd(lock);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = step("open /dev/null", rustix::fs::open("/dev/null", flags, Mode::empty()))?;
    step("close stdin", rustix::stdio::dup2_stdin(&null))?;
    step("close stdout", rustix::stdio::dup2_stdout(&null))?;
    step("close stderr", rustix::stdio::dup2_stderr(&null))?;
    Ok(null)
}

fn read_head(args: &Args, dir: &Dir) -> Result<RecordHead, SpawnError> {
    let name = format!("read {}", args.record);
    let mut text = Vec::new();
    step(&name, dir.read(&args.record).and_then(|file| file.take(RECORD_MAX).read_to_end(&mut text)))?;
    let head: RecordHead = step(&name, serde_json::from_slice(&text).map_err(io::Error::from))?;
    if head.version > VERSION {
        let text = format!("it has version {}, this holder reads up to {VERSION}", head.version);
        return step(name, Err(io::Error::new(io::ErrorKind::InvalidData, text)));
    }
    Ok(head)
}

/// The marks, the search path, and what is meant for softvmm. Nothing else of the daemon's.
fn environment(head: &RecordHead) -> Vec<(OsString, OsString)> {
    let kept = std::env::vars_os()
        .filter(|(name, _)| name == OsStr::new("PATH") || name.to_string_lossy().starts_with("SOFTVMM_"));
    let marks = [
        ("DROVER_INSTALLATION".into(), head.installation.clone().into()),
        ("DROVER_VM_ID".into(), head.vm_id.clone().into()),
    ];
    kept.chain(marks).collect()
}

/// When a process started: field 22 of its status line, counted behind the name, which may hold anything.
fn starttime(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}
