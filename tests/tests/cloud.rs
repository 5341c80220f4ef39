//! A disk as Debian's for clouds are, with nothing of drover's on it: it boots by its own loader and kernel, and gets its
//! agent, its name, its addresses, its key and its user-data from the seed disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_schemas::body::vm::ChangeReply;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::events;
use drover_tests::guest::{agent_within, sh};
use drover_tests::wait::until_within;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

/// For a boot with firmware and cloud-init in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(480);
/// Where Debian's package `ovmf` has its firmware.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq3yZs8Wl0q9q5m6lOVZrYxk0Xh2V0G0Q7cVYw2d1aB me@home";

#[test]
fn a_disk_made_for_clouds_gets_its_agent_from_the_seed_disk() {
    let test = "a_disk_made_for_clouds_gets_its_agent_from_the_seed_disk";
    let Some(folder) = std::env::var_os("DROVER_CLOUD").map(PathBuf::from) else {
        return println!(
            "SKIP {test}: DROVER_CLOUD is not set; tests/run.sh images builds the disk and sets it"
        );
    };
    if !Path::new(FIRMWARE).is_file() {
        return println!("SKIP {test}: {FIRMWARE} is not there; the package ovmf has it");
    }
    let agent = std::env::var_os("DROVER_AGENT").map(PathBuf::from).unwrap();
    let options =
        Options { guest: "qemu", budget: Duration::from_secs(900), started: false, ..Options::default() };
    run(test, options, async move |world| {
        let images = json!({"import_dirs": [folder, Path::new(FIRMWARE).parent()]});
        world.up_with(|config| config["images"] = images.clone()).await;
        import(world, "cloud", "disk", &folder.join("cloud.raw")).await;
        import(world, "ovmf", "firmware", Path::new(FIRMWARE)).await;
        let spec = json!({
            "template": "linux-cloud",
            "boot": {"firmware": "ovmf"},
            "disks": [{"image": "cloud", "size": "2GiB"}],
            "seed": {"agent": true, "ssh_keys": [KEY]},
            // The image has no locales that could be made.
            "user_data": "#cloud-config\nlocale: false\nruncmd:\n  - echo of the user > /root/user-data\n",
            "agent": {"enabled": true, "ready_timeout_ms": 480_000},
        });
        // A host that has no agent for guests says so at once.
        let body = json!({"name": "web", "spec": spec});
        world.bus.ask("vm.create", &body).id(RequestId::generate()).refused(ErrorCode::Unsupported).await;
        world.stop_host().await;
        world.configure_with(|config| {
            config["images"] = images;
            config["guest_agent"] = json!(agent);
        });
        world.start();
        world.ready().await;
        let began = Instant::now();
        let ask = world.bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(90));
        ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create web: {e}"));
        let vm = agent_within(BOOT, &world.bus, "web").await;
        println!("from create to agent in {:?}", began.elapsed());
        // Its end, as cloud-init writes it down.
        let end = until_within(BOOT, "cloud-init is done", async || {
            serde_json::from_str::<Value>(
                &says(world, "cat /run/cloud-init/result.json 2> /dev/null || true").await,
            )
            .ok()
        })
        .await;
        println!("from create to the end of cloud-init in {:?}", began.elapsed());
        assert_eq!(end["v1"]["errors"], json!([]), "{end}");
        assert!(end["v1"]["datasource"].as_str().unwrap().starts_with("DataSourceNoCloud"), "{end}");
        assert_eq!(says(world, "cat /etc/hostname /root/user-data").await, "web\nof the user");
        assert_eq!(
            says(world, "systemctl is-enabled drover-agent; systemctl is-active drover-agent").await,
            "enabled\nactive"
        );
        assert_eq!(says(world, "systemctl --failed --no-legend").await, "");
        assert!(says(world, "cat /home/debian/.ssh/authorized_keys").await.contains(KEY));
        let nic = &vm.nics[0];
        let addresses = says(world, "ip -4 -o address show scope global").await;
        assert!(addresses.contains(&format!("{}/", nic.ipv4)), "{addresses}");
        // The disk is longer than its image, and its file system with it.
        let root = says(world, "findmnt -n -b -o SOURCE,FSTYPE,SIZE --target /").await;
        let root: Vec<&str> = root.split_ascii_whitespace().collect();
        assert_eq!(root[..2], ["/dev/vda2", "ext4"]);
        assert!(root[2].parse::<u64>().unwrap() > 3 << 29, "{root:?}");
        world.bus.change("web", "delete").await.unwrap();
        events::log(&world.bus).await;
    });
}

async fn import(world: &World, name: &str, kind: &str, path: &Path) {
    let image = json!({"name": name, "kind": kind, "path": path});
    let ask = world.bus.ask("drover.v1.host.h1.image.import", &image).within(Duration::from_secs(90));
    ask.get::<Value>().await.unwrap();
}

/// What a script of root's prints; it succeeds.
async fn says(world: &World, script: &str) -> String {
    sh(&world.bus, "web", script).await
}
