//! Errors as somebody meets them who has never seen drover: each says what is wrong and what to do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::json;

/// What a program that failed said.
fn failed(done: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(code), "{said}");
    assert!(said.contains("error"), "{said}");
    assert!(!said.contains("panicked") && !said.contains("Error {"), "{said}");
    said
}

/// What the host says when it cannot start.
async fn host_says(world: &World, wanted: &[&str]) {
    let said = failed(&world.host_fails().await, 1);
    for part in wanted {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// What the command line says when the request is wrong.
async fn says(world: &World, args: &[&str], code: i32, wanted: &[&str]) {
    let said = failed(&world.drover(args).await, code);
    for part in wanted {
        assert!(said.contains(part), "{args:?}: {part:?} is not in: {said}");
    }
}

#[test]
fn a_wrong_request_is_explained_on_the_command_line() {
    run("a_wrong_request_is_explained_on_the_command_line", Options::default(), async |world| {
        let create = ["vm", "create", "web"];
        says(
            world,
            &[&create[..], &["-t", "linux-defualt"]].concat(),
            2,
            &["linux-defualt", "linux-default"],
        )
        .await;
        says(world, &[&create[..], &["--set", "boot.kernel=nope"]].concat(), 3, &["nope"]).await;
        says(world, &["vm", "create", "web.1"], 2, &["'.'", "position 3"]).await;
        says(world, &[&create[..], &["--set", "memory=3"]].concat(), 2, &["3 bytes", "64 MiB"]).await;
        says(world, &[&create[..], &["--set", "memry=1GiB"]].concat(), 2, &["memry"]).await;
        says(world, &["vm", "get", "nobody"], 3, &["nobody"]).await;
        world.bus.up("web").await;
        says(world, &create, 4, &["web"]).await;
        world.bus.change("web", "stop").await.unwrap();
        says(world, &["vm", "pause", "web"], 4, &["stopped"]).await;
    });
}

#[test]
fn a_bus_that_is_not_there_is_named_with_what_to_do() {
    run("a_bus_that_is_not_there_is_named_with_what_to_do", Options::down(), async |world| {
        says(world, &["vm", "ls"], 5, &["127.0.0.1:4222", "next:"]).await;
        // The host goes on: VMs outlive the bus.
        let config = world.config();
        let place = config["bus"]["urls"][0].as_str().unwrap().trim_start_matches("nats://");
        world.start();
        until("the host says it", async || world.told().contains(place).then_some(())).await;
        world.start_nats().await;
        world.ready().await;
    });
}

#[test]
fn a_hypervisor_that_is_missing_is_named() {
    run("a_hypervisor_that_is_missing_is_named", Options::down(), async |world| {
        world.configure_with(|config| config["vmm"]["path"] = json!("/nonexistent/cloud-hypervisor"));
        host_says(world, &["/nonexistent/cloud-hypervisor", "vmm.path"]).await;
    });
}

#[test]
fn an_agent_that_guests_cannot_run_is_named() {
    run("an_agent_that_guests_cannot_run_is_named", Options::down(), async |world| {
        for (agent, told) in [("/nonexistent/drover-agent", "No such file"), ("/bin/sh", "build-static.sh")] {
            world.configure_with(|config| config["guest_agent"] = json!(agent));
            host_says(world, &[agent, "guest_agent", told]).await;
        }
    });
}

#[test]
fn a_hypervisor_that_is_too_old_is_named_with_its_version() {
    run("a_hypervisor_that_is_too_old_is_named_with_its_version", Options::down(), async |world| {
        let old = world.path("old");
        std::fs::write(&old, "#!/bin/sh\necho cloud-hypervisor v40.0\n").unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        world.configure_with(|config| config["vmm"]["path"] = json!(old));
        host_says(world, &["v40.0", old.to_str().unwrap()]).await;
    });
}

#[test]
fn a_broken_configuration_is_named_with_its_line_or_key() {
    run("a_broken_configuration_is_named_with_its_line_or_key", Options::down(), async |world| {
        std::fs::write(world.path("host.yaml"), "host: h1\nbus: [\n").unwrap();
        host_says(world, &["host.yaml", "line"]).await;
        world.configure_with(|config| config["stat_dir"] = json!("/x"));
        host_says(world, &["stat_dir"]).await;
        std::fs::remove_file(world.path("host.yaml")).unwrap();
        host_says(world, &["host.yaml"]).await;
        world.configure_with(|config| config["images_dir"] = json!("/nonexistent"));
        host_says(world, &["/nonexistent", "build-image.sh"]).await;
    });
}

#[test]
fn a_second_daemon_on_one_state_folder_is_refused_and_names_the_first() {
    let test = "a_second_daemon_on_one_state_folder_is_refused_and_names_the_first";
    run(test, Options::default(), async |world| {
        let vm = world.bus.up("web").await;
        let first = world.daemon_id().unwrap().to_string();
        host_says(world, &[&first]).await;
        let now = world.bus.status("web").await.unwrap();
        assert_eq!((now.vm_id, now.vmm_pid), (vm.vm_id, vm.vmm_pid), "the first is not disturbed");
    });
}

/// A mount namespace of its own for the daemon, so that the machine's devices stay as they are.
const PRIVATE: [&str; 4] = ["unshare", "--mount", "--propagation", "private"];
/// Every device below `/dev/net` is there, and the kernel refuses to open it.
const NO_TUN: &str = "mount -t tmpfs -o nodev none /dev/net && mknod /dev/net/tun c 10 200";

#[test]
fn tap_devices_that_may_not_be_used_are_named_when_the_host_starts() {
    run("tap_devices_that_may_not_be_used_are_named_when_the_host_starts", Options::down(), async |world| {
        let script = format!("{NO_TUN} && exec \"$@\"");
        world.launcher =
            PRIVATE.iter().copied().chain(["sh", "-c", &script, "sh"]).map(str::to_owned).collect();
        host_says(world, &["/dev/net/tun", "denied"]).await;
    });
}

#[test]
fn tap_devices_that_may_no_longer_be_used_are_named_by_the_create() {
    run("tap_devices_that_may_no_longer_be_used_are_named_by_the_create", Options::down(), async |world| {
        world.launcher = PRIVATE.iter().copied().map(str::to_owned).collect();
        world.start_nats().await;
        world.start();
        world.ready().await;
        let daemon = world.daemon_id().unwrap().to_string();
        let taken = tokio::process::Command::new("nsenter")
            .args(["--mount", "--target", &daemon, "sh", "-c", NO_TUN])
            .status()
            .await;
        assert!(taken.unwrap().success());
        says(world, &["vm", "create", "web", "--wait", "running"], 5, &["/dev/net/tun", "CAP_NET_ADMIN"])
            .await;
        let failed = world.bus.until("web", "failed", |vm| vm.state.as_str() == "failed").await;
        let cause = failed.cause.unwrap();
        assert_eq!(cause.kind, drover_schemas::body::status::CauseKind::TapRefused, "{cause:?}");
    });
}

#[test]
fn a_doctor_says_what_a_machine_lacks_and_what_to_do() {
    // It looks whether a bus is where the configuration says.
    let options = Options { observed: false, ..Options::down() };
    run("a_doctor_says_what_a_machine_lacks_and_what_to_do", options, async |world| {
        let file = world.path("host.yaml");
        let doctor = ["doctor", "--output", "json", "--config", file.to_str().unwrap()];
        let findings = async |code: i32| {
            let done = world.drover(&doctor).await;
            assert_eq!(done.status.code(), Some(code), "{}", String::from_utf8_lossy(&done.stderr));
            let found: Vec<serde_json::Value> = serde_json::from_slice(&done.stdout).unwrap();
            found.into_iter().map(|f| (f["check"].as_str().unwrap().to_owned(), f)).collect::<Vec<_>>()
        };
        let of = |all: &[(String, serde_json::Value)], check: &str| {
            let found = all.iter().find(|(name, _)| name == check);
            found.unwrap_or_else(|| panic!("{check} is not in {all:?}")).1.clone()
        };
        // There is no bus yet, which a host waits for.
        let all = findings(0).await;
        assert_eq!(of(&all, "bus")["verdict"], "weak");
        assert_eq!(of(&all, "/dev/net/tun")["verdict"], "good");
        assert!(of(&all, "hypervisor")["found"].as_str().unwrap().contains("softvmm"));
        world.configure_with(|config| {
            config["vmm"]["path"] = json!("/nonexistent/cloud-hypervisor");
            config["images_dir"] = json!("/nonexistent");
        });
        let all = findings(1).await;
        for check in ["hypervisor", "images"] {
            let finding = of(&all, check);
            assert_eq!(finding["verdict"], "bad", "{finding}");
            assert!(!finding["advice"].as_str().unwrap().is_empty(), "{finding}");
        }
    });
}
