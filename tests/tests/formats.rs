//! Disks of other formats: qcow2 and ISO, made by the usual tools, in a guest with a kernel of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::image::{ImageGetReply, ImageImportReply};
use drover_schemas::body::spec::{ImageFormat, ImageKind};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(100);
const MIB: usize = 1 << 20;

fn tool(program: &str, args: &[&str], dir: &Path) {
    let done = Command::new(program).args(args).current_dir(dir).output();
    let done = done.unwrap_or_else(|e| panic!("{program}: {e}; install it"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn import(bus: &Bus, body: &Value) -> ImageImportReply {
    bus.ask("drover.v1.host.h1.image.import", body).within(Duration::from_secs(60)).get().await.unwrap()
}

async fn says(bus: &Bus, script: &str) -> String {
    let body = json!({"argv": ["sh", "-c", script]});
    let ask = bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).within(Duration::from_secs(60));
    let ExecReply::Result(done) = ask.get().await.unwrap() else { panic!("{script}: no result") };
    assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

/// A disk of 32 MiB with something at each of its ends, as qcow2 with clusters that are compressed, and a disc.
fn make(dir: &Path) -> Vec<u8> {
    let mut disk: Vec<u8> = vec![0; 32 * MIB];
    for (n, byte) in disk[..2 * MIB].iter_mut().enumerate() {
        *byte = (n / 7) as u8;
    }
    disk[32 * MIB - 3..].copy_from_slice(b"end");
    fs::write(dir.join("raw"), &disk).unwrap();
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "raw", "disk.qcow2"], dir);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "over.qcow2"], dir);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=out", "apart.qcow2", "1M"], dir);
    fs::create_dir(dir.join("disc")).unwrap();
    fs::write(dir.join("disc/hello"), "from a disc").unwrap();
    tool("xorrisofs", &["-quiet", "-o", "disc.iso", "-V", "DISC", "disc"], dir);
    tool("mke2fs", &["-q", "-t", "ext4", "root.ext4", "8M"], dir);
    disk
}

async fn refusals(world: &World, dir: &Path) {
    let refused = async |file: &str, kind: &str, word: &str| {
        let body = json!({"name": "no", "kind": kind, "path": dir.join(file)});
        let error: ErrorBody =
            world.bus.ask("drover.v1.host.h1.image.import", &body).refused(ErrorCode::InvalidArgument).await;
        assert!(error.message.contains(word), "{file}: {error}");
    };
    refused("over.qcow2", "disk", "backing file").await;
    refused("apart.qcow2", "disk", "another file").await;
    refused("disk.qcow2", "rootfs", "root file system").await;
    refused("raw", "iso", "ISO").await;
    refused("raw", "rootfs", "ext4").await;
    let whole = fs::read(dir.join("disk.qcow2")).unwrap();
    fs::write(dir.join("cut.qcow2"), &whole[..MIB / 16]).unwrap();
    refused("cut.qcow2", "disk", "cut off").await;
}

#[test]
fn a_guest_reads_and_writes_what_the_usual_tools_have_made() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::down() };
    run("a_guest_reads_and_writes_what_the_usual_tools_have_made", options, async |world| {
        let dir = world.state_dir().parent().unwrap().join("in");
        fs::create_dir_all(&dir).unwrap();
        let disk = make(&dir);
        world.up_with(|config| config["images"] = json!({"import_dirs": [dir]})).await;
        let bus = world.bus.clone();
        refusals(world, &dir).await;
        for (name, kind, file) in
            [("cloud", "disk", "disk.qcow2"), ("disc", "iso", "disc.iso"), ("fs", "rootfs", "root.ext4")]
        {
            import(&bus, &json!({"name": name, "kind": kind, "path": dir.join(file)})).await;
        }
        let get = async |image: &str| -> ImageGetReply {
            bus.ask("drover.v1.host.h1.image.get", &json!({"image": image})).get().await.unwrap()
        };
        let cloud = get("cloud").await.image;
        assert_eq!((cloud.format, cloud.virtual_bytes), (ImageFormat::Qcow2, Some(32 << 20)));
        assert!(cloud.size_bytes < 2 << 20, "it was compressed: {}", cloud.size_bytes);
        let disc = get("disc").await;
        assert_eq!((disc.image.kind, disc.used_by.len()), (ImageKind::Iso, 0));

        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        let disks = json!([{"image": "cloud"}, {"image": "disc"}, {"image": "fs", "readonly": true}]);
        let spec = json!({"template": "linux-microvm", "agent": agent, "disks": disks});
        let body = json!({"name": "web", "spec": spec, "wait": "agent"});
        let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(BOOT);
        ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
        assert_eq!(says(&bus, "cat /sys/block/vda/size").await, (disk.len() / 512).to_string());
        assert_eq!(says(&bus, "sha256sum < /dev/vda").await.split(' ').next(), Some(sum(&disk).as_str()));
        let disc = says(&bus, "cat /sys/block/vdb/ro; dd if=/dev/vdb bs=1 skip=32769 count=5 2> /dev/null");
        assert_eq!(disc.await, "1\nCD001");
        assert_eq!(says(&bus, "grep -c 'from a disc' /dev/vdb; cat /sys/block/vdc/ro").await, "1\n1");
        let wrote = "dd if=/bin/busybox of=/dev/vda bs=1M seek=8 conv=notrunc,fsync 2> /dev/null; \
                     sha256sum < /dev/vda";
        let changed = says(&bus, wrote).await;
        let shown = world.printed(&["image", "show", "cloud"]).await;
        assert!(shown.contains("qcow2") && shown.contains("default/web"), "{shown}");
        let used = get(&format!("sha256:{}", cloud.sha256)).await;
        assert_eq!((used.image.vms, used.used_by[0].name.as_str()), (1, "web"));

        // What was written is in the VM's own copy, through a stop and another daemon, and not in the image.
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        world.kill().await;
        world.start();
        world.ready().await;
        let started =
            bus.ask("vm.web.start", &json!({"wait": "agent"})).id(RequestId::generate()).within(BOOT);
        started.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("start: {e}"));
        assert_eq!(says(&bus, "sha256sum < /dev/vda").await, changed);
        let content = world.state_dir().join("store/sha256").join(&cloud.sha256);
        assert_eq!(sum(&fs::read(content).unwrap()), cloud.sha256);
        bus.change("web", "delete").await.unwrap();

        // Names stand over contents: one more means the same, and a damaged head is never opened as another format.
        import(&bus, &json!({"name": "again", "kind": "disk", "path": dir.join("disk.qcow2")})).await;
        assert_eq!(get("again").await.also, ["cloud"]);
        let odd = fs::File::options().write(true).open(dir.join("disk.qcow2")).unwrap();
        odd.write_all_at(&[9], 7).unwrap();
        let body = json!({"name": "odd", "kind": "disk", "path": dir.join("disk.qcow2")});
        let _: ErrorBody =
            bus.ask("drover.v1.host.h1.image.import", &body).refused(ErrorCode::InvalidArgument).await;
        let _: ErrorBody = bus
            .ask("drover.v1.host.h1.image.get", &json!({"image": "odd"}))
            .refused(ErrorCode::NotFound)
            .await;
    });
}
