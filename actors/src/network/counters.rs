//! Traffic of guests as their host counts it: by the kernel at each TAP, and by the rules that refuse some of it.

use std::collections::HashMap;

use drover_schemas::body::samples::NicSample;
use drover_schemas::body::status::NicStatus;

use super::link::Traffic;
use super::nft::{Counters, EGRESS_REFUSED, OVER_RECEIVE, OVER_SEND, REFUSED};
use super::ops::{NetOps, NetworkError};

/// What was counted of every interface.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    taps: HashMap<String, Traffic>,
    rules: Counters,
}

impl NetOps {
    /// Counts.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn counted(&self) -> Result<Counted, NetworkError> {
        Ok(Counted { taps: self.links.traffic().await?, rules: self.nft.counters().await? })
    }
}

impl Counted {
    /// What was counted of an interface; nothing while its TAP is not there.
    #[must_use]
    pub fn of(&self, nic: &NicStatus) -> Option<NicSample> {
        // What goes into a TAP is received by the guest.
        let Traffic { rx, tx } = *self.taps.get(&nic.tap)?;
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
            egress_refused_packets: self.rules.get(EGRESS_REFUSED, &nic.ipv4).unwrap_or_default(),
            over_send_packets: self.rules.get(OVER_SEND, &nic.tap),
            over_receive_packets: self.rules.get(OVER_RECEIVE, &nic.tap),
        })
    }
}
