//! What the host has promised: memory, CPUs, ports, addresses and users. Reserved before it is promised, so the
//! sum of promises never exceeds what the host has, nor that of a namespace its quota.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use drover_schemas::body::host::Capacity;
use drover_schemas::body::spec::{NicSpec, ResolvedSpec};
use drover_schemas::{ErrorBody, ErrorCode, InstallationId, Token, VmId};
use ipnet::Ipv4Net;
use tokio::sync::watch;

use crate::journal::{LeaseRow, Snapshot, UidRow, VmRow};
use crate::network::lease::PoolError;
use crate::network::{NetworkDef, NicLease, Pool};
use crate::network::{bridges, dhcp, egress, forward};
use crate::quota::{self, Quotas};
use crate::spec::shape;

mod disks;
mod forwards;
mod networks;
mod subnets;
mod types;
pub mod users;
mod volumes;

use disks::disk_bytes;
pub use forwards::{Forwards, PortRange};
pub use networks::{Kept, MadeNetworks};
pub use subnets::{SubnetError, SubnetFault};
pub use types::{Leases, Totals};
pub use volumes::Volumes;

/// Files that the daemon has open for itself: journal, bus, firewall, and what starts and stops take.
const OWN_DESCRIPTORS: u64 = 64;
/// Files that it has open for a running VM: its process and its link, and some for requests about it.
const VM_DESCRIPTORS: u64 = 4;

/// The promises of a host.
#[derive(Debug)]
pub struct HostState {
    totals: Totals,
    quotas: Arc<Quotas>,
    installation: InstallationId,
    inner: Mutex<Inner>,
    forwards: Forwards,
    volumes: Volumes,
    /// What the networks are, which verbs change. Asked while `inner` is locked, never the other way round.
    networks: RwLock<Vec<NetworkDef>>,
    began: Instant,
    draining: AtomicBool,
    /// Counts changes of what is promised.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    pools: BTreeMap<Token, Pool>,
    uids: BTreeMap<u32, Option<Duration>>,
    runtime: HashMap<VmId, Promise>,
    /// What each VM holds whatever its state.
    held: HashMap<VmId, Held>,
    vms: u64,
}

/// What a VM has while it runs.
#[derive(Debug, Clone)]
struct Promise {
    namespace: Token,
    cpus: u64,
    /// Of the guest and its VMM.
    memory_bytes: u64,
    /// The network of each interface, which takes a port of its bridge.
    ports: Vec<Token>,
}

/// What a VM holds whatever its state.
#[derive(Debug, Clone)]
struct Held {
    namespace: Token,
    disk_bytes: u64,
}

/// What a namespace has of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// VMs of any state.
    pub vms: u64,
    /// Virtual CPUs of VMs that run or have been promised to.
    pub cpus: u64,
    /// Memory of their guests.
    pub memory_bytes: u64,
    /// Disks that VMs of any state may write to, at their full length.
    pub disk_bytes: u64,
}

impl HostState {
    /// Restores what the journal says is held. VMs whose VMM runs are counted when they are adopted.
    ///
    /// # Errors
    /// [`SubnetError`] for a subnet without room, or that guests cannot have, or that another network has.
    pub fn new(
        installation: InstallationId,
        totals: Totals,
        quotas: Arc<Quotas>,
        networks: &[NetworkDef],
        snapshot: &Snapshot,
    ) -> Result<Self, SubnetError> {
        let mut inner = Inner { pools: subnets::pools(networks)?, ..Inner::default() };
        // A rest that began before the daemon did begins anew: longer than needed, never shorter.
        for LeaseRow { network, ipv4, .. } in &snapshot.leases {
            if let Some(pool) = inner.pools.get_mut(network) {
                let _ = pool.restore(*ipv4);
            }
        }
        for UidRow { uid, .. } in &snapshot.uids {
            inner.uids.insert(*uid, None);
        }
        inner.vms = snapshot.vms.len() as u64;
        inner.held = snapshot.vms.iter().map(|row| (row.vm_id, held(&row.namespace, &row.spec))).collect();
        let forwards = Forwards::new(totals.forward_ports);
        let volumes = Volumes::default();
        for row in &snapshot.vms {
            forwards.restore(&row.namespace, row.vm_id, &row.spec.nics);
            volumes.restore(&row.namespace, row.vm_id, &row.spec.disks);
        }
        Ok(Self {
            forwards,
            volumes,
            networks: RwLock::new(networks.to_vec()),
            totals,
            quotas,
            installation,
            inner: Mutex::new(inner),
            began: Instant::now(),
            draining: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        })
    }

    /// Whether an operator told the host to take no new VMs.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// As [`Self::draining`]; the journal has it already.
    pub fn set_draining(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
        self.changed();
    }

    /// Whether any port may be forwarded here.
    pub const fn forwards_ports(&self) -> bool {
        self.totals.forward_ports.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Changes whenever what is promised does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Free addresses of each network.
    #[must_use]
    pub fn free_addresses(&self) -> BTreeMap<Token, u64> {
        let inner = self.lock();
        let free = |pool: &Pool| pool.capacity().saturating_sub(pool.leased()) as u64;
        inner.pools.iter().map(|(network, pool)| (network.clone(), free(pool))).collect()
    }

    /// The subnet of each network.
    #[must_use]
    pub fn subnets(&self) -> BTreeMap<Token, String> {
        let inner = self.lock();
        inner.pools.iter().map(|(network, pool)| (network.clone(), pool.subnet().to_string())).collect()
    }

    fn promise(&self, namespace: &Token, spec: &ResolvedSpec) -> Promise {
        Promise {
            namespace: namespace.clone(),
            cpus: spec.cpus.into(),
            memory_bytes: spec.memory_bytes + self.totals.overhead_bytes,
            ports: spec.nics.iter().map(|nic| nic.network.clone()).collect(),
        }
    }

    /// Promises memory, CPUs and ports to a VM that is about to start. Repeating it changes nothing.
    ///
    /// # Errors
    /// `resource_exhausted` with what is left, or with the quota of the namespace.
    pub fn reserve(&self, namespace: &Token, vm_id: VmId, spec: &ResolvedSpec) -> Result<(), ErrorBody> {
        let mut inner = self.lock();
        if inner.runtime.contains_key(&vm_id) {
            return Ok(());
        }
        let want = self.promise(namespace, spec);
        let (quota, has) = (self.quotas.of(namespace), self.used_by(&inner, namespace));
        quota::check(namespace, "cpus", "virtual CPUs", quota.cpus, has.cpus, want.cpus)?;
        let limit = quota.memory_bytes;
        quota::check(
            namespace,
            "memory_bytes",
            "bytes of memory",
            limit,
            has.memory_bytes,
            spec.memory_bytes,
        )?;
        let (cpus, memory_bytes) = inner.used();
        let left = self.totals.cpus.saturating_sub(cpus);
        if want.cpus > left {
            return Err(exhausted("virtual CPUs", left, want.cpus, "stop a VM"));
        }
        let left = self.totals.memory_bytes.saturating_sub(memory_bytes);
        if want.memory_bytes > left {
            return Err(exhausted("bytes of memory", left, want.memory_bytes, "stop a VM"));
        }
        for network in &want.ports {
            let wanted = want.ports.iter().filter(|port| *port == network).count() as u64;
            let left = bridges::PORTS.saturating_sub(inner.ports(network));
            if wanted > left {
                let what = format!("ports of network {network}");
                return Err(exhausted(&what, left, wanted, "stop a VM of that network"));
            }
        }
        let most = self.most_running();
        if inner.runtime.len() as u64 >= most {
            let error = ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "the daemon may open {} files, enough for {most} running VMs: raise its limit (LimitNOFILE= \
                     in its unit, or `ulimit -n`), stop a VM or use another host",
                    self.totals.descriptors
                ),
            );
            return Err(error.with("resource", "descriptors").with("left", 0).with("needed", VM_DESCRIPTORS));
        }
        inner.runtime.insert(vm_id, want);
        drop(inner);
        self.changed();
        Ok(())
    }

    /// Promises what a VM that runs already has, even beyond the totals.
    pub fn adopt(&self, namespace: &Token, vm_id: VmId, spec: &ResolvedSpec) {
        let want = self.promise(namespace, spec);
        self.lock().runtime.insert(vm_id, want);
        self.changed();
    }

    /// Counts a VM that was imported; what it holds was set aside when the daemon started.
    pub fn imported(&self, namespace: &Token, vm_id: VmId, spec: &ResolvedSpec) {
        let mut inner = self.lock();
        inner.vms += 1;
        inner.held.insert(vm_id, held(namespace, spec));
        self.forwards.restore(namespace, vm_id, &spec.nics);
        self.volumes.restore(namespace, vm_id, &spec.disks);
    }

    /// Gives a VM what of the host `nics` ask for in the place of what it has.
    ///
    /// # Errors
    /// `invalid_argument` or `conflict` with what cannot be had; nothing is changed then.
    pub fn change_nics(&self, namespace: &Token, vm_id: VmId, nics: &[NicSpec]) -> Result<(), ErrorBody> {
        self.check_isolated(nics)?;
        self.check_forwards(nics)?;
        self.forwards.claim(namespace, vm_id, nics)
    }

    /// Asks what a network is, if there is one of that name.
    fn network<T>(&self, name: &Token, ask: impl FnOnce(&NetworkDef) -> T) -> Option<T> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        networks.iter().find(|def| def.name == *name).map(ask)
    }

    fn check_isolated(&self, nics: &[NicSpec]) -> Result<(), ErrorBody> {
        egress::check_isolated(nics, |nic| self.network(&nic.network, |def| def.isolate).unwrap_or(true))
    }

    fn check_forwards(&self, nics: &[NicSpec]) -> Result<(), ErrorBody> {
        forward::check_ipv6(nics, |nic| self.network(&nic.network, |def| def.ipv6.is_some()).unwrap_or(false))
    }

    fn check_dhcp(&self, nics: &[NicSpec]) -> Result<(), ErrorBody> {
        dhcp::check_served(nics, |nic| self.network(&nic.network, |def| def.dhcp).unwrap_or(true))
    }

    /// Takes what an earlier spec asks for over again, whose change was never durable.
    pub fn keep_nics(&self, namespace: &Token, vm_id: VmId, nics: &[NicSpec]) {
        self.forwards.restore(namespace, vm_id, nics);
    }

    /// Gives back what was set aside for a VM without a row.
    pub fn unhold(&self, uid: u32, nics: &[NicLease], quarantine: Duration) {
        let now = self.began.elapsed();
        let mut inner = self.lock();
        inner.free_addresses(nics, now, quarantine);
        inner.uids.insert(uid, Some(now + quarantine));
    }

    /// Takes memory and CPUs back.
    pub fn unreserve(&self, vm_id: VmId) {
        let held = self.lock().runtime.remove(&vm_id);
        if held.is_some() {
            self.changed();
        }
    }

    /// Leases a user, addresses and room for the disks of a new VM. They count once they are in the journal; give
    /// them back with [`HostState::give_back`] if they never get there.
    ///
    /// # Errors
    /// `resource_exhausted`, `invalid_argument` for a network that is not there or an address that is none of it, or
    /// `conflict` if another VM has the address.
    pub fn lease(&self, namespace: &Token, vm_id: VmId, spec: &ResolvedSpec) -> Result<Leases, ErrorBody> {
        let now = self.began.elapsed();
        let mut inner = self.lock();
        let (quota, has) = (self.quotas.of(namespace), self.used_by(&inner, namespace));
        quota::check(namespace, "vms", "VMs", quota.vms, has.vms, 1)?;
        self.check_disk(&inner, namespace, disk_bytes(&spec.disks), None)?;
        self.check_isolated(&spec.nics)?;
        self.check_dhcp(&spec.nics)?;
        self.check_forwards(&spec.nics)?;
        self.volumes.claim(namespace, vm_id, &spec.disks)?;
        self.forwards.claim(namespace, vm_id, &spec.nics).inspect_err(|_| self.volumes.release(vm_id))?;
        let leased = match self.lease_nics(&mut inner, vm_id, &spec.nics, now) {
            Ok(leased) => leased,
            Err(error) => {
                self.forwards.release(vm_id);
                self.volumes.release(vm_id);
                return Err(error);
            }
        };
        let Some(uid) = inner.uid(&self.totals, now) else {
            inner.free_addresses(&leased, now, Duration::ZERO);
            self.forwards.release(vm_id);
            self.volumes.release(vm_id);
            return Err(ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "all {} Unix users for VMs are taken; delete a VM or widen the range",
                    self.totals.uids
                ),
            )
            .with("resource", "uids"));
        };
        inner.vms += 1;
        inner.held.insert(vm_id, held(namespace, spec));
        Ok(Leases { vm_id, uid, nics: leased })
    }

    /// All interfaces of a VM, or none.
    fn lease_nics(
        &self,
        inner: &mut Inner,
        vm_id: VmId,
        nics: &[NicSpec],
        now: Duration,
    ) -> Result<Vec<NicLease>, ErrorBody> {
        // Those that have to have a certain one come first, before one of the others is given it.
        let mut order: Vec<usize> = (0..nics.len()).collect();
        order.sort_by_key(|index| nics[*index].ipv4.is_none());
        let mut leased = BTreeMap::new();
        for index in order {
            let nic = &nics[index];
            match inner.address(index, nic, now) {
                Ok((subnet, ipv4)) => {
                    let network = nic.network.clone();
                    let ipv6 = self.network(&network, |def| def.ipv6).flatten().map(|subnet| subnet.trunc());
                    let lease = NicLease::new(self.installation, vm_id, index, network, subnet, ipv4);
                    leased.insert(index, lease.with_ipv6(ipv6));
                }
                Err(error) => {
                    let leased: Vec<NicLease> = leased.into_values().collect();
                    inner.free_addresses(&leased, now, Duration::ZERO);
                    return Err(error);
                }
            }
        }
        Ok(leased.into_values().collect())
    }

    /// Takes back leases that were never durable.
    pub fn give_back(&self, leases: &Leases) {
        let now = self.began.elapsed();
        let mut inner = self.lock();
        inner.free_addresses(&leases.nics, now, Duration::ZERO);
        inner.uids.remove(&leases.uid);
        self.forwards.release(leases.vm_id);
        self.volumes.release(leases.vm_id);
        inner.held.remove(&leases.vm_id);
        inner.vms = inner.vms.saturating_sub(1);
    }

    /// Takes everything of a VM back; addresses and the user rest for `quarantine`.
    pub fn release(&self, row: &VmRow, quarantine: Duration) {
        let now = self.began.elapsed();
        let mut inner = self.lock();
        self.forwards.release(row.vm_id);
        self.volumes.release(row.vm_id);
        inner.runtime.remove(&row.vm_id);
        inner.held.remove(&row.vm_id);
        inner.free_addresses(&row.nics, now, quarantine);
        inner.uids.insert(row.uid, Some(now + quarantine));
        inner.vms = inner.vms.saturating_sub(1);
        drop(inner);
        self.changed();
    }

    fn used_by(&self, inner: &Inner, namespace: &Token) -> Used {
        let mut used = Used { disk_bytes: self.volumes.bytes(Some(namespace)), ..Used::default() };
        for held in inner.held.values().filter(|held| held.namespace == *namespace) {
            used.vms += 1;
            used.disk_bytes += held.disk_bytes;
        }
        for promise in inner.runtime.values().filter(|promise| promise.namespace == *namespace) {
            used.cpus += promise.cpus;
            used.memory_bytes += promise.memory_bytes.saturating_sub(self.totals.overhead_bytes);
        }
        used
    }

    /// What a namespace has.
    #[must_use]
    pub fn used(&self, namespace: &Token) -> Used {
        self.used_by(&self.lock(), namespace)
    }

    /// Namespaces that have a VM.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<Token> {
        self.lock().held.values().map(|held| held.namespace.clone()).collect()
    }

    /// The quota of every namespace.
    #[must_use]
    pub const fn quotas(&self) -> &Arc<Quotas> {
        &self.quotas
    }

    /// How many VMs may run before the daemon runs out of files.
    const fn most_running(&self) -> u64 {
        self.totals.descriptors.saturating_sub(OWN_DESCRIPTORS) / VM_DESCRIPTORS
    }

    /// What there is and what is promised.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        let (now, inner) = (self.began.elapsed(), self.lock());
        let (cpus_used, memory_used_bytes) = inner.used();
        Capacity {
            cpus: self.totals.cpus,
            cpus_used,
            memory_bytes: self.totals.memory_bytes,
            memory_used_bytes,
            addresses: inner.pools.values().map(|p| p.capacity() as u64).sum(),
            addresses_used: inner.pools.values().map(|p| p.leased() as u64).sum(),
            vms: inner.vms,
            disk_bytes: self.totals.disk_bytes,
            disk_used_bytes: self.disk_used(&inner),
            users: self.totals.uids.into(),
            users_used: inner.uids.values().filter(|until| until.is_none_or(|until| until > now)).count()
                as u64,
            running_limit: self.most_running(),
            running: inner.runtime.len() as u64,
            ports: bridges::PORTS * inner.pools.len() as u64,
            ports_used: inner.runtime.values().map(|promise| promise.ports.len() as u64).sum(),
        }
    }
}

/// `advice` says what gives some back.
fn exhausted(what: &str, left: u64, wanted: u64, advice: &str) -> ErrorBody {
    let text =
        format!("the host has {left} {what} left and the VM needs {wanted}; {advice} or use another host");
    let error = ErrorBody::new(ErrorCode::ResourceExhausted, text);
    error.with("resource", what).with("left", left).with("needed", wanted)
}

fn held(namespace: &Token, spec: &ResolvedSpec) -> Held {
    Held { namespace: namespace.clone(), disk_bytes: disk_bytes(&spec.disks) }
}

impl Inner {
    fn used(&self) -> (u64, u64) {
        self.runtime.values().fold((0, 0), |sum, used| (sum.0 + used.cpus, sum.1 + used.memory_bytes))
    }

    /// Ports of a network's bridges that VMs have or have been promised.
    fn ports(&self, network: &Token) -> u64 {
        self.runtime.values().flat_map(|promise| &promise.ports).filter(|port| *port == network).count()
            as u64
    }

    fn address(
        &mut self,
        index: usize,
        nic: &NicSpec,
        now: Duration,
    ) -> Result<(Ipv4Net, Ipv4Addr), ErrorBody> {
        let network = &nic.network;
        let known: Vec<String> = self.pools.keys().map(Token::to_string).collect();
        let Some(pool) = self.pools.get_mut(network) else {
            return Err(ErrorBody::new(
                ErrorCode::InvalidArgument,
                format!("spec.nics: this host has no network {network:?}; known: {}", known.join(", ")),
            )
            .with("field", "spec.nics"));
        };
        let wanted = shape::address(index, nic)?;
        let ipv4 = pool.allocate(wanted, now).map_err(|error| {
            let field = format!("spec.nics[{index}].ipv4");
            let text = format!("network {network}: {error}");
            match error {
                PoolError::Outside { .. } => {
                    ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field)
                }
                PoolError::Taken { .. } => ErrorBody::new(ErrorCode::Conflict, text).with("field", field),
                _ => ErrorBody::new(ErrorCode::ResourceExhausted, text).with("resource", "addresses"),
            }
        })?;
        Ok((pool.subnet(), ipv4))
    }

    fn free_addresses(&mut self, nics: &[NicLease], now: Duration, quarantine: Duration) {
        for nic in nics {
            if let Some(pool) = self.pools.get_mut(&nic.network) {
                pool.release(nic.ipv4, now, quarantine);
            }
        }
    }

    fn uid(&mut self, totals: &Totals, now: Duration) -> Option<u32> {
        let uid = (totals.first_uid..totals.first_uid.saturating_add(totals.uids)).find(|uid| match self
            .uids
            .get(uid)
        {
            None => true,
            Some(Some(until)) => *until <= now,
            Some(None) => false,
        })?;
        self.uids.insert(uid, None);
        Some(uid)
    }
}

#[cfg(test)]
mod tests;
