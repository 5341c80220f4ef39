//! A host that is a service of systemd, as `deploy/drover.service` makes it: whatever happens to the service, its
//! VMs go on, each in a scope of its own.
//!
//! Only where systemd is the service manager, as on the host of `tests/nested`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{leak, netns};

const UNIT: &str = "drover.service";

fn systemctl(args: &[&str]) -> String {
    let done = Command::new("systemctl").args(args).output().unwrap();
    assert!(done.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// The unit as it is shipped, with the programs, the configuration and the namespace of the test.
struct Service {
    files: Vec<PathBuf>,
}

impl Service {
    fn install(world: &World) -> Self {
        let shipped = PathBuf::from(format!("/run/systemd/system/{UNIT}"));
        let changes = PathBuf::from(format!("/run/systemd/system/{UNIT}.d"));
        fs::write(&shipped, include_str!("../../deploy/drover.service")).unwrap();
        fs::create_dir_all(&changes).unwrap();
        let text = format!(
            "[Service]\nExecStart=\nExecStart={} host run --config {}\nNetworkNamespacePath=/run/netns/{}\n\
             StandardOutput=append:{}\nStandardError=inherit\n",
            world.bin("drover").display(),
            world.path("host.yaml").display(),
            netns::current().unwrap(),
            world.path("host.log").display(),
        );
        fs::write(changes.join("test.conf"), text).unwrap();
        systemctl(&["daemon-reload"]);
        Self { files: vec![shipped, changes] }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", UNIT]).output();
        for file in &self.files {
            let _ = if file.is_dir() { fs::remove_dir_all(file) } else { fs::remove_file(file) };
        }
        let _ = Command::new("systemctl").arg("daemon-reload").output();
    }
}

fn cgroup_of(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    Path::new("/sys/fs/cgroup").join(path)
}

#[test]
fn vms_outlive_whatever_happens_to_the_service() {
    let test = "vms_outlive_whatever_happens_to_the_service";
    if !Path::new("/run/systemd/system").is_dir() {
        return println!("SKIP {test}: systemd is not the service manager; the host of tests/nested has it");
    }
    run(test, Options::down(), async |world| {
        world.start_nats().await;
        let service = Service::install(world);
        systemctl(&["start", UNIT]);
        let bus = world.bus.clone();
        world.ready_on(&bus).await;
        let info = bus.host().await.unwrap();
        assert!(info.confinement["launcher"].starts_with("systemd"), "{:?}", info.confinement);

        let config = world.path("host.yaml").display().to_string();
        let doctor = world.drover(&["doctor", "--config", &config]).await;
        let doctor = String::from_utf8(doctor.stdout).unwrap();
        assert!(doctor.contains("systemd: each VM is a scope"), "{doctor}");

        let vm = bus.up("a").await;
        let pid = vm.vmm_pid.unwrap();
        let group = cgroup_of(pid);
        let scope = group.parent().unwrap();
        let unit = scope.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(unit.starts_with("drover-vm-") && group.ends_with("vmm"), "{group:?}");
        let limit: u64 = fs::read_to_string(group.join("memory.max")).unwrap().trim().parse().unwrap();
        assert!(limit > 64 << 20, "the guest and its VMM have {limit} bytes");
        assert_eq!(systemctl(&["show", &unit, "--property=ActiveState,Description"]).lines().count(), 2);
        assert_eq!(systemctl(&["is-active", &unit]), "active");

        // A crash, which systemd answers with a new daemon; a restart; a stop and a start.
        systemctl(&["kill", "--kill-who=main", "--signal=KILL", UNIT]);
        until("another daemon", async || {
            (systemctl(&["show", UNIT, "--property=NRestarts"]) == "NRestarts=1").then_some(())
        })
        .await;
        for _ in 0..2 {
            world.ready_on(&bus).await;
            bus.until_ping("a").await;
            assert_eq!(bus.status("a").await.unwrap().vmm_pid, Some(pid));
            systemctl(&["restart", UNIT]);
        }
        systemctl(&["stop", UNIT]);
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "the VM lives on without the service");
        systemctl(&["start", UNIT]);
        world.ready_on(&bus).await;
        bus.until_ping("a").await;
        assert_eq!(bus.status("a").await.unwrap().vmm_pid, Some(pid));

        bus.change("a", "stop").await.unwrap();
        assert_eq!(leak::runtime(world, &vm), Vec::<String>::new());
        until("the scope is gone", async || (!scope.exists()).then_some(())).await;
        bus.change("a", "start").await.unwrap();
        bus.until_ping("a").await;
        bus.change("a", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        drop(service);
    });
}
