//! VMs that no row tells of: another installation's, and our own after a journal was restored from a backup.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drover_schemas::body::host::{BackupReply, Orphan, OrphansReply};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::json;

async fn orphans(world: &World) -> Vec<Orphan> {
    let reply: OrphansReply = world.bus.ask("drover.v1.host.h1.orphans", &json!({})).get().await.unwrap();
    // Tests run side by side on one machine: what other worlds do is not this one's affair.
    let ours = |orphan: &Orphan| orphan.ours || orphan.installation == world.installation().unwrap();
    reply.orphans.into_iter().filter(ours).collect()
}

#[test]
fn a_vm_whose_row_was_lost_lives_on_is_listed_and_its_address_is_nobody_elses() {
    let test = "a_vm_whose_row_was_lost_lives_on_is_listed_and_its_address_is_nobody_elses";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let old = bus.up("old").await;
        // The backup is older than the second VM.
        let said = world.drover(&["host", "backup", "h1", "--output", "json"]).await;
        let reply: BackupReply = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(reply.vms, 1);
        let shown = world.drover(&["journal", "show", &reply.path]).await;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(shown["vms"][0]["name"], "old");
        let lost = bus.up("lost").await;
        assert_eq!(orphans(world).await, []);
        let alive = world.vmms(lost.vm_id);
        let state = world.state_dir().display().to_string();
        let restore = ["journal", "restore", reply.path.as_str(), "--state", &state];
        let refused = world.drover(&restore).await;
        let refused = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.contains("in use by process"), "{refused}");
        world.stop_host().await;
        let restored = world.drover(&restore).await;
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        world.start();
        world.ready().await;

        let found = orphans(world).await;
        let [orphan] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((orphan.vm_id, orphan.ours), (lost.vm_id, true));
        assert_eq!(orphan.name.as_ref().map(|n| n.as_str()), Some("lost"));
        assert!(alive.iter().all(|pid| orphan.pids.contains(&pid.cast_unsigned())), "{orphan:?}");
        assert_eq!(world.vmms(lost.vm_id), alive, "it is left alone");
        assert_eq!(bus.status("old").await.unwrap().vm_id, old.vm_id);
        // Whoever comes next has neither its address nor its user.
        let next = bus.up("next").await;
        assert_ne!(next.nics[0].ipv4, lost.nics[0].ipv4);
        assert_ne!(next.nics[0].mac, lost.nics[0].mac);
        let uid = |pid: i32| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(format!("/proc/{pid}")).unwrap().uid()
        };
        assert_ne!(uid(world.vmms(next.vm_id)[0]), uid(alive[0]));
        let text = world.drover(&["host", "orphans", "h1"]).await;
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains(&lost.vm_id.to_string()) && text.contains("lost"), "{text}");
        until("an alarm in the log", async || world.told().contains("runs without a row").then_some(()))
            .await;
    });
}

#[test]
fn a_vm_of_another_installation_is_listed_and_never_touched() {
    run("a_vm_of_another_installation_is_listed_and_never_touched", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("theirs").await;
        let alive = world.vmms(vm.vm_id);
        let before = world.installation().unwrap();
        // The same machine and run directory, another journal: another installation.
        world.stop_host().await;
        std::fs::remove_dir_all(world.state_dir()).unwrap();
        let mut config = world.config();
        config["networks"][0]["subnet"] = json!("10.79.0.0/20");
        world.configure(&config);
        world.start();
        world.ready().await;
        assert_ne!(world.installation().unwrap(), before);
        let reply: OrphansReply = bus.ask("drover.v1.host.h1.orphans", &json!({})).get().await.unwrap();
        let found = reply.orphans.iter().find(|orphan| orphan.vm_id == vm.vm_id).unwrap();
        assert_eq!((found.ours, found.installation), (false, before));
        bus.up("ours").await;
        bus.change("ours", "delete").await.unwrap();
        assert_eq!(world.vmms(vm.vm_id), alive);
    });
}
