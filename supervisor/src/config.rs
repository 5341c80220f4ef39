//! The daemon's configuration: a YAML file, overridden by the environment, read without side effects.
//!
//! A variable `DROVER_CONFIG_<path>` replaces one value; `__` separates the levels, as in
//! `DROVER_CONFIG_bus__urls='["nats://10.0.0.1:4222"]'`. Its value is YAML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_actors::bus::connect::BusConfig;
use drover_actors::host::PortRange;
use drover_actors::hypervisor::launcher::LauncherChoice;
use drover_actors::network::NetworkDef;
use drover_schemas::Token;
use drover_schemas::size::ByteSize;
use drover_schemas::stream::PEER_LOST_MS;
use serde::Deserialize;
use serde_json::Value;

use crate::telemetry::LogConfig;

mod images;
mod quotas;

pub use images::ImagesConfig;
pub use quotas::{AgentEventsConfig, QuotasConfig};

/// Where the configuration is looked for if nobody says.
pub const DEFAULT_PATH: &str = "/etc/drover/host.yaml";
/// Prefix of variables that override.
pub const ENV_PREFIX: &str = "DROVER_CONFIG_";
/// Room for one command with its three channels.
const MIN_STREAM_MEMORY: u64 = 4 << 20;

/// Configuration of a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Name of the host on the bus; the system's host name if left out.
    pub host: Option<Token>,
    /// First token of every subject.
    pub root: Token,
    /// The journal, images and disks.
    pub state_dir: PathBuf,
    /// Run directories of VMs; keep it short, socket paths have 108 bytes at most.
    pub run_dir: PathBuf,
    /// Where the installations on this machine say which Unix users are theirs.
    pub users_dir: PathBuf,
    /// Images with their manifest; `images` below `state_dir` if left out.
    pub images_dir: Option<PathBuf>,
    /// Images that are imported.
    pub images: ImagesConfig,
    /// Templates; the built-in ones if left out.
    pub templates_dir: Option<PathBuf>,
    /// The bus.
    pub bus: BusConfig,
    /// The stream of events, where this host is the first to make it.
    pub events: EventsConfig,
    /// Networks of the host.
    pub networks: Vec<NetworkDef>,
    /// The hypervisor.
    pub vmm: VmmConfig,
    /// The program of the agent that guests are given whose spec asks for it (`seed.agent`); none are if left out.
    pub guest_agent: Option<PathBuf>,
    /// How VMs' disks are made.
    pub disks: DisksConfig,
    /// What may be promised.
    pub capacity: CapacityConfig,
    /// What one namespace may have of it.
    pub quotas: QuotasConfig,
    /// Events that the programs of one guest may publish.
    pub agent_events: AgentEventsConfig,
    /// Commands, consoles and files that clients have open.
    pub streams: StreamsConfig,
    /// What becomes of VMs when the daemon is stopped in order.
    pub shutdown: ShutdownConfig,
    /// The local port for metrics and health; none if left out.
    pub admin: Option<AdminConfig>,
    /// Logs and traces.
    pub log: LogConfig,
    /// Prefixes of reply subjects beside `_INBOX` and `_R_.`.
    pub reply_prefixes: Vec<String>,
    /// Labels of the host: VMs may ask for them in `spec.placement.labels`.
    pub labels: BTreeMap<String, String>,
}

/// Retention of events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// How long they are kept, in hours.
    pub max_age_hours: u64,
    /// How much is kept.
    pub max_size: ByteSize,
    /// Copies of each asset in a cluster.
    pub replicas: usize,
    /// The server's window for duplicates, in milliseconds; its default if left out. Exactly-once does not
    /// depend on it.
    pub duplicate_window_ms: Option<u64>,
    /// How much may wait in the journal for the bus: agents' events are refused above 80 % of it, verbs that change
    /// a VM above 95 %.
    pub outbox: ByteSize,
}

/// The hypervisor.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmmConfig {
    /// The program; looked up in `PATH` if it is a bare name.
    pub path: PathBuf,
    /// The holder; beside the `drover` program if left out.
    pub hold: Option<PathBuf>,
    /// Who starts the holders of VMs.
    pub launcher: LauncherChoice,
    /// Added to the VMM's command line.
    pub args: Vec<String>,
    /// Memory of a VMM beside its guest's.
    pub overhead: ByteSize,
    /// How long its API may take to come up, in milliseconds.
    pub ready_timeout_ms: u64,
    /// Each VMM runs as a user of its own, without capabilities, in a root with nothing but what its VM needs.
    /// Switch it off only where namespaces cannot be had.
    pub confine: bool,
    /// VMs may have the processor's virtualisation if their spec asks for it (`security.nested`).
    pub nested: bool,
    /// What a confined VMM may read beside its program, its VM's files and the system's libraries.
    pub paths: Vec<PathBuf>,
}

/// How VMs' disks are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DisksConfig {
    /// Where the file system shares no blocks, a disk of an imported image lies over that instead of being a copy of it.
    pub overlays: bool,
}

impl Default for DisksConfig {
    fn default() -> Self {
        Self { overlays: true }
    }
}

/// What may be promised.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Virtual CPUs for each physical one.
    pub cpu_ratio: f64,
    /// Room that is promised for disks, for each byte that there is: above 1 where disks share most of their
    /// blocks or stay emptier than they are long.
    pub disk_ratio: f64,
    /// Memory that there is, where it is another than the machine's: with swap behind it, or guests that share it.
    pub memory: Option<ByteSize>,
    /// Memory that is not promised.
    pub memory_reserve: ByteSize,
    /// First Unix user of the range for VMs; if left out, from 200000 on the first range that no other installation on
    /// this machine has.
    pub first_uid: Option<u32>,
    /// How many users the range has.
    pub uids: u32,
    /// How long addresses and users rest after use, in seconds.
    pub quarantine_s: u64,
    /// Ports of the host that VMs may have forwarded, as `first-last`; none if left out.
    pub forward_ports: Option<PortRange>,
}

/// Commands, consoles and files that clients have open.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamsConfig {
    /// The memory of all of them. A file takes 1 MiB at most, a console 1.1 MiB, a command 2.1 MiB.
    pub max_memory: ByteSize,
    /// How long a client that is not heard keeps its stream, in seconds.
    pub peer_timeout_s: u64,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self { max_memory: ByteSize::mib(512), peer_timeout_s: PEER_LOST_MS / 1_000 }
    }
}

/// What becomes of VMs when the daemon is stopped in order.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// What becomes of them.
    pub vms: AtShutdown,
    /// How long stopping all of them may take, in seconds; give the service manager as long.
    pub timeout_s: u64,
}

/// What becomes of VMs when the daemon is stopped in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtShutdown {
    /// They run on, and the next daemon adopts them.
    Keep,
    /// They are stopped, and start again with the next daemon.
    Stop,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { vms: AtShutdown::Keep, timeout_s: 90 }
    }
}

/// The local port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port; keep it on loopback.
    pub listen: std::net::SocketAddr,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            host: None,
            root: token("drover"),
            state_dir: "/var/lib/drover".into(),
            run_dir: "/run/drover".into(),
            users_dir: "/var/lib/drover-users".into(),
            images_dir: None,
            images: ImagesConfig::default(),
            templates_dir: None,
            bus: BusConfig { urls: vec!["nats://127.0.0.1:4222".into()], ..BusConfig::default() },
            events: EventsConfig::default(),
            networks: Vec::new(),
            vmm: VmmConfig::default(),
            guest_agent: None,
            disks: DisksConfig::default(),
            capacity: CapacityConfig::default(),
            quotas: QuotasConfig::default(),
            agent_events: AgentEventsConfig::default(),
            streams: StreamsConfig::default(),
            shutdown: ShutdownConfig::default(),
            admin: None,
            log: LogConfig::default(),
            reply_prefixes: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            max_age_hours: 168,
            max_size: ByteSize(1 << 30),
            replicas: 1,
            duplicate_window_ms: None,
            outbox: ByteSize::mib(256),
        }
    }
}

impl Default for VmmConfig {
    fn default() -> Self {
        Self {
            path: "cloud-hypervisor".into(),
            hold: None,
            launcher: LauncherChoice::Auto,
            args: Vec::new(),
            overhead: ByteSize::mib(128),
            ready_timeout_ms: 10_000,
            confine: true,
            nested: false,
            paths: Vec::new(),
        }
    }
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self {
            cpu_ratio: 4.0,
            disk_ratio: 1.0,
            memory: None,
            memory_reserve: ByteSize(1 << 30),
            first_uid: None,
            uids: 10_000,
            quarantine_s: 60,
            forward_ports: None,
        }
    }
}

fn token(text: &str) -> Token {
    Token::new(text).unwrap_or_else(|_| unreachable!("a literal of the token grammar"))
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{path} is not valid YAML")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A variable is not YAML or names no place.
    #[error("the variable {name} cannot be applied: {reason}")]
    Variable {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The values are not a configuration.
    #[error("the configuration {origin} is not valid; config/host.yaml explains every key")]
    Invalid {
        /// Where they came from.
        origin: String,
        /// Which and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value is out of range.
    #[error("{key}: {reason}")]
    Range {
        /// Which.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

impl HostConfig {
    /// Reads `path`, or the default file if it is there, and applies `variables`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, line and key.
    pub fn load(
        path: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let file = path.map(Path::to_path_buf).or_else(|| {
            let default = PathBuf::from(DEFAULT_PATH);
            default.is_file().then_some(default)
        });
        let text = match &file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?,
            None => String::new(),
        };
        let origin = file.unwrap_or_else(|| "(built in)".into());
        Self::parse(&origin, &text, variables)
    }

    /// Reads a text; see [`HostConfig::load`].
    ///
    /// # Errors
    /// As [`HostConfig::load`].
    pub fn parse(
        origin: &Path,
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let overrides: Vec<(String, String)> =
            variables.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        let parse_error = |source: serde_saphyr::Error| ConfigError::Parse {
            path: origin.to_owned(),
            source: source.into(),
        };
        let config: Self = if text.trim().is_empty() && overrides.is_empty() {
            Self::default()
        } else if overrides.is_empty() {
            // Straight into the types, so that errors name the line.
            serde_saphyr::from_str(text).map_err(parse_error)?
        } else {
            let mut value: Value = if text.trim().is_empty() {
                Value::Object(serde_json::Map::new())
            } else {
                serde_saphyr::from_str(text).map_err(parse_error)?
            };
            for (name, text) in overrides {
                apply(&mut value, &name, &text)?;
            }
            serde_json::from_value(value).map_err(|source| ConfigError::Invalid {
                origin: origin.display().to_string(),
                source: source.into(),
            })?
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let CapacityConfig { cpu_ratio, disk_ratio, .. } = self.capacity;
        for (key, ratio) in [("capacity.cpu_ratio", cpu_ratio), ("capacity.disk_ratio", disk_ratio)] {
            if !(0.1..=1_000.0).contains(&ratio) {
                let reason = format!("{ratio} is not possible; use 0.1 to 1000");
                return Err(ConfigError::Range { key, reason });
            }
        }
        let long = |text: &String| text.is_empty() || text.len() > 256;
        if self.labels.len() > 64 || self.labels.iter().any(|(key, value)| long(key) || long(value)) {
            let reason = "at most 64 labels, with names and values of 1 to 256 bytes".to_owned();
            return Err(ConfigError::Range { key: "labels", reason });
        }
        if self.shutdown.timeout_s < 15 {
            let reason = "VMs that do not go by themselves need 10 s to be forced; use 15 or more".to_owned();
            return Err(ConfigError::Range { key: "shutdown.timeout_s", reason });
        }
        if self.streams.max_memory.0 < MIN_STREAM_MEMORY {
            let reason = "not even one command fits; use 4MiB or more".to_owned();
            return Err(ConfigError::Range { key: "streams.max_memory", reason });
        }
        if self.streams.peer_timeout_s == 0 {
            let reason = "clients could not be heard in time; use 1 or more, 60 is usual".to_owned();
            return Err(ConfigError::Range { key: "streams.peer_timeout_s", reason });
        }
        if self.capacity.first_uid.is_some_and(|first| first < 1_000) {
            let reason = "users below 1000 belong to the system; use 1000 or more".to_owned();
            return Err(ConfigError::Range { key: "capacity.first_uid", reason });
        }
        if self.bus.urls.is_empty() {
            let reason = "name at least one server, such as nats://127.0.0.1:4222".to_owned();
            return Err(ConfigError::Range { key: "bus.urls", reason });
        }
        Ok(())
    }

    /// Where imported images are.
    #[must_use]
    pub fn image_store(&self) -> PathBuf {
        self.images.store_dir.clone().unwrap_or_else(|| self.state_dir.join("store"))
    }

    /// Where the host's own images are.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.images_dir.clone().unwrap_or_else(|| self.state_dir.join("images"))
    }

    /// How long addresses and users rest.
    #[must_use]
    pub const fn quarantine(&self) -> Duration {
        Duration::from_secs(self.capacity.quarantine_s)
    }
}

fn apply(value: &mut Value, name: &str, text: &str) -> Result<(), ConfigError> {
    let error = |reason: String| ConfigError::Variable { name: name.to_owned(), reason };
    let new: Value = serde_saphyr::from_str(text).map_err(|e| error(e.to_string()))?;
    let mut place = value;
    for key in name.trim_start_matches(ENV_PREFIX).split("__") {
        let Value::Object(map) = place else {
            return Err(error(format!("{key:?} lies below a value that has no keys")));
        };
        place = map.entry(key.to_owned()).or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    *place = new;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<HostConfig, ConfigError> {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        HostConfig::parse(Path::new("host.yaml"), text, variables)
    }

    #[test]
    fn the_shipped_file_is_valid_and_says_what_the_defaults_are() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/host.yaml")).unwrap();
        let shipped = parse(&text, &[]).unwrap();
        let default = HostConfig::default();
        assert_eq!(shipped.state_dir, default.state_dir);
        assert_eq!(shipped.capacity.cpu_ratio, default.capacity.cpu_ratio);
        assert_eq!(shipped.vmm.overhead, default.vmm.overhead);
        assert_eq!(shipped.streams.max_memory, default.streams.max_memory);
        assert_eq!(shipped.streams.peer_timeout_s, default.streams.peer_timeout_s);
        assert_eq!(shipped.shutdown.vms, default.shutdown.vms);
        assert_eq!(shipped.quotas.quotas(), default.quotas.quotas());
        assert_eq!(shipped.agent_events.limits(), default.agent_events.limits());
        assert_eq!(shipped.events.outbox, default.events.outbox);
        assert_eq!(shipped.shutdown.timeout_s, default.shutdown.timeout_s);
    }

    #[test]
    fn the_environment_overrides_one_value_at_a_time() {
        let config = parse(
            "bus:\n  urls: [nats://a:1]\n",
            &[
                ("DROVER_CONFIG_bus__urls", "[\"nats://b:2\"]"),
                ("DROVER_CONFIG_capacity__cpu_ratio", "2"),
                ("OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.bus.urls, ["nats://b:2"]);
        assert_eq!(config.capacity.cpu_ratio, 2.0);
        assert!(matches!(
            parse("host: a", &[("DROVER_CONFIG_host__x", "1")]),
            Err(ConfigError::Variable { .. })
        ));
    }

    #[test]
    fn a_broken_file_names_the_line_and_a_typing_error_the_key() {
        let error = parse("state_dir: [\n", &[]).unwrap_err();
        assert!(
            drover_actors::chain(&error).to_string().contains("line"),
            "{}",
            drover_actors::chain(&error)
        );
        let error = parse("state_dirr: /x\n", &[]).unwrap_err();
        assert!(drover_actors::chain(&error).to_string().contains("state_dirr"));
        let error = parse("capacity: {cpu_ratio: 0}", &[]).unwrap_err();
        assert!(error.to_string().contains("0.1 to 1000"));
    }
}
