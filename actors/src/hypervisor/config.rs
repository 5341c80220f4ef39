//! From a resolved spec to the VMM's configuration: pure, and held by golden files.
//!
//! Every device has an id (counters, removal and restore name devices by it) and every disk its type (a disk
//! whose type is guessed loses its first sector to the guest). No field asks the VMM for a privilege: the TAP
//! exists and is up before, and no address is set on it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use drover_schemas::body::spec::{
    CoreScheduling, CpuTopology, DiskLimits, HugePages, NicSetup, Os, ResolvedSpec,
};
use drover_schemas::size::ByteSize;
use drover_schemas::token::Token;
use serde::Serialize;

use super::run_dir::RunDir;

/// Context id of every guest's vsock: the socket's path is what tells guests apart on the host.
pub const GUEST_CID: u32 = 3;

/// Format of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ImageType {
    /// Sectors as they are.
    Raw,
    /// QCOW2.
    Qcow2,
}

/// A disk file of this VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPath {
    /// Where it is.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Its format.
    pub image_type: ImageType,
    /// The image that it lies over and names as its backing file.
    pub backing: Option<PathBuf>,
    /// What the guest finds it by.
    pub name: String,
    /// What the guest frees is the host's again.
    pub discard: bool,
    /// How fast the guest may use it.
    pub limits: Option<DiskLimits>,
}

/// The files of this host that stand for the images of the spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootPaths {
    /// The kernel, for a direct boot.
    pub kernel: Option<PathBuf>,
    /// The initramfs, for a direct boot.
    pub initramfs: Option<PathBuf>,
    /// The firmware; used when there is no kernel.
    pub firmware: Option<PathBuf>,
    /// Disks in the order of the spec.
    pub disks: Vec<DiskPath>,
}

/// A network interface of this VM: an existing TAP and the guest's MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Name of the TAP.
    pub tap: String,
    /// The guest's MAC, as `52:54:00:12:34:56`.
    pub mac: String,
    /// Where the kernel tells of the TAP's kind, which the VMM reads before it attaches; none if the kernel tells nothing.
    pub kind: Option<PathBuf>,
}

/// Everything that a configuration is made from.
#[derive(Debug)]
pub struct VmmInput<'a> {
    /// What was asked for.
    pub spec: &'a ResolvedSpec,
    /// Its images on this host.
    pub paths: BootPaths,
    /// Where the sockets go.
    pub run_dir: &'a RunDir,
    /// Interfaces in the order of the spec.
    pub nics: Vec<NicConfig>,
    /// Appended to the command line, from [`cmdline_additions`].
    pub cmdline: String,
    /// The VMM shall give up every other path.
    pub landlock: bool,
}

/// The guest's first interface, for the kernel's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestNic {
    /// Address of the guest.
    pub ipv4: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// The network's gateway.
    pub gateway: Ipv4Addr,
}

/// What drover appends to a kernel's command line: the host name and the address of the first interface.
///
/// `ip=` is the kernel's own syntax; a guest whose kernel lacks it reads it in its init, like
/// `drover.hostname=`.
#[must_use]
pub fn cmdline_additions(hostname: &Token, nic: Option<&FirstNic>) -> String {
    let mut text = format!("drover.hostname={hostname}");
    match nic {
        Some(FirstNic::Set(nic)) => {
            let mask = netmask(nic.prefix_len);
            text.push_str(&format!(" ip={}::{}:{mask}:{hostname}:eth0:off", nic.ipv4, nic.gateway));
        }
        Some(FirstNic::Asks) => text.push_str(&format!(" ip=::::{hostname}:eth0:dhcp")),
        None => {}
    }
    text
}

/// What the command line says of a guest's first interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstNic {
    /// Its address.
    Set(GuestNic),
    /// That it is asked for.
    Asks,
}

/// What the command line says of the first interface, whose lease this is.
#[must_use]
pub fn first_nic(spec: &ResolvedSpec, lease: Option<GuestNic>) -> Option<FirstNic> {
    match spec.nics.first()?.setup {
        NicSetup::Kernel => lease.map(FirstNic::Set),
        NicSetup::Dhcp => Some(FirstNic::Asks),
        NicSetup::Agent => None,
    }
}

/// The netmask of a prefix length; lengths above 32 count as 32.
#[must_use]
pub fn netmask(prefix_len: u8) -> Ipv4Addr {
    let bits = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
    Ipv4Addr::from(bits)
}

/// `VmConfig` of Cloud Hypervisor v53, as much of it as drover sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmConfig {
    /// Processors.
    pub cpus: CpusConfig,
    /// Memory.
    pub memory: MemoryConfig,
    /// What is booted.
    pub payload: PayloadConfig,
    /// Disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// Source of randomness.
    pub rng: RngConfig,
    /// The serial console.
    pub serial: SerialConfig,
    /// The virtio console, which drover does not use.
    pub console: ConsoleConfig,
    /// The way to the guest agent.
    pub vsock: VsockConfig,
    /// The guest can report a panic.
    pub pvpanic: bool,
    /// The VMM gives up every path but those that are named here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub landlock_enable: bool,
    /// What it may read beside those: the images that disks lie over, and of which kind its TAPs are. Of the latter it
    /// reads by itself and does not think when it gives up paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub landlock_rules: Vec<LandlockRule>,
}

/// A path that the VMM keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LandlockRule {
    /// The file.
    pub path: PathBuf,
    /// Always `r`.
    pub access: &'static str,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpusConfig {
    /// At boot.
    pub boot_vcpus: u32,
    /// After hot-plug.
    pub max_vcpus: u32,
    /// Hyper-V enlightenments, which Windows needs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kvm_hyperv: bool,
    /// How they are laid out; the names are the VMM's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// The guest may use the processor's virtualisation, which the VMM gives to all if nobody says no.
    pub nested: bool,
    /// Whose threads may run on one core.
    pub core_scheduling: &'static str,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryConfig {
    /// In bytes.
    pub size: u64,
    /// From a pool of huge pages.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hugepages: bool,
    /// Of this length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// All of it is set aside when the guest is made: a page that is wanted later and is not there would end the VMM.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reserve: bool,
}

/// What is booted: a kernel or firmware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PayloadConfig {
    /// Firmware file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Kernel file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Command line of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Initramfs file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskConfig {
    /// Name of the device.
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Format of the file.
    pub image_type: ImageType,
    /// The file names another one that is read where it has nothing. Otherwise the VMM opens none that does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backing_files: bool,
    /// The guest may free what it has written; the VMM's own choice, and told only where it is not ours.
    #[serde(skip_serializing_if = "Clone::clone")]
    pub sparse: bool,
    /// The serial number that the guest sees.
    pub serial: String,
    /// How fast the guest may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
}

/// Buckets of bytes and of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

/// A bucket that is full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenBucketConfig {
    /// What it holds.
    pub size: u64,
    /// What there is beside it, once.
    pub one_time_burst: u64,
    /// How long it takes to become full, in milliseconds.
    pub refill_time: u64,
}

/// The VMM rests for 100 ms whenever a bucket is empty, so one for less time would let less through than it says.
const REFILL_MS: u64 = 1_000;

/// The VMM's limits for a disk.
fn rate_limiter(limits: &DiskLimits) -> RateLimiterConfig {
    let bucket = |each_second: u64, burst: u64| TokenBucketConfig {
        size: each_second * REFILL_MS / 1_000,
        one_time_burst: burst,
        refill_time: REFILL_MS,
    };
    let bytes = |size: Option<ByteSize>| size.map_or(0, |size| size.0);
    RateLimiterConfig {
        bandwidth: limits.bytes_per_second.map(|limit| bucket(limit.0, bytes(limits.burst_bytes))),
        ops: limits.ops_per_second.map(|limit| bucket(limit, limits.burst_ops.unwrap_or(0))),
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetConfig {
    /// Name of the device.
    pub id: String,
    /// Name of the TAP.
    pub tap: String,
    /// The guest's MAC.
    pub mac: String,
    /// Two for each pair; left out for one pair. The TAP must be made for several pairs exactly if there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u32>,
}

/// Source of randomness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RngConfig {
    /// Name of the device.
    pub id: String,
    /// File of the host.
    pub src: PathBuf,
}

/// The serial console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SerialConfig {
    /// Always `Socket`.
    pub mode: &'static str,
    /// Where the VMM listens.
    pub socket: PathBuf,
}

/// The virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsoleConfig {
    /// Always `Off`.
    pub mode: &'static str,
}

/// The hybrid vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VsockConfig {
    /// Name of the device.
    pub id: String,
    /// The guest's context id.
    pub cid: u32,
    /// Where the VMM listens.
    pub socket: PathBuf,
}

/// What the VMM calls a disk.
#[must_use]
pub fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// The VMM's configuration for a VM.
#[must_use]
pub fn vm_config(input: &VmmInput<'_>) -> VmConfig {
    let spec = input.spec;
    let security = spec.security.unwrap_or_default();
    let hugepage_size = spec.hugepages.and_then(HugePages::bytes);
    let disks = input.paths.disks.iter().enumerate().map(|(index, disk)| DiskConfig {
        id: disk_id(index),
        path: disk.path.clone(),
        readonly: disk.readonly,
        image_type: disk.image_type,
        backing_files: disk.backing.is_some(),
        sparse: disk.discard,
        serial: disk.name.clone(),
        rate_limiter_config: disk.limits.as_ref().map(rate_limiter),
    });
    let backing = input.paths.disks.iter().filter(|_| input.landlock).filter_map(|disk| disk.backing.clone());
    let kinds = input.nics.iter().filter(|_| input.landlock).filter_map(|nic| nic.kind.clone());
    let landlock_rules = backing.chain(kinds).map(|path| LandlockRule { path, access: "r" }).collect();
    let net = input.nics.iter().enumerate().map(|(index, nic)| NetConfig {
        id: format!("net{index}"),
        tap: nic.tap.clone(),
        mac: nic.mac.clone(),
        num_queues: spec
            .nics
            .get(index)
            .map(|nic| nic.queues)
            .filter(|pairs| *pairs > 1)
            .map(|pairs| 2 * pairs),
    });
    VmConfig {
        cpus: CpusConfig {
            boot_vcpus: spec.cpus,
            max_vcpus: spec.cpus,
            kvm_hyperv: spec.os == Os::Windows,
            topology: spec.cpu_topology,
            nested: security.nested(),
            core_scheduling: match security.core_scheduling() {
                CoreScheduling::Vm => "Vm",
                CoreScheduling::Vcpu => "Vcpu",
            },
        },
        memory: MemoryConfig {
            size: spec.memory_bytes,
            hugepages: hugepage_size.is_some(),
            hugepage_size,
            reserve: hugepage_size.is_some(),
        },
        payload: payload(input),
        disks: disks.collect(),
        net: net.collect(),
        rng: RngConfig { id: "rng".to_owned(), src: PathBuf::from("/dev/urandom") },
        serial: SerialConfig { mode: "Socket", socket: input.run_dir.serial_socket() },
        console: ConsoleConfig { mode: "Off" },
        vsock: VsockConfig { id: "vsock".to_owned(), cid: GUEST_CID, socket: input.run_dir.vsock_socket() },
        pvpanic: true,
        landlock_enable: input.landlock,
        landlock_rules,
    }
}

/// The VMM takes a kernel with its command line and initramfs, or firmware alone.
fn payload(input: &VmmInput<'_>) -> PayloadConfig {
    let paths = &input.paths;
    if paths.kernel.is_none() {
        return PayloadConfig { firmware: paths.firmware.clone(), ..PayloadConfig::default() };
    }
    let own = input.spec.boot.cmdline.trim();
    let parts = [own, input.cmdline.trim()];
    let cmdline = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ");
    PayloadConfig {
        firmware: None,
        kernel: paths.kernel.clone(),
        cmdline: Some(cmdline).filter(|text| !text.is_empty()),
        initramfs: paths.initramfs.clone(),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
