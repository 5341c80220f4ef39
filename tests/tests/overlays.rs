//! Disks that lie over imported images: what the guest has, what stays of the image, and daemons that die meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use drover_schemas::body::image::{ImageGcReply, ImageImportReply, ImageVerifyReply};
use drover_schemas::body::status::{DiskMade, VmStatus};
use drover_schemas::body::vm::{ChangeReply, ExplainReply};
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, refused};
use drover_tests::guest::{agent, boot, sh};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

async fn image<R: DeserializeOwned>(bus: &Bus, verb: &str, body: Value) -> R {
    let ask = bus.ask(&format!("drover.v1.host.h1.image.{verb}"), &body).id(RequestId::generate());
    ask.within(Duration::from_secs(120)).get().await.unwrap()
}

/// Starts a host and imports a file that `make` writes as the image `base`. Whether disks can lie over it: where the file
/// system has reflinks they never do, and the test is skipped.
async fn with_base(world: &mut World, overlays: bool, make: impl FnOnce(&Path)) -> bool {
    let dir = world.state_dir().parent().unwrap().join("in");
    fs::create_dir_all(&dir).unwrap();
    let (one, other) = (dir.join("base"), dir.join("clone"));
    make(&one);
    let cloned = Command::new("cp").arg("--reflink=always").args([&one, &other]).output().unwrap();
    if cloned.status.success() {
        println!("SKIP disks over images: the file system of {} has reflinks", dir.display());
        return false;
    }
    world
        .up_with(|config| {
            config["images"] = json!({"import_dirs": [dir]});
            config["disks"] = json!({"overlays": overlays});
        })
        .await;
    let body = json!({"name": "base", "kind": "disk", "path": one});
    let _: ImageImportReply = image(&world.bus, "import", body).await;
    fs::remove_file(one).unwrap();
    true
}

fn bytes(path: &Path) {
    fs::write(path, (0..32 * MIB).map(|n| (n / 7) as u8).collect::<Vec<_>>()).unwrap();
}

fn folder(world: &World, vm: &VmStatus) -> PathBuf {
    world.state_dir().join("disks").join(vm.vm_id.to_string().to_ascii_lowercase())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The length of the disk by the head of its file.
fn length(file: &Path) -> u64 {
    let mut length = [0; 8];
    fs::File::open(file).unwrap().read_exact_at(&mut length, 24).unwrap();
    u64::from_be_bytes(length)
}

fn disks() -> Value {
    json!([{"image": "base", "size": "1GiB"}, {"name": "tools", "image": "base", "readonly": true}])
}

#[test]
fn a_disk_lies_over_its_image_which_stays_as_long_as_it_does() {
    let test = "a_disk_lies_over_its_image_which_stays_as_long_as_it_does";
    run(test, Options::down(), async |world| {
        if !with_base(world, true, bytes).await {
            return;
        }
        let bus = world.bus.clone();
        let vm = bus.create("web", json!({"spec": {"disks": disks()}, "wait": "agent"})).await.unwrap().vm;
        let dir = folder(world, &vm);
        let own = dir.join("disk0.overlay");
        let meta = fs::metadata(&own).unwrap();
        assert_eq!((names(&dir), length(&own)), (vec!["disk0.overlay".to_owned()], 1 << 30));
        assert!(meta.len() < MIB && meta.mode() & 0o777 == 0o600, "{meta:?}");
        // It is said how, and to the VMM as well.
        let shown = bus.status("web").await.unwrap().disks;
        assert_eq!((shown[0].made, shown[1].made), (DiskMade::Overlay, DiskMade::Shared));
        let explained: ExplainReply = bus.ask("vm.web.explain", &json!({})).get().await.unwrap();
        assert!(explained.findings.iter().any(|text| text.contains("lies over its image")), "{explained:?}");
        assert_eq!(explained.vmm_config.matches("\"backing_files\": true").count(), 1);
        let page = world.printed(&["vm", "disk", "ls", "web"]).await;
        assert!(page.contains("disk0: 1 GiB (overlay)"), "{page}");

        // No VMM makes it longer under its guest; from the next start on it can be.
        let longer = |size: &str| json!({"disk": "disk0", "size_bytes": size});
        let error =
            refused("running", ErrorCode::InvalidState, bus.change_with("web", "grow", longer("2GiB")).await);
        assert_eq!((error.details["disk"].as_str(), error.details["allowed"].as_str()), ("disk0", "stopped"));
        assert_eq!(bus.status("web").await.unwrap().disks[0].size_bytes, 1 << 30);
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("web", "grow", longer("2GiB")).await.unwrap();
        let error = bus.change_with("web", "grow", longer("5TiB")).await;
        assert!(matches!(error, Err(ref failure) if failure.to_string().contains("4 TiB")), "{error:?}");
        // What was written to it stays over its end and the daemon's.
        fs::File::options().write(true).open(&own).unwrap().write_all_at(b"the guest's", 16 * MIB).unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        let mut kept = [0; 11];
        fs::File::open(&own).unwrap().read_exact_at(&mut kept, 16 * MIB).unwrap();
        assert_eq!((length(&own), &kept), (2 << 30, b"the guest's"));

        // The image has no name any more, and stays until the disk is gone.
        let _: Value = image(&bus, "remove", json!({"name": "base"})).await;
        let gc: ImageGcReply = image(&bus, "gc", json!({})).await;
        assert!(gc.removed.is_empty(), "{gc:?}");
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        let verified: ImageVerifyReply = image(&bus, "verify", json!({})).await;
        assert!(verified.damaged.is_empty(), "{verified:?}");

        // Without it there is no disk, which is told; with it again there is.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        let store = world.state_dir().join("store/sha256");
        let (content, aside) = (store.join(&names(&store)[0]), world.path("aside"));
        fs::rename(&content, &aside).unwrap();
        let error = bus.change_with("web", "start", json!({"wait": "running"})).await;
        let error = refused("without the image", ErrorCode::ResourceExhausted, error);
        assert!(error.message.contains("is no longer on this host"), "{error}");
        fs::rename(&aside, &content).unwrap();
        bus.until("web", "failed", |vm| vm.state == VmState::Failed).await;
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        // A file that is none of ours is left alone.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        let whole = fs::read(&own).unwrap();
        fs::write(&own, "what somebody put there").unwrap();
        let error = bus.change_with("web", "start", json!({"wait": "running"})).await;
        let error = refused("damaged", ErrorCode::ResourceExhausted, error);
        assert!(error.message.contains("no QCOW2 file as it was made here"), "{error}");
        fs::write(&own, whole).unwrap();

        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        let gc: ImageGcReply = image(&bus, "gc", json!({})).await;
        assert_eq!((gc.removed.len(), names(&store).len()), (1, 0), "{gc:?}");
        let log = events::log(&bus).await;
        let changed = log[&vm.vm_id].iter().filter(|event| event.kind == VmEventKind::Changed);
        assert_eq!(changed.count(), 1);
    });
}

#[test]
fn a_host_that_shall_not_makes_copies() {
    run("a_host_that_shall_not_makes_copies", Options::down(), async |world| {
        if !with_base(world, false, bytes).await {
            return;
        }
        let bus = world.bus.clone();
        let vm = bus.create("web", json!({"spec": {"disks": disks()}, "wait": "agent"})).await.unwrap().vm;
        assert_eq!(bus.status("web").await.unwrap().disks[0].made, DiskMade::Copy);
        let own = folder(world, &vm).join("disk0.raw");
        bus.change_with("web", "grow", json!({"disk": "disk0", "size_bytes": "2GiB"})).await.unwrap();
        assert_eq!(fs::metadata(own).unwrap().len(), 2 << 30, "under its guest");
        bus.change("web", "delete").await.unwrap();
    });
}

#[test]
fn a_daemon_that_dies_while_disks_are_laid_leaves_whole_ones() {
    let test = "a_daemon_that_dies_while_disks_are_laid_leaves_whole_ones";
    run(test, Options::down(), async |world| {
        if !with_base(world, true, bytes).await {
            return;
        }
        let bus = world.bus.clone();
        let all = world.state_dir().join("disks");
        let four = json!([{"image": "base"}, {"image": "base"}, {"image": "base"}, {"image": "base"}]);
        let mut vms = Vec::new();
        for n in 0..6_usize {
            let name = format!("k{n}");
            let body = json!({"name": name, "wait": "agent", "spec": {"disks": four}});
            let asks = bus.insist::<ChangeReply>("vm.create", &body, RequestId::generate());
            // Killed at another instant each time: with the folder, with a part of a disk, with one or more of them.
            let kills = async {
                until("so much of the disks", async || {
                    let folders = fs::read_dir(&all).ok()?.filter_map(Result::ok);
                    let files = |dir: fs::DirEntry| fs::read_dir(dir.path()).map_or(0, Iterator::count);
                    (folders.map(|dir| 1 + files(dir)).sum::<usize>() > 5 * n + n % 5).then_some(())
                })
                .await;
                world.kill().await;
                world.start();
                world.ready().await;
            };
            let (reply, ()) = tokio::join!(asks, kills);
            let vm = bus.status(&name).await.unwrap();
            assert_eq!((vm.vm_id, vm.state), (reply.unwrap().vm.vm_id, VmState::Running));
            assert!(vm.disks.iter().all(|disk| disk.made == DiskMade::Overlay), "{:?}", vm.disks);
            vms.push(vm);
        }
        for vm in &vms {
            let wanted: Vec<_> = (0..4).map(|n| format!("disk{n}.overlay")).collect();
            assert_eq!(names(&folder(world, vm)), wanted, "nothing is left of a part");
            assert!(wanted.iter().all(|own| length(&folder(world, vm).join(own)) == 32 * MIB));
            bus.change(vm.name.as_str(), "delete").await.unwrap();
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        events::log(&bus).await;
    });
}

/// An ext4 file system of 64 MiB with a file.
fn ext4(path: &Path) {
    let folder = path.with_extension("d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("hello"), "from the image\n").unwrap();
    let args = ["-q", "-t", "ext4", "-d"];
    let made = Command::new("mke2fs").args(args).args([&folder, path]).arg("64M").output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn real_guests_share_an_image_and_nothing_that_they_write() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::down() };
    run("real_guests_share_an_image_and_nothing_that_they_write", options, async |world| {
        if !with_base(world, true, ext4).await {
            return;
        }
        let bus = world.bus.clone();
        let disks = json!([{"name": "data", "image": "base"}]);
        let one = boot(&bus, "one", json!({"disks": disks})).await;
        let two = boot(&bus, "two", json!({"disks": disks})).await;
        let mount = "mkdir -p /mnt/d; mount -t ext4 /dev/vda /mnt/d; cat /mnt/d/hello";
        for name in ["one", "two"] {
            assert_eq!(sh(&bus, name, mount).await, "from the image");
            sh(&bus, name, &format!("echo of {name} > /mnt/d/own; echo of {name} > /mnt/d/hello; sync"))
                .await;
            sh(&bus, name, "dd if=/dev/urandom of=/mnt/d/much bs=1M count=24 conv=fsync").await;
        }
        let sum = "sha256sum < /mnt/d/much";
        let much = sh(&bus, "one", sum).await;
        // A VMM that is killed ends a guest as a power cut does: what was synchronised is there.
        bus.change_with("one", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("one", "grow", json!({"disk": "data", "size_bytes": "256MiB"})).await.unwrap();
        bus.change("one", "start").await.unwrap();
        agent(&bus, "one").await;
        assert_eq!(sh(&bus, "one", mount).await, "of one");
        assert_eq!(sh(&bus, "one", "cat /mnt/d/own; cat /sys/block/vda/size").await, "of one\n524288");
        assert_eq!(sh(&bus, "one", sum).await, much);
        assert_eq!(sh(&bus, "two", "cat /mnt/d/own /mnt/d/hello").await, "of two\nof two");
        let verified: ImageVerifyReply = image(&bus, "verify", json!({})).await;
        assert!(verified.damaged.is_empty(), "the image is as it was: {verified:?}");
        let taken = fs::metadata(folder(world, &one).join("disk0.overlay")).unwrap().blocks() * 512;
        assert!((24 * MIB..64 * MIB).contains(&taken), "{taken} bytes are taken");
        for (name, vm) in [("one", &one), ("two", &two)] {
            bus.change(name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
    });
}
