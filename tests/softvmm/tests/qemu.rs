//! The emulated guest, through the real binary: Debian's kernel and a tiny initramfs.
//!
//! Needs `qemu-system-x86_64`, `vhost-device-vsock` and the package `linux-image-*-cloud-amd64`,
//! unpacked: in the folder that `SOFTVMM_TEST_KERNEL` names, or downloaded with `apt-get` into the
//! build folder. What is missing is printed, and the test passes without having run.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{LIMIT, Tap, Vmm, gone, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A boot takes three seconds here; a busy machine may take long.
const BOOT: Duration = Duration::from_secs(120);

const MODULES: [&str; 14] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "pvpanic",
    "pvpanic-pci",
];

struct Material {
    kernel: PathBuf,
    initramfs: Vec<u8>,
    vsock: PathBuf,
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(name)).find(|p| p.is_file())
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, wanted) {
                return Some(found);
            }
        } else if wanted(&name) {
            return Some(path);
        }
    }
    None
}

fn kernel_folder() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("SOFTVMM_TEST_KERNEL") {
        return Ok(folder.into());
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join("kernel");
    if folder.exists() {
        return Ok(folder);
    }
    // Unpacked beside it, then put in place at once: another test may be doing the same.
    let work = tempfile::TempDir::new_in(cache).map_err(|e| e.to_string())?;
    // The package without a version only depends on the one that has the kernel.
    let script = "p=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: *//p' | head -1) \
        && apt-get -q download \"$p\" && mkdir kernel && dpkg-deb -x linux-image-*.deb kernel";
    let done = Command::new("sh").arg("-ec").arg(script).current_dir(work.path()).output();
    let done = done.map_err(|e| e.to_string())?;
    if !done.status.success() {
        return Err(format!("no kernel: {}", String::from_utf8_lossy(&done.stderr)));
    }
    let _ = std::fs::rename(work.path().join("kernel"), &folder);
    Ok(folder)
}

fn material() -> Result<Material, String> {
    on_path("qemu-system-x86_64").ok_or("no qemu-system-x86_64 on PATH")?;
    let vsock = std::env::var_os("SOFTVMM_VHOST_VSOCK").map(PathBuf::from);
    let vsock = vsock.or_else(|| on_path("vhost-device-vsock")).ok_or("no vhost-device-vsock on PATH")?;
    let folder = kernel_folder()?;
    let kernel = find(&folder, &|name| name.starts_with("vmlinuz")).ok_or("no vmlinuz in it")?;
    let mut archive = Archive::default();
    for dir in ["modules", "proc", "sys", "dev", "lib", "lib64"] {
        archive.add(dir, 0o040755, &[]);
    }
    for (n, module) in MODULES.iter().enumerate() {
        let file = find(&folder, &|name| name == format!("{module}.ko"));
        let file = file.ok_or_else(|| format!("no module {module}"))?;
        archive.add(&format!("modules/{n:02}-{module}.ko"), 0o100644, &read(&file)?);
    }
    let stand_in = Path::new(env!("CARGO_BIN_EXE_softvmm-stand-in"));
    archive.add("init", 0o100755, &read(stand_in)?);
    let list = Command::new("ldd").arg(stand_in).output().map_err(|e| e.to_string())?;
    let mut made = std::collections::BTreeSet::from(["lib".to_owned(), "lib64".to_owned()]);
    for library in String::from_utf8_lossy(&list.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        let mut parents: Vec<_> = Path::new(library).ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.into_iter().map(|p| p.to_string_lossy().trim_start_matches('/').to_owned()) {
            if !parent.is_empty() && made.insert(parent.clone()) {
                archive.add(&parent, 0o040755, &[]);
            }
        }
        archive.add(library.trim_start_matches('/'), 0o100755, &read(Path::new(library))?);
    }
    Ok(Material { kernel, initramfs: archive.finish(), vsock })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A cpio archive in the form that the kernel unpacks.
#[derive(Default)]
struct Archive(Vec<u8>, u32);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.1 += 1;
        let (ino, size, length) = (self.1, content.len(), name.len() + 1);
        let head = format!(
            "070701{ino:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{length:08x}{0:08x}",
            0, 1
        );
        self.0.extend(head.as_bytes());
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.0
    }
}

/// A VMM whose guest can be emulated, and the configuration for it.
fn prepared() -> Option<(Vmm, Value)> {
    let material = match material() {
        Ok(material) => material,
        Err(missing) => {
            println!("skipped: {missing}");
            return None;
        }
    };
    let vsock = material.vsock.to_string_lossy().into_owned();
    let vmm = Vmm::start(&[("SOFTVMM_GUEST", "qemu"), ("SOFTVMM_VHOST_VSOCK", &vsock)]);
    std::fs::write(vmm.path("initramfs"), material.initramfs).expect("write");
    let mut sectors = b"drover-test-disk".to_vec();
    sectors.resize(1 << 20, 0);
    std::fs::write(vmm.path("disk"), sectors).expect("write");
    let mut config = vmm.config();
    config["payload"] = json!({
        "kernel": material.kernel,
        "initramfs": vmm.path("initramfs"),
        "cmdline": "console=ttyS0 panic=0 quiet",
    });
    config["memory"]["size"] = json!(192 << 20);
    Some((vmm, config))
}

#[test]
fn a_real_guest_boots_answers_reboots_pauses_and_powers_off() {
    let Some((mut vmm, mut config)) = prepared() else { return };
    config["serial"] = json!({"mode": "File", "file": vmm.path("console")});
    let tap = Tap::make();
    if let Some(tap) = &tap {
        config["net"] = json!([{"tap": tap.0, "mac": "2e:00:00:00:00:07", "id": "net0"}]);
    }
    assert_eq!(vmm.call("PUT", "vm.create", Some(&config)), (204, Value::Null));
    vmm.put("vm.boot");
    let ready = |times: usize| {
        until(BOOT, "the guest is ready", || {
            let said = std::fs::read(vmm.path("console")).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            (said.matches("stand-in: ready").count() >= times).then_some(said)
        })
    };
    ready(1);
    let mut guest = vmm.dial(1023);
    assert_eq!(guest.ask("disk"), "drover-test-disk");
    if tap.is_some() {
        assert_eq!(guest.ask("net"), "2e:00:00:00:00:07");
    }
    let first = guest.ask("boot-id");
    until(LIMIT, "its devices are reported", || {
        (vmm.events().iter().filter(|e| *e == "virtio-device activated").count() >= 2).then_some(())
    });
    let counters = vmm.call("GET", "vm.counters", None).1;
    assert!(counters["disk0"]["read_bytes"].as_u64().is_some_and(|n| n > 0), "{counters}");
    let leaving = vmm.dial(1023);
    vmm.put("vm.pause");
    assert_eq!(vmm.state(), "Paused");
    // What is said meanwhile waits, and who hangs up does no harm.
    guest.tell("meanwhile");
    drop(leaving);
    assert!(vmm.dial_once(1023).is_none(), "nobody answers meanwhile");
    vmm.put("vm.resume");
    assert_eq!(guest.hear(), "meanwhile");
    assert_eq!(guest.ask("still"), "still");
    assert_eq!(vmm.dial(1023).ask("again"), "again");
    guest.tell("reboot");
    until(BOOT, "it reboots", || vmm.events().contains(&"vm rebooted".to_owned()).then_some(()));
    // The file was truncated: one greeting again, and from another kernel.
    assert_eq!(ready(1).matches("stand-in: ready").count(), 1);
    let mut guest = vmm.dial(1023);
    assert_ne!(guest.ask("boot-id"), first);
    guest.tell("poweroff");
    until(BOOT, "it powers off", || vmm.events().contains(&"vm shutdown".to_owned()).then_some(()));
    assert_eq!(vmm.state(), "Created");
    assert!(vmm.helpers().is_empty() && !vmm.path("v").exists());
    vmm.put("vm.boot");
    let helpers = vmm.helpers();
    assert_eq!(helpers.len(), 2, "QEMU and the vsock device");
    vmm.signal(Signal::SIGTERM);
    assert_eq!(vmm.wait_exit().code(), Some(0));
    assert!(helpers.into_iter().all(gone));
}

#[test]
fn a_panic_is_reported_and_a_killed_emulator_takes_the_vmm_with_it() {
    let Some((mut vmm, config)) = prepared() else { return };
    assert_eq!(vmm.call("PUT", "vm.create", Some(&config)), (204, Value::Null));
    vmm.put("vm.boot");
    let mut guest = until(BOOT, "the guest answers", || vmm.dial_once(1023));
    guest.tell("panic");
    vmm.wait_event("guest panic", 1);
    assert_eq!(vmm.state(), "Running", "what to do about it is not for the VMM to say");
    let helpers = vmm.helpers();
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let emulator = helpers.iter().find(|pid| name(pid).starts_with("qemu")).expect("QEMU");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*emulator as i32), Signal::SIGSEGV).expect("kill");
    assert_eq!(vmm.wait_exit().signal(), Some(11));
    until(LIMIT, "the helpers are gone", || helpers.iter().all(|pid| gone(*pid)).then_some(()));
}
