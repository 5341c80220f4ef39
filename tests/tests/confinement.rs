//! What a VMM can reach: nothing of the host, nothing of another VM, and no way to more.
//!
//! With `CLOUD_HYPERVISOR=path` the same is looked at with the real hypervisor, which boots where `/dev/kvm`
//! answers, whether or not its guest can run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use drover_schemas::body::status::VmStatus;
use drover_tests::leak;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::json;

/// The fields of `/proc/…/status`.
fn field(status: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().to_owned()
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(dir.as_ref()).unwrap_or_else(|e| panic!("{:?}: {e}", dir.as_ref()));
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Below the VMM's root.
fn seen(pid: u32, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap())
}

/// What holds for every VMM; answers its user.
fn is_confined(world: &World, vm: &VmStatus) -> u32 {
    let pid = vm.vmm_pid.unwrap();
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    let uid: u32 = field(&status, "Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert!(uid >= 100_000, "user {uid}");
    for ids in ["Uid", "Gid"] {
        assert_eq!(field(&status, ids).split_whitespace().collect::<Vec<_>>(), vec![uid.to_string(); 4]);
    }
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    let devices = names(seen(pid, Path::new("/dev")));
    let allowed = ["full", "kvm", "net", "null", "random", "urandom", "zero"];
    assert!(devices.iter().all(|name| allowed.contains(&name.as_str())), "{devices:?}");
    for hidden in ["/etc/passwd", "/etc/shadow", "/root/.bashrc", "/home", "/sys", "/var/lib"] {
        assert!(!seen(pid, Path::new(hidden)).exists(), "{hidden}");
    }
    // Of the run folder and the disks, its own.
    let own = vm.vm_id.to_string().to_ascii_lowercase();
    assert_eq!(names(seen(pid, world.run_dir())), [own.as_str()]);
    let disks = seen(pid, &world.state_dir().join("disks"));
    assert!(!disks.exists() || names(&disks) == [own.as_str()]);
    assert!(!seen(pid, world.state_dir()).join("journal").exists());
    uid
}

#[test]
fn a_vmm_reaches_nothing_but_its_vm() {
    run("a_vmm_reaches_nothing_but_its_vm", Options::default(), async |world| {
        let (a, b) = (world.bus.up("a").await, world.bus.up("b").await);
        let (of_a, of_b) = (is_confined(world, &a), is_confined(world, &b));
        assert_ne!(of_a, of_b, "each VM has a user of its own");
        // Also by the names that the host uses, another VM's sockets are closed to it.
        let sockets = world.vm_dir(b.vm_id).join("s");
        let refused = tokio::process::Command::new("setpriv")
            .args([&format!("--reuid={of_a}"), &format!("--regid={of_a}"), "--clear-groups", "ls"])
            .arg(&sockets)
            .output();
        let refused = refused.await.unwrap();
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("denied"));
        let info = world.bus.host().await.unwrap();
        assert!(info.confinement["user"].contains("no capability"), "{:?}", info.confinement);
    });
}

/// A VM on a host, and its user.
async fn up_on(world: &World, host: &str, name: &str) -> u32 {
    let body = json!({"wait": "agent", "spec": {"placement": {"host": host}}});
    let vm = until(&format!("{name} on {host}"), async || {
        world.bus.create(name, body.clone()).await.ok().map(|reply| reply.vm)
    })
    .await;
    let status = PathBuf::from(format!("/proc/{}/status", vm.vmm_pid.unwrap()));
    field(&status, "Uid").split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn installations_on_one_machine_give_no_user_twice() {
    let test = "installations_on_one_machine_give_no_user_twice";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        world.start_nats().await;
        world.hosts.iter_mut().for_each(|host| host.start());
        world.ready().await;
        let (a, b) = (up_on(world, "h1", "a").await, up_on(world, "h2", "b").await);
        assert!(a.abs_diff(b) >= 10_000, "{a} and {b} are of one range");
        // Whichever is started first, each has its own again.
        for host in &mut world.hosts {
            host.stop_host().await;
        }
        for host in world.hosts.iter_mut().rev() {
            host.start();
            host.ready_on(&world.bus).await;
        }
        let (c, d) = (up_on(world, "h1", "c").await, up_on(world, "h2", "d").await);
        assert!(a.abs_diff(c) < 10_000 && b.abs_diff(d) < 10_000, "{a} {c}, {b} {d}");
        // A third one is told whose they are, also while those daemons do not run.
        world.hosts[0].kill().await;
        let (state, third) = (world.hosts[0].state_dir().to_owned(), world.add_host());
        let mut config = third.config();
        config["capacity"]["first_uid"] = json!(a / 10_000 * 10_000);
        third.configure(&config);
        let failed = third.host_fails().await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains(state.to_str().unwrap()), "{said}");
        assert!(said.contains("are taken") && said.contains("or more"), "{said}");
        world.hosts[2].configure(&world.hosts[2].config());
        world.hosts[2].start();
        world.hosts[0].start();
        world.ready().await;
        let e = up_on(world, "h3", "e").await;
        assert!([a, b].iter().all(|other| other.abs_diff(e) >= 10_000), "{a}, {b}, {e}");
    });
}

#[test]
fn what_a_vmm_plants_in_its_folder_is_not_followed() {
    run("what_a_vmm_plants_in_its_folder_is_not_followed", Options::default(), async |world| {
        let (a, b) = (world.bus.up("a").await, world.bus.up("b").await);
        let sockets = |vm: &VmStatus| world.vm_dir(vm.vm_id).join("s");
        let precious = world.path("precious");
        std::fs::write(&precious, "kept").unwrap();
        // As a VMM would that has been taken over: its API leads to another VM's, and more lies about.
        let of_a = sockets(&a);
        std::fs::remove_file(of_a.join("api")).unwrap();
        std::os::unix::fs::symlink(sockets(&b).join("api"), of_a.join("api")).unwrap();
        std::os::unix::fs::symlink(&precious, of_a.join("serial.new")).unwrap();
        std::fs::create_dir_all(of_a.join("deep/er")).unwrap();
        std::os::unix::fs::symlink("/", of_a.join("deep/er/root")).unwrap();
        let refused = world.bus.change("a", "pause").await.unwrap_err();
        assert!(refused.to_string().contains("not a socket"), "{refused}");
        let other = world.bus.status("b").await.unwrap();
        assert_eq!((other.state.as_str(), other.vmm_pid), ("running", b.vmm_pid), "the other VM is unharmed");
        // It can be stopped, started anew over what lies there, and deleted.
        world.bus.change_with("a", "stop", json!({"force": true})).await.unwrap();
        world.bus.change_with("a", "start", json!({"wait": "agent"})).await.unwrap();
        world.bus.change("a", "delete").await.unwrap();
        until("nothing is left", async || leak::anything(world, &a).is_empty().then_some(())).await;
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "kept");
    });
}

#[test]
fn the_real_hypervisor_is_confined_and_filters_its_threads() {
    let test = "the_real_hypervisor_is_confined_and_filters_its_threads";
    let Some(vmm) = std::env::var_os("CLOUD_HYPERVISOR").map(PathBuf::from) else {
        return println!("SKIP {test}: CLOUD_HYPERVISOR does not name a cloud-hypervisor");
    };
    run(test, Options::down(), async move |world| {
        world.up_with(|config| config["vmm"]["path"] = json!(vmm)).await;
        let made =
            world.bus.create("a", json!({"wait": "running", "spec": {"template": "linux-microvm"}})).await;
        let vm = made.unwrap_or_else(|error| panic!("{error}")).vm;
        is_confined(world, &vm);
        let pid = vm.vmm_pid.unwrap();
        for thread in names(format!("/proc/{pid}/task")) {
            let status = PathBuf::from(format!("/proc/{pid}/task/{thread}/status"));
            // v53 leaves its first thread unfiltered.
            let wanted = if thread == pid.to_string() { "0" } else { "2" };
            assert_eq!(field(&status, "Seccomp"), wanted, "{}", field(&status, "Name"));
        }
        let info = world.bus.host().await.unwrap();
        println!("{test}: {} {:?}", info.vmm.version, info.confinement);
        world.bus.change("a", "pause").await.unwrap();
        world.bus.change("a", "resume").await.unwrap();
        world.bus.change_with("a", "stop", json!({"force": true})).await.unwrap();
        world.bus.change("a", "delete").await.unwrap();
        until("nothing is left", async || leak::anything(world, &vm).is_empty().then_some(())).await;
    });
}
