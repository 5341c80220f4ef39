//! The same VMs without drover: what somebody would do who had only the VMM and root.
//!
//! The same TAP under the same bridge, the same firewall elements, copies of the same disks, a cgroup with
//! the same limits, the same configuration through the same API, and the same agent greeted. Left out are
//! the holder and, with it, events and console; the bus, the journal and the claim of a name.
//!
//! Everything is noted before it is made and carries the installation's mark, so it is removed whatever
//! happens, and the daemon would report what a killed bench leaves.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_actors::guest::{HelloInfo, Link, LinkError};
use drover_actors::hypervisor::api::{ApiClient, ApiError};
use drover_actors::hypervisor::cgroup::{CgroupError, CgroupLimits, VmCgroup};
use drover_actors::hypervisor::config::{FirstNic, VmmInput, cmdline_additions, vm_config};
use drover_actors::hypervisor::run_dir::{RunDir, RunDirError, RunRoot, RunRootError};
use drover_actors::network::ops::NetOps;
use drover_actors::network::ops::members;
use drover_actors::network::{NetworkConfig, NetworkDef, NetworkError, NicLease, VmNet};
use drover_actors::vm::disks::copy_on_write;
use drover_schemas::token::TokenError;
use drover_schemas::{Token, VmId};
use ipnet::Ipv4Net;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::machine::Machine;

/// How long one start may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often the API and the agent are tried: as soon as can be without taking the processor away.
const PAUSE: Duration = Duration::from_millis(1);
/// Processes and threads beside two for each CPU, as drover allows.
const PIDS_BASE: u64 = 128;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// The folder for run directories.
    #[error("the run directories")]
    RunRoot(#[from] RunRootError),
    /// A run directory.
    #[error("the run directory")]
    RunDir(#[from] RunDirError),
    /// The TAP or the firewall.
    #[error("the network")]
    Network(#[from] NetworkError),
    /// The cgroup.
    #[error("the cgroup")]
    Cgroup(#[from] CgroupError),
    /// A disk's copy.
    #[error("copy a disk")]
    Disk(#[source] std::io::Error),
    /// The VMM's program.
    #[error("start the VMM")]
    Spawn(#[source] std::io::Error),
    /// The VMM refused.
    #[error("the VMM")]
    Api(#[from] ApiError),
    /// The agent did not greet.
    #[error("the guest's agent")]
    Agent(#[source] LinkError),
    /// There is no address left.
    #[error("the network has no free address")]
    Addresses,
    /// A word of this program is no token.
    #[error("a name")]
    Name(#[from] TokenError),
}

/// What one VM takes: noted before any of it is made.
#[derive(Debug, Clone)]
struct Plan {
    vm_id: VmId,
    dir: RunDir,
    nics: Vec<NicLease>,
    cgroup: VmCgroup,
    disks: PathBuf,
}

/// VMs that run. Dropped, their VMMs end; [`ByHand::stop`] or [`ByHand::clean_up`] removes the rest.
#[derive(Debug)]
pub struct Running(Vec<(Plan, Child)>);

/// Starts and stops VMs by hand.
#[derive(Debug)]
pub struct ByHand {
    /// The way of the host.
    pub machine: Machine,
    net: NetOps,
    run_root: RunRoot,
    plans: Mutex<Vec<Plan>>,
    next_address: AtomicU32,
}

impl ByHand {
    /// Makes the folder for run directories.
    ///
    /// # Errors
    /// It cannot be made, or the kernel's network cannot be reached.
    pub fn new(machine: Machine) -> Result<Self, HandError> {
        let networks = machine
            .nics
            .iter()
            .map(|nic| NetworkDef { subnet: subnet(nic), ..NetworkDef::named(nic.network.clone()) });
        let installation = machine.installation;
        let net =
            NetOps::new(NetworkConfig { installation, networks: networks.collect(), nft: "nft".into() })?;
        let run_root = RunRoot::new(&PathBuf::from(format!("/run/drover-bench-{}", std::process::id())))?;
        run_root.create()?;
        Ok(Self { machine, net, run_root, plans: Mutex::default(), next_address: AtomicU32::new(0) })
    }

    /// Starts `count` at once; returns when every agent has answered.
    ///
    /// # Errors
    /// The first step that failed; [`ByHand::clean_up`] removes what was made.
    pub async fn start(&self, count: usize) -> Result<Running, HandError> {
        let mut plans = Vec::new();
        for _ in 0..count {
            plans.push(self.plan()?);
        }
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).extend(plans.iter().cloned());
        for plan in &plans {
            let nics = plan.nics.clone();
            let forwards = Vec::new();
            self.net
                .plug(&VmNet {
                    vm_id: plan.vm_id,
                    called: None,
                    uid: self.machine.uid,
                    nics,
                    forwards,
                    egress: Vec::new(),
                    limits: Vec::new(),
                    queues: Vec::new(),
                })
                .await?;
        }
        // One transaction for all: nobody would do it one by one.
        self.net.change(&plans.iter().flat_map(|plan| members(&plan.nics)).collect::<Vec<_>>(), &[]).await?;
        let booted = plans.iter().map(|plan| async move { Ok((plan.clone(), self.boot(plan).await?)) });
        let booted: Result<Vec<_>, HandError> = futures_util::future::try_join_all(booted).await;
        booted.map(Running)
    }

    fn plan(&self) -> Result<Plan, HandError> {
        let machine = &self.machine;
        let vm_id = VmId::generate();
        let step = self.next_address.fetch_add(1, Ordering::Relaxed);
        let mut nics = Vec::new();
        for (index, nic) in machine.nics.iter().enumerate() {
            // From the end of the subnet: the host leases from its beginning.
            let subnet = subnet(nic);
            let last = u32::from(subnet.broadcast()) - 1;
            let room = last.saturating_sub(u32::from(subnet.network())) / 2;
            let ipv4 = Ipv4Addr::from(last - step.checked_rem(room).ok_or(HandError::Addresses)?);
            let network = nic.network.clone();
            nics.push(NicLease::new(machine.installation, vm_id, index, network, subnet, ipv4));
        }
        Ok(Plan {
            vm_id,
            dir: self.run_root.vm(vm_id),
            nics,
            cgroup: machine.cgroups.of(vm_id),
            disks: machine.disks.join(vm_id.to_string().to_ascii_lowercase()),
        })
    }

    async fn boot(&self, plan: &Plan) -> Result<Child, HandError> {
        let machine = &self.machine;
        let until = Instant::now() + PATIENCE;
        let mut paths = machine.paths.clone();
        for (index, disk) in paths.disks.iter_mut().enumerate().filter(|(_, disk)| !disk.readonly) {
            let own = plan.disks.join(format!("disk{index}.raw"));
            let image = std::mem::replace(&mut disk.path, own.clone());
            copy_on_write(image, own, false, None).await.map_err(HandError::Disk)?;
        }
        plan.dir.create(None)?;
        let limits = CgroupLimits {
            memory_bytes: machine.spec.memory_bytes + machine.overhead_bytes,
            pids: PIDS_BASE + 2 * u64::from(machine.spec.cpus),
            cpus: u64::from(machine.spec.cpus),
        };
        machine.cgroups.create(plan.vm_id, 1, &limits)?;
        let child = self.spawn(plan).map_err(HandError::Spawn)?;
        let api = ApiClient::new(plan.dir.api_socket());
        while let Err(error) = api.ping().await {
            if Instant::now() >= until || !error.is_connect() {
                return Err(error.into());
            }
            sleep(PAUSE).await;
        }
        let first = plan.nics.first().map(|nic| FirstNic::Set(nic.guest_nic()));
        let config = vm_config(&VmmInput {
            spec: &machine.spec,
            paths,
            run_dir: &plan.dir,
            nics: plan.nics.iter().map(NicLease::nic_config).collect(),
            cmdline: cmdline_additions(&Token::new("by-hand")?, first.as_ref()),
            landlock: false,
        });
        api.create(&config).await?;
        api.boot().await?;
        let (socket, hello) = (plan.dir.vsock_socket(), HelloInfo::default());
        loop {
            match Link::connect(&socket, &hello, Duration::from_secs(3)).await {
                Ok(_) => return Ok(child),
                Err(error) if !error.may_pass() || Instant::now() >= until => {
                    return Err(HandError::Agent(error));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn spawn(&self, plan: &Plan) -> std::io::Result<Child> {
        let mut command = Command::new(&self.machine.vmm);
        command
            .arg("--api-socket")
            .arg(format!("path={}", plan.dir.api_socket().display()))
            .arg("--no-shutdown")
            .args(&self.machine.extra_args)
            .env_clear()
            .envs(self.machine.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn()?;
        if let Some(pid) = child.id() {
            for dir in &plan.cgroup.dirs {
                std::fs::write(dir.join("cgroup.procs"), pid.to_string())?;
            }
        }
        Ok(child)
    }

    /// Ends VMs and removes what they had.
    pub async fn stop(&self, mut running: Running) {
        for (_, child) in &mut running.0 {
            // It may have ended by itself.
            let _ = child.start_kill();
        }
        for (_, child) in &mut running.0 {
            let _ = child.wait().await;
        }
        let ids: Vec<VmId> = running.0.iter().map(|(plan, _)| plan.vm_id).collect();
        let mut plans = self.take();
        let (ours, others) = plans.drain(..).partition(|plan| ids.contains(&plan.vm_id));
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).extend::<Vec<Plan>>(others);
        self.release(ours).await;
    }

    /// Removes everything that was ever noted and not removed, and the folder.
    pub async fn clean_up(&self) {
        self.release(self.take()).await;
        if let Err(error) = std::fs::remove_dir(self.run_root.path()) {
            tracing::warn!(%error, path = %self.run_root.path().display(), "a folder of the bench is left");
        }
    }

    fn take(&self) -> Vec<Plan> {
        std::mem::take(&mut *self.plans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn release(&self, plans: Vec<Plan>) {
        let left = |what: &str, error: &dyn std::error::Error| {
            tracing::warn!(what, error = %drover_actors::chain(error), "something of the bench is left");
        };
        for plan in &plans {
            // Whatever the VMM has started ends with its cgroup.
            if let Err(error) = plan.cgroup.remove(Duration::from_secs(5)).await {
                left("a cgroup", &error);
            }
        }
        if let Err(error) =
            self.net.change(&[], &plans.iter().flat_map(|p| members(&p.nics)).collect::<Vec<_>>()).await
        {
            left("firewall elements", &error);
        }
        for plan in &plans {
            if let Err(error) = self.net.unplug(plan.vm_id, &plan.nics).await {
                left("a TAP", &error);
            }
            if let Err(error) = plan.dir.remove() {
                left("a run directory", &error);
            }
            match std::fs::remove_dir_all(&plan.disks) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => left("a disk", &error),
                _ => {}
            }
        }
    }
}

fn subnet(nic: &NicLease) -> Ipv4Net {
    Ipv4Net::new(nic.ipv4, nic.prefix_len).map_or_else(|_| nic.ipv4.into(), |net| net.trunc())
}
