//! Who starts a holder: the daemon itself, or systemd, in a scope of its own for each VM.
//!
//! A scope makes a VM a unit beside the daemon's own: `systemctl` shows it, whatever systemd does to the
//! daemon's unit does not reach it, and its cgroup is delegated to us. The holder is the same either way, and
//! so is everything after it; a daemon adopts VMs of both.

use std::path::{Path, PathBuf};

use drover_schemas::id::{InstallationId, VmId};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::cgroup;

/// There if systemd is the service manager (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";
/// The slice around those of all installations.
const SLICE: &str = "drover.slice";

/// Which launcher is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LauncherChoice {
    /// Systemd where it runs, with cgroup v2; else direct.
    #[default]
    Auto,
    /// The daemon.
    Direct,
    /// Systemd.
    Systemd,
}

/// Who starts holders here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// The daemon, which also makes the cgroups, below its own.
    Direct {
        /// Why not systemd.
        reason: String,
    },
    /// Systemd.
    Systemd {
        /// `systemd-run`.
        run: PathBuf,
    },
}

/// The wanted launcher cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("vmm.launcher is systemd, but {reason}; set it to auto or direct")]
pub struct LauncherError {
    /// What is missing.
    pub reason: String,
}

impl Launcher {
    /// Chooses, looking for programs in `search`, as `PATH` is written.
    ///
    /// # Errors
    /// Systemd is insisted on and is not there.
    pub fn choose(choice: LauncherChoice, search: &str) -> Result<Self, LauncherError> {
        Self::choose_at(choice, Path::new(BOOTED), Path::new(cgroup::ROOT), search)
    }

    fn choose_at(
        choice: LauncherChoice,
        booted: &Path,
        cgroups: &Path,
        search: &str,
    ) -> Result<Self, LauncherError> {
        let found = match choice {
            LauncherChoice::Direct => Err("the configuration says so".to_owned()),
            _ => systemd(booted, cgroups, search),
        };
        match found {
            Ok(run) => Ok(Self::Systemd { run }),
            Err(reason) if choice == LauncherChoice::Systemd => Err(LauncherError { reason }),
            Err(reason) => Ok(Self::Direct { reason }),
        }
    }

    /// For an operator.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Direct { reason } => format!("direct, as {reason}"),
            Self::Systemd { .. } => format!("systemd: each VM is a scope below {SLICE}"),
        }
    }
}

fn systemd(booted: &Path, cgroups: &Path, search: &str) -> Result<PathBuf, String> {
    if !booted.is_dir() {
        return Err("systemd does not run here".to_owned());
    }
    if !cgroups.join("cgroup.controllers").exists() {
        return Err("systemd does not use cgroup v2 here".to_owned());
    }
    let mut programs = std::env::split_paths(search).map(|dir| dir.join("systemd-run"));
    programs.find(|path| path.is_file()).ok_or_else(|| "systemd-run is not in PATH".to_owned())
}

/// The scope of one VMM process. Each has a name of its own: systemd may still be tidying up the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// `systemd-run`.
    pub run: PathBuf,
    /// The slice of the installation.
    pub slice: String,
    /// The unit.
    pub unit: String,
    /// What is written to the files of the VMM's cgroup, if they are there.
    pub settings: Vec<(String, String)>,
}

impl Scope {
    /// The scope of incarnation `incarnation` of `vm_id`.
    #[must_use]
    pub fn new(run: PathBuf, installation: InstallationId, vm_id: VmId, incarnation: u64) -> Self {
        let small = |text: String| text.to_ascii_lowercase();
        Self {
            run,
            slice: format!("drover-{}.slice", small(installation.to_string())),
            unit: format!("drover-vm-{}-{incarnation}.scope", small(vm_id.to_string())),
            settings: Vec::new(),
        }
    }

    /// Its cgroup.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        // A dash in the name of a slice means a slice within a slice.
        Path::new(cgroup::ROOT).join(SLICE).join(&self.slice).join(&self.unit)
    }

    /// A command that runs `hold` in the scope; the holder makes the cgroups within.
    #[must_use]
    pub fn command(&self, hold: &Path, description: &str) -> Command {
        let mut command = Command::new(&self.run);
        command
            .args(["--scope", "--quiet", "--collect", "--property=Delegate=yes"])
            // The daemon, told to stop its VMs at the host's shutdown, comes before systemd itself.
            .arg("--property=Before=drover.service")
            .arg(format!("--slice={}", self.slice))
            .arg(format!("--unit={}", self.unit))
            .arg(format!("--description={description}"))
            .arg("--")
            .arg(hold)
            .arg("--scope")
            .arg(self.dir());
        for (file, value) in &self.settings {
            command.arg("--limit").arg(format!("{file}={value}"));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_chosen_where_it_runs_with_cgroup_v2() {
        let temp = tempfile::tempdir().unwrap();
        let (booted, cgroups) = (temp.path().join("booted"), temp.path().join("cgroup"));
        let search = temp.path().display().to_string();
        let choose = |choice| Launcher::choose_at(choice, &booted, &cgroups, &search);
        let direct = |reason: &str| match choose(LauncherChoice::Auto).unwrap() {
            Launcher::Direct { reason: found } => assert!(found.contains(reason), "{found}"),
            other @ Launcher::Systemd { .. } => panic!("{other:?}"),
        };
        direct("does not run here");
        std::fs::create_dir(&booted).unwrap();
        direct("cgroup v2");
        assert!(choose(LauncherChoice::Systemd).unwrap_err().to_string().contains("cgroup v2"));
        std::fs::create_dir(&cgroups).unwrap();
        std::fs::write(cgroups.join("cgroup.controllers"), "memory").unwrap();
        direct("PATH");
        let run = temp.path().join("systemd-run");
        std::fs::write(&run, "").unwrap();
        assert_eq!(choose(LauncherChoice::Auto).unwrap(), Launcher::Systemd { run });
        assert!(matches!(choose(LauncherChoice::Direct).unwrap(), Launcher::Direct { .. }));
    }

    #[test]
    fn a_scope_is_named_after_its_vm_and_lies_in_the_slice_of_its_installation() {
        let scope = Scope::new("/bin/run".into(), InstallationId::from_u128(1), VmId::from_u128(2), 3);
        let dir = "/sys/fs/cgroup/drover.slice/drover-00000000000000000000000001.slice/\
                   drover-vm-00000000000000000000000002-3.scope";
        assert_eq!(scope.dir(), Path::new(dir));
    }
}
