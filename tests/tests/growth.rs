//! Disks that become longer: of VMs that run and of those that do not, and with a daemon or a VMM that fails meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::host::HostInfo;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::guest::{agent, boot, sh};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn file(world: &World, vm: &VmStatus, n: u8) -> PathBuf {
    let dir = world.state_dir().join("disks").join(vm.vm_id.to_string().to_ascii_lowercase());
    dir.join(format!("disk{n}.raw"))
}

/// In MiB.
fn length(world: &World, vm: &VmStatus, n: u8) -> u64 {
    fs::metadata(file(world, vm, n)).unwrap().len() / MIB
}

async fn grow(bus: &Bus, name: &str, disk: &str, size: &str) -> Result<ChangeReply, Failure> {
    bus.change_with(name, "grow", json!({"disk": disk, "size_bytes": size})).await
}

/// What the host says that a disk has, in MiB.
async fn told(bus: &Bus, name: &str, n: usize) -> u64 {
    bus.status(name).await.unwrap().disks[n].size_bytes / MIB
}

fn disks() -> Value {
    json!([
        {"image": "drover-rootfs"},
        {"name": "data", "size": "256MiB"},
        {"name": "tools", "image": "drover-rootfs", "readonly": true},
    ])
}

#[test]
fn a_disk_grows_whether_its_vm_runs_or_not_and_never_shrinks() {
    run("a_disk_grows_whether_its_vm_runs_or_not_and_never_shrinks", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.create("web", json!({"spec": {"disks": disks()}, "wait": "agent"})).await.unwrap().vm;
        let used = async || {
            let info: HostInfo = bus.host().await.unwrap();
            info.capacity.disk_used_bytes / MIB
        };
        let before = used().await;

        let reply = grow(&bus, "web", "data", "512MiB").await.unwrap();
        assert_eq!((reply.vm.state, reply.vm.revision, reply.already), (VmState::Running, 2, false));
        assert_eq!((length(world, &vm, 1), told(&bus, "web", 1).await), (512, 512));
        assert_eq!(used().await, before + 256, "what may be written is promised");
        let spec = bus.status("web").await.unwrap().spec.unwrap();
        assert_eq!(spec.disks[1].size_bytes, Some(512 * MIB));
        let again = grow(&bus, "web", "data", "512MiB").await.unwrap();
        assert_eq!((again.already, again.vm.revision), (true, 2));
        // A copy of an image too, which had its length.
        grow(&bus, "web", "disk0", "1GiB").await.unwrap();
        assert_eq!((length(world, &vm, 0), told(&bus, "web", 0).await), (1_024, 1_024));
        assert_eq!(fs::metadata(file(world, &vm, 1)).unwrap().len(), 512 * MIB, "and no other");

        // What cannot be changes nothing.
        for (disk, size, code, field) in [
            ("data", "256MiB", ErrorCode::InvalidArgument, "size_bytes"),
            ("data", "512MiB1", ErrorCode::InvalidArgument, ""),
            ("data", "600000000", ErrorCode::InvalidArgument, "size_bytes"),
            ("tools", "2GiB", ErrorCode::InvalidArgument, "disk"),
            ("date", "1GiB", ErrorCode::NotFound, "disk"),
            ("data", "8TiB", ErrorCode::ResourceExhausted, ""),
        ] {
            let error = refused(size, code, grow(&bus, "web", disk, size).await);
            assert_eq!(error.details.get("field").map_or("", String::as_str), field, "{error}");
        }
        let old = json!({"disk": "data", "size_bytes": "1GiB", "if_revision": 1});
        refused("an old revision", ErrorCode::Conflict, bus.change_with("web", "grow", old).await);
        // A paused guest's disk would work again.
        bus.change("web", "pause").await.unwrap();
        let error = refused("paused", ErrorCode::InvalidState, grow(&bus, "web", "data", "1GiB").await);
        assert!(error.details["allowed"].contains("running, stopped"), "{error}");
        bus.change("web", "resume").await.unwrap();
        assert_eq!((length(world, &vm, 1), bus.status("web").await.unwrap().revision), (512, 3));

        // Of a VM that is down it is so from the next start on, also with another daemon.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        let reply = grow(&bus, "web", "data", "768MiB").await.unwrap();
        assert_eq!((reply.vm.state, told(&bus, "web", 1).await), (VmState::Stopped, 768));
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(
            used().await,
            before + 512 + 1_024 - spec.disks[0].image.as_ref().unwrap().size_bytes / MIB
        );
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!((length(world, &vm, 0), length(world, &vm, 1)), (1_024, 768));

        // By the command line.
        let said = world.printed(&["vm", "disk", "grow", "web", "data", "1GiB"]).await;
        assert_eq!((said.trim(), length(world, &vm, 1)), ("disk data of web has 1 GiB", 1_024));
        let said = world.printed(&["vm", "disk", "ls", "web"]).await;
        assert!(said.contains("data: 1 GiB (blank)") && said.contains("tools: "), "{said}");

        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        let log = events::log(&bus).await;
        let changed = log[&vm.vm_id].iter().filter(|event| event.kind == VmEventKind::Changed);
        assert_eq!(changed.map(|event| event.revision).collect::<Vec<_>>(), [2, 3, 4, 5]);
    });
}

#[test]
fn a_disk_that_the_vmm_does_not_lengthen_is_longer_at_the_next_start() {
    let test = "a_disk_that_the_vmm_does_not_lengthen_is_longer_at_the_next_start";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.create("web", json!({"spec": {"disks": disks()}, "wait": "agent"})).await.unwrap().vm;
        world.misbehave("500@resize-disk");
        let error =
            refused("a VMM that refuses", ErrorCode::VmmError, grow(&bus, "web", "data", "1GiB").await);
        assert!(error.message.contains("from the VM's next start on"), "{error}");
        assert_eq!(
            (error.details["disk"].as_str(), error.details["call"].as_str()),
            ("data", "vm.resize-disk")
        );
        assert_eq!((length(world, &vm, 1), told(&bus, "web", 1).await), (256, 1_024));
        assert_eq!(bus.status("web").await.unwrap().state, VmState::Running);
        world.misbehave("");
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!(length(world, &vm, 1), 1_024);

        // One that ends in the middle of it: the VM has an end with a cause, and its disk one of both lengths.
        world.misbehave("die@resize-disk.after");
        drop(grow(&bus, "web", "data", "2GiB").await);
        bus.until("web", "failed", |vm| vm.state == VmState::Failed).await;
        world.misbehave("");
        assert_eq!(told(&bus, "web", 1).await, 2_048);
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!(length(world, &vm, 1), 2_048);
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
    });
}

#[test]
fn a_daemon_that_dies_while_a_disk_grows_leaves_what_the_spec_says() {
    let test = "a_daemon_that_dies_while_a_disk_grows_leaves_what_the_spec_says";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.create("web", json!({"spec": {"disks": disks()}, "wait": "agent"})).await.unwrap().vm;
        for round in 0..6_u64 {
            let (old, new) = (256 + 64 * round, 256 + 64 * (round + 1));
            let body = json!({"disk": "data", "size_bytes": format!("{new}MiB")});
            // The VMM has not begun, or is done and has not said so, when the daemon dies.
            let fault = ["", "hang@resize-disk.before:300", "hang@resize-disk.after:300"][round as usize % 3];
            world.misbehave(fault);
            let id = RequestId::generate();
            let asked = tokio::spawn({
                let (bus, body) = (bus.clone(), body.clone());
                async move {
                    // Whatever comes of it.
                    drop(bus.ask("vm.web.grow", &body).id(id).get::<ChangeReply>().await);
                }
            });
            if !fault.is_empty() {
                until("it is durable", async || {
                    let vm = bus.status("web").await.ok()?;
                    (vm.revision == round + 2).then_some(())
                })
                .await;
            }
            world.kill().await;
            assert!([old, new].contains(&length(world, &vm, 1)), "nothing between");
            world.misbehave("");
            world.start();
            world.ready().await;
            asked.abort();
            let reply: ChangeReply = bus.insist("vm.web.grow", &body, id).await.unwrap();
            assert_eq!((reply.vm.vm_id, reply.vm.revision, reply.already), (vm.vm_id, round + 2, false));
            assert_eq!((length(world, &vm, 1), told(&bus, "web", 1).await), (new, new));
        }
        assert_eq!(bus.status("web").await.unwrap().incarnation, 1);
        assert_eq!(bus.host().await.unwrap().alarms, []);
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        events::log(&bus).await;
    });
}

#[test]
fn a_real_guest_sees_its_disk_grow() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_sees_its_disk_grow", options, async |world| {
        let bus = world.bus.clone();
        let disks = json!([{"name": "data", "size": "64MiB"}]);
        let vm = boot(&bus, "web", json!({"disks": disks})).await;
        let sectors = async || sh(&bus, "web", "cat /sys/block/vda/size").await;
        sh(&bus, "web", "echo kept > /dev/vda; sync").await;
        assert_eq!(sectors().await, (64 * 2_048).to_string());
        grow(&bus, "web", "data", "128MiB").await.unwrap();
        // The guest takes the interrupt in its own time.
        until("the guest sees it", async || (sectors().await == (128 * 2_048).to_string()).then_some(()))
            .await;
        // Beyond what was its end.
        let write = "echo behind | dd of=/dev/vda bs=1M seek=127 conv=fsync 2> /dev/null";
        sh(&bus, "web", write).await;
        let read = "head -n 1 /dev/vda; dd if=/dev/vda bs=1M skip=127 count=1 2> /dev/null | head -n 1";
        assert_eq!(sh(&bus, "web", read).await, "kept\nbehind");
        assert_eq!((length(world, &vm, 0), told(&bus, "web", 0).await), (128, 128));

        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        grow(&bus, "web", "data", "256MiB").await.unwrap();
        bus.change("web", "start").await.unwrap();
        agent(&bus, "web").await;
        assert_eq!(sectors().await, (256 * 2_048).to_string());
        assert_eq!(sh(&bus, "web", read).await, "kept\nbehind");
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
    });
}
