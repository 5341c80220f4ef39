//! What every actor of a host shares: handles, names and limits. Made once, when the host starts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drover_schemas::subject::Subjects;
use drover_schemas::{ErrorBody, ErrorCode, InstallationId, Token, VmId};

use crate::alarms::{Alarms, Seen};
use crate::audit::Audit;
use crate::bus::claims::Claims;
use crate::bus::egress::Egress;
use crate::bus::lanes::Lanes;
use crate::chain;
use crate::fleet::fence::Fence;
use crate::fleet::inventory::Inventory;
use crate::fleet::quarantine::Quarantine;
use crate::fleet::states::States;
use crate::host::{HostState, MadeNetworks};
use crate::host_log::HostLog;
use crate::hypervisor::cgroup::{Cgroups, VmCgroup};
use crate::hypervisor::launcher::Launcher;
use crate::hypervisor::run_dir::RunRoot;
use crate::hypervisor::version::VmmVersion;
use crate::images::Images;
use crate::images::fleet::FleetImages;
use crate::journal::{JournalHandle, VmRow};
use crate::metrics::Metrics;
use crate::network::NetworkHandle;
use crate::quota::EventBudget;
use crate::samples::guest::GuestSamples;
use crate::spec::Templates;
use crate::stream::Streams;
use crate::vm::inside::EventLimits;

/// How long a request waits for the assets of the bus.
const ASSETS_WITHIN: Duration = Duration::from_secs(5);

/// Programs that a VM is made of.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The holder.
    pub hold: PathBuf,
    /// The VMM.
    pub vmm: PathBuf,
    /// What the VMM says of itself.
    pub version: VmmVersion,
    /// Who starts holders.
    pub launcher: Launcher,
    /// Added to the VMM's command line.
    pub extra_args: Vec<String>,
    /// VMMs run confined, each as a user of its own.
    pub confine: bool,
    /// The VMM is told to use Landlock.
    pub landlock: bool,
    /// The operator lets guests run VMs of their own.
    pub nested: bool,
    /// What a confined VMM may read beside what its VM needs.
    pub paths: Vec<PathBuf>,
    /// The agent that guests are given, if there is one.
    pub agent: Option<PathBuf>,
}

/// Limits of a host.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory of a VMM beside its guest's, in bytes.
    pub vmm_overhead_bytes: u64,
    /// How long a VMM's API may take to come up.
    pub vmm_ready_within: Duration,
    /// How long addresses and users rest after their VM is gone.
    pub quarantine: Duration,
    /// Events that the programs of one guest may publish.
    pub agent_events: EventLimits,
}

/// The shared part of a host.
#[derive(Debug)]
pub struct Services {
    /// Name of the host.
    pub host: Token,
    /// The installation, part of every mark.
    pub installation: InstallationId,
    /// Subjects below the configured root.
    pub subjects: Subjects,
    /// The control connection.
    pub client: async_nats::Client,
    /// The connections for requests.
    pub lanes: Lanes,
    /// Streams, and the connection for bulk data.
    pub streams: Streams,
    /// The journal.
    pub journal: JournalHandle,
    /// The host's own events.
    pub log: HostLog,
    /// Who did what.
    pub audit: Audit,
    /// From the outbox to the stream.
    pub egress: Egress,
    /// The names of VMs over the fleet.
    pub claims: Claims,
    /// Bridges, TAPs and rules.
    pub network: NetworkHandle,
    /// Images by name.
    pub images: Images,
    /// What the fleet shares of them.
    pub fleet_images: FleetImages,
    /// Templates by name.
    pub templates: Templates,
    /// Where VMs have their run directories.
    pub run_root: RunRoot,
    /// Where VMs have their disks.
    pub disks: PathBuf,
    /// Disks may lie over their images.
    pub overlays: bool,
    /// Where backups of the journal go.
    pub backups: PathBuf,
    /// Limits of VMs' processes.
    pub cgroups: Cgroups,
    /// Programs.
    pub programs: Programs,
    /// Limits.
    pub limits: Limits,
    /// Why orphans of this installation were not imported.
    pub not_imported: Mutex<BTreeMap<VmId, String>>,
    /// The networks that verbs made.
    pub made_networks: MadeNetworks,
    /// Promises and leases.
    pub state: HostState,
    /// Events that namespaces may cause.
    pub budget: EventBudget,
    /// What is wrong now.
    pub alarms: Alarms,
    /// How the stream of events and the clock were when they were last looked at.
    pub seen: Seen,
    /// Counters.
    pub metrics: Metrics,
    /// Name of the stream of events.
    pub events_stream: String,
    /// Labels of this host, for placement.
    pub labels: BTreeMap<String, String>,
    /// The hosts of the fleet, as far as they are heard.
    pub inventory: Inventory,
    /// The last known state of every VM of the fleet.
    pub states: States,
    /// Nothing is changed for a VM before its claim was read.
    pub fence: Fence,
    /// What guests say of themselves.
    pub guests: GuestSamples,
    /// VMs that are not this host's any more.
    pub quarantined: Quarantine,
}

impl Services {
    /// The cgroup of a VM: that of its last launch, and where one is made now. They differ when the daemon
    /// has been started elsewhere since, such as by a service manager.
    #[must_use]
    pub fn cgroup(&self, vm_id: VmId) -> VmCgroup {
        let launched = self.run_root.vm(vm_id).launch_record().ok().flatten();
        let launched = launched.filter(|record| record.installation == self.installation);
        let mut group = launched.map(|record| record.cgroup).unwrap_or_default();
        for dir in self.cgroups.of(vm_id).dirs {
            if !group.dirs.contains(&dir) {
                group.dirs.push(dir);
            }
        }
        group
    }

    /// Memory of everything that belongs to a VM, where the host counts it.
    #[must_use]
    pub fn memory_of(&self, vm_id: VmId) -> Option<u64> {
        // Its launch is looked up only where it was made elsewhere.
        self.cgroups.of(vm_id).memory_bytes().or_else(|| self.cgroup(vm_id).memory_bytes())
    }

    /// The VMs of the host, as the journal has them.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn rows(&self) -> Result<Vec<VmRow>, ErrorBody> {
        let journal = self.journal.clone();
        let loaded = tokio::task::spawn_blocking(move || journal.load()).await;
        Ok(loaded.map_err(|_| broke_off())?.map_err(|error| error.to_body())?.vms)
    }

    /// Where a VM has its disks.
    #[must_use]
    pub fn disk_dir(&self, vm_id: VmId) -> PathBuf {
        self.disks.join(vm_id.to_string().to_ascii_lowercase())
    }

    /// Removes the disks and the run directory of a VM of which nothing runs.
    ///
    /// # Errors
    /// In words, why something of them is still there.
    pub async fn remove_files(&self, vm_id: VmId) -> Result<(), String> {
        let (disks, dir) = (self.disk_dir(vm_id), self.run_root.vm(vm_id));
        let removed = tokio::task::spawn_blocking(move || {
            match std::fs::remove_dir_all(&disks) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.to_string()),
                _ => {}
            }
            dir.remove().map_err(|e| chain(&e).to_string())
        });
        removed.await.unwrap_or_else(|panic| Err(panic.to_string()))
    }

    /// Whether a namespace may cause more events: the outbox has room for them, and its quota allows it.
    ///
    /// # Errors
    /// `resource_exhausted`.
    pub fn admits_events_of(&self, namespace: &Token) -> Result<(), ErrorBody> {
        self.journal.admit_changes().map_err(|e| e.to_body())?;
        self.budget.check(namespace)
    }

    /// Waits a little for the stream and the buckets: a host on a new bus makes them first.
    ///
    /// # Errors
    /// `unavailable{phase: connecting}` when they are not there soon.
    pub async fn assets(&self) -> Result<(), ErrorBody> {
        tokio::time::timeout(ASSETS_WITHIN, self.egress.ready()).await.map_err(|_| {
            ErrorBody::new(
                ErrorCode::Unavailable,
                "the stream of events and the buckets of the bus are not there yet; check that JetStream is \
                 enabled and that the host may make them, then repeat the request",
            )
            .with("phase", "connecting")
        })
    }
}

/// A shared [`Services`].
pub type Shared = Arc<Services>;

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// What is told of work in a task of its own that did not come to its end.
pub(crate) fn broke_off() -> ErrorBody {
    ErrorBody::new(ErrorCode::Internal, "the work broke off; see the host's log")
}
