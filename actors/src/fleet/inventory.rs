//! The watched copy of the bucket of hosts: who is there, what each has left, whose each name is.
//!
//! Memory is bounded by the number of hosts and the length of a row; what is beyond is left out and told once. A copy
//! that is not up to date does no harm: the chosen host refuses what it does not have.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_nats::jetstream::{Context, Message};
use drover_schemas::body::host::{HostClaim, HostEntry, HostRecord};
use drover_schemas::{Token, codec};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::placement::{Candidate, Pending};
use crate::bus::claims::HOST_TTL;
use crate::bus::claims::hosts::CLAIM_SUFFIX;
use crate::bus::claims::kv::{Kv, is_value};
use crate::bus::connect::Bus;
use crate::services::now_ms;

/// The most hosts that a copy holds.
pub const MAX_HOSTS: usize = 4_096;
/// A longer row is not taken.
const MAX_ROW: usize = 64 * 1024;
/// A host that was not heard for so long is dropped from the copy, unless its name is claimed.
const DROPPED: Duration = Duration::from_secs(600);
/// Pause before the bucket is watched again.
const RETRY: Duration = Duration::from_secs(1);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is known of one host.
#[derive(Debug, Default)]
struct Known {
    record: Option<HostRecord>,
    /// When the row was written, by the clock of this host.
    heard: Option<Instant>,
    claim: Option<HostClaim>,
    last_seen_unix_ms: u64,
    pending: Pending,
    /// Which reading of the bucket told of it last.
    reading: u64,
}

/// The copy.
#[derive(Debug)]
pub struct Inventory {
    hosts: RwLock<BTreeMap<Token, Known>>,
    /// The bucket was read once.
    loaded: watch::Sender<bool>,
    /// Counts changes of claims of names.
    claims: watch::Sender<u64>,
}

impl Default for Inventory {
    fn default() -> Self {
        Self { hosts: RwLock::default(), loaded: watch::Sender::new(false), claims: watch::Sender::new(0) }
    }
}

/// One change of the bucket.
#[derive(Debug)]
enum Change {
    Row(Box<HostRecord>),
    RowGone,
    Claim(HostClaim),
    ClaimGone,
}

impl Inventory {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Token, Known>> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Token, Known>> {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the bucket was read once, at most for `within`.
    pub async fn loaded(&self, within: Duration) -> bool {
        let mut loaded = self.loaded.subscribe();
        // The sender is in `self`.
        tokio::time::timeout(within, loaded.wait_for(|loaded| *loaded)).await.is_ok()
    }

    /// Changes whenever the claim of a host's name does.
    pub fn claim_changes(&self) -> watch::Receiver<u64> {
        self.claims.subscribe()
    }

    /// Whose a name is, as far as the copy knows.
    #[must_use]
    pub fn claim(&self, host: &Token) -> Option<HostClaim> {
        self.read().get(host).and_then(|known| known.claim.clone())
    }

    /// Calls `with` with every host that has a row.
    pub fn candidates<R>(&self, with: impl FnOnce(Vec<Candidate<'_>>) -> R) -> R {
        let hosts = self.read();
        let now = Instant::now();
        let candidates = hosts.values().filter_map(|known| {
            let (record, heard) = (known.record.as_ref()?, known.heard?);
            let heard = now.saturating_duration_since(heard);
            Some(Candidate { record, heard, pending: known.pending, own: false })
        });
        with(candidates.collect())
    }

    /// Notes that a VM was sent to a host, whose row does not say so yet.
    pub fn sent(&self, host: &Token, cpus: u64, memory_bytes: u64) {
        if let Some(known) = self.write().get_mut(host) {
            known.pending.vms += 1;
            known.pending.cpus += cpus;
            known.pending.memory_bytes +=
                memory_bytes + known.record.as_ref().map_or(0, |r| r.overhead_bytes);
        }
    }

    /// Whether a host has been heard within its lease, and when it was last, by its own clock.
    #[must_use]
    pub fn seen(&self, host: &Token) -> (bool, Option<u64>) {
        let hosts = self.read();
        let Some(known) = hosts.get(host) else { return (false, None) };
        (known.online(), known.last_seen())
    }

    /// Another host than `own` takes new VMs.
    #[must_use]
    pub fn others_accept(&self, own: &Token) -> bool {
        let hosts = self.read();
        hosts.iter().any(|(host, known)| {
            host != own && known.online() && known.record.as_ref().is_some_and(|record| record.accepting)
        })
    }

    /// Hosts by name, from `after` on.
    #[must_use]
    pub fn page(&self, after: Option<&Token>, limit: usize) -> Vec<HostEntry> {
        let hosts = self.read();
        let beyond = hosts.iter().filter(|(host, _)| after.is_none_or(|after| *host > after));
        let entry = |(host, known): (&Token, &Known)| HostEntry {
            host: host.clone(),
            online: known.online(),
            last_seen_unix_ms: known.last_seen(),
            claim: known.claim.clone(),
            record: known.record.clone().map(|record| HostRecord { images: None, ..record }),
        };
        beyond.take(limit).map(entry).collect()
    }

    fn apply(&self, host: &Token, change: Change, heard: Instant, reading: u64) {
        let mut hosts = self.write();
        if !hosts.contains_key(host) {
            if hosts.len() >= MAX_HOSTS {
                return warn!(%host, "the fleet has more hosts than the inventory holds; this one gets no VMs");
            }
            if matches!(change, Change::RowGone | Change::ClaimGone) {
                return;
            }
        }
        let known = hosts.entry(host.clone()).or_default();
        known.reading = reading;
        match change {
            Change::Row(record) => {
                known.last_seen_unix_ms = known.last_seen_unix_ms.max(record.written_unix_ms);
                known.heard = Some(heard);
                known.record = Some(*record);
                known.pending = Pending::default();
            }
            Change::RowGone => known.record = None,
            Change::Claim(claim) => {
                known.last_seen_unix_ms = known.last_seen_unix_ms.max(claim.seen_unix_ms);
                known.claim = Some(claim);
                self.claims.send_modify(|n| *n = n.wrapping_add(1));
            }
            Change::ClaimGone => {
                known.claim = None;
                self.claims.send_modify(|n| *n = n.wrapping_add(1));
            }
        }
    }

    /// What a whole reading did not tell of is not there any more.
    fn read_whole(&self, reading: u64) {
        self.write().retain(|_, known| known.reading == reading);
        self.loaded.send_replace(true);
    }

    fn drop_silent(&self) {
        self.write().retain(|_, known| {
            known.claim.is_some() || known.heard.is_some_and(|heard| heard.elapsed() < DROPPED)
        });
    }
}

impl Known {
    fn online(&self) -> bool {
        self.record.is_some() && self.heard.is_some_and(|heard| heard.elapsed() <= HOST_TTL)
    }

    fn last_seen(&self) -> Option<u64> {
        (self.last_seen_unix_ms > 0).then_some(self.last_seen_unix_ms)
    }
}

/// Keeps the copy for as long as the host runs.
pub async fn watch(inventory: &Inventory, js: &Context, bucket: &str, bus: &Bus) {
    for reading in 1_u64.. {
        bus.connected().await;
        if let Err(error) = follow(inventory, js, bucket, reading).await {
            debug!(error, "the bucket of hosts is watched anew");
        }
        inventory.drop_silent();
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(inventory: &Inventory, js: &Context, bucket: &str, reading: u64) -> Result<(), BoxError> {
    let hosts = Kv::new(js.clone(), bucket);
    let mut consumer = hosts.latest(">").await?;
    let mut whole = consumer.info().await?.num_pending == 0;
    if whole {
        inventory.read_whole(reading);
    }
    let mut messages = consumer.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        if let Some((host, change)) = hosts.key(&message.subject).and_then(|key| change(key, &message)) {
            inventory.apply(&host, change, heard(&message), reading);
        }
        if !whole && message.info()?.pending == 0 {
            whole = true;
            inventory.read_whole(reading);
        }
    }
    Ok(())
}

fn change(key: &str, message: &Message) -> Option<(Token, Change)> {
    let claimed = key.strip_suffix(CLAIM_SUFFIX);
    let host = Token::new(claimed.unwrap_or(key)).ok()?;
    let change = if !is_value(message.headers.as_ref()) {
        if claimed.is_some() { Change::ClaimGone } else { Change::RowGone }
    } else if message.payload.len() > MAX_ROW {
        warn!(%host, bytes = message.payload.len(), "the row of a host is too long to be taken");
        return None;
    } else {
        let read = match claimed {
            Some(_) => codec::decode(&message.payload).map(Change::Claim),
            None => codec::decode(&message.payload).map(|record| Change::Row(Box::new(record))),
        };
        read.inspect_err(|error| warn!(%host, %error, "the row of a host cannot be read")).ok()?
    };
    Some((host, change))
}

/// When a message was stored. The clock of the server is compared with the host's own only for rows that are older
/// than the subscription, and never puts one in the future.
fn heard(message: &Message) -> Instant {
    let now = Instant::now();
    let Ok(info) = message.info() else { return now };
    let stored = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    let ago = Duration::from_millis(now_ms().saturating_sub(stored));
    // A clock that is off by more than a lease would hide every host: such a row is taken as it comes.
    if ago > HOST_TTL { now } else { now.checked_sub(ago).unwrap_or(now) }
}

#[cfg(test)]
mod tests;
