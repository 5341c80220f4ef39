//! What the configuration names of this machine: programs, folders and images.

use std::path::Path;

use drover_actors::chain;
use drover_actors::hypervisor::launcher::Launcher;
use drover_actors::hypervisor::version::{check as version_of, find};
use drover_actors::images::Images;
use tokio::process::Command;

use super::Finding;
use crate::config::HostConfig;

/// Less than this is little for a journal, its growth and the disks of VMs.
const ROOM: u64 = 2 << 30;

pub(super) async fn look(config: &HostConfig) -> Vec<Finding> {
    vec![
        hypervisor(config).await,
        holder(config),
        launcher(config),
        nft().await,
        folder("state folder", &config.state_dir),
        folder("run folder", &config.run_dir),
        images(config),
    ]
}

async fn hypervisor(config: &HostConfig) -> Finding {
    let check = "hypervisor";
    let search = std::env::var("PATH").unwrap_or_default();
    let found = match find(std::slice::from_ref(&config.vmm.path), &search) {
        Ok(path) => version_of(&path).await.map(|version| (path, version)),
        Err(error) => Err(error),
    };
    match found {
        Ok((path, version)) => Finding::good(check, format!("{} ({})", version.text, path.display())),
        Err(error) => {
            Finding::bad(check, chain(&error).to_string(), "install cloud-hypervisor, or set vmm.path")
        }
    }
}

fn holder(config: &HostConfig) -> Finding {
    let path = crate::app::holder(config);
    match path.is_file() {
        true => Finding::good("holder", path.display().to_string()),
        false => {
            let advice = "install drover-hold beside drover, or set vmm.hold";
            Finding::bad("holder", format!("{} is not there", path.display()), advice)
        }
    }
}

/// A service manager that ends everything below the daemon would end its VMs.
fn launcher(config: &HostConfig) -> Finding {
    let check = "launcher";
    let search = std::env::var("PATH").unwrap_or_default();
    let chosen = match Launcher::choose(config.vmm.launcher, &search) {
        Ok(chosen) => chosen,
        Err(error) => return Finding::bad(check, error.reason, "set vmm.launcher to auto or direct"),
    };
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let in_service = own.lines().any(|line| line.trim_end().ends_with(".service"));
    match chosen {
        Launcher::Direct { .. } if in_service => {
            let advice = "its unit needs KillMode=process and Delegate=yes, as in deploy/drover.service: else a \
                          stop of the service is the end of its VMs";
            Finding::weak(check, format!("{}, in a service of systemd", chosen.describe()), advice)
        }
        _ => Finding::good(check, chosen.describe()),
    }
}

async fn nft() -> Finding {
    let said = Command::new("nft").arg("--version").output().await;
    match said {
        Ok(output) if output.status.success() => {
            Finding::good("nft", String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Finding::bad("nft", output.status.to_string(), "reinstall nftables"),
        Err(error) => Finding::bad("nft", error.to_string(), "install nftables"),
    }
}

/// The nearest folder above that exists tells of the room.
fn folder(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    let Some(there) = path.ancestors().find(|above| above.is_dir()) else {
        return Finding::bad(check, format!("{shown} is not a path"), "give an absolute path");
    };
    match nix::sys::statvfs::statvfs(there) {
        Ok(stat) => {
            let room = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{shown}, {} MiB free", room >> 20);
            match room >= ROOM {
                true => Finding::good(check, found),
                false => Finding::weak(check, found, "make room: disks of VMs and the journal live there"),
            }
        }
        Err(errno) => Finding::bad(check, format!("{shown}: {errno}"), "make it, writable for root"),
    }
}

fn images(config: &HostConfig) -> Finding {
    let dir = config.images();
    match Images::load(&dir) {
        Ok(images) => Finding::good("images", format!("{} in {}", images.len(), dir.display())),
        Err(error) => {
            let advice = format!("deploy/guest/build-image.sh {}", dir.display());
            Finding::bad("images", chain(&error).to_string(), advice)
        }
    }
}
