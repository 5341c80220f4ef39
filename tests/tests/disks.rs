//! Disks of VMs: copies of images and blank ones, what the guest finds, and a daemon that dies while they are made.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::body::status::{DiskMade, VmStatus};
use drover_schemas::body::vm::{ChangeReply, ExplainReply};
use drover_schemas::guest::TrimResult;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, refused};
use drover_tests::guest::{agent, boot, sh};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

fn folder(world: &World, vm: &VmStatus) -> PathBuf {
    world.state_dir().join("disks").join(vm.vm_id.to_string().to_ascii_lowercase())
}

/// Whether a file begins with an ext4 file system of this label.
fn is_ext4(path: &Path, label: &str) -> bool {
    let mut superblock = [0; 1024];
    File::open(path).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    let end = superblock[0x78..0x88].iter().position(|byte| *byte == 0).unwrap_or(16);
    superblock[0x38..0x3a] == [0x53, 0xef] && &superblock[0x78..0x78 + end] == label.as_bytes()
}

/// Three disks: a longer copy, one with a file system, one without.
fn three() -> Value {
    json!([
        {"image": "drover-rootfs", "size": "1GiB"},
        {"name": "data", "size": "256MiB", "fs": "ext4", "label": "data"},
        {"name": "raw", "size_bytes": 2_u64 << 30},
    ])
}

#[test]
fn disks_are_made_once_and_go_with_their_vm() {
    run("disks_are_made_once_and_go_with_their_vm", Options::default(), async |world| {
        let bus = world.bus.clone();
        let spec = json!({"disks": three()});
        let vm = bus.create("web", json!({"spec": spec, "wait": "agent"})).await.unwrap().vm;
        let dir = folder(world, &vm);
        let whole = |n: u8| dir.join(format!("disk{n}.raw"));
        let lengths: Vec<u64> = (0..3).map(|n| fs::metadata(whole(n)).unwrap().len()).collect();
        assert_eq!(lengths, [1 << 30, 256 << 20, 2 << 30]);
        let of = |n| fs::metadata(whole(n)).unwrap();
        assert!(of(2).blocks() == 0 && of(1).blocks() * 512 < 32 << 20, "only what is written takes room");
        let owner = fs::metadata(&dir).unwrap().uid();
        assert!((0..3).all(|n| of(n).uid() == owner && of(n).mode() & 0o777 == 0o600));
        assert!(is_ext4(&whole(1), "data"));

        // It is said how.
        let shown = bus.status("web").await.unwrap().disks;
        let names: Vec<&str> = shown.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["disk0", "data", "raw"]);
        assert!(matches!(shown[0].made, DiskMade::Reflink | DiskMade::Copy), "{shown:?}");
        assert_eq!(
            (shown[1].made, shown[2].made, shown[2].size_bytes),
            (DiskMade::Blank, DiskMade::Blank, 2 << 30)
        );
        let page = world.printed(&["vm", "get", "web"]).await;
        assert!(page.contains("data: 256 MiB (blank)"), "{page}");
        let explained: ExplainReply = bus.ask("vm.web.explain", &json!({})).get().await.unwrap();
        assert!(
            explained.findings.iter().any(|text| text.starts_with("Disk \"raw\" of 2 GiB")),
            "{explained:?}"
        );
        assert!(explained.vmm_config.contains("\"serial\": \"data\""), "{}", explained.vmm_config);

        // What the guest wrote stays over its end and the daemon's.
        File::options().write(true).open(whole(2)).unwrap().write_all_at(b"the guest's", 1 << 30).unwrap();
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        let mut kept = [0; 11];
        File::open(whole(2)).unwrap().read_exact_at(&mut kept, 1 << 30).unwrap();
        assert_eq!((&kept, bus.status("web").await.unwrap().disks), (b"the guest's", shown));

        // One that is gone is told, not made anew.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        let aside = world.path("aside");
        fs::rename(whole(2), &aside).unwrap();
        let error = refused(
            "a disk that is gone",
            ErrorCode::ResourceExhausted,
            bus.change_with("web", "start", json!({"wait": "running"})).await,
        );
        assert_eq!(
            (error.details["cause"].as_str(), error.details["disk"].as_str()),
            ("disk_refused", "raw")
        );
        assert!(error.message.contains("is gone") && !whole(2).exists(), "{error:?}");
        bus.until("web", "failed", |vm| vm.state == VmState::Failed).await;
        fs::rename(aside, whole(2)).unwrap();
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();

        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        assert!(!dir.exists());
        events::log(&bus).await;
    });
}

#[test]
fn a_disk_that_cannot_be_is_refused_by_its_field() {
    run("a_disk_that_cannot_be_is_refused_by_its_field", Options::default(), async |world| {
        let bus = world.bus.clone();
        for (disk, field) in [
            (json!({"fs": "ext4"}), "spec.disks[0].image"),
            (json!({"size": "1MiB", "fs": "ext4"}), "spec.disks[0].size_bytes"),
            (json!({"image": "drover-rootfs", "size": "1MiB"}), "spec.disks[0].size_bytes"),
            (json!({"image": "drover-rootfs", "label": "x"}), "spec.disks[0].label"),
            (json!({"image": "drover-rootfs", "readonly": true, "discard": true}), "spec.disks[0].discard"),
        ] {
            let error = bus.create("web", json!({"spec": {"disks": [disk]}})).await;
            let error = refused(field, ErrorCode::InvalidArgument, error);
            assert_eq!(error.details["field"], field, "{error:?}");
        }
        let unknown = bus.create("web", json!({"spec": {"disks": [{"sise": "1GiB"}]}})).await;
        let unknown = refused("an unknown field", ErrorCode::InvalidArgument, unknown);
        assert!(unknown.message.contains("sise"), "{unknown:?}");
        // More than the host promises, before anything is made.
        let large = json!({"spec": {"disks": [{"size": "8TiB"}, {"size": "8TiB"}]}});
        let error = refused("too large", ErrorCode::ResourceExhausted, bus.create("web", large).await);
        assert!(error.details["resource"].contains("disk"), "{error:?}");
        assert!(fs::read_dir(world.state_dir().join("disks")).map_or(true, |mut dir| dir.next().is_none()));
    });
}

/// As [`three`], for many VMs on a host with little room.
fn small() -> Value {
    json!([
        {"image": "drover-rootfs", "size": "256MiB"},
        {"name": "data", "size": "64MiB", "fs": "ext4", "label": "data"},
        {"name": "raw", "size": "512MiB"},
    ])
}

#[test]
fn a_daemon_that_dies_while_disks_are_made_leaves_whole_ones() {
    run("a_daemon_that_dies_while_disks_are_made_leaves_whole_ones", Options::default(), async |world| {
        let bus = world.bus.clone();
        let disks = world.state_dir().join("disks");
        let mut vms = Vec::new();
        for n in 0..8_usize {
            let name = format!("k{n}");
            let body = json!({"name": name, "wait": "agent", "spec": {"disks": small()}});
            let id = RequestId::generate();
            let asks = bus.insist::<ChangeReply>("vm.create", &body, id);
            // Killed at another instant each time: with the folder, with a part of a disk, with one or two of them.
            let kills = async {
                until("so much of the disks", async || {
                    let mut made: Vec<String> = Vec::new();
                    for dir in fs::read_dir(&disks).ok()?.filter_map(Result::ok) {
                        let files = fs::read_dir(dir.path()).ok()?.filter_map(Result::ok);
                        made.extend(files.filter_map(|file| file.file_name().into_string().ok()));
                        made.push("folder".to_owned());
                    }
                    let wanted = 4 * n + [1, 2, 3, 4][n % 4];
                    (made.len() >= wanted).then_some(())
                })
                .await;
                world.kill().await;
                world.start();
                world.ready().await;
            };
            let (reply, ()) = tokio::join!(asks, kills);
            let vm = bus.status(&name).await.unwrap();
            assert_eq!((vm.vm_id, vm.state), (reply.unwrap().vm.vm_id, VmState::Running));
            vms.push(vm);
        }
        for vm in &vms {
            let dir = folder(world, vm);
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["disk0.raw", "disk1.raw", "disk2.raw"], "nothing is left of a part");
            assert!(is_ext4(&dir.join("disk1.raw"), "data"));
            assert_eq!(fs::metadata(dir.join("disk2.raw")).unwrap().len(), 512 << 20);
            bus.change(vm.name.as_str(), "delete").await.unwrap();
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        // Deleted while they are made.
        for n in 0..4 {
            let name = format!("d{n}");
            let vm = bus.create(&name, json!({"spec": {"disks": small()}})).await.unwrap().vm;
            bus.change(&name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        }
        assert_eq!(fs::read_dir(&disks).unwrap().count(), 0);
        events::log(&bus).await;
    });
}

#[test]
fn a_real_guest_finds_its_disks_by_their_names() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_finds_its_disks_by_their_names", options, async |world| {
        let bus = world.bus.clone();
        // The data comes first, so that no other name would lead to it.
        let disks = json!([
            {"name": "scratch", "size": "1GiB"},
            {"name": "data", "size": "256MiB", "fs": "ext4", "label": "data"},
            {"name": "tools", "image": "drover-rootfs", "readonly": true},
        ]);
        let vm = boot(&bus, "web", json!({"disks": disks})).await;
        let find =
            "for d in /sys/block/vd*; do echo $(cat $d/serial) $(cat $d/size) $(cat $d/ro); done | sort";
        let found = sh(&bus, "web", find).await;
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines[..2], ["data 524288 0", "scratch 2097152 0"]);
        assert!(lines[2].starts_with("tools ") && lines[2].ends_with(" 1"), "{found}");
        let mount = "mkdir -p /mnt/d; cd /sys/block; for d in vd*; do \
                     [ $(cat $d/serial) = data ] && mount -t ext4 /dev/$d /mnt/d; done; grep -c ' /mnt/d ' /proc/mounts";
        assert_eq!(sh(&bus, "web", mount).await, "1");
        sh(&bus, "web", "echo kept > /mnt/d/file; umount /mnt/d; sync").await;
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        bus.change("web", "start").await.unwrap();
        agent(&bus, "web").await;
        sh(&bus, "web", mount).await;
        assert_eq!(sh(&bus, "web", "cat /mnt/d/file").await, "kept");
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
    });
}

#[test]
fn a_real_guest_gives_back_what_it_frees_unless_the_disk_keeps_it() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_gives_back_what_it_frees_unless_the_disk_keeps_it", options, async |world| {
        let bus = world.bus.clone();
        let disks = json!([
            {"name": "gives", "size": "256MiB", "fs": "ext4"},
            {"name": "keeps", "size": "256MiB", "fs": "ext4", "discard": false},
        ]);
        let vm = boot(&bus, "web", json!({"disks": disks})).await;
        // Of the host, in MiB.
        let taken = |n: u8| {
            let file = folder(world, &vm).join(format!("disk{n}.raw"));
            fs::metadata(file).unwrap().blocks() * 512 / (1 << 20)
        };
        let script = "cd /sys/block; for d in vd*; do n=$(cat $d/serial); mkdir -p /mnt/$n; \
                      mount -t ext4 /dev/$d /mnt/$n; dd if=/dev/zero of=/mnt/$n/f bs=1M count=64 2> /dev/null; done; sync; \
                      for d in vd*; do echo $(cat $d/serial) $(cat $d/queue/discard_max_bytes); done | sort";
        let said = sh(&bus, "web", script).await;
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() == 2 && lines[0] != "gives 0" && lines[1] == "keeps 0", "{said}");
        assert!(taken(0) >= 64 && taken(1) >= 64, "{} {}", taken(0), taken(1));
        sh(&bus, "web", "rm /mnt/gives/f /mnt/keeps/f; sync").await;
        let trim = async |mount: &str| {
            let body = json!({"mounts": [mount]});
            let ask = bus.ask("vm.web.guest.trim", &body).id(RequestId::generate());
            ask.within(Duration::from_secs(60)).get::<TrimResult>().await
        };
        let trimmed = trim("/mnt/gives").await.unwrap();
        assert!(trimmed.trimmed[0].trimmed_bytes >= 64 << 20, "{trimmed:?}");
        println!("of the disk that keeps: {:?}", trim("/mnt/keeps").await);
        assert!(taken(0) < 32 && taken(1) >= 64, "{} {}", taken(0), taken(1));
        let explained: ExplainReply = bus.ask("vm.web.explain", &json!({})).get().await.unwrap();
        let configured: Value = serde_json::from_str(&explained.vmm_config).unwrap();
        let sparse = |n: usize| configured["disks"][n]["sparse"].clone();
        assert_eq!((sparse(0), sparse(1)), (Value::Null, json!(false)));
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
    });
}

/// What the second script takes, in seconds by the guest's clock, right after the first one.
async fn timed(bus: &Bus, name: &str, first: &str, then: &str) -> f64 {
    let clock = "cut -d' ' -f1 /proc/uptime";
    let script =
        format!("exec 2> /dev/null; {first} || exit 8; a=$({clock}); {then} || exit 9; echo $a $({clock})");
    let said = sh(bus, name, &script).await;
    let times: Vec<f64> = said.split(' ').map(|time| time.parse().unwrap()).collect();
    times[1] - times[0]
}

#[test]
fn a_real_guest_is_held_to_its_disks_limits() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_is_held_to_its_disks_limits", options, async |world| {
        let bus = world.bus.clone();
        let disks = json!([
            {"name": "free", "size": "256MiB"},
            {"name": "slow", "size": "256MiB", "limits": {"bytes_per_second": "4MiB"}},
            {"name": "few", "size": "256MiB", "limits": {"ops_per_second": 50}},
        ]);
        boot(&bus, "web", json!({"disks": disks})).await;
        let told: ExplainReply = bus.ask("vm.web.explain", &json!({})).get().await.unwrap();
        assert_eq!(told.vmm_config.matches("\"refill_time\": 1000").count(), 2, "{}", told.vmm_config);
        // What may come at once is used up first.
        let read = |disk: &str, what: &str| format!("dd if=/dev/{disk} of=/dev/null bs=64k {what}");
        let reads = async |disk| {
            timed(&bus, "web", &read(disk, "count=128"), &read(disk, "skip=128 count=384")).await
        };
        let (slow, free) = (reads("vdb").await, reads("vda").await);
        println!("24 MiB at 4 MiB/s: {slow} s; without a limit {free} s");
        // Never faster than a tenth above the limit; how much slower is the machine's affair, as the printed figures show.
        assert!((5.4..9.0).contains(&slow) && free < slow / 2.0, "{slow} s, {free} s without a limit");
        let write = |count| format!("dd if=/dev/zero of=/dev/vdb bs=64k count={count} conv=fsync");
        let slow = timed(&bus, "web", &write(128), &write(384)).await;
        println!("24 MiB written at 4 MiB/s: {slow} s");
        assert!((5.4..9.0).contains(&slow), "{slow} s");
        let ops =
            |skip, count| format!("dd if=/dev/vdc of=/dev/null bs=4k iflag=direct skip={skip} count={count}");
        let few = timed(&bus, "web", &ops(0, 100), &ops(100, 250)).await;
        println!("250 reads at 50/s: {few} s");
        assert!((4.5..7.5).contains(&few), "{few} s");
        bus.change("web", "delete").await.unwrap();
    });
}

/// Whether a text stands in one of the files below a folder.
fn mentions(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().filter_map(Result::ok) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(mentions(&path, text));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_real_guest_reads_its_seed_and_nobody_else_does() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() };
    run("a_real_guest_reads_its_seed_and_nobody_else_does", options, async |world| {
        let bus = world.bus.clone();
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq3yZs8 me@home";
        let spec = json!({
            "disks": [{"size": "64MiB"}], "seed": {"ssh_keys": [key]},
            "user_data": "#cloud-config\npassword: hunter2-of-web\n",
        });
        let vm = boot(&bus, "web", spec).await;
        let mount = "modprobe vfat 2> /dev/null; mkdir -p /mnt/s; cd /sys/block; for d in vd*; do \
                     [ $(cat $d/serial) = cidata ] && [ $(cat $d/ro) = 1 ] && mount -t vfat -o ro /dev/$d /mnt/s; done; \
                     ls /mnt/s";
        assert_eq!(sh(&bus, "web", mount).await, "meta-data\nnetwork-config\nuser-data");
        let label = "dd if=$(grep ' /mnt/s ' /proc/mounts | cut -d' ' -f1) bs=1 skip=43 count=6 2> /dev/null";
        assert_eq!(sh(&bus, "web", label).await, "CIDATA");
        let file = async |name: &str| sh(&bus, "web", &format!("cat /mnt/s/{name}")).await;
        let meta: Value = serde_json::from_str(&file("meta-data").await).unwrap();
        assert_eq!(meta, json!({"instance-id": vm.vm_id, "local-hostname": "web", "public-keys": [key]}));
        let network: Value = serde_json::from_str(&file("network-config").await).unwrap();
        let (nic, net0) = (&vm.nics[0], &network["ethernets"]["net0"]);
        assert_eq!(net0["match"]["macaddress"], nic.mac);
        assert_eq!(net0["addresses"], json!([format!("{}/{}", nic.ipv4, nic.prefix_len)]));
        assert_eq!(net0["routes"], json!([{"to": "0.0.0.0/0", "via": nic.gateway}]));
        assert_eq!(file("user-data").await, "#cloud-config\npassword: hunter2-of-web");

        // It is the VM's user's alone, and nobody is shown what is secret on it.
        let seed = folder(world, &vm).join("seed.img");
        let meta = fs::metadata(&seed).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (1 << 20, 0o600));
        let secret = "hunter2-of-web";
        for args in [["vm", "get", "web"], ["vm", "explain", "web"], ["vm", "logs", "web"]] {
            for output in ["table", "json"] {
                let said = world.drover(&[args[0], args[1], args[2], "-o", output]).await;
                assert!(!String::from_utf8_lossy(&said.stdout).contains(secret), "{args:?}");
            }
        }
        assert!(!world.told().contains(secret), "the daemon's log");
        // The journal is root's, and what the bus has of the VM is told before.
        let journal = |path: &PathBuf| path.extension().is_some_and(|end| end == "redb");
        let known: Vec<PathBuf> =
            mentions(world.state_dir(), secret).into_iter().filter(|path| !journal(path)).collect();
        assert_eq!((known, mentions(world.run_dir(), secret)), (vec![seed.clone()], Vec::new()));
        assert_eq!(mentions(&world.path("js"), secret), Vec::<PathBuf>::new());

        // The next start makes it anew.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        fs::write(&seed, "what somebody put there").unwrap();
        bus.change("web", "start").await.unwrap();
        agent(&bus, "web").await;
        assert_eq!(sh(&bus, "web", mount).await, "meta-data\nnetwork-config\nuser-data");
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        assert!(!seed.exists());
    });
}
