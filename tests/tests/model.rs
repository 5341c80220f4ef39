//! Three hosts, three servers, links that are cut, and clients that want the same names: at the end answers, events,
//! journals, claims, processes and guests agree.
//!
//! `DROVER_MODEL_SECONDS` (20) and `DROVER_MODEL_SEED` make it longer or another.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use drover_schemas::RequestId;
use drover_schemas::body::vm::ChangeReply;
use drover_tests::cluster;
use drover_tests::contest::history::{Outcome, Record};
use drover_tests::contest::{self, Plan, Tally};
use drover_tests::soak::Op;
use drover_tests::world::Options;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn nothing_is_lost_or_doubled_by_partitions_and_kills() {
    let test = "nothing_is_lost_or_doubled_by_partitions_and_kills";
    let time = Duration::from_secs(number("DROVER_MODEL_SECONDS").unwrap_or(20));
    let seed = number("DROVER_MODEL_SEED").unwrap_or_else(rand::random);
    let plan = Plan { seed, time, clients: 6, names: 5 };
    println!("{test}: seed {seed}, at most {} s", time.as_secs());
    let options = Options { budget: time + Duration::from_secs(900), ..Options::default() };
    cluster::run(test, options, async move |cluster| {
        let tally = contest::run(cluster, &plan).await;
        println!("{test}: seed {seed}: {tally:?}");
        assert!(tally.cuts + tally.servers + tally.daemons > 0 && tally.done > 0, "{tally:?}");
    });
}

#[test]
fn creates_are_made_once_though_the_leader_of_a_stream_is_killed_in_their_midst() {
    let test = "creates_are_made_once_though_the_leader_of_a_stream_is_killed_in_their_midst";
    let options = Options { budget: Duration::from_secs(600), ..Options::default() };
    cluster::run(test, options, async move |cluster| {
        let began = Instant::now();
        let mut records = Vec::new();
        // Of the bucket of claims, and of the stream of events.
        for (round, stream) in ["KV_DROVER_VMS", "DROVER_EVENTS"].into_iter().enumerate() {
            let leader = cluster.leader(stream).await;
            let bus = cluster.bus.clone();
            let mut creates: FuturesUnordered<_> = (0..64)
                .map(async |number| {
                    let (id, name, sent) =
                        (RequestId::generate(), format!("r{round}-{number}"), began.elapsed());
                    let body = json!({"name": name, "wait": "running"});
                    let reply: ChangeReply = bus.insist("vm.create", &body, id).await.unwrap();
                    let first = vec![Outcome::Done(Box::new(reply))];
                    Record {
                        id,
                        name,
                        op: Op::Create,
                        sent,
                        answered: began.elapsed(),
                        first,
                        later: Vec::new(),
                    }
                })
                .collect();
            for _ in 0..16 {
                records.push(creates.next().await.unwrap());
            }
            cluster.servers.kill(leader).await;
            while let Some(record) = creates.next().await {
                records.push(record);
            }
            assert_ne!(cluster.leader(stream).await, leader, "another server leads {stream}");
            cluster.servers.start(leader);
            cluster.quiet().await;
            println!("{test}: {stream}: s{} was killed, {:?}", leader + 1, began.elapsed());
        }
        let tally = contest::check(cluster, &records, &[], Tally::default()).await;
        assert_eq!((tally.done, tally.vms), (128, 128));
    });
}
