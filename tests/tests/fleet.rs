//! Several hosts on one bus: where a VM goes, what a retry finds on another host, and what becomes of a host that is
//! silent, gone, or back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use drover_schemas::body::host::{ForgetReply, HostsReply, OrphansReply};
use drover_schemas::body::vm::{ChangeReply, ListReply, LookupReply};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId, VmId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::events;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use futures_util::future::join_all;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Hosts that each take `fits` small VMs.
async fn small_hosts(world: &mut World, fits: &[u64]) {
    world.start_nats().await;
    for (host, fits) in world.hosts.iter_mut().zip(fits) {
        let mut config = host.config();
        // Each takes 64 MiB and as much for its VMM.
        config["capacity"]["memory"] = json!(format!("{}MiB", fits * 128 + 64));
        config["capacity"]["memory_reserve"] = json!("0MiB");
        config["labels"] = json!({"zone": host.name});
        host.configure(&config);
        host.start();
    }
    world.ready().await;
    sees_all(world).await;
}

/// Waits until every host knows of every other.
async fn sees_all(world: &World) {
    for host in world.hosts.iter().filter(|host| host.daemon_id().is_some()) {
        let subject = format!("drover.v1.host.{}.list", host.name);
        until("all hosts are seen", async || {
            let reply: HostsReply = world.bus.look(&subject, &json!({})).await.ok()?;
            let ready = |entry: &&_| {
                let entry: &drover_schemas::body::host::HostEntry = entry;
                entry.online && entry.record.as_ref().is_some_and(|record| record.accepting)
            };
            (reply.hosts.iter().filter(ready).count() == world.hosts.len()).then_some(())
        })
        .await;
    }
}

fn small() -> Value {
    json!({"spec": {"memory": "64MiB"}, "wait": "running"})
}

fn small_on(host: &str) -> Value {
    json!({"spec": {"memory": "64MiB", "placement": {"labels": {"zone": host}}}, "wait": "running"})
}

/// How many VMMs a VM has, on all hosts together: they are found by the VM's mark.
fn vmms(world: &World, vm_id: VmId) -> usize {
    world.hosts[0].vmms(vm_id).len()
}

async fn lookup(bus: &Bus, name: &str) -> LookupReply {
    bus.ask("vm.lookup", &json!({"name": name})).get().await.unwrap()
}

async fn list(bus: &Bus, body: Value) -> ListReply {
    bus.ask("vm.list", &body).get().await.unwrap()
}

#[test]
fn vms_spread_by_capacity_until_nothing_fits_and_the_refusal_says_why() {
    let test = "vms_spread_by_capacity_until_nothing_fits_and_the_refusal_says_why";
    run(test, Options { started: false, ..Options::fleet(3) }, async |world| {
        small_hosts(world, &[1, 2, 3]).await;
        let bus = world.bus.clone();
        let made = join_all((0..6).map(|n| {
            let bus = bus.clone();
            async move { bus.create(&format!("n{n}"), small()).await }
        }))
        .await;
        let mut on = BTreeMap::<String, usize>::new();
        for reply in made {
            let vm = reply.unwrap().vm;
            *on.entry(vm.host.to_string()).or_default() += 1;
            assert_eq!(vmms(world, vm.vm_id), 1);
        }
        assert_eq!(on, [("h1".into(), 1), ("h2".into(), 2), ("h3".into(), 3)].into(), "each to its limit");
        let error = refused("one too many", ErrorCode::ResourceExhausted, bus.create("n6", small()).await);
        for host in ["h1", "h2", "h3"] {
            // By its row, or by its own word where that is newer.
            let said = |how: &str| error.details["hosts"].contains(&format!("{host}: {how}"));
            assert!(said("has ") || said("the host has "), "{error:?}");
        }
        assert!(matches!(lookup(&bus, "n6").await, LookupReply::NotFound {}), "the name is free");
        // The list is that of the whole fleet, whoever answers, in pages.
        let names: Vec<String> = (0..6).map(|n| format!("n{n}")).collect();
        for _ in 0..6 {
            let page = until("all are told of", async || {
                let page = list(&bus, json!({})).await;
                (page.vms.len() == 6).then_some(page)
            })
            .await;
            assert!(page.vms.iter().map(|vm| vm.name.to_string()).eq(names.iter().cloned()));
            assert!(page.next_cursor.is_none() && page.hosts_not_seen.is_empty(), "{page:?}");
        }
        let first = list(&bus, json!({"limit": 4})).await;
        let cursor = first.next_cursor.clone().unwrap();
        assert_eq!((first.vms.len(), cursor.as_str()), (4, "n3"));
        let rest = list(&bus, json!({"limit": 4, "cursor": cursor})).await;
        assert_eq!((rest.vms.len(), rest.next_cursor), (2, None));
        // What is given back is taken again.
        bus.change("n0", "delete").await.unwrap();
        until("room again", async || bus.create("n7", small()).await.ok()).await;
        events::log_of(&bus, &["h1", "h2", "h3"]).await;
    });
}

#[test]
fn a_vm_goes_where_its_placement_allows() {
    let test = "a_vm_goes_where_its_placement_allows";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        small_hosts(world, &[4, 6]).await;
        let bus = world.bus.clone();
        for (n, host) in ["h1", "h2", "h1", "h2"].iter().enumerate() {
            let vm = bus.create(&format!("n{n}"), small_on(host)).await.unwrap().vm;
            assert_eq!(vm.host.as_str(), *host);
        }
        let by_name = json!({"spec": {"memory": "64MiB", "placement": {"host": "h2"}}, "wait": "running"});
        assert_eq!(bus.create("named", by_name).await.unwrap().vm.host.as_str(), "h2");
        for (what, placement) in [
            ("zone", json!({"labels": {"zone": "h9"}})),
            ("host h9", json!({"host": "h9"})),
            ("vmm.quantum", json!({"features": ["vmm.quantum"]})),
        ] {
            let body = json!({"spec": {"memory": "64MiB", "placement": placement}});
            let error = refused(what, ErrorCode::ResourceExhausted, bus.create("nowhere", body).await);
            assert!(
                error.details["hosts"].contains("h1: ") && error.details["hosts"].contains(what),
                "{error:?}"
            );
        }
        // Features and versions are in the inventory; a drained host gets nothing and is not asked.
        let listed = world.drover(&["host", "drain", "h1"]).await;
        assert!(listed.status.success());
        let hosts = until("the drain is known", async || {
            let reply: HostsReply = bus.ask("drover.v1.host.h2.list", &json!({})).get().await.unwrap();
            let drained = |entry: &drover_schemas::body::host::HostEntry| {
                entry.record.as_ref().is_some_and(|record| record.phase == "draining")
            };
            reply.hosts.iter().any(drained).then_some(reply.hosts)
        })
        .await;
        for entry in &hosts {
            let record = entry.record.as_ref().unwrap();
            assert!(record.features.iter().any(|f| f == "create.placed") && !record.version.is_empty());
        }
        for n in 0..2 {
            let vm = bus.create(&format!("after{n}"), small()).await.unwrap().vm;
            assert_eq!(vm.host.as_str(), "h2", "h1 is drained");
        }
        let shown = world.drover(&["host", "ls"]).await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("draining") && shown.contains("zone=h2"), "{shown}");
    });
}

#[test]
fn a_retry_finds_its_outcome_whichever_host_it_meets() {
    let test = "a_retry_finds_its_outcome_whichever_host_it_meets";
    run(test, Options::fleet(3), async |world| {
        sees_all(world).await;
        let bus = world.bus.clone();
        // Copies of one request at all hosts at once, again and again.
        for n in 0..4 {
            let (name, id) = (format!("n{n}"), RequestId::generate());
            let copies = join_all((0..6).map(|_| {
                let (bus, name) = (bus.clone(), name.clone());
                async move {
                    bus.insist::<ChangeReply>("vm.create", &json!({"name": name, "wait": "running"}), id)
                        .await
                }
            }))
            .await;
            let first = copies[0].as_ref().unwrap().clone();
            assert!(copies.iter().all(|copy| copy.as_ref().unwrap() == &first));
            assert_eq!(vmms(world, first.vm.vm_id), 1);
            for _ in 0..6 {
                let again = bus.create_as(id, &name, json!({"wait": "running"})).await.unwrap();
                assert_eq!(again, first, "the same reply from wherever it comes");
                refused("another id", ErrorCode::AlreadyExists, bus.create(&name, json!({})).await);
                let other = bus.create_as(id, &name, json!({"wait": "agent"})).await;
                refused("another body", ErrorCode::Conflict, other);
            }
            // Deleted, the create still has its first reply, and a request for the VM that was is not for the next.
            let stale = RequestId::generate();
            bus.change(&name, "delete").await.unwrap();
            for _ in 0..4 {
                let again = bus.create_as(id, &name, json!({"wait": "running"})).await.unwrap();
                assert_eq!(again, first, "also when it is gone");
            }
            let next = bus.create(&name, json!({"wait": "running"})).await.unwrap().vm;
            assert_ne!(next.vm_id, first.vm.vm_id);
            let late = bus
                .ask(&format!("vm.{name}.stop"), &json!({"force": true}))
                .id(stale)
                .get::<ChangeReply>()
                .await;
            let error = refused("a stop of the VM before", ErrorCode::Conflict, late);
            assert_eq!(error.details["cause"], "name_reused");
            assert_eq!(bus.status(&name).await.unwrap().state, VmState::Running);
        }
        events::log_of(&bus, &["h1", "h2", "h3"]).await;
    });
}

#[test]
fn a_chosen_host_that_refuses_is_followed_by_the_next() {
    let test = "a_chosen_host_that_refuses_is_followed_by_the_next";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        small_hosts(world, &[8, 2]).await;
        let bus = world.bus.clone();
        // A row that promises more than the host has: placers believe it until the host speaks for itself.
        let js = async_nats::jetstream::new(bus.nats.clone());
        let hosts = js.get_key_value("DROVER_HOSTS").await.unwrap();
        let mut on = BTreeSet::new();
        for n in 0..10 {
            let row = hosts.get("h2").await.unwrap().unwrap();
            let mut row: Value = drover_schemas::codec::decode(&row).unwrap();
            row["capacity"]["memory_bytes"] = json!(1_u64 << 40);
            row["capacity"]["memory_used_bytes"] = json!(0);
            hosts.put("h2", drover_schemas::codec::encode(&row).unwrap().into()).await.unwrap();
            let vm = bus.create(&format!("n{n}"), small()).await.unwrap().vm;
            assert_eq!(vmms(world, vm.vm_id), 1);
            on.insert(vm.host.to_string());
        }
        assert_eq!(on.len(), 2);
        assert_eq!(bus.host_info("h2").await.unwrap().capacity.memory_used_bytes, 2 * 128 * MIB);
        events::log_of(&bus, &["h1", "h2"]).await;
    });
}

#[test]
fn a_chosen_host_that_hangs_is_taken_over_and_makes_no_second_vm_when_it_comes_back() {
    let test = "a_chosen_host_that_hangs_is_taken_over_and_makes_no_second_vm_when_it_comes_back";
    run(test, Options { started: false, ..Options::fleet(3) }, async |world| {
        small_hosts(world, &[1, 40, 1]).await;
        let bus = world.bus.clone();
        // By far the most room is on h2, which does nothing.
        world.host("h2").freeze();
        let id = RequestId::generate();
        let body = json!({"name": "web", "spec": {"memory": "64MiB"}, "wait": "running"});
        // Copies that wait for it at the others take it over in the same moment, and one of them works.
        let copies = join_all((0..8).map(|_| bus.insist::<ChangeReply>("vm.create", &body, id))).await;
        let reply = copies[0].as_ref().unwrap().clone();
        for copy in copies {
            assert_eq!(copy.unwrap(), reply);
        }
        assert_ne!(reply.vm.host.as_str(), "h2");
        // Another name, whose first placer is the one that hangs, is given up and had by another request.
        let lost = bus
            .ask("vm.create", &json!({"name": "other", "spec": {"memory": "64MiB"}}))
            .within(Duration::from_secs(1));
        let _ = lost.id(RequestId::generate()).get::<ChangeReply>().await;
        world.host("h2").thaw();
        until("h2 answers", async || bus.host_info("h2").await.ok()).await;
        for _ in 0..6 {
            let again: ChangeReply = bus.insist("vm.create", &body, id).await.unwrap();
            assert_eq!(again.vm.vm_id, reply.vm.vm_id);
        }
        let told = async || bus.host_info("h2").await.ok().filter(|host| host.outbox == 0);
        until("h2 has told all", told).await;
        assert_eq!(vmms(world, reply.vm.vm_id), 1, "no double");
        let page = list(&bus, json!({})).await;
        assert_eq!(page.vms.iter().filter(|vm| vm.name.as_str() == "web").count(), 1);
        assert_eq!(bus.status("web").await.unwrap().vm_id, reply.vm.vm_id);
        events::log_of(&bus, &["h1", "h2", "h3"]).await;
    });
}

#[test]
fn a_create_that_its_placer_left_behind_is_taken_over_by_another_request() {
    let test = "a_create_that_its_placer_left_behind_is_taken_over_by_another_request";
    run(test, Options::fleet(2), async |world| {
        sees_all(world).await;
        let bus = world.bus.clone();
        // A claim whose placer died before it could say so, and whose host knows nothing of it.
        let js = async_nats::jetstream::new(bus.nats.clone());
        let claims = js.get_key_value("DROVER_VMS").await.unwrap();
        let claim = |deadline: u64| {
            json!({"vm_id": VmId::generate(), "request_id": RequestId::generate(), "body_sha256": "00", "host": "h2",
                   "owner_epoch": 1, "phase": "placing", "deadline_unix_ms": deadline})
        };
        let encoded = |claim: &Value| drover_schemas::codec::encode(claim).unwrap().into();
        claims.create("default.fresh", encoded(&claim(1 << 50))).await.unwrap();
        claims.create("default.stuck", encoded(&claim(1))).await.unwrap();
        refused("its time is not over", ErrorCode::AlreadyExists, bus.create("fresh", json!({})).await);
        let vm = bus.create("stuck", json!({"wait": "running"})).await.unwrap().vm;
        assert_eq!(vmms(world, vm.vm_id), 1);
        assert!(matches!(lookup(&bus, "fresh").await, LookupReply::Placing { .. }));
        // Also when its host is gone.
        let mut dead = claim(1);
        dead["host"] = json!("h9");
        claims.create("default.dead", encoded(&dead)).await.unwrap();
        let vm = bus.create("dead", json!({"wait": "running"})).await.unwrap().vm;
        assert_eq!(vmms(world, vm.vm_id), 1);
    });
}

#[test]
fn a_dead_host_is_forgotten_and_answers_for_nothing_when_it_comes_back() {
    let test = "a_dead_host_is_forgotten_and_answers_for_nothing_when_it_comes_back";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        small_hosts(world, &[8, 8]).await;
        let bus = world.bus.clone();
        let old = bus.create("web", small_on("h2")).await.unwrap().vm;
        let rest = bus.create("rest", small_on("h2")).await.unwrap().vm;
        events::log_of(&bus, &["h1", "h2"]).await;
        let alive = bus.ask("drover.v1.host.h1.forget", &json!({"host": "h2"}));
        assert_eq!(alive.refused(ErrorCode::Conflict).await.details["cause"], "alive");
        world.host("h2").kill().await;
        // It is silent only when its lease is over: what is here at the lease's end.
        let js = async_nats::jetstream::new(bus.nats.clone());
        js.get_key_value("DROVER_HOSTS").await.unwrap().purge("h2").await.unwrap();
        let page = until("h2 is not seen", async || {
            let page = list(&bus, json!({})).await;
            (!page.hosts_not_seen.is_empty()).then_some(page)
        })
        .await;
        assert_eq!((page.vms.len(), page.hosts_not_seen[0].host.as_str()), (2, "h2"));
        assert!(page.hosts_not_seen[0].last_seen_unix_ms.is_some());
        let found = lookup(&bus, "web").await;
        let LookupReply::Owned { online, last_seen_unix_ms, .. } = &found else { panic!("{found:?}") };
        assert!(!online && last_seen_unix_ms.is_some(), "{found:?}");
        refused("its name is taken", ErrorCode::AlreadyExists, bus.create("web", small()).await);

        let said = world.drover(&["host", "forget", "h2", "-o", "json"]).await;
        let reply: ForgetReply = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
        assert_eq!(reply.freed, 2);
        assert_eq!(
            reply.vms.iter().map(|vm| vm.vm_id).collect::<BTreeSet<_>>(),
            [old.vm_id, rest.vm_id].into()
        );
        let found = lookup(&bus, "web").await;
        assert!(
            matches!(&found, LookupReply::Gone { vm_id, reply: None, .. } if *vm_id == old.vm_id),
            "{found:?}"
        );
        assert_eq!(list(&bus, json!({})).await.vms, [], "nothing is told of what is forgotten");
        let new = bus.create("web", small()).await.unwrap().vm;
        assert_eq!(new.host.as_str(), "h1");
        assert_ne!(new.vm_id, old.vm_id);

        // It comes back with both VMs alive, and neither is answered for, told of, or ended.
        let h2 = world.host("h2");
        let pids = (h2.vmms(old.vm_id), h2.vmms(rest.vm_id));
        assert_eq!((pids.0.len(), pids.1.len()), (1, 1));
        h2.start();
        world.ready().await;
        let orphans = until("both are in quarantine", async || {
            let reply: OrphansReply = bus.ask("drover.v1.host.h2.orphans", &json!({})).get().await.unwrap();
            let ours: Vec<_> = reply.orphans.into_iter().filter(|o| o.ours && o.reason.is_some()).collect();
            (ours.len() == 2).then_some(ours)
        })
        .await;
        assert!(orphans.iter().all(|orphan| !orphan.pids.is_empty()), "{orphans:?}");
        for _ in 0..20 {
            assert_eq!(bus.status("web").await.unwrap().vm_id, new.vm_id, "only one owner answers");
        }
        let nobody = bus.status("rest").await.unwrap_err();
        assert!(matches!(nobody, Failure::Nobody), "{nobody}");
        let h2 = world.host("h2");
        assert_eq!((h2.vmms(old.vm_id), h2.vmms(rest.vm_id)), pids, "they run on");
        assert!(h2.told().contains("quarantined"), "{}", h2.told());
        let page = list(&bus, json!({})).await;
        assert!(page.vms.iter().map(|vm| vm.vm_id).eq([new.vm_id]), "{page:?}");

        // So it stays over a restart; h2 takes new VMs, and an operator ends the old ones.
        world.host("h2").kill().await;
        world.host("h2").start();
        world.ready().await;
        sees_all(world).await;
        let next = bus.create("rest", small_on("h2")).await.unwrap().vm;
        assert_ne!(next.nics[0].ipv4, rest.nics[0].ipv4, "what they hold is nobody else's");
        for vm_id in [old.vm_id, rest.vm_id] {
            let removed = world.drover(&["host", "orphans", "h2", "--remove", &vm_id.to_string()]).await;
            assert!(removed.status.success(), "{removed:?}");
        }
        for vm in [&old, &rest] {
            assert_eq!(drover_tests::leak::anything(world.host("h2"), vm), Vec::<String>::new());
        }
        let reply: OrphansReply = bus.ask("drover.v1.host.h2.orphans", &json!({})).get().await.unwrap();
        assert!(reply.orphans.iter().all(|orphan| !orphan.ours), "{reply:?}");
        assert_eq!(bus.status("rest").await.unwrap().vm_id, next.vm_id);
    });
}

#[test]
fn a_living_host_that_is_forgotten_by_force_lets_go_at_once() {
    let test = "a_living_host_that_is_forgotten_by_force_lets_go_at_once";
    run(test, Options { started: false, ..Options::fleet(2) }, async |world| {
        small_hosts(world, &[8, 8]).await;
        let bus = world.bus.clone();
        let vm = bus.create("web", small_on("h2")).await.unwrap().vm;
        let said = world.drover(&["host", "forget", "h2", "--force", "-o", "json"]).await;
        let reply: ForgetReply = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
        assert_eq!(reply.freed, 1);
        until("h2 does not answer for it", async || {
            matches!(bus.status("web").await, Err(Failure::Nobody)).then_some(())
        })
        .await;
        assert_eq!(vmms(world, vm.vm_id), 1, "it runs on");
        // The host is one of the fleet as before, with nothing.
        sees_all(world).await;
        let next = bus.create("web", small_on("h2")).await.unwrap().vm;
        assert_ne!(next.vm_id, vm.vm_id);
        assert_eq!(bus.status("web").await.unwrap().vm_id, next.vm_id);
    });
}

#[test]
fn two_hosts_never_share_a_name() {
    run("two_hosts_never_share_a_name", Options::fleet(1), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let twin = world.add_host();
        twin.name = "h1".to_owned();
        twin.configure(&twin.config());
        let refused = twin.host_fails().await;
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("conflict") && said.contains("which is alive"), "{said}");
        assert_eq!(refused.status.code(), Some(4));
        assert_eq!(bus.status("web").await.unwrap().vm_id, vm.vm_id);
        // It started without a bus, and learns it when there is one.
        world.stop_nats().await;
        world.hosts[1].start();
        until("it has begun", async || world.hosts[1].told().contains("ready vms=0").then_some(())).await;
        world.start_nats().await;
        world.hosts[1].gives_up().await;
        assert!(world.hosts[1].told().contains("the name of this host is taken"));
        until_within(Duration::from_secs(30), "h1 works", async || {
            bus.create("next", json!({"wait": "running"})).await.ok()
        })
        .await;
        events::log(&bus).await;
    });
}
