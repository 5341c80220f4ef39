//! All that the VMM of one VM may reach: pure, but for links in the given paths.

use std::path::{Path, PathBuf};

use super::config::BootPaths;
use super::record::{Confinement, VisiblePath};
use super::run_dir::RunDir;

/// Programs and libraries of the system, as far as they are there.
const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"];
/// Devices that a VMM needs for itself, its processors and its network.
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm", "/dev/net/tun"];
/// Descriptors of a VMM: a few for each queue of each device, and room for the guest's connections.
const FILES: u64 = 4_096;

/// What a confinement is made for.
#[derive(Debug, Clone, Copy)]
pub struct ConfinementOf<'a> {
    /// The VM's user.
    pub uid: u32,
    /// The VMM's program.
    pub vmm: &'a Path,
    /// It is the stand-in, which starts programs of its own.
    pub emulated: bool,
    /// What the operator lets every VMM read.
    pub more: &'a [PathBuf],
    /// Kernel, firmware and disks.
    pub boot: &'a BootPaths,
    /// The directory of the VM's own disks.
    pub own_disks: &'a Path,
    /// The VM's run directory.
    pub run_dir: &'a RunDir,
    /// Processes and threads.
    pub processes: u64,
}

/// The confinement of a VMM.
#[must_use]
pub fn confinement(of: &ConfinementOf<'_>) -> Confinement {
    let mut paths = Paths::default();
    SYSTEM.iter().for_each(|path| paths.read(Path::new(path)));
    paths.read(of.vmm);
    of.more.iter().for_each(|path| paths.read(path));
    if of.emulated {
        helpers().iter().for_each(|path| paths.read(path));
    }
    let BootPaths { kernel, initramfs, firmware, disks } = of.boot;
    [kernel, initramfs, firmware].into_iter().flatten().for_each(|path| paths.read(path));
    for disk in disks.iter().filter(|disk| !disk.path.starts_with(of.own_disks)) {
        // A volume is nobody's else while it is written to.
        if disk.readonly { paths.read(&disk.path) } else { paths.write(&disk.path) }
    }
    disks.iter().filter_map(|disk| disk.backing.as_deref()).for_each(|image| paths.read(image));
    paths.write(of.own_disks);
    paths.read(of.run_dir.path());
    paths.write(&of.run_dir.sockets());
    let devices = DEVICES.map(str::to_owned).to_vec();
    Confinement { uid: of.uid, paths: paths.0, devices, files: FILES, processes: of.processes }
}

/// The stand-in's programs are on the search path, its files in variables of its own; the holder passes both.
fn helpers() -> Vec<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("SOFTVMM_"))
        .map(|(_, value)| PathBuf::from(value));
    std::env::split_paths(&search).chain(named).filter(|path| path.is_absolute()).collect()
}

/// A directory stands before what lies in it, and nothing stands twice.
#[derive(Debug, Default)]
struct Paths(Vec<VisiblePath>);

impl Paths {
    fn read(&mut self, path: &Path) {
        // A link is shown as it is, so what it leads to is shown too.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if real != path {
            self.add(path, false);
        }
        self.add(&real, false);
    }

    fn write(&mut self, path: &Path) {
        self.add(path, true);
    }

    fn add(&mut self, path: &Path, writable: bool) {
        let shown = self.0.iter().any(|shown| path.starts_with(&shown.path) && shown.writable == writable);
        if !shown {
            self.0.push(VisiblePath { path: path.to_owned(), writable });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::config::{DiskPath, ImageType};
    use crate::hypervisor::run_dir::RunRoot;

    #[test]
    fn a_vmm_sees_its_own_and_nothing_of_another() {
        let root = RunRoot::new(Path::new("/run/drover")).unwrap();
        let vm_id = drover_schemas::VmId::from_u128(7);
        let own = PathBuf::from("/var/lib/drover/disks/7");
        let disk = |path: &str, readonly| DiskPath {
            path: path.into(),
            readonly,
            image_type: ImageType::Raw,
            backing: (!readonly).then(|| "/srv/images/base.raw".into()),
            name: String::new(),
            discard: true,
            limits: None,
        };
        let boot = BootPaths {
            kernel: Some("/srv/images/vmlinux".into()),
            disks: vec![disk("/srv/images/root.raw", true), disk("/var/lib/drover/disks/7/disk1.raw", false)],
            ..BootPaths::default()
        };
        let run_dir = root.vm(vm_id);
        let of = ConfinementOf {
            uid: 200_007,
            vmm: Path::new("/opt/vmm/cloud-hypervisor"),
            emulated: false,
            more: &[PathBuf::from("/opt/firmware"), PathBuf::from("/usr/share/x")],
            boot: &boot,
            own_disks: &own,
            run_dir: &run_dir,
            processes: 130,
        };
        let made = confinement(&of);
        let list = |writable: bool| {
            let of = made.paths.iter().filter(|p| p.writable == writable).map(|p| p.path.clone());
            of.filter(|p| !SYSTEM.iter().any(|s| p.starts_with(s))).collect::<Vec<_>>()
        };
        let wanted =
            ["/opt/vmm/cloud-hypervisor", "/opt/firmware", "/srv/images/vmlinux", "/srv/images/root.raw"];
        let wanted = wanted.into_iter().chain(["/srv/images/base.raw"]);
        let wanted = wanted.map(PathBuf::from).chain([run_dir.path().to_owned()]);
        assert_eq!(list(false), wanted.collect::<Vec<_>>());
        assert_eq!(list(true), [own, run_dir.sockets()]);
        assert!(made.paths.iter().all(|p| p.path != Path::new("/usr/share/x")), "below /usr already");
        assert_eq!((made.uid, made.processes), (200_007, 130));
    }
}
