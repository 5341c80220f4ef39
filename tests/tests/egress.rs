//! What a guest may reach: its spec's word holds, over the end of the daemon and of the rules, and is gone with the VM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use drover_schemas::body::vm::ChangeReply;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::leak;
use drover_tests::traffic::{HOST, Line, OUTSIDE, Outside, exec, serve, who_tcp};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

/// Somebody else outside.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// Connects or asks, and is told something, within a moment. Arguments: protocol, address, port.
const KNOCK: &str = r#"
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET, kind)
s.settimeout(2)
s.connect((sys.argv[2], int(sys.argv[3])))
s.send(b"?")
sys.exit(0 if s.recv(1) == b"!" else 1)
"#;

/// Answers at two ports of TCP and one of UDP, at both addresses outside.
fn answer(outside: &Outside) {
    outside.within(|| {
        let shown = Command::new("ip").args(["address", "add", "192.0.2.3/24", "dev", "in0"]).status();
        assert!(shown.unwrap().success());
        for address in [OUTSIDE, OTHER] {
            for port in [80, 81] {
                let listener = TcpListener::bind((address, port)).unwrap();
                std::thread::spawn(move || {
                    while let Ok((mut line, _)) = listener.accept() {
                        let _ = line.read(&mut [0]);
                        let _ = line.write_all(b"!");
                    }
                });
            }
            let socket = UdpSocket::bind((address, 80)).unwrap();
            std::thread::spawn(move || {
                while let Ok((_, who)) = socket.recv_from(&mut [0; 8]) {
                    let _ = socket.send_to(b"!", who);
                }
            });
        }
    });
}

/// What of `all` a guest reaches.
async fn reached(bus: &Bus, vm: &str) -> Vec<&'static str> {
    let all = [
        ("tcp", OUTSIDE, "80", "tcp 80"),
        ("tcp", OUTSIDE, "81", "tcp 81"),
        ("udp", OUTSIDE, "80", "udp 80"),
        ("tcp", OTHER, "80", "other tcp 80"),
        ("udp", OTHER, "80", "other udp 80"),
    ];
    let knock = async |protocol: &str, to: Ipv4Addr, port: &str| {
        let done = exec(bus, vm, &["python3", "-c", KNOCK, protocol, &to.to_string(), port]).await;
        done.exit_code == Some(0)
    };
    let mut found = Vec::new();
    for (protocol, to, port, name) in all {
        if knock(protocol, to, port).await {
            found.push(name);
        }
    }
    found
}

async fn create(bus: &Bus, name: &str, egress: Value, forwards: Value) {
    let spec = json!({"nics": [{"egress": egress, "forwards": forwards}]});
    bus.create(name, json!({"spec": spec, "wait": "agent"})).await.unwrap();
}

/// What `nft` lists of the host's routed rules.
fn listed(world: &World, what: &[&str]) -> String {
    let id = world.installation().unwrap().to_string().to_ascii_lowercase();
    let table = format!("drover-{}", &id[id.len() - 10..]);
    let done = Command::new("nft").args(["list", what[0], "inet", &table]).args(&what[1..]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn flush() {
    assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
}

async fn change(bus: &Bus, name: &str, body: Value) -> Result<ChangeReply, Failure> {
    bus.insist(&format!("vm.{name}.egress"), &body, RequestId::generate()).await
}

#[test]
fn a_guest_reaches_what_its_spec_lets_it_and_no_more() {
    run("a_guest_reaches_what_its_spec_lets_it_and_no_more", Options::down(), async |world| {
        let settings = |config: &mut Value| {
            config["capacity"]["forward_ports"] = json!("20000-20100");
            let open = json!({"name": "open", "subnet": "10.99.0.0/24", "isolate": false});
            config["networks"].as_array_mut().unwrap().push(open);
        };
        world.up_with(settings).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);

        let one =
            json!({"default": "deny", "allow": [{"to": "192.0.2.2", "protocol": "tcp", "ports": ["80"]}]});
        create(&bus, "closed", one, json!([{"host_port": 20_000, "guest_port": 80}])).await;
        create(&bus, "shut", json!({"default": "deny"}), json!([])).await;
        let but = json!({"deny": [{"to": "192.0.2.3/32"}, {"to": "all", "ports": ["81-90"]}]});
        create(&bus, "but", but, json!([])).await;
        let both = json!({
            "default": "deny",
            "allow": [{"to": "192.0.2.0/24"}],
            "deny": [{"to": "all", "protocol": "udp"}, {"to": "192.0.2.2", "protocol": "tcp", "ports": ["81"]}],
        });
        create(&bus, "both", both, json!([])).await;
        create(&bus, "free", json!(null), json!([])).await;

        let all = ["tcp 80", "tcp 81", "udp 80", "other tcp 80", "other udp 80"];
        let wanted: [(&str, &[&str]); 5] = [
            ("free", &all),
            ("closed", &["tcp 80"]),
            ("shut", &[]),
            ("but", &["tcp 80", "udp 80"]),
            ("both", &["tcp 80", "other tcp 80"]),
        ];
        for (vm, reach) in wanted {
            assert_eq!(reached(&bus, vm).await, reach, "{vm}");
        }
        // To allow everything does not open the other networks of the host.
        create(&bus, "wide", json!({"default": "deny", "allow": [{"to": "all"}]}), json!([])).await;
        let spec = json!({"nics": [{"network": "open"}]});
        let near = bus.create("near", json!({"spec": spec, "wait": "agent"})).await.unwrap().vm;
        serve(&bus, "near", '!', 80).await;
        assert_eq!(reached(&bus, "wide").await, all);
        for vm in ["wide", "free"] {
            let knock = ["python3", "-c", KNOCK, "tcp", &near.nics[0].ipv4, "80"];
            assert_ne!(exec(&bus, vm, &knock).await.exit_code, Some(0), "{vm}");
        }
        // Counters as proof that it was the rules.
        let chain = listed(world, &["chain", "egress"]);
        for set in ["@egress_closed", "@egress_deny ", "@egress_deny_port"] {
            let rule = chain.lines().find(|line| line.contains(set)).unwrap();
            assert!(!rule.contains("packets 0 "), "{rule}");
        }
        // Who is asked may answer.
        serve(&bus, "closed", 'c', 80).await;
        assert_eq!(outside.within(|| who_tcp((HOST, 20_000))), Some('c'));

        // The rules flushed under a daemon, and under none.
        let closed_again = async || {
            until("the rules are back", async || {
                let found = reached(&bus, "closed").await;
                (found == ["tcp 80"]).then_some(())
            })
            .await;
        };
        flush();
        closed_again().await;
        world.kill().await;
        flush();
        world.start();
        world.ready().await;
        closed_again().await;
        // By hand, one element.
        let vm = bus.status("shut").await.unwrap();
        let id = world.installation().unwrap().to_string().to_ascii_lowercase();
        let table = format!("drover-{}", &id[id.len() - 10..]);
        let element = format!("{{ {} }}", vm.nics[0].ipv4);
        let taken = ["delete", "element", "inet", &table, "egress_closed", &element];
        assert!(Command::new("nft").args(taken).status().unwrap().success());
        until("the element is back", async || {
            listed(world, &["set", "egress_closed"]).contains(&vm.nics[0].ipv4).then_some(())
        })
        .await;

        for (egress, network, field) in [
            (json!({"default": "deny"}), "open", "spec.nics[0].egress"),
            (json!({"deny": [{"to": "example.org"}]}), "default", "spec.nics[0].egress.deny[0].to"),
        ] {
            let nic = json!({"network": network, "egress": egress});
            let body = json!({"name": "bad", "spec": {"nics": [nic]}});
            let error = bus.ask("vm.create", &body).refused(ErrorCode::InvalidArgument).await;
            assert_eq!(error.details["field"], field, "{error}");
        }

        for name in ["free", "closed", "shut", "but", "both", "wide", "near"] {
            let vm = bus.status(name).await.unwrap();
            bus.change(name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
            for set in ["closed", "deny", "deny_port", "allow", "allow_port"] {
                let left = listed(world, &["set", &format!("egress_{set}")]);
                assert!(!left.contains(&vm.nics[0].ipv4), "{name}: {left}");
            }
        }
    });
}

#[test]
fn what_a_guest_may_reach_changes_while_it_lives() {
    run("what_a_guest_may_reach_changes_while_it_lives", Options::down(), async |world| {
        let settings = |config: &mut Value| {
            let open = json!({"name": "open", "subnet": "10.99.0.0/24", "isolate": false});
            config["networks"].as_array_mut().unwrap().push(open);
        };
        world.up_with(settings).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        for name in ["a", "b"] {
            create(&bus, name, json!(null), json!([])).await;
        }
        let all = ["tcp 80", "tcp 81", "udp 80", "other tcp 80", "other udp 80"];
        assert_eq!(reached(&bus, "a").await, all);
        let line = Line::open(&bus, "a", outside.listen()).await;

        let web = json!({"to": "192.0.2.2", "protocol": "tcp", "ports": ["80"]});
        let only = json!({"default": "deny", "add": {"allow": [web]}});
        let reply = change(&bus, "a", only.clone()).await.unwrap();
        let allowed = reply.vm.nics[0].egress.clone().unwrap().allow;
        assert_eq!((reply.already, reply.vm.revision, allowed.len()), (false, 2, 1));
        assert_eq!(reached(&bus, "a").await, ["tcp 80"]);
        line.is_cut().await;
        assert_eq!(reached(&bus, "b").await, all, "of another guest nothing was said");
        let again = change(&bus, "a", only).await.unwrap();
        assert_eq!((again.already, again.vm.revision), (true, 2));

        // Each has elements that meet those of the one before.
        let net = json!({"to": "192.0.2.0/24"});
        let part = json!({"to": "192.0.2.0/30", "protocol": "tcp", "ports": ["80-81"]});
        let udp = json!({"to": "all", "protocol": "udp"});
        let steps: [(Value, &[&str]); 5] = [
            (json!({"remove": {"allow": [web]}, "add": {"allow": [net]}}), &all),
            (json!({"add": {"deny": [udp], "allow": [web]}}), &["tcp 80", "tcp 81", "other tcp 80"]),
            (
                json!({"remove": {"allow": [net, web]}, "add": {"allow": [part]}}),
                &["tcp 80", "tcp 81", "other tcp 80"],
            ),
            (json!({"replace": true, "add": {"deny": [web]}}), &all[1..]),
            (json!({"replace": true, "default": "deny"}), &[]),
        ];
        for (body, reach) in steps {
            change(&bus, "a", body.clone()).await.unwrap();
            assert_eq!(reached(&bus, "a").await, reach, "{body}");
        }

        let spec = json!({"nics": [{"network": "open"}]});
        bus.create("near", json!({"spec": spec})).await.unwrap();
        for (name, body, code, field) in [
            (
                "a",
                json!({"add": {"allow": [{"to": "example.org"}]}}),
                ErrorCode::InvalidArgument,
                "add.allow[0].to",
            ),
            ("a", json!({"remove": {"deny": [web]}}), ErrorCode::NotFound, "remove.deny[0]"),
            ("a", json!({"nic": 1}), ErrorCode::InvalidArgument, "nic"),
            ("near", json!({"default": "deny"}), ErrorCode::InvalidArgument, "spec.nics[0].egress"),
        ] {
            let error = refused("what cannot be done", code, change(&bus, name, body).await);
            assert_eq!(error.details["field"], field, "{error}");
        }
        let old = json!({"default": "allow", "if_revision": 2});
        refused("an old revision", ErrorCode::Conflict, change(&bus, "a", old).await);
        assert_eq!(bus.status("a").await.unwrap().revision, 7);
        assert_eq!(reached(&bus, "a").await, [""; 0]);

        // It is in the rules that come back, and in those of a VM that was down meanwhile.
        flush();
        until("the rules are back", async || reached(&bus, "a").await.is_empty().then_some(())).await;
        bus.change_with("a", "stop", json!({"force": true})).await.unwrap();
        let reply = change(&bus, "a", json!({"add": {"allow": [web]}})).await.unwrap();
        assert_eq!(reply.vm.state.as_str(), "stopped");
        bus.change_with("a", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!(reached(&bus, "a").await, ["tcp 80"]);

        // By the command line.
        world
            .printed(&[
                "vm",
                "egress",
                "allow",
                "b",
                "192.0.2.2",
                "--udp",
                "--port",
                "80",
                "--default",
                "deny",
            ])
            .await;
        assert_eq!(reached(&bus, "b").await, ["udp 80"]);
        world.printed(&["vm", "egress", "deny", "b", "192.0.2.3"]).await;
        world.printed(&["vm", "egress", "allow", "b", "192.0.2.0/24"]).await;
        world
            .printed(&["vm", "egress", "allow", "b", "192.0.2.2", "--udp", "--port", "80", "--remove"])
            .await;
        assert_eq!(reached(&bus, "b").await, all[..3]);
        let listed_words = world.printed(&["vm", "egress", "ls", "b"]).await;
        assert!(listed_words.contains("deny 192.0.2.3; allow 192.0.2.0/24; deny all else"), "{listed_words}");
        world.printed(&["vm", "egress", "clear", "b"]).await;
        assert_eq!(reached(&bus, "b").await, all);

        for name in ["a", "b", "near"] {
            let vm = bus.status(name).await.unwrap();
            bus.change(name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
            for set in ["closed", "deny", "deny_port", "allow", "allow_port"] {
                let left = listed(world, &["set", &format!("egress_{set}")]);
                assert!(!left.contains(&vm.nics[0].ipv4), "{name}: {left}");
            }
        }
    });
}

#[test]
fn a_daemon_that_dies_while_egress_changes_leaves_what_the_spec_says() {
    let test = "a_daemon_that_dies_while_egress_changes_leaves_what_the_spec_says";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        create(&bus, "a", json!({"default": "deny"}), json!([])).await;
        let rule = |port: u16| json!({"to": "192.0.2.2", "protocol": "tcp", "ports": [port.to_string()]});
        for round in 0..6_u16 {
            let (old, new) = (80 + round % 2, 80 + (round + 1) % 2);
            let remove = if round == 0 { json!([]) } else { json!([rule(old)]) };
            let body = json!({"remove": {"allow": remove}, "add": {"allow": [rule(new)]}});
            let id = RequestId::generate();
            let asked = tokio::spawn({
                let (bus, body) = (bus.clone(), body.clone());
                async move {
                    // Whatever comes of it.
                    drop(bus.ask("vm.a.egress", &body).id(id).get::<ChangeReply>().await);
                }
            });
            if round % 2 == 1 {
                // It is durable, and perhaps not in force.
                until("it is accepted", async || {
                    let vm = bus.status("a").await.ok()?;
                    (vm.revision == u64::from(round) + 2).then_some(())
                })
                .await;
            }
            world.kill().await;
            world.start();
            world.ready().await;
            asked.abort();
            let reply: ChangeReply = bus.insist("vm.a.egress", &body, id).await.unwrap();
            assert_eq!((reply.vm.revision, reply.already), (u64::from(round) + 2, false));
            assert_eq!(reached(&bus, "a").await, [format!("tcp {new}")]);
        }
        assert_eq!(bus.status("a").await.unwrap().nics[0].egress.as_ref().unwrap().allow.len(), 1);
        assert_eq!(bus.host().await.unwrap().alarms, []);
    });
}
