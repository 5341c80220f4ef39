//! Ports of the host that lead to a guest while it lives: they come and go at once, and stay as the spec says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::VmEventKind;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::traffic::{HOST, OUTSIDE, Outside, serve, server, who_tcp, who_udp};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

async fn started(world: &mut World) {
    world.up_with(|config| config["capacity"]["forward_ports"] = json!("20000-20100")).await;
}

/// A VM that serves its ports 80 and 81 under its name.
async fn both(bus: &Bus, name: char, forwards: Value) {
    server(bus, name, forwards).await;
    serve(bus, &name.to_string(), name, 81).await;
}

async fn forward(bus: &Bus, name: &str, body: Value) -> Result<ChangeReply, Failure> {
    bus.insist(&format!("vm.{name}.forward"), &body, RequestId::generate()).await
}

fn tcp(port: u16) -> Value {
    json!({"host_port": port})
}

fn to(port: u16, guest_port: u16) -> Value {
    json!({"host_port": port, "guest_port": guest_port})
}

/// A connection to a port of the host, over which the guest has said its name.
fn line(port: u16, name: char) -> TcpStream {
    let mut line = TcpStream::connect((HOST, port)).unwrap();
    line.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut said = [0];
    line.read_exact(&mut said).unwrap();
    assert_eq!(char::from(said[0]), name);
    line
}

/// Whether what is said over it comes back.
fn lives(line: &mut TcpStream) -> bool {
    line.write_all(b"!").is_ok() && line.read_exact(&mut [0]).is_ok()
}

#[test]
fn forwards_come_and_go_under_a_running_guest() {
    run("forwards_come_and_go_under_a_running_guest", Options::down(), async |world| {
        started(world).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let there = |port| outside.within(move || who_tcp((HOST, port)));
        both(&bus, 'a', json!([])).await;
        both(&bus, 'b', json!([to(20_010, 80)])).await;
        assert_eq!(there(20_000), None);

        let udp = json!({"host_port": 20_000, "guest_port": 80, "protocol": "udp"});
        let add = json!({"add": [to(20_000, 80), to(20_001, 81), udp]});
        let reply = forward(&bus, "a", add.clone()).await.unwrap();
        assert_eq!((reply.already, reply.vm.revision, reply.vm.nics[0].forwards.len()), (false, 2, 3));
        assert_eq!([20_000, 20_001, 20_010].map(there), [Some('a'), Some('a'), Some('b')]);
        assert_eq!(outside.within(|| who_udp((HOST, 20_000))), Some('a'));
        assert_eq!(who_tcp((Ipv4Addr::LOCALHOST, 20_001)), Some('a'), "the host itself");
        let again = forward(&bus, "a", add).await.unwrap();
        assert_eq!((again.already, again.vm.revision), (true, 2));

        // All of a request or nothing.
        for (what, code, body) in [
            ("b's port", ErrorCode::Conflict, json!({"add": [to(20_002, 80), to(20_010, 80)]})),
            ("one port twice", ErrorCode::InvalidArgument, json!({"add": [to(20_000, 81)]})),
            ("beyond", ErrorCode::InvalidArgument, json!({"add": [to(19_999, 80)]})),
            ("no port", ErrorCode::InvalidArgument, json!({"add": [to(0, 80)]})),
            ("no interface", ErrorCode::InvalidArgument, json!({"nic": 1, "add": [to(20_002, 80)]})),
            ("not there", ErrorCode::NotFound, json!({"remove": [tcp(20_000), tcp(20_003)]})),
            ("an earlier spec", ErrorCode::Conflict, json!({"if_revision": 1, "remove": [tcp(20_000)]})),
        ] {
            refused(what, code, forward(&bus, "a", body).await);
            assert_eq!((there(20_000), there(20_002)), (Some('a'), None), "{what}");
        }
        assert_eq!(bus.status("a").await.unwrap().revision, 2);

        // What goes on through one that is removed is cut, from outside and from the host; all else goes on.
        let mut cut = [outside.within(|| line(20_000, 'a')), line(20_000, 'a')];
        let mut goes_on = [outside.within(|| line(20_001, 'a')), line(20_001, 'a'), line(20_010, 'b')];
        let gone = json!({"remove": [tcp(20_000)], "add": [{"host_port": 20_003, "guest_port": 81,
            "sources": [format!("{OUTSIDE}/32")]}]});
        forward(&bus, "a", gone).await.unwrap();
        assert_eq!(cut.each_mut().map(lives), [false; 2]);
        assert_eq!(goes_on.each_mut().map(lives), [true; 3]);
        assert_eq!([there(20_000), there(20_003), who_tcp((HOST, 20_003))], [None, Some('a'), None]);
        assert_eq!(outside.within(|| who_udp((HOST, 20_000))), Some('a'), "UDP has ports of its own");
        // The same port to another of the guest's, from others.
        let other = json!({"remove": [tcp(20_003)], "add": [to(20_003, 80)]});
        forward(&bus, "a", other).await.unwrap();
        assert_eq!([there(20_003), who_tcp((HOST, 20_003))], [Some('a'); 2]);

        // It is in the rules that come back, and in those of a VM that was down meanwhile.
        let flushed = std::process::Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
        assert!(flushed.success());
        until("the forwards are back", async || who_tcp((HOST, 20_003))).await;
        bus.change_with("b", "stop", json!({"force": true})).await.unwrap();
        let moved = json!({"remove": [tcp(20_010)], "add": [to(20_011, 80)]});
        let reply = forward(&bus, "b", moved).await.unwrap();
        assert_eq!(reply.vm.state.as_str(), "stopped");
        bus.change_with("b", "start", json!({"wait": "agent"})).await.unwrap();
        serve(&bus, "b", 'b', 80).await;
        assert_eq!([there(20_010), there(20_011)], [None, Some('b')]);

        // By the command line.
        world.printed(&["vm", "forward", "add", "b", "20020:80", "20021:80", "--from", "192.0.2.0/24"]).await;
        assert_eq!(there(20_021), Some('b'));
        world.printed(&["vm", "forward", "rm", "b", "20020"]).await;
        let listed = world.printed(&["vm", "forward", "ls", "b"]).await;
        assert_eq!((listed.lines().count(), there(20_020)), (2, None), "{listed}");

        let vms = [bus.status("a").await.unwrap(), bus.status("b").await.unwrap()];
        for vm in ["a", "b"] {
            bus.change(vm, "delete").await.unwrap();
        }
        for vm in &vms {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        let logs = events::log(&bus).await;
        let changed: Vec<u64> = logs[&vms[0].vm_id]
            .iter()
            .filter(|event| event.kind == VmEventKind::Changed)
            .map(|event| event.revision)
            .collect();
        assert_eq!(changed, [2, 3, 4]);
    });
}

#[test]
fn a_daemon_that_dies_while_forwards_change_leaves_what_the_spec_says() {
    let test = "a_daemon_that_dies_while_forwards_change_leaves_what_the_spec_says";
    run(test, Options::down(), async |world| {
        started(world).await;
        let bus = world.bus.clone();
        both(&bus, 'a', json!([])).await;
        for round in 0..6_u16 {
            let (old, new) = (20_000 + round, 20_001 + round);
            let remove = if round == 0 { json!([]) } else { json!([tcp(old)]) };
            let body = json!({"remove": remove, "add": [to(new, 80)]});
            let id = RequestId::generate();
            let asked = tokio::spawn({
                let (bus, body) = (bus.clone(), body.clone());
                async move {
                    // Whatever comes of it.
                    drop(bus.ask("vm.a.forward", &body).id(id).get::<ChangeReply>().await);
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
            let reply: ChangeReply = bus.insist("vm.a.forward", &body, id).await.unwrap();
            assert_eq!((reply.vm.revision, reply.already), (u64::from(round) + 2, false));
            assert_eq!((who_tcp((HOST_ITSELF, old)), who_tcp((HOST_ITSELF, new))), (None, Some('a')));
        }
        assert_eq!(bus.status("a").await.unwrap().nics[0].forwards.len(), 1);
        assert_eq!(bus.host().await.unwrap().alarms, []);
        // What went is free for others.
        both(&bus, 'b', json!([to(20_001, 80)])).await;
        assert_eq!(who_tcp((HOST_ITSELF, 20_001)), Some('b'));
    });
}

/// The host as it calls itself.
const HOST_ITSELF: Ipv4Addr = Ipv4Addr::LOCALHOST;
