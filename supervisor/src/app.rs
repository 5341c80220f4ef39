//! Composition of the daemon: from a checked configuration to a running host and back.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_actors::bus::assets::AssetsConfig;
use drover_actors::bus::claims::ClaimError;
use drover_actors::bus::connect::BusConfig;
use drover_actors::bus::permissions::INBOX;
use drover_actors::chain;
use drover_actors::host::Totals;
use drover_actors::host::users::WantedUsers;
use drover_actors::hypervisor::landlock;
use drover_actors::hypervisor::launcher::{Launcher, LauncherError};
use drover_actors::hypervisor::version::{VersionError, check, find};
use drover_actors::images::{ImageError, Images};
use drover_actors::root::{Failure, HostSetup, RunningHost, StartError, start};
use drover_actors::services::{Limits, Programs};
use drover_actors::spec::{TemplateError, Templates};
use drover_actors::stream::StreamLimits;
use drover_actors::vm::disks::{AgentProgramError, agent_program};
use drover_schemas::Token;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::admin;
use crate::config::{AtShutdown, ConfigError, HostConfig};

/// How long the daemon's parts have to stop.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// The templates that are built in.
const BUILT_IN: &[(&str, &str)] = &[
    ("linux-cloud.yaml", include_str!("../../config/templates/linux-cloud.yaml")),
    ("linux-debian.yaml", include_str!("../../config/templates/linux-debian.yaml")),
    ("linux-default.yaml", include_str!("../../config/templates/linux-default.yaml")),
    ("linux-microvm.yaml", include_str!("../../config/templates/linux-microvm.yaml")),
];

/// The daemon cannot start or was lost.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration is wrong.
    #[error("the configuration cannot be used")]
    Config {
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The host has no usable name.
    #[error(
        "the system's host name {name:?} cannot be the host's name on the bus; set `host` in the configuration"
    )]
    HostName {
        /// The system's name.
        name: String,
        /// Why.
        #[source]
        source: drover_schemas::token::TokenError,
    },
    /// The hypervisor will not do.
    #[error("the hypervisor cannot be used")]
    Vmm {
        /// Why.
        #[source]
        source: VersionError,
    },
    /// The holder is not there.
    #[error(
        "the holder {path} is not there; it is built and installed with drover, see vmm.hold in the configuration"
    )]
    Hold {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The agent cannot be given to guests.
    #[error("{path} cannot be given to guests, see guest_agent in the configuration")]
    GuestAgent {
        /// As configured.
        path: PathBuf,
        /// Why.
        #[source]
        source: AgentProgramError,
    },
    /// The launcher that was asked for is not there.
    #[error("VMs cannot be started as configured")]
    Launcher {
        /// Why.
        #[source]
        source: LauncherError,
    },
    /// Templates cannot be used.
    #[error("the templates cannot be used")]
    Templates {
        /// Which and why.
        #[source]
        source: TemplateError,
    },
    /// Images cannot be used.
    #[error("the images cannot be used")]
    Images {
        /// Which and why.
        #[source]
        source: ImageError,
    },
    /// The device for TAPs cannot be opened.
    #[error(
        "{path} cannot be opened for reading and writing: run as root, or load the tun module (modprobe tun)"
    )]
    Tun {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host cannot start.
    #[error("the host cannot start")]
    Start {
        /// Why.
        #[source]
        source: Box<StartError>,
    },
    /// The local port cannot be opened.
    #[error("the port for metrics and health cannot be opened")]
    Admin {
        /// Why.
        #[source]
        source: admin::AdminError,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another installation took the host's name.
    #[error("the host's name is not its own; its VMs live on")]
    Name {
        /// Whose it is.
        #[source]
        source: Box<ClaimError>,
    },
    /// A part of the host was lost for good.
    #[error("a part of the host was lost: {reason}; its VMs live on, start the daemon again")]
    Lost {
        /// Which part.
        reason: String,
    },
}

impl AppError {
    /// Another installation has the host's name: nothing is wrong with the host itself.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        match self {
            Self::Name { .. } => true,
            Self::Start { source } => matches!(**source, StartError::Name { .. }),
            _ => false,
        }
    }
}

/// Runs a host from a configuration file until SIGTERM or SIGINT. `replace`: takes the host's name from an installation
/// that is gone for good.
///
/// # Errors
/// [`AppError`] says what is wrong and what to do.
pub async fn run(path: Option<&Path>, replace: bool) -> Result<(), AppError> {
    let config = HostConfig::load(path, std::env::vars()).map_err(|source| AppError::Config { source })?;
    let signals = |source| AppError::Signals { source };
    let mut term = signal(SignalKind::terminate()).map_err(signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(signals)?;
    run_with(config, replace, async move {
        tokio::select! {
            _ = term.recv() => info!("SIGTERM"),
            _ = int.recv() => info!("SIGINT"),
        }
    })
    .await
}

/// Runs a host until `shutdown` is over.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: HostConfig,
    replace: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AppError> {
    let admin_config = config.admin.clone();
    let at_shutdown = config.shutdown.clone();
    let setup = HostSetup { replace, ..setup(config).await? };
    info!(
        host = %setup.host,
        vmm = setup.programs.version.text,
        emulated = setup.programs.version.is_softvmm(),
        images = setup.images.len(),
        "starting"
    );
    // Boxed: whoever runs a host need not hold all that its start takes.
    let mut running =
        Box::pin(start(setup)).await.map_err(|source| AppError::Start { source: Box::new(source) })?;
    let admin = match admin_config {
        Some(admin) => {
            let served = admin::serve(
                admin.listen,
                running.services.metrics.clone(),
                running.phase.clone(),
                running.bus.clone(),
            );
            Some(served.await.map_err(|source| AppError::Admin { source })?)
        }
        None => None,
    };
    let lost = tokio::select! {
        () = shutdown => None,
        failure = running.failed() => Some(match failure {
            Failure::Part(reason) => AppError::Lost { reason },
            Failure::Name(source) => AppError::Name { source },
        }),
    };
    if let Some(failure) = &lost {
        error!(error = %chain(failure), "the host cannot go on");
    }
    if lost.is_none() && at_shutdown.vms == AtShutdown::Stop {
        info!(timeout_s = at_shutdown.timeout_s, "stopping the VMs");
        let left = running.stop_vms(Duration::from_secs(at_shutdown.timeout_s)).await;
        if left > 0 {
            warn!(vms = left, "not every VM could be stopped in time; these live on");
        }
    }
    stop(running, admin).await;
    lost.map_or(Ok(()), Err)
}

async fn stop(running: RunningHost, admin: Option<tokio::task::JoinHandle<()>>) {
    info!("stopping; VMs that are up live on");
    if let Some(admin) = admin {
        admin.abort();
    }
    if tokio::time::timeout(SHUTDOWN, running.shutdown(SHUTDOWN / 2)).await.is_err() {
        warn!("the daemon's parts did not stop in time");
    }
}

async fn setup(config: HostConfig) -> Result<HostSetup, AppError> {
    let host = host_name(&config)?;
    let programs = programs(&config).await?;
    let (images_dir, templates_dir) = (config.images(), config.templates_dir.clone());
    let (store_dir, store) = (config.image_store(), config.images.settings());
    let load = move || Images::load(&images_dir)?.with_store(&store_dir, store);
    let images = blocking(load).await.map_err(|source| AppError::Images { source })?;
    let templates = blocking(move || Templates::load(BUILT_IN.iter().copied(), templates_dir.as_deref()))
        .await
        .map_err(|source| AppError::Templates { source })?;
    if !config.networks.is_empty() {
        let path = PathBuf::from("/dev/net/tun");
        crate::doctor::open(&path).map_err(|source| AppError::Tun { path, source })?;
    }
    let quarantine = config.quarantine();
    let (state, ratio) = (config.state_dir.clone(), config.capacity.disk_ratio);
    let disk_bytes =
        blocking(move || Ok::<_, std::convert::Infallible>(disk(&state, ratio))).await.unwrap_or(0);
    let overhead_bytes = config.vmm.overhead.0;
    let (assets, bus) = (assets(&config), bus(&config, &host));
    Ok(HostSetup {
        host,
        root: config.root,
        state: config.state_dir.clone(),
        run: config.run_dir,
        disks: config.state_dir.join("disks"),
        overlays: config.disks.overlays,
        bus,
        assets,
        networks: config.networks,
        nft: "nft".into(),
        images,
        templates,
        programs,
        limits: Limits {
            vmm_overhead_bytes: overhead_bytes,
            vmm_ready_within: Duration::from_millis(config.vmm.ready_timeout_ms),
            quarantine,
            agent_events: config.agent_events.limits(),
        },
        totals: Totals {
            cpus: cpus(config.capacity.cpu_ratio),
            memory_bytes: config
                .capacity
                .memory
                .map_or_else(memory, |size| size.0)
                .saturating_sub(config.capacity.memory_reserve.0),
            overhead_bytes,
            first_uid: 0,
            uids: config.capacity.uids,
            descriptors: raise_descriptors(),
            disk_bytes,
            disk_ratio: ratio,
            forward_ports: config.capacity.forward_ports,
        },
        users: WantedUsers {
            folder: config.users_dir,
            first: config.capacity.first_uid,
            count: config.capacity.uids,
        },
        quotas: config.quotas.quotas(),
        outbox_bytes: config.events.outbox.0,
        reply_prefixes: config.reply_prefixes,
        streams: StreamLimits {
            max_memory_bytes: config.streams.max_memory.0,
            peer_lost: Duration::from_secs(config.streams.peer_timeout_s),
        },
        labels: config.labels,
        replace: false,
    })
}

/// Reads files off the runtime.
pub async fn blocking<T: Send + 'static, E: Send + 'static>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The stream of events and the buckets as this host would make them.
pub fn assets(config: &HostConfig) -> AssetsConfig {
    let mut assets = AssetsConfig::new(config.root.clone());
    assets.events_max_age = Duration::from_secs(config.events.max_age_hours * 3600);
    assets.events_max_bytes = i64::try_from(config.events.max_size.0).unwrap_or(i64::MAX);
    assets.replicas = config.events.replicas;
    assets.duplicate_window = config.events.duplicate_window_ms.map(Duration::from_millis);
    assets
}

/// How the host of this name comes to the bus.
pub fn bus(config: &HostConfig, host: &Token) -> BusConfig {
    let mut bus = config.bus.clone();
    if bus.name.is_empty() {
        bus.name = format!("drover host {host}");
    }
    if bus.inbox_prefix.is_empty() {
        // What `drover bus config` lets a host of this name listen to; without restrictions it is as good as any.
        bus.inbox_prefix = format!("{INBOX}.{host}");
    }
    bus
}

/// The name that the configuration gives the host, or that of the machine.
///
/// # Errors
/// That of the machine cannot be a name on the bus.
pub fn host_name(config: &HostConfig) -> Result<Token, AppError> {
    if let Some(host) = &config.host {
        return Ok(host.clone());
    }
    let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let short = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    Token::new(&short).map_err(|source| AppError::HostName { name, source })
}

async fn programs(config: &HostConfig) -> Result<Programs, AppError> {
    let vmm_error = |source| AppError::Vmm { source };
    let search = std::env::var("PATH").unwrap_or_default();
    let vmm = find(std::slice::from_ref(&config.vmm.path), &search).map_err(vmm_error)?;
    let version = check(&vmm).await.map_err(vmm_error)?;
    let hold = holder(config);
    if !hold.is_file() {
        return Err(AppError::Hold { path: hold });
    }
    if let Some(path) = &config.guest_agent {
        agent_program(path).map_err(|source| AppError::GuestAgent { path: path.clone(), source })?;
    }
    // The stand-in starts programs of its own, which the rules would stop.
    let landlock = config.vmm.confine
        && !version.is_softvmm()
        && landlock::abi().is_some_and(|abi| abi >= landlock::NEEDED);
    let launcher = Launcher::choose(config.vmm.launcher, &search);
    Ok(Programs {
        landlock,
        hold,
        launcher: launcher.map_err(|source| AppError::Launcher { source })?,
        vmm,
        version,
        extra_args: config.vmm.args.clone(),
        confine: config.vmm.confine,
        nested: config.vmm.nested,
        paths: config.vmm.paths.clone(),
        agent: config.guest_agent.clone(),
    })
}

/// The holder's program: as configured, or beside this one.
pub fn holder(config: &HostConfig) -> PathBuf {
    config.vmm.hold.clone().unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap_or_default();
        own.with_file_name("drover-hold")
    })
}

/// Lets the daemon open as many files as it is allowed to; a service gets 1,024 at first.
fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1_024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            warn!(%error, soft, "the limit of open files could not be raised");
            soft
        }
    }
}

fn cpus(ratio: f64) -> u64 {
    let physical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Checked to be between 0.1 and 1000.
    ((physical as f64) * ratio).floor().max(1.0) as u64
}

/// What the file system has for disks: what is free and what disks have taken of it already, times the ratio.
fn disk(state: &Path, ratio: f64) -> u64 {
    let taken = |dir: std::fs::ReadDir| -> u64 {
        let files = dir.flatten().filter_map(|vm| std::fs::read_dir(vm.path()).ok()).flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
    };
    let taken: u64 =
        ["disks", "volumes"].iter().map(|dir| std::fs::read_dir(state.join(dir)).map_or(0, &taken)).sum();
    // It is made when it is first needed: its parent tells as well.
    let free = state.ancestors().find_map(|dir| nix::sys::statvfs::statvfs(dir).ok());
    let free = free.map_or(0, |found| found.blocks_available() * found.fragment_size());
    (((free + taken) as f64) * ratio) as u64
}

fn memory() -> u64 {
    match nix::sys::sysinfo::sysinfo() {
        Ok(info) => info.ram_total(),
        Err(error) => {
            warn!(error = %chain(&error), "the host's memory is not known");
            0
        }
    }
}
