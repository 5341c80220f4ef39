//! Clients want names of three hosts while parts of the bus fail.
//!
//! Nobody can say beforehand what comes of requests that meet; but the log of events says what happened, and
//! [`history`] holds every answer against it. At the end journals, claims, processes and the log must agree.

mod end;
pub mod history;

use crate::cluster::Cluster;
use crate::events;
use history::Record;

/// What a run was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
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
}

/// Compares what was answered with everything that is there; then deletes every VM.
///
/// # Panics
/// Something does not agree, or is left.
pub async fn check(cluster: &mut Cluster, records: &[Record]) -> Tally {
    cluster.quiet().await;
    let told = events::read(&cluster.bus).await;
    let mut problems = history::judge(records, &told);
    let events = told.len();
    let logs = events::logs(told);
    let tally = Tally {
        requests: records.len(),
        repetitions: records.iter().map(|record| record.outcomes().count() - 1).sum(),
        done: records.iter().filter(|record| record.reply().is_some()).count(),
        vms: logs.len(),
        events,
    };
    problems.extend(end::compare(cluster, &logs).await);
    assert!(problems.is_empty(), "{} problems:\n{}\n{tally:?}", problems.len(), problems.join("\n"));
    end::clear(cluster, &logs).await;
    tally
}
