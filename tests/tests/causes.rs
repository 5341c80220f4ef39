//! One test for each way in which a VM ends or does not come up: provoked for real, and looked for in the
//! status, in the event, and where somebody waits in the reply, with its evidence.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use drover_schemas::RequestId;
use drover_schemas::body::status::{Cause, CauseKind, VmStatus};
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_tests::client::{Bus, Failure};
use drover_tests::wait::{patience_factor, until, until_within};
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

fn emulated() -> Options {
    Options { guest: "qemu", budget: Duration::from_secs(400), ..Options::default() }
}

async fn up(world: &mut World, config: &Value) {
    world.configure(config);
    world.start_nats().await;
    world.start();
    world.ready().await;
}

/// The VM's cause when it is in `state`, which its last event must have too.
async fn cause_in(bus: &Bus, name: &str, state: VmState, kind: CauseKind) -> Cause {
    let has = |vm: &VmStatus| vm.state == state && vm.cause.as_ref().is_some_and(|c| c.kind == kind);
    let vm = until_within(Duration::from_secs(120), &format!("{name}: {state} by {kind:?}"), async || {
        bus.status(name).await.ok().filter(has)
    })
    .await;
    let cause = vm.cause.unwrap();
    assert!(!cause.message.is_empty());
    let logs = events::log(bus).await;
    let told = logs[&vm.vm_id].iter().filter_map(|event| event.cause.as_ref());
    assert!(told.into_iter().any(|c| *c == cause), "{cause:?} is in no event");
    cause
}

fn coded(result: Result<impl std::fmt::Debug, Failure>, cause: &str) -> drover_schemas::ErrorBody {
    let Err(Failure::Coded(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.details.get("cause").map(String::as_str), Some(cause), "{error:?}");
    error
}

/// A folder with the usual images and one more, which is nothing that boots.
fn images_with_junk(world: &World, kind: &str) -> Value {
    let mut config = world.config();
    let from = Path::new(config["images_dir"].as_str().unwrap()).to_owned();
    let to = world.path("images");
    std::fs::create_dir(&to).unwrap();
    let mut manifest: Value =
        serde_json::from_slice(&std::fs::read(from.join("manifest.json")).unwrap()).unwrap();
    let images = manifest["images"].as_array_mut().unwrap();
    for image in &*images {
        let file = image["file"].as_str().unwrap();
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let junk = vec![b'x'; 1 << 20];
    let digest = {
        use sha2::Digest as _;
        sha2::Sha256::digest(&junk).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    std::fs::write(to.join("junk"), &junk).unwrap();
    images.push(json!({"name": "junk", "kind": kind, "file": "junk", "sha256": digest, "size": junk.len()}));
    std::fs::write(to.join("manifest.json"), manifest.to_string()).unwrap();
    config["images_dir"] = json!(to);
    config
}

#[test]
fn a_guest_that_switches_itself_off() {
    run("a_guest_that_switches_itself_off", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("a").await;
        let _: Value = bus.ask("vm.a.guest.shutdown", &json!({})).get().await.unwrap();
        cause_in(&bus, "a", VmState::Stopped, CauseKind::GuestPowerOff).await;
    });
}

#[test]
fn a_guest_that_reboots_for_ever() {
    run("a_guest_that_reboots_for_ever", emulated(), async |world| {
        let bus = world.bus.clone();
        // No init is found, the kernel panics, and reboots at once.
        let boot = json!({"cmdline": "console=ttyS0 panic=-1 rdinit=/nothing/here"});
        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        let (id, body) =
            (RequestId::generate(), json!({"wait": "agent", "spec": {"boot": boot, "agent": agent}}));
        // Five boots may take longer than a reply may wait.
        let made = until_within(Duration::from_secs(120), "an outcome", async || {
            let made = bus.create_as(id, "a", body.clone()).await;
            Some(made).filter(|made| !matches!(made, Err(error) if error.may_repeat()))
        })
        .await;
        let error = coded(made, "reboot_loop");
        assert!(error.details["console_tail"].contains("Kernel panic"), "{error:?}");
        let cause = cause_in(&bus, "a", VmState::Running, CauseKind::RebootLoop).await;
        assert_eq!(cause.evidence["reboots"], "5");
    });
}

#[test]
fn a_guest_whose_kernel_panics() {
    run("a_guest_whose_kernel_panics", emulated(), async |world| {
        let bus = world.bus.clone();
        let spec = json!({"boot": {"cmdline": "console=ttyS0 panic=30"}});
        bus.create("a", json!({"wait": "agent", "spec": spec})).await.unwrap();
        let script = "modprobe pvpanic-pci; sleep 1; echo c > /proc/sysrq-trigger";
        let crash = json!({"argv": ["sh", "-c", script]});
        let _ = bus.ask("vm.a.guest.exec", &crash).within(Duration::from_secs(10)).get::<Value>().await;
        let cause = cause_in(&bus, "a", VmState::Running, CauseKind::GuestPanic).await;
        assert!(cause.evidence["console_tail"].contains("sysrq"), "{cause:?}");
        let logs = events::log(&bus).await;
        assert!(logs.values().flatten().any(|event| event.kind == VmEventKind::Panic));
    });
}

#[test]
fn a_vmm_that_exits_or_is_ended_by_a_signal() {
    run("a_vmm_that_exits_or_is_ended_by_a_signal", Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        for (name, fault, kind, key, value) in [
            ("exits", "exit:3@t+300", CauseKind::VmmExit, "exit_code", "3"),
            ("lies", "exit0@t+300", CauseKind::VmmExit, "exit_code", "0"),
            ("crashes", "kill:SEGV@t+300", CauseKind::VmmSignal, "signal", "11"),
        ] {
            world.misbehave(fault);
            bus.create(name, json!({})).await.unwrap();
            let cause = cause_in(&bus, name, VmState::Failed, kind).await;
            assert_eq!(cause.evidence[key], value, "{name}: {cause:?}");
        }
    });
}

#[test]
fn a_vmm_that_the_kernel_kills_for_memory() {
    let options = Options { started: false, ..emulated() };
    run("a_vmm_that_the_kernel_kills_for_memory", options, async |world| {
        let mut config = world.config();
        config["vmm"]["overhead"] = json!("1MiB");
        up(world, &config).await;
        if let Some(why) = world.bus.host().await.unwrap().confinement.get("cgroups")
            && !why.contains("memory")
        {
            return println!("SKIP a_vmm_that_the_kernel_kills_for_memory: {why}");
        }
        let bus = world.bus.clone();
        bus.create("a", json!({"spec": {"memory": "96MiB"}})).await.unwrap();
        if !world.emulated() {
            // A real one is small beside a guest that has not touched all of its memory yet.
            let greedy = json!({"argv": ["sh", "-c", "tail < /dev/zero"]});
            until("its end", async || {
                let ask = bus.ask("vm.a.guest.exec", &greedy).within(Duration::from_secs(10));
                let _ = ask.get::<Value>().await;
                bus.status("a").await.ok().filter(|vm| vm.state == VmState::Failed)
            })
            .await;
        }
        let cause = cause_in(&bus, "a", VmState::Failed, CauseKind::OutOfMemory).await;
        assert!(cause.evidence["oom_kills"].parse::<u64>().unwrap() > 0, "{cause:?}");
    });
}

#[test]
fn a_vmm_that_refuses_with_a_reason() {
    run("a_vmm_that_refuses_with_a_reason", Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        world.misbehave("500@boot");
        let error = coded(bus.create("a", json!({"wait": "running"})).await, "vmm_error");
        assert_eq!(error.details["step"], "vm.boot", "{error:?}");
        let cause = cause_in(&bus, "a", VmState::Failed, CauseKind::VmmError).await;
        assert!(!cause.evidence["vmm_error"].is_empty(), "{cause:?}");
    });
}

#[test]
fn a_kernel_that_is_none() {
    run("a_kernel_that_is_none", Options { started: false, ..emulated() }, async |world| {
        let config = images_with_junk(world, "kernel");
        up(world, &config).await;
        let bus = world.bus.clone();
        let body = json!({"wait": "running", "spec": {"boot": {"kernel": "junk"}}});
        coded(bus.create("a", body).await, "kernel_format");
        let cause = cause_in(&bus, "a", VmState::Failed, CauseKind::KernelFormat).await;
        assert!(!cause.evidence["vmm_error"].is_empty(), "{cause:?}");
    });
}

#[test]
fn a_firmware_that_is_none() {
    run("a_firmware_that_is_none", Options { started: false, ..emulated() }, async |world| {
        let mut config = images_with_junk(world, "firmware");
        let templates = world.path("firmware-templates");
        std::fs::create_dir(&templates).unwrap();
        let template = "os: linux\ncpus: 1\nmemory: 256MiB\nboot: {firmware: junk}\n";
        std::fs::write(templates.join("uefi.yaml"), template).unwrap();
        config["templates_dir"] = json!(templates);
        up(world, &config).await;
        let bus = world.bus.clone();
        coded(
            bus.create("a", json!({"wait": "running", "spec": {"template": "uefi"}})).await,
            "firmware_format",
        );
        cause_in(&bus, "a", VmState::Failed, CauseKind::FirmwareFormat).await;
    });
}

#[test]
fn a_disk_that_cannot_be_made() {
    run("a_disk_that_cannot_be_made", Options::default(), async |world| {
        let bus = world.bus.clone();
        // A file stands where the folder of the disks should be.
        let disks = world.state_dir().join("disks");
        let _ = std::fs::remove_dir(&disks);
        std::fs::write(&disks, "").unwrap();
        let spec = json!({"disks": [{"image": "drover-rootfs"}]});
        let error = coded(bus.create("a", json!({"wait": "running", "spec": spec})).await, "disk_refused");
        assert_eq!(error.details["step"], "disks", "{error:?}");
        cause_in(&bus, "a", VmState::Failed, CauseKind::DiskRefused).await;
        // When it is put right the same VM starts.
        std::fs::remove_file(&disks).unwrap();
        bus.change_with("a", "start", json!({"wait": "agent"})).await.unwrap();
    });
}

#[test]
fn an_agent_that_does_not_answer() {
    run("an_agent_that_does_not_answer", emulated(), async |world| {
        let bus = world.bus.clone();
        // The guest runs a shell in place of what would start the agent.
        let spec = json!({
            "boot": {"cmdline": "console=ttyS0 panic=-1 rdinit=/bin/sh"},
            "agent": {"enabled": true, "ready_timeout_ms": (15_000 * patience_factor()).min(80_000)},
        });
        let error = coded(bus.create("a", json!({"wait": "agent", "spec": spec})).await, "agent_timeout");
        assert!(error.details["console_tail"].contains("registered"), "{error:?}");
        cause_in(&bus, "a", VmState::Running, CauseKind::AgentTimeout).await;
    });
}

#[test]
fn a_user_who_stops_and_deletes() {
    run("a_user_who_stops_and_deletes", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("a").await;
        bus.change("a", "stop").await.unwrap();
        cause_in(&bus, "a", VmState::Stopped, CauseKind::UserStop).await;
        bus.change("a", "delete").await.unwrap();
        let logs = events::log(&bus).await;
        let last = logs[&vm.vm_id].last().unwrap();
        assert_eq!((last.last, last.cause.as_ref().unwrap().kind), (true, CauseKind::UserDelete));
    });
}

/// The kernel's boot id as the daemon and what it starts see it.
fn boot_as(world: &mut World, id: &str) {
    let file = world.path(id);
    std::fs::write(&file, format!("{id}\n")).unwrap();
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id; exec \"$@\"", file.display());
    world.launcher = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
}

#[test]
fn a_host_that_was_rebooted_and_lost_its_run_directory() {
    let test = "a_host_that_was_rebooted_and_lost_its_run_directory";
    run(test, Options::down(), async |world| {
        boot_as(world, "00000000-0000-0000-0000-000000000001");
        world.start_nats().await;
        world.start();
        world.ready().await;
        let bus = world.bus.clone();
        let (on, off) = (bus.up("on").await, bus.up("off").await);
        bus.change("off", "stop").await.unwrap();
        // A daemon that finds nothing in the same boot lets the policy decide.
        let lost = bus.up("lost").await;
        world.kill().await;
        world.kill_vmm(lost.vm_id);
        // Its holder as well, which writes down how it ended.
        let run = world.run_dir();
        until("it is gone", async || leak::processes(run, lost.vm_id).is_empty().then_some(())).await;
        std::fs::remove_dir_all(world.vm_dir(lost.vm_id)).unwrap();
        world.start();
        world.ready().await;
        bus.until("lost", "failed", |vm| vm.state == VmState::Failed).await;
        world.kill().await;
        // /run does not outlive a boot.
        world.kill_vmm(on.vm_id);
        let run = world.run_dir();
        until("it is gone", async || leak::processes(run, on.vm_id).is_empty().then_some(())).await;
        std::fs::remove_dir_all(world.run_dir()).unwrap();
        boot_as(world, "00000000-0000-0000-0000-000000000002");
        world.start();
        world.ready().await;
        let again = bus.until("on", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!((again.vm_id, again.incarnation), (on.vm_id, on.incarnation + 1));
        bus.until_ping("on").await;
        assert_eq!(bus.status("off").await.unwrap().vm_id, off.vm_id);
        assert_eq!(bus.status("off").await.unwrap().state, VmState::Stopped);
        assert_eq!(bus.status("lost").await.unwrap().state, VmState::Failed);
        let log = events::log(&bus).await;
        let kinds = log[&on.vm_id].iter().filter_map(|event| event.cause.as_ref().map(|c| c.kind));
        assert!(kinds.collect::<Vec<_>>().contains(&CauseKind::HostReboot));
    });
}

#[test]
fn a_host_that_stops_its_vms() {
    run("a_host_that_stops_its_vms", Options::down(), async |world| {
        let mut config = world.config();
        config["shutdown"] = json!({"vms": "stop", "timeout_s": 20});
        up(world, &config).await;
        let bus = world.bus.clone();
        let (on, off, paused) = (bus.up("on").await, bus.up("off").await, bus.up("paused").await);
        bus.change("off", "stop").await.unwrap();
        bus.change("paused", "pause").await.unwrap();
        world.stop_host().await;
        for vm in [&on, &off, &paused] {
            assert_eq!(leak::runtime(world, vm), Vec::<String>::new());
        }
        world.start();
        world.ready().await;
        for vm in [&on, &paused] {
            let again = bus.until(vm.name.as_str(), "up", |vm| vm.state.holds_runtime()).await;
            assert_eq!((again.vm_id, again.incarnation), (vm.vm_id, vm.incarnation + 1));
            bus.until_ping(vm.name.as_str()).await;
        }
        assert_eq!(bus.status("off").await.unwrap().state, VmState::Stopped);
        let log = events::log(&bus).await;
        let stopped = log[&on.vm_id].iter().find(|event| event.state == VmState::Stopped).unwrap();
        assert_eq!(stopped.cause.as_ref().unwrap().kind, CauseKind::HostShutdown);
        // Killed in the middle of it, the stop is ended and the VM starts again as well.
        world.signal_host();
        until("stopping", async || bus.status("on").await.ok().filter(|vm| vm.state != VmState::Running))
            .await;
        world.kill().await;
        world.start();
        world.ready().await;
        bus.until("on", "running", |vm| vm.state == VmState::Running).await;
        bus.until_ping("on").await;
    });
}

#[test]
fn a_host_that_was_rebooted() {
    run("a_host_that_was_rebooted", Options::default(), async |world| {
        let bus = world.bus.clone();
        let (on, off) = (bus.up("on").await, bus.up("off").await);
        bus.change("off", "stop").await.unwrap();
        world.kill().await;
        // What a boot leaves: no process, and records of a boot that is over.
        world.kill_vmm(on.vm_id);
        let dir = world.vm_dir(on.vm_id);
        let mut record: Value = serde_json::from_slice(&std::fs::read(dir.join("vmm.pid")).unwrap()).unwrap();
        record["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
        std::fs::write(dir.join("vmm.pid"), record.to_string()).unwrap();
        world.start();
        world.ready().await;
        // What shall run is started again, what shall not stays as it was.
        let again = bus.until("on", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!((again.vm_id, again.incarnation), (on.vm_id, on.incarnation + 1));
        bus.until_ping("on").await;
        assert_eq!(bus.status("off").await.unwrap().state, VmState::Stopped);
        let logs = events::log(&bus).await;
        let kinds = |vm: &VmStatus| -> Vec<CauseKind> {
            logs[&vm.vm_id].iter().filter_map(|event| event.cause.as_ref().map(|c| c.kind)).collect()
        };
        assert!(kinds(&on).contains(&CauseKind::HostReboot), "{:?}", kinds(&on));
        assert!(!kinds(&off).contains(&CauseKind::HostReboot), "{:?}", kinds(&off));
    });
}
