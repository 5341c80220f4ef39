//! The network of a host: what others take away comes back, and no guest speaks for another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::Ipv4Addr;
use std::process::Command;

use drover_schemas::ErrorCode;
use drover_schemas::body::samples::NicSample;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::StatsReply;
use drover_tests::client::Bus;
use drover_tests::client::refused;
use drover_tests::events;
use drover_tests::traffic::{
    Ear, HOST, Line, OUTSIDE, Outside, exec, serve, server, speak, who_tcp, who_udp,
};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

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

/// How many frames of a guest were refused.
async fn refusals(bus: &Bus, vm: &str) -> u64 {
    let stats: StatsReply = bus.ask(&format!("vm.{vm}.stats"), &json!({})).get().await.unwrap();
    stats.nics.iter().map(|NicSample { refused_packets, .. }| refused_packets).sum()
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
        // Counters as proof, each guest's own.
        let refused = [refusals(&bus, "a").await, refusals(&bus, "b").await];
        assert!(refused[0] > 100 && refused[1] < refused[0] / 2, "{refused:?}");

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
        bus.change_with("web", "stop", json!({"force": true})).await.unwrap();
        bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap();
        events::alarm(&bus, "network_broken", |event| event.details["phase"] == "end").await;
        let outside = Outside::beside_host();
        Line::open(&bus, "web", outside.listen()).await.is_alive().await;
    });
}

/// A host that forwards ports.
async fn started(world: &mut World) {
    world
        .up_with(|config| {
            config["capacity"]["forward_ports"] = json!("20000-20100");
            config["networks"] = json!([
                {"name": "default", "subnet": "10.78.0.0/24"},
                {"name": "other", "subnet": "10.78.1.0/24", "isolate": false},
            ]);
        })
        .await;
}

#[test]
fn ports_of_the_host_lead_to_guests_for_those_who_may() {
    let test = "ports_of_the_host_lead_to_guests_for_those_who_may";
    run(test, Options::down(), async |world| {
        started(world).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let a = server(
            &bus,
            'a',
            json!([
                {"host_port": 20000, "guest_port": 80},
                {"host_port": 20000, "guest_port": 80, "protocol": "udp"},
                {"host_port": 20001, "guest_port": 80, "sources": ["198.51.100.0/24", "192.0.2.2/32"]},
                {"host_port": 20002, "guest_port": 80, "sources": ["198.51.100.0/24"]},
                {"host_port": 20003, "guest_port": 80, "host_address": "127.0.0.1"},
            ]),
        )
        .await;
        let b = server(&bus, 'b', json!([{"host_port": 20010, "guest_port": 80}])).await;
        let led = || {
            let from_outside = |port| outside.within(move || who_tcp((HOST, port)));
            assert_eq!([20_000, 20_001, 20_010].map(from_outside), [Some('a'), Some('a'), Some('b')]);
            assert_eq!(outside.within(|| who_udp((HOST, 20_000))), Some('a'));
            assert_eq!(from_outside(20_002), None, "another source than those that may");
            assert_eq!(from_outside(20_003), None, "another address");
            // The host itself.
            assert_eq!(who_tcp((HOST, 20_000)), Some('a'));
            assert_eq!(who_tcp((Ipv4Addr::LOCALHOST, 20_003)), Some('a'));
            assert_eq!(who_udp((Ipv4Addr::LOCALHOST, 20_000)), Some('a'));
        };
        led();
        assert_eq!(bus.status("a").await.unwrap().nics[0].forwards.len(), 5);

        // A port has one owner.
        let taken = |port: u16, protocol: &str| {
            json!({"spec": {"nics": [{"forwards": [
            {"host_port": port, "guest_port": 1, "protocol": protocol}]}]}})
        };
        let error = refused("a taken port", ErrorCode::Conflict, bus.create("c", taken(20_000, "udp")).await);
        assert_eq!(error.details["vm_id"], a.vm_id.to_string());
        let error =
            refused("a port beyond", ErrorCode::InvalidArgument, bus.create("c", taken(19_999, "tcp")).await);
        assert!(error.message.contains("20000-20100"), "{error}");
        let listens = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 20_050)).unwrap();
        let error = refused("the host's", ErrorCode::Conflict, bus.create("c", taken(20_050, "tcp")).await);
        assert!(error.message.contains("the host itself listens"), "{error}");
        drop(listens);

        // Others flush the rules, and the daemon dies, and both at once.
        host("nft", &["flush", "ruleset"]);
        until("the forwards are back", async || who_tcp((HOST, 20_010))).await;
        led();
        world.kill().await;
        led();
        host("nft", &["flush", "ruleset"]);
        world.start();
        world.ready().await;
        led();

        // What is down leads nowhere, and has its port all the same.
        bus.change_with("b", "stop", json!({"force": true})).await.unwrap();
        assert_eq!(outside.within(|| who_tcp((HOST, 20_010))), None);
        refused("b's port", ErrorCode::Conflict, bus.create("c", taken(20_010, "tcp")).await);
        bus.change_with("b", "start", json!({"wait": "agent"})).await.unwrap();
        serve(&bus, "b", 'b', 80).await;
        led();
        bus.change("b", "delete").await.unwrap();
        assert_eq!(drover_tests::leak::anything(world, &b), Vec::<String>::new());
        assert!(!says(&["nft", "list", "ruleset"], "20010"));
        server(&bus, 'd', json!([{"host_port": 20010, "guest_port": 80}])).await;
        assert_eq!(outside.within(|| who_tcp((HOST, 20_010))), Some('d'));
        assert_eq!(bus.host().await.unwrap().alarms, []);
    });
}

#[test]
fn guests_reach_what_they_may_and_nothing_else() {
    let test = "guests_reach_what_they_may_and_nothing_else";
    run(test, Options::down(), async |world| {
        started(world).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        // Two that are kept apart, and two of a network whose guests may talk.
        let a = server(&bus, 'a', json!([{"host_port": 20000, "guest_port": 80}])).await;
        let b = server(&bus, 'b', json!([])).await;
        let mut others = Vec::new();
        for name in ['c', 'd'] {
            let spec = json!({"spec": {"nics": [{"network": "other"}]}, "wait": "agent"});
            others.push(bus.create(&name.to_string(), spec).await.unwrap().vm);
            serve(&bus, &name.to_string(), name, 80).await;
        }
        let listener = outside.listen();
        let outside_port = listener.local_addr().unwrap().port();
        let served = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let host_port = served.local_addr().unwrap().port();
        let reaches = async |vm: &str, address: &str, port: u16| {
            let asked = format!("import socket; socket.create_connection((\"{address}\", {port}), 2)");
            exec(&bus, vm, &["python3", "-c", &asked]).await.exit_code == Some(0)
        };
        let address = |vm: &VmStatus| vm.nics[0].ipv4.clone();
        let gateway = a.nics[0].gateway.clone();
        for (vm, to, port, may) in [
            ("a", OUTSIDE.to_string(), outside_port, true),
            ("c", OUTSIDE.to_string(), outside_port, true),
            ("d", address(&others[0]), 80, true),
            ("a", address(&b), 80, false),
            ("a", address(&others[0]), 80, false),
            ("c", address(&a), 80, false),
            // Services of the host, by whichever of its addresses.
            ("a", gateway.clone(), host_port, false),
            ("a", HOST.to_string(), host_port, false),
            ("c", gateway.clone(), host_port, false),
            ("a", gateway, 4222, false),
            // A forward is for those outside.
            ("c", HOST.to_string(), 20_000, false),
            ("a", HOST.to_string(), 20_000, false),
        ] {
            assert_eq!(reaches(vm, &to, port).await, may, "{vm} to {to}:{port}");
        }
        // Nor does anybody outside reach a guest without a forward.
        let to = address(&b).parse().unwrap();
        let route = outside.within(move || {
            let route = ["route", "add", "10.78.0.0/24", "via", "192.0.2.1"];
            let added = Command::new("ip").args(route).status().unwrap().success();
            (added, who_tcp((to, 80)))
        });
        assert_eq!(route, (true, None));
    });
}

/// Says how long packets of `eth0` may be.
const MTU: &str = r#"
import fcntl, socket, struct
asked = struct.pack("16si16x", b"eth0", 0)
print(struct.unpack("16si16x", fcntl.ioctl(socket.socket(), 0x8921, asked))[1])
"#;

/// Sends a datagram of a length that must not be cut. Arguments: address, port, length.
const WHOLE: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 2)
s.settimeout(2)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(bytes(int(sys.argv[3])))
"#;

#[test]
fn packets_of_a_network_are_as_long_as_it_lets_them() {
    let test = "packets_of_a_network_are_as_long_as_it_lets_them";
    run(test, Options::down(), async |world| {
        let networks = json!([
            {"name": "default", "subnet": "10.78.0.0/24", "mtu": 1400},
            {"name": "jumbo", "subnet": "10.78.1.0/24", "mtu": 9000},
        ]);
        world.up_with(|config| config["networks"] = networks.clone()).await;
        let bus = world.bus.clone();
        let mtu_of = |link: &str| {
            let shown: Value = serde_json::from_str(&host("ip", &["-j", "link", "show", link])).unwrap();
            shown[0]["mtu"].as_u64().unwrap()
        };
        for (name, mtu) in [("default", 1400), ("jumbo", 9000)] {
            let spec = json!({"nics": [{"network": name}]});
            let vm = bus.create(name, json!({"spec": spec, "wait": "agent"})).await.unwrap().vm;
            let (tap, bridge) = (vm.nics[0].tap.clone(), bridge_of(&vm));
            assert_eq!([mtu_of(&tap), mtu_of(&bridge)], [mtu; 2]);
            let said = exec(&bus, name, &["python3", "-c", MTU]).await.stdout.unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(said.as_slice()).trim(), mtu.to_string());
            // To its gateway, in one piece.
            let ear = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let (gateway, port) = (vm.nics[0].gateway.clone(), ear.local_addr().unwrap().port().to_string());
            for (length, passes) in [(mtu - 28, true), (mtu - 27, false)] {
                let sent = ["python3", "-c", WHOLE, &gateway, &port, &length.to_string()];
                assert_eq!(exec(&bus, name, &sent).await.exit_code == Some(0), passes, "{length}");
            }
            for (link, other) in [(&tap, "1000"), (&bridge, "1000")] {
                host("ip", &["link", "set", "dev", link, "mtu", other]);
                until("it is as long as before", async || (mtu_of(link) == mtu).then_some(())).await;
            }
            bus.change(name, "delete").await.unwrap();
            assert_eq!(drover_tests::leak::anything(world, &vm), Vec::<String>::new());
        }
        events::alarm(&bus, "network_mended", |event| event.details["found"].contains("another MTU")).await;
        assert_eq!(bus.host().await.unwrap().alarms, []);
    });
}
