//! `VmConfig`: the body of `vm.create`, which `vm.info` gives back with every default filled in.
//!
//! The parts that this program acts on have types; the others (`numa`, `platform`, …) are kept as
//! they came. Unknown fields are ignored, as v53 does.

mod devices;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::refusal::Cause;

pub use devices::{
    CommonConsole, ConsoleConfig, ConsoleMode, DiskConfig, ImageType, NetConfig, PciCommon,
    RateLimiterConfig, SerialConfig, TokenBucketConfig, VsockConfig,
};
use devices::{DebugConsoleConfig, RngConfig};

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
    /// How they are laid out.
    #[serde(default, skip_serializing_if = "absent")]
    pub topology: Option<CpuTopology>,
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

/// How processors are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Of a core.
    pub threads_per_core: u16,
    /// Of a die.
    pub cores_per_die: u16,
    /// Of a socket.
    pub dies_per_package: u16,
    /// Sockets.
    pub packages: u16,
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
    /// From a pool of huge pages.
    #[serde(default)]
    pub hugepages: bool,
    /// Of this length.
    #[serde(default, skip_serializing_if = "absent")]
    pub hugepage_size: Option<u64>,
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
        if let Some(t) = self.cpus.topology {
            let parts = [t.threads_per_core, t.cores_per_die, t.dies_per_package, t.packages];
            if parts.contains(&0) {
                return Err(invalid("No part of the CPU topology can be zero".into()));
            }
            if parts.iter().map(|part| u64::from(*part)).product::<u64>() != u64::from(self.cpus.max_vcpus) {
                return Err(invalid("Product of CPU topology parts does not match maximum vCPU".into()));
            }
        }
        let most = self.cpus.boot_vcpus;
        for net in self.net.iter().flatten() {
            let asked = net.num_queues();
            if asked < 2 {
                return Err(invalid(format!(
                    "Number of queues ({asked}) to virtio_net should be higher than 2"
                )));
            }
            if asked / 2 > most as usize {
                return Err(invalid(format!("Queue count ({asked}) must not exceed boot vCPUs ({most})")));
            }
        }
        if self.memory.hugepage_size.is_some() && !self.memory.hugepages {
            return Err(invalid("Huge page size specified but huge pages not enabled".into()));
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
