//! What a caller writes about a VM ([`VmSpec`]) and what it becomes ([`ResolvedSpec`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::guest::{CheckSpec, ConfigureRequest, ThresholdSpec};
use crate::secret::Secret;
use crate::size::ByteSize;
use crate::token::Token;

/// The family of the guest's operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Os {
    /// Linux, booted by a kernel or by firmware.
    Linux,
    /// Windows, booted by UEFI firmware.
    Windows,
}

/// Names of the parts that a guest boots from: image names or digests, never paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BootSpec {
    /// Image of kind `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Image of kind `initramfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// Image of kind `firmware`; excludes `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Kernel command line; drover appends the network and the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// One disk of a VM: a copy of an image, or a blank one of a size. Each VM has its own; it is made when the VM is
/// created and goes with it. Or it is a volume, which stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = size_alias)]
pub struct DiskSpec {
    /// How the guest finds it, whatever the order of its disks: the serial number of the device, so that Linux has it
    /// as `/dev/disk/by-id/virtio-NAME`. At most 20 characters, another for each disk; `disk0`, `disk1` and so on if
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Token>,
    /// The image that the disk starts as. Without it the disk is blank, and has a `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// In its place: a volume of the namespace, which was there before the VM and stays when that is deleted. One VM may
    /// write to it, or many read it (`readonly`). The VM goes to the host that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Token>,
    /// Its length, a multiple of 1 MiB. That of a copy is its image's if left out, and never less. Only what is
    /// written to takes room of the host.
    #[serde(rename = "size_bytes", alias = "size", skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What a blank disk is formatted with; `none` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<DiskFs>,
    /// The label of that file system: 1 to 16 characters of `A-Za-z0-9._-`. Linux has it as
    /// `/dev/disk/by-label/LABEL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Whether the host gets back what the guest frees (its `fstrim`, or a file system with `discard`); it does if left
    /// out. `false` keeps what was ever written allocated: a full host then stops no write to a place that had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// How fast the guest may read and write it; as fast as the host can if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
}

/// How fast a guest may use a disk, reads and writes together. Who has rested for a second may use a second's worth at
/// once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DiskLimits {
    /// Bytes each second, 64 KiB at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    /// Requests each second, 10 at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_per_second: Option<u64>,
    /// Bytes beyond that limit which pass as fast as the host can, once after each start: a guest boots quickly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<ByteSize>,
    /// Requests beyond that limit, once after each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_ops: Option<u64>,
}

/// What a blank disk is formatted with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFs {
    /// Nothing: all of it reads as zeros.
    #[default]
    None,
    /// ext4, over the whole disk; the host needs `mkfs.ext4` for it.
    Ext4,
}

/// One network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicSpec {
    /// The host's network to join.
    #[serde(default = "default_network")]
    pub network: Token,
    /// Ports of the host that lead to this interface; at most 64 of a VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardSpec>,
    /// What the guest may reach by it; everything that the host's network lets through if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSpec>,
    /// How fast the guest may be by it; as fast as it can if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NicLimits>,
    /// The address of IPv4 that it has, one of the host's network that no other VM has; the next that is free if left out.
    /// Its place in the network's subnet is that of its address of IPv6 too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// Who gives the guest the interface's address.
    #[serde(default, skip_serializing_if = "NicSetup::is_usual")]
    pub setup: NicSetup,
    /// Pairs of queues, from 1 to the VM's CPUs and no more than 64: as many CPUs send and receive by it at once, each
    /// served by a thread of the host. 1 if left out.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u32,
}

const fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == one()
}

/// How fast a guest may be by an interface. What comes faster is dropped on the host, so that connections settle at the
/// limit; what a second of silence left over may be made up for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NicLimits {
    /// How fast it may send, in bits a second, from 100,000 to 100,000,000,000; frames count with their headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_bits_per_second: Option<u64>,
    /// How fast it may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_bits_per_second: Option<u64>,
}

/// Who gives a guest the address of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NicSetup {
    /// The first interface's stands on the kernel's command line (`ip=`). Where the guest has none all the same, and for
    /// further interfaces, its agent sets it over the link.
    #[default]
    Kernel,
    /// Its agent alone, over the link, also in the place of another one.
    Agent,
    /// The guest asks the host's network by DHCP; the kernel's command line tells it to (`ip=`), for the first interface.
    /// Guests with another setup are answered too if they ask, with the same address.
    Dhcp,
}

impl NicSetup {
    fn is_usual(&self) -> bool {
        *self == Self::Kernel
    }
}

/// What a guest may reach by an interface. Answers to who reached it first pass, and its network must keep its guests
/// apart (`isolate`). What `deny` names is refused, then what `allow` names passes, then `default` decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EgressSpec {
    /// What becomes of all that is not named; `allow` if left out.
    pub default: EgressDefault,
    /// What passes though the default is `deny`; at most 64 rules with those of `deny`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<EgressRule>,
    /// What is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<EgressRule>,
}

/// What becomes of that which no rule names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressDefault {
    /// It passes.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// Where to, by what protocol and to which ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressRule {
    /// An address or prefix such as `192.0.2.0/24` or `2001:db8::/32`; `all`; `private` for addresses that are not of the
    /// public internet; `metadata` for the link-local ones, and others, where clouds answer what is for the machine itself.
    /// These words mean IPv4 and IPv6.
    pub to: String,
    /// TCP or UDP only; with neither this nor `ports` all that there is of IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Ports such as `443` and ranges such as `8000-8099`, at most 16; all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
}

/// A port of the host that leads to one of the guest: by IPv4, and by IPv6 too if the interface has an address of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardSpec {
    /// What is forwarded; TCP if left out.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's port; a host forwards those of its range `forwards.ports` only.
    pub host_port: u16,
    /// The host's address, which means that kind of addresses only; all of them if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// The guest's port.
    pub guest_port: u16,
    /// From where alone it may be used, as prefixes such as `192.0.2.0/24` or `2001:db8::/32`; from everywhere if there
    /// are none. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// A protocol with ports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

fn default_network() -> Token {
    // A literal that the token grammar allows.
    Token::new("default").unwrap_or_else(|_| unreachable!())
}

/// What happens after a VM ends on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays as it is.
    #[default]
    Never,
    /// It starts again after a failure, not after the guest powered off.
    OnFailure,
    /// It starts again after any end but a user's stop.
    Always,
}

/// Restart policy with its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestartSpec {
    /// When to start again.
    pub policy: RestartPolicy,
    /// Restarts within `window_ms` after which the VM is `failed`.
    pub limit: u32,
    /// Length of the window, in milliseconds.
    pub window_ms: u64,
    /// First pause before a restart, in milliseconds; doubles with each restart in the window.
    pub backoff_ms: u64,
    /// Longest pause, in milliseconds.
    pub backoff_max_ms: u64,
}

impl Default for RestartSpec {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Never,
            limit: 5,
            window_ms: 600_000,
            backoff_ms: 1_000,
            backoff_max_ms: 60_000,
        }
    }
}

/// The guest agent: whether there is one, how long drover waits for it, what it may be asked for, and what it watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AgentSpec {
    /// The guest has an agent.
    pub enabled: bool,
    /// After a boot, how long until a silent agent is reported, in milliseconds.
    pub ready_timeout_ms: u64,
    /// Verbs of the guest that are carried out; all of them if left out. A request narrows its template's list and
    /// cannot widen it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<BTreeSet<String>>,
    /// Verbs of the guest that are refused, whatever `allow` says; those of the template too.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub deny: BTreeSet<String>,
    /// How many events the programs of the guest may publish.
    #[serde(skip_serializing_if = "AgentEventsSpec::is_empty")]
    pub events: AgentEventsSpec,
    /// From one sample of the guest's figures to the next, in milliseconds, 1,000 at least; none are taken if left
    /// out. 30,000 costs the guest nothing: the sample takes the place of the link's heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_interval_ms: Option<u64>,
    /// Programs that the agent runs again and again to see whether all is well. Those of the request and of its
    /// template go together; one of the same name takes the place of the template's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSpec>,
    /// Values of the guest that are watched. They go together with the template's as checks do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdSpec>,
}

impl AgentSpec {
    /// What it wants of the agent, to be told to it.
    #[must_use]
    pub fn settings(&self) -> ConfigureRequest {
        ConfigureRequest { checks: self.checks.clone(), thresholds: self.thresholds.clone() }
    }

    /// Whether a verb of the guest is carried out.
    #[must_use]
    pub fn allows(&self, verb: &str) -> bool {
        !self.deny.contains(verb) && self.allow.as_ref().is_none_or(|allowed| allowed.contains(verb))
    }
}

impl Default for AgentSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            ready_timeout_ms: 60_000,
            allow: None,
            deny: BTreeSet::new(),
            events: AgentEventsSpec::default(),
            metrics_interval_ms: None,
            checks: Vec::new(),
            thresholds: Vec::new(),
        }
    }
}

/// How many events the programs of a guest may publish. What is left out, and what is more, is bounded by the host
/// (`agent_events` in its configuration); what is dropped is counted and told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AgentEventsSpec {
    /// Each second, in the long run; 0 and no `burst` lets none through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// How many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Bytes of their data each second, in the long run; ten times as many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl AgentEventsSpec {
    /// It says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A small read-only disk behind the others, labelled `CIDATA`, from which cloud-init in the guest (its source NoCloud)
/// learns the VM's id, its name, the addresses of its interfaces, its keys and its user-data. It is made anew at each
/// start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SeedSpec {
    /// There is one; `false` takes away the template's.
    pub enabled: bool,
    /// The guest gets drover's agent from it at its first boot, by a boothook of its vendor-data, unless it has one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// Public SSH keys that log in as the user of the guest's image, as they stand in `authorized_keys`; at most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
}

impl Default for SeedSpec {
    fn default() -> Self {
        Self { enabled: true, agent: false, ssh_keys: Vec::new() }
    }
}

/// Where a VM may be placed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PlacementSpec {
    /// Only this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Token>,
    /// Only hosts with all of these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Only hosts that announce all of these features, beside those that the spec itself needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// How a guest's CPUs are laid out, as its kernel sees them; all multiplied are the number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuTopology {
    /// Sockets.
    pub packages: u16,
    /// Dies of a socket.
    pub dies_per_package: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Threads of a core.
    pub threads_per_core: u16,
}

impl Default for CpuTopology {
    fn default() -> Self {
        Self { packages: 1, dies_per_package: 1, cores_per_die: 1, threads_per_core: 1 }
    }
}

/// The pages of the host that a guest's memory is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// Those that all processes have; takes away the template's.
    #[serde(rename = "none")]
    None,
    /// From the host's pool of 2 MiB.
    #[serde(rename = "2MiB")]
    TwoMib,
    /// From the host's pool of 1 GiB.
    #[serde(rename = "1GiB")]
    OneGib,
}

impl HugePages {
    /// The length of one.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::TwoMib => Some(2 << 20),
            Self::OneGib => Some(1 << 30),
        }
    }
}

/// Whether the vCPUs of a guest run beside others on a core that has several threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CoreScheduling {
    /// Beside those of the same guest, and no others.
    #[default]
    Vm,
    /// Beside none: for guests whose own programs are not to find out about each other. A core then does for this guest
    /// what a thread does for others.
    Vcpu,
}

/// What of the processor a guest is given, where that is a matter of who may find out about whom. A request closes what
/// its template leaves open, and opens nothing that the template has closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecuritySpec {
    /// The guest may run VMs of its own, by virtualisation of the processor: more of the host's kernel is then within its
    /// reach. Only on hosts whose operator allows it; off if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
    /// Whose vCPUs share a core; `vm` if left out. `vcpu` goes only to hosts that can keep them apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_scheduling: Option<CoreScheduling>,
}

impl SecuritySpec {
    /// Whether the guest may run VMs.
    #[must_use]
    pub fn nested(&self) -> bool {
        self.nested.unwrap_or_default()
    }

    /// Whose vCPUs share a core.
    #[must_use]
    pub fn core_scheduling(&self) -> CoreScheduling {
        self.core_scheduling.unwrap_or_default()
    }
}

/// What a caller (or a template) says about a VM. Everything left out comes from the template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = with_aliases)]
pub struct VmSpec {
    /// The template to start from; `linux-default` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Token>,
    /// Family of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// Virtual CPUs at boot, 1 to 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// How the CPUs are laid out; if left out, one socket for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_topology: Option<CpuTopology>,
    /// Guest memory; a multiple of 1 MiB, 64 MiB at the least.
    #[serde(rename = "memory_bytes", alias = "memory", skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Memory of huge pages, which are reserved on the host: faster for guests with much of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePages>,
    /// What of the processor it is given beside its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<SecuritySpec>,
    /// What the guest boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootSpec>,
    /// Disks in the order in which the guest sees them; replaces the template's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<DiskSpec>>,
    /// Interfaces; replaces the template's. An empty list makes a VM without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
    /// What happens after an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartSpec>,
    /// The guest agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSpec>,
    /// Free text by name, for the caller's own use: at most 64 labels of 256 bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where it may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementSpec>,
    /// The seed disk; there is one too if there is `user_data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedSpec>,
    /// For cloud-init in the guest, by the seed disk: a `#cloud-config`, a script, or what else it takes; at most 16 KiB.
    /// Never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Secret>,
}

impl VmSpec {
    /// The names of its fields, those that are another name of one too.
    #[must_use]
    pub fn fields() -> &'static BTreeSet<String> {
        static FIELDS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
            let schema = schemars::schema_for!(VmSpec);
            let fields = schema.get("properties").and_then(serde_json::Value::as_object);
            fields.into_iter().flatten().map(|(name, _)| name.clone()).collect()
        });
        &FIELDS
    }
}

/// The schema takes what the reader takes.
fn with_aliases(schema: &mut schemars::Schema) {
    alias(schema, "memory_bytes", "memory");
}

fn size_alias(schema: &mut schemars::Schema) {
    alias(schema, "size_bytes", "size");
}

fn alias(schema: &mut schemars::Schema, field: &str, other: &str) {
    if let Some(fields) = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut)
        && let Some(known) = fields.get(field).cloned()
    {
        fields.insert(other.to_owned(), known);
    }
}

/// What an image is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// A bootable Linux kernel.
    Kernel,
    /// A cpio archive for the kernel.
    Initramfs,
    /// A disk, raw or qcow2.
    Disk,
    /// A file system without partitions, for a kernel that is booted directly.
    Rootfs,
    /// The content of a CD or DVD; guests only read it.
    Iso,
    /// UEFI firmware.
    Firmware,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl ImageKind {
    /// Kinds that a disk of a VM may start as.
    pub const DISKS: &[Self] = &[Self::Disk, Self::Rootfs, Self::Iso];
}

/// How an image says what stands where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Byte by byte.
    #[default]
    Raw,
    /// QCOW2 without another file behind it: a disk only, and no longer than what is written on it.
    Qcow2,
}

impl ImageFormat {
    /// Whether it is the format of all that is no disk.
    #[must_use]
    pub const fn is_raw(&self) -> bool {
        matches!(self, Self::Raw)
    }
}

/// An image as it was when the VM was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedImage {
    /// The name that the spec used.
    pub name: String,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// What it is good for.
    pub kind: ImageKind,
    /// Its length.
    pub size_bytes: u64,
    /// Its format.
    #[serde(default, skip_serializing_if = "ImageFormat::is_raw")]
    pub format: ImageFormat,
    /// The length of the disk that a guest sees, where its format says another than the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
}

impl ResolvedImage {
    /// An image whose file is its content.
    #[must_use]
    pub const fn raw(name: String, sha256: String, kind: ImageKind, size_bytes: u64) -> Self {
        Self { name, sha256, kind, size_bytes, format: ImageFormat::Raw, virtual_bytes: None }
    }

    /// The length of the disk that a guest sees.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.virtual_bytes.unwrap_or(self.size_bytes)
    }
}

/// What a resolved VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedBoot {
    /// The kernel, for a direct boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ResolvedImage>,
    /// The initramfs, for a direct boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<ResolvedImage>,
    /// The firmware, otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<ResolvedImage>,
    /// The command line before drover's own additions.
    pub cmdline: String,
}

/// A resolved disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedDisk {
    /// What the guest finds it by; of VMs that an earlier version made there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Token>,
    /// What it starts as; a blank disk has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ResolvedImage>,
    /// The volume that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Token>,
    /// Its length, if that is not its image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What a blank disk is formatted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<DiskFs>,
    /// The label of that file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The guest cannot write to it; it is then shared, not copied.
    pub readonly: bool,
    /// Whether the host gets back what the guest frees; it does if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// How fast the guest may read and write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
}

impl ResolvedDisk {
    /// Its length.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.size_bytes.or(self.image.as_ref().map(ResolvedImage::disk_bytes)).unwrap_or(0)
    }
}

/// A spec with nothing left open: what is stored, booted and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedSpec {
    /// The template that it came from.
    pub template: Token,
    /// Family of the guest.
    pub os: Os,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How they are laid out, if that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_topology: Option<CpuTopology>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// The huge pages that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePages>,
    /// What of the processor it is given, if that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<SecuritySpec>,
    /// What the guest boots.
    pub boot: ResolvedBoot,
    /// Disks in order.
    pub disks: Vec<ResolvedDisk>,
    /// Interfaces in order.
    pub nics: Vec<NicSpec>,
    /// The seed disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedSpec>,
    /// What happens after an end.
    pub restart: RestartSpec,
    /// The guest agent.
    pub agent: AgentSpec,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// Where it may run.
    #[serde(default)]
    pub placement: PlacementSpec,
}
