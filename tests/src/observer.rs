//! Everything that hosts say and hear: each message is held against the published contract.
//!
//! A host reaches the bus over a way of the observer, a relay of its own that changes nothing. A subscription would see
//! as much, but where somebody listens the server does not say any more that nobody does. What hosts say is held in
//! any case: events, samples, replies, errors, frames and results of streams, and that somebody asked for them. What
//! they hear is held if they did as it said; a host answers what is malformed with a coded error.

mod seen;
mod way;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use seen::Seen;
use way::Way;

/// Where counts go, a file for each observer; unset: nowhere.
const COUNTS: &str = "DROVER_SEEN";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A host, its network namespace and the server's address.
type Key = (String, Option<String>, String);

/// An observer with its ways; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Observer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    seen: Arc<Mutex<Seen>>,
    ways: Mutex<HashMap<Key, Way>>,
}

impl Observer {
    /// A way for a host, in the network namespace of this name or in that of the calling thread, to the server at `url`:
    /// where the host should connect instead.
    ///
    /// # Panics
    /// The namespace is not there.
    #[must_use]
    pub fn way(&self, host: &str, netns: Option<&str>, url: &str) -> String {
        let mut ways = lock(&self.0.ways);
        let way = ways
            .entry((host.to_owned(), netns.map(str::to_owned), url.to_owned()))
            .or_insert_with(|| Way::open(netns, url, Arc::clone(&self.0.seen)));
        way.url.clone()
    }

    /// How many connections of a host there are.
    #[must_use]
    pub fn connections(&self, host: &str) -> usize {
        let ways = lock(&self.0.ways);
        ways.iter().filter(|((of, ..), _)| of == host).map(|(_, way)| way.connections()).sum()
    }

    /// The test will have something malformed sent to hosts on subjects that begin with this, without a reply.
    pub fn expect_malformed(&self, prefix: &str) {
        lock(&self.0.seen).expect_malformed(prefix);
    }

    /// How many messages of each kind there were until now.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.0.seen).counts.clone()
    }

    /// Closes the ways and writes down what was seen.
    ///
    /// # Errors
    /// What was not as the contract says; or a host of `hosts` was never seen.
    ///
    /// # Panics
    /// The counts cannot be written.
    pub fn end(&self, hosts: &[String]) -> Result<(), String> {
        lock(&self.0.ways).clear();
        let seen = lock(&self.0.seen);
        write(&seen.counts.iter().map(|(kind, count)| format!("{count}\t{kind}\n")).collect::<String>());
        // Over TLS they do not say so that it could be read.
        let unseen = |host: &&String| !seen.sealed && !seen.names.contains(&format!("drover host {host}"));
        let unseen = hosts.iter().filter(unseen).map(|host| format!("{host} has another way to the bus"));
        let not_come =
            seen.not_come().into_iter().map(|prefix| format!("nothing malformed came on {prefix}"));
        let problems: Vec<String> = seen.deviations.iter().cloned().chain(unseen).chain(not_come).collect();
        match problems[..] {
            [] => Ok(()),
            _ => Err(format!("not as the published contract says:\n{}", problems.join("\n"))),
        }
    }
}

/// Writes down that a test has no observer.
///
/// # Panics
/// It cannot be written.
pub fn goes_without(test: &str) {
    write(&format!("1\tunobserved {test}\n"));
}

fn write(counts: &str) {
    let Some(folder) = std::env::var_os(COUNTS).map(PathBuf::from) else { return };
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    std::fs::write(folder.join(format!("{process}-{number}")), counts).expect("the counts are written");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
