//! The devices of a configuration: disks, network, vsock, consoles.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{absent, yes};

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

/// Buckets of bytes and of requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(default, skip_serializing_if = "absent")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Requests.
    #[serde(default, skip_serializing_if = "absent")]
    pub ops: Option<TokenBucketConfig>,
}

/// A bucket that is full at first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenBucketConfig {
    /// What it holds.
    pub size: u64,
    /// What there is beside it, once.
    #[serde(default, skip_serializing_if = "absent")]
    pub one_time_burst: Option<u64>,
    /// How long it takes to become full, in milliseconds.
    pub refill_time: u64,
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
    /// How fast it may be used.
    #[serde(default, skip_serializing_if = "absent")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
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
    /// What the guest frees is given back.
    #[serde(default = "yes")]
    pub sparse: bool,
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
    #[serde(default = "NetConfig::default_num_queues")]
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
    fn default_num_queues() -> usize {
        2
    }
    fn queue_size() -> u16 {
        256
    }
    fn vhost_mode() -> String {
        "Client".into()
    }
    /// Queues, two for each pair.
    pub fn num_queues(&self) -> usize {
        self.num_queues
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
pub(super) struct DebugConsoleConfig {
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
pub(super) struct RngConfig {
    #[serde(flatten)]
    pci: PciCommon,
    src: PathBuf,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { pci: PciCommon::default(), src: "/dev/urandom".into() }
    }
}
