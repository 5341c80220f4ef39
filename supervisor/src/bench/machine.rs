//! How the host starts its VMs, found out from one that runs: enough to start the same by hand.
//!
//! Nothing is asked of the daemon. The VM's process id leads to its command line, this to its run directory
//! and launch record, and its API shows the files that it was given.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use drover_actors::hypervisor::api::{ApiClient, ApiError};
use drover_actors::hypervisor::cgroup::Cgroups;
use drover_actors::hypervisor::config::{BootPaths, DiskPath, ImageType};
use drover_actors::hypervisor::process::LaunchRecord;
use drover_actors::hypervisor::run_dir::{RunDir, RunDirError, RunRoot, RunRootError};
use drover_actors::images::{ImageError, Images};
use drover_actors::network::NicLease;
use drover_actors::vm::disks;
use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::body::status::VmStatus;
use drover_schemas::{InstallationId, VmId};
use serde::Deserialize;
use serde_json::Value;

/// Why nothing can be done by hand here.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// TAPs and other users' files need root.
    #[error("run drover bench as root")]
    NotRoot,
    /// The VM has no process.
    #[error("the VM does not run")]
    NotRunning,
    /// The VMM is not here.
    #[error("run drover bench on the machine of the host: VMM {pid} of {vm_id} is not here")]
    Elsewhere {
        /// Process id by the host's account.
        pid: u32,
        /// The VM.
        vm_id: VmId,
    },
    /// The bridge is not here.
    #[error("run drover bench in the network namespace of the host (nsenter --net)")]
    Namespace,
    /// A file of the VMM's cannot be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The run directory cannot be found from its path.
    #[error("the run directory")]
    RunRoot(#[from] RunRootError),
    /// The run directory cannot be read.
    #[error("the run directory")]
    RunDir(#[from] RunDirError),
    /// The record of the launch is not what it was.
    #[error("the launch record does not hold {what}")]
    Record {
        /// What is missing.
        what: &'static str,
        /// Why.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The VMM does not say what it was given.
    #[error("the VMM's configuration")]
    Api(#[from] ApiError),
    /// The images of the disks cannot be found.
    #[error("the images of the disks")]
    Images(#[from] ImageError),
    /// An image of a disk is no longer there.
    #[error("image {name:?} of a disk is no longer there")]
    Image {
        /// Its name.
        name: String,
    },
}

/// A host's way of starting VMs.
#[derive(Debug)]
pub struct Machine {
    /// The installation.
    pub installation: InstallationId,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// What the configuration adds to its command line.
    pub extra_args: Vec<String>,
    /// Its environment, without the marks of the VM.
    pub env: Vec<(OsString, OsString)>,
    /// Guests are processes in namespaces, so hundreds fit.
    pub process_guests: bool,
    /// The user of the TAPs.
    pub uid: u32,
    /// The spec of the VM.
    pub spec: ResolvedSpec,
    /// Its interfaces.
    pub nics: Vec<NicLease>,
    /// Its files; those of writable disks are the images they were copied from.
    pub paths: BootPaths,
    /// Where copies of disks go.
    pub disks: PathBuf,
    /// Where cgroups are made.
    pub cgroups: Cgroups,
    /// Memory limit of the VM's cgroup, guest and VMM.
    pub overhead_bytes: u64,
    /// The run directory of the VM.
    pub run_dir: RunDir,
}

/// The part of the VMM's configuration that names files.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Files {
    payload: Payload,
    disks: Option<Vec<Disk>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Payload {
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    firmware: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Disk {
    path: PathBuf,
}

impl Machine {
    /// Finds out from the VM of `status`, which runs.
    ///
    /// # Errors
    /// [`MachineError`] says where to run instead, or what could not be read.
    pub async fn find(status: &VmStatus, installation: InstallationId) -> Result<Self, MachineError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(MachineError::NotRoot);
        }
        let pid = status.vmm_pid.ok_or(MachineError::NotRunning)?;
        let elsewhere = || MachineError::Elsewhere { pid, vm_id: status.vm_id };
        let run_dir = run_dir(pid, status.vm_id).ok_or_else(elsewhere)??;
        let record = run_dir.launch_record()?.ok_or_else(elsewhere)?;
        if record.vm_id != status.vm_id || record.installation != installation {
            return Err(elsewhere());
        }
        let own = std::fs::read_link("/proc/self/ns/net");
        if !own.is_ok_and(|own| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|n| n == own)) {
            return Err(MachineError::Namespace);
        }
        let spec: ResolvedSpec = part(&record, "spec")?;
        let document = ApiClient::new(run_dir.api_socket()).with_peer(pid).info_document().await?;
        let files = document.get("config").cloned().unwrap_or(Value::Null);
        let files: Files = serde_json::from_value(files)
            .map_err(|source| MachineError::Record { what: "the configuration", source: Some(source) })?;
        let disks = files.disks.as_ref().and_then(|disks| disks.first()?.path.parent()?.parent());
        let disks = disks.unwrap_or_else(|| Path::new("/var/tmp")).to_path_buf();
        let env = environment(pid)?;
        let cgroup_limit = memory_limit(&record);
        Ok(Self {
            installation,
            vmm: record.argv.first().map(PathBuf::from).ok_or_else(elsewhere)?,
            extra_args: record.argv.iter().skip(6).cloned().collect(),
            process_guests: env.iter().any(|(name, value)| name == "SOFTVMM_GUEST" && value == "process"),
            env,
            uid: record.uid,
            nics: part(&record, "nics")?,
            paths: boot_paths(&spec, files).await?,
            overhead_bytes: cgroup_limit.map_or(128 << 20, |limit| limit.saturating_sub(spec.memory_bytes)),
            spec,
            disks,
            cgroups: Cgroups::around(&record.cgroup),
            run_dir,
        })
    }
}

fn run_dir(pid: u32, vm_id: VmId) -> Option<Result<RunDir, MachineError>> {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut args = cmdline.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    args.find(|arg| arg == "--api-socket")?;
    let socket = PathBuf::from(args.next()?.strip_prefix("path=")?);
    // ROOT/VM/s/api
    let root = socket.ancestors().nth(3)?;
    Some(RunRoot::new(root).map(|root| root.vm(vm_id)).map_err(MachineError::from))
}

fn part<T: serde::de::DeserializeOwned>(
    record: &LaunchRecord,
    what: &'static str,
) -> Result<T, MachineError> {
    let value = record.import.get(what).cloned().ok_or(MachineError::Record { what, source: None })?;
    serde_json::from_value(value).map_err(|source| MachineError::Record { what, source: Some(source) })
}

fn environment(pid: u32) -> Result<Vec<(OsString, OsString)>, MachineError> {
    let path = PathBuf::from(format!("/proc/{pid}/environ"));
    let environ = std::fs::read(&path).map_err(|source| MachineError::Read { path, source })?;
    let pairs = environ.split(|&byte| byte == 0).filter_map(|entry| {
        let at = entry.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (entry.get(..at)?, entry.get(at + 1..)?);
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    });
    Ok(pairs.filter(|(name, _)| name != "DROVER_VM_ID").collect())
}

fn memory_limit(record: &LaunchRecord) -> Option<u64> {
    record.cgroup.dirs.iter().find_map(|dir| {
        ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .find_map(|file| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
    })
}

async fn boot_paths(spec: &ResolvedSpec, files: Files) -> Result<BootPaths, MachineError> {
    let payload = files.payload;
    let mut images = None;
    if spec.disks.iter().any(|disk| !disk.readonly) {
        // All images lie in one folder, and what is booted is one of them.
        let booted = payload.kernel.as_deref().or(payload.firmware.as_deref()).and_then(Path::parent);
        let dir = booted.unwrap_or_else(|| Path::new("/")).to_path_buf();
        let loaded = tokio::task::spawn_blocking(move || Images::load(&dir)).await;
        images = Some(
            loaded
                .map_err(|e| MachineError::Read { path: "images".into(), source: io::Error::other(e) })??,
        );
    }
    let mut found = Vec::new();
    let listed = files.disks.unwrap_or_default();
    for ((index, disk), given) in spec.disks.iter().enumerate().zip(listed) {
        let path = match (&images, &disk.image) {
            (Some(images), Some(image)) if !disk.readonly => images
                .path(image)
                .ok_or_else(|| MachineError::Image { name: image.name.clone() })?
                .to_path_buf(),
            _ => given.path,
        };
        let (readonly, name, limits) = (disk.readonly, disks::name(index, disk), disk.limits);
        let (image_type, backing, discard) = (ImageType::Raw, None, true);
        found.push(DiskPath { path, readonly, image_type, backing, name, discard, limits });
    }
    Ok(BootPaths {
        kernel: payload.kernel,
        initramfs: payload.initramfs,
        firmware: payload.firmware,
        disks: found,
    })
}
