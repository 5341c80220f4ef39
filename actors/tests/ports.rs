//! A bridge takes 1,023 interfaces and a network more: those beyond are under further bridges, against the real kernel.
//!
//! Needs root, `/dev/net/tun` and `nft`; skips with the reason otherwise. The test works in a network namespace of its own,
//! which ends with it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests too

mod common;

use common::{in_namespace, run};

use std::net::Ipv4Addr;
use std::path::PathBuf;

use drover_actors::network::bridges::EACH;
use drover_actors::network::link::LinkError;
use drover_actors::network::mend::Why;
use drover_actors::network::{
    NetworkConfig, NetworkDef, NetworkError, NetworkHandle, NicLease, VmNet, names,
};
use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use futures_util::future::join_all;

/// How many are asked for.
const ASKED: u16 = 1_100;
/// How many a bridge takes.
const PORTS: usize = 1_023;

/// How many TAPs there are, and how many of them the rules know.
fn present(table: &str) -> (usize, usize) {
    let taps = run("ip", &["-br", "link", "show", "type", "tun"]);
    let links = taps.lines().filter(|line| line.starts_with("dr")).count();
    let rules = run("nft", &["list", "set", "bridge", table, "vm_if"]).matches("\"dr").count();
    (links, rules)
}

/// How many interfaces are under a bridge.
fn under(bridge: &str) -> usize {
    run("ip", &["-br", "link", "show", "master", bridge]).lines().count()
}

async fn made() -> (InstallationId, NetworkDef, NetworkHandle) {
    let installation = InstallationId::generate();
    let def = NetworkDef::named(Token::new("default").unwrap());
    let config = NetworkConfig { installation, networks: vec![def.clone()], nft: PathBuf::from("nft") };
    (installation, def, NetworkHandle::spawn(config, None).await.unwrap())
}

fn vm(installation: InstallationId, number: u16, network: &NetworkDef) -> VmNet {
    let vm_id = VmId::generate();
    let [high, low] = (number + 2).to_be_bytes();
    let address = Ipv4Addr::new(10, 77, high, low);
    let nic = NicLease::new(installation, vm_id, 0, network.name.clone(), network.subnet, address);
    let (forwards, egress, limits) = Default::default();
    VmNet { vm_id, called: None, uid: 12_345, nics: vec![nic], forwards, egress, limits, queues: Vec::new() }
}

#[test]
fn a_network_has_more_interfaces_than_a_bridge_takes() {
    in_namespace(|| async {
        let (installation, def, network) = made().await;
        network.restore(Vec::new()).await.unwrap();
        let table = names::table(installation);
        let vms: Vec<VmNet> = (0..ASKED).map(|number| vm(installation, number, &def)).collect();
        // In parts, as the host starts VMs.
        for part in vms.chunks(64) {
            for outcome in join_all(part.iter().map(|vm| network.attach(vm.clone()))).await {
                outcome.unwrap();
            }
        }
        assert_eq!(present(&table), (usize::from(ASKED), usize::from(ASKED)));
        // The first address of a guest has place 2.
        let first = usize::try_from(EACH).unwrap() - 2;
        let bridge = names::bridge(installation, &def.name);
        let [further, _, lower] = names::further(installation, &def.name, 1);
        assert_eq!((under(&bridge), under(&further)), (first + 1, usize::from(ASKED) - first + 1));
        // All of it comes back.
        run("ip", &["link", "del", &lower]);
        run("ip", &["link", "del", &further]);
        let repair = network.mend(Why::Look).await.unwrap();
        assert_eq!(repair.left, []);
        assert_eq!((under(&bridge), under(&further)), (first + 1, usize::from(ASKED) - first + 1));

        join_all(vms.iter().map(|vm| network.detach(vm.vm_id, vm.nics.clone()))).await;
        assert_eq!(present(&table), (0, 0));
        network.teardown().await.unwrap();
        assert!(!run("ip", &["-br", "link"]).contains("dr"));
    });
}

#[test]
fn a_bridge_that_others_have_filled_says_so_and_keeps_what_it_has() {
    in_namespace(|| async {
        let (installation, def, network) = made().await;
        network.restore(Vec::new()).await.unwrap();
        let one = vm(installation, 0, &def);
        network.attach(one.clone()).await.unwrap();
        let bridge = names::bridge(installation, &def.name);
        let fill = |n| format!("tuntap add f{n} mode tap\nlink set f{n} master {bridge}\n");
        let fill: String = (1..PORTS).map(fill).collect();
        let path = std::env::temp_dir().join(format!("drover-ports-{installation}"));
        std::fs::write(&path, fill).unwrap();
        run("ip", &["-batch", path.to_str().unwrap()]);
        std::fs::remove_file(&path).unwrap();

        let refused = network.attach(vm(installation, 1, &def)).await.unwrap_err();
        let NetworkError::Link(error @ LinkError::Full { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("1,023"), "{error}");
        assert_eq!(present(&names::table(installation)), (1, 1), "what was refused left nothing");
        run("ip", &["link", "del", "f1"]);
        network.attach(vm(installation, 1, &def)).await.unwrap();
        assert_eq!(present(&names::table(installation)), (2, 2));
    });
}
