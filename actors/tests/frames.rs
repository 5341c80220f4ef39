//! IPv6 of the host's networks against the real kernel, frame by frame.
//!
//! Needs root, `/dev/net/tun`, `nft` and a kernel with IPv6; skips with the reason otherwise. Each test works in a network
//! namespace of its own, which ends with it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests too

mod common;
#[path = "common/tap.rs"]
mod tap;

use common::run;
use tap::VNET_HDR;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_actors::network::findings::Wrong;
use drover_actors::network::lease::NicLease;
use drover_actors::network::{
    Before, NetworkConfig, NetworkDef, NetworkError, NetworkHandle, VmNet, Why, ipv6, names,
};
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

fn in_namespace<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    if Path::new("/proc/sys/net/ipv6").is_dir() {
        common::in_namespace(test);
    } else {
        eprintln!("SKIP: this kernel has no IPv6");
    }
}

fn token() -> Token {
    Token::new("default").unwrap()
}

fn def(subnet: Option<&str>) -> NetworkDef {
    NetworkDef { ipv6: subnet.map(|text| text.parse().unwrap()), ..NetworkDef::named(token()) }
}

async fn network(installation: InstallationId, def: &NetworkDef) -> NetworkHandle {
    let config = NetworkConfig { installation, networks: vec![def.clone()], nft: PathBuf::from("nft") };
    NetworkHandle::spawn(config, None).await.unwrap()
}

fn vm(installation: InstallationId, def: &NetworkDef, last: u8) -> VmNet {
    let vm_id = VmId::generate();
    let nic = NicLease::new(installation, vm_id, 0, token(), def.subnet, [10, 77, 0, last].into());
    let (forwards, egress, limits) = Default::default();
    VmNet {
        vm_id,
        called: None,
        uid: 12_345,
        nics: vec![nic.with_ipv6(def.ipv6)],
        forwards,
        egress,
        limits,
        queues: Vec::new(),
    }
}

const SUBNET: Option<&str> = Some("fd00:77::/64");

fn six(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

type Mac = [u8; 6];

fn octets(mac: &str) -> Mac {
    let parts: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    parts.try_into().unwrap()
}

/// A frame to everybody: of IPv6, whose first header behind the fixed one is `next`.
fn frame(mac: Mac, source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    frame_to([0xff; 6], six("ff02::1"), (mac, source), next, payload)
}

/// The same to somebody.
fn frame_to(to: Mac, there: Ipv6Addr, from: (Mac, Ipv6Addr), next: u8, payload: &[u8]) -> Vec<u8> {
    let (mac, source) = from;
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&[0x60, 0, 0, 0][..], &length, &[next, 255], &source.octets(), &there.octets()].concat();
    [&to[..], &mac, &[0x86, 0xdd], &head, payload].concat()
}

fn udp(source: u16, text: &str) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap();
    [&source.to_be_bytes()[..], &9_u16.to_be_bytes(), &length.to_be_bytes(), &[0, 0], text.as_bytes()]
        .concat()
}

/// A message of ICMPv6 with a target, and options behind it.
fn icmp(kind: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

fn link(option: u8, mac: Mac) -> Vec<u8> {
    [&[option, 1][..], &mac].concat()
}

/// A header of options with nothing in it, before `next`.
fn options(next: u8, rest: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat()
}

/// A part of a packet, from a place of it on.
fn part(next: u8, from: u16, more: bool, rest: &[u8]) -> Vec<u8> {
    [&[next, 0][..], &(from | u16::from(more)).to_be_bytes(), &7_u32.to_be_bytes(), rest].concat()
}

const UDP: u8 = 17;
const ICMP: u8 = 58;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;
const HOP: u8 = 0;
/// Kinds of ICMPv6.
const ECHO: u8 = 128;
const MLD_QUERY: u8 = 130;
const MLD_REPORT: u8 = 143;
const SOLICIT_ROUTER: u8 = 133;
const ROUTER: u8 = 134;
const ASK: u8 = 135;
const ANSWER: u8 = 136;
const REDIRECT: u8 = 137;

/// What a frame is, and the frame.
type Frame = (&'static str, Vec<u8>);

/// A guest, and what of its frames comes to the host.
struct Guest {
    tap: File,
    ear: OwnedFd,
    mac: Mac,
    own: Ipv6Addr,
    link: Ipv6Addr,
    round: u32,
}

impl Guest {
    fn attach(installation: InstallationId, nic: &NicLease) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let ear = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        let index = nix::net::if_::if_nametoindex(names::bridge(installation, &token()).as_str()).unwrap();
        // SAFETY: `sockaddr_ll` is plain data for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the socket is open, and the kernel only reads the address, whose length is given.
        let bound = unsafe { libc::bind(ear.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0);
        Self {
            tap: tap::attach(&nic.tap),
            ear,
            mac: octets(&nic.mac),
            own: nic.ipv6.unwrap().address,
            link: ipv6::link_local(&nic.mac).unwrap(),
            round: 0,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        // One whose bridge is down loses it.
        let _ = self.tap.write(&[&[0; VNET_HDR][..], frame].concat());
    }

    /// Which of the frames come to the host, sent in order until one behind them does.
    fn heard(&mut self, frames: &[Frame]) -> BTreeSet<&'static str> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut buffer = [0; 2048];
        loop {
            assert!(
                Instant::now() < deadline,
                "the guest is not heard: {}",
                run("nft", &["list", "ruleset"])
            );
            self.round += 1;
            let last = frame(self.mac, self.own, UDP, &udp(9, &format!("round {}", self.round)));
            for (_, frame) in frames {
                self.send(frame);
            }
            self.send(&last);
            let (mut heard, moment) = (BTreeSet::new(), Instant::now() + Duration::from_millis(200));
            while Instant::now() < moment {
                let length = match recv(self.ear.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => length,
                    Err(Errno::EAGAIN | Errno::ENETDOWN) => {
                        let mut fds = [PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
                        poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                let found = &buffer[..length];
                if found == last {
                    return heard;
                }
                heard.extend(frames.iter().filter(|(_, frame)| found == frame).map(|(name, _)| *name));
            }
        }
    }

    /// What it may say.
    fn good(&self) -> Vec<Frame> {
        let Self { mac, own, link: local, .. } = *self;
        let nobody = Ipv6Addr::UNSPECIFIED;
        vec![
            ("own", frame(mac, own, UDP, &udp(9, "own"))),
            ("of the link", frame(mac, local, UDP, &udp(9, "link"))),
            ("ping", frame(mac, own, ICMP, &icmp(ECHO, own, &[]))),
            ("asks", frame(mac, own, ICMP, &icmp(ASK, six("fd00:77::1"), &link(1, mac)))),
            ("asks without its MAC", frame(mac, local, ICMP, &icmp(ASK, six("fd00:77::1"), &[]))),
            ("has somebody mine", frame(mac, nobody, ICMP, &icmp(ASK, own, &[14, 1, 1, 2, 3, 4, 5, 6]))),
            ("has somebody mine of the link", frame(mac, nobody, ICMP, &icmp(ASK, local, &[]))),
            ("answers", frame(mac, own, ICMP, &icmp(ANSWER, own, &link(2, mac)))),
            ("answers for the link", frame(mac, local, ICMP, &icmp(ANSWER, local, &[]))),
            ("options", frame(mac, own, OPTIONS, &options(UDP, &udp(9, "options")))),
        ]
    }

    /// What it may say in parts, which the host may keep until they are whole.
    fn parts(&self) -> Vec<Frame> {
        let part = |next, from, more, rest: &[u8]| {
            frame(self.mac, self.own, FRAGMENT, &part(next, from, more, rest))
        };
        vec![
            ("first part", part(UDP, 0, true, &udp(9, "12345678"))),
            ("last part", part(UDP, 16, false, b"rest")),
            ("first part of a ping", part(ICMP, 0, true, &icmp(ECHO, self.own, &[]))),
            ("last part of a ping", part(ICMP, 24, false, b"rest")),
        ]
    }

    /// What it may not, and is counted.
    fn bad(&self) -> Vec<Frame> {
        let Self { mac, own, link: local, .. } = *self;
        let (other, gateway, nobody) = (six("fd00:77::99"), six("fd00:77::1"), Ipv6Addr::UNSPECIFIED);
        let wrong = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 1];
        let router = icmp(ROUTER, gateway, &[]);
        let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        vec![
            ("another's address", frame(mac, other, UDP, &udp(9, "x"))),
            ("the gateway's address", frame(mac, gateway, UDP, &udp(9, "x"))),
            ("another MAC", frame(wrong, own, UDP, &udp(9, "x"))),
            ("another address of the link", frame(mac, six("fe80::1"), UDP, &udp(9, "x"))),
            ("no address", frame(mac, nobody, UDP, &udp(9, "x"))),
            ("with a tag", tagged(&frame(mac, own, UDP, &udp(9, "x")))),
            ("asks with another MAC", frame(mac, own, ICMP, &icmp(ASK, gateway, &link(1, wrong)))),
            ("asks as another", frame(mac, other, ICMP, &icmp(ASK, gateway, &link(1, mac)))),
            (
                "asks with two options",
                frame(mac, own, ICMP, &icmp(ASK, gateway, &[link(1, mac), link(1, wrong)].concat())),
            ),
            ("keeps an address from another", frame(mac, nobody, ICMP, &icmp(ASK, other, &[]))),
            ("answers for another", frame(mac, own, ICMP, &icmp(ANSWER, other, &link(2, mac)))),
            ("answers for the gateway", frame(mac, own, ICMP, &icmp(ANSWER, gateway, &link(2, mac)))),
            ("answers with another MAC", frame(mac, own, ICMP, &icmp(ANSWER, own, &link(2, wrong)))),
            ("answers for another's link", frame(mac, local, ICMP, &icmp(ANSWER, six("fe80::1"), &[]))),
            ("answers behind options", frame(mac, own, OPTIONS, &options(ICMP, &icmp(ANSWER, other, &[])))),
            ("is a router", frame(mac, local, ICMP, &router)),
            ("is a router behind options", frame(mac, local, OPTIONS, &options(ICMP, &router))),
            ("is a router in parts", frame(mac, local, FRAGMENT, &part(ICMP, 0, true, &router))),
            (
                "is a router in parts behind options",
                frame(mac, local, FRAGMENT, &part(OPTIONS, 0, true, &options(ICMP, &router))),
            ),
            (
                "hides what it is",
                frame(mac, local, FRAGMENT, &part(OPTIONS, 0, true, &[ICMP, 9, 1, 4, 0, 0, 0, 0])),
            ),
            ("hides what follows", frame(mac, local, FRAGMENT, &part(OPTIONS, 8, false, &router))),
            ("redirects", frame(mac, local, ICMP, &icmp(REDIRECT, other, &own.octets()))),
            ("asks for listeners", frame(mac, local, HOP, &options(ICMP, &icmp(MLD_QUERY, nobody, &[])))),
            ("gives addresses", frame(mac, local, UDP, &udp(547, "x"))),
            (
                "gives addresses in parts",
                frame(mac, local, FRAGMENT, &part(UDP, 0, true, &udp(547, "12345678"))),
            ),
            ("gives addresses behind options", frame(mac, local, OPTIONS, &options(UDP, &udp(547, "x")))),
        ]
    }

    /// Panics unless it is heard in its own name and in no other.
    fn is_heard_as_itself_only(&mut self) {
        let (good, bad) = (self.good(), self.bad());
        let all: Vec<Frame> = bad.into_iter().chain(good.iter().cloned()).collect();
        let names: BTreeSet<&str> = good.iter().map(|(name, _)| *name).collect();
        assert_eq!(self.heard(&all), names, "{}", run("nft", &["list", "ruleset"]));
    }
}

async fn refused(network: &NetworkHandle, vm: &VmNet) -> u64 {
    network.counted().await.unwrap().of(&vm.nics[0].status()).unwrap().refused_packets
}

#[test]
fn a_guest_is_heard_under_its_own_name_only_and_what_is_not_is_counted() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = def(SUBNET);
        let network = network(installation, &def).await;
        network.restore(Vec::new()).await.unwrap();
        let (vm, quiet) = (vm(installation, &def, 2), vm(installation, &def, 3));
        for vm in [&vm, &quiet] {
            network.attach(vm.clone()).await.unwrap();
        }
        let mut guest = Guest::attach(installation, &vm.nics[0]);
        guest.is_heard_as_itself_only();

        // Each of them is counted, and of this guest.
        let (bad, before) = (guest.bad(), refused(&network, &vm).await);
        let rounds = guest.round;
        guest.heard(&bad);
        let rounds = u64::from(guest.round - rounds);
        assert_eq!(refused(&network, &vm).await, before + rounds * bad.len() as u64);
        assert_eq!(refused(&network, &quiet).await, 0);
        // What kernels say by themselves is neither heard nor held against them.
        let (local, before) = (guest.link, refused(&network, &vm).await);
        let nobody = Ipv6Addr::UNSPECIFIED;
        let idle = [
            ("router", frame(guest.mac, local, ICMP, &icmp(SOLICIT_ROUTER, nobody, &[]))),
            ("listens", frame(guest.mac, local, HOP, &options(ICMP, &icmp(MLD_REPORT, nobody, &[])))),
            ("listens early", frame(guest.mac, nobody, HOP, &options(ICMP, &icmp(MLD_REPORT, nobody, &[])))),
        ];
        assert_eq!(guest.heard(&idle), BTreeSet::new());
        // Nor are parts of a packet.
        let parts = guest.parts();
        guest.heard(&parts);
        assert_eq!(refused(&network, &vm).await, before);

        network.detach(vm.vm_id, vm.nics.clone()).await.unwrap();
        network.detach(quiet.vm_id, quiet.nics.clone()).await.unwrap();
        let rules = run("nft", &["list", "ruleset"]);
        assert!(!rules.contains(&vm.nics[0].tap) && !rules.contains("fd00:77::2"), "{rules}");
        network.teardown().await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");
    });
}

#[test]
fn guests_that_talk_do_so_without_the_host() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = NetworkDef { isolate: false, ..def(SUBNET) };
        let network = network(installation, &def).await;
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, &def, 2);
        network.attach(vm.clone()).await.unwrap();
        let mut guest = Guest::attach(installation, &vm.nics[0]);
        guest.is_heard_as_itself_only();
        let (bridge, from) = (names::bridge_mac(installation, &token()), (guest.mac, guest.own));
        let to = |mac: Mac, there: &str, text: &str| frame_to(mac, six(there), from, UDP, &udp(9, text));
        let ask = icmp(ASK, six("fd00:77::99"), &[]);
        let frames = [
            ("to the host", to(bridge, "fd00:77::1", "host")),
            ("to the outside", to(bridge, "2001:db8::1", "outside")),
            ("to everybody", to([0xff; 6], "fd00:77::99", "everybody")),
            ("to a guest by the host", to(bridge, "fd00:77::99", "guest")),
            ("asks a guest by the host", frame_to(bridge, six("fd00:77::99"), from, ICMP, &ask)),
        ];
        let heard = guest.heard(&frames);
        assert_eq!(heard, BTreeSet::from(["to the host", "to the outside", "to everybody"]));
    });
}

#[test]
fn whatever_others_take_away_is_mended() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = def(SUBNET);
        let network = network(installation, &def).await;
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, &def, 2);
        network.attach(vm.clone()).await.unwrap();
        assert_eq!(network.mend(Why::Look).await.unwrap().mended, []);
        let mut guest = Guest::attach(installation, &vm.nics[0]);
        guest.is_heard_as_itself_only();
        let (table, bridge) = (names::table(installation), names::bridge(installation, &token()));
        let (tap, mac) = (vm.nics[0].tap.clone(), vm.nics[0].mac.clone());
        let element = |set: &str, rest: &str| {
            ["element", "bridge", &table, set, &format!("{{ {tap} . {rest} }}")]
                .map(ToOwned::to_owned)
                .to_vec()
        };
        let with = |verb: &str, rest: Vec<String>| [vec!["nft".to_owned(), verb.to_owned()], rest].concat();
        let words = |text: &str| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let foreign = format!("{mac} . 0x{:032x}", six("fd00:77::99").to_bits());
        for (done, wrong) in [
            (words("nft flush ruleset"), Wrong::RulesGone),
            (words(&format!("nft flush chain bridge {table} from_vm6")), Wrong::RulesChanged),
            (with("delete", element("vm_src6", &format!("{mac} . fd00:77::2"))), Wrong::ElementsGone),
            (
                with("delete", element("vm_link6", &format!("0x{}", mac.replace(':', "")))),
                Wrong::ElementsGone,
            ),
            (with("add", element("vm_src6", &format!("{mac} . fd00:77::99"))), Wrong::ElementsForeign),
            (with("add", element("vm_target6", &foreign)), Wrong::ElementsForeign),
            (words(&format!("ip -6 address flush dev {bridge} scope global")), Wrong::Ipv6Gone),
            (words(&format!("ip -6 address flush dev {bridge} scope link")), Wrong::Ipv6Gone),
            (words(&format!("ip link set dev {bridge} down")), Wrong::BridgeDown),
            (words("sysctl -qw net.ipv6.conf.all.forwarding=0"), Wrong::ForwardingOff),
        ] {
            let args: Vec<&str> = done.iter().map(String::as_str).collect();
            run(args[0], &args[1..]);
            let repair = network.mend(Why::Look).await.unwrap();
            assert!(repair.mended.iter().any(|one| one.wrong == wrong), "{done:?}: {repair:?}");
            assert_eq!(network.mend(Why::Look).await.unwrap().mended, [], "{done:?}");
            guest.is_heard_as_itself_only();
        }
        let shown = run("ip", &["-6", "address", "show", "dev", &bridge]);
        assert!(shown.contains("fd00:77::1/64 scope global nodad"), "{shown}");
    });
}

#[test]
fn the_host_routes_and_listens_to_no_guest() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = def(SUBNET);
        run("ip", &["link", "add", "dev", "uplink", "type", "bridge"]);
        let setting = |path: &str| {
            fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{path}")).unwrap().trim().to_owned()
        };
        assert_eq!((setting("all/forwarding"), setting("uplink/accept_ra")), ("0".into(), "1".into()));
        let network = network(installation, &def).await;
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, &def, 2);
        let status = network.attach(vm.clone()).await.unwrap();
        assert_eq!(status[0].ipv6.as_deref(), Some("fd00:77::2"));
        let (tap, bridge) = (&vm.nics[0].tap, names::bridge(installation, &token()));
        assert_eq!(setting("all/forwarding"), "1");
        assert_eq!(setting("uplink/accept_ra"), "2", "what a router told it stays");
        assert_eq!(setting(&format!("{bridge}/accept_ra")), "0");
        assert_eq!(setting(&format!("{tap}/disable_ipv6")), "1");
        let _end = tap::attach(tap);
        assert_eq!(run("ip", &["-6", "address", "show", "dev", tap]).trim(), "");
        // The next start, and one whose network has none any more.
        network.actor().stop(None);
        let again = self::network(installation, &def).await;
        let before = vec![Before { net: vm.clone(), ran: true }];
        assert_eq!(again.restore(before).await.unwrap().mended, []);
        again.actor().stop(None);
        let without = self::def(None);
        let mut old = vm.clone();
        old.nics[0].ipv6 = None;
        let last = self::network(installation, &without).await;
        last.restore(vec![Before { net: old.clone(), ran: true }]).await.unwrap();
        assert_eq!(last.mend(Why::Look).await.unwrap().mended, []);
        let rules = run("nft", &["list", "ruleset"]);
        assert!(!rules.contains("fd00:77") && !rules.contains("jump from_vm6"), "{rules}");
        // And it comes back to one with it, whose row knows of none.
        last.actor().stop(None);
        let back = self::network(installation, &def).await;
        back.restore(vec![Before { net: old, ran: true }]).await.unwrap();
        assert_eq!(back.mend(Why::Look).await.unwrap().mended, []);
        assert!(!run("nft", &["list", "ruleset"]).contains("fd00:77::2"));
    });
}

#[test]
fn a_host_without_ipv6_has_no_rule_of_it() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = def(None);
        let network = network(installation, &def).await;
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, &def, 2);
        network.attach(vm.clone()).await.unwrap();
        let rules = run("nft", &["list", "ruleset"]);
        for word in ["ip6", "icmpv6", "vm_src6", "closed6", "fe80", "fd00"] {
            assert!(!rules.contains(word), "{word}: {rules}");
        }
        network.counted().await.unwrap();
        assert_eq!(run("cat", &["/proc/sys/net/ipv6/conf/all/forwarding"]).trim(), "0");
    });
}

#[test]
fn a_subnet_that_is_in_use_is_refused() {
    in_namespace(|| async {
        run("ip", &["link", "add", "dev", "outside", "type", "bridge"]);
        run("ip", &["address", "add", "fd00:77::33/64", "dev", "outside"]);
        let network = network(InstallationId::generate(), &def(SUBNET)).await;
        let error = network.restore(Vec::new()).await.unwrap_err();
        let is = matches!(&error, NetworkError::Overlap { other, .. } if other == "fd00:77::33/64");
        assert!(is, "{error:?}");
    });
}
