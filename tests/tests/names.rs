//! Addresses by DHCP and names by DNS, for guests of processes and one with a kernel of its own: each gets what is its
//! own, nobody hears or takes what is another's, and no guest keeps the others from being answered.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::admin::{ADMIN, alarm_lasts, page};
use drover_tests::client::{Bus, refused};
use drover_tests::traffic::{Outside, exec, start_python};
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

/// What udhcpc calls with what it was offered: notes it, and sets it.
const LEASED: &str = r#"#!/bin/sh
case $1 in
bound | renew)
    env | sort > /tmp/$1.new
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    mv /tmp/$1.new /tmp/$1
    ;;
esac
"#;

/// Sends messages of DHCP in frames. Arguments: own MAC, what.
const SPEAKER: &str = r#"
import socket, struct, sys, time
mac, what = bytes.fromhex(sys.argv[1].replace(":", "")), sys.argv[2]
own = socket.inet_aton(sys.argv[3])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))

def frame(payload, source=bytes(4), to=b"\xff" * 4):
    body = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload
    head = lambda check: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, check, source, to)
    total = sum(struct.unpack("!10H", head(0)))
    head = head(~((total & 0xffff) + (total >> 16)) & 0xffff)
    return b"\xff" * 6 + mac + b"\x08\x00" + head + body

def message(kind, chaddr=mac, giaddr=bytes(4), options=b""):
    head = struct.pack("!BBBBIHH4s4s4s4s16s192x4s", 1, 1, 6, 0, 7, 0, 0, bytes(4), bytes(4), bytes(4), giaddr, chaddr,
        b"\x63\x82\x53\x63")
    return head + bytes([53, 1, kind]) + options + b"\xff"

other = mac[:5] + bytes([mac[5] ^ 1])
if what == "wrong":
    for payload in [message(1, chaddr=other), message(1, giaddr=b"\x0a\x00\x00\x09"), message(1, options=b"\x3d\xff" + bytes(255)),
                    message(3), b"", bytes(240), b"\xff" * 1400, message(1)[:100]]:
        s.send(frame(payload))
elif what == "unknown":
    s.send(b"\xff" * 6 + other + frame(message(1, chaddr=other))[12:])
elif what == "decline":
    s.send(frame(message(4, options=b"\x32\x04" + own)))
elif what == "flood":
    sent, end = 0, time.time() + 6
    while time.time() < end:
        try:
            s.send(frame(message(1)))
            sent += 1
        except OSError:
            pass
    open("/tmp/sent", "w").write(str(sent))
"#;

/// Notes the messages of DHCP that are of others. Argument: own MAC.
const LISTENER: &str = r#"
import socket, sys
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
open("/tmp/heard", "w").close()
while True:
    frame = s.recv(2048)
    ports = {int.from_bytes(frame[at:at + 2], "big") for at in (34, 36)}
    if frame[12:14] == b"\x08\x00" and frame[23] == 17 and ports & {67, 68} and frame[70:76] != mac:
        with open("/tmp/heard", "a") as heard:
            heard.write(frame.hex() + "\n")
"#;

/// Asks for a name, again and again, and says code, authority and answers, or how long each took. Arguments: server,
/// `udp` or `tcp`, name, type, how often.
const RESOLVER: &str = r#"
import random, socket, struct, sys, time
server, way, name, kind, times = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])

def text(data, at):
    labels = []
    while data[at]:
        if data[at] >= 0xc0:
            at = int.from_bytes(data[at:at + 2], "big") & 0x3fff
            continue
        labels.append(data[at + 1:at + 1 + data[at]].decode())
        at += 1 + data[at]
    return ".".join(labels)

def after(data, at):
    while data[at]:
        if data[at] >= 0xc0:
            return at + 2
        at += 1 + data[at]
    return at + 1

def ask():
    number = random.randrange(65536)
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label)
    question = struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)
    if way == "tcp":
        s = socket.create_connection((server, 53), 10)
        s.sendall(struct.pack("!H", len(question)) + question)
        read = s.makefile("rb")
        data = read.read(int.from_bytes(read.read(2), "big"))
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(10)
        s.connect((server, 53))
        s.send(question)
        data = s.recv(4096)
    found, flags, _, answers, _, _ = struct.unpack("!6H", data[:12])
    assert found == number
    at, told = after(data, 12) + 4, []
    for _ in range(answers):
        at = after(data, at)
        of, _, _, length = struct.unpack("!HHIH", data[at:at + 10])
        at += 10
        told.append(socket.inet_ntoa(data[at:at + 4]) if of == 1 else text(data, at))
        at += length
    cut = " cut" if flags & 0x200 else ""
    return f"{flags & 15} {flags >> 10 & 1}{cut} {','.join(told)}".strip()

took = []
for _ in range(times):
    begun = time.time()
    said = ask()
    took.append(time.time() - begun)
took.sort()
print(said if times == 1 else f"{said} p50 {took[times // 2] * 1000:.1f} ms, most {took[-1] * 1000:.1f} ms")
"#;

/// Asks as fast as it can, by every way, and never hears. Arguments: server, name.
const FLOOD: &str = r#"
import os, socket, struct, sys, time
server, name = sys.argv[1], sys.argv[2].encode()
labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
idle = []
try:
    for _ in range(40):
        idle.append(socket.create_connection((server, 53), 0.2))
except OSError:
    pass
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((server, 53))
n = 0
while True:
    n += 1
    try:
        s.send(question if n % 2 else os.urandom(n % 600))
    except OSError:
        pass
"#;

async fn says(bus: &Bus, vm: &str, argv: &[&str]) -> String {
    let done = exec(bus, vm, argv).await;
    assert_eq!(done.exit_code, Some(0), "{argv:?}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

fn text(done: ExecResult) -> String {
    assert_eq!(done.exit_code, Some(0), "{done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

/// What a guest of `default` is told about a name.
async fn told(bus: &Bus, vm: &VmStatus, way: &str, name: &str, kind: u16) -> String {
    told_in(bus, "default", vm, way, name, kind, 1).await
}

async fn told_in(bus: &Bus, ns: &str, vm: &VmStatus, way: &str, name: &str, kind: u16, times: u32) -> String {
    let (kind, times) = (kind.to_string(), times.to_string());
    let argv = ["python3", "-c", RESOLVER, &vm.nics[0].gateway, way, name, &kind, &times];
    let subject = format!("drover.v1.cmd.{ns}.vm.{}.guest.exec", vm.name);
    let ask =
        bus.ask(&subject, &json!({"argv": argv})).id(RequestId::generate()).within(Duration::from_secs(60));
    match ask.get::<ExecReply>().await.unwrap() {
        ExecReply::Result(done) => text(done),
        other => panic!("no result: {other:?}"),
    }
}

async fn made(bus: &Bus, ns: &str, name: &str, nic: Value) -> VmStatus {
    let body = json!({"name": name, "spec": {"nics": [nic]}, "wait": "agent"});
    let ask = bus.ask(&format!("drover.v1.cmd.{ns}.vm.create"), &body).id(RequestId::generate());
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create {name}: {e}")).vm
}

/// Lets a guest ask for its address, and gives what it was told.
async fn leased(bus: &Bus, vm: &str) -> BTreeMap<String, String> {
    let script = format!(
        "cat > /tmp/leased << 'END'\n{LEASED}END\nchmod +x /tmp/leased; rm -f /tmp/bound\n\
         busybox udhcpc -i eth0 -f -n -q -t 10 -T 2 -s /tmp/leased && cat /tmp/bound"
    );
    let words = says(bus, vm, &["sh", "-c", &script]).await;
    let word = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    words.lines().filter_map(word).collect()
}

async fn heard(bus: &Bus, vm: &str) -> String {
    says(bus, vm, &["cat", "/tmp/heard"]).await
}

async fn listens(bus: &Bus, vm: &VmStatus) {
    start_python(bus, vm.name.as_str(), LISTENER, &[&vm.nics[0].mac]).await;
    until("it listens", async || {
        let done = exec(bus, vm.name.as_str(), &["test", "-e", "/tmp/heard"]).await;
        (done.exit_code == Some(0)).then_some(())
    })
    .await;
}

/// How many messages met this outcome.
async fn outcome(metric: &str, outcome: &str) -> u64 {
    let name = format!("drover_{metric}_total{{outcome=\"{outcome}\"}} ");
    let page = page("/metrics").await.1;
    page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |value| value.parse().unwrap())
}

async fn started(world: &mut World, upstreams: &[String]) {
    world
        .up_with(|config| {
            config["admin"] = json!({"listen": ADMIN});
            config["networks"] = json!([
                {"name": "default", "subnet": "10.78.0.0/24", "mtu": 1450, "dns": {"upstreams": upstreams}},
                {"name": "open", "subnet": "10.78.1.0/24", "isolate": false, "dns": {"suffix": "far.internal"}},
                {"name": "still", "subnet": "10.78.2.0/24", "dhcp": false, "dns": {"serve": false}},
            ]);
        })
        .await;
}

#[test]
fn guests_that_ask_get_what_is_theirs_and_nobody_else_hears_of_it() {
    let test = "guests_that_ask_get_what_is_theirs_and_nobody_else_hears_of_it";
    run(test, Options { budget: Duration::from_secs(300), ..Options::down() }, async |world| {
        started(world, &[]).await;
        let bus = world.bus.clone();
        let asks = |network: &str| json!({"network": network, "setup": "dhcp"});
        let (a, c) = (
            made(&bus, "default", "a", asks("default")).await,
            made(&bus, "default", "c", asks("open")).await,
        );
        // Beside each of them one that listens.
        let (b, d) =
            (made(&bus, "default", "b", json!({})).await, made(&bus, "default", "d", asks("open")).await);
        for vm in [&b, &d] {
            listens(&bus, vm).await;
        }
        assert_eq!(says(&bus, "a", &["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).await, "");

        for vm in [&a, &c] {
            let found = leased(&bus, vm.name.as_str()).await;
            let (nic, of) = (&vm.nics[0], |name: &str| found.get(name).map_or("", String::as_str));
            assert_eq!((of("ip"), of("mask")), (nic.ipv4.as_str(), "24"));
            assert_eq!(
                (of("router"), of("dns"), of("serverid")),
                (nic.gateway.as_str(), nic.gateway.as_str(), nic.gateway.as_str())
            );
            let (suffix, mtu) =
                if vm.name == a.name { ("vm.drover.internal", "1450") } else { ("far.internal", "1500") };
            assert_eq!((of("domain"), of("mtu"), of("hostname")), (suffix, mtu, vm.name.as_str()));
            assert_eq!(of("lease"), u32::MAX.to_string());
            says(&bus, vm.name.as_str(), &["ping", "-c", "1", "-W", "10", &nic.gateway]).await;
        }
        // One that has its address by the kernel asks all the same, and gets the same.
        assert_eq!(leased(&bus, "b").await["ip"], b.nics[0].ipv4);

        // It is renewed, over the address.
        let renews = "busybox udhcpc -i eth0 -s /tmp/leased -p /tmp/pid && rm -f /tmp/renew && kill -USR1 $(cat /tmp/pid)";
        says(&bus, "a", &["sh", "-c", renews]).await;
        until("the lease is renewed", async || {
            let done =
                exec(&bus, "a", &["grep", "-x", &format!("ip={}", a.nics[0].ipv4), "/tmp/renew"]).await;
            (done.exit_code == Some(0)).then_some(())
        })
        .await;

        // What is wrong is not answered, and harms nobody.
        let before = outcome("dhcp_messages", "offered").await;
        let (mac, own) = (a.nics[0].mac.as_str(), a.nics[0].ipv4.as_str());
        for what in ["wrong", "unknown"] {
            says(&bus, "a", &["python3", "-c", SPEAKER, mac, what, own]).await;
        }
        until("all of it came", async || {
            let count = |kind| outcome("dhcp_messages", kind);
            let seen = (count("malformed").await, count("foreign").await, count("relayed").await);
            (seen.0 >= 6 && seen.1 >= 1 && seen.2 >= 1).then_some(())
        })
        .await;
        assert_eq!(
            outcome("dhcp_messages", "unknown").await,
            0,
            "the firewall lets nobody speak as somebody else"
        );
        assert_eq!(outcome("dhcp_messages", "offered").await, before);
        says(&bus, "a", &["python3", "-c", SPEAKER, mac, "decline", own]).await;
        events::alarm(&bus, "dhcp_declined", |event| event.details["vm_id"] == a.vm_id.to_string()).await;

        // One asks without end; others get theirs meanwhile.
        let offered = outcome("dhcp_messages", "offered").await;
        start_python(&bus, "b", SPEAKER, &[&b.nics[0].mac, "flood", &b.nics[0].ipv4]).await;
        assert_eq!(leased(&bus, "a").await["ip"], own);
        let sent = until("the flood is over", async || {
            let done = exec(&bus, "b", &["cat", "/tmp/sent"]).await;
            (done.exit_code == Some(0)).then(|| text(done).parse::<u64>().unwrap_or(0))
        })
        .await;
        let answered = outcome("dhcp_messages", "offered").await - offered;
        println!("a flood of {sent} messages of one guest: {answered} were answered");
        assert!(sent > 1_000 && answered < sent / 4 && answered <= 40 + 20 * 30, "{answered} of {sent}");

        // Nobody is there who answers, and then another one is.
        world.kill().await;
        world.start();
        world.ready().await;
        bus.until_ping("a").await;
        assert_eq!(leased(&bus, "a").await["ip"], own);
        assert_eq!(leased(&bus, "c").await["ip"], c.nics[0].ipv4);
        assert_eq!((heard(&bus, "b").await, heard(&bus, "d").await), (String::new(), String::new()));

        let nic = json!({"spec": {"nics": [asks("still")]}});
        let error = refused("a network without", ErrorCode::InvalidArgument, bus.create("e", nic).await);
        assert_eq!(error.details["field"], "spec.nics[0].setup");
        assert_eq!(bus.host().await.unwrap().alarms, []);
        for (name, vm) in [("a", a), ("b", b), ("c", c), ("d", d)] {
            bus.change(name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        }
    });
}

/// Servers of names outside, of datagrams and of connections: they know one address for every name. `long.*` does not
/// fit a datagram.
fn upstream(outside: &Outside) -> (Vec<String>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (datagrams, streams): (UdpSocket, TcpListener) = (outside.datagrams(), outside.listen());
    let upstreams =
        [datagrams.local_addr().unwrap(), streams.local_addr().unwrap()].map(|at| at.to_string()).to_vec();
    let answer = |question: &[u8], cut: bool| {
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let mut reply = question[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        if cut {
            (reply[2], reply[7]) = (0x83, 0);
            return reply;
        }
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
        reply
    };
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, peer)) = datagrams.recv_from(&mut question) {
            count.fetch_add(1, Ordering::SeqCst);
            let question = &question[..length];
            // First what is not the answer.
            let mut forged = answer(question, false);
            forged[0] ^= 0xff;
            let _ = datagrams.send_to(&forged, peer);
            let _ = datagrams.send_to(&answer(question, question[13..].starts_with(b"long")), peer);
        }
    });
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in streams.incoming() {
            let (Ok(mut stream), mut length) = (stream, [0; 2]) else { return };
            count.fetch_add(1, Ordering::SeqCst);
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let reply = answer(&question, false);
            stream.write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    });
    (upstreams, asked)
}

const A: u16 = 1;
const PTR: u16 = 12;

#[test]
fn a_guest_learns_the_names_of_its_own_namespace_and_others_only_where_it_may_go() {
    let test = "a_guest_learns_the_names_of_its_own_namespace_and_others_only_where_it_may_go";
    run(test, Options { budget: Duration::from_secs(300), ..Options::down() }, async |world| {
        let outside = Outside::beside_host();
        let (upstreams, asked) = upstream(&outside);
        started(world, &upstreams).await;
        let bus = world.bus.clone();
        let a = made(&bus, "default", "a", json!({})).await;
        let b = made(&bus, "default", "b", json!({"egress": {"default": "deny"}})).await;
        let other = made(&bus, "acme", "c", json!({})).await;
        let far = made(&bus, "default", "far", json!({"network": "open"})).await;
        let reverse = |vm: &VmStatus| {
            let [first, second, third, last] = vm.nics[0].ipv4.parse::<Ipv4Addr>().unwrap().octets();
            format!("{last}.{third}.{second}.{first}.in-addr.arpa")
        };
        let names = async |bus: &Bus| {
            for way in ["udp", "tcp"] {
                let there = format!("0 1 {}", b.nics[0].ipv4);
                assert_eq!(told(bus, &a, way, "b.vm.drover.internal", A).await, there);
                assert_eq!(told(bus, &a, way, "B.VM.drover.internal", A).await, there);
            }
            assert_eq!(told(bus, &a, "udp", &reverse(&b), PTR).await, "0 1 b.vm.drover.internal");
        };
        names(&bus).await;
        assert_eq!(
            told(&bus, &a, "udp", "vm.drover.internal", A).await,
            format!("0 1 {}", a.nics[0].gateway)
        );
        assert_eq!(told(&bus, &a, "udp", "nobody.vm.drover.internal", A).await, "3 1");
        assert_eq!(told(&bus, &a, "udp", "b.vm.drover.internal", 28).await, "0 1", "it has no such address");
        // Another namespace is not there, and neither is another network.
        assert_eq!(told(&bus, &a, "udp", "c.vm.drover.internal", A).await, "3 1");
        assert_eq!(told(&bus, &a, "udp", &reverse(&other), PTR).await, "3 1");
        assert_eq!(told(&bus, &a, "udp", "far.vm.drover.internal", A).await, "3 1");
        assert_eq!(told(&bus, &a, "udp", "far.far.internal", A).await, "5 0");
        let of_other = async |name: &str| told_in(&bus, "acme", &other, "udp", name, A, 1).await;
        assert_eq!(of_other("c.vm.drover.internal").await, format!("0 1 {}", other.nics[0].ipv4));
        assert_eq!(of_other("a.vm.drover.internal").await, "3 1");
        assert_eq!(told(&bus, &far, "udp", "far.far.internal", A).await, format!("0 1 {}", far.nics[0].ipv4));
        assert_eq!(asked.load(Ordering::SeqCst), 0, "nothing of that leaves the host");

        // Other names are asked for outside, for those who could ask there themselves.
        assert_eq!(told(&bus, &a, "udp", "example.org", A).await, "0 0 192.0.2.80");
        assert_eq!(told(&bus, &a, "udp", "long.example.org", A).await, "0 0 cut");
        assert_eq!(told(&bus, &a, "tcp", "long.example.org", A).await, "0 0 192.0.2.80");
        let before = asked.load(Ordering::SeqCst);
        for way in ["udp", "tcp"] {
            assert_eq!(told(&bus, &b, way, "secret.example.org", A).await, "5 0");
        }
        assert_eq!(told(&bus, &far, "udp", "example.org", A).await, "5 0", "a network without upstreams");
        assert_eq!(asked.load(Ordering::SeqCst), before, "names are a way out too");
        assert_eq!(told(&bus, &b, "udp", "a.vm.drover.internal", A).await, format!("0 1 {}", a.nics[0].ipv4));
        let allow = json!({"nic": 0, "add": {"allow": [{"to": "192.0.2.2", "protocol": "udp"}]}});
        let _: ChangeReply = bus.ask("vm.b.egress", &allow).id(RequestId::generate()).get().await.unwrap();
        assert_eq!(told(&bus, &b, "udp", "example.org", A).await, "0 0 192.0.2.80");
        assert_eq!(told(&bus, &b, "tcp", "example.org", A).await, "5 0");

        // A flood of one guest leaves the others theirs.
        let quiet = told_in(&bus, "default", &a, "udp", "b.vm.drover.internal", A, 50).await;
        let argv = ["python3", "-c", FLOOD, &other.nics[0].gateway, "c.vm.drover.internal"];
        let flood = bus.ask("drover.v1.cmd.acme.vm.c.guest.exec", &json!({"argv": argv, "detach": true}));
        let _: ExecReply = flood.id(RequestId::generate()).get().await.unwrap();
        until("the flood has begun", async || {
            (outcome("dns_questions", "malformed").await > 20).then_some(())
        })
        .await;
        let flooded = told_in(&bus, "default", &a, "udp", "b.vm.drover.internal", A, 50).await;
        println!("names of one guest: {quiet}; while another floods: {flooded}");
        names(&bus).await;

        world.kill().await;
        world.start();
        world.ready().await;
        bus.until_ping("a").await;
        names(&bus).await;
        assert_eq!(bus.host().await.unwrap().alarms, []);
        // Names go with their VMs, and come with them.
        bus.change("b", "delete").await.unwrap();
        assert_eq!(told(&bus, &a, "udp", "b.vm.drover.internal", A).await, "3 1");
        assert_eq!(told(&bus, &a, "udp", &reverse(&b), PTR).await, "3 1");
        let again = made(&bus, "default", "b", json!({})).await;
        assert_eq!(
            told(&bus, &a, "udp", "b.vm.drover.internal", A).await,
            format!("0 1 {}", again.nics[0].ipv4)
        );
        bus.change("a", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &a), Vec::<String>::new());
    });
}

#[test]
fn a_port_that_another_program_has_is_an_alarm_and_the_rest_of_the_network_works() {
    let test = "a_port_that_another_program_has_is_an_alarm_and_the_rest_of_the_network_works";
    run(test, Options::down(), async |world| {
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        // DHCP does not need its port.
        let _served = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
        started(world, &[]).await;
        let bus = world.bus.clone();
        let alarm =
            events::alarm(&bus, "guests_unserved", |event| event.details["network"] == "default").await;
        assert_eq!(alarm.details["service"], "dns");
        assert!(alarm.details["failure"].contains("bind-interfaces"), "{alarm:?}");
        until("the alarm lasts", async || alarm_lasts("dns_unserved").await.then_some(())).await;
        let a = made(&bus, "default", "a", json!({"setup": "dhcp"})).await;
        assert_eq!(leased(&bus, "a").await["ip"], a.nics[0].ipv4);
        drop(taken);
        until("the alarm is over", async || (!alarm_lasts("dns_unserved").await).then_some(())).await;
        assert_eq!(told(&bus, &a, "udp", "a.vm.drover.internal", A).await, format!("0 1 {}", a.nics[0].ipv4));
        bus.change("a", "delete").await.unwrap();
    });
}

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);

#[test]
fn a_kernel_asks_for_its_address_and_its_programs_for_names() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::down() };
    run("a_kernel_asks_for_its_address_and_its_programs_for_names", options, async |world| {
        started(world, &[]).await;
        let bus = world.bus.clone();
        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        for (name, setup) in [("web", "dhcp"), ("db", "kernel")] {
            let nics = json!([{"network": "default", "setup": setup}]);
            let spec = json!({"template": "linux-microvm", "agent": agent, "nics": nics});
            let body = json!({"name": name, "spec": spec});
            let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
            ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
        }
        let ready = async |name: &str| {
            until_within(BOOT, "the agent", async || {
                bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
            })
            .await
        };
        let (web, db) = (ready("web").await, ready("db").await);
        for vm in [&web, &db] {
            let (nic, name) = (&vm.nics[0], vm.name.as_str());
            let has = format!(
                "ip -4 addr show dev eth0 | grep -qF 'inet {}/' && ip route | grep -qF 'default via {}' && \
                 grep -qxF 'nameserver {}' /etc/resolv.conf",
                nic.ipv4, nic.gateway, nic.gateway
            );
            until_within(BOOT, "it has what it asked for", async || {
                let done = exec(&bus, name, &["sh", "-c", &has]).await;
                (done.exit_code == Some(0)).then_some(())
            })
            .await;
        }
        assert!(says(&bus, "web", &["cat", "/proc/cmdline"]).await.contains(" ip=::::web:eth0:dhcp"));
        assert!(says(&bus, "web", &["nslookup", "db.vm.drover.internal"]).await.contains(&db.nics[0].ipv4));
        let gone = exec(&bus, "web", &["nslookup", "nobody.vm.drover.internal"]).await;
        assert_ne!(gone.exit_code, Some(0), "{gone:?}");
        for name in ["web", "db"] {
            bus.change(name, "delete").await.unwrap();
        }
    });
}
