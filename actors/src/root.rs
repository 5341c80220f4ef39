//! The root: starts everything in order, supervises it, and stops it in reverse.
//!
//! Order of start: journal · bus · network · manager with adoption · subscriptions. The bus may be
//! absent: the host then adopts its VMs, keeps them, and subscribes when the bus is there.

mod background;
mod error;
mod orphans;
mod subnets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::event::HostEventKind;
use drover_schemas::subject::{Family, PoolVerb, Subjects};
use drover_schemas::{ErrorBody, ErrorCode, InstallationId, RequestId, Token};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

pub use self::error::StartError;
use crate::alarms::{Alarms, Seen};
use crate::audit::Audit;
use crate::bus::assets::AssetsConfig;
use crate::bus::claims::{ClaimError, Claims};
use crate::bus::connect::{Bus, BusConfig, connect};
use crate::bus::egress::{self, EgressConfig};
use crate::bus::lanes::Lanes;
use crate::chain;
use crate::directory::Directory;
use crate::fleet::fence::Fence;
use crate::fleet::forget::forget;
use crate::fleet::inventory::Inventory;
use crate::fleet::quarantine::{self, Quarantine};
use crate::fleet::states::States;
use crate::host::users::{self, WantedUsers};
use crate::host::{HostState, MadeNetworks, Totals};
use crate::host_log::{HostLog, HostNote};
use crate::hypervisor::cgroup::Cgroups;
use crate::hypervisor::notify::NotifySocket;
use crate::hypervisor::pidfd;
use crate::hypervisor::run_dir::RunRoot;
use crate::images::Images;
use crate::images::fleet::FleetImages;
use crate::ingress::request::ReplyPolicy;
use crate::journal::{self, Batch, JournalConfig, JournalHandle, Op, OutboxLimits, Snapshot};
use crate::manager::{Manager, ManagerArgs, ManagerMsg};
use crate::mended::Mended;
use crate::metrics::Metrics;
use crate::network::{NetworkConfig, NetworkDef, NetworkHandle};
use crate::orphans::label;
use crate::quota::{EventBudget, Quotas};
use crate::restored;
use crate::router::{HostPhase, Router};
use crate::samples::guest::GuestSamples;
use crate::service::ServiceMsg;
use crate::services::{Limits, Programs, Services, Shared, now_ms};
use crate::spec::Templates;
use crate::stream::budget::Budget;
use crate::stream::{StreamLimits, Streams};
use crate::vm::disks::volumes;
use crate::vm::message::VmMsg;

/// Everything that a host is started with, checked.
#[derive(Debug)]
pub struct HostSetup {
    /// Name of the host.
    pub host: Token,
    /// First token of every subject.
    pub root: Token,
    /// The journal's folder.
    pub state: PathBuf,
    /// Where VMs have their run directories.
    pub run: PathBuf,
    /// Where VMs have their disks.
    pub disks: PathBuf,
    /// Disks may lie over their images.
    pub overlays: bool,
    /// The control connection; the bulk connection is alike.
    pub bus: BusConfig,
    /// JetStream assets.
    pub assets: AssetsConfig,
    /// Networks.
    pub networks: Vec<NetworkDef>,
    /// The `nft` program.
    pub nft: PathBuf,
    /// Images.
    pub images: Images,
    /// Templates.
    pub templates: Templates,
    /// Programs.
    pub programs: Programs,
    /// Limits.
    pub limits: Limits,
    /// What may be promised; the users are those that are claimed.
    pub totals: Totals,
    /// The users that VMs are to have.
    pub users: WantedUsers,
    /// What a namespace may have of it.
    pub quotas: Quotas,
    /// What counts as a full outbox, in bytes.
    pub outbox_bytes: u64,
    /// Prefixes of reply subjects beside the usual ones.
    pub reply_prefixes: Vec<String>,
    /// What streams may take.
    pub streams: StreamLimits,
    /// Labels of the host, for placement.
    pub labels: BTreeMap<String, String>,
    /// Take the host's name from an installation that is gone for good, and free the names of its VMs.
    pub replace: bool,
}

/// The root actor.
#[derive(Debug)]
pub struct Root;

/// The state of the root.
#[derive(Debug)]
pub struct RootState {
    failed: mpsc::Sender<Failure>,
}

/// Why a host cannot go on.
#[derive(Debug)]
pub enum Failure {
    /// A part of it was lost.
    Part(String),
    /// Another installation has its name.
    Name(Box<ClaimError>),
}

impl Actor for Root {
    type Msg = ();
    type State = RootState;
    type Arguments = mpsc::Sender<Failure>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        failed: Self::Arguments,
    ) -> Result<RootState, ActorProcessingErr> {
        Ok(RootState { failed })
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let reason = match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                Some(format!("{:?} failed: {error}", cell.get_name()))
            }
            SupervisionEvent::ActorTerminated(..)
            | SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_) => None,
        };
        // The manager and the network hold the host together: without one of them the daemon ends and
        // is started again. Every VM lives on.
        if let Some(reason) = reason {
            // The first one is enough.
            let _ = state.failed.try_send(Failure::Part(reason));
        }
        Ok(())
    }
}

/// A host that runs.
#[derive(Debug)]
pub struct RunningHost {
    /// What the host's parts share.
    pub services: Shared,
    /// How the bus stands.
    pub bus: Bus,
    /// What the daemon is doing.
    pub phase: watch::Receiver<HostPhase>,
    root: ActorRef<()>,
    manager: ActorRef<ManagerMsg>,
    network: ActorRef<crate::network::NetworkMsg>,
    parts: Vec<ActorRef<ServiceMsg>>,
    directory: Arc<Directory>,
    failed: mpsc::Receiver<Failure>,
}

/// Starts a host.
///
/// # Errors
/// [`StartError`]; nothing of any VM was touched.
pub async fn start(setup: HostSetup) -> Result<RunningHost, StartError> {
    let (journal, snapshot) = open_journal(&setup).await?;
    let installation = journal.installation();
    for row in snapshot.vms.iter().filter(|row| !row.owned) {
        journal.hold_events(row.vm_id);
    }
    let bus_error = |source| StartError::Bus { source: Box::new(source) };
    let bus = connect(&setup.bus).await.map_err(bus_error)?;
    let bulk_config = BusConfig { name: format!("{} bulk", setup.bus.name), ..setup.bus.clone() };
    let bulk = connect(&bulk_config).await.map_err(bus_error)?;
    let front_config = BusConfig { name: format!("{} front", setup.bus.name), ..setup.bus.clone() };
    let front = connect(&front_config).await.map_err(bus_error)?;
    let lanes = Lanes::new(setup.bus.clone(), &bus, front, &bulk);
    let quotas = Arc::new(setup.quotas);
    let run_error = |source| StartError::Run { path: setup.run.clone(), source };
    let run_root = RunRoot::new(&setup.run).map_err(run_error)?;
    run_root.create().map_err(run_error)?;
    let path = setup.state.clone();
    let load_error =
        |source: journal::JournalError| StartError::Load { path: path.clone(), source: Box::new(source) };
    let events_stream = setup.assets.events_stream();
    let fleet_images = FleetImages::new(&bus, &bulk, &setup.assets.images_bucket());
    let claims = Claims::new(async_nats::jetstream::new(bus.client.clone()), &setup.assets);
    let states = States::new(async_nats::jetstream::new(bus.client.clone()), &setup.assets.state_bucket());
    let hosts_bucket = setup.assets.hosts_bucket();
    take_name(&bus, &claims, &states, &setup.host, installation, setup.replace).await?;
    let subjects = Subjects::new(setup.root);
    let js = async_nats::jetstream::new(bus.client.clone());
    let told = restored::Bus { js, claims: &claims, subjects: &subjects, stream: &events_stream };
    let (restored, snapshot) =
        restored::if_restored(&setup.state, &journal, &told, &setup.host, snapshot).await?;
    let (orphans, snapshot) = orphans::find(run_root.clone(), installation, snapshot).await;
    let in_use = snapshot.uids.iter().map(|row| row.uid).chain(snapshot.vms.iter().map(|row| row.uid));
    let claimed =
        users::claim_in_turn(installation, setup.state.clone(), setup.users, in_use.collect()).await?;
    info!(first_uid = claimed.first, uids = claimed.count, "users for VMs");
    let totals = Totals { first_uid: claimed.first, uids: claimed.count, ..setup.totals };
    let who = (&setup.host, installation);
    let made = journal.networks().map_err(load_error)?;
    let networks = with_made(setup.networks, &made);
    let networks = subnets::resolve((&bus, &setup.assets), &claims, &journal, who, networks).await?;
    let notify = NotifySocket::bind(&run_root).map_err(|source| StartError::Notify { source })?;
    let state = HostState::new(installation, totals, Arc::clone(&quotas), &networks, &snapshot)
        .map_err(|source| StartError::Subnet { source })?;
    let folder = volumes::folder(&setup.disks);
    let found = tokio::task::spawn_blocking(move || volumes::found(&folder)).await;
    for (namespace, name, size) in found.unwrap_or_default() {
        state.volumes().found(namespace, name, size);
    }
    state.set_draining(journal.draining().map_err(load_error)?);
    let (failing, failed) = mpsc::channel(4);
    let (root, _) = Actor::spawn(Some("root".into()), Root, failing.clone()).await.map_err(actor("root"))?;
    let network_config = NetworkConfig { installation, networks, nft: setup.nft };
    let boot = pidfd::boot_id().map_err(|source| StartError::Boot { source })?;
    let last_boot = journal.last_boot().map_err(load_error)?;
    let rebooted = last_boot.is_some_and(|last| last != boot);
    let network =
        NetworkHandle::spawn(network_config, Some(&root.get_cell())).await.map_err(actor("network"))?;
    let nets = orphans::nets(&run_root, &orphans, &snapshot, rebooted);
    let mended =
        network.restore(nets).await.map_err(|source| StartError::Network { source: Box::new(source) })?;
    let (open, gate) = watch::channel(false);
    let egress_config = EgressConfig { gate, ..EgressConfig::new(setup.assets.clone()) };
    let (egress, reports) = egress::start(journal.clone(), bus.clone(), egress_config);
    let log = HostLog::start(journal.clone(), subjects.clone(), setup.host.clone());
    let audit = Audit::start(journal.clone(), subjects.clone(), setup.host.clone());
    let metrics = Metrics::default();
    let policy = ReplyPolicy::new(&setup.reply_prefixes);
    let services = Arc::new(Services {
        host: setup.host,
        installation,
        subjects,
        alarms: Alarms::new(log.clone(), metrics.clone()),
        log,
        audit: audit.clone(),
        client: bus.client.clone(),
        streams: Streams {
            bulk,
            policy: policy.clone(),
            audit,
            budget: Budget::new(setup.streams.max_memory_bytes),
            peer_lost: setup.streams.peer_lost,
        },
        lanes,
        journal,
        egress,
        claims,
        network: network.clone(),
        images: setup.images,
        fleet_images,
        templates: setup.templates,
        run_root,
        disks: setup.disks,
        overlays: setup.overlays,
        backups: setup.state.join("backups"),
        not_imported: std::sync::Mutex::default(),
        made_networks: MadeNetworks::new(made),
        cgroups: Cgroups::open(installation, &setup.programs.launcher),
        programs: setup.programs,
        limits: setup.limits,
        state,
        budget: EventBudget::new(quotas),
        seen: Seen::default(),
        metrics,
        events_stream,
        labels: setup.labels,
        inventory: Inventory::default(),
        states,
        fence: Fence::new(&bus, open),
        guests: GuestSamples::default(),
        quarantined: Quarantine::default(),
    });
    let (quarantined, vms): (Vec<_>, Vec<_>) =
        snapshot.vms.iter().cloned().partition(|row| row.quarantined.is_some());
    for row in &quarantined {
        quarantine::keep(&services, row);
    }
    let directory = Arc::new(Directory::default());
    for row in &vms {
        directory.insert(row);
    }
    let args = ManagerArgs { services: services.clone(), directory: Arc::clone(&directory), rebooted };
    services.log.note(
        HostNote::new(HostEventKind::Started, "the daemon has started")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("vms", snapshot.vms.len()),
    );
    Mended::default().tell(&services, &Ok(mended));
    if let Some(report) = restored {
        let text = "the journal was restored from a backup and brought to what the bus knows";
        let note = HostNote::alarm("journal_restored", text).with("brought_up", report.brought_up);
        services.log.note(note.with("taken_out", report.taken_out.join("; ")));
    }
    let (manager, _) = Actor::spawn_linked(Some("manager".into()), Manager, args, root.get_cell())
        .await
        .map_err(actor("manager"))?;
    let (phase_tx, phase) = watch::channel(HostPhase::Adopting);
    let router =
        Router::new(services.clone(), Arc::clone(&directory), manager.clone(), policy, phase.clone());
    directory.set_router(router.clone());
    let adopted = vms.len();
    let known = snapshot.vms.iter().map(|row| row.vm_id).collect();
    match network.sweep(known).await {
        Ok(report) if !report.leftovers.is_empty() || !report.stale_elements.is_empty() => {
            warn!(?report, "things of this installation without a VM were found; they are left alone");
            let count = report.leftovers.len() + report.stale_elements.len();
            let text = "things of this installation without a VM were found; they are left alone";
            services.log.note(HostNote::alarm("leftovers", text).with("count", count));
        }
        Ok(_) => {}
        Err(failure) => warn!(error = %chain(&failure), "leftovers could not be looked for"),
    }
    // Before the services: what they find out about a VM reaches a manager that knows of it.
    for row in vms {
        let _ = manager.cast(ManagerMsg::Adopt(Box::new(row)));
    }
    let shown = Arc::clone(&directory);
    let parts = background::Parts {
        services: services.clone(),
        directory,
        router,
        bus: bus.clone(),
        phase: phase.clone(),
        manager: manager.clone(),
        notify,
        reports: tokio::sync::Mutex::new(reports),
        hosts_bucket,
        failed: failing,
    };
    let parts = background::supervise_all(&root.get_cell(), parts).await.map_err(actor("a service"))?;
    let (done, when_adopted) = oneshot::channel();
    let _ = manager.cast(ManagerMsg::WhenAdopted(done));
    let (log, journal) = (services.log.clone(), services.journal.clone());
    tokio::spawn(async move {
        let _ = when_adopted.await;
        // Only now: a daemon that is killed before this tells the next one of the reboot as well.
        if let Err(failure) = journal.commit(Batch::new().essential().with(Op::PutBoot(boot))).await {
            warn!(error = %chain(&failure), "this boot of the host could not be noted");
        }
        info!(vms = adopted, "ready");
        let note = HostNote::new(HostEventKind::Ready, "every VM was looked at and requests are taken");
        log.note(note.with("vms", adopted));
        let _ = phase_tx.send(HostPhase::Ready);
        // The phase lives as long as somebody listens.
        phase_tx.closed().await;
    });
    for orphan in orphans.into_iter().filter(|orphan| orphan.ours) {
        warn!(orphan = label(&orphan), "a VM of this installation runs without a row");
        tokio::spawn(orphans::bring_back(services.clone(), Arc::clone(&shown), manager.clone(), orphan));
    }
    Ok(RunningHost {
        services,
        bus,
        phase,
        root,
        manager,
        network: network.actor().clone(),
        parts,
        directory: shown,
        failed,
    })
}

/// Takes the name of the host before anything else is done under it. Without a bus the host starts all the same, and
/// learns later whether the name is its own.
async fn take_name(
    bus: &Bus,
    claims: &Claims,
    states: &States,
    host: &Token,
    installation: InstallationId,
    replace: bool,
) -> Result<(), StartError> {
    // One that replaces another must know; for the others a short time is enough.
    let within = if replace { NAME_WITHIN * 15 } else { NAME_WITHIN };
    let taken = async {
        bus.connected().await;
        if replace
            && claims
                .host_claim(host)
                .await
                .map_err(Err)?
                .is_some_and(|claim| claim.installation != installation)
        {
            let forgotten = forget(claims, states, host, false, RequestId::generate(), now_ms()).await;
            let reply = forgotten.map_err(Ok)?;
            warn!(%host, freed = reply.freed, "the names of the host that had this name were freed");
        }
        claims.claim_host(host, installation, now_ms()).await.map_err(Err)?;
        Ok::<(), Result<ErrorBody, ClaimError>>(())
    };
    match tokio::time::timeout(within, taken).await {
        Ok(Err(Ok(refused))) => Err(StartError::Replace(refused)),
        Ok(Err(Err(taken @ ClaimError::HostTaken { .. }))) => Err(StartError::Name { source: taken.into() }),
        Ok(Err(Err(failure))) => {
            info!(reason = %chain(&failure), "the bus does not say yet whether the host's name is its own");
            Ok(())
        }
        Err(_) if replace => {
            let text = "the bus does not answer; the host cannot be replaced without it";
            Err(StartError::Replace(ErrorBody::new(ErrorCode::Unavailable, text)))
        }
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

fn actor(actor: &'static str) -> impl Fn(ractor::SpawnErr) -> StartError {
    move |source| StartError::Actor { actor, source: Box::new(source) }
}

async fn open_journal(setup: &HostSetup) -> Result<(JournalHandle, Snapshot), StartError> {
    let path = setup.state.clone();
    let outbox = OutboxLimits { max_bytes: setup.outbox_bytes, ..OutboxLimits::default() };
    let config = JournalConfig { outbox, ..JournalConfig::new(&path) };
    let opened = tokio::task::spawn_blocking(move || match journal::open(&config) {
        Ok(journal) => match journal.load() {
            Ok(snapshot) => Ok((journal, snapshot)),
            Err(source) => Err(StartError::Load { path, source: Box::new(source) }),
        },
        Err(source) => Err(StartError::Journal { path, source: Box::new(source) }),
    });
    let (journal, snapshot) = match opened.await {
        Ok(opened) => opened?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    for row in &snapshot.unreadable {
        error!(
            table = row.table,
            key = row.key,
            reason = row.reason,
            "a row of the journal cannot be read and is left alone"
        );
    }
    Ok((journal, snapshot))
}

/// The networks of the configuration, and those that verbs made.
fn with_made(mut networks: Vec<NetworkDef>, made: &[NetworkDef]) -> Vec<NetworkDef> {
    for def in made {
        if networks.iter().any(|other| other.name == def.name) {
            warn!(network = %def.name, "a network of this name was made by a verb: the one of the configuration counts");
        } else {
            networks.push(def.clone());
        }
    }
    networks
}

/// How long a start waits for the bus to say whose the host's name is.
const NAME_WITHIN: Duration = Duration::from_secs(1);
/// How long what the daemon does beside its VMs has to end.
const PARTS_TAKE: Duration = Duration::from_secs(1);
/// How long a stop waits for the bus to forget that the host lives.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the audit has to reach the journal when the daemon stops.
const AUDIT_TAKES: Duration = Duration::from_secs(2);
/// What is kept of the time for stopping VMs to force those that do not go by themselves.
const FORCE_TAKES: Duration = Duration::from_secs(10);
/// Pause between two looks at the VMs that are being stopped.
const STOP_LOOK: Duration = Duration::from_millis(100);

impl RunningHost {
    /// Waits until the host cannot go on; answers why.
    pub async fn failed(&mut self) -> Failure {
        match self.failed.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Waits until every VM of the journal was adopted.
    pub async fn ready(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|p| *p != HostPhase::Adopting).await;
    }

    /// Stops every VM that is up, and takes no new ones. Each has until shortly before `deadline` to go by itself
    /// and is forced then. Answers how many are still up when it is over.
    pub async fn stop_vms(&self, deadline: Duration) -> usize {
        // Not in the journal: it holds for this daemon only.
        self.services.state.set_draining(true);
        let note = HostNote::new(HostEventKind::Stopping, "the daemon stops its VMs");
        self.services.log.note_soon(note).await;
        let until = Instant::now() + deadline;
        loop {
            let grace_ms = until.duration_since(Instant::now()).saturating_sub(FORCE_TAKES).as_millis();
            let grace_ms = u64::try_from(grace_ms).unwrap_or(u64::MAX);
            let mut up = 0;
            for slot in self.directory.all() {
                let Some(actor) = slot.actor() else { continue };
                if slot.status().await.is_some_and(|vm| vm.state.holds_runtime()) {
                    up += 1;
                    // Once more changes nothing, unless somebody has started it meanwhile.
                    let _ = actor.cast(VmMsg::HostStopping { grace_ms });
                }
            }
            if up == 0 || Instant::now() >= until {
                return up;
            }
            tokio::time::sleep(STOP_LOOK).await;
        }
    }

    /// Stops the daemon's parts in order within `deadline`. VMs that are up live on.
    pub async fn shutdown(self, deadline: Duration) {
        for part in &self.parts {
            part.stop(None);
        }
        // One that is in the middle of saying that the host lives would say it after it has left.
        let ended = futures_util::future::join_all(self.parts.iter().map(|part| part.wait(Some(PARTS_TAKE))));
        if ended.await.iter().any(Result::is_err) {
            warn!("a part of the host did not stop in time");
        }
        if self.bus.state.borrow().connected {
            let leave = self.services.claims.leave(&self.services.host, self.services.installation);
            if !matches!(tokio::time::timeout(LEAVE, leave).await, Ok(Ok(()))) {
                info!("the row of this host was not taken away; it goes by itself");
            }
        }
        let note = HostNote::new(HostEventKind::Stopping, "the daemon stops; its VMs run on");
        self.services.log.note_soon(note).await;
        self.manager.stop(None);
        if self.manager.wait(Some(deadline)).await.is_err() {
            warn!("the manager did not stop in time");
        }
        if tokio::time::timeout(AUDIT_TAKES, self.services.audit.settled()).await.is_err() {
            warn!("the last requests are not in the audit");
        }
        self.services.egress.stop();
        self.network.stop(None);
        // Refused while a VM lives in it; empty, it is not left behind.
        let _ = self.services.cgroups.remove_base();
        self.root.stop(None);
        let _ = self.root.wait(Some(Duration::from_secs(1))).await;
        let flushed = async { (self.services.lanes.flush().await, self.services.client.flush().await) };
        let _ = tokio::time::timeout(Duration::from_secs(2), flushed).await;
    }
}

/// The subjects of registries and of pool verbs, but for `create`, which a host does not always answer.
#[must_use]
pub fn shared_subjects(subjects: &Subjects) -> Vec<String> {
    let pool = PoolVerb::ALL.into_iter().filter(|verb| *verb != PoolVerb::Create);
    let pool = pool.map(|verb| subjects.pool_wildcard(verb));
    pool.chain(Family::ALL.into_iter().map(|family| subjects.registry_wildcard(family))).collect()
}
