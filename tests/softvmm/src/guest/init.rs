//! Pid 1 of a guest of processes.
//!
//! It makes the private root, starts the agent (again, if it ends), reaps what is orphaned, and ends
//! the way a machine does. Its contract with what runs inside is that of a container's init:
//!
//! * SIGTERM to pid 1 asks for power-off, SIGINT for a reboot;
//! * pid 1 then asks everybody to end, waits a moment, kills the rest and exits with
//!   [`EXIT_POWER_OFF`] or [`EXIT_REBOOT`], which the parent turns into what a guest's own power-off
//!   or reset is;
//! * the agent finds `DROVER_AGENT_GUEST=process`, `DROVER_AGENT_BOOT_ID` (the kernel's is shared by
//!   all namespaces) and `DROVER_AGENT_BOOT_UNIX_MS` in its environment, and listens on the sockets
//!   `/run/vsock-<port>.sock` instead of vsock ports.
//!
//! The parent speaks through the control socket, a byte per command: [`PAUSE`] and [`RESUME`] are
//! answered with the same byte, [`POWER_BUTTON`] is not answered. [`READY`] comes unasked, once, when
//! the root is made, and the other ends of the guest's interfaces with it. The socket's end is the end of the guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use serde::{Deserialize, Serialize};

use super::{namespaces, nic, root};

/// Exit status after a power-off.
pub const EXIT_POWER_OFF: i32 = 100;
/// Exit status after a reboot.
pub const EXIT_REBOOT: i32 = 101;
/// Exit status when the root or the agent could not be set up.
pub const EXIT_SETUP: i32 = 102;

/// Stop everything but pid 1.
pub const PAUSE: u8 = b'P';
/// Continue it.
pub const RESUME: u8 = b'R';
/// Power off, as if the button had been pressed.
pub const POWER_BUTTON: u8 = b'B';

/// Said by pid 1 when its root is made and the agent is about to start.
pub const READY: u8 = b'S';

/// The port on which drover's agent listens.
const AGENT_PORT: u32 = 1023;
/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_millis(1500);
/// How long after its end the agent is started again.
const AGENT_DELAY: Duration = Duration::from_millis(200);

/// What pid 1 is told about its guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// The agent's binary on the host.
    pub agent: PathBuf,
    /// The guest's host name.
    pub hostname: String,
    /// The id of this boot.
    pub boot_id: String,
    /// When it began.
    pub boot_unix_ms: u64,
    /// The kernel command line, for the boot lines only.
    pub cmdline: String,
    /// Its interfaces in order: the MAC, and how long packets may be, if that is known.
    pub nics: Vec<(String, Option<u32>)>,
    /// The guest's memory, where its files are too.
    pub memory_bytes: u64,
}

/// Runs as pid 1; gives the exit status.
pub fn main(description: &str) -> i32 {
    match run(description) {
        Ok(code) => code,
        Err(error) => {
            let causes = std::iter::successors(Some(&*error), |e| e.source()).map(|e| e.to_string());
            println!("init: {}", causes.collect::<Vec<_>>().join(": "));
            EXIT_SETUP
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    PowerOff,
    Reboot,
}

fn run(description: &str) -> Result<i32, Box<dyn std::error::Error>> {
    let guest: Description = serde_json::from_str(description)?;
    nix::sys::prctl::set_name(c"softvmm-init")?;
    let control = namespaces::inherited_control();
    // Blocked, not handled: a blocked signal reaches pid 1 even from inside its namespace.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block()?;
    let signalfd = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    println!("softvmm: guest of processes, boot {}", guest.boot_id);
    println!("Command line: {}", guest.cmdline);
    sethostname(&guest.hostname)?;
    let _ = loopback_up();
    let nics = guest.nics.iter().enumerate();
    // Before the root: the device that makes them is the host's.
    let ends: Vec<_> = nics
        .map(|(index, (mac, mtu))| nic::make(index, mac, *mtu, &guest.cmdline))
        .collect::<Result<_, _>>()?;
    root::enter(&guest.agent, &guest.hostname, guest.memory_bytes)?;
    println!("softvmm: root is ready, starting {}", root::AGENT);
    nic::say(&control, READY, &ends)?;
    drop(ends);
    Init { guest, control, signalfd, agent: None, start_agent_at: Some(Instant::now()) }.work()
}

struct Init {
    guest: Description,
    control: File,
    signalfd: SignalFd,
    agent: Option<Pid>,
    start_agent_at: Option<Instant>,
}

impl Init {
    fn work(mut self) -> Result<i32, Box<dyn std::error::Error>> {
        loop {
            if self.start_agent_at.is_some_and(|at| at <= Instant::now()) {
                self.start_agent();
            }
            let wait = self.start_agent_at.map(|at| at.saturating_duration_since(Instant::now()));
            let Some(end) = self.wait(wait)? else { continue };
            let how = match end {
                End::PowerOff => "Power down",
                End::Reboot => "Restarting system",
            };
            println!("softvmm: stopping");
            self.stop_all()?;
            println!("reboot: {how}");
            return Ok(if end == End::PowerOff { EXIT_POWER_OFF } else { EXIT_REBOOT });
        }
    }

    /// Waits for one thing to happen, and deals with it unless it ends the guest.
    fn wait(&mut self, limit: Option<Duration>) -> Result<Option<End>, Box<dyn std::error::Error>> {
        let mut fds = [
            PollFd::new(self.signalfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = match limit {
            None => PollTimeout::NONE,
            // Rounded up, or the last millisecond would be spent turning in circles.
            Some(limit) => PollTimeout::try_from(limit.as_millis() as i32 + 1)?,
        };
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let commanded = fds[1].any().unwrap_or(false);
        while let Some(signal) = self.signalfd.read_signal()? {
            match Signal::try_from(signal.ssi_signo as i32)? {
                Signal::SIGTERM => return Ok(Some(End::PowerOff)),
                Signal::SIGINT => return Ok(Some(End::Reboot)),
                _ => self.reap(),
            }
        }
        if commanded { self.obey() } else { Ok(None) }
    }

    fn obey(&mut self) -> Result<Option<End>, Box<dyn std::error::Error>> {
        let mut command = [0];
        if self.control.read(&mut command)? == 0 {
            // The parent is gone; so is the machine.
            return Err("the machine was taken away".into());
        }
        match command[0] {
            PAUSE => signal_all(Signal::SIGSTOP),
            RESUME => signal_all(Signal::SIGCONT),
            POWER_BUTTON => {
                println!("softvmm: power button");
                return Ok(Some(End::PowerOff));
            }
            _ => {}
        }
        self.control.write_all(&command)?;
        Ok(None)
    }

    fn start_agent(&mut self) {
        self.start_agent_at = None;
        let mut command = Command::new(root::AGENT);
        command
            .arg("--listen")
            .arg(format!("unix:/{}/vsock-{AGENT_PORT}.sock", root::VSOCK_DIR))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("DROVER_AGENT_GUEST", "process")
            .env("DROVER_AGENT_BOOT_ID", &self.guest.boot_id)
            .env("DROVER_AGENT_BOOT_UNIX_MS", self.guest.boot_unix_ms.to_string())
            .stdin(Stdio::null());
        // SAFETY: between fork and exec only `sigprocmask` and `setsid` are called, both of which
        // are safe there and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                SigSet::empty().thread_set_mask()?;
                nix::unistd::setsid()?;
                Ok(())
            });
        }
        let _ = std::fs::remove_file(Path::new("/").join(root::VSOCK_DIR).join("vsock-1023.sock"));
        match command.spawn() {
            Ok(child) => self.agent = Some(Pid::from_raw(child.id() as i32)),
            Err(error) => {
                println!("softvmm: cannot start the agent: {error}");
                self.start_agent_at = Some(Instant::now() + AGENT_DELAY * 5);
            }
        }
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) if status.pid() == self.agent && self.agent.is_some() => {
                    println!("softvmm: the agent ended: {status:?}");
                    self.agent = None;
                    self.start_agent_at = Some(Instant::now() + AGENT_DELAY);
                }
                Ok(_) => {}
            }
        }
    }

    fn stop_all(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        signal_all(Signal::SIGTERM);
        // What was paused has to run to end itself.
        signal_all(Signal::SIGCONT);
        let deadline = Instant::now() + GRACE;
        loop {
            loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Err(Errno::ECHILD) => return Ok(()),
                    Ok(WaitStatus::StillAlive) => break,
                    Ok(_) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Whoever is left ends with this namespace.
                signal_all(Signal::SIGKILL);
                return Ok(());
            }
            let mut fds = [PollFd::new(self.signalfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left.as_millis() as i32 + 1)?)?;
            while self.signalfd.read_signal()?.is_some() {}
        }
    }
}

/// To every process of the namespace but pid 1 itself.
fn signal_all(signal: Signal) {
    let _ = kill(Pid::from_raw(-1), signal);
}

nix::ioctl_write_ptr_bad!(
    /// Sets the flags of a network device.
    set_flags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

fn loopback_up() -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the descriptor is open, and the kernel only reads the `ifreq`.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}
