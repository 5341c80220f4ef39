//! Networks whose subnets come out of a pool: another one on each host, kept over daemons, buses and bad luck.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use drover_schemas::body::host::HostsReply;
use drover_tests::client::Bus;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

fn pooled(config: &mut Value) {
    config["networks"] = json!([{"name": "default", "subnet_from": {"pool": "10.96.0.0/22", "prefix": 24}}]);
}

/// The subnets of hosts that were not forgotten, as a host sees them.
async fn subnets(bus: &Bus, asked: &str) -> BTreeMap<String, String> {
    let subject = format!("drover.v1.host.{asked}.list");
    let reply: HostsReply = bus.look(&subject, &json!({})).await.unwrap();
    let of = |entry: drover_schemas::body::host::HostEntry| {
        let claim = entry.claim.filter(|claim| !claim.free)?;
        Some((entry.host.to_string(), claim.subnets.into_values().next()?))
    };
    reply.hosts.into_iter().filter_map(of).collect()
}

async fn all_have_one(world: &World, asked: &str) -> BTreeMap<String, String> {
    until("each host has a subnet", async || {
        let found = subnets(&world.bus, asked).await;
        (found.len() == world.hosts.len()).then_some(found)
    })
    .await
}

/// Removes the link that has addresses of a subnet from the machine.
fn remove_bridge(subnet: &str) {
    let ip = |args: &[&str]| {
        let done = Command::new("ip").args(args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        done.stdout
    };
    let shown: Value = serde_json::from_slice(&ip(&["-j", "route", "show", subnet])).unwrap();
    ip(&["link", "del", "dev", shown[0]["dev"].as_str().unwrap()]);
}

#[test]
fn hosts_take_subnets_of_a_pool_and_never_the_same() {
    let test = "hosts_take_subnets_of_a_pool_and_never_the_same";
    run(test, Options { started: false, ..Options::fleet(3) }, async |world| {
        // A bus that nobody has used yet, and hosts that all begin at once.
        world.start_nats().await;
        for host in &mut world.hosts {
            host.configure_with(pooled);
            host.start();
        }
        world.ready().await;
        let bus = world.bus.clone();
        let first = all_have_one(world, "h1").await;
        let different: BTreeSet<&String> = first.values().collect();
        assert_eq!(different.len(), 3, "{first:?}");
        for host in ["h1", "h2", "h3"] {
            world.host(host).configure_with(|config| {
                pooled(config);
                config["labels"] = json!({"zone": host});
            });
            world.host(host).stop_host().await;
            world.host(host).start();
            world.host(host).ready_on(&bus).await;
            let spec = json!({"placement": {"labels": {"zone": host}}});
            let vm = until("a place for it", async || bus.create(host, json!({"spec": spec})).await.ok());
            let vm = vm.await.vm;
            let network = vm.nics[0].ipv4.rsplit_once('.').unwrap().0;
            assert_eq!(format!("{network}.0/24"), first[host]);
        }
        assert_eq!(all_have_one(world, "h1").await, first, "they keep what they have");

        // Without the bus it starts with what it had.
        world.stop_nats().await;
        world.host("h2").kill().await;
        world.host("h2").start();
        until("the network is made", async || world.host("h2").told().contains("ready vms=1").then_some(()))
            .await;
        world.start_nats().await;
        world.ready().await;
        assert_eq!(all_have_one(world, "h1").await, first);

        // The pool has one more, and then none until a host is forgotten.
        let fourth = world.add_host();
        fourth.configure_with(pooled);
        fourth.start();
        world.ready().await;
        let four = all_have_one(world, "h1").await;
        assert_eq!(four.values().collect::<BTreeSet<_>>().len(), 4, "{four:?}");
        let fifth = world.add_host();
        fifth.configure_with(pooled);
        let failed = fifth.host_fails().await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(
            said.contains("no subnet of /24 is free in 10.96.0.0/22") && said.contains("host forget"),
            "{said}"
        );
        world.host("h4").stop_host().await;
        world.printed(&["host", "forget", "h4"]).await;
        // The hosts of this test share a machine, and what that has addresses of is nobody's.
        remove_bridge(&four["h4"]);
        world.host("h5").start();
        let bus = world.bus.clone();
        world.host("h5").ready_on(&bus).await;
        let now = until("the fifth has one", async || {
            Some(subnets(&bus, "h1").await).filter(|found| found.contains_key("h5"))
        });
        assert_eq!(now.await["h5"], four["h4"]);
        for host in ["h1", "h2", "h3"] {
            bus.change(host, "delete").await.unwrap();
        }
        world.host("h5").stop_host().await;
        world.hosts.retain(|host| !["h4", "h5"].contains(&host.name.as_str()));
    });
}

#[test]
fn a_pool_that_cannot_be_says_what_to_do() {
    run("a_pool_that_cannot_be_says_what_to_do", Options::down(), async |world| {
        world.start_nats().await;
        for (network, says) in [
            (
                json!({"name": "default", "subnet": "10.5.0.0/24", "subnet_from": {"pool": "10.96.0.0/22"}}),
                "prefix",
            ),
            (
                json!({"name": "default", "subnet": "10.5.0.0/24", "subnet_from": {"pool": "10.96.0.0/16"}}),
                "leave one of them out",
            ),
        ] {
            world.configure_with(|config| config["networks"] = json!([network]));
            let failed = world.host_fails().await;
            let said = String::from_utf8_lossy(&failed.stderr).into_owned();
            assert!(!failed.status.success() && said.contains(says), "{said}");
        }
        world.stop_nats().await;
        world.configure_with(pooled);
        let failed = world.host_fails().await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(said.contains("start the host again when it does"), "{said}");
    });
}
