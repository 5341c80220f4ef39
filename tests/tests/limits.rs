//! How fast a guest may be, and what its host counts of it: limits hold within a tenth, over the end of the daemon and of
//! the rules, and are gone with the VM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use drover_schemas::body::samples::{NamespaceSample, NicSample};
use drover_schemas::body::vm::{ChangeReply, StatsReply};
use drover_schemas::codec::decode;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::leak;
use drover_tests::traffic::{Outside, exec, start_python};
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use futures_util::StreamExt as _;
use nix::unistd::gettid;
use serde_json::{Value, json};

/// A connection needs this long to settle.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it is measured.
const MEASURE: Duration = Duration::from_secs(8);

/// What a datagram of a flood carries.
const PAYLOAD: usize = 1_400;
/// What a limit counts of a datagram beside its payload: the headers of IP and UDP.
const HEADERS: usize = 28;

/// Sends datagrams as fast as it can, until nobody takes them. Arguments: address, port.
const FLOOD: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
while True:
    try:
        s.send(bytes(1400))
    except ConnectionRefusedError:
        break
    except OSError:
        pass
"#;

/// Asks for a flood, and says how many bits a second came. Arguments: address, port, seconds to settle, seconds to
/// measure.
const BASIN: &str = r#"
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
s.connect((sys.argv[1], int(sys.argv[2])))
s.settimeout(1)
while True:
    try:
        s.send(b"!")
        s.recv(2048)
        break
    except OSError:
        pass
s.settimeout(30)
begin = time.monotonic() + int(sys.argv[3])
while time.monotonic() < begin:
    s.recv(2048)
begin, count = time.monotonic(), 0
while (now := time.monotonic()) < begin + int(sys.argv[4]):
    count += len(s.recv(2048)) + 28
print(int(count * 8 / (now - begin)), end="")
"#;

/// Sends as fast as it can. Arguments: address, port.
const SOURCE: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    s.sendall(bytes(65536))
"#;

/// Receives, and says how many bits a second came. Arguments: address, port, seconds to settle, seconds to measure.
const SINK: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
begin = time.monotonic() + int(sys.argv[3])
while time.monotonic() < begin:
    s.recv(262144)
begin, count = time.monotonic(), 0
while (now := time.monotonic()) < begin + int(sys.argv[4]):
    count += len(s.recv(262144))
s.sendall(b"%d" % (count * 8 / (now - begin)))
s.shutdown(socket.SHUT_WR)
while s.recv(262144):
    pass
"#;

/// What a program in a guest is told.
fn arguments(address: SocketAddr) -> [String; 4] {
    let [settle, measure] = [SETTLE, MEASURE].map(|time| time.as_secs().to_string());
    [address.ip().to_string(), address.port().to_string(), settle, measure]
}

async fn start(bus: &Bus, vm: &str, program: &str, address: SocketAddr) {
    let args = arguments(address);
    start_python(bus, vm, program, &args.each_ref().map(String::as_str)).await;
}

/// Bits a second of what `next` yields in bytes, once it has settled.
fn measured(mut next: impl FnMut() -> usize) -> u64 {
    let mut count = |time: Duration| {
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < time {
            count += next();
        }
        count as f64 * 8.0 / began.elapsed().as_secs_f64()
    };
    count(SETTLE);
    count(MEASURE) as u64
}

/// Lets threads run before all others: a flood that stands still for a moment loses what its limit would have let
/// through, and then it is this machine that is measured.
fn ahead_of_others(threads: &[i32]) {
    let done =
        Command::new("renice").args(["-n", "-20", "-p"]).args(threads.iter().map(i32::to_string)).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The threads of a process and of what it started, whose ones to come are as they are.
fn threads(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        found.push(task.file_name().to_string_lossy().parse().unwrap());
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().flat_map(|child| threads(child.parse().unwrap())));
    }
    found
}

/// How many bits a second come of a flood that a guest sends. A flood does not slow down for what is lost of it, so all
/// that a limit lets through comes.
async fn floods(bus: &Bus, vm: &str, outside: &Outside) -> u64 {
    let socket = outside.datagrams();
    start(bus, vm, FLOOD, socket.local_addr().unwrap()).await;
    let measure = move || {
        ahead_of_others(&[gettid().as_raw()]);
        let mut buffer = [0; PAYLOAD];
        measured(|| socket.recv(&mut buffer).unwrap() + HEADERS)
    };
    tokio::task::spawn_blocking(measure).await.unwrap()
}

/// How many bits a second a guest is heard to receive of a flood of so many.
async fn is_flooded(bus: &Bus, vm: &str, outside: &Outside, rate: u64) -> u64 {
    let socket = outside.datagrams();
    let args = arguments(socket.local_addr().unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let sender = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            ahead_of_others(&[gettid().as_raw()]);
            let (_, guest) = socket.recv_from(&mut [0]).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let (began, mut sent) = (Instant::now(), 0);
            while !over.load(Ordering::Relaxed) {
                let due = began.elapsed().as_secs_f64() * rate as f64 / 8.0;
                while (sent as f64) < due {
                    // What the host has no room for is lost, as on any way.
                    let _ = socket.send_to(&[0; PAYLOAD], guest);
                    sent += PAYLOAD + HEADERS;
                }
                // Nothing comes: the wait is what is wanted.
                let _ = socket.recv(&mut [0]);
            }
        }
    });
    let mut argv = vec!["python3", "-c", BASIN];
    argv.extend(args.iter().map(String::as_str));
    let done = exec(bus, vm, &argv).await;
    over.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    let said = done.stdout.as_ref().map(|said| String::from_utf8_lossy(&said.0));
    said.and_then(|said| said.parse().ok()).unwrap_or_else(|| panic!("{done:?}"))
}

/// How many bits a second come from a guest that sends as fast as it can.
async fn sends(bus: &Bus, vm: &str, outside: &Outside) -> u64 {
    let listener = outside.listen();
    start(bus, vm, SOURCE, listener.local_addr().unwrap()).await;
    let measure = move || {
        let (mut line, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 18];
        measured(|| line.read(&mut buffer).unwrap())
    };
    tokio::task::spawn_blocking(measure).await.unwrap()
}

/// How many bits a second a guest is heard to receive of somebody who sends as fast as can be.
async fn receives(bus: &Bus, vm: &str, outside: &Outside) -> u64 {
    let listener = outside.listen();
    start(bus, vm, SINK, listener.local_addr().unwrap()).await;
    let measure = move || {
        let (mut line, _) = listener.accept().unwrap();
        let mut heard = line.try_clone().unwrap();
        // It ends with the connection.
        let sender = std::thread::spawn(move || while line.write_all(&[0; 1 << 16]).is_ok() {});
        let mut said = String::new();
        heard.read_to_string(&mut said).unwrap();
        heard.shutdown(std::net::Shutdown::Both).unwrap();
        sender.join().unwrap();
        said.parse().unwrap()
    };
    tokio::task::spawn_blocking(measure).await.unwrap()
}

/// What is within a tenth of a limit.
fn about(limit: u64) -> Range<u64> {
    limit * 9 / 10..limit * 11 / 10
}

/// What a connection has of a limit: how much below it is its own affair, for it slows down for what is lost of it.
fn most_of(limit: u64) -> Range<u64> {
    limit / 2..limit * 11 / 10
}

async fn limit(bus: &Bus, name: &str, body: Value) -> Result<ChangeReply, Failure> {
    bus.insist(&format!("vm.{name}.limit"), &body, RequestId::generate()).await
}

async fn stats(bus: &Bus, name: &str) -> (NicSample, StatsReply) {
    let stats: StatsReply = bus.ask(&format!("vm.{name}.stats"), &json!({})).get().await.unwrap();
    (stats.nics[0].clone(), stats)
}

fn nft(args: &[&str]) -> String {
    let done = Command::new("nft").args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn table(world: &World) -> String {
    let id = world.installation().unwrap().to_string().to_ascii_lowercase();
    format!("drover-{}", &id[id.len() - 10..])
}

/// What the firewall lists of limits, as `TAP RATE` each.
fn listed(world: &World, set: &str) -> Vec<String> {
    let text = nft(&["list", "set", "bridge", &table(world), set]);
    let elements = text.split_once("elements = {").map_or("", |(_, rest)| rest);
    let each = elements.split(['}', ',']).filter_map(|one| one.trim().split_once(" limit rate over "));
    each.map(|(tap, rate)| format!("{} {}", tap.trim_matches('"'), rate.split(" burst").next().unwrap()))
        .collect()
}

#[test]
fn a_guest_is_as_fast_as_its_limits_let_it() {
    run("a_guest_is_as_fast_as_its_limits_let_it", Options::default(), async |world| {
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        let limits = json!({"send_bits_per_second": 8_000_000, "receive_bits_per_second": 16_000_000});
        let spec = json!({"nics": [{"limits": limits}], "agent": {"metrics_interval_ms": 1_000}});
        bus.create("slow", json!({"spec": spec, "wait": "agent"})).await.unwrap();
        ahead_of_others(&threads(bus.status("slow").await.unwrap().vmm_pid.unwrap().cast_signed()));
        bus.up("free").await;
        let mut samples = bus.nats.subscribe("drover.v1.metric.ns.default.host.*").await.unwrap();

        let sent = floods(&bus, "slow", &outside).await;
        assert!(about(8_000_000).contains(&sent), "sends {sent} bit/s");
        let received = is_flooded(&bus, "slow", &outside, 32_000_000).await;
        assert!(about(16_000_000).contains(&received), "receives {received} bit/s");
        println!("8 Mbit/s sent at {sent}, 16 Mbit/s received at {received} bit/s");
        let sent = sends(&bus, "slow", &outside).await;
        assert!(most_of(8_000_000).contains(&sent), "a connection sends {sent} bit/s");
        let received = receives(&bus, "slow", &outside).await;
        assert!(most_of(16_000_000).contains(&received), "a connection receives {received} bit/s");
        for free in [sends(&bus, "free", &outside).await, receives(&bus, "free", &outside).await] {
            assert!(free > 40_000_000, "{free} bit/s of a guest without a limit");
        }
        println!("by a connection: 8 Mbit/s sent at {sent}, 16 Mbit/s received at {received} bit/s");

        // What both sides count.
        let (nic, said) = stats(&bus, "slow").await;
        assert!(nic.over_send_packets > Some(0) && nic.over_receive_packets > Some(0), "{nic:?}");
        assert!(nic.sent_bytes > 8_000_000 && nic.received_bytes > 16_000_000, "{nic:?}");
        let interface = said.guest.iter().find(|one| one.name == "eth0").unwrap();
        assert!(interface.received_bytes > 16_000_000 && interface.sent_bytes > 8_000_000, "{interface:?}");
        let (nic, said) = stats(&bus, "free").await;
        assert_eq!((nic.over_send_packets, nic.over_receive_packets, said.guest_silent), (None, None, None));
        let eth0 = &said.guest.iter().find(|one| one.name == "eth0").unwrap();
        // Each counts by itself, the host what passed since: they differ by what was on the way, and the guest's start.
        let near = |host: u64, guest: u64| host.abs_diff(guest) < host / 10;
        assert!(near(nic.sent_bytes, eth0.sent_bytes) && near(nic.received_bytes, eth0.received_bytes));
        bus.change("free", "pause").await.unwrap();
        let (nic, said) = stats(&bus, "free").await;
        assert!(nic.sent_bytes > 40_000_000 && said.guest.is_empty());
        assert!(said.guest_silent.unwrap().contains("paused"));
        bus.change("free", "resume").await.unwrap();
        until("the host's samples have it", async || {
            let sample: NamespaceSample = decode(samples.next().await?.payload.as_ref()).unwrap();
            let slow = sample.vms.into_iter().find(|vm| vm.name.as_str() == "slow")?;
            slow.nics.first().filter(|nic| nic.sent_bytes > 8_000_000).map(drop)
        })
        .await;
        let shown = world.printed(&["vm", "stats", "slow"]).await;
        assert!(shown.contains("eth0 in the guest"), "{shown}");

        // While it lives.
        let vm = bus.status("slow").await.unwrap();
        let tap = vm.nics[0].tap.clone();
        let body = json!({"limits": {"receive_bits_per_second": 8_000_000}});
        let reply = limit(&bus, "slow", body.clone()).await.unwrap();
        assert_eq!((reply.already, reply.vm.revision), (false, 2));
        assert_eq!(reply.vm.nics[0].limits.unwrap().send_bits_per_second, None);
        assert!(limit(&bus, "slow", body).await.unwrap().already);
        let received = is_flooded(&bus, "slow", &outside, 16_000_000).await;
        assert!(about(8_000_000).contains(&received), "receives {received} bit/s");
        let sent = sends(&bus, "slow", &outside).await;
        assert!(sent > 40_000_000, "sends {sent} bit/s");

        // Somebody removes it, or all of the rules, with a daemon and without.
        let limits_of = |set: &str| listed(world, set);
        let wanted = [format!("{tap} 1000000 bytes/second")];
        assert_eq!((limits_of("limit_send"), limits_of("limit_receive")), (Vec::new(), wanted.to_vec()));
        let back = async || {
            until("the limit is back", async || (listed(world, "limit_receive") == wanted).then_some(()))
                .await;
        };
        nft(&["delete", "element", "bridge", &table(world), "limit_receive", &format!("{{ {tap} }}")]);
        back().await;
        let faster = format!("{{ {tap} limit rate over 9 mbytes/second burst 64 kbytes }}");
        nft(&["add", "element", "bridge", &table(world), "limit_send", &faster]);
        until("a foreign limit is gone", async || limits_of("limit_send").is_empty().then_some(())).await;
        nft(&["flush", "ruleset"]);
        until("the rules are back", async || {
            let done =
                Command::new("nft").args(["list", "set", "bridge", &table(world), "limit_receive"]).output();
            done.unwrap().status.success().then_some(())
        })
        .await;
        back().await;
        let received = is_flooded(&bus, "slow", &outside, 16_000_000).await;
        assert!(about(8_000_000).contains(&received), "receives {received} bit/s");

        // Of a VM that is down, by the command line.
        bus.change_with("slow", "stop", json!({"force": true})).await.unwrap();
        assert_eq!(limits_of("limit_receive"), [""; 0]);
        let said = world.printed(&["vm", "limit", "slow", "--send", "4M"]).await;
        assert!(said.contains("sends 4000000 bit/s, receives as fast as it can"), "{said}");
        bus.change_with("slow", "start", json!({"wait": "agent"})).await.unwrap();
        assert_eq!(limits_of("limit_send"), [format!("{tap} 500000 bytes/second")]);

        for (body, field) in [
            (json!({"limits": {"send_bits_per_second": 1}}), "limits.send_bits_per_second"),
            (json!({"nic": 1}), "nic"),
        ] {
            let error = refused("no limit", ErrorCode::InvalidArgument, limit(&bus, "slow", body).await);
            assert_eq!(error.details["field"], field, "{error}");
        }
        let nic = json!({"limits": {"receive_bits_per_second": 99_999}});
        let body = json!({"name": "bad", "spec": {"nics": [nic]}});
        let error = bus.ask("vm.create", &body).refused(ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.nics[0].limits.receive_bits_per_second", "{error}");
        for name in ["slow", "free"] {
            let vm = bus.status(name).await.unwrap();
            bus.change(name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        }
        assert_eq!(bus.host().await.unwrap().alarms, []);
    });
}

#[test]
fn a_daemon_that_dies_while_limits_change_leaves_what_the_spec_says() {
    let test = "a_daemon_that_dies_while_limits_change_leaves_what_the_spec_says";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("a").await;
        for round in 0..6_u64 {
            let rate = 8_000_000 * (round + 1);
            let body = json!({"limits": {"send_bits_per_second": rate}});
            let id = RequestId::generate();
            let asked = tokio::spawn({
                let (bus, body) = (bus.clone(), body.clone());
                async move {
                    // Whatever comes of it.
                    drop(bus.ask("vm.a.limit", &body).id(id).get::<ChangeReply>().await);
                }
            });
            if round % 2 == 1 {
                // It is durable, and perhaps not in force.
                until("it is accepted", async || {
                    let vm = bus.status("a").await.ok()?;
                    (vm.revision == round + 2).then_some(())
                })
                .await;
            }
            world.kill().await;
            world.start();
            world.ready().await;
            asked.abort();
            let reply: ChangeReply = bus.insist("vm.a.limit", &body, id).await.unwrap();
            assert_eq!((reply.vm.revision, reply.already), (round + 2, false));
            let wanted = format!("{} {} bytes/second", vm.nics[0].tap, rate / 8);
            assert_eq!(listed(world, "limit_send"), [wanted]);
        }
        assert_eq!(bus.host().await.unwrap().alarms, []);
    });
}
