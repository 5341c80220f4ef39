//! The guest behind a VM, in one of two kinds.
//!
//! A guest is started by `vm.boot` and stopped once. What happens to it on its own arrives as a
//! [`Notice`] that carries the boot it belongs to, so a late word of an earlier boot is not taken
//! for one of this.

pub mod init;
pub mod namespaces;
mod nic;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod root;
mod throttle;

use std::io::Read as _;

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::args::{Args, GuestKind};
use crate::config::{ImageType, VmConfig};
use crate::refusal::Cause;
use crate::serial::Serial;

/// How a guest's process ended when nobody asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// By a signal.
    Signal(i32),
    /// With a status.
    Exit(i32),
}

/// What a guest did on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Powered itself off.
    PoweredOff,
    /// Reset itself.
    Reset,
    /// Reported a panic; the text is the kind.
    Panicked(String),
    /// Its driver took a virtio device into use.
    Activated(String),
    /// Its process ended.
    Died(Death),
}

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The boot it happened to.
    pub boot: u64,
    /// What happened.
    pub what: What,
}

/// Sends notices of one boot.
#[derive(Debug, Clone)]
pub struct Notifier {
    /// The boot.
    pub boot: u64,
    /// The receiver is the VMM.
    pub to: mpsc::UnboundedSender<Notice>,
}

impl Notifier {
    /// Reports; a VMM that is gone does not matter.
    pub fn send(&self, what: What) {
        let _ = self.to.send(Notice { boot: self.boot, what });
    }
}

/// What a guest is started from.
pub struct Plan<'a> {
    /// The configuration, validated.
    pub config: &'a VmConfig,
    /// The command line.
    pub args: &'a Args,
    /// The serial port.
    pub serial: &'a Serial,
    /// Where its notices go.
    pub notifier: Notifier,
}

/// Why a guest did not start, and how far it had come.
#[derive(Debug)]
pub enum StartError {
    /// The devices could not be made. v53 forgets the part of the configuration it was working on.
    Devices(Lost, Cause),
    /// The devices are there, the payload could not be loaded: the VM exists, not running.
    Payload(Cause),
}

/// The part of the configuration that a failed boot forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// None.
    Nothing,
    /// `disks`
    Disks,
    /// `net`
    Nets,
    /// `vsock`
    Vsock,
}

/// A running guest.
pub enum Guest {
    /// Processes in namespaces.
    Process(Box<process::ProcessGuest>),
    /// QEMU.
    Qemu(Box<qemu::QemuGuest>),
}

impl Guest {
    /// Starts the guest of a plan.
    ///
    /// # Errors
    /// Nothing of it is left running.
    pub async fn start(plan: Plan<'_>) -> Result<Self, StartError> {
        check_disks(plan.config)?;
        let payload = plan.config.payload.as_ref();
        if let Some(Err(error)) = payload.and_then(|p| p.initramfs.as_ref()).map(std::fs::File::open) {
            let cause = Cause::io(["Cannot open initramfs file"], &error);
            return Err(StartError::Devices(Lost::Nothing, cause));
        }
        match plan.args.guest {
            GuestKind::Process => Ok(Self::Process(Box::new(process::ProcessGuest::start(plan).await?))),
            GuestKind::Qemu => Ok(Self::Qemu(Box::new(qemu::QemuGuest::start(plan).await?))),
        }
    }

    /// Stops its processors.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn pause(&mut self) -> Result<(), String> {
        match self {
            Self::Process(guest) => guest.pause().await,
            Self::Qemu(guest) => guest.pause().await,
        }
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn resume(&mut self) -> Result<(), String> {
        match self {
            Self::Process(guest) => guest.resume().await,
            Self::Qemu(guest) => guest.resume().await,
        }
    }

    /// Gives a disk another length, and tells the guest.
    ///
    /// # Errors
    /// It could not be done.
    pub async fn resize_disk(
        &mut self,
        index: usize,
        path: &std::path::Path,
        bytes: u64,
    ) -> Result<(), String> {
        match self {
            Self::Process(_) => {
                let file = std::fs::OpenOptions::new().write(true).open(path);
                file.and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())
            }
            Self::Qemu(guest) => guest.resize_disk(index, bytes).await,
        }
    }

    /// Presses the power button; what the guest makes of it comes later.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn power_button(&mut self) -> Result<(), String> {
        match self {
            Self::Process(guest) => guest.power_button(),
            Self::Qemu(guest) => guest.power_button().await,
        }
    }

    /// Ends it and everything that belongs to it, without asking the guest.
    pub async fn stop(self) {
        match self {
            Self::Process(guest) => guest.stop().await,
            Self::Qemu(guest) => guest.stop().await,
        }
    }
}

/// Counters of a VM's devices by id; of devices that have done nothing if its guest does not run.
pub async fn counters(mut guest: Option<&mut Guest>, config: &VmConfig) -> Value {
    let mut all = Map::new();
    let devices = config.devices();
    let disks = config.disks.as_deref().unwrap_or_default();
    let nets = config.net.as_deref().unwrap_or_default();
    let mut stats = match &mut guest {
        Some(Guest::Qemu(guest)) => guest.block_counters().await,
        _ => Map::new(),
    };
    for id in devices.iter().take(disks.len()) {
        all.insert(id.clone(), stats.remove(id).unwrap_or_else(qemu::no_block_counters));
    }
    for (id, net) in devices.iter().skip(disks.len()).zip(nets) {
        let counters = match &guest {
            Some(Guest::Process(guest)) => guest.net_counters(id),
            _ => net.tap.as_deref().map(crate::tap::counters),
        };
        all.insert(id.clone(), counters.unwrap_or_default());
    }
    Value::Object(all)
}

fn check_disks(config: &VmConfig) -> Result<(), StartError> {
    for disk in config.disks.iter().flatten() {
        let Some(path) = &disk.path else { continue };
        let refused =
            |at: String| Cause::new(["Error from device manager", "Cannot open disk path"]).because(at);
        let opened = std::fs::OpenOptions::new().read(true).write(!disk.readonly).open(path);
        let file = opened.map_err(|error| {
            let at = format!("I/O error (path={} op=open)", path.display());
            StartError::Devices(Lost::Disks, refused(at).because(error))
        })?;
        if disk.image_type == ImageType::Qcow2 && !disk.backing_files && names_another(file) {
            let at = refused(format!("Unsupported feature (path={} op=open)", path.display()));
            return Err(StartError::Devices(Lost::Disks, at.because("Maximum disk nesting depth exceeded")));
        }
    }
    Ok(())
}

/// Whether a qcow2 file has a backing file: QEMU would open that whatever it is told, the real one only if it may.
fn names_another(file: std::fs::File) -> bool {
    let mut head = Vec::new();
    file.take(16).read_to_end(&mut head).is_ok()
        && head.get(8..16).is_some_and(|name| name.iter().any(|b| *b != 0))
}

/// Opens the kernel or the firmware, as loading it would.
///
/// # Errors
/// It is missing or not readable.
pub fn check_payload(config: &VmConfig) -> Result<(), StartError> {
    let payload = config.payload.clone().unwrap_or_default();
    let open = |path: &Option<std::path::PathBuf>, what, is_one: fn(&[u8]) -> bool| {
        let Some(path) = path else { return Ok(()) };
        let mut head = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
        read.map_err(|error| StartError::Payload(Cause::io([what], &error)))?;
        // The real one has these words for firmware too.
        const WORDS: [&str; 3] = [
            "Cannot load the kernel into memory",
            "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
            "Kernel Loader: Invalid bzImage",
        ];
        if is_one(&head) { Ok(()) } else { Err(StartError::Payload(Cause::new(WORDS))) }
    };
    open(&payload.firmware, "Error manipulating firmware file", |head| is_elf(head) || is_uefi(head))?;
    open(&payload.kernel, "Cannot open kernel file", |head| is_elf(head) || is_bzimage(head))
}

/// As much of an image as tells what it is.
const HEAD: u64 = 0x206;

fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS")
}

/// A volume of UEFI firmware, which QEMU takes as it is.
fn is_uefi(head: &[u8]) -> bool {
    head.get(0x28..0x2c) == Some(b"_FVH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_file_is_opened_only_where_it_may_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("disk");
        let checked = |named: u8, disk: Value| {
            std::fs::write(&path, [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, named])
                .expect("write");
            let mut disk = disk;
            disk["path"] = path.to_str().into();
            check_disks(
                &serde_json::from_value(serde_json::json!({"disks": [disk]})).expect("a configuration"),
            )
        };
        let over = serde_json::json!({"image_type": "Qcow2", "backing_files": true});
        let alone = serde_json::json!({"image_type": "Qcow2"});
        assert!(checked(112, over).is_ok() && checked(0, alone.clone()).is_ok());
        let Err(StartError::Devices(Lost::Disks, cause)) = checked(112, alone) else {
            panic!("it was opened")
        };
        assert!(format!("{cause:?}").contains("nesting depth"), "{cause:?}");
    }
}
