//! `VmConfig`: the body of `vm.create`, which `vm.info` gives back with every default filled in.
//!
//! The parts that this program acts on have types; the others (`numa`, `platform`, …) are kept as
//! they came. Unknown fields are ignored, as v53 does.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::refusal::Cause;

fn yes() -> bool {
    true
}

fn absent<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// `cpus`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpusConfig {
    /// Processors at boot.
    pub boot_vcpus: u32,
    /// Upper bound for hotplug.
    pub max_vcpus: u32,
    #[serde(default, skip_serializing_if = "absent")]
    topology: Option<Value>,
    #[serde(default)]
    kvm_hyperv: bool,
    #[serde(default = "CpusConfig::phys_bits")]
    max_phys_bits: u8,
    #[serde(default, skip_serializing_if = "absent")]
    affinity: Option<Value>,
    #[serde(default)]
    features: CpuFeatures,
    #[serde(default = "yes")]
    nested: bool,
    #[serde(default = "CpusConfig::core_scheduling")]
    core_scheduling: String,
    #[serde(default = "CpusConfig::profile")]
    profile: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct CpuFeatures {
    #[serde(default)]
    amx: bool,
}

impl CpusConfig {
    fn phys_bits() -> u8 {
        46
    }
    fn core_scheduling() -> String {
        "Vm".into()
    }
    fn profile() -> String {
        "Host".into()
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: Self::phys_bits(),
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: Self::core_scheduling(),
            profile: Self::profile(),
        }
    }
}

/// `memory`; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Memory at boot.
    pub size: u64,
    #[serde(default)]
    mergeable: bool,
    #[serde(default = "MemoryConfig::acpi")]
    hotplug_method: String,
    #[serde(default, skip_serializing_if = "absent")]
    hotplug_size: Option<u64>,
    #[serde(default, skip_serializing_if = "absent")]
    hotplugged_size: Option<u64>,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    hugepages: bool,
    #[serde(default, skip_serializing_if = "absent")]
    hugepage_size: Option<u64>,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    reserve: bool,
    #[serde(default, skip_serializing_if = "absent")]
    zones: Option<Value>,
    #[serde(default = "yes")]
    thp: bool,
}

impl MemoryConfig {
    fn acpi() -> String {
        "Acpi".into()
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            hotplug_method: Self::acpi(),
            hotplug_size: None,
            hotplugged_size: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            zones: None,
            thp: true,
        }
    }
}

/// `payload`: a kernel with its command line and initramfs, or a firmware.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PayloadConfig {
    /// Firmware image.
    #[serde(default, skip_serializing_if = "absent")]
    pub firmware: Option<PathBuf>,
    /// Kernel image.
    #[serde(default, skip_serializing_if = "absent")]
    pub kernel: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "absent")]
    pub cmdline: Option<String>,
    /// Initial RAM file system.
    #[serde(default, skip_serializing_if = "absent")]
    pub initramfs: Option<PathBuf>,
}

/// What every device on the PCI bus has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PciCommon {
    /// Name of the device in events, counters and the device tree.
    #[serde(default, skip_serializing_if = "absent")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "<&bool as std::ops::Not>::not")]
    iommu: bool,
    #[serde(default)]
    pci_segment: u16,
    #[serde(default, skip_serializing_if = "absent")]
    pci_device_id: Option<u8>,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageType {
    /// VHD of fixed size.
    FixedVhd,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Plain sectors.
    Raw,
    /// VHDX.
    Vhdx,
    /// To be found out by looking.
    #[default]
    Unknown,
}

/// One entry of `disks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Identity on the bus.
    #[serde(flatten)]
    pub pci: PciCommon,
    /// Image file.
    #[serde(default, skip_serializing_if = "absent")]
    pub path: Option<PathBuf>,
    /// Whether the guest may write.
    #[serde(default)]
    pub readonly: bool,
    #[serde(default)]
    direct: bool,
    #[serde(default = "DiskConfig::num_queues")]
    num_queues: usize,
    #[serde(default = "DiskConfig::queue_size")]
    queue_size: u16,
    #[serde(default)]
    vhost_user: bool,
    #[serde(default, skip_serializing_if = "absent")]
    vhost_socket: Option<String>,
    #[serde(default, skip_serializing_if = "absent")]
    rate_limit_group: Option<String>,
    #[serde(default, skip_serializing_if = "absent")]
    rate_limiter_config: Option<Value>,
    #[serde(default)]
    disable_io_uring: bool,
    #[serde(default)]
    disable_aio: bool,
    /// Serial number that the guest sees.
    #[serde(default, skip_serializing_if = "absent")]
    pub serial: Option<String>,
    #[serde(default, skip_serializing_if = "absent")]
    queue_affinity: Option<Value>,
    /// Whether a qcow2 image may name a backing file.
    #[serde(default)]
    pub backing_files: bool,
    #[serde(default = "yes")]
    sparse: bool,
    /// Format of the image.
    #[serde(default)]
    pub image_type: ImageType,
    #[serde(default = "DiskConfig::lock_granularity")]
    lock_granularity: String,
}

impl DiskConfig {
    fn num_queues() -> usize {
        1
    }
    fn queue_size() -> u16 {
        128
    }
    fn lock_granularity() -> String {
        "ByteRange".into()
    }
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let parts: Vec<_> = text.split(':').collect();
    if parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok()) {
        return Ok(text.to_lowercase());
    }
    Err(D::Error::custom(format!(
        "The provided MAC address is invalid: parsing of {text} into a MAC address failed"
    )))
}

/// One entry of `net`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Identity on the bus.
    #[serde(flatten)]
    pub pci: PciCommon,
    /// Name of the TAP device on the host.
    #[serde(default, skip_serializing_if = "absent")]
    pub tap: Option<String>,
    #[serde(default, skip_serializing_if = "absent")]
    ip: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    mask: Option<Value>,
    /// Hardware address of the guest's side.
    #[serde(default = "NetConfig::random_mac", deserialize_with = "mac")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "absent")]
    host_mac: Option<String>,
    #[serde(default, skip_serializing_if = "absent")]
    mtu: Option<u16>,
    #[serde(default = "NetConfig::num_queues")]
    num_queues: usize,
    #[serde(default = "NetConfig::queue_size")]
    queue_size: u16,
    #[serde(default)]
    vhost_user: bool,
    #[serde(default, skip_serializing_if = "absent")]
    vhost_socket: Option<String>,
    #[serde(default = "NetConfig::vhost_mode")]
    vhost_mode: String,
    #[serde(default, skip_serializing_if = "absent")]
    rate_limiter_config: Option<Value>,
    #[serde(default = "yes")]
    offload_tso: bool,
    #[serde(default = "yes")]
    offload_ufo: bool,
    #[serde(default = "yes")]
    offload_csum: bool,
}

impl NetConfig {
    fn random_mac() -> String {
        let r: [u8; 5] = rand::random();
        format!("2e:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", r[0], r[1], r[2], r[3], r[4])
    }
    fn num_queues() -> usize {
        2
    }
    fn queue_size() -> u16 {
        256
    }
    fn vhost_mode() -> String {
        "Client".into()
    }
    /// Queue pairs that the TAP must have.
    pub fn queue_pairs(&self) -> usize {
        (self.num_queues / 2).max(1)
    }
}

/// `vsock`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Identity on the bus.
    #[serde(flatten)]
    pub pci: PciCommon,
    /// Context id of the guest.
    pub cid: u32,
    /// The hybrid socket on the host.
    pub socket: PathBuf,
}

/// Where a console's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// No device.
    Off,
    /// A pseudo-terminal.
    Pty,
    /// Standard output.
    Tty,
    /// A file.
    File,
    /// A socket with one client.
    Socket,
    /// A device whose output is dropped.
    Null,
}

/// What `serial` and `console` have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommonConsole {
    /// The file of mode `File`.
    #[serde(default, skip_serializing_if = "absent")]
    pub file: Option<PathBuf>,
    /// Where output goes.
    pub mode: ConsoleMode,
    /// The socket of mode `Socket`.
    #[serde(default, skip_serializing_if = "absent")]
    pub socket: Option<PathBuf>,
}

/// `serial`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SerialConfig {
    /// Mode, file and socket.
    #[serde(flatten)]
    pub common: CommonConsole,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self { common: CommonConsole { file: None, mode: ConsoleMode::Null, socket: None } }
    }
}

/// `console`, the virtio one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Mode, file and socket, of which `Socket` is refused.
    #[serde(flatten)]
    pub common: CommonConsole,
    #[serde(flatten)]
    pci: PciCommon,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            common: CommonConsole { file: None, mode: ConsoleMode::Tty, socket: None },
            pci: PciCommon::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DebugConsoleConfig {
    #[serde(default, skip_serializing_if = "absent")]
    file: Option<PathBuf>,
    mode: ConsoleMode,
    #[serde(default, skip_serializing_if = "absent")]
    iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { file: None, mode: ConsoleMode::Off, iobase: Some(0xe9) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RngConfig {
    #[serde(flatten)]
    pci: PciCommon,
    src: PathBuf,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { pci: PciCommon::default(), src: "/dev/urandom".into() }
    }
}

/// The configuration of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Processors.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// What boots.
    #[serde(skip_serializing_if = "absent")]
    pub payload: Option<PayloadConfig>,
    #[serde(default, skip_serializing_if = "absent")]
    rate_limit_groups: Option<Value>,
    /// Disks.
    #[serde(default, skip_serializing_if = "absent")]
    pub disks: Option<Vec<DiskConfig>>,
    /// Network devices.
    #[serde(default, skip_serializing_if = "absent")]
    pub net: Option<Vec<NetConfig>>,
    #[serde(default)]
    rng: RngConfig,
    #[serde(default, skip_serializing_if = "absent")]
    balloon: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    generic_vhost_user: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    fs: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    pmem: Option<Value>,
    /// The legacy serial port.
    #[serde(default)]
    pub serial: SerialConfig,
    /// The virtio console.
    #[serde(default)]
    pub console: ConsoleConfig,
    #[serde(default)]
    debug_console: DebugConsoleConfig,
    #[serde(default, skip_serializing_if = "absent")]
    devices: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    user_devices: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    vdpa: Option<Value>,
    /// The vsock device.
    #[serde(default, skip_serializing_if = "absent")]
    pub vsock: Option<VsockConfig>,
    /// Whether the guest can report a panic.
    #[serde(default)]
    pub pvpanic: bool,
    #[serde(default)]
    iommu: bool,
    #[serde(default, skip_serializing_if = "absent")]
    numa: Option<Value>,
    /// Whether there is a watchdog device.
    #[serde(default)]
    pub watchdog: bool,
    #[serde(default, skip_serializing_if = "absent")]
    rtc: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    pci_segments: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    platform: Option<Value>,
    #[serde(default, skip_serializing_if = "absent")]
    tpm: Option<Value>,
    /// Accepted; no rule is applied here.
    #[serde(default)]
    pub landlock_enable: bool,
    #[serde(default, skip_serializing_if = "absent")]
    landlock_rules: Option<Value>,
}

impl VmConfig {
    /// What the real one checks when a VM is made from its configuration.
    ///
    /// # Errors
    /// The chain that `vm.boot` answers with.
    pub fn validate(&self) -> Result<(), Cause> {
        let invalid = |why: String| Cause::new(["Failed to validate config"]).because(why);
        let payload = |why: &str| invalid("Payload configuration is not bootable".into()).because(why);
        match self.payload.as_ref().map(|p| (&p.firmware, &p.kernel)) {
            Some((Some(_), Some(_))) => {
                return Err(payload("Specifying a kernel is not supported when a firmware is provided"));
            }
            Some((Some(_), None) | (None, Some(_))) => {}
            Some((None, None)) | None => {
                return Err(payload("No bootitem provided: neither firmware nor kernel"));
            }
        }
        if self.cpus.max_vcpus < self.cpus.boot_vcpus {
            let (max, boot) = (self.cpus.max_vcpus, self.cpus.boot_vcpus);
            return Err(invalid(format!("Max CPUs ({max}) lower than boot CPUs ({boot})")));
        }
        if let Some(vsock) = self.vsock.as_ref().filter(|v| v.cid <= 2) {
            return Err(invalid(format!("{} is a special VSOCK CID", vsock.cid)));
        }
        let mut seen = BTreeSet::new();
        for id in self.ids() {
            if !seen.insert(id) {
                return Err(invalid(format!("Identifier {id} is not unique")));
            }
        }
        Ok(())
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().flatten().map(|d| &d.pci);
        let nets = self.net.iter().flatten().map(|n| &n.pci);
        let vsock = self.vsock.iter().map(|v| &v.pci);
        disks.chain(nets).chain(vsock).filter_map(|pci| pci.id.as_deref())
    }

    /// The ids of the virtio devices that a guest activates, names made up for those without one.
    pub fn devices(&self) -> Vec<String> {
        let mut made_up = 0;
        let mut name = |pci: &PciCommon, prefix: &str| match &pci.id {
            Some(id) => id.clone(),
            None => {
                let id = format!("{prefix}{made_up}");
                made_up += 1;
                id
            }
        };
        let mut names: Vec<_> = self.disks.iter().flatten().map(|d| name(&d.pci, "_disk")).collect();
        names.extend(self.net.iter().flatten().map(|n| name(&n.pci, "_net")));
        names.push("__rng".into());
        names.extend(self.vsock.iter().map(|v| name(&v.pci, "_vsock")));
        names
    }

    /// A `device_tree` with the nodes that a client looks for; resources are not modelled.
    pub fn device_tree(&self) -> Value {
        let mut tree = serde_json::Map::new();
        let legacy = ["__serial", "__ioapic"].map(str::to_owned);
        for id in legacy {
            tree.insert(id.clone(), serde_json::json!({"id": id, "resources": [], "children": []}));
        }
        for (slot, id) in self.devices().into_iter().enumerate() {
            let parent = format!("_virtio-pci-{id}");
            let bdf = format!("0000:00:{:02x}.0", slot + 1);
            let bus = serde_json::json!({"id": parent, "resources": [], "children": [id], "pci_bdf": bdf});
            let node = serde_json::json!({"id": id, "resources": [], "parent": parent, "children": []});
            tree.insert(parent.clone(), bus);
            tree.insert(id, node);
        }
        if self.pvpanic {
            let id = "__pvpanic";
            tree.insert(id.into(), serde_json::json!({"id": id, "resources": [], "children": []}));
        }
        Value::Object(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> VmConfig {
        serde_json::from_str(json).expect("a configuration")
    }

    #[test]
    fn defaults_are_filled_in_and_unknown_fields_ignored() {
        let c = config(r#"{"disks":[{"path":"/d"}],"surprise":1}"#);
        assert_eq!(c.memory.size, 512 << 20);
        let disk = serde_json::to_value(&c.disks.expect("disks")[0]).expect("json");
        assert_eq!(disk["image_type"], "Unknown");
        assert_eq!(disk["queue_size"], 128);
        assert!(disk.get("id").is_none());
    }

    #[test]
    fn a_configuration_without_something_to_boot_is_refused_at_boot_only() {
        assert!(config("{}").validate().is_err());
        assert!(config(r#"{"payload":{"kernel":"/k"}}"#).validate().is_ok());
    }

    #[test]
    fn devices_without_an_id_get_one() {
        let c = config(r#"{"disks":[{"path":"/a"},{"path":"/b","id":"data"}],"net":[{}]}"#);
        assert_eq!(c.devices(), ["_disk0", "data", "_net1", "__rng"]);
    }
}
