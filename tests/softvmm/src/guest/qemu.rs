//! The guest in QEMU's software emulation, with `vhost-device-vsock` for its vsock.
//!
//! The serial port and the machine protocol run over inherited socket pairs, so the only path made
//! here is the one on which QEMU meets the vsock device; it is removed as soon as they have met.
//! Both helpers die with this process.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::qmp::Qmp;
use super::throttle::throttling;
use super::{Death, Lost, Notifier, Plan, StartError, What, check_payload};
use crate::config::{CpuTopology, ImageType, VmConfig};
use crate::refusal::Cause;
use crate::relay::{Closed, Gate};
use crate::serial;
use crate::tap::Tap;
use crate::vsock::{Behind, Hybrid, Listener};

/// Memory that QEMU may use for translated code, in MiB. The rest of its overhead is small beside it.
pub const TB_SIZE_MIB: u32 = 64;

/// How long the vsock device may take to listen.
const VSOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long the activation of devices is looked for often.
const ACTIVATION_LIMIT: Duration = Duration::from_secs(120);
/// What QEMU's ids begin with: an id of ours may start with what one of QEMU's may not.
const PREFIX: &str = "d.";
const POLL: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(2);

/// A running QEMU.
pub struct QemuGuest {
    qmp: Qmp,
    kill: Option<oneshot::Sender<()>>,
    end: JoinHandle<()>,
    pump: JoinHandle<()>,
    paused: watch::Sender<bool>,
    gate: Gate,
    closed: Option<Closed>,
    vsock: Option<Hybrid>,
}

fn broken(what: &'static str, why: impl std::fmt::Display) -> StartError {
    StartError::Payload(Cause::new(["Cannot start the emulated guest", what]).because(why))
}

impl QemuGuest {
    /// Starts the vsock device, then QEMU, and waits until QEMU answers.
    ///
    /// # Errors
    /// Nothing is left.
    pub async fn start(plan: Plan<'_>) -> Result<Self, StartError> {
        let config = plan.config;
        for net in config.net.iter().flatten() {
            // Attached for a moment only: the error is then the real one's, not QEMU's on stderr.
            Tap::attach(net).map_err(|c| StartError::Devices(Lost::Nets, c))?;
        }
        let listener = config.vsock.as_ref().map(|v| Listener::bind(&v.socket)).transpose();
        let listener = listener.map_err(|c| StartError::Devices(Lost::Vsock, c))?;
        let started = async {
            check_payload(config)?;
            let device = match &config.vsock {
                Some(vsock) => {
                    Some(VsockDevice::start(&plan.args.vhost_vsock, vsock.cid, &vsock.socket).await?)
                }
                None => None,
            };
            let launched = launch(&plan, device.as_ref().map(|d| d.meeting.as_path())).await?;
            Ok((device, launched))
        };
        let (device, (qemu, qmp, stream, events)) = match started.await {
            Ok(started) => started,
            Err(error) => {
                listener.into_iter().for_each(Listener::discard);
                return Err(error);
            }
        };
        let (drivers, in_use) = watch::channel(false);
        let (paused, watched) = watch::channel(false);
        let gate = Gate::default();
        let vsock = listener.zip(device.as_ref()).map(|(listener, device)| {
            listener.serve(Behind::device(device.socket.clone(), in_use, gate.clone()), watched)
        });
        let (input, typed) = mpsc::unbounded_channel();
        if let Err(error) = plan.serial.start(input) {
            plan.serial.output(format!("softvmm: no serial socket: {error}\r\n").as_bytes());
        }
        let pump = tokio::spawn(serial::pump(plan.serial.clone(), stream, typed));
        let (kill, killed) = oneshot::channel();
        tokio::spawn(forward(events, plan.notifier.clone()));
        if let Some(device) = &device {
            let _ = std::fs::remove_file(&device.meeting);
        }
        let devices = config.devices();
        let vsock_id = config.vsock.as_ref().and_then(|_| devices.last().cloned());
        let reports =
            report_activations(qmp.clone(), plan.notifier.clone(), devices.len(), vsock_id, drivers);
        tokio::spawn(reports);
        let end = tokio::spawn(watch(qemu, device, killed, plan.notifier));
        Ok(Self { qmp, kill: Some(kill), end, pump, paused, gate, closed: None, vsock })
    }

    /// Stops the processors.
    ///
    /// # Errors
    /// QEMU did not.
    pub async fn pause(&mut self) -> Result<(), String> {
        let _ = self.paused.send(true);
        let closed = self.gate.close().await;
        let stopped = self.command("stop").await;
        match &stopped {
            Ok(()) => self.closed = Some(closed),
            Err(_) => drop(self.paused.send(false)),
        }
        stopped
    }

    /// Lets them run.
    ///
    /// # Errors
    /// QEMU did not.
    pub async fn resume(&mut self) -> Result<(), String> {
        self.command("cont").await?;
        if self.vsock.is_some() {
            // What QEMU has told the vsock device must have reached it, which nobody tells.
            sleep(POLL).await;
        }
        self.closed = None;
        let _ = self.paused.send(false);
        Ok(())
    }

    /// Presses the ACPI power button.
    ///
    /// # Errors
    /// QEMU did not.
    pub async fn power_button(&mut self) -> Result<(), String> {
        self.command("system_powerdown").await
    }

    /// Gives a disk another length.
    ///
    /// # Errors
    /// QEMU did not.
    pub async fn resize_disk(&mut self, index: usize, bytes: u64) -> Result<(), String> {
        let asked = json!({"device": format!("drive{index}"), "size": bytes});
        self.qmp.execute("block_resize", asked).await.map(drop).map_err(|e| e.to_string())
    }

    async fn command(&mut self, name: &str) -> Result<(), String> {
        self.qmp.execute(name, Value::Null).await.map(drop).map_err(|e| e.to_string())
    }

    /// Counters of the disks by device id, in the real one's names.
    pub async fn block_counters(&mut self) -> Map<String, Value> {
        let list = self.qmp.execute("query-blockstats", Value::Null).await.unwrap_or_default();
        let disk = |entry: &Value| {
            let id = device_id(entry["qdev"].as_str()?)?;
            let stats = &entry["stats"];
            let mut counters = no_block_counters();
            for (ours, theirs) in [
                ("read_bytes", "rd_bytes"),
                ("read_ops", "rd_operations"),
                ("write_bytes", "wr_bytes"),
                ("write_ops", "wr_operations"),
            ] {
                counters[ours] = stats[theirs].clone();
            }
            Some((id, counters))
        };
        list.as_array().into_iter().flatten().filter_map(disk).collect()
    }

    /// Kills QEMU and the vsock device, and waits for both.
    pub async fn stop(mut self) {
        drop(self.kill.take());
        let _ = (&mut self.end).await;
        // Its output has an end now: what was written last is read before the port closes.
        let _ = timeout(Duration::from_secs(1), self.pump).await;
    }
}

/// Counters of a disk that has done nothing: its latencies are the largest numbers there are.
pub fn no_block_counters() -> Value {
    let mut counters = Map::new();
    for name in ["read_bytes", "read_ops", "write_bytes", "write_ops"] {
        counters.insert(name.to_owned(), Value::from(0));
    }
    for way in ["read", "write"] {
        for (kind, unset) in [("min", u64::MAX), ("max", u64::MAX), ("avg", u64::MAX / 10_000)] {
            counters.insert(format!("{way}_latency_{kind}"), Value::from(unset));
        }
    }
    Value::Object(counters)
}

/// The vsock device's process, and where QEMU meets it.
struct VsockDevice {
    child: Child,
    meeting: PathBuf,
    /// Its own hybrid socket, which only we speak to.
    socket: PathBuf,
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = std::fs::remove_file(&self.meeting);
        let _ = std::fs::remove_file(&self.socket);
        // QEMU, which is killed, leaves its own behind.
        let _ = std::fs::remove_file(self.socket.with_extension("qga"));
    }
}

impl VsockDevice {
    async fn start(program: &Path, cid: u32, hybrid: &Path) -> Result<Self, StartError> {
        let (meeting, socket) = (hybrid.with_extension("vhost"), hybrid.with_extension("device"));
        let _ = std::fs::remove_file(&meeting);
        let mut command = Command::new(program);
        command.arg("--guest-cid").arg(cid.to_string()).arg("--socket").arg(&meeting);
        command
            .arg("--uds-path")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        dies_with_us(&mut command, Vec::new());
        let child = command.spawn().map_err(|e| broken("Cannot start the vsock device", e))?;
        let mut device = Self { child, meeting, socket };
        let deadline = Instant::now() + VSOCK_LIMIT;
        while !device.meeting.exists() {
            if let Ok(Some(status)) = device.child.try_wait() {
                return Err(broken("The vsock device ended", status));
            }
            if Instant::now() > deadline {
                return Err(broken("The vsock device does not listen", device.socket.display()));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(device)
    }
}

/// Ends a helper with the thread that started it, which is the only one there is; and hands it
/// descriptors under their own numbers.
fn dies_with_us(command: &mut Command, keep: Vec<i32>) {
    // SAFETY: between fork and exec only `prctl` and `fcntl` are called, on numbers; both are safe
    // there, and the descriptors are open until after the spawn.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            for fd in &keep {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.kill_on_drop(true);
}

type Launched = (Child, Qmp, UnixStream, mpsc::UnboundedReceiver<Value>);

async fn launch(plan: &Plan<'_>, meeting: Option<&Path>) -> Result<Launched, StartError> {
    let pair = || StdStream::pair().map_err(|e| broken("Cannot make a socket pair", e));
    let ours = |s: StdStream| {
        s.set_nonblocking(true).and_then(|()| UnixStream::from_std(s)).map_err(|e| broken("Cannot use it", e))
    };
    let (monitor, monitor_there) = pair()?;
    let (port, port_there) = pair()?;
    let (monitor_there, port_there) = (OwnedFd::from(monitor_there), OwnedFd::from(port_there));
    let mut command = Command::new(&plan.args.qemu);
    command.args(arguments(plan.config, monitor_there.as_raw_fd(), port_there.as_raw_fd(), meeting));
    if let Some(vsock) = plan.config.vsock.as_ref().filter(|_| plan.args.qga) {
        command.args(agent_port(&vsock.socket.with_extension("qga")));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    dies_with_us(&mut command, vec![monitor_there.as_raw_fd(), port_there.as_raw_fd()]);
    let mut child = command.spawn().map_err(|e| broken("Cannot start QEMU", e))?;
    drop((monitor_there, port_there));
    let stderr = child.stderr.take();
    let (to, events) = mpsc::unbounded_channel();
    match Qmp::connect(ours(monitor)?, to).await {
        Ok(qmp) => {
            tokio::spawn(repeat(stderr));
            Ok((child, qmp, ours(port)?, events))
        }
        Err(error) => {
            let _ = child.kill().await;
            let mut said = String::new();
            if let Some(mut stderr) = stderr {
                use tokio::io::AsyncReadExt;
                let _ = timeout(Duration::from_secs(1), stderr.read_to_string(&mut said)).await;
            }
            let why = said.lines().next().map_or_else(|| error.to_string(), str::to_owned);
            Err(broken("QEMU did not start", why))
        }
    }
}

/// What QEMU complains about belongs with our own complaints.
async fn repeat(stderr: Option<tokio::process::ChildStderr>) {
    if let Some(mut stderr) = stderr {
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::stderr()).await;
    }
}

/// What makes the port of QEMU's guest agent, with its other end at `socket`.
fn agent_port(socket: &Path) -> [String; 6] {
    let socket = socket.to_string_lossy().replace(',', ",,");
    [
        "-chardev".into(),
        format!("socket,id=qga,path={socket},server=on,wait=off"),
        "-device".into(),
        "virtio-serial-pci".into(),
        "-device".into(),
        "virtserialport,chardev=qga,name=org.qemu.guest_agent.0".into(),
    ]
}

fn arguments(config: &VmConfig, monitor: i32, port: i32, meeting: Option<&Path>) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    let devices = config.devices();
    let size = config.memory.size;
    add("-accel", format!("tcg,tb-size={TB_SIZE_MIB}"));
    add("-cpu", "max".into());
    add("-M", "q35,memory-backend=mem".into());
    let pages = match config.memory.hugepage_size {
        Some(bytes) => format!(",hugetlb=on,hugetlbsize={bytes}"),
        None if config.memory.hugepages => ",hugetlb=on".to_owned(),
        None => String::new(),
    };
    add("-object", format!("memory-backend-memfd,id=mem,size={size},share=on{pages}"));
    add("-m", format!("{size}B"));
    let layout = config.cpus.topology.map(|t| {
        let CpuTopology { packages, dies_per_package, cores_per_die, threads_per_core } = t;
        format!(
            ",sockets={packages},dies={dies_per_package},cores={cores_per_die},threads={threads_per_core}"
        )
    });
    let (boot, max) = (config.cpus.boot_vcpus, config.cpus.max_vcpus);
    add("-smp", format!("{boot},maxcpus={max}{}", layout.unwrap_or_default()));
    add("-display", "none".into());
    add("-action", "reboot=shutdown,shutdown=pause,panic=none".into());
    add("-chardev", format!("socket,id=monitor,fd={monitor}"));
    add("-mon", "chardev=monitor,mode=control".into());
    add("-chardev", format!("socket,id=port,fd={port}"));
    add("-serial", "chardev:port".into());
    let payload = config.payload.clone().unwrap_or_default();
    let path = |p: PathBuf| p.to_string_lossy().into_owned();
    if let Some(firmware) = payload.firmware {
        add("-bios", path(firmware));
    }
    if let Some(kernel) = payload.kernel {
        add("-kernel", path(kernel));
        add("-append", payload.cmdline.unwrap_or_default());
    }
    if let Some(initramfs) = payload.initramfs {
        add("-initrd", path(initramfs));
    }
    let disks = config.disks.as_deref().unwrap_or_default();
    let nets = config.net.as_deref().unwrap_or_default();
    for (n, (disk, id)) in disks.iter().zip(&devices).enumerate() {
        let Some(file) = &disk.path else { continue };
        let format = if disk.image_type == ImageType::Qcow2 { "qcow2" } else { "raw" };
        // A comma in a value of QEMU's is written twice.
        let file = path(file.clone()).replace(',', ",,");
        let read_only = if disk.readonly { "on" } else { "off" };
        let limits = disk.rate_limiter_config.as_ref().map(throttling).unwrap_or_default();
        let discard = if disk.sparse { "unmap" } else { "ignore" };
        let offered = if disk.sparse { "on" } else { "off" };
        add(
            "-drive",
            format!(
                "if=none,id=drive{n},format={format},file={file},readonly={read_only},discard={discard}{limits}"
            ),
        );
        let serial = disk.serial.as_ref().map(|s| format!(",serial={s}")).unwrap_or_default();
        add("-device", format!("virtio-blk-pci,drive=drive{n},id={PREFIX}{id},discard={offered}{serial}"));
    }
    for (n, (net, id)) in nets.iter().zip(devices.iter().skip(disks.len())).enumerate() {
        let Some(tap) = &net.tap else { continue };
        let pairs = net.queue_pairs();
        let (queues, several) = match pairs {
            1 => (String::new(), String::new()),
            // An interrupt for each queue, one for the configuration and one for control.
            _ => (format!(",queues={pairs}"), format!(",mq=on,vectors={}", 2 * pairs + 2)),
        };
        add("-netdev", format!("tap,id=net{n},ifname={tap},script=no,downscript=no,vhost=off{queues}"));
        let mtu = crate::tap::mtu(tap).map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
        add("-device", format!("virtio-net-pci,netdev=net{n},mac={}{mtu}{several},id={PREFIX}{id}", net.mac));
    }
    add("-device", format!("virtio-rng-pci,id={PREFIX}__rng"));
    if let (Some(meeting), Some(id)) = (meeting, devices.last()) {
        add("-chardev", format!("socket,id=vsock,path={}", meeting.to_string_lossy().replace(',', ",,")));
        // Behind a port of its own, so that it can be taken out and put back.
        add("-device", "pcie-root-port,id=rp1,chassis=1,slot=1".into());
        add("-device", format!("vhost-user-vsock-pci,chardev=vsock,bus=rp1,id={PREFIX}{id}"));
    }
    if config.pvpanic {
        add("-device", "pvpanic-pci".into());
    }
    args.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
    args
}

/// Asks which virtio devices the guest's drivers have taken into use, until all of them are or QEMU is
/// gone; a guest without drivers is asked seldom. `vsock_in_use` follows one look later: what QEMU has told
/// the vsock device must have reached it.
async fn report_activations(
    qmp: Qmp,
    notifier: Notifier,
    devices: usize,
    vsock: Option<String>,
    vsock_in_use: watch::Sender<bool>,
) {
    let eager_until = Instant::now() + ACTIVATION_LIMIT;
    let mut seen = BTreeSet::new();
    loop {
        sleep(if Instant::now() < eager_until { POLL } else { SELDOM }).await;
        if vsock.as_ref().is_some_and(|id| seen.contains(id)) {
            let _ = vsock_in_use.send(true);
        }
        if seen.len() >= devices {
            return;
        }
        let Ok(list) = qmp.execute("x-query-virtio", Value::Null).await else { return };
        for path in list.as_array().into_iter().flatten().filter_map(|device| device["path"].as_str()) {
            let Ok(status) = qmp.execute("x-query-virtio-status", json!({"path": path})).await else {
                return;
            };
            let in_use = status["status"]["statuses"].to_string().contains("DRIVER_OK");
            let Some(id) = device_id(path) else { continue };
            if in_use && seen.insert(id.clone()) {
                notifier.send(What::Activated(id));
            }
        }
    }
}

/// Our id of a device, from a path such as `/machine/peripheral/<id>/virtio-backend`.
fn device_id(path: &str) -> Option<String> {
    path.split('/').nth(3)?.strip_prefix(PREFIX).map(str::to_owned)
}

/// Turns QEMU's events into notices.
async fn forward(mut events: mpsc::UnboundedReceiver<Value>, notifier: Notifier) {
    while let Some(event) = events.recv().await {
        let reason = event["data"]["reason"].as_str();
        match (event["event"].as_str(), reason) {
            (Some("SHUTDOWN"), Some("guest-reset")) => notifier.send(What::Reset),
            (Some("SHUTDOWN"), Some("guest-shutdown" | "guest-panic")) => notifier.send(What::PoweredOff),
            (Some("GUEST_PANICKED"), _) => notifier.send(What::Panicked("panic".into())),
            (Some("GUEST_CRASHLOADED"), _) => notifier.send(What::Panicked("crash_loaded".into())),
            _ => {}
        }
    }
}

/// Waits for the end of QEMU, of the vsock device, or for the word to end both.
async fn watch(
    mut qemu: Child,
    mut device: Option<VsockDevice>,
    killed: oneshot::Receiver<()>,
    notifier: Notifier,
) {
    let death = tokio::select! {
        biased;
        _ = killed => None,
        status = qemu.wait() => Some(death(status)),
        status = vsock_end(&mut device) => Some(death(status)),
    };
    let _ = qemu.kill().await;
    if let Some(mut device) = device {
        let _ = device.child.kill().await;
    }
    if let Some(death) = death {
        notifier.send(What::Died(death));
    }
}

async fn vsock_end(device: &mut Option<VsockDevice>) -> std::io::Result<ExitStatus> {
    match device {
        Some(device) => device.child.wait().await,
        None => std::future::pending().await,
    }
}

fn death(status: std::io::Result<ExitStatus>) -> Death {
    match status {
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => Death::Signal(signal),
            (None, code) => Death::Exit(code.unwrap_or(1)),
        },
        Err(_) => Death::Exit(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> VmConfig {
        serde_json::from_value(json).expect("a configuration")
    }

    #[test]
    fn commas_in_paths_do_not_become_options() {
        let c = config(json!({"disks": [{"path": "/a,readonly=off", "readonly": true}]}));
        let args = arguments(&c, 8, 9, None).join(" ");
        assert!(args.contains("file=/a,,readonly=off,readonly=on"), "{args}");
    }

    #[test]
    fn an_interface_has_its_pairs_of_queues() {
        let c = config(json!({"net": [{"tap": "t0", "id": "a"}, {"tap": "t1", "id": "b", "num_queues": 6}]}));
        let args = arguments(&c, 8, 9, None).join(" ");
        assert!(args.contains("ifname=t0,script=no,downscript=no,vhost=off -device"), "{args}");
        assert!(args.contains("ifname=t1,script=no,downscript=no,vhost=off,queues=3 "), "{args}");
        assert!(args.contains("mq=on,vectors=8,id=d.b"), "{args}");
    }

    #[test]
    fn thevsock_device_sits_behind_a_port_of_its_own() {
        let c = config(json!({"vsock": {"cid": 3, "socket": "/v", "id": "vsk"}}));
        let args = arguments(&c, 8, 9, Some(Path::new("/m"))).join(" ");
        assert!(args.contains("vhost-user-vsock-pci,chardev=vsock,bus=rp1,id=d.vsk"), "{args}");
    }
}
