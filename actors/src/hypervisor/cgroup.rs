//! A cgroup per VM: limits, counting of out-of-memory kills, and a way to end everything in it.
//!
//! Works with cgroup v2, with the v1 hierarchies `memory`, `pids`, `cpu` and `blkio`, or without any: then VMs run
//! without limits and [`Cgroups::problem`] says why. Everything lives below `drover-<installation>` in the
//! daemon's own cgroup, so limits on the daemon's surroundings hold for its VMs as well; or, where systemd
//! launches, in a scope for each VM, in which the holder makes the cgroups. The directories of a VM are kept in its launch record, so a daemon that is started elsewhere still finds them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::id::{InstallationId, VmId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::launcher::{Launcher, Scope};
use super::record::{SCOPE_HOLDER, SCOPE_VMM, oom_kills};

/// Where the kernel shows cgroups.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The v1 hierarchies that are used.
pub const V1: [&str; 4] = ["memory", "pids", "cpu", "blkio"];
/// The leaf in which holders live: outside the VMs' limits.
const HOLDERS: &str = "holders";

/// A cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It cannot be made.
    #[error("cannot create cgroup {path:?}")]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit was refused.
    #[error("cannot set {path:?} to {value}")]
    Limit {
        /// The file.
        path: PathBuf,
        /// The value.
        value: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("cannot remove cgroup {path:?}")]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why; `ResourceBusy` while a process lives in it.
        #[source]
        source: io::Error,
    },
}

/// Limits of a VM's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Guest memory and the VMM's own, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Virtual CPUs: under contention a VM gets time, and of a disk's as well, in proportion to them.
    pub cpus: u64,
}

/// The cgroup of one VM: one directory per hierarchy, none if there are no cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCgroup {
    /// The directories that the VMM joins.
    pub dirs: Vec<PathBuf>,
    /// The directories that the holder joins.
    #[serde(default)]
    pub holder_dirs: Vec<PathBuf>,
    /// The scope of systemd in which the holder makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The cgroups of one installation.
#[derive(Debug)]
pub struct Cgroups {
    version: Version,
    /// One per hierarchy.
    bases: Vec<PathBuf>,
    problem: Option<String>,
    /// Who makes the cgroups, if it is not us.
    scopes: Option<(PathBuf, InstallationId)>,
}

impl Cgroups {
    /// Finds out what this host offers and makes the installation's own part of it.
    #[must_use]
    pub fn open(installation: InstallationId, launcher: &Launcher) -> Self {
        if let Launcher::Systemd { run } = launcher {
            let scopes = Some((run.clone(), installation));
            return Self { version: Version::V2, bases: Vec::new(), problem: None, scopes };
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::open_at(Path::new(ROOT), &own, installation)
    }

    fn open_at(root: &Path, own: &str, installation: InstallationId) -> Self {
        let name = format!("drover-{}", installation.to_string().to_ascii_lowercase());
        let (version, parents) = parents(root, own);
        let mut this = Self { version, bases: Vec::new(), problem: None, scopes: None };
        if parents.is_empty() {
            this.problem = Some(format!("there are no cgroups below {}", root.display()));
        }
        for parent in parents {
            let base = parent.join(&name);
            let made = fs::create_dir_all(base.join(HOLDERS)).and_then(|()| match version {
                Version::V1 => Ok(()),
                Version::V2 => delegate(&parent, &base),
            });
            match made {
                Ok(()) => this.bases.push(base),
                Err(error) => {
                    this.problem = Some(format!("cannot use {}: {error}", base.display()));
                    // What was made before the failure; it is empty.
                    let _ = fs::remove_dir(base.join(HOLDERS));
                    let _ = fs::remove_dir(&base);
                }
            }
        }
        this
    }

    /// The cgroups around the one of a launch record: where the daemon that wrote it makes them. Makes
    /// nothing.
    #[must_use]
    pub fn around(group: &VmCgroup) -> Self {
        let v2 = group.dirs.iter().any(|dir| dir.join("cgroup.controllers").exists());
        let bases = group.dirs.iter().filter_map(|dir| dir.parent()).map(Path::to_path_buf).collect();
        Self { version: if v2 { Version::V2 } else { Version::V1 }, bases, problem: None, scopes: None }
    }

    /// Why VMs run without some or all limits.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Where the cgroup of `vm_id` is or would be; nowhere yet if systemd is to make it.
    #[must_use]
    pub fn of(&self, vm_id: VmId) -> VmCgroup {
        let name = vm_id.to_string().to_ascii_lowercase();
        VmCgroup {
            dirs: self.bases.iter().map(|base| base.join(&name)).collect(),
            holder_dirs: self.bases.iter().map(|base| base.join(HOLDERS)).collect(),
            scope: None,
        }
    }

    /// Makes the cgroup of a process of `vm_id`, or sets the limits of the one that is there. One in a scope is
    /// made by the holder.
    ///
    /// # Errors
    /// A directory or a limit is refused. Without cgroups this does nothing.
    pub fn create(
        &self,
        vm_id: VmId,
        incarnation: u64,
        limits: &CgroupLimits,
    ) -> Result<VmCgroup, CgroupError> {
        if let Some((run, installation)) = &self.scopes {
            let mut scope = Scope::new(run.clone(), *installation, vm_id, incarnation);
            let settings = self.settings(limits).into_iter();
            scope.settings = settings.map(|(file, value)| (file.to_owned(), value.to_string())).collect();
            let dir = scope.dir();
            return Ok(VmCgroup {
                dirs: vec![dir.join(SCOPE_VMM)],
                holder_dirs: vec![dir.join(SCOPE_HOLDER)],
                scope: Some(scope),
            });
        }
        let group = self.of(vm_id);
        for dir in &group.dirs {
            fs::create_dir_all(dir).map_err(|source| CgroupError::Create { path: dir.clone(), source })?;
            // A hierarchy has only the files of its own controllers.
            for (file, value) in self.settings(limits) {
                let path = dir.join(file);
                if path.exists() {
                    fs::write(&path, value.to_string()).map_err(|source| CgroupError::Limit {
                        path,
                        value,
                        source,
                    })?;
                }
            }
        }
        Ok(group)
    }

    fn settings(&self, limits: &CgroupLimits) -> Vec<(&'static str, u64)> {
        match self.version {
            Version::V1 => vec![
                ("memory.limit_in_bytes", limits.memory_bytes),
                ("pids.max", limits.pids),
                ("cpu.shares", (1024 * limits.cpus).clamp(2, 262_144)),
                ("blkio.weight", (100 * limits.cpus).clamp(10, 1_000)),
                ("blkio.bfq.weight", (100 * limits.cpus).clamp(1, 1_000)),
            ],
            Version::V2 => vec![
                ("memory.max", limits.memory_bytes),
                // A VM without one of its processes is no VM.
                ("memory.oom.group", 1),
                ("pids.max", limits.pids),
                ("cpu.weight", (100 * limits.cpus).clamp(1, 10_000)),
                ("io.weight", (100 * limits.cpus).clamp(1, 10_000)),
                ("io.bfq.weight", (100 * limits.cpus).clamp(1, 1_000)),
            ],
        }
    }

    /// Removes the installation's own directories, when no VM is left.
    ///
    /// # Errors
    /// A VM or a holder still lives in one.
    pub fn remove_base(&self) -> Result<(), CgroupError> {
        for base in &self.bases {
            remove_dir(&base.join(HOLDERS))?;
            remove_dir(base)?;
        }
        Ok(())
    }
}

impl VmCgroup {
    /// Processes in it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .dirs
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How often the kernel killed a process in it for memory; `None` if nobody counts.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        oom_kills(&self.dirs)
    }

    /// Memory used by everything in it, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        self.dirs.iter().find_map(|dir| {
            ["memory.current", "memory.usage_in_bytes"]
                .iter()
                .find_map(|file| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
        })
    }

    /// Sends SIGKILL to everything in it; a process that forks meanwhile is caught by the next call.
    pub fn kill(&self) {
        for dir in &self.dirs {
            // One write kills all, without a race; only v2 since 5.14 has it.
            if dir.join("cgroup.kill").exists() && fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                return;
            }
        }
        for pid in self.pids() {
            // 0 stands for processes of another pid namespace, which we cannot reach.
            if pid > 0 {
                // Gone meanwhile is what we want.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }

    /// Kills everything in it and removes it, retrying for as long as `within`.
    ///
    /// # Errors
    /// It is still busy then, or we may not remove it.
    pub async fn remove(&self, within: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + within;
        for dir in &self.dirs {
            loop {
                match remove_dir(dir) {
                    Err(CgroupError::Remove { source, .. })
                        if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        self.kill();
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Ok(()) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Remove { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The daemon's own cgroup in each hierarchy; `own` is the text of `/proc/self/cgroup`.
fn parents(root: &Path, own: &str) -> (Version, Vec<PathBuf>) {
    let path_of = |wanted: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            (controllers.split(',').any(|name| name == wanted)).then_some(path)
        })
    };
    // In a container the path may be one of the host's that is not visible: use the top then.
    let within = |mount: PathBuf, path: Option<&str>| {
        let inner = mount.join(path.unwrap_or("/").trim_start_matches('/'));
        if inner.is_dir() { inner } else { mount }
    };
    if root.join("cgroup.controllers").exists() {
        let own_path = own.lines().find_map(|line| line.strip_prefix("0::"));
        return (Version::V2, vec![within(root.to_owned(), own_path)]);
    }
    let mounted = V1.iter().filter(|name| root.join(name).join("cgroup.procs").exists());
    (Version::V1, mounted.map(|name| within(root.join(name), path_of(name))).collect())
}

/// Passes the controllers on to the VMs' cgroups. A v2 cgroup with processes cannot do so, hence the daemon
/// moves into a leaf if it has to.
fn delegate(parent: &Path, base: &Path) -> io::Result<()> {
    const WANTED: &str = "+memory +pids";
    const WELCOME: [&str; 2] = ["+cpu", "+io"];
    let pass_on = |dir: &Path| {
        let control = dir.join("cgroup.subtree_control");
        // Shares matter under contention only; without them a VM still has its limits.
        WELCOME.iter().for_each(|one| drop(fs::write(&control, one)));
        fs::write(&control, WANTED)
    };
    if let Err(error) = pass_on(parent) {
        if error.kind() != io::ErrorKind::ResourceBusy {
            return Err(error);
        }
        let leaf = base.join("daemon");
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())?;
        pass_on(parent)?;
    }
    pass_on(base)
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
