//! The life of the one VM that a process has.
//!
//! ```text
//!                 vm.create            vm.boot                vm.pause
//!   (no config) ───────────> Created ──────────> Running <──────────────> Paused
//!        ^                   ^   │                  │       vm.resume        │
//!        │     vm.delete     │   │   vm.shutdown, guest power-off            │
//!        └───────────────────┴───┴───────<──────────┴────────────<───────────┘
//! ```
//!
//! One task owns it and does one thing at a time; a call that hangs holds up everything, the signals
//! included, because in the real one it does. Quirks that a supervisor has to live with are kept:
//!
//! * a create that fails at its serial port leaves the configuration behind (state `Created`);
//! * a boot that fails at its disks, TAPs or vsock forgets them, so a second boot comes up without;
//! * a boot that fails at its payload leaves a VM that is not running: `vm.boot` then answers that it
//!   is already created, and only `vm.shutdown` helps;
//! * `vm.delete` of a VM that never booted leaves its serial socket in place;
//! * `rebooting` and `booting` are announced even when there is nothing to reboot or to boot.

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::api::{self, Call, Done};
use crate::args::Args;
use crate::config::{ConsoleMode, VmConfig};
use crate::events::Monitor;
use crate::guest::{self, Death, Guest, Lost, Notice, Notifier, Plan, StartError, What};
use crate::http::server::{Exchange, Response};
use crate::misbehave::{self, Action, Faults, Verdict};
use crate::refusal::{Cause, Refusal};
use crate::serial::Serial;
use crate::{BUILD_VERSION, FOLLOWED_VERSION};

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this status; 0 is what was asked for.
    Exit(i32),
    /// As the guest's process did.
    As(Death),
}

/// The VM made from a configuration.
struct Vm {
    boot: u64,
    state: State,
    /// `None` when the payload could not be loaded.
    guest: Option<Guest>,
    activated: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Paused,
}

/// The VMM: what answers the API.
pub struct Vmm {
    args: Args,
    faults: Faults,
    events: Monitor,
    config: Option<VmConfig>,
    serial: Option<Serial>,
    vm: Option<Vm>,
    boots: u64,
    timer: Option<(Instant, Action)>,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Vmm {
    /// A VMM without a VM, and the receiver of its guests' notices.
    pub fn new(args: Args, faults: Faults, events: Monitor) -> (Self, mpsc::UnboundedReceiver<Notice>) {
        let (notices, noticed) = mpsc::unbounded_channel();
        let vmm = Self {
            args,
            faults,
            events,
            config: None,
            serial: None,
            vm: None,
            boots: 0,
            timer: None,
            notices,
        };
        (vmm, noticed)
    }

    /// Works until something ends it. `stop` yields when a signal asks for the end.
    pub async fn run(
        mut self,
        mut calls: mpsc::Receiver<Exchange>,
        mut noticed: mpsc::UnboundedReceiver<Notice>,
        mut stop: mpsc::Receiver<()>,
    ) -> End {
        loop {
            let timer = self.timer.as_ref().map(|(at, _)| *at);
            tokio::select! {
                biased;
                // A signal ends everything, so nothing may come before it.
                Some(()) = stop.recv() => {
                    if !self.faults.ignores_sigterm() {
                        self.end_all().await;
                        return End::Exit(0);
                    }
                }
                // What the guest did decides what a call finds.
                Some(notice) = noticed.recv() => {
                    if let Some(end) = self.notice(notice).await {
                        return end;
                    }
                }
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    if let Some((_, action)) = self.timer.take() {
                        misbehave::end(&action);
                    }
                }
                exchange = calls.recv() => match exchange {
                    Some(exchange) => {
                        if let Some(end) = self.answer(exchange).await {
                            return end;
                        }
                    }
                    // No API socket: signals and the guest still count.
                    None => std::future::pending().await,
                }
            }
        }
    }

    async fn answer(&mut self, exchange: Exchange) -> Option<End> {
        let call = match api::route(&exchange.request) {
            Ok(call) => call,
            Err(refusal) => {
                let _ = exchange.reply.send(api::respond(Err(refusal)));
                return None;
            }
        };
        let last = call == Call::VmmShutdown;
        let step = call.step();
        let injected = |verdict| match verdict {
            Verdict::Proceed => None,
            Verdict::Garbage => Some(Response::Garbage),
            Verdict::Refuse => {
                let cause = Cause::new(["softvmm was told to refuse"]);
                Some(api::respond(Err(Refusal::api("softvmm", cause))))
            }
        };
        let response = match injected(self.faults.at(&format!("{step}.before")).await) {
            Some(response) => response,
            None => {
                let outcome = self.perform(call).await;
                let response = api::respond(outcome);
                injected(self.faults.at(&format!("{step}.after")).await).unwrap_or(response)
            }
        };
        let done = last && matches!(response, Response::Status(200, _));
        let _ = exchange.reply.send(response);
        done.then_some(End::Exit(0))
    }

    async fn perform(&mut self, call: Call) -> Result<Done, Refusal> {
        let refused = {
            let call = call.clone();
            move |cause| api::refuse(&call, cause)
        };
        match call {
            Call::Ping => Ok(Done::Json(json!({
                "build_version": BUILD_VERSION,
                "version": format!("{FOLLOWED_VERSION}-softvmm"),
                "pid": std::process::id(),
                "features": ["io_uring", "kvm"],
            }))),
            Call::Info => self.info().map(Done::Json).map_err(refused),
            Call::Counters => self.counters().await.map(Done::Json).map_err(refused),
            Call::Create(config) => self.create(*config).map(|()| Done::Empty).map_err(refused),
            Call::Boot => self.boot().await.map(|()| Done::Empty).map_err(refused),
            Call::Pause => self.pause().await.map(|()| Done::Empty).map_err(refused),
            Call::Resume => self.resume().await.map(|()| Done::Empty).map_err(refused),
            Call::PowerButton => self.power_button().await.map(|()| Done::Empty).map_err(refused),
            Call::Shutdown => self.shutdown().await.map(|()| Done::Empty).map_err(refused),
            Call::ResizeDisk(asked) => {
                self.resize_disk(&asked.id, asked.desired_size).await.map(|()| Done::Empty).map_err(refused)
            }
            Call::Reboot => self.reboot().await.map(|()| Done::Empty).map_err(refused),
            Call::Delete => {
                self.delete().await;
                Ok(Done::Empty)
            }
            Call::VmmShutdown => {
                self.end_all().await;
                Ok(Done::Ok)
            }
            Call::Unmodelled(_) if self.config.is_none() => Err(refused(match call.failure() {
                "Error triggering NMI" | "The VM could not be snapshotted" => Cause::not_running(),
                _ => Cause::not_created(),
            })),
            Call::Unmodelled(_) => Err(refused(Cause::new(["softvmm does not do this"]))),
        }
    }

    fn info(&self) -> Result<Value, Cause> {
        let config = self.config.as_ref().ok_or_else(Cause::not_created)?;
        let state = match self.vm.as_ref().map(|vm| vm.state) {
            None | Some(State::Created) => "Created",
            Some(State::Running) => "Running",
            Some(State::Paused) => "Paused",
        };
        let mut info = json!({"config": config, "state": state, "memory_actual_size": config.memory.size});
        if self.vm.is_some() {
            info["device_tree"] = config.device_tree();
        }
        Ok(info)
    }

    async fn counters(&mut self) -> Result<Value, Cause> {
        let (Some(vm), Some(config)) = (&mut self.vm, &self.config) else { return Err(Cause::not_running()) };
        Ok(guest::counters(vm.guest.as_mut(), config).await)
    }

    fn create(&mut self, config: VmConfig) -> Result<(), Cause> {
        if self.config.is_some() {
            return Err(Cause::already_created());
        }
        let console = config.console.common.mode;
        let serial = config.serial.common.clone();
        self.config = Some(config);
        if console == ConsoleMode::Socket {
            let outer = Cause::new(["Error creating console devices"]);
            return Err(outer.because("No socket option support for console device"));
        }
        self.serial = Some(Serial::create(&serial)?);
        Ok(())
    }

    async fn boot(&mut self) -> Result<(), Cause> {
        if self.vm.is_some() {
            return Err(Cause::already_created());
        }
        self.events.emit("vm", "booting");
        self.start().await?;
        if self.faults.at("boot.mid").await == Verdict::Refuse {
            return Err(Cause::new(["softvmm was told to refuse"]));
        }
        self.events.emit("vm", "booted");
        if self.faults.floods() {
            self.events.flood();
        }
        self.timer = self.faults.deadline().map(|(after, action)| (Instant::now() + after, action));
        Ok(())
    }

    /// Makes the VM from the configuration and starts its guest.
    async fn start(&mut self) -> Result<(), Cause> {
        let config = self.config.as_mut().ok_or_else(Cause::config_missing)?;
        let serial = match &self.serial {
            Some(serial) => serial.clone(),
            None => self.serial.insert(Serial::create(&config.serial.common)?).clone(),
        };
        config.validate()?;
        self.boots += 1;
        let notifier = Notifier { boot: self.boots, to: self.notices.clone() };
        let plan = Plan { config, args: &self.args, serial: &serial, notifier };
        let (state, guest, outcome) = match Guest::start(plan).await {
            Ok(guest) => (State::Running, Some(guest), Ok(())),
            Err(StartError::Payload(cause)) => (State::Created, None, Err(cause)),
            Err(StartError::Devices(lost, cause)) => {
                match lost {
                    Lost::Nothing => {}
                    Lost::Disks => config.disks = None,
                    Lost::Nets => config.net = None,
                    Lost::Vsock => config.vsock = None,
                }
                serial.close();
                return Err(cause);
            }
        };
        self.vm = Some(Vm { boot: self.boots, state, guest, activated: Vec::new() });
        outcome
    }

    async fn pause(&mut self) -> Result<(), Cause> {
        let vm = self.vm.as_mut().ok_or_else(Cause::not_running)?;
        self.events.emit("vm", "pausing");
        let failed = |why: String| {
            Cause::new(["Cannot pause VM", "Failed to pause migratable component"]).because(why)
        };
        if vm.state == State::Paused {
            return Err(failed("Invalid transition: InvalidStateTransition(Paused, Paused)".into()));
        }
        if let Some(guest) = &mut vm.guest {
            guest.pause().await.map_err(failed)?;
        }
        vm.state = State::Paused;
        self.events.emit("vm", "paused");
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Cause> {
        let vm = self.vm.as_mut().ok_or_else(Cause::not_running)?;
        self.events.emit("vm", "resuming");
        let failed = |why: String| {
            Cause::new(["Cannot resume VM", "Failed to resume migratable component"]).because(why)
        };
        if vm.state == State::Running {
            return Err(failed("Invalid transition: InvalidStateTransition(Running, Running)".into()));
        }
        if let Some(guest) = &mut vm.guest {
            guest.resume().await.map_err(failed)?;
        }
        vm.state = State::Running;
        self.events.emit("vm", "resumed");
        Ok(())
    }

    async fn power_button(&mut self) -> Result<(), Cause> {
        let vm = self.vm.as_mut().ok_or_else(Cause::not_running)?;
        match &mut vm.guest {
            Some(guest) => guest
                .power_button()
                .await
                .map_err(|why| Cause::new(["Error triggering power button"]).because(why)),
            None => Ok(()),
        }
    }

    /// The real one does it for a paused guest too, whose disk then works on.
    async fn resize_disk(&mut self, id: &str, bytes: u64) -> Result<(), Cause> {
        let config = self.config.as_ref().ok_or_else(Cause::not_created)?;
        let vm = self.vm.as_mut().ok_or_else(|| Cause::new(["Failed resizing a disk image"]))?;
        let devices = config.devices();
        let disks = config.disks.as_deref().unwrap_or_default();
        let manager = "Error from device manager";
        let Some(index) = devices.iter().take(disks.len()).position(|device| device == id) else {
            let text = format!("Failed to find device corresponding to the given identifier: {id}");
            return Err(Cause::new([manager]).because(text));
        };
        let refused = "Disk resize error";
        if !bytes.is_multiple_of(512) {
            return Err(Cause::new([manager, refused, "Disk image size is not a multiple of 512"]));
        }
        let failed = |why: String| {
            Cause::new([manager, refused, "Disk resize failed", "I/O error", "Resize failed"]).because(why)
        };
        match (&mut vm.guest, &disks[index].path) {
            (Some(guest), Some(path)) => guest.resize_disk(index, path, bytes).await.map_err(failed),
            _ => Ok(()),
        }
    }

    async fn shutdown(&mut self) -> Result<(), Cause> {
        let vm = self.vm.take().ok_or_else(Cause::not_running)?;
        self.take_down(vm).await;
        self.events.emit("vm", "shutdown");
        Ok(())
    }

    async fn reboot(&mut self) -> Result<(), Cause> {
        self.events.emit("vm", "rebooting");
        let vm = self.vm.take().ok_or_else(Cause::not_created)?;
        self.take_down(vm).await;
        self.start().await?;
        self.events.emit("vm", "rebooted");
        Ok(())
    }

    /// Ends a guest and closes its serial port.
    async fn take_down(&mut self, vm: Vm) {
        self.timer = None;
        if let Some(guest) = vm.guest {
            guest.stop().await;
        }
        if let Some(serial) = self.serial.take() {
            serial.close();
        }
    }

    async fn delete(&mut self) {
        if self.config.is_none() {
            return;
        }
        let _ = self.shutdown().await;
        self.config = None;
        self.events.emit("vm", "deleted");
    }

    async fn end_all(&mut self) {
        self.delete().await;
        self.events.emit("vmm", "shutdown");
    }

    async fn notice(&mut self, notice: Notice) -> Option<End> {
        let vm = self.vm.as_mut().filter(|vm| vm.boot == notice.boot)?;
        match notice.what {
            What::Activated(id) => {
                self.events.emit_about("virtio-device", "activated", "id", &id);
                vm.activated.push(id);
                None
            }
            What::Panicked(kind) => {
                self.events.emit_about("guest", "panic", "event", &kind);
                None
            }
            What::PoweredOff => {
                self.faults.at("guest-off").await;
                self.reset_devices();
                if self.args.no_shutdown {
                    let _ = self.shutdown().await;
                    return None;
                }
                self.end_all().await;
                Some(End::Exit(0))
            }
            What::Reset => {
                self.faults.at("guest-reset").await;
                self.reset_devices();
                // A reboot that fails ends the process, as there.
                self.reboot().await.err().map(|_| End::Exit(1))
            }
            What::Died(death) => {
                let vm = self.vm.take()?;
                self.take_down(vm).await;
                Some(End::As(death))
            }
        }
    }

    fn reset_devices(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        for id in vm.activated.drain(..) {
            self.events.emit_about("virtio-device", "reset", "id", &id);
        }
    }
}
