//! Events from the journal's outbox into the stream, exactly once and in order per VM.
//!
//! One lane per VM with waiting events, many lanes at once, one event of a lane in flight. Each
//! publish states the last sequence it expects under the VM's filter, so whatever is sent twice (by
//! us, by a client that reconnects, after days) is stored once. `Nats-Msg-Id` is set too, but only
//! saves work: the server forgets it after its dedupe window.
//!
//! Unhappy paths:
//! * No answer, a lost connection, a wrong expectation: the last message of the filter tells what
//!   happened ([`decide`]).
//! * The bus is away: lanes wait, the outbox grows up to its limits, actors never notice.
//! * The stream is another one, or was trimmed: reported, then everything goes on.
//! * Somebody else's events under the name, or a journal older than the stream: the lane stops and
//!   is reported; its events stay in the outbox.

pub mod decide;
mod keeper;
mod lane;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use drover_schemas::VmId;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::decide::{Anomaly, StopReason};
pub use self::lane::EXPECTED_SUBJECT;
use super::assets::{AssetsConfig, AssetsReport};
use super::connect::Bus;
use crate::journal::{JournalError, JournalHandle};

/// How the egress works.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// Names of the stream and the buckets.
    pub assets: AssetsConfig,
    /// How many VMs publish at once.
    pub lanes: usize,
    /// How long an acknowledgement may take before the last message is asked for.
    pub ack_timeout: Duration,
    /// Nothing is published while it is `false`; the host does not know then which VMs are its own.
    pub gate: watch::Receiver<bool>,
}

impl EgressConfig {
    /// 64 lanes, 5 s.
    #[must_use]
    pub fn new(assets: AssetsConfig) -> Self {
        // Always open: a value outlives its sender.
        let (_, gate) = watch::channel(true);
        Self { assets, lanes: 64, ack_timeout: Duration::from_secs(5), gate }
    }
}

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressReport {
    /// The assets were looked at after a connect.
    Assets(AssetsReport),
    /// The stream is not the one that was there before.
    StreamReplaced {
        /// When the former one was made.
        before: String,
        /// When this one was made.
        now: String,
    },
    /// Acknowledged events of a VM are not in the stream any more.
    Missing {
        /// The VM.
        key: VmId,
        /// In what way.
        anomaly: Anomaly,
    },
    /// The events of a VM cannot be published.
    Stopped {
        /// The VM.
        key: VmId,
        /// Why.
        reason: StopReason,
    },
}

/// What the egress counted since the daemon started.
#[derive(Debug, Default)]
pub struct EgressCounters {
    /// Events that were acknowledged.
    pub published: AtomicU64,
    /// Events whose fate was found from the last message.
    pub resolved: AtomicU64,
    /// Attempts that were repeated.
    pub retried: AtomicU64,
    /// Writes to the bucket of states that failed.
    pub status_failures: AtomicU64,
    /// Reports that nobody took.
    pub reports_lost: AtomicU64,
}

/// What the lanes share.
struct Shared {
    journal: JournalHandle,
    bus: Bus,
    js: Context,
    config: EgressConfig,
    counters: EgressCounters,
    /// The assets are there. Sent by the keeper.
    ready: watch::Receiver<bool>,
    /// Tells the keeper that the stream is missing.
    look_again: Notify,
    /// Counts acknowledged pages; waiters look at the journal at each.
    acked: watch::Sender<u64>,
    stopped: Mutex<BTreeMap<VmId, StopReason>>,
    reports: mpsc::Sender<EgressReport>,
    cancel: CancellationToken,
}

impl Shared {
    fn report(&self, report: EgressReport) {
        match &report {
            EgressReport::Assets(_) => tracing::info!(?report, "egress"),
            _ => tracing::error!(?report, "egress"),
        }
        if self.reports.try_send(report).is_err() {
            self.counters.reports_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stopped(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, StopReason>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle of the running egress.
#[derive(Clone)]
pub struct Egress(Arc<Shared>);

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("counters", &self.0.counters).finish_non_exhaustive()
    }
}

/// Starts the egress. It runs until [`Egress::stop`]; connected or not.
#[must_use]
pub fn start(
    journal: JournalHandle,
    bus: Bus,
    config: EgressConfig,
) -> (Egress, mpsc::Receiver<EgressReport>) {
    let (reports, reported) = mpsc::channel(256);
    let (ready_now, ready) = watch::channel(false);
    let js = ContextBuilder::new().timeout(config.ack_timeout).build(bus.client.clone());
    let shared = Arc::new(Shared {
        journal,
        bus,
        js,
        config,
        counters: EgressCounters::default(),
        ready,
        look_again: Notify::new(),
        acked: watch::Sender::new(0),
        stopped: Mutex::new(BTreeMap::new()),
        reports,
        cancel: CancellationToken::new(),
    });
    tokio::spawn(keeper::run(Arc::clone(&shared), ready_now));
    tokio::spawn(dispatch(Arc::clone(&shared)));
    (Egress(shared), reported)
}

impl Egress {
    /// Waits until event `seq` of `key` is in the stream and recorded as such. The delete path waits
    /// here before it frees the name; give it a deadline, an absent bus makes it long.
    ///
    /// # Errors
    /// [`JournalError`] if the journal cannot be read.
    pub async fn acked(&self, key: VmId, seq: u64) -> Result<(), JournalError> {
        let mut acked = self.0.acked.subscribe();
        loop {
            acked.mark_unchanged();
            if self.0.journal.position(key)?.is_some_and(|p| p.seq >= seq) {
                return Ok(());
            }
            // The sender is in `self`.
            let _ = acked.changed().await;
        }
    }

    /// VMs whose events cannot be published, with the reason.
    #[must_use]
    pub fn stopped(&self) -> BTreeMap<VmId, StopReason> {
        self.0.stopped().clone()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &EgressCounters {
        &self.0.counters
    }

    /// Whether the stream and the buckets are there and the bus is connected.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Looks at the stream and the buckets again, and makes what is absent.
    pub fn look_again(&self) {
        self.0.look_again.notify_one();
    }

    /// Waits until the stream and the buckets are there and the bus is connected.
    pub async fn ready(&self) {
        // The keeper lives as long as the egress; a stopped one keeps its last answer.
        let _ = self.0.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Stops. What is not acknowledged stays in the outbox.
    pub fn stop(&self) {
        self.0.cancel.cancel();
    }
}

/// Starts a lane for each VM with new events, and again for one that got more meanwhile.
async fn dispatch(shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(shared.config.lanes.max(1)));
    let mut lanes = JoinSet::new();
    let mut running = BTreeSet::new();
    let mut again = BTreeSet::new();
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            woken = shared.journal.outbox_woken() => {
                for key in woken {
                    if running.insert(key) {
                        lanes.spawn(run_lane(Arc::clone(&shared), Arc::clone(&permits), key));
                    } else {
                        again.insert(key);
                    }
                }
            }
            Some(ended) = lanes.join_next() => {
                let key = match ended {
                    Ok(key) => key,
                    // A lane catches its own panics, so this is the end of the runtime.
                    Err(_) => continue,
                };
                running.remove(&key);
                if again.remove(&key) {
                    running.insert(key);
                    lanes.spawn(run_lane(Arc::clone(&shared), Arc::clone(&permits), key));
                }
            }
        }
    }
}

async fn run_lane(shared: Arc<Shared>, permits: Arc<Semaphore>, key: VmId) -> VmId {
    let Ok(_permit) = permits.acquire_owned().await else { return key };
    if shared.stopped().contains_key(&key) {
        return key;
    }
    let cancel = shared.cancel.clone();
    // In a task of its own: a panic must not lose the key.
    let lane = tokio::spawn(lane::Lane::new(Arc::clone(&shared), key).run());
    let lane = tokio_util::task::AbortOnDropHandle::new(lane);
    let result = tokio::select! {
        () = cancel.cancelled() => return key,
        result = lane => result,
    };
    match result {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            shared.stopped().insert(key, reason.clone());
            shared.report(EgressReport::Stopped { key, reason });
        }
        Err(panic) => tracing::error!(%key, %panic, "a lane of the egress panicked"),
    }
    key
}

#[cfg(test)]
mod tests;
