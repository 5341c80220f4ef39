//! Several clients want the same names of three hosts, while links are cut and daemons and servers are killed.
//!
//! A request is repeated with its id, each time over another server, until it is answered. Nobody can say beforehand
//! what comes of requests that meet; but the log of events says what happened, and [`history`] holds every answer
//! against it. At the end journals, claims, processes, guests and the log must agree.

mod client;
mod end;
mod faults;
pub mod history;
mod places;
mod watch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::events;
use crate::soak::Model;
use client::Client;
use faults::Faults;
use history::Record;
pub use watch::Look;
use watch::Watch;

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Same seed, same choices; what they meet is the machine's affair.
    pub seed: u64,
    /// How long work and faults go on.
    pub time: Duration,
    /// How many clients.
    pub clients: usize,
    /// How many names all of them want.
    pub names: usize,
}

/// What a run was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Links that were cut, in one direction or both.
    pub cuts: u64,
    /// Servers of the bus that were killed.
    pub servers: u64,
    /// Daemons that were killed.
    pub daemons: u64,
    /// Daemons that stood still for a while.
    pub frozen: u64,
    /// Requests, each answered.
    pub requests: usize,
    /// Answers to copies and repetitions of them.
    pub repetitions: usize,
    /// Requests that were carried out.
    pub done: usize,
    /// VMs that there were.
    pub vms: usize,
    /// Events in the log.
    pub events: usize,
    /// How often all VMMs were looked at.
    pub looks: usize,
}

/// Works and breaks, then compares everything.
///
/// # Panics
/// Something does not agree.
pub async fn run(cluster: &mut Cluster, plan: &Plan) -> Tally {
    let (over, began) = (Rc::new(Cell::new(false)), Instant::now());
    let names = (0..plan.names).map(|number| (format!("c{number}"), Model::default()));
    let beliefs = Rc::new(RefCell::new(names.collect()));
    let tasks: Vec<_> = (0..plan.clients)
        .map(|number| {
            let seed = plan.seed.wrapping_add(number as u64);
            let mut client = Client::new(&cluster.buses, seed, &beliefs, began);
            let over = Rc::clone(&over);
            tokio::task::spawn_local(async move {
                while !over.get() {
                    client.step().await;
                }
                client
            })
        })
        .collect();
    let watch = Watch::start(&cluster.hosts, &over);
    let mut faults = Faults::new(plan.seed);
    faults.make(cluster, began + plan.time, || tasks.iter().any(tokio::task::JoinHandle::is_finished)).await;
    over.set(true);
    let mut clients: Vec<Client> =
        join_all(tasks).await.into_iter().map(|done| done.expect("a client")).collect();
    cluster.quiet().await;
    for client in &mut clients {
        client.repeat().await;
    }
    let records: Vec<_> = clients.into_iter().flat_map(|client| client.records).collect();
    check(cluster, &records, &watch.end().await, faults.tally).await
}

/// Compares what was answered, and what was seen of VMMs, with everything that is there; then deletes every VM.
///
/// # Panics
/// Something does not agree, or is left.
pub async fn check(cluster: &mut Cluster, records: &[Record], looks: &[Look], tally: Tally) -> Tally {
    cluster.quiet().await;
    let told = events::read(&cluster.bus).await;
    let mut problems = history::judge(records, &told);
    problems.extend(watch::judge(looks, &told));
    problems.extend(places::judge(records));
    let tally = Tally {
        requests: records.len(),
        repetitions: records.iter().map(|record| record.outcomes().count() - 1).sum(),
        done: records.iter().filter(|record| record.reply().is_some()).count(),
        events: told.len(),
        looks: looks.len(),
        ..tally
    };
    let logs = events::logs(told);
    let tally = Tally { vms: logs.len(), ..tally };
    problems.extend(end::compare(cluster, &logs, records).await);
    assert!(problems.is_empty(), "{} problems:\n{}\n{tally:?}", problems.len(), problems.join("\n"));
    end::clear(cluster, &logs).await;
    tally
}
