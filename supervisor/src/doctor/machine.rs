//! The machine and its kernel.

use std::fs::OpenOptions;
use std::path::Path;

use drover_actors::hypervisor::cores::{self, Cores};
use drover_actors::hypervisor::{cgroup, landlock};

use super::Finding;

/// The oldest kernel that everything here was made for: pidfds, cgroup.kill, mounts of /proc by VM.
const KERNEL: (u32, u32) = (5, 14);

pub(super) fn look() -> Vec<Finding> {
    vec![user(), kernel(), hardware(), tun(), namespaces(), cgroups(), landlock_of(), cores_of()]
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Finding::good("user", "root");
    }
    let advice = "run the host as root: it makes TAPs, cgroups and users for VMs, whose VMMs run without";
    Finding::bad("user", format!("uid {}", nix::unistd::geteuid()), advice)
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let (major, minor) = KERNEL;
    match version(&release) {
        Some(found) if found >= KERNEL => Finding::good("kernel", release),
        _ => Finding::weak("kernel", release, format!("use Linux {major}.{minor} or newer")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Whether the processor and the kernel offer hardware virtualisation. A /dev/kvm alone is no sign:
/// it may be there and unable to run a guest.
///
/// # Errors
/// Why not, in words.
pub fn virtualisation() -> Result<(), String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if cfg!(target_arch = "x86_64") && !flags.split_whitespace().any(|f| f == "vmx" || f == "svm") {
        return Err("this processor offers no virtualisation (no vmx or svm)".to_owned());
    }
    open("/dev/kvm").map_err(|e| format!("/dev/kvm cannot be opened: {e}"))
}

/// Whether a device may be used.
///
/// # Errors
/// It may not, or is not there.
pub fn open(path: impl AsRef<Path>) -> std::io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

fn hardware() -> Finding {
    match virtualisation() {
        Ok(()) => Finding::good("hardware virtualisation", "/dev/kvm, and the processor's support"),
        Err(why) => {
            let advice = "switch it on in the firmware or, in a VM, nested virtualisation outside; \
                          guests run in software emulation (softvmm) meanwhile";
            Finding::weak("hardware virtualisation", why, advice)
        }
    }
}

fn tun() -> Finding {
    match open("/dev/net/tun") {
        Ok(()) => Finding::good("/dev/net/tun", "can be opened"),
        Err(error) => {
            let advice = "`modprobe tun`; in a container pass the device in; run as root";
            Finding::bad("/dev/net/tun", error.to_string(), advice)
        }
    }
}

/// In a thread of its own, whose namespace ends with it.
fn namespaces() -> Finding {
    let check = "mount namespaces";
    let made = std::thread::spawn(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)).join();
    match made {
        Ok(Ok(())) => Finding::good(check, "can be made"),
        Ok(Err(errno)) => {
            let advice =
                "VMMs cannot be confined: give the daemon CAP_SYS_ADMIN, or set vmm.confine to false";
            Finding::bad(check, errno.to_string(), advice)
        }
        Err(_) => Finding::weak(check, "not known", ""),
    }
}

fn cgroups() -> Finding {
    let check = "cgroups";
    let root = Path::new(cgroup::ROOT);
    if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        let has = |name: &str| controllers.split_whitespace().any(|c| c == name);
        let missing: Vec<&str> = ["memory", "pids", "cpu", "io"].into_iter().filter(|c| !has(c)).collect();
        if missing.is_empty() {
            return Finding::good(check, "v2 with memory, pids, cpu and io");
        }
        let advice = "enable the controllers on the kernel's command line or in the service's Delegate=";
        return Finding::weak(check, format!("v2 without {}", missing.join(", ")), advice);
    }
    let mounted: Vec<&str> =
        cgroup::V1.into_iter().filter(|name| root.join(name).join("cgroup.procs").exists()).collect();
    let advice = "VMs have limits, v2 has them in full: boot with systemd.unified_cgroup_hierarchy=1";
    match mounted.is_empty() {
        true => Finding::weak(check, "none", "mount them at /sys/fs/cgroup: VMs run without limits"),
        false => Finding::weak(check, format!("v1 with {}", mounted.join(", ")), advice),
    }
}

fn landlock_of() -> Finding {
    let abi = landlock::abi();
    let found = landlock::describe(abi);
    match abi {
        Some(abi) if abi >= landlock::NEEDED => Finding::good("Landlock", found),
        _ => Finding::weak("Landlock", found, "use Linux 6.2 or newer with landlock in its `lsm=` list"),
    }
}

fn cores_of() -> Finding {
    let check = "cores";
    match cores::look() {
        Cores::Single => Finding::good(check, "one thread each, which guests do not share"),
        Cores::Apart => Finding::good(check, "the kernel keeps guests off each other's (core scheduling)"),
        Cores::Shared => {
            let advice = "guests can find out about each other by the caches that threads share: use a kernel with \
                          CONFIG_SCHED_CORE, or switch such threads off (`nosmt`)";
            Finding::weak(check, "threads of one may run different guests", advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_far_as_they_are_numbers() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.14-rc1"), Some((5, 14)));
        assert_eq!(version("custom"), None);
    }
}
