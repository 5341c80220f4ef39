//! IPv6 of a host's networks: who reaches whom, in whose name, and what of it comes back when others take it away.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::status::{AgentState, NicStatus, VmStatus};
use drover_schemas::body::vm::{ChangeReply, StatsReply};
use drover_schemas::guest::NetworkResult;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::traffic::{Ear, Line, Outside, exec, start_python};
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use drover_tests::{events, leak};
use serde_json::{Value, json};

/// The host's address on the way outside.
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// Who is outside.
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3);

/// What a program is given.
type Words<'a> = &'a [&'a str];

/// Gives a guest of processes what an agent or cloud-init gives one with a kernel. Arguments: address, gateway.
const SET_UP: &str = r#"
import subprocess, sys
open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "w").write("0")
ip = lambda words: subprocess.run(["ip", "-6"] + words.split(), check=True)
ip("address replace %s dev eth0 nodad" % sys.argv[1])
ip("route replace default via %s" % sys.argv[2])
"#;

/// Connects or asks, and prints in whose name it was heard. Arguments: protocol, address, port.
const KNOCK: &str = r#"
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
s.settimeout(2)
s.connect((sys.argv[2], int(sys.argv[3])))
s.send(b"?")
print(s.recv(99).decode())
"#;

/// Says who asks to whoever connects to a port.
const SERVER: &str = r#"
import socket, sys
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    line, who = listener.accept()
    line.sendall(who[0].encode())
    line.close()
"#;

/// Says back what it hears. Argument: port.
const ECHO: &str = r#"
import socket, sys
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6)
while True:
    line, who = listener.accept()
    while said := line.recv(99):
        line.sendall(said)
"#;

/// Says who asks to whoever sends a datagram to a port.
const UDP_SERVER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1])))
while True:
    said, who = s.recvfrom(99)
    s.sendto(who[0].encode(), who)
"#;

/// Sends frames in rounds, each kind once, the guest's own last. Arguments: MAC, address, gateway, a foreign address.
const SPEAKER: &str = r#"
import socket, struct, sys, time
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
own, gateway, foreign = (socket.inet_pton(socket.AF_INET6, a) for a in sys.argv[2:5])
everybody, wrong_mac, all_nodes = b"\xff" * 6, mac[:5] + bytes([mac[5] ^ 1]), b"\xff\x02" + bytes(13) + b"\x01"
link = b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))

def frame(mac, source, header, body):
    return everybody + mac + b"\x86\xdd\x60\0\0\0" + struct.pack("!HBB", len(body), header, 255) + source + all_nodes + body

def udp(mac, source, mark, port=9):
    return frame(mac, source, 17, struct.pack("!HHHH", port, 9, 8 + len(mark), 0) + mark)

def tells(kind, target, tells_of, mark):
    return bytes([kind, 0, 0, 0, 0x60, 0, 0, 0]) + target + bytes([2, 1]) + tells_of + mark

n = 0
while True:
    n += 1
    mark = lambda kind: b"drover %s %d;" % (kind, n)
    router = bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8)
    for each in [
        udp(mac, foreign, mark(b"address")),
        udp(mac, gateway, mark(b"gateway")),
        udp(wrong_mac, own, mark(b"mac")),
        frame(mac, own, 58, tells(136, foreign, mac, mark(b"advert"))),
        frame(mac, own, 58, tells(136, gateway, mac, mark(b"advert-gateway"))),
        frame(mac, own, 58, tells(136, own, wrong_mac, mark(b"advert-mac"))),
        frame(mac, link, 58, router + mark(b"router")),
        frame(mac, link, 60, bytes([58, 0, 1, 4, 0, 0, 0, 0]) + router + mark(b"router-hidden")),
        frame(mac, link, 58, tells(137, foreign, mac, mark(b"redirect"))),
        udp(mac, link, mark(b"dhcp"), port=547),
        udp(mac, own, mark(b"own")),
    ]:
        try:
            s.send(each)
        except OSError:
            pass
    time.sleep(0.005)
"#;

fn host(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a test where the kernel has IPv6.
fn run6<F>(test: &'static str, options: Options, body: F)
where
    F: AsyncFnOnce(&mut World) + Send + 'static,
{
    if Path::new("/proc/sys/net/ipv6").is_dir() {
        run(test, options, body);
    } else {
        println!("SKIP {test}: this kernel has no IPv6; boot it without ipv6.disable=1");
    }
}

/// Two networks with IPv6: of guests that are kept apart, and of guests that talk.
fn networks(config: &mut Value) {
    config["networks"] = json!([
        {"name": "default", "subnet": "10.78.0.0/24", "ipv6": "fd00:78::/64"},
        {"name": "open", "subnet": "10.99.0.0/24", "ipv6": "fd00:99::/64", "isolate": false},
    ]);
}

/// Lets the outside be reached by IPv6 too, and answer there, saying who asks.
fn answer(outside: &Outside) {
    host("ip", &["-6", "address", "add", &format!("{HOST}/64"), "dev", "out0", "nodad"]);
    outside.within(|| {
        for address in [OUTSIDE, OTHER] {
            host("ip", &["-6", "address", "add", &format!("{address}/64"), "dev", "in0", "nodad"]);
            for port in [80, 81] {
                let listener = TcpListener::bind((address, port)).unwrap();
                std::thread::spawn(move || {
                    while let Ok((mut line, who)) = listener.accept() {
                        let _ = line.read(&mut [0]);
                        let _ = line.write_all(who.ip().to_string().as_bytes());
                    }
                });
            }
            let socket = UdpSocket::bind((address, 80)).unwrap();
            std::thread::spawn(move || {
                while let Ok((_, who)) = socket.recv_from(&mut [0; 8]) {
                    let _ = socket.send_to(who.ip().to_string().as_bytes(), who);
                }
            });
        }
    });
}

/// Creates a VM with an address of IPv6 that it has set up.
async fn create(bus: &Bus, name: &str, nic: Value) -> VmStatus {
    let body = json!({"spec": {"nics": [nic]}, "wait": "agent"});
    let vm = bus.create(name, body).await.unwrap().vm;
    set_up(bus, name, &vm.nics[0]).await;
    vm
}

async fn set_up(bus: &Bus, name: &str, nic: &NicStatus) {
    let own = format!("{}/{}", address(nic), nic.ipv6_prefix_len.unwrap());
    let done = exec(bus, name, &["python3", "-c", SET_UP, &own, nic.ipv6_gateway.as_ref().unwrap()]).await;
    assert_eq!(done.exit_code, Some(0), "{done:?}");
}

fn address(nic: &NicStatus) -> String {
    nic.ipv6.clone().unwrap()
}

/// In whose name a guest is heard somewhere, if it is.
async fn heard_as(bus: &Bus, vm: &str, protocol: &str, to: &str, port: u16) -> Option<String> {
    let done = exec(bus, vm, &["python3", "-c", KNOCK, protocol, to, &port.to_string()]).await;
    let said = done.stdout.unwrap_or_default();
    (done.exit_code == Some(0)).then(|| String::from_utf8_lossy(said.as_slice()).trim().to_owned())
}

async fn serve(bus: &Bus, vm: &str) {
    start_python(bus, vm, SERVER, &["80"]).await;
    until("the guest serves", async || heard_as(bus, vm, "tcp", "::1", 80).await).await;
}

async fn pings(bus: &Bus, vm: &str, to: &str) -> bool {
    exec(bus, vm, &["ping", "-6", "-c", "1", "-W", "5", to]).await.exit_code == Some(0)
}

async fn stats(bus: &Bus, vm: &str) -> StatsReply {
    bus.ask(&format!("vm.{vm}.stats"), &json!({})).get().await.unwrap()
}

fn table(world: &World) -> String {
    let id = world.installation().unwrap().to_string().to_ascii_lowercase();
    format!("drover-{}", &id[id.len() - 10..])
}

async fn remove(world: &World, bus: &Bus, names: &[&str]) {
    for name in names {
        let vm = bus.status(name).await.unwrap();
        bus.change(name, "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        let rules = host("nft", &["list", "ruleset"]);
        if let Some(ipv6) = &vm.nics[0].ipv6 {
            assert!(!rules.contains(&format!("{ipv6} ")), "{name}: {rules}");
        }
    }
}

#[test]
fn guests_reach_by_ipv6_what_they_may_and_nothing_else() {
    run6("guests_reach_by_ipv6_what_they_may_and_nothing_else", Options::down(), async |world| {
        world.up_with(networks).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        let (a, b) = (create(&bus, "a", json!({})).await, create(&bus, "b", json!({})).await);
        let open = || json!({"network": "open"});
        let (c, d) = (create(&bus, "c", open()).await, create(&bus, "d", open()).await);
        for name in ["a", "b", "c", "d"] {
            serve(&bus, name).await;
        }
        // The same place in both subnets.
        for (vm, net) in [(&a, "fd00:78::"), (&c, "fd00:99::")] {
            let IpAddr::V4(four) = vm.nics[0].ipv4.parse().unwrap() else { panic!("{vm:?}") };
            assert_eq!(address(&vm.nics[0]), format!("{net}{:x}", four.octets()[3]));
            assert_eq!(vm.nics[0].ipv6_gateway.clone(), Some(format!("{net}1")));
        }
        let served = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let host_port = served.local_addr().unwrap().port();
        let near = Some(address(&c.nics[0]));
        let as_host = Some(HOST.to_string());
        for (vm, to, port, heard) in [
            // Nobody outside knows a way back to a guest: it goes out in the host's name.
            ("a", OUTSIDE.to_string(), 80, as_host.clone()),
            ("c", OUTSIDE.to_string(), 80, as_host.clone()),
            ("c", address(&d.nics[0]), 80, near),
            ("a", address(&b.nics[0]), 80, None),
            ("a", address(&c.nics[0]), 80, None),
            ("c", address(&a.nics[0]), 80, None),
            // Services of the host, by whichever of its addresses.
            ("a", "fd00:78::1".to_owned(), host_port, None),
            ("a", HOST.to_string(), host_port, None),
            ("c", "fd00:78::1".to_owned(), host_port, None),
            ("c", "fd00:99::1".to_owned(), host_port, None),
        ] {
            assert_eq!(heard_as(&bus, vm, "tcp", &to, port).await, heard, "{vm} to {to}:{port}");
        }
        assert_eq!(heard_as(&bus, "a", "udp", &OUTSIDE.to_string(), 80).await, as_host);
        for (vm, to, may) in
            [("a", "fd00:78::1", true), ("c", "fd00:99::1", true), ("a", &address(&b.nics[0]), false)]
        {
            assert_eq!(pings(&bus, vm, to).await, may, "{vm} pings {to}");
        }
        assert!(stats(&bus, "a").await.nics[0].egress_refused_packets > 0);
        // The host itself reaches its guest; those outside do not, though they know the way.
        let to = address(&a.nics[0]).parse::<Ipv6Addr>().unwrap();
        let reached = move || TcpStream::connect_timeout(&(to, 80).into(), Duration::from_secs(3)).is_ok();
        assert!(reached());
        let from_outside = outside.within(move || {
            host("ip", &["-6", "route", "add", "fd00:78::/64", "via", &HOST.to_string()]);
            reached()
        });
        assert!(!from_outside);
        // An honest guest is not held for another: what its kernel says by itself is refused of none.
        for vm in ["a", "c", "d"] {
            let refused = stats(&bus, vm).await.nics[0].refused_packets;
            assert!(refused < 20, "{vm}: {refused}");
        }
        assert_eq!(bus.host().await.unwrap().alarms, []);
        remove(world, &bus, &["a", "b", "c", "d"]).await;
    });
}

/// Who answers at a port of the host, in whose name it was heard there; nobody within a moment is nobody.
fn heard_at(protocol: &str, to: &str, port: u16) -> Option<String> {
    let done = Command::new("python3").args(["-c", KNOCK, protocol, to, &port.to_string()]).output().unwrap();
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

#[test]
fn a_port_of_the_host_leads_to_a_guest_by_both_kinds_of_addresses() {
    run6("a_port_of_the_host_leads_to_a_guest_by_both_kinds_of_addresses", Options::down(), async |world| {
        world
            .up_with(|config| {
                config["capacity"]["forward_ports"] = json!("20000-20100");
                networks(config);
                let plain = json!({"name": "plain", "subnet": "10.98.0.0/24"});
                config["networks"].as_array_mut().unwrap().push(plain);
            })
            .await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        let port = |host_port: u16| json!({"host_port": host_port, "guest_port": 80});
        let with = |host_port, more: Value| {
            let mut forward = port(host_port);
            forward.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            forward
        };
        let forwards = json!([
            port(20_000),
            with(20_001, json!({"host_address": "192.0.2.1"})),
            with(20_002, json!({"host_address": HOST.to_string()})),
            with(20_003, json!({"sources": [format!("{OUTSIDE}/128")]})),
            with(20_004, json!({"sources": ["192.0.2.0/24"]})),
            with(20_000, json!({"protocol": "udp", "guest_port": 81})),
        ]);
        let a = create(&bus, "a", json!({"forwards": forwards})).await;
        let b = create(&bus, "b", json!({"network": "open"})).await;
        for name in ["a", "b"] {
            serve(&bus, name).await;
            start_python(&bus, name, UDP_SERVER, &["81"]).await;
        }
        until("the guest answers datagrams", async || heard_as(&bus, "a", "udp", "::1", 81).await).await;
        let (six, four) = (HOST.to_string(), "192.0.2.1".to_owned());
        let (by_six, by_four) = (Some(OTHER.to_string()), Some("::ffff:192.0.2.2".to_owned()));
        let there = |protocol: &'static str, to: &str, port| {
            let to = to.to_owned();
            outside.within(move || heard_at(protocol, &to, port))
        };
        // From outside: by each kind that the forward is of, in the name of who asks.
        for (protocol, host_port, seen_by_six, seen_by_four) in [
            ("tcp", 20_000, &by_six, &by_four),
            ("udp", 20_000, &by_six, &by_four),
            ("tcp", 20_001, &None, &by_four),
            ("tcp", 20_002, &by_six, &None),
            // Who asks says so by another of its addresses than the one that may.
            ("tcp", 20_003, &None, &None),
            ("tcp", 20_004, &None, &by_four),
            ("tcp", 20_005, &None, &None),
        ] {
            assert_eq!(there(protocol, &six, host_port), *seen_by_six, "{protocol} {host_port} by IPv6");
            assert_eq!(there(protocol, &four, host_port), *seen_by_four, "{protocol} {host_port} by IPv4");
        }
        let as_outside = outside.within(move || {
            let script = KNOCK.replace("s.connect(", &format!("s.bind((\"{OUTSIDE}\", 0))\ns.connect("));
            let args = ["-c", &script, "tcp", &HOST.to_string(), "20003"];
            Command::new("python3").args(args).output().unwrap().stdout
        });
        assert_eq!(String::from_utf8_lossy(&as_outside).trim(), OUTSIDE.to_string());
        // From the host itself, by its own addresses; no other guest gets there.
        for own in [six.as_str(), "fd00:78::1", "fd00:99::1"] {
            assert!(heard_at("tcp", own, 20_000).is_some(), "{own}");
        }
        assert_eq!(heard_at("tcp", "::1", 20_000), None);
        assert_eq!(heard_as(&bus, "b", "tcp", &six, 20_000).await, None);

        // While it lives: what goes is cut, what others take away comes back.
        let forward = async |body: Value| -> ChangeReply {
            bus.insist("vm.a.forward", &body, RequestId::generate()).await.unwrap()
        };
        start_python(&bus, "a", ECHO, &["82"]).await;
        forward(json!({"add": [with(20_007, json!({"guest_port": 82}))]})).await;
        let mut line = until("a line to the guest", async || TcpStream::connect((HOST, 20_007)).ok()).await;
        line.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut lives = || line.write_all(b"!").is_ok() && line.read_exact(&mut [0]).is_ok();
        assert!(lives());
        let gone = json!([
            {"host_port": 20_002, "host_address": HOST.to_string()},
            {"host_port": 20_007},
        ]);
        forward(json!({"remove": gone, "add": [port(20_006)]})).await;
        assert!(!lives(), "what goes on through one that is gone is cut");
        assert_eq!((there("tcp", &six, 20_002), there("tcp", &six, 20_006)), (None, by_six.clone()));
        host("nft", &["flush", "ruleset"]);
        until("the forwards are back", async || there("tcp", &six, 20_006)).await;
        let element = format!("{{ {} . tcp . 80 . ::/0 }}", address(&a.nics[0]));
        host("nft", &["delete", "element", "inet", &table(world), "forward_open6", &element]);
        until("what was taken of it is back", async || there("tcp", &six, 20_006)).await;

        // A port has one owner, whichever addresses it is of; where there is no IPv6 that is said.
        let refuse = async |vm: &str, add: Value, code| {
            let (subject, body) = (format!("vm.{vm}.forward"), json!({"add": [add]}));
            let id = RequestId::generate();
            bus.ask(&subject, &body).id(id).refused(code).await
        };
        refuse("b", with(20_006, json!({"host_address": HOST.to_string()})), ErrorCode::Conflict).await;
        refuse("b", with(20_010, json!({"host_address": "2001:db8:2::77"})), ErrorCode::InvalidArgument)
            .await;
        let held = TcpListener::bind((HOST, 20_011)).unwrap();
        refuse("b", port(20_011), ErrorCode::Conflict).await;
        drop(held);
        let plain = json!({"network": "plain", "forwards": [with(20_020, json!({"host_address": HOST.to_string()}))]});
        let body = json!({"name": "c", "spec": {"nics": [plain]}});
        let error = bus.ask("vm.create", &body).id(RequestId::generate()).refused(ErrorCode::InvalidArgument);
        assert_eq!(error.await.details["field"], "spec.nics[0].forwards[0].host_address");
        assert_eq!(bus.host().await.unwrap().alarms, []);
        drop(b);
        remove(world, &bus, &["a", "b"]).await;
        assert_eq!(there("tcp", &six, 20_006), None);
    });
}

#[test]
fn no_guest_speaks_by_ipv6_for_another_whatever_others_do() {
    run6("no_guest_speaks_by_ipv6_for_another_whatever_others_do", Options::down(), async |world| {
        world.up_with(networks).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        let (a, b) = (create(&bus, "a", json!({})).await, create(&bus, "b", json!({})).await);
        let shown: Value =
            serde_json::from_str(&host("ip", &["-j", "link", "show", &a.nics[0].tap])).unwrap();
        let bridge = shown[0]["master"].as_str().unwrap().to_owned();
        let (ear, table) = (Ear::at(&bridge), table(world));
        let listen = || outside.within(|| TcpListener::bind((OUTSIDE, 0)).unwrap());
        let mut lines = [Line::open(&bus, "a", listen()).await, Line::open(&bus, "b", listen()).await];
        let nic = &a.nics[0];
        let said = [&nic.mac, &address(nic), nic.ipv6_gateway.as_ref().unwrap(), &address(&b.nics[0])];
        start_python(&bus, "a", SPEAKER, &said.map(String::as_str)).await;
        ear.hears_own_only().await;
        let refused = [stats(&bus, "a").await, stats(&bus, "b").await].map(|of| of.nics[0].refused_packets);
        assert!(refused[0] > 100 && refused[1] < 20, "{refused:?}");

        let has = |program: &str, args: &[&str], text: &str| {
            let done = Command::new(program).args(args).output().unwrap();
            String::from_utf8(done.stdout).unwrap().contains(text)
        };
        let element = format!("{{ {} . {} . {} }}", nic.tap, nic.mac, address(nic));
        let addresses = ["-6", "address", "show", "dev", bridge.as_str()];
        let list = ["list", "table", "bridge", table.as_str()];
        let done: [(&str, Words<'_>, &str, Words<'_>, &str); 5] = [
            ("nft", &["flush", "ruleset"], "nft", &list, "jump from_vm6"),
            ("nft", &["flush", "chain", "bridge", &table, "from_vm6"], "nft", &list, "@vm_target6 accept"),
            (
                "nft",
                &["delete", "element", "bridge", &table, "vm_src6", &element],
                "nft",
                &list,
                &address(nic),
            ),
            (
                "ip",
                &["-6", "address", "del", "fd00:78::1/64", "dev", &bridge],
                "ip",
                &addresses,
                "fd00:78::1/64",
            ),
            ("ip", &["-6", "address", "flush", "dev", &bridge], "ip", &addresses, "fe80::"),
        ];
        for (program, args, shows, how, text) in done {
            host(program, args);
            until(&format!("{args:?} is mended"), async || has(shows, how, text).then_some(())).await;
            ear.hears_own_only().await;
            for line in &mut lines {
                line.is_alive().await;
            }
        }
        events::alarm(&bus, "network_mended", |event| event.details["found"].contains("its IPv6 address"))
            .await;

        // The daemon dies, and nobody is there who would mend it.
        world.kill().await;
        host("nft", &["flush", "ruleset"]);
        host("ip", &["-6", "address", "flush", "dev", &bridge]);
        world.start();
        world.ready().await;
        ear.hears_own_only().await;
        for line in &mut lines {
            line.is_alive().await;
        }
        assert_eq!(bus.status("a").await.unwrap().nics, a.nics);
        assert_eq!(bus.host().await.unwrap().alarms, []);
        remove(world, &bus, &["a", "b"]).await;
    });
}

/// What of the places outside a guest reaches by IPv6.
async fn reached(bus: &Bus, vm: &str) -> Vec<&'static str> {
    let all = [
        ("tcp", OUTSIDE, 80, "tcp 80"),
        ("tcp", OUTSIDE, 81, "tcp 81"),
        ("udp", OUTSIDE, 80, "udp 80"),
        ("tcp", OTHER, 80, "other tcp 80"),
        ("udp", OTHER, 80, "other udp 80"),
    ];
    let mut found = Vec::new();
    for (protocol, to, port, name) in all {
        if heard_as(bus, vm, protocol, &to.to_string(), port).await.is_some() {
            found.push(name);
        }
    }
    found
}

#[test]
fn what_a_guest_may_reach_holds_for_ipv6_too() {
    run6("what_a_guest_may_reach_holds_for_ipv6_too", Options::down(), async |world| {
        world
            .up_with(|config| {
                networks(config);
                // Whom a network of this name keeps from an address.
                let narrow = json!({"name": "narrow", "subnet": "10.98.0.0/24", "ipv6": "fd00:98::/64",
                    "egress_deny": ["2001:db8:2::3/128"]});
                config["networks"].as_array_mut().unwrap().push(narrow);
            })
            .await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        let all = ["tcp 80", "tcp 81", "udp 80", "other tcp 80", "other udp 80"];
        let one = json!({"to": OUTSIDE, "protocol": "tcp", "ports": ["80"]});
        let but = json!({"deny": [{"to": "2001:db8:2::3/128"}, {"to": "all", "ports": ["81-90"]}]});
        let both = json!({
            "default": "deny",
            "allow": [{"to": "2001:db8:2::/64"}, {"to": "192.0.2.0/24"}],
            "deny": [{"to": "all", "protocol": "udp"}, {"to": OUTSIDE, "protocol": "tcp", "ports": ["81"]}],
        });
        let wanted: [(&str, Value, &[&str]); 7] = [
            ("free", json!({}), &all),
            ("closed", json!({"egress": {"default": "deny", "allow": [one]}}), &["tcp 80"]),
            ("shut", json!({"egress": {"default": "deny"}}), &[]),
            ("four", json!({"egress": {"default": "deny", "allow": [{"to": "0.0.0.0/0"}]}}), &[]),
            ("but", json!({"egress": but}), &["tcp 80", "udp 80"]),
            ("both", json!({"egress": both}), &["tcp 80", "other tcp 80"]),
            ("narrow", json!({"network": "narrow"}), &all[..3]),
        ];
        for (name, nic, reach) in &wanted {
            create(&bus, name, nic.clone()).await;
            assert_eq!(reached(&bus, name).await, *reach, "{name}");
        }
        // Counters as proof that it was the rules.
        assert!(stats(&bus, "shut").await.nics[0].egress_refused_packets >= 5);
        let chain = host("nft", &["list", "chain", "inet", &table(world), "egress"]);
        for set in ["@egress_closed6", "@egress_deny6 ", "@egress_deny_port6"] {
            let rule = chain.lines().find(|line| line.contains(set)).unwrap();
            assert!(!rule.contains("packets 0 "), "{rule}");
        }

        // It changes while the guest lives, and what stands is cut.
        let line =
            Line::open(&bus, "free", outside.within(|| TcpListener::bind((OUTSIDE, 0)).unwrap())).await;
        let change = async |body: Value| {
            bus.insist::<ChangeReply>("vm.free.egress", &body, RequestId::generate()).await.unwrap()
        };
        change(json!({"default": "deny", "add": {"allow": [one]}})).await;
        assert_eq!(reached(&bus, "free").await, ["tcp 80"]);
        line.is_cut().await;
        host("nft", &["flush", "ruleset"]);
        until("the rules are back", async || (reached(&bus, "free").await == ["tcp 80"]).then_some(())).await;
        world.kill().await;
        host("nft", &["flush", "ruleset"]);
        world.start();
        world.ready().await;
        assert_eq!(reached(&bus, "free").await, ["tcp 80"]);
        change(json!({"replace": true, "add": {"deny": [{"to": "private"}, {"to": "metadata"}]}})).await;
        assert_eq!(reached(&bus, "free").await, all);

        let bad =
            json!({"name": "bad", "spec": {"nics": [{"egress": {"deny": [{"to": "2001:db8::/129"}]}}]}});
        let error = bus.ask("vm.create", &bad).refused(ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.nics[0].egress.deny[0].to", "{error}");
        assert_eq!(bus.host().await.unwrap().alarms, []);
        remove(world, &bus, &wanted.map(|(name, ..)| name)).await;
    });
}

#[test]
fn a_network_that_gets_ipv6_keeps_the_guests_it_has() {
    run6("a_network_that_gets_ipv6_keeps_the_guests_it_has", Options::down(), async |world| {
        let four =
            |config: &mut Value| config["networks"] = json!([{"name": "default", "subnet": "10.78.0.0/24"}]);
        world.up_with(four).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        let old = bus.create("old", json!({"wait": "agent"})).await.unwrap().vm;
        assert_eq!(old.nics[0].ipv6, None);
        assert!(!host("nft", &["list", "ruleset"]).contains("ip6"));
        let mut line = Line::open(&bus, "old", outside.listen()).await;

        world.kill().await;
        world.configure_with(networks);
        world.start();
        world.ready().await;
        // Its row tells of none, and nothing else is given to it while it lives.
        assert_eq!(bus.status("old").await.unwrap().nics, old.nics);
        line.is_alive().await;
        create(&bus, "new", json!({})).await;
        assert!(pings(&bus, "new", "fd00:78::1").await);
        assert_eq!(heard_as(&bus, "new", "tcp", &OUTSIDE.to_string(), 80).await, Some(HOST.to_string()));

        // And a network that loses it.
        world.kill().await;
        world.configure_with(four);
        world.start();
        world.ready().await;
        line.is_alive().await;
        assert!(!pings(&bus, "new", "fd00:78::1").await);
        assert!(!host("nft", &["list", "ruleset"]).contains("jump from_vm6"));
        assert_eq!(bus.host().await.unwrap().alarms, []);
        remove(world, &bus, &["old", "new"]).await;
    });
}

#[test]
fn a_subnet_that_cannot_be_is_told_with_what_to_do() {
    run6("a_subnet_that_cannot_be_is_told_with_what_to_do", Options::down(), async |world| {
        world.start_nats().await;
        let net =
            |name: &str, subnet: &str, ipv6: &str| json!({"name": name, "subnet": subnet, "ipv6": ipv6});
        for (networks, text) in [
            (json!([net("a", "10.78.0.0/20", "fe80::/64")]), "fd00::/8"),
            (json!([net("a", "10.78.0.0/20", "fd00::/120")]), "at most 116"),
            (
                json!([net("a", "10.78.0.0/24", "fd00::/64"), net("b", "10.79.0.0/24", "fd00::/64")]),
                "network b",
            ),
        ] {
            world.configure_with(|config| config["networks"] = networks.clone());
            let output = world.host_fails().await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(text), "{networks}: {said}");
        }
    });
}

#[test]
fn a_guest_with_a_kernel_gets_its_address_by_the_agent() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::down() };
    run6("a_guest_with_a_kernel_gets_its_address_by_the_agent", options, async |world| {
        const BOOT: Duration = Duration::from_secs(300);
        world.up_with(networks).await;
        let bus = world.bus.clone();
        let outside = Outside::beside_host();
        answer(&outside);
        // The kernel's command line tells it of IPv4 alone.
        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        let body = json!({"name": "web", "spec": {"template": "linux-default", "agent": agent}});
        let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
        ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
        let vm = until_within(BOOT, "the agent", async || {
            bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
        })
        .await;
        let own = format!("{}/64", address(&vm.nics[0]));
        let has = async || {
            let script = format!(
                "ip -6 addr show dev eth0 | grep -qF 'inet6 {own} ' && ip -6 route | grep -q '^default via fd00:78::1 '"
            );
            until_within(Duration::from_secs(120), &format!("the guest has {own}"), async || {
                // It may be on its way up.
                let body = json!({"argv": ["sh", "-c", script]});
                let reply = bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.ok()?;
                matches!(reply, ExecReply::Result(done) if done.exit_code == Some(0)).then_some(())
            })
            .await;
        };
        has().await;
        let ping = |to: String| host("ping", &["-6", "-c", "1", "-W", "20", &to]);
        let pings = async |to: &str| {
            let done = exec(&bus, "web", &["ping", "-6", "-c", "1", "-W", "20", to]).await;
            assert_eq!(done.exit_code, Some(0), "{to}: {done:?}");
        };
        ping(address(&vm.nics[0]));
        pings("fd00:78::1").await;
        pings(&OUTSIDE.to_string()).await;

        // It is looked at, and what is so stays so; one kind of address leaves the other alone.
        let network = async |more: &[&str]| -> NetworkResult {
            let text =
                world.printed(&[&["-o", "json", "vm", "guest", "network", "web"], more].concat()).await;
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
        };
        let four = format!("{}/{}", vm.nics[0].ipv4, vm.nics[0].prefix_len);
        let seen = network(&[]).await;
        assert_eq!(seen.after.addresses, [four.as_str(), &own]);
        assert_eq!(seen.after.gateway6.as_deref(), Some("fd00:78::1"));
        let same = network(&["--address", &own, "--gateway6", "fd00:78::1"]).await;
        assert!(!same.changed, "{same:?}");
        let set =
            network(&["--address", &own, "--address", "fd00:5::5/64", "--route", "fd00:6::/64=fd00:78::1"])
                .await;
        assert_eq!((set.after.addresses.len(), set.after.routes.len()), (3, 1), "{set:?}");
        let less = network(&["--address", &own]).await;
        assert_eq!(less.after.addresses, [four.as_str(), &own]);

        // Whoever takes it away: another daemon sets it again, and so does a boot.
        exec(&bus, "web", &["ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"]).await;
        world.kill().await;
        world.start();
        world.ready().await;
        has().await;
        bus.change("web", "reboot").await.unwrap();
        has().await;
        ping(address(&vm.nics[0]));
        bus.change("web", "delete").await.unwrap();
    });
}
