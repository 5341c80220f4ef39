//! What a guest may reach: its spec's word holds, over the end of the daemon and of the rules, and is gone with the VM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use drover_schemas::ErrorCode;
use drover_tests::client::Bus;
use drover_tests::leak;
use drover_tests::traffic::{HOST, OUTSIDE, Outside, exec, serve, who_tcp};
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
        let flush = || assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
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
