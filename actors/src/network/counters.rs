//! Traffic of guests as their host counts it: by the kernel at each TAP, and by the rules that refuse some of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::samples::NicSample;
use drover_schemas::body::status::NicStatus;
use tokio::time::Instant;

use super::link::Traffic;
use super::nft::{Counters, EGRESS_REFUSED, EGRESS_REFUSED6, OVER_RECEIVE, OVER_SEND, REFUSED};
use super::ops::{NetOps, NetworkError};

/// What was counted of every interface.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    taps: HashMap<String, Traffic>,
    rules: Counters,
}

/// From one count to the next: it takes longer the more guests there are, and anybody may ask.
const PAUSE: Duration = Duration::from_millis(200);

/// One count at a time, for all who ask meanwhile.
#[derive(Debug, Default)]
pub(super) struct Counting(tokio::sync::Mutex<Option<(Instant, Arc<Counted>)>>);

impl Counting {
    /// What a count gives that began after this was asked.
    pub(super) async fn fresh<E>(
        &self,
        count: impl AsyncFnOnce() -> Result<Counted, E>,
    ) -> Result<Arc<Counted>, E> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, counted)) = &*last {
            if *began >= asked {
                return Ok(Arc::clone(counted));
            }
            tokio::time::sleep_until(*began + PAUSE).await;
        }
        let began = Instant::now();
        let counted = Arc::new(count().await?);
        *last = Some((began, Arc::clone(&counted)));
        Ok(counted)
    }
}

impl NetOps {
    /// Counts.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn counted(&self) -> Result<Counted, NetworkError> {
        let rules = self.nft.counters(self.base().has_ipv6()).await?;
        Ok(Counted { taps: self.links.traffic().await?, rules })
    }
}

impl Counted {
    /// What was counted of an interface; nothing while its TAP is not there.
    #[must_use]
    pub fn of(&self, nic: &NicStatus) -> Option<NicSample> {
        // What goes into a TAP is received by the guest.
        let Traffic { rx, tx } = *self.taps.get(&nic.tap)?;
        let refused = |set: &str, address: Option<&String>| {
            address.and_then(|address| self.rules.get(set, address)).unwrap_or_default()
        };
        Some(NicSample {
            network: nic.network.clone(),
            tap: nic.tap.clone(),
            sent_bytes: rx.bytes,
            sent_packets: rx.packets,
            sent_dropped: rx.dropped,
            received_bytes: tx.bytes,
            received_packets: tx.packets,
            received_dropped: tx.dropped,
            refused_packets: self.rules.get(REFUSED, &nic.tap).unwrap_or_default(),
            egress_refused_packets: refused(EGRESS_REFUSED, Some(&nic.ipv4))
                .saturating_add(refused(EGRESS_REFUSED6, nic.ipv6.as_ref())),
            over_send_packets: self.rules.get(OVER_SEND, &nic.tap),
            over_receive_packets: self.rules.get(OVER_RECEIVE, &nic.tap),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_meanwhile_shares_a_count_that_began_later() {
        let (counting, counts) = (Counting::default(), AtomicU32::new(0));
        let ask = || {
            counting.fresh(async || {
                counts.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok::<_, Infallible>(Counted::default())
            })
        };
        // The second one begins after the first, and serves all who asked while that one ran.
        let began = Instant::now();
        let late = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            join_all((0..100).map(|_| ask())).await
        };
        tokio::join!(ask(), late).0.unwrap();
        assert_eq!((counts.load(Ordering::Relaxed), began.elapsed()), (2, PAUSE + Duration::from_millis(50)));
        // Nobody gets what was counted before it was asked.
        tokio::time::sleep(PAUSE).await;
        ask().await.unwrap();
        assert_eq!(counts.load(Ordering::Relaxed), 3);
    }
}
