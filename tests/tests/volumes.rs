//! Volumes: made, used by one writer or many readers, kept when VMs are deleted, and whole when the daemon dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::DiskFs;
use drover_schemas::body::status::DiskMade;
use drover_schemas::body::volume::{VolumeCreateReply, VolumeGrowReply, VolumesReply};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::guest::{boot, sh};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn folder(world: &World) -> PathBuf {
    world.state_dir().join("volumes")
}

async fn make(
    bus: &Bus,
    host: &str,
    name: &str,
    size: &str,
    fs: DiskFs,
) -> Result<VolumeCreateReply, Failure> {
    let body = json!({"namespace": "default", "name": name, "size_bytes": size, "fs": fs});
    bus.ask(&format!("drover.v1.host.{host}.volume.create"), &body).get().await
}

async fn list(bus: &Bus) -> Vec<(String, u64, Vec<String>)> {
    let body = json!({"namespace": "default"});
    let reply: VolumesReply = bus.ask("drover.v1.host.h1.volume.list", &body).get().await.unwrap();
    let vms = |used_by: Vec<drover_schemas::Token>| used_by.iter().map(ToString::to_string).collect();
    reply.volumes.into_iter().map(|v| (v.name.to_string(), v.size_bytes / MIB, vms(v.used_by))).collect()
}

async fn remove(bus: &Bus, name: &str) -> Result<Empty, Failure> {
    bus.ask("drover.v1.host.h1.volume.remove", &json!({"namespace": "default", "name": name})).get().await
}

async fn grow(bus: &Bus, name: &str, size: &str) -> Result<VolumeGrowReply, Failure> {
    let body = json!({"namespace": "default", "name": name, "size_bytes": size});
    bus.ask("drover.v1.host.h1.volume.grow", &body).get().await
}

/// Who sees it later.
async fn later(bus: &Bus, name: &str, size: &str) -> Vec<(String, String)> {
    let reply = grow(bus, name, size).await.unwrap();
    reply.later.into_iter().map(|vm| (vm.name.to_string(), vm.reason)).collect()
}

fn with(volume: &str, readonly: bool) -> Value {
    let disks = json!([{"image": "drover-rootfs"}, {"volume": volume, "name": "data", "readonly": readonly}]);
    json!({"spec": {"disks": disks}, "wait": "agent"})
}

#[test]
fn a_volume_outlives_its_vms_and_is_written_by_one() {
    run("a_volume_outlives_its_vms_and_is_written_by_one", Options::default(), async |world| {
        let bus = world.bus.clone();
        let used = async || bus.host().await.unwrap().capacity.disk_used_bytes / MIB;
        assert!(!make(&bus, "h1", "data", "64MiB", DiskFs::Ext4).await.unwrap().already);
        assert!(make(&bus, "h1", "data", "64MiB", DiskFs::Ext4).await.unwrap().already);
        let file = folder(world).join("default/data.raw");
        assert_eq!((fs::metadata(&file).unwrap().len(), used().await), (64 * MIB, 64));
        assert_eq!(fs::read(&file).unwrap()[1_080..1_082], [0x53, 0xef]);
        for (name, size, code) in [
            ("data", "65MiB", ErrorCode::AlreadyExists),
            ("more", "1MiB", ErrorCode::InvalidArgument),
            ("more", "8TiB", ErrorCode::ResourceExhausted),
        ] {
            refused(size, code, make(&bus, "h1", name, size, DiskFs::Ext4).await);
        }

        // One writes, or many read.
        let web = bus.create("web", with("data", false)).await.unwrap().vm;
        let shown = bus.status("web").await.unwrap();
        assert_eq!((shown.disks[1].made, shown.disks[1].size_bytes), (DiskMade::Volume, 64 * MIB));
        assert_eq!(list(&bus).await, [("data".to_owned(), 64, vec!["web".to_owned()])]);
        for readonly in [false, true] {
            let error =
                refused("a second one", ErrorCode::Conflict, bus.create("b", with("data", readonly)).await);
            assert_eq!(
                (error.details["volume"].as_str(), &error.details["used_by"]),
                ("data", &web.vm_id.to_string())
            );
        }
        refused("in use", ErrorCode::Conflict, remove(&bus, "data").await);
        let error = bus.change_with("web", "grow", json!({"disk": "data", "size_bytes": "1GiB"})).await;
        let error = refused("not by its VM", ErrorCode::InvalidArgument, error);
        assert!(error.message.contains("volume.grow"), "{error}");
        // Also a VM that is down, and after the daemon.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        refused("in use", ErrorCode::Conflict, remove(&bus, "data").await);
        refused("a second one", ErrorCode::Conflict, bus.create("b", with("data", false)).await);
        let copies = used().await;
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &web), Vec::<String>::new());
        assert!(file.exists() && used().await < copies, "it stays");
        assert_eq!(list(&bus).await, [("data".to_owned(), 64, vec![])]);
        for name in ["r1", "r2"] {
            bus.create(name, with("data", true)).await.unwrap();
        }
        refused("a writer", ErrorCode::Conflict, bus.create("b", with("data", false)).await);
        let all = list(&bus).await;
        assert_eq!(all[0].2, ["r1", "r2"]);
        for name in ["r1", "r2"] {
            bus.change(name, "delete").await.unwrap();
        }

        // One whose file is gone is told, not made anew.
        bus.create("web", with("data", false)).await.unwrap();
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        let aside = world.path("aside");
        fs::rename(&file, &aside).unwrap();
        let start = bus.change_with("web", "start", json!({"wait": "running"})).await;
        let error = refused("a volume that is gone", ErrorCode::ResourceExhausted, start);
        assert_eq!(
            (error.details["cause"].as_str(), error.details["disk"].as_str()),
            ("disk_refused", "data")
        );
        bus.until("web", "failed", |vm| vm.state == VmState::Failed).await;
        fs::rename(&aside, &file).unwrap();
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        bus.change("web", "delete").await.unwrap();

        // By the command line.
        let said = world.printed(&["volume", "create", "logs", "1GiB"]).await;
        assert!(said.contains("volume logs is there, 1 GiB"), "{said}");
        let said = world.printed(&["volume", "ls"]).await;
        assert!(said.contains("data") && said.contains("1 GiB"), "{said}");
        world.printed(&["volume", "rm", "logs"]).await;
        remove(&bus, "data").await.unwrap();
        refused("gone", ErrorCode::NotFound, remove(&bus, "data").await);
        assert_eq!((list(&bus).await.len(), used().await, file.exists()), (0, 0, false));
        events::log(&bus).await;
    });
}

#[test]
fn a_daemon_that_dies_leaves_whole_volumes_or_none() {
    run("a_daemon_that_dies_leaves_whole_volumes_or_none", Options::default(), async |world| {
        let bus = world.bus.clone();
        let of_ns = folder(world).join("default");
        let names = |dir: &PathBuf| -> Vec<String> {
            let files = fs::read_dir(dir).into_iter().flatten().flatten();
            files.filter_map(|file| file.file_name().into_string().ok()).collect()
        };
        for n in 0..8 {
            let name = format!("v{n}");
            let asked = tokio::spawn({
                let (bus, name) = (bus.clone(), name.clone());
                async move {
                    if let Err(error) = make(&bus, "h1", &name, "256MiB", DiskFs::Ext4).await {
                        println!("{name}: {error}");
                    }
                }
            });
            // At another instant each time: before, in the midst of it, and after.
            let wanted = [".partial", ".raw"][n % 2];
            until("so much of it", async || {
                names(&of_ns)
                    .iter()
                    .any(|file| file.starts_with(&name) && (file.ends_with(wanted) || file.ends_with(".raw")))
                    .then_some(())
            })
            .await;
            world.kill().await;
            asked.abort();
            world.start();
            world.ready().await;
            assert!(names(&of_ns).iter().all(|file| file.ends_with(".raw")), "{:?}", names(&of_ns));
            make(&bus, "h1", &name, "256MiB", DiskFs::Ext4).await.unwrap();
            assert_eq!(list(&bus).await.len(), n + 1);
            let body = with(&name, false);
            let id = RequestId::generate();
            bus.create_as(id, &name, body).await.unwrap();
        }
        let all: u64 = bus.status("v0").await.unwrap().disks.iter().map(|disk| disk.size_bytes).sum();
        assert_eq!(bus.host().await.unwrap().capacity.disk_used_bytes, 8 * all);
        for n in 0..8 {
            let name = format!("v{n}");
            bus.change(&name, "delete").await.unwrap();
            let asked = tokio::spawn({
                let (bus, name) = (bus.clone(), name.clone());
                async move { drop(remove(&bus, &name).await) }
            });
            if n % 2 == 1 {
                until("it is removed", async || (!of_ns.join(format!("{name}.raw")).exists()).then_some(()))
                    .await;
            }
            world.kill().await;
            asked.abort();
            world.start();
            world.ready().await;
            let is_there = list(&bus).await.iter().any(|(known, ..)| *known == name);
            assert_eq!(is_there, of_ns.join(format!("{name}.raw")).exists());
            if is_there {
                remove(&bus, &name).await.unwrap();
            }
        }
        assert_eq!((names(&of_ns), list(&bus).await), (Vec::new(), Vec::new()));
        assert_eq!(bus.host().await.unwrap().capacity.disk_used_bytes, 0);
    });
}

#[test]
fn a_volume_grows_with_its_vms_up_or_down_and_over_what_fails() {
    let test = "a_volume_grows_with_its_vms_up_or_down_and_over_what_fails";
    run(test, Options { started: false, ..Options::misbehaving() }, async |world| {
        let quotas = json!({"namespaces": {"default": {"disk": "4GiB"}}});
        world.up_with(|config| config["quotas"] = quotas).await;
        let bus = world.bus.clone();
        make(&bus, "h1", "data", "64MiB", DiskFs::Ext4).await.unwrap();
        let file = folder(world).join("default/data.raw");
        let length = || fs::metadata(&file).unwrap().len() / MIB;
        let used = async || bus.host().await.unwrap().capacity.disk_used_bytes / MIB;
        let told = async |name: &str| bus.status(name).await.unwrap().disks[1].size_bytes / MIB;

        // Of no VM, and with what cannot be.
        assert!(!grow(&bus, "data", "128MiB").await.unwrap().already);
        assert!(grow(&bus, "data", "128MiB").await.unwrap().already);
        assert_eq!((length(), used().await), (128, 128));
        for (name, size, code) in [
            ("data", "64MiB", ErrorCode::InvalidArgument),
            ("data", "200000000", ErrorCode::InvalidArgument),
            ("date", "1GiB", ErrorCode::NotFound),
            ("data", "5GiB", ErrorCode::ResourceExhausted),
            ("data", "8TiB", ErrorCode::ResourceExhausted),
        ] {
            refused(size, code, grow(&bus, name, size).await);
        }
        assert_eq!((length(), used().await), (128, 128));

        // The one that writes sees it; a paused one and those that read do later.
        bus.create("web", with("data", false)).await.unwrap();
        assert_eq!(later(&bus, "data", "192MiB").await, []);
        assert_eq!((length(), told("web").await), (192, 192));
        bus.change("web", "pause").await.unwrap();
        assert_eq!(later(&bus, "data", "256MiB").await, [("web".into(), "it is paused".into())]);
        bus.change("web", "resume").await.unwrap();
        assert_eq!(later(&bus, "data", "256MiB").await, [], "told once more");
        world.misbehave("500@resize-disk");
        let refusing = later(&bus, "data", "320MiB").await;
        assert!(refusing.len() == 1 && refusing[0].0 == "web", "{refusing:?}");
        world.misbehave("");
        assert_eq!((length(), told("web").await), (320, 320), "it is longer all the same");
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        assert_eq!(later(&bus, "data", "384MiB").await, [], "it is down");
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!((length(), told("web").await, list(&bus).await[0].1), (384, 384, 384));
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        bus.change("web", "delete").await.unwrap();
        for name in ["r1", "r2"] {
            bus.create(name, with("data", true)).await.unwrap();
        }
        let readers = later(&bus, "data", "448MiB").await;
        assert_eq!(readers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["r1", "r2"]);
        assert!(readers[0].1.contains("only reads"), "{readers:?}");

        // By the command line, over readers.
        let said = world.printed(&["volume", "grow", "data", "512MiB"]).await;
        assert!(said.contains("volume data has 512 MiB\n  r1 sees it with its next start"), "{said}");
        for name in ["r1", "r2"] {
            bus.change(name, "delete").await.unwrap();
        }

        // A daemon that dies meanwhile: one length or the other, and what the host promises is that.
        for (n, size) in [600, 700, 800, 900_u64].into_iter().enumerate() {
            let before = length();
            let asked = tokio::spawn({
                let bus = bus.clone();
                async move { drop(grow(&bus, "data", &format!("{size}MiB")).await) }
            });
            if n % 2 == 1 {
                until("it is longer", async || (length() == size).then_some(())).await;
            }
            world.kill().await;
            asked.abort();
            world.start();
            world.ready().await;
            assert!([before, size].contains(&length()), "{}", length());
            assert_eq!((used().await, list(&bus).await[0].1), (length(), length()));
            grow(&bus, "data", &format!("{size}MiB")).await.unwrap();
            assert_eq!(length(), size);
        }
        // One whose file is gone is not made by it.
        fs::rename(&file, world.path("aside")).unwrap();
        refused("no file", ErrorCode::NotFound, grow(&bus, "data", "1GiB").await);
        assert!(!file.exists() && used().await == 900);
        fs::rename(world.path("aside"), &file).unwrap();
        remove(&bus, "data").await.unwrap();
    });
}

#[test]
fn a_vm_goes_to_the_host_that_has_its_volume() {
    run("a_vm_goes_to_the_host_that_has_its_volume", Options::fleet(3), async |world| {
        let bus = world.bus.clone();
        for (n, host) in [(1, "h2"), (2, "h3"), (3, "h1")] {
            let name = format!("v{n}");
            make(&bus, host, &name, "64MiB", DiskFs::None).await.unwrap();
            // Hosts hear of it from each other.
            let vm =
                until("a host for it", async || bus.create(&name, with(&name, false)).await.ok()).await.vm;
            assert_eq!(vm.host.as_str(), host);
        }
        let nowhere = bus.create("x", with("nowhere", false)).await.unwrap_err();
        assert!(format!("{nowhere:?}").contains("has no volume nowhere"), "{nowhere:?}");
        for n in 1..=3 {
            bus.change(&format!("v{n}"), "delete").await.unwrap();
        }
    });
}

#[test]
fn a_real_guest_finds_what_another_left_on_a_volume() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_finds_what_another_left_on_a_volume", options, async |world| {
        let bus = world.bus.clone();
        make(&bus, "h1", "data", "64MiB", DiskFs::Ext4).await.unwrap();
        let disks =
            |readonly: bool| json!({"disks": [{"volume": "data", "name": "data", "readonly": readonly}]});
        let vm = boot(&bus, "a", disks(false)).await;
        sh(
            &bus,
            "a",
            "mkdir -p /mnt/d; mount -t ext4 /dev/vda /mnt/d; echo left > /mnt/d/file; umount /mnt/d",
        )
        .await;
        bus.change("a", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        // Another user has it now, and two read it at once.
        for name in ["b", "c"] {
            boot(&bus, name, disks(true)).await;
        }
        for name in ["b", "c"] {
            let read =
                "mkdir -p /mnt/d; mount -t ext4 -o ro /dev/vda /mnt/d; cat /mnt/d/file /sys/block/vda/ro";
            assert_eq!(sh(&bus, name, read).await, "left\n1");
            bus.change(name, "delete").await.unwrap();
        }
        boot(&bus, "d", disks(false)).await;
        // It becomes longer under the guest, whose file system grows when the guest wants it.
        assert_eq!(sh(&bus, "d", "cat /sys/block/vda/size").await, (64 * MIB / 512).to_string());
        assert_eq!(later(&bus, "data", "96MiB").await, []);
        let sectors = (96 * MIB / 512).to_string();
        until("the guest sees it", async || {
            (sh(&bus, "d", "cat /sys/block/vda/size").await == sectors).then_some(())
        })
        .await;
        assert_eq!(
            sh(
                &bus,
                "d",
                "mkdir -p /mnt/d; mount -t ext4 /dev/vda /mnt/d; cat /mnt/d/file; echo > /mnt/d/more"
            )
            .await,
            "left"
        );
        bus.change("d", "delete").await.unwrap();
        remove(&bus, "data").await.unwrap();
    });
}
