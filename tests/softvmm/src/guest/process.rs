//! The guest of processes: the agent in its own pid, mount, uts, ipc and net namespaces.
//!
//! It costs a few MiB and some milliseconds instead of a booted kernel, so hundreds fit on one small
//! machine. What only a kernel of its own could do (clock, sysctl) the agent answers `unsupported`.
//! Its interfaces are real ones, in a network namespace of its own ([`super::nic`]).

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::init::{self, Description};
use super::{Death, Lost, Notifier, Plan, StartError, What, check_payload, namespaces, nic, root};
use crate::config::VmConfig;
use crate::refusal::Cause;
use crate::serial;
use crate::tap::Tap;
use crate::vsock::{Behind, Hybrid, Listener};

/// How long pid 1 may take to answer a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// A running guest of processes.
pub struct ProcessGuest {
    pid: Pid,
    control: UnixStream,
    taps: Vec<(String, Tap)>,
    carried: Vec<JoinHandle<()>>,
    paused: watch::Sender<bool>,
    vsock: Option<Hybrid>,
    watcher: JoinHandle<()>,
    pump: JoinHandle<()>,
}

impl ProcessGuest {
    /// Attaches the TAPs, binds the vsock socket and starts pid 1.
    ///
    /// # Errors
    /// Nothing is left.
    pub async fn start(plan: Plan<'_>) -> Result<Self, StartError> {
        let config = plan.config;
        let taps = attach_taps(config)?;
        let listener = match &config.vsock {
            None => None,
            Some(vsock) => {
                Some(Listener::bind(&vsock.socket).map_err(|c| StartError::Devices(Lost::Vsock, c))?)
            }
        };
        let started = match check_payload(config) {
            Ok(()) => spawn(&plan).await.map_err(|e| {
                let cause = Cause::new(["Cannot start the guest of processes"]).because(chain(&*e));
                StartError::Payload(cause)
            }),
            Err(error) => Err(error),
        };
        let (spawned, control, pidfd, stream, ends) = match started {
            Ok(started) => started,
            Err(error) => {
                if let Some(listener) = listener {
                    listener.discard();
                }
                return Err(error);
            }
        };
        let (paused, watch) = watch::channel(false);
        let guest_root = PathBuf::from(format!("/proc/{}/root", spawned.as_raw())).join(root::VSOCK_DIR);
        let (input, typed) = mpsc::unbounded_channel();
        if let Err(error) = plan.serial.start(input) {
            plan.serial.output(format!("softvmm: no serial socket: {error}\r\n").as_bytes());
        }
        let carried = taps.iter().zip(ends).map(|((_, tap), end)| nic::carry(tap.file(), end, &watch));
        let carried = carried.filter_map(Result::ok).collect();
        let pump = tokio::spawn(serial::pump(plan.serial.clone(), stream, typed));
        Ok(Self {
            pid: spawned,
            control,
            taps,
            carried,
            paused,
            vsock: listener.map(|l| l.serve(Behind::Ports(guest_root), watch)),
            watcher: tokio::spawn(watch_end(spawned, pidfd, plan.notifier, config.devices())),
            pump,
        })
    }

    /// Stops every process of the guest, pid 1 last.
    ///
    /// # Errors
    /// Pid 1 did not answer.
    pub async fn pause(&mut self) -> Result<(), String> {
        self.ask(init::PAUSE).await?;
        let _ = self.paused.send(true);
        kill(self.pid, Signal::SIGSTOP).map_err(|e| e.to_string())
    }

    /// Continues them.
    ///
    /// # Errors
    /// Pid 1 did not answer.
    pub async fn resume(&mut self) -> Result<(), String> {
        kill(self.pid, Signal::SIGCONT).map_err(|e| e.to_string())?;
        self.ask(init::RESUME).await?;
        let _ = self.paused.send(false);
        Ok(())
    }

    /// Tells pid 1 that the button was pressed.
    ///
    /// # Errors
    /// It is gone.
    pub fn power_button(&mut self) -> Result<(), String> {
        self.control.try_write(&[init::POWER_BUTTON]).map(drop).map_err(|e| e.to_string())
    }

    async fn ask(&mut self, command: u8) -> Result<(), String> {
        let exchange = async {
            self.control.write_all(&[command]).await?;
            self.control.read_u8().await
        };
        match timeout(COMMAND_LIMIT, exchange).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the guest's init did not answer".into()),
        }
    }

    /// Counters of the TAP of a device.
    pub fn net_counters(&self, id: &str) -> Option<Value> {
        self.taps.iter().find(|(name, _)| name == id).map(|(_, tap)| tap.counters())
    }

    /// Kills pid 1, and with it the namespace; returns when all of it is gone.
    pub async fn stop(self) {
        drop(self.vsock);
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.watcher.await;
        for carried in self.carried {
            carried.abort();
            // It has let go of the TAP then.
            let _ = carried.await;
        }
        // Its output has an end now: what was written last is read before the port closes.
        let _ = timeout(Duration::from_secs(1), self.pump).await;
    }
}

fn attach_taps(config: &VmConfig) -> Result<Vec<(String, Tap)>, StartError> {
    let disks = config.disks.as_ref().map_or(0, Vec::len);
    let ids = config.devices().into_iter().skip(disks);
    let nets = config.net.iter().flatten();
    let attach = |(id, net)| Ok((id, Tap::attach(net).map_err(|c| StartError::Devices(Lost::Nets, c))?));
    ids.zip(nets).map(attach).collect()
}

type Started = (Pid, UnixStream, std::os::fd::OwnedFd, UnixStream, Vec<std::os::fd::OwnedFd>);

async fn spawn(plan: &Plan<'_>) -> Result<Started, Box<dyn std::error::Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let payload = plan.config.payload.clone().unwrap_or_default();
    let nic =
        |net: &crate::config::NetConfig| (net.mac.clone(), net.tap.as_deref().and_then(crate::tap::mtu));
    let description = Description {
        agent: find(&plan.args.agent)?,
        hostname: "guest".into(),
        boot_id: uuid(),
        boot_unix_ms: now.as_millis() as u64,
        cmdline: payload.cmdline.unwrap_or_default(),
        nics: plan.config.net.iter().flatten().map(nic).collect(),
        memory_bytes: plan.config.memory.size,
    };
    let spawned = namespaces::spawn(&serde_json::to_string(&description)?)?;
    let stream = |s: std::os::unix::net::UnixStream| {
        s.set_nonblocking(true)?;
        UnixStream::from_std(s)
    };
    let control = stream(spawned.control)?;
    let mut serial = stream(spawned.serial)?;
    match timeout(COMMAND_LIMIT, nic::hear(&control)).await {
        Ok(Ok((init::READY, ends))) => Ok((spawned.pid, control, spawned.pidfd, serial, ends)),
        _ => {
            let _ = kill(spawned.pid, Signal::SIGKILL);
            let _ = waitid(Id::Pid(spawned.pid), WaitPidFlag::WEXITED);
            let mut said = String::new();
            let _ = timeout(COMMAND_LIMIT, serial.read_to_string(&mut said)).await;
            Err(said.lines().last().unwrap_or("pid 1 ended without a word").to_owned().into())
        }
    }
}

/// Finds a program the way a shell does, and makes its path absolute.
fn find(program: &std::path::Path) -> std::io::Result<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, format!("no {program:?} on PATH")))
}

fn uuid() -> String {
    let n = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source()).map(|e| e.to_string());
    causes.collect::<Vec<_>>().join(": ")
}

async fn watch_end(pid: Pid, pidfd: std::os::fd::OwnedFd, notifier: Notifier, devices: Vec<String>) {
    for id in devices {
        notifier.send(What::Activated(id));
    }
    // SAFETY: the pidfd moves into the registration and is closed after it, so its number cannot
    // come to mean another file while the runtime watches it.
    if let Ok(fd) = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
        let _ = fd.readable().await;
    }
    let what = match waitid(Id::Pid(pid), WaitPidFlag::WEXITED) {
        Ok(WaitStatus::Exited(_, init::EXIT_POWER_OFF)) => What::PoweredOff,
        Ok(WaitStatus::Exited(_, init::EXIT_REBOOT)) => What::Reset,
        Ok(WaitStatus::Exited(_, code)) => What::Died(Death::Exit(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => What::Died(Death::Signal(signal as i32)),
        Ok(_) | Err(_) => What::Died(Death::Exit(1)),
    };
    notifier.send(what);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_boot_id_is_a_random_uuid() {
        let (one, other) = (super::uuid(), super::uuid());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4");
        assert!("89ab".contains(&one[19..20]));
    }
}
