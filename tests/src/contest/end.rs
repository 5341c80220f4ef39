//! What is there when everything is whole again: hosts, journals, claims, processes, guests.

use std::collections::{BTreeMap, BTreeSet};

use drover_schemas::VmId;
use drover_schemas::body::status::VmStatus;
use drover_schemas::codec;
use drover_schemas::state::VmState;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use super::client::lines;
use super::history::{Outcome, Record};
use super::places;
use crate::client::Bus;
use crate::cluster::Cluster;
use crate::events::Logs;
use crate::leak;
use crate::node::Node;
use crate::soak::{self, Op};
use crate::wait::until;

/// What a claim says that must agree with the rest.
#[derive(Debug, Deserialize)]
struct Claim {
    vm_id: VmId,
    host: String,
    owner_epoch: u64,
    phase: String,
}

/// What the journal of a host says of a VM.
#[derive(Debug, Deserialize)]
struct Row {
    vm_id: VmId,
    name: String,
    state: VmState,
    owner_epoch: u64,
}

/// Everything in which they differ, in words.
pub(super) async fn compare(cluster: &mut Cluster, logs: &Logs, records: &[Record]) -> Vec<String> {
    let mut problems = Vec::new();
    let bus = cluster.bus.clone();
    let living = living(logs);
    for (name, (vm_id, state)) in &living {
        let vm = bus.until(name, "answers", |vm| !is_passing(vm.state)).await;
        if (vm.vm_id, vm.state) != (*vm_id, *state) {
            problems.push(format!("{name} is {} {}, its log ends in {state} of {vm_id}", vm.vm_id, vm.state));
        }
        if state == &VmState::Running {
            problems.extend(guest(&bus, name, *vm_id, records).await);
        }
    }
    let mut claims = until("the bucket of claims", async || claims(&bus).await).await;
    claims.retain(|_, claim| claim.phase != "gone");

    for host in &mut cluster.hosts {
        host.stop_host().await;
    }
    for host in &cluster.hosts {
        problems.extend(journal(host, &living, &mut claims).await);
    }
    for (name, claim) in claims {
        problems.push(format!("no journal has {name}, and its claim is {claim:?}"));
    }
    for host in &mut cluster.hosts {
        host.start();
    }
    cluster.quiet().await;
    problems
}

/// The VMs that were not deleted, as their logs leave them.
fn living(logs: &Logs) -> BTreeMap<String, (VmId, VmState)> {
    let last = logs.values().filter_map(|log| log.last()).filter(|event| !event.last);
    last.map(|event| (event.name.to_string(), (event.vm_id, event.state))).collect()
}

const fn is_passing(state: VmState) -> bool {
    matches!(state, VmState::Creating | VmState::Starting | VmState::Stopping | VmState::Deleting)
}

/// A guest has each line whose command was answered in its boot, and none twice.
async fn guest(bus: &Bus, name: &str, vm_id: VmId, records: &[Record]) -> Vec<String> {
    let mut problems = Vec::new();
    let (here, lines) = lines(bus, name, vm_id).await;
    let once: BTreeSet<&String> = lines.iter().collect();
    if once.len() != lines.len() {
        problems.push(format!("{name}: a command ran twice: {lines:?}"));
    }
    for record in records.iter().filter(|record| record.op == Op::Exec && record.name == name) {
        let in_this_boot =
            |outcome: &Outcome| matches!(outcome, Outcome::Ran { boot: Some(boot) } if *boot == here);
        if record.outcomes().any(in_this_boot) && !once.contains(&record.id.to_string()) {
            problems.push(format!("{name}: command {} was answered and did not run", record.id));
        }
    }
    problems
}

/// The claim of every name; `None` while JetStream is away.
async fn claims(bus: &Bus) -> Option<BTreeMap<String, Claim>> {
    let js = async_nats::jetstream::new(bus.nats.clone());
    let bucket = js.get_key_value("DROVER_VMS").await.ok()?;
    let mut keys = bucket.keys().await.ok()?;
    let mut claims = BTreeMap::new();
    while let Some(key) = keys.next().await {
        let key = key.ok()?;
        let Some(value) = bucket.get(&key).await.ok()? else { continue };
        let name = key.strip_prefix("default.").expect("a key of the namespace");
        claims.insert(name.to_owned(), codec::decode(&value).expect("a claim"));
    }
    Some(claims)
}

/// The journal of a host that is stopped: what it has is as the log says, is claimed for this host, with the processes
/// of its state. Takes the claims that are accounted for.
async fn journal(
    host: &Node,
    living: &BTreeMap<String, (VmId, VmState)>,
    claims: &mut BTreeMap<String, Claim>,
) -> Vec<String> {
    let name = &host.name;
    let mut command = Command::new(host.bin("drover"));
    let shown = command.args(["journal", "show", "-o", "json"]).arg(host.state_dir()).output().await;
    let shown = shown.expect("run drover");
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let rows: Vec<Row> = serde_json::from_value(shown["vms"].clone()).expect("rows");
    let mut problems = Vec::new();
    for row in &rows {
        if living.get(&row.name) != Some(&(row.vm_id, row.state)) {
            problems.push(format!("{name} has {row:?}, the log {:?}", living.get(&row.name)));
        }
        if !places::may_be_on(&row.name, name) {
            problems.push(format!("{name} has {row:?} without the label"));
        }
        let claim = claims.remove(&row.name);
        let agrees = claim.as_ref().is_some_and(|claim| {
            (claim.vm_id, claim.owner_epoch) == (row.vm_id, row.owner_epoch)
                && claim.host == *name
                && claim.phase == "owned"
        });
        if !agrees {
            problems.push(format!("{name} has {row:?}, the claim is {claim:?}"));
        }
        let wanted = usize::from(matches!(row.state, VmState::Running | VmState::Paused));
        let vmms = host.vmms(row.vm_id);
        if vmms.len() != wanted {
            problems.push(format!("{name} has the VMMs {vmms:?} of {row:?}"));
        }
    }
    let known: BTreeSet<VmId> = rows.iter().map(|row| row.vm_id).collect();
    let stray = leak::vmms(host.run_dir()).into_iter().filter(|(_, vm)| !known.contains(vm));
    problems.extend(stray.map(|vmm| format!("{name} has no row for the VMM {vmm:?}")));
    // That the host stops is told when it starts again.
    let told = |event: &Value| event["subject"].as_str().is_some_and(|subject| !subject.contains(".vm."));
    let waiting = shown["outbox"]["events"].as_array().expect("events");
    for (part, is_empty) in [
        ("in_flight", shown["in_flight"] == json!([])),
        ("outbox", waiting.iter().all(told)),
        ("unreadable", shown["unreadable"] == json!([])),
    ] {
        if !is_empty {
            problems.push(format!("{name} still has {part}: {}", shown[part]));
        }
    }
    problems
}

/// Deletes what is left, and looks for what of any VM is still there.
///
/// # Panics
/// Something is.
pub(super) async fn clear(cluster: &mut Cluster, logs: &Logs) {
    let bus = cluster.bus.clone();
    let left = living(logs);
    let deletes = left.keys().map(async |name| {
        let vm = bus.until(name, "answers", |_| true).await;
        bus.insist_on_delete(name).await;
        vm
    });
    let made: Vec<VmStatus> = join_all(deletes).await;
    // A host has the VMs of others from the bucket, in which a row goes after the delete was answered.
    until("no VM is listed", async || soak::list(&bus).await.is_empty().then_some(())).await;
    for host in &cluster.hosts {
        let name = &host.name;
        assert_eq!(leak::all_processes(host.run_dir()), Vec::new(), "processes of {name}");
        for vm in logs.keys() {
            assert_eq!(leak::files(host, *vm), Vec::<String>::new(), "{name}");
        }
        for vm in made.iter().filter(|vm| vm.host.as_str() == name) {
            assert_eq!(leak::anything(host, vm), Vec::<String>::new(), "{name}: {}", vm.name);
        }
        let info = until(name, async || bus.host_info(name).await.ok()).await;
        let capacity = &info.capacity;
        assert_eq!((capacity.vms, capacity.cpus_used, capacity.memory_used_bytes), (0, 0, 0), "{name}");
        assert_eq!((capacity.running, capacity.ports_used, capacity.disk_used_bytes), (0, 0, 0), "{name}");
    }
}
