//! Networks with more interfaces than a bridge takes: guests under further bridges are guests like all others, and nobody
//! can tell under which of them one is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::Command;

use drover_schemas::ErrorCode;
use drover_schemas::body::samples::NicSample;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::StatsReply;
use drover_tests::client::{Bus, refused};
use drover_tests::traffic::{Ear, HOST, Line, Outside, exec, pings, serve, speak, up_at, who_tcp};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

/// Runs `ip` in the host's namespace, which is this thread's.
fn ip(args: &[&str]) -> Value {
    let done = Command::new("ip").args(["-j", "-d"]).args(args).output().unwrap();
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    if done.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&done.stdout).unwrap() }
}

fn master(link: &str) -> String {
    ip(&["link", "show", link])[0]["master"].as_str().unwrap().to_owned()
}

/// The interfaces of bridges, and of what joins them, that are there.
fn of_networks() -> Vec<String> {
    let names = ip(&["link", "show"]);
    let names = names.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    names.filter(|name| ["drb", "dru", "drl"].iter().any(|kind| name.starts_with(kind))).collect()
}

/// The end of what joins a bridge to the first, that is under it.
fn lower(bridge: &str) -> String {
    let ports = ip(&["link", "show", "master", bridge]);
    let names = ports.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    names.into_iter().find(|name| name.starts_with("drl")).unwrap()
}

/// Whether this kernel has it.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

async fn started(world: &mut World) {
    world
        .up_with(|config| {
            config["capacity"]["forward_ports"] = json!("20000-20100");
            config["networks"] = json!([
                {"name": "default", "subnet": "10.80.0.0/20"},
                {"name": "open", "subnet": "10.81.0.0/20", "isolate": false},
            ]);
            if has_ipv6() {
                config["networks"][0]["ipv6"] = json!("fd00:80::/64");
                config["networks"][1]["ipv6"] = json!("fd00:81::/64");
            }
        })
        .await;
}

async fn at(bus: &Bus, name: &str, nic: Value) -> VmStatus {
    let vm = up_at(bus, name, nic).await;
    if let (Some(own), Some(gateway)) = (&vm.nics[0].ipv6, &vm.nics[0].ipv6_gateway) {
        // A guest of processes has no kernel of its own that would.
        let words = format!(
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6 && ip -6 address replace {own}/64 dev eth0 nodad \
             && ip -6 route replace default via {gateway}"
        );
        let done = exec(bus, name, &["sh", "-c", &words]).await;
        assert_eq!(done.exit_code, Some(0), "{done:?}");
    }
    vm
}

/// The same by IPv6, which nobody has on a kernel without it.
async fn pings6(bus: &Bus, vm: &str, address: Option<&String>) -> Option<bool> {
    let done = exec(bus, vm, &["ping", "-6", "-c", "1", "-W", "4", address?]).await;
    Some(done.exit_code == Some(0))
}

async fn refusals(bus: &Bus, vm: &str) -> u64 {
    let stats: StatsReply = bus.ask(&format!("vm.{vm}.stats"), &json!({})).get().await.unwrap();
    stats.nics.iter().map(|NicSample { refused_packets, .. }| refused_packets).sum()
}

#[test]
fn guests_under_further_bridges_are_like_all_others() {
    let test = "guests_under_further_bridges_are_like_all_others";
    run(test, Options::down(), async |world| {
        started(world).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let forward = json!([{"host_port": 20000, "guest_port": 80}]);
        let a = at(&bus, "a", json!({})).await;
        let b = at(&bus, "b", json!({"ipv4": "10.80.4.10", "forwards": forward})).await;
        let c = at(&bus, "c", json!({"ipv4": "10.80.4.11", "setup": "dhcp"})).await;
        let d = at(&bus, "d", json!({"ipv4": "10.80.8.10"})).await;
        let bridges: Vec<String> = [&a, &b, &c, &d].map(|vm| master(&vm.nics[0].tap)).into();
        assert!(bridges[0] != bridges[1] && bridges[1] == bridges[2] && bridges[2] != bridges[3]);
        assert_eq!((b.nics[0].ipv4.as_str(), d.nics[0].ipv4.as_str()), ("10.80.4.10", "10.80.8.10"));
        // Whose it is, and what is none, is told, and nothing is kept of it.
        for (ipv4, code) in [("10.80.4.10", ErrorCode::Conflict), ("10.80.99.1", ErrorCode::InvalidArgument)]
        {
            let spec = json!({"spec": {"nics": [{"ipv4": ipv4}]}});
            let error = refused(ipv4, code, bus.create("e", spec).await);
            assert_eq!(error.details["field"], "spec.nics[0].ipv4", "{error}");
        }

        // The host, its servers, and what is outside.
        let asks = "busybox udhcpc -i eth0 -f -n -q -t 10 -T 2 -s /bin/true 2>&1";
        let leased = exec(&bus, "c", &["sh", "-c", asks]).await;
        assert_eq!(leased.exit_code, Some(0), "{leased:?}");
        for (vm, status) in [("a", &a), ("b", &b), ("d", &d)] {
            assert!(pings(&bus, vm, &status.nics[0].gateway).await, "{vm}");
            assert_ne!(pings6(&bus, vm, status.nics[0].ipv6_gateway.as_ref()).await, Some(false), "{vm}");
        }
        serve(&bus, "b", 'b', 80).await;
        assert_eq!(who_tcp((HOST, 20_000)), Some('b'));
        assert_eq!(outside.within(|| who_tcp((HOST, 20_000))), Some('b'));
        let mut lines =
            [Line::open(&bus, "b", outside.listen()).await, Line::open(&bus, "d", outside.listen()).await];

        // Kept apart, under whichever bridge.
        for (vm, other) in [("a", &b), ("b", &a), ("b", &c), ("b", &d), ("d", &b)] {
            assert!(!pings(&bus, vm, &other.nics[0].ipv4).await, "{vm} reaches {}", other.name);
            let six = pings6(&bus, vm, other.nics[0].ipv6.as_ref()).await;
            assert_ne!(six, Some(true), "{vm} reaches {}", other.name);
        }
        let ear = Ear::at(&bridges[0]);
        speak(&bus, "b", &b.nics[0], &a.nics[0].ipv4).await;
        ear.hears_own_only().await;
        assert!(refusals(&bus, "b").await > 100);
        // The host is nobody at a further bridge, whoever asks it there.
        let mac = ip(&["link", "show", &bridges[3]])[0]["address"].as_str().unwrap().to_owned();
        let asked = format!(
            "ip neigh replace {0} lladdr {mac} dev eth0; ping -c 1 -W 2 {0}; told=$?; ip neigh del {0} dev eth0; exit $told",
            d.nics[0].gateway
        );
        assert_ne!(exec(&bus, "d", &["sh", "-c", &asked]).await.exit_code, Some(0));
        assert!(pings(&bus, "d", &d.nics[0].gateway).await);

        // And together where guests are.
        let (p, q, r) = (
            at(&bus, "p", json!({"network": "open"})).await,
            at(&bus, "q", json!({"network": "open", "ipv4": "10.81.4.10"})).await,
            at(&bus, "r", json!({"network": "open", "ipv4": "10.81.8.10"})).await,
        );
        for (vm, other) in [("p", &q), ("q", &p), ("q", &r), ("r", &q), ("r", &p)] {
            assert!(pings(&bus, vm, &other.nics[0].ipv4).await, "{vm} does not reach {}", other.name);
            let six = pings6(&bus, vm, other.nics[0].ipv6.as_ref()).await;
            assert_ne!(six, Some(false), "{vm} does not reach {}", other.name);
        }

        // What others do is mended, and told.
        let second = bridges[1].clone();
        let joined = lower(&second);
        for words in [
            vec!["link", "set", "dev", &joined, "nomaster"],
            vec!["link", "set", "dev", &joined, "down"],
            vec!["link", "del", "dev", &joined],
            vec!["link", "set", "dev", &second, "down"],
            vec!["link", "del", "dev", &second],
        ] {
            ip(&words);
            for line in &mut lines {
                line.is_alive().await;
            }
        }
        for what in ["was cut off from the others", "was down", "was removed"] {
            events::alarm(&bus, "network_mended", |event| event.details["found"].contains(what)).await;
        }
        assert!(!pings(&bus, "b", &a.nics[0].ipv4).await);

        // Daemons come and go; a bridge that is empty goes with the next.
        world.kill().await;
        ip(&["link", "del", "dev", &second]);
        world.start();
        world.ready().await;
        for line in &mut lines {
            line.is_alive().await;
        }
        assert_eq!(bus.host().await.unwrap().alarms, []);
        let before = of_networks().len();
        for vm in ["d", "r"] {
            bus.change(vm, "delete").await.unwrap();
        }
        world.stop_host().await;
        world.start();
        world.ready().await;
        until("empty bridges go", async || (of_networks().len() == before - 6).then_some(())).await;
        lines[0].is_alive().await;
        for (vm, status) in [("a", &a), ("b", &b), ("c", &c), ("p", &p), ("q", &q)] {
            bus.change(vm, "delete").await.unwrap();
            assert_eq!(leak::anything(world, status), Vec::<String>::new());
        }
        // A network that the configuration has no more leaves nothing.
        world.stop_host().await;
        world.configure_with(|config| {
            config["networks"] = json!([{"name": "default", "subnet": "10.80.0.0/20"}])
        });
        world.start();
        world.ready().await;
        assert_eq!(of_networks(), [bridges[0].clone()]);
    });
}
