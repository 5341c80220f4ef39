//! A bridge takes 1,023 interfaces: what is beyond is told so and leaves nothing, against the real kernel.
//!
//! Needs root, `/dev/net/tun` and `nft`; skips with the reason otherwise. The test works in a network namespace of its own,
//! which ends with it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests too

mod common;

use common::{in_namespace, run};

use std::net::Ipv4Addr;
use std::path::PathBuf;

use drover_actors::network::link::LinkError;
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
    let links = run("ip", &["-br", "link"]).lines().filter(|line| line.starts_with("dr")).count();
    let rules = run("nft", &["list", "set", "bridge", table, "vm_if"]).matches("\"dr").count();
    // One is the bridge.
    (links.saturating_sub(1), rules)
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
fn a_bridge_that_is_full_says_so_and_keeps_those_it_has() {
    in_namespace(|| async {
        let installation = InstallationId::generate();
        let def = NetworkDef::named(Token::new("default").unwrap());
        let config = NetworkConfig { installation, networks: vec![def.clone()], nft: PathBuf::from("nft") };
        let network = NetworkHandle::spawn(config, None).await.unwrap();
        network.restore(Vec::new()).await.unwrap();
        let table = names::table(installation);

        let vms: Vec<VmNet> = (0..ASKED).map(|number| vm(installation, number, &def)).collect();
        // In parts, as the host starts VMs.
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for part in vms.chunks(64) {
            let outcomes = join_all(part.iter().map(|vm| network.attach(vm.clone()))).await;
            for (vm, outcome) in part.iter().zip(outcomes) {
                match outcome {
                    Ok(_) => taken.push(vm),
                    Err(NetworkError::Link(error @ LinkError::Full { .. })) => {
                        assert!(error.to_string().contains("1,023"), "{error}");
                        refused.push(vm);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((taken.len(), refused.len()), (PORTS, usize::from(ASKED) - PORTS));
        assert_eq!(present(&table), (PORTS, PORTS), "what was refused left nothing");

        // One goes, and one of them can come.
        network.detach(taken[0].vm_id, taken[0].nics.clone()).await.unwrap();
        network.attach(refused[0].clone()).await.unwrap();
        network.attach(refused[1].clone()).await.unwrap_err();
        assert_eq!(present(&table), (PORTS, PORTS));

        let all = taken.iter().chain(&refused);
        join_all(all.map(|vm| network.detach(vm.vm_id, vm.nics.clone()))).await;
        assert_eq!(present(&table), (0, 0));
        network.teardown().await.unwrap();
    });
}
