//! The network of a host: what others take away comes back, and no guest speaks for another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Command;

use drover_schemas::body::status::VmStatus;
use drover_tests::events;
use drover_tests::traffic::{Ear, Line, Outside, speak};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::Value;

/// A command.
type Words<'a> = &'a [&'a str];

/// Runs a program in the host's namespace, which is this thread's.
fn host(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The bridge that a VM's TAP is under.
fn bridge_of(vm: &VmStatus) -> String {
    let shown: Value = serde_json::from_str(&host("ip", &["-j", "link", "show", &vm.nics[0].tap])).unwrap();
    shown[0]["master"].as_str().unwrap().to_owned()
}

fn table(world: &World) -> String {
    let id = world.installation().unwrap().to_string().to_ascii_lowercase();
    format!("drover-{}", &id[id.len() - 10..])
}

/// Whether a program of the host says this.
fn says(words: Words<'_>, text: &str) -> bool {
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
    String::from_utf8(done.stdout).unwrap().contains(text)
}

#[test]
fn what_others_do_to_the_network_is_mended_under_running_guests() {
    let test = "what_others_do_to_the_network_is_mended_under_running_guests";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let (a, b) = (bus.up("a").await, bus.up("b").await);
        let (tap, mac) = (a.nics[0].tap.clone(), a.nics[0].mac.clone());
        let (bridge, table) = (bridge_of(&a), table(world));
        let ear = Ear::at(&bridge);
        let mut lines =
            [Line::open(&bus, "a", outside.listen()).await, Line::open(&bus, "b", outside.listen()).await];
        speak(&bus, "a", &a.nics[0], &b.nics[0].ipv4).await;
        ear.hears_own_only().await;

        let element = format!("{{ {tap} . {mac} }}");
        let list = ["nft", "list", "table", "bridge", &table];
        let elements = ["nft", "list", "set", "bridge", &table, "vm_mac"];
        // What somebody does, and what shows that it is undone.
        let done: [(Words<'_>, Words<'_>, &str); 5] = [
            (&["nft", "flush", "ruleset"], &list, "vm_mac"),
            (&["nft", "delete", "element", "bridge", &table, "vm_mac", &element], &elements, &mac),
            (&["nft", "flush", "chain", "bridge", &table, "from_vm"], &list, "@vm_src accept"),
            (
                &["ip", "address", "flush", "dev", &bridge],
                &["ip", "address", "show", "dev", &bridge],
                "inet ",
            ),
            (&["ip", "link", "set", "dev", &tap, "nomaster"], &["ip", "link", "show", &tap], "master"),
        ];
        for (words, shown, text) in done {
            host(words[0], &words[1..]);
            until(&format!("{words:?} is mended"), async || says(shown, text).then_some(())).await;
            ear.hears_own_only().await;
            for line in &mut lines {
                line.is_alive().await;
            }
        }
        for what in ["the tables", "lost its address", "taken from its bridge"] {
            events::alarm(&bus, "network_mended", |event| event.details["found"].contains(what)).await;
        }

        // The daemon dies, and nobody is there who would mend it.
        world.kill().await;
        host("nft", &["flush", "ruleset"]);
        host("ip", &["link", "set", "dev", &tap, "nomaster"]);
        world.start();
        world.ready().await;
        ear.hears_own_only().await;
        for line in &mut lines {
            line.is_alive().await;
        }
        assert_eq!(bus.host().await.unwrap().alarms, []);
        for (name, vm) in [("a", a), ("b", b)] {
            bus.change(name, "delete").await.unwrap();
            assert_eq!(drover_tests::leak::anything(world, &vm), Vec::<String>::new());
        }
    });
}

#[test]
fn a_tap_that_was_removed_is_an_alarm_until_its_vm_is_restarted() {
    let test = "a_tap_that_was_removed_is_an_alarm_until_its_vm_is_restarted";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        host("ip", &["link", "del", "dev", &vm.nics[0].tap]);
        let told = events::alarm(&bus, "network_unmended", |_| true).await;
        assert!(told.details["found"].contains(&vm.vm_id.to_string()), "{told:?}");
        events::alarm(&bus, "network_broken", |event| event.details["phase"] == "begin").await;
        let alarms = bus.host().await.unwrap().alarms;
        assert_eq!(alarms.iter().map(|alarm| alarm.alarm.as_str()).collect::<Vec<_>>(), ["network_broken"]);
        bus.change_with("web", "stop", serde_json::json!({"force": true})).await.unwrap();
        bus.change_with("web", "start", serde_json::json!({"wait": "agent"})).await.unwrap();
        events::alarm(&bus, "network_broken", |event| event.details["phase"] == "end").await;
        let outside = Outside::beside_host();
        Line::open(&bus, "web", outside.listen()).await.is_alive().await;
    });
}
