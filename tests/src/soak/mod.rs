//! Random work on random VMs while the daemon is killed, and a model of what must come of it.
//!
//! Each worker has names of its own and does one thing at a time, as a client that repeats a request with
//! its id until it hears the outcome. So the model of a name is exact: what was answered has happened, once,
//! and nothing else has.

mod model;
mod worker;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::wait::{pass, until};
use crate::world::World;
use crate::{events, leak};
pub use model::{Model, Op};
use worker::Worker;
pub(crate) use worker::list;

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Same seed, same choices; when they meet a kill is the machine's affair.
    pub seed: u64,
    /// How long work and kills go on.
    pub time: Duration,
    /// At most so many kills.
    pub kills: u64,
    /// How many do something at once.
    pub workers: usize,
    /// How many names each has.
    pub names: usize,
    /// The longest life of a daemon.
    pub longest_life: Duration,
}

/// What a run was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Daemons that were killed.
    pub kills: u64,
    /// Operations that were answered.
    pub operations: usize,
    /// VMs that were made.
    pub vms: usize,
    /// Events in the log.
    pub events: usize,
}

/// Works and kills, then compares model, bus, journal, processes and the log of events.
///
/// # Panics
/// They differ.
pub async fn run(world: &mut World, plan: &Plan) -> Tally {
    let over = Rc::new(Cell::new(false));
    let tasks: Vec<_> = (0..plan.workers)
        .map(|number| {
            let mut worker = Worker::new(world.bus.clone(), plan, number);
            let over = Rc::clone(&over);
            tokio::task::spawn_local(async move {
                while !over.get() {
                    worker.step().await;
                }
                worker
            })
        })
        .collect();
    let kills = kill(world, plan, || tasks.iter().any(tokio::task::JoinHandle::is_finished)).await;
    over.set(true);
    let workers: Vec<Worker> =
        join_all(tasks).await.into_iter().map(|done| done.expect("a worker")).collect();
    let mut tally = Tally { kills, operations: 0, vms: 0, events: 0 };
    for worker in &workers {
        tally.operations += worker.operations;
        tally.vms += worker.made.len();
    }
    compare(world, &workers, &mut tally).await;
    tally
}

/// Kills the daemon at random instants until the time is over or a worker has failed; leaves it ready.
async fn kill(world: &mut World, plan: &Plan, failed: impl Fn() -> bool) -> u64 {
    let mut random = StdRng::seed_from_u64(plan.seed ^ 0x6b69_6c6c);
    let until = Instant::now() + plan.time;
    let mut kills = 0;
    while Instant::now() < until && kills < plan.kills && !failed() {
        // Often in the start itself, where half-done things are finished; sometimes after a while of work.
        let longest = u64::try_from(plan.longest_life.as_millis()).expect("short");
        let life = match random.random_range(0..4) {
            0 => random.random_range(1..60),
            1 => random.random_range(60..400),
            _ => random.random_range(400..=longest.max(401)),
        };
        pass(Duration::from_millis(life)).await;
        world.kill().await;
        kills += 1;
        world.start();
    }
    world.ready().await;
    kills
}

async fn compare(world: &World, workers: &[Worker], tally: &mut Tally) {
    let bus = world.bus.clone();
    let mut expected = Vec::new();
    for worker in workers {
        worker.check_guests().await;
        for (name, model) in &worker.models {
            let Some(state) = model.state() else { continue };
            let vm = bus.until(name, &format!("{state}"), |vm| vm.state == state).await;
            assert_eq!(Some(vm.vm_id), model.vm_id(), "{name} is another VM");
            let vmms = world.vmms(vm.vm_id).len();
            assert_eq!(vmms, usize::from(model.has_process()), "VMMs of {name}, which is {state}");
            expected.push(vm);
        }
    }
    let listed = worker::list(&bus).await;
    let names = |vms: &[drover_schemas::body::status::VmStatus]| {
        let mut names: Vec<String> = vms.iter().map(|vm| format!("{} {}", vm.name, vm.vm_id)).collect();
        names.sort();
        names
    };
    assert_eq!(names(&listed), names(&expected), "the list and the model");
    let host = until("the journal", async || bus.host().await.ok()).await;
    assert_eq!(host.capacity.vms as usize, expected.len(), "VMs in the journal");

    let logs = events::log(&bus).await;
    tally.events = logs.values().map(Vec::len).sum();
    let here: Vec<_> = expected.iter().map(|vm| vm.vm_id).collect();
    for vm in workers.iter().flat_map(|worker| &worker.made) {
        let last = logs.get(&vm.vm_id).and_then(|log| log.last());
        let last = last.unwrap_or_else(|| panic!("{} {} has no events", vm.name, vm.vm_id));
        assert_eq!(
            last.last,
            !here.contains(&vm.vm_id),
            "the log of {} {} ends in {last:?}",
            vm.name,
            vm.vm_id
        );
        if last.last {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new(), "{} {}", vm.name, vm.vm_id);
        }
    }
    assert_eq!(logs.len(), tally.vms, "VMs in the log and VMs made");

    for vm in &expected {
        bus.insist_on_delete(vm.name.as_str()).await;
        assert_eq!(leak::anything(world, vm), Vec::<String>::new(), "{} {}", vm.name, vm.vm_id);
    }
    assert_eq!(leak::all_processes(world.run_dir()), Vec::new());
    let host = until("the host", async || bus.host().await.ok()).await;
    let capacity = &host.capacity;
    assert_eq!((capacity.vms, capacity.cpus_used, capacity.memory_used_bytes), (0, 0, 0));
}
