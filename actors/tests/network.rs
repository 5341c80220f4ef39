//! The network actor against the real kernel, each test in a network namespace of its own.
//!
//! Needs root, `/dev/net/tun` and `nft`; skips with the reason otherwise. The machine's own network is never
//! touched: the thread of a test leaves it first, and its namespace ends with it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests too

use std::collections::HashSet;
mod common;
#[path = "common/tap.rs"]
mod tap;

use common::{in_namespace, run};
use tap::VNET_HDR;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drover_actors::network::findings::Wrong;
use drover_actors::network::lease::NicLease;
use drover_actors::network::tap::TapKind;
use drover_actors::network::watch::watch;
use drover_actors::network::{
    Before, Finding, NetworkConfig, NetworkDef, NetworkError, NetworkHandle, Repair, VmNet, Why, names,
};
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio_util::task::AbortOnDropHandle;

fn links() -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&run("ip", &["-j", "link"])).unwrap();
    let names = listed.as_array().unwrap().iter();
    names.map(|link| link["ifname"].as_str().unwrap().to_owned()).filter(|name| name != "lo").collect()
}

fn default_network() -> Token {
    Token::new("default").unwrap()
}

async fn network(installation: InstallationId) -> NetworkHandle {
    let networks = vec![NetworkDef::named(default_network())];
    let config = NetworkConfig { installation, networks, nft: PathBuf::from("nft") };
    NetworkHandle::spawn(config, None).await.unwrap()
}

fn vm(installation: InstallationId, number: u16) -> VmNet {
    let vm_id = VmId::generate();
    let subnet = NetworkDef::named(default_network()).subnet;
    let [high, low] = (number + 2).to_be_bytes();
    let address = Ipv4Addr::new(10, 77, high, low);
    let nic = NicLease::new(installation, vm_id, 0, default_network(), subnet, address);
    VmNet {
        vm_id,
        called: None,
        uid: 12_345,
        nics: vec![nic],
        forwards: Vec::new(),
        egress: Vec::new(),
        limits: Vec::new(),
        queues: Vec::new(),
    }
}

#[test]
fn everything_that_is_made_is_marked_and_removed_again() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, 0);
        let nic = &vm.nics[0];
        let status = network.attach(vm.clone()).await.unwrap();
        assert_eq!(status, [nic.status()]);
        // Again, as an adoption does.
        network.attach(vm.clone()).await.unwrap();

        let shown: serde_json::Value =
            serde_json::from_str(&run("ip", &["-j", "-d", "link", "show", &nic.tap])).unwrap();
        let tap = &shown[0];
        assert_eq!(tap["ifalias"], names::tap_alias(installation, vm.vm_id).as_str());
        assert_eq!(tap["master"], names::bridge(installation, &default_network()).as_str());
        assert_eq!(tap["linkinfo"]["info_data"]["persist"], true);
        assert_eq!(tap["linkinfo"]["info_data"]["user"], 12_345);
        assert_eq!(tap["linkinfo"]["info_slave_data"]["isolated"], true);
        assert!(tap["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(run("cat", &["/proc/sys/net/ipv4/ip_forward"]).trim(), "1");
        let rules = run("nft", &["list", "ruleset"]);
        for part in [
            nic.tap.as_str(),
            &nic.mac,
            "10.77.0.2",
            "masquerade",
            "table bridge drover-",
            "table inet drover-",
        ] {
            assert!(rules.contains(part), "{part} is missing in:\n{rules}");
        }

        network.restore(Vec::new()).await.unwrap();
        assert!(run("nft", &["list", "ruleset"]).contains(&nic.mac), "a new base lost the elements");
        network.detach(vm.vm_id, vm.nics.clone()).await.unwrap();
        network.detach(vm.vm_id, vm.nics.clone()).await.unwrap();
        assert!(!run("nft", &["list", "ruleset"]).contains(&nic.mac));
        network.teardown().await.unwrap();
        network.teardown().await.unwrap();
        assert_eq!(links(), Vec::<String>::new());
        assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");
    });
}

#[test]
fn a_tap_is_for_as_many_pairs_of_queues_as_its_interface_has() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let [mut many, one] = [vm(installation, 0), vm(installation, 1)];
        many.queues = vec![3];
        let [wide, narrow] = [many.nics[0].tap.clone(), one.nics[0].tap.clone()];
        for vm in [&many, &one] {
            network.attach(vm.clone()).await.unwrap();
        }
        // A VMM that says another kind than the TAP is of would be refused.
        let several = libc::IFF_MULTI_QUEUE;
        assert_eq!(tap::attach_as(&wide, 0).unwrap_err(), nix::Error::EINVAL);
        assert_eq!(tap::attach_as(&narrow, several).unwrap_err(), nix::Error::EINVAL);
        let ends: Vec<File> = (0..3).map(|_| tap::attach_as(&wide, several).unwrap()).collect();
        let shown: serde_json::Value =
            serde_json::from_str(&run("ip", &["-j", "-d", "link", "show", &wide])).unwrap();
        let data = &shown[0]["linkinfo"]["info_data"];
        assert_eq!((&data["numqueues"], &data["user"]), (&3.into(), &12_345.into()), "{data}");
        // An adoption finds it busy and right.
        network.attach(many.clone()).await.unwrap();
        drop(ends);
        network.attach(many.clone()).await.unwrap();
        for vm in [many, one] {
            network.detach(vm.vm_id, vm.nics).await.unwrap();
        }
        // Made, and not marked yet when the daemon died: of either kind it goes.
        for (kind, name) in [(TapKind::Many, wide), (TapKind::One, narrow)] {
            drover_actors::network::tap::ensure(&name, kind, 12_345).unwrap();
            drover_actors::network::tap::remove(&name).unwrap();
        }
        network.teardown().await.unwrap();
        assert_eq!(links(), Vec::<String>::new());
    });
}

#[test]
fn many_at_once_share_transactions_and_none_is_lost() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let vms: Vec<VmNet> = (0..64).map(|number| vm(installation, number)).collect();
        let began = Instant::now();
        let attached = futures_util::future::join_all(vms.iter().map(|vm| network.attach(vm.clone()))).await;
        println!("64 attached in {:?}", began.elapsed());
        assert!(attached.iter().all(Result::is_ok), "{attached:?}");
        assert_eq!(links().len(), 65);
        let known: HashSet<VmId> = vms.iter().map(|vm| vm.vm_id).collect();
        let swept = network.sweep(known).await.unwrap();
        assert_eq!((swept.leftovers.len(), swept.stale_elements.len(), swept.foreign), (0, 0, 0));
        let detach = vms.iter().map(|vm| network.detach(vm.vm_id, vm.nics.clone()));
        assert!(futures_util::future::join_all(detach).await.iter().all(Result::is_ok));
        network.teardown().await.unwrap();
        assert_eq!(links(), Vec::<String>::new());
    });
}

#[test]
fn a_sweep_reports_its_own_leftovers_and_counts_the_others() {
    in_namespace(|| async {
        let (mine, theirs) = (InstallationId::generate(), InstallationId::generate());
        let network = network(mine).await;
        network.restore(Vec::new()).await.unwrap();
        let lost = vm(mine, 0);
        network.attach(lost.clone()).await.unwrap();
        let foreign = vm(theirs, 1);
        run("ip", &["tuntap", "add", "dev", &foreign.nics[0].tap, "mode", "tap"]);
        let alias = names::tap_alias(theirs, foreign.vm_id);
        run("ip", &["link", "set", "dev", &foreign.nics[0].tap, "alias", &alias]);
        let gone = vm(mine, 2);
        network.attach(gone.clone()).await.unwrap();
        run("ip", &["link", "del", "dev", &gone.nics[0].tap]);

        // The next daemon does not find it.
        network.actor().stop(None);
        let network = self::network(mine).await;
        let swept = network.sweep(HashSet::from([gone.vm_id])).await.unwrap();
        assert_eq!(swept.leftovers.len(), 1);
        assert_eq!((swept.leftovers[0].vm_id, &swept.leftovers[0].tap), (lost.vm_id, &lost.nics[0].tap));
        assert_eq!(swept.stale_elements, [gone.nics[0].tap.clone()]);
        assert_eq!(swept.foreign, 1);
        // Another installation's TAP is refused even by name.
        let refused = network.detach(lost.vm_id, foreign.nics.clone()).await;
        assert!(matches!(refused, Err(NetworkError::Link(_))), "{refused:?}");
        assert!(links().contains(&foreign.nics[0].tap));
    });
}

#[test]
fn one_bad_request_does_not_fail_its_neighbours() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let good: Vec<VmNet> = (0..4).map(|number| vm(installation, number)).collect();
        let mut elsewhere = vm(installation, 10);
        elsewhere.nics[0].network = Token::new("nowhere").unwrap();
        let mut refused = vm(installation, 11);
        refused.nics[0].mac = "no mac".to_owned();
        let (good, elsewhere, refused) = tokio::join!(
            futures_util::future::join_all(good.iter().map(|vm| network.attach(vm.clone()))),
            network.attach(elsewhere.clone()),
            network.attach(refused.clone()),
        );
        assert!(good.iter().all(Result::is_ok), "{good:?}");
        assert!(matches!(elsewhere, Err(NetworkError::UnknownNetwork { .. })), "{elsewhere:?}");
        assert!(matches!(refused, Err(NetworkError::Nft(_))), "{refused:?}");
        assert_eq!(links().len(), 5, "the TAPs of those that failed are gone");
    });
}

#[test]
fn a_missing_nft_is_told_with_the_package_to_install() {
    in_namespace(|| async {
        let networks = vec![NetworkDef::named(default_network())];
        let installation = InstallationId::generate();
        let config = NetworkConfig { installation, networks, nft: "/nonexistent/nft".into() };
        let network = NetworkHandle::spawn(config, None).await.unwrap();
        let error = network.restore(Vec::new()).await.unwrap_err();
        let text = drover_actors::chain(&error).to_string();
        assert!(text.contains("install the package `nftables`"), "{text}");
    });
}

#[test]
fn a_subnet_that_is_in_use_is_refused() {
    in_namespace(|| async {
        run("ip", &["link", "add", "dev", "outside", "type", "bridge"]);
        run("ip", &["address", "add", "10.77.3.3/24", "dev", "outside"]);
        let error = network(InstallationId::generate()).await.restore(Vec::new()).await.unwrap_err();
        assert!(
            matches!(&error, NetworkError::Overlap { other, .. } if other == "10.77.3.3/24"),
            "{error:?}"
        );
        assert_eq!(links(), ["outside"]);
    });
}

/// The guest's end of a TAP, as a VMM opens it.
struct Guest(File);

impl Guest {
    fn attach(tap: &str) -> Self {
        Self(tap::attach(tap))
    }

    /// Asks who has the gateway's address, in the name of `mac` and `ip`.
    fn ask(&mut self, mac: [u8; 6], ip: Ipv4Addr, gateway: Ipv4Addr) {
        let mut frame = vec![0; VNET_HDR];
        frame.extend([0xff; 6]);
        frame.extend(mac);
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(ip.octets());
        frame.extend([0; 6]);
        frame.extend(gateway.octets());
        self.0.write_all(&frame).unwrap();
    }

    /// Asks again and again, until there is an answer: whom it is for. A new port needs a moment.
    fn asked_until_answered(&mut self, ask: &mut dyn FnMut(&mut Self)) -> Option<([u8; 6], Ipv4Addr)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        // What was answered before was asked before.
        while self.answer().is_some() {}
        while Instant::now() < deadline {
            ask(self);
            if let Some(answer) = self.answer() {
                return Some(answer);
            }
        }
        None
    }

    /// Whom the next answer is for, if there is one within a moment.
    fn answer(&mut self) -> Option<([u8; 6], Ipv4Addr)> {
        let mut frame = [0; 2048];
        loop {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
            if fds[0].any() != Some(true) {
                return None;
            }
            let n = self.0.read(&mut frame).unwrap();
            let packet = &frame[VNET_HDR..n];
            // An ARP reply: ether type 0x0806, operation 2.
            if packet.len() >= 42 && packet[12..14] == [8, 6] && packet[20..22] == [0, 2] {
                let mac = packet[32..38].try_into().unwrap();
                return Some((mac, Ipv4Addr::new(packet[38], packet[39], packet[40], packet[41])));
            }
        }
    }
}

fn octets(mac: &str) -> [u8; 6] {
    let parts: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    parts.try_into().unwrap()
}

#[test]
fn a_guest_is_heard_under_its_own_name_only() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, 0);
        network.attach(vm.clone()).await.unwrap();
        let nic = &vm.nics[0];
        let mut guest = Guest::attach(&nic.tap);
        let (mac, ip, gateway) = (octets(&nic.mac), nic.ipv4, nic.gateway);
        let wrong_mac = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 1];
        // In order: an answer to a false question would come first.
        let answer = guest.asked_until_answered(&mut |guest| {
            guest.ask(wrong_mac, ip, gateway);
            guest.ask(mac, Ipv4Addr::new(10, 77, 0, 99), gateway);
            guest.ask(mac, ip, gateway);
        });
        assert_eq!(answer, Some((mac, ip)), "{}", run("nft", &["list", "ruleset"]));
        // In use by a VMM, it is verified and kept.
        network.attach(vm.clone()).await.unwrap();
        let answer = guest.asked_until_answered(&mut |guest| guest.ask(mac, ip, gateway));
        assert_eq!(answer, Some((mac, ip)));
        network.detach(vm.vm_id, vm.nics.clone()).await.unwrap();
        network.teardown().await.unwrap();
        assert_eq!(links(), Vec::<String>::new());
    });
}

/// A watch that runs beside a test, and what it mended and could not.
struct Watched {
    told: Arc<Mutex<Repair>>,
    _task: AbortOnDropHandle<()>,
}

impl Watched {
    fn start(network: &NetworkHandle) -> Self {
        let (told, network) = (Arc::<Mutex<Repair>>::default(), network.clone());
        let tell = Arc::clone(&told);
        let task = tokio::spawn(async move {
            let note = |outcome: &Result<Repair, NetworkError>| {
                let repair = outcome.as_ref().unwrap();
                let mut told = tell.lock().unwrap();
                told.mended.extend(repair.mended.iter().cloned());
                told.left.clone_from(&repair.left);
            };
            watch(&network, note).await.unwrap();
        });
        Self { told, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until rules are so again, and something of it is told.
    async fn mended(&self, what: &str, so: impl FnMut() -> bool) {
        until(what, so).await;
        until(&format!("{what} is told"), || !self.told.lock().unwrap().mended.is_empty()).await;
        self.told.lock().unwrap().mended.clear();
    }

    /// Waits until it has mended this, and forgets it.
    async fn mended_link(&self, wrong: Wrong, of: &str) {
        let is = |finding: &Finding| finding.wrong == wrong && finding.of == of;
        until(&format!("{wrong:?} of {of}"), || self.told.lock().unwrap().mended.iter().any(is)).await;
        self.told.lock().unwrap().mended.clear();
    }
}

#[test]
fn rules_of_many_networks_are_laid_once_though_the_kernel_tells_more_of_it_than_is_read() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = |number: u8| NetworkDef {
            subnet: format!("10.{number}.0.0/20").parse().unwrap(),
            ipv6: Some(format!("fd00:{number}::/64").parse().unwrap()),
            ..NetworkDef::named(if number == 77 {
                default_network()
            } else {
                Token::new(&format!("net{number}")).unwrap()
            })
        };
        let config =
            NetworkConfig { installation, networks: (62..=77).map(def).collect(), nft: PathBuf::from("nft") };
        let network = NetworkHandle::spawn(config, None).await.unwrap();
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, 0);
        network.attach(vm.clone()).await.unwrap();
        let watched = Watched::start(&network);
        let there = || run("nft", &["list", "ruleset"]).contains(&vm.nics[0].mac);
        until("it watches", || watched.told.lock().unwrap().left.is_empty() && there()).await;
        run("nft", &["flush", "ruleset"]);
        watched.mended("the rules", there).await;
        // What comes next is mended alone: what is told of the rules that were just laid is no reason to lay them again.
        run("ip", &["link", "set", "dev", &vm.nics[0].tap, "nomaster"]);
        let loose = |finding: &Finding| finding.wrong == Wrong::PortLoose;
        until("the TAP is back", || watched.told.lock().unwrap().mended.iter().any(loose)).await;
        let mended = watched.told.lock().unwrap().mended.clone();
        assert!(mended.iter().all(|finding| finding.wrong != Wrong::RulesTouched), "{mended:?}");
        drop(watched);
        network.detach(vm.vm_id, vm.nics).await.unwrap();
        network.teardown().await.unwrap();
    });
}

/// Looks until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A guest that is heard under its own name, and under no other.
struct Speaker {
    guest: Guest,
    nic: NicLease,
}

impl Speaker {
    fn attach(vm: &VmNet) -> Self {
        let nic = vm.nics[0].clone();
        Self { guest: Guest::attach(&nic.tap), nic }
    }

    /// Asks under false names first: an answer to one of those would come first.
    fn is_heard_as_itself_only(&mut self) {
        let (mac, ip, gateway) = (octets(&self.nic.mac), self.nic.ipv4, self.nic.gateway);
        let wrong_mac = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 1];
        let answer = self.guest.asked_until_answered(&mut |guest| {
            guest.ask(wrong_mac, ip, gateway);
            guest.ask(mac, Ipv4Addr::new(10, 77, 0, 99), gateway);
            guest.ask(mac, ip, gateway);
        });
        assert_eq!(answer, Some((mac, ip)), "{}", run("nft", &["list", "ruleset"]));
    }
}

#[test]
fn whatever_others_take_away_comes_back_and_no_guest_speaks_for_another() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let vms = [vm(installation, 0), vm(installation, 1)];
        for vm in &vms {
            network.attach(vm.clone()).await.unwrap();
        }
        let mut speakers = vms.each_ref().map(Speaker::attach);
        let mut heard = || speakers.iter_mut().for_each(Speaker::is_heard_as_itself_only);
        let watched = Watched::start(&network);
        heard();
        let (table, bridge) = (names::table(installation), names::bridge(installation, &default_network()));
        let (tap, mac) = (vms[0].nics[0].tap.as_str(), vms[0].nics[0].mac.as_str());

        let rules = || Command::new("nft").args(["list", "table", "bridge", &table]).output().unwrap();
        let listed = || String::from_utf8(rules().stdout).unwrap();
        let link = |name: &str| run("ip", &["-j", "-d", "address", "show", "dev", name]);
        run("nft", &["flush", "ruleset"]);
        watched.mended("the tables are back", || rules().status.success()).await;
        heard();
        let set = || run("nft", &["list", "set", "bridge", &table, "vm_mac"]);
        run("nft", &["delete", "element", "bridge", &table, "vm_mac", &format!("{{ {tap} . {mac} }}")]);
        watched.mended("an element is back", || set().contains(mac)).await;
        heard();
        let foreign = format!("{{ {tap} . {mac} . 10.77.0.99 }}");
        run("nft", &["add", "element", "bridge", &table, "vm_src", &foreign]);
        watched.mended("a foreign element is gone", || !listed().contains("10.77.0.99")).await;
        heard();
        run("nft", &["flush", "chain", "bridge", &table, "from_vm"]);
        watched.mended("a chain is filled", || listed().contains("@vm_src accept")).await;
        heard();
        run("ip", &["address", "flush", "dev", &bridge]);
        watched.mended_link(Wrong::AddressGone, "default").await;
        heard();
        run("ip", &["link", "set", "dev", tap, "nomaster"]);
        watched.mended_link(Wrong::PortLoose, tap).await;
        heard();
        run("ip", &["link", "set", "dev", tap, "down"]);
        watched.mended_link(Wrong::PortDown, tap).await;
        heard();
        run("bridge", &["link", "set", "dev", tap, "isolated", "off"]);
        watched.mended_link(Wrong::PortIsolation, tap).await;
        assert!(link(tap).contains("\"isolated\":true"));
        run("ip", &["link", "set", "dev", &bridge, "down"]);
        watched.mended_link(Wrong::BridgeDown, "default").await;
        heard();
        let mac_of = || {
            let shown: serde_json::Value = serde_json::from_str(&link(&bridge)).unwrap();
            shown[0]["address"].clone()
        };
        let before = mac_of();
        run("ip", &["link", "del", "dev", &bridge]);
        watched.mended_link(Wrong::BridgeGone, "default").await;
        assert_eq!(mac_of(), before, "guests know their gateway by it");
        heard();

        // What the host does itself is no surprise, and what is another's is not ours.
        run("nft", &["add", "table", "inet", "others"]);
        network.attach(vm(installation, 5)).await.unwrap();
        network.detach(vms[1].vm_id, vms[1].nics.clone()).await.unwrap();
        // A TAP that is gone cannot be given back to the VMM that held it.
        run("ip", &["link", "del", "dev", tap]);
        until("the loss of a TAP is told", || !watched.told.lock().unwrap().left.is_empty()).await;
        let told = watched.told.lock().unwrap().clone();
        assert_eq!(told.left, [Finding::of_vm(Wrong::TapGone, tap, vms[0].vm_id)]);
        assert_eq!(told.mended, [], "the host took its own changes for those of others");
        run("nft", &["list", "table", "inet", "others"]);
    });
}

#[test]
fn a_start_finds_the_guests_that_run_and_lays_their_rules_in_one_go() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let vms = [vm(installation, 0), vm(installation, 1), vm(installation, 2)];
        let first = network(installation).await;
        first.restore(Vec::new()).await.unwrap();
        for vm in &vms[..2] {
            first.attach(vm.clone()).await.unwrap();
        }
        let mut speakers = [Speaker::attach(&vms[0]), Speaker::attach(&vms[1])];
        // The daemon dies, and its rules are flushed meanwhile.
        first.actor().stop(None);
        run("nft", &["flush", "ruleset"]);
        run("ip", &["link", "set", "dev", &vms[0].nics[0].tap, "nomaster"]);

        let second = network(installation).await;
        // The third ran when the daemon died, but its TAP is gone; a fourth never had any.
        let before = |vm: &VmNet, ran| Before { net: vm.clone(), ran };
        let rows = vec![
            before(&vms[0], true),
            before(&vms[1], false),
            before(&vms[2], true),
            before(&vm(installation, 3), false),
        ];
        let repair = second.restore(rows).await.unwrap();
        speakers.iter_mut().for_each(Speaker::is_heard_as_itself_only);
        let wrong: HashSet<Wrong> = repair.mended.iter().map(|finding| finding.wrong).collect();
        assert_eq!(wrong, HashSet::from([Wrong::RulesGone, Wrong::PortLoose]), "{repair:?}");
        assert_eq!(repair.left, [Finding::of_vm(Wrong::TapGone, &vms[2].nics[0].tap, vms[2].vm_id)]);
        let again = second.mend(Why::Look).await.unwrap();
        assert_eq!((again.mended.len(), again.left.len()), (0, 1), "{again:?}");
        // Its VM ends: nothing is wrong any more.
        second.detach(vms[2].vm_id, vms[2].nics.clone()).await.unwrap();
        assert_eq!(second.mend(Why::Look).await.unwrap(), Repair::default());
    });
}

#[test]
fn a_guest_without_rules_of_its_own_is_not_heard_at_all() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let (lost, other) = (vm(installation, 0), vm(installation, 1));
        for vm in [&lost, &other] {
            network.attach(vm.clone()).await.unwrap();
        }
        let (mut silent, mut speaker) = (Speaker::attach(&lost), Speaker::attach(&other));
        silent.is_heard_as_itself_only();
        // Nobody of a journal any more: a start lays no rules for it.
        network.actor().stop(None);
        run("nft", &["flush", "ruleset"]);
        let network = self::network(installation).await;
        network.restore(vec![Before { net: other, ran: true }]).await.unwrap();
        let (mac, ip, gateway) = (octets(&silent.nic.mac), silent.nic.ipv4, silent.nic.gateway);
        silent.guest.ask(mac, ip, gateway);
        speaker.is_heard_as_itself_only();
        assert_eq!(silent.guest.answer(), None);
    });
}

#[test]
fn a_network_whose_rules_are_gone_and_refused_is_closed_until_they_are_laid() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().unwrap();
        let nft = folder.path().join("nft");
        let script = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(&new, &nft).unwrap();
        };
        script("exec nft \"$@\"");
        let installation = InstallationId::generate();
        let networks = vec![NetworkDef::named(default_network())];
        let config = NetworkConfig { installation, networks, nft: nft.clone() };
        let network = NetworkHandle::spawn(config, None).await.unwrap();
        network.restore(Vec::new()).await.unwrap();
        let vm = vm(installation, 0);
        network.attach(vm.clone()).await.unwrap();
        let mut speaker = Speaker::attach(&vm);
        speaker.is_heard_as_itself_only();

        script("echo no room >&2; exit 1");
        let bridge = names::bridge(installation, &default_network());
        let up = || {
            let shown: serde_json::Value =
                serde_json::from_str(&run("ip", &["-j", "link", "show", &bridge])).unwrap();
            shown[0]["flags"].as_array().unwrap().contains(&"UP".into())
        };
        // Nobody says that rules are missing: nothing is done to the guests.
        network.mend(Why::Look).await.unwrap_err();
        assert!(up());
        run("nft", &["flush", "ruleset"]);
        network.mend(Why::Touched).await.unwrap_err();
        assert!(!up(), "a guest could speak freely");
        script("exec nft \"$@\"");
        let repair = network.mend(Why::Look).await.unwrap();
        let wrong: Vec<Wrong> = repair.mended.iter().map(|finding| finding.wrong).collect();
        assert_eq!(wrong, [Wrong::RulesGone, Wrong::BridgeDown]);
        speaker.is_heard_as_itself_only();
    });
}

#[test]
fn a_vm_starts_right_after_the_rules_were_flushed() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let network = network(installation).await;
        network.restore(Vec::new()).await.unwrap();
        let (old, new) = (vm(installation, 0), vm(installation, 1));
        network.attach(old.clone()).await.unwrap();
        run("nft", &["flush", "ruleset"]);
        // Nobody has seen it yet.
        network.attach(new.clone()).await.unwrap();
        for vm in [&old, &new] {
            Speaker::attach(vm).is_heard_as_itself_only();
        }
    });
}
