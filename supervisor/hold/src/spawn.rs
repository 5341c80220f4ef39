//! Starting the VMM: fork, set-up in the child with every step checked, execution, and the news of a failure
//! back through a pipe that a successful execution closes.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags};
use rustix::process::{Resource, Rlimit};

use crate::jail;
use crate::record::{Confinement, SpawnError};
use crate::step;

/// Signals that the holder ignores and the VMM must not.
pub const IGNORED: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGPIPE, libc::SIGINT, libc::SIGTERM];

/// A running VMM.
pub struct Vmm {
    /// Its process id; it stays ours until we reap it.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Everything that the child needs, made before the fork.
pub struct Plan {
    program: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    /// `cgroup.procs` of each cgroup to join.
    cgroups: Vec<(PathBuf, File)>,
    confinement: Option<(Confinement, PathBuf)>,
}

/// A step of the child and why it failed, as it comes through the pipe.
struct ChildError {
    step: u8,
    errno: i32,
    /// What it was about, where the step does not say it.
    detail: String,
}

const STEPS: [&str; 7] = [
    "make a session for the VMM",
    "enter the cgroup",
    "reset the signals",
    "set the limits of resources",
    "redirect the output of the VMM",
    "confine the VMM:",
    "execute",
];

impl Plan {
    /// Prepares to run `command` with `environment` within `cgroups`, confined below an empty directory.
    pub fn new(
        command: &[OsString],
        environment: Vec<(OsString, OsString)>,
        cgroups: &[PathBuf],
        confinement: Option<(Confinement, PathBuf)>,
    ) -> Result<Self, SpawnError> {
        let text = |text: OsString| {
            step("pass an argument with a zero byte", CString::new(text.into_vec()).map_err(io::Error::from))
        };
        let argv = command.iter().cloned().map(text).collect::<Result<Vec<_>, _>>()?;
        let envp = environment.into_iter().map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            text(entry)
        });
        let envp = envp.collect::<Result<Vec<_>, _>>()?;
        let cgroups = cgroups.iter().map(|dir| Ok((dir.clone(), open_procs(dir)?)));
        let cgroups = cgroups.collect::<Result<Vec<_>, SpawnError>>()?;
        Ok(Self { program: argv[0].clone(), argv, envp, cgroups, confinement })
    }
}

/// Opens the file through which a process joins a cgroup.
pub fn open_procs(dir: &std::path::Path) -> Result<File, SpawnError> {
    let opened = File::options().write(true).open(dir.join("cgroup.procs"));
    step(format!("open the cgroup {}", dir.display()), opened)
}

/// Starts the VMM with `output` as its stdout and stderr. On success its program runs.
pub fn spawn(plan: &Plan, null: &OwnedFd, output: &OwnedFd) -> Result<Vmm, SpawnError> {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (read, write) = step("make a pipe", pipe)?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    if pid == -1 {
        return step("fork", Err(io::Error::last_os_error()));
    }
    if pid == 0 {
        let error = become_vmm(plan, null, output);
        let mut news = vec![error.step];
        news.extend_from_slice(&error.errno.to_ne_bytes());
        news.extend_from_slice(error.detail.as_bytes());
        // The holder sees either this or the end of the pipe; there is nobody else to tell.
        let _ = File::from(write).write_all(&news);
        // SAFETY: ends this process at once; nothing of the holder's may run in it.
        unsafe { libc::_exit(127) };
    }
    drop(write);
    let mut news = Vec::new();
    let heard = File::from(read).read_to_end(&mut news);
    let pid = pid.unsigned_abs();
    if let Err(error) = news_of(plan, heard, &news) {
        reap(pid);
        return Err(error);
    }
    let raw = Pid::from_raw(pid.cast_signed()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    let raw = step("know the VMM", raw)?;
    match step("watch the VMM", rustix::process::pidfd_open(raw, PidfdFlags::empty())) {
        Ok(pidfd) => Ok(Vmm { pid, pidfd }),
        Err(error) => {
            // It cannot be held, so it must not run.
            let _ = rustix::process::kill_process(raw, rustix::process::Signal::KILL);
            reap(pid);
            Err(error)
        }
    }
}

fn news_of(plan: &Plan, heard: io::Result<usize>, news: &[u8]) -> Result<(), SpawnError> {
    step("hear from the VMM's process", heard)?;
    let [number, rest @ ..] = news else { return Ok(()) };
    let (errno, detail) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
    let errno = i32::from_ne_bytes(*errno);
    let mut name = STEPS.get(usize::from(*number)).copied().unwrap_or("start the VMM").to_owned();
    if name == "execute" {
        name = format!("execute {}", plan.program.to_string_lossy());
    } else if !detail.is_empty() {
        name = format!("{name} {}", String::from_utf8_lossy(detail));
    }
    step(name, Err(io::Error::from_raw_os_error(errno)))
}

fn reap(pid: u32) {
    // SAFETY: waits for a child of ours; no status is wanted.
    unsafe { libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), 0) };
}

/// In the child: all steps in order; returns only if one fails.
fn become_vmm(plan: &Plan, null: &OwnedFd, output: &OwnedFd) -> ChildError {
    let plain = |error: io::Error| (String::new(), error);
    let steps: [&dyn Fn() -> Result<(), (String, io::Error)>; 7] = [
        // A signal to the holder's group is not for the VMM, and its own group can be ended as one.
        &|| rustix::process::setsid().map(drop).map_err(|errno| plain(errno.into())),
        &|| {
            // 0 stands for the writer itself, in whatever pid namespace.
            plan.cgroups.iter().try_for_each(|(_, procs)| (&*procs).write_all(b"0")).map_err(plain)
        },
        &|| reset_signals().map_err(plain),
        &|| set_limits(plan.confinement.as_ref().map(|(limits, _)| limits)).map_err(plain),
        &|| redirect(null, output).map_err(plain),
        &|| plan.confinement.as_ref().map_or(Ok(()), |(confinement, root)| jail::enter(confinement, root)),
        &|| execute(plan).map_err(plain),
    ];
    for (number, run) in (0_u8..).zip(steps) {
        if let Err((detail, error)) = run() {
            return ChildError { step: number, errno: error.raw_os_error().unwrap_or(0), detail };
        }
    }
    ChildError { step: u8::MAX, errno: 0, detail: String::new() }
}

fn redirect(null: &OwnedFd, output: &OwnedFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(output.as_fd())?;
    Ok(rustix::stdio::dup2_stderr(output.as_fd())?)
}

fn reset_signals() -> io::Result<()> {
    for signal in IGNORED {
        // SAFETY: sets the default action; no handler is involved.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: an empty set is made and used; both live through the calls.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// No core files, which would hold the guest's memory; as many descriptors and processes as it is meant to
/// have, or, where we may not give it as many, what we have ourselves.
fn set_limits(confinement: Option<&Confinement>) -> io::Result<()> {
    let set = |resource, wanted: Option<u64>| {
        let allowed = rustix::process::getrlimit(resource).maximum;
        let give = |value| rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value });
        match (wanted, allowed) {
            (Some(wanted), Some(allowed)) if wanted > allowed => match give(Some(wanted)) {
                Err(rustix::io::Errno::PERM) => give(Some(allowed)),
                given => given,
            },
            (wanted, allowed) => give(wanted.or(allowed)),
        }
    };
    set(Resource::Core, Some(0))?;
    set(Resource::Nofile, confinement.map(|limits| limits.files))?;
    if let Some(limits) = confinement {
        set(Resource::Nproc, Some(limits.processes))?;
    }
    Ok(())
}

fn execute(plan: &Plan) -> io::Result<()> {
    let pointers = |texts: &[CString]| {
        let ends = std::iter::once(std::ptr::null());
        texts.iter().map(|text| text.as_ptr()).chain(ends).collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&plan.argv), pointers(&plan.envp));
    // SAFETY: both arrays end with a null pointer and point to strings that live as long as `plan`.
    unsafe { libc::execve(plan.program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}
