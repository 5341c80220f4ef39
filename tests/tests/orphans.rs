//! VMs that no row tells of: another installation's, and our own after a journal was restored from a backup.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drover_schemas::body::host::{BackupReply, Orphan, OrphansReply};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::LookupReply;
use drover_schemas::state::VmState;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{audit, events, leak};
use serde_json::json;

async fn orphans(world: &World) -> Vec<Orphan> {
    let reply: OrphansReply = world.bus.ask("drover.v1.host.h1.orphans", &json!({})).get().await.unwrap();
    // Tests run side by side on one machine: what other worlds do is not this one's affair.
    let ours = |orphan: &Orphan| orphan.ours || orphan.installation == world.installation().unwrap();
    reply.orphans.into_iter().filter(ours).collect()
}

/// Backs the journal up; answers where the backup is.
async fn backup(world: &World, vms: u64) -> String {
    let said = world.drover(&["host", "backup", "h1", "--output", "json"]).await;
    let reply: BackupReply = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(reply.vms, vms);
    reply.path
}

/// Puts the backup in the place of the journal; `meanwhile` happens while no daemon runs.
async fn restore(world: &mut World, backup: &str, meanwhile: impl AsyncFnOnce(&World)) {
    let state = world.state_dir().display().to_string();
    let restore = ["journal", "restore", backup, "--state", &state];
    let refused = world.drover(&restore).await;
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("in use by process"), "{refused}");
    world.stop_host().await;
    meanwhile(world).await;
    let restored = world.drover(&restore).await;
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    world.start();
    world.ready().await;
}

/// A VM `old` that a backup of the journal knows, and a VM `lost` that it does not, with that journal restored.
/// `meanwhile` happens while no daemon runs.
async fn lose_a_row(world: &mut World, meanwhile: impl AsyncFnOnce(&World)) -> (VmStatus, VmStatus) {
    let bus = world.bus.clone();
    let old = bus.up("old").await;
    // The backup is older than the second VM.
    let path = backup(world, 1).await;
    let shown = world.drover(&["journal", "show", &path]).await;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["vms"][0]["name"], "old");
    let lost = bus.up("lost").await;
    assert_eq!(orphans(world).await, []);
    restore(world, &path, meanwhile).await;
    (old, lost)
}

#[test]
fn a_journal_that_is_older_than_its_vms_is_brought_to_where_they_are() {
    let test = "a_journal_that_is_older_than_its_vms_is_brought_to_where_they_are";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let (_, went, gone) = (bus.up("halts").await, bus.up("went").await, bus.up("gone").await);
        bus.change_with("went", "stop", json!({"force": true})).await.unwrap();
        let path = backup(world, 3).await;
        // By the backup the first runs, the second is down and the third is there.
        bus.change_with("halts", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("went", "start", json!({"wait": "agent"})).await.unwrap();
        bus.change("gone", "delete").await.unwrap();
        events::log(&bus).await;
        let alive = world.vmms(went.vm_id);
        assert_eq!(alive.len(), 1);
        restore(world, &path, async |_| {}).await;

        assert_eq!(
            world.vmms(went.vm_id),
            alive,
            "what runs is not ended, though the backup says that it is down"
        );
        bus.until_ping("went").await;
        assert_eq!(bus.status("went").await.unwrap().incarnation, 2);
        assert_eq!(bus.status("halts").await.unwrap().state, VmState::Stopped);
        assert_eq!(leak::anything(world, &gone), Vec::<String>::new());
        let found: LookupReply = bus.ask("vm.lookup", &json!({"name": "gone"})).get().await.unwrap();
        assert!(matches!(found, LookupReply::Gone { vm_id, .. } if vm_id == gone.vm_id), "{found:?}");
        assert!(world.told().contains("it was deleted after the backup"), "{}", world.told());
        // All logs go on where they were, the host's own as well.
        bus.change_with("halts", "start", json!({"wait": "agent"})).await.unwrap();
        for name in ["halts", "went"] {
            bus.change(name, "delete").await.unwrap();
        }
        let log = events::log(&bus).await;
        assert!(log.values().all(|events| events.last().unwrap().last));
        audit::told(&bus, "what was done since", |event| {
            event.verb.as_deref() == Some("delete")
                && event.vm.as_ref().is_some_and(|vm| vm.as_str() == "went")
        })
        .await;
        assert_ne!(bus.up("gone").await.vm_id, gone.vm_id);
    });
}

#[test]
fn a_vm_whose_row_was_lost_comes_back_as_it_was() {
    run("a_vm_whose_row_was_lost_comes_back_as_it_was", Options::default(), async |world| {
        let (old, lost) = lose_a_row(world, async |_| {}).await;
        let bus = world.bus.clone();
        let back = bus.until("lost", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!(
            (back.vm_id, back.vmm_pid, back.incarnation),
            (lost.vm_id, lost.vmm_pid, lost.incarnation)
        );
        assert_eq!(back.nics, lost.nics);
        bus.until_ping("lost").await;
        assert_eq!(bus.status("old").await.unwrap().vmm_pid, old.vmm_pid);
        assert_eq!(orphans(world).await, []);
        let next = bus.up("next").await;
        assert_ne!(next.nics[0].ipv4, lost.nics[0].ipv4);
        // Its events go on where they were, and tell of it.
        let log = events::log(&bus).await;
        let states: Vec<VmState> = log[&lost.vm_id].iter().map(|event| event.state).collect();
        assert!(states.windows(2).any(|pair| pair == [VmState::Unknown, VmState::Running]), "{states:?}");
        // It is a VM like any other, over another death of the daemon too.
        world.kill().await;
        world.start();
        world.ready().await;
        bus.change_with("lost", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("lost", "start", json!({"wait": "agent"})).await.unwrap();
        bus.change("lost", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &lost), Vec::<String>::new());
        events::log(&bus).await;
    });
}

#[test]
fn a_vm_whose_name_is_no_longer_its_own_is_left_to_the_operator() {
    let test = "a_vm_whose_name_is_no_longer_its_own_is_left_to_the_operator";
    run(test, Options::default(), async |world| {
        // As if it had been deleted, or created elsewhere, while no daemon ran.
        let forget = async |world: &World| {
            let js = async_nats::jetstream::new(world.bus.nats.clone());
            let claims = js.get_key_value("DROVER_VMS").await.unwrap();
            claims.purge("default.lost").await.unwrap();
        };
        let (old, lost) = lose_a_row(world, forget).await;
        let bus = world.bus.clone();
        let alive = world.vmms(lost.vm_id);
        let reason =
            until("a reason", async || orphans(world).await.into_iter().find_map(|orphan| orphan.reason))
                .await;
        assert!(reason.contains("nobody has claimed its name"), "{reason}");
        let found = orphans(world).await;
        let [orphan] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((orphan.vm_id, orphan.ours), (lost.vm_id, true));
        assert_eq!(orphan.name.as_ref().map(|n| n.as_str()), Some("lost"));
        assert!(alive.iter().all(|pid| orphan.pids.contains(&pid.cast_unsigned())), "{orphan:?}");
        assert_eq!(world.vmms(lost.vm_id), alive, "it is left alone");
        assert_eq!(bus.status("old").await.unwrap().vm_id, old.vm_id);
        // Whoever comes next has neither its address nor its user, nor, with its name, anything else of it.
        let next = bus.up("lost").await;
        assert_ne!(next.vm_id, lost.vm_id);
        assert_ne!(next.nics[0].ipv4, lost.nics[0].ipv4);
        assert_ne!(next.nics[0].mac, lost.nics[0].mac);
        let uid = |pid: i32| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(format!("/proc/{pid}")).unwrap().uid()
        };
        assert_ne!(uid(world.vmms(next.vm_id)[0]), uid(alive[0]));
        until("an alarm in the log", async || world.told().contains("runs without a row").then_some(()))
            .await;
        // Only an operator ends it, and nobody else's.
        let refused = world.drover(&["host", "orphans", "h1", "--remove", &next.vm_id.to_string()]).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("not_found"), "{refused:?}");
        let text = world.drover(&["host", "orphans", "h1", "--remove", &lost.vm_id.to_string()]).await;
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(!text.contains(&lost.vm_id.to_string()), "{text}");
        assert_eq!(leak::anything(world, &lost), Vec::<String>::new());
        bus.until_ping("lost").await;
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
        world.configure_with(|config| config["networks"][0]["subnet"] = json!("10.79.0.0/20"));
        // The name of the host is the other installation's, however silent that is.
        let refused = world.host_fails().await;
        let refused = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.contains("conflict") && refused.contains("--replace"), "{refused}");
        world.start_with(&["--replace"]);
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
