//! Networks of a host that are made and removed by verbs, while VMs run and daemons die.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drover_schemas::body::guest::Empty;
use drover_schemas::body::network::{NetworkCreateReply, NetworkInfo, NetworksReply};
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::traffic::{Line, Outside, exec, pings, up_at};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{audit, leak};
use serde_json::{Value, json};

async fn create(bus: &Bus, network: Value) -> Result<NetworkCreateReply, Failure> {
    bus.ask("drover.v1.host.h1.network.create", &network).id(RequestId::generate()).get().await
}

async fn remove(bus: &Bus, name: &str) -> Result<Empty, Failure> {
    let body = json!({"name": name});
    bus.ask("drover.v1.host.h1.network.remove", &body).id(RequestId::generate()).get().await
}

async fn list(bus: &Bus) -> BTreeMap<String, NetworkInfo> {
    let reply: NetworksReply = bus.look("drover.v1.host.h1.network.list", &json!({})).await.unwrap();
    reply.networks.into_iter().map(|network| (network.name.to_string(), network)).collect()
}

/// The bridges that are there, and what the rules know of a subnet.
fn traces(world: &World, subnet: &str) -> (usize, usize) {
    let said = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let bridges = said("ip", &["-br", "link", "show", "type", "bridge"]).lines().count();
    let id = world.installation().unwrap().to_string().to_ascii_lowercase();
    let table = format!("drover-{}", &id[id.len() - 10..]);
    (bridges, said("nft", &["list", "table", "inet", &table]).matches(subnet).count())
}

#[test]
fn networks_come_and_go_while_vms_run() {
    run("networks_come_and_go_while_vms_run", Options::default(), async |world| {
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let old = bus.up("old").await;
        let mut line = Line::open(&bus, "old", outside.listen()).await;
        let has_ipv6 = Path::new("/proc/sys/net/ipv6/conf").is_dir();
        let blue = json!({"name": "blue", "subnet": "10.90.0.0/24", "isolate": false, "mtu": 1400,
            "ipv6": has_ipv6.then_some("fd00:90::/64"), "dns": {"suffix": "blue.internal"}});
        let made = create(&bus, blue.clone()).await.unwrap();
        assert!(!made.already && !made.network.configured);
        assert_eq!((made.network.gateway.as_str(), made.network.mtu), ("10.90.0.1", 1400));
        assert!(create(&bus, blue.clone()).await.unwrap().already, "once more is the same");
        line.is_alive().await;

        // It is a network like all others.
        let a = up_at(&bus, "a", json!({"network": "blue", "setup": "dhcp"})).await;
        let b = up_at(&bus, "b", json!({"network": "blue", "ipv4": "10.90.0.77"})).await;
        let asks = "busybox udhcpc -i eth0 -f -n -q -t 10 -T 2 -s /bin/true 2>&1";
        assert_eq!(exec(&bus, "a", &["sh", "-c", asks]).await.exit_code, Some(0));
        let named = "busybox nslookup a.blue.internal 10.90.0.1";
        let named = exec(&bus, "b", &["sh", "-c", named]).await;
        let said = String::from_utf8_lossy(named.stdout.unwrap().as_slice()).into_owned();
        assert!(said.contains(&a.nics[0].ipv4), "{said}");
        assert!(pings(&bus, "b", "10.90.0.1").await);
        assert!(!pings(&bus, "b", &old.nics[0].ipv4).await, "networks are apart");
        let mut far = Line::open(&bus, "b", outside.listen()).await;

        // What cannot be is told, and changes nothing.
        let before = (list(&bus).await, traces(world, "10.90.0"));
        let conflict = ErrorCode::Conflict;
        for (network, code, says) in [
            (json!({"name": "red"}), ErrorCode::InvalidArgument, "subnet_from"),
            (json!({"name": "red", "subnet": "10.91.0.0/31"}), ErrorCode::InvalidArgument, "too small"),
            (json!({"name": "red", "subnet": "10.91.0.0"}), ErrorCode::InvalidArgument, "red: subnet: "),
            (json!({"name": "red", "subnet": "10.91.0.0/24", "mtu": 99}), ErrorCode::InvalidArgument, "MTU"),
            (json!({"name": "red", "subnet": "10.90.0.128/25"}), conflict, "network red: the subnet"),
            (json!({"name": "red", "subnet": "192.0.2.0/24"}), conflict, "192.0.2.1"),
            (json!({"name": "blue", "subnet": "10.92.0.0/24"}), ErrorCode::AlreadyExists, "another network"),
            (
                json!({"name": "default", "subnet": "10.92.0.0/24"}),
                ErrorCode::AlreadyExists,
                "another network",
            ),
        ] {
            let error = refused(says, code, create(&bus, network.clone()).await);
            assert!(error.message.contains(says), "{network}: {error}");
        }
        let error = refused("in use", conflict, remove(&bus, "blue").await);
        assert!(error.message.contains("default/a, default/b"), "{error}");
        let error = refused("configured", ErrorCode::InvalidState, remove(&bus, "default").await);
        assert!(error.message.contains("configuration"), "{error}");
        refused("unknown", ErrorCode::NotFound, remove(&bus, "red").await);
        assert_eq!((list(&bus).await, traces(world, "10.90.0")), before);

        // It is there again after each start, and its guests never notice.
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(list(&bus).await, before.0);
        far.is_alive().await;
        line.is_alive().await;

        for (vm, status) in [("a", &a), ("b", &b)] {
            bus.change(vm, "delete").await.unwrap();
            assert_eq!(leak::anything(world, status), Vec::<String>::new());
        }
        remove(&bus, "blue").await.unwrap();
        assert_eq!(list(&bus).await.keys().collect::<Vec<_>>(), ["default"]);
        assert_eq!(traces(world, "10.90.0"), (1, 0));
        let spec = json!({"spec": {"nics": [{"network": "blue"}]}});
        refused("a network that is gone", ErrorCode::InvalidArgument, bus.create("c", spec).await);
        line.is_alive().await;
        assert_eq!(bus.host().await.unwrap().alarms, []);
        audit::told(&bus, "who made it", |event| event.verb.as_deref() == Some("network.create")).await;

        // The same by hand, with a subnet out of a pool.
        let text =
            world.printed(&["network", "create", "green", "--pool", "10.93.0.0/22", "--prefix", "24"]).await;
        assert!(text.contains("network green is there, 10.93."), "{text}");
        let text = world.printed(&["network", "ls"]).await;
        assert!(
            text.contains("green") && text.contains("a verb") && text.contains("configuration"),
            "{text}"
        );
        world.printed(&["network", "rm", "green"]).await;
        assert_eq!(traces(world, "10.93."), (1, 0));
    });
}

#[test]
fn a_daemon_that_dies_while_networks_change_leaves_all_of_one_or_nothing() {
    let test = "a_daemon_that_dies_while_networks_change_leaves_all_of_one_or_nothing";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let old = bus.up("old").await;
        let outside = Outside::beside_host();
        let mut line = Line::open(&bus, "old", outside.listen()).await;
        let network = json!({"name": "blue", "subnet_from": {"pool": "10.93.0.0/22", "prefix": 24}});
        let (mut with, mut without) = (0, 0);
        for round in 0..12_u64 {
            let was = list(&bus).await.contains_key("blue");
            let asked = async {
                if was { drop(remove(&bus, "blue").await) } else { drop(create(&bus, network.clone()).await) }
            };
            // The moment is what differs from round to round.
            tokio::select! {
                () = asked => {}
                () = tokio::time::sleep(Duration::from_millis(round * 9)) => {}
            }
            world.kill().await;
            world.start();
            world.ready().await;
            let is = list(&bus).await.contains_key("blue");
            let expected = if is { 2 } else { 1 };
            until("all of it is there, or nothing", async || {
                let (bridges, rules) = traces(world, "10.93.");
                (bridges == expected && (rules > 0) == is).then_some(())
            })
            .await;
            if is {
                with += 1
            } else {
                without += 1
            }
            line.is_alive().await;
        }
        println!("NETWORKS {with} deaths left the network, {without} none");
        if list(&bus).await.contains_key("blue") {
            let vm = up_at(&bus, "web", json!({"network": "blue"})).await;
            assert!(pings(&bus, "web", &vm.nics[0].gateway).await);
            bus.change("web", "delete").await.unwrap();
            remove(&bus, "blue").await.unwrap();
        }
        assert_eq!(traces(world, "10.93."), (1, 0));
        assert_eq!(bus.status("old").await.unwrap().vm_id, old.vm_id);
    });
}

#[test]
fn a_subnet_that_is_used_up_says_so_and_gives_what_rests_to_who_asks_for_it() {
    let test = "a_subnet_that_is_used_up_says_so_and_gives_what_rests_to_who_asks_for_it";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        create(&bus, json!({"name": "tiny", "subnet": "10.94.0.0/29"})).await.unwrap();
        let mut vms = Vec::new();
        for name in ["a", "b", "c", "d", "e"] {
            vms.push(up_at(&bus, name, json!({"network": "tiny"})).await);
        }
        let tiny = list(&bus).await["tiny"].clone();
        assert_eq!((tiny.addresses, tiny.addresses_used), (5, 5));
        let next = |nic: Value| json!({"spec": {"nics": [nic]}});
        let error = refused(
            "a sixth",
            ErrorCode::ResourceExhausted,
            bus.create("f", next(json!({"network": "tiny"}))).await,
        );
        assert!(error.message.contains("5 leased, 0 resting after use"), "{error}");
        audit::told(&bus, "that it was refused", |event| {
            event.verb.as_deref() == Some("create") && event.error == Some(ErrorCode::ResourceExhausted)
        })
        .await;
        // One that has just been given back rests, so that nobody takes the next VM for the last.
        bus.change("c", "delete").await.unwrap();
        let error = bus.create("f", next(json!({"network": "tiny"}))).await;
        let error = refused("a sixth", ErrorCode::ResourceExhausted, error);
        assert!(error.message.contains("4 leased, 1 resting after use"), "{error}");
        let again = up_at(&bus, "f", json!({"network": "tiny", "ipv4": vms[2].nics[0].ipv4})).await;
        assert!(pings(&bus, "f", &again.nics[0].gateway).await);
        for vm in ["a", "b", "d", "e", "f"] {
            bus.change(vm, "delete").await.unwrap();
        }
        remove(&bus, "tiny").await.unwrap();
    });
}
