//! What is told of the services that guests ask on their network: an alarm while one is not there, and who found
//! somebody else at its address.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use drover_schemas::token::Token;
use tracing::{error, info, warn};

use crate::alarms::{Alarms, Level};
use crate::host_log::{HostLog, HostNote};
use crate::network::guests::Guest;
use crate::network::served::Served;
use crate::rate::{Bucket, Rate};

/// Events of guests that decline their address: it is theirs to say, as often as they like.
const RATE: Rate = Rate { burst: 10, refill: Duration::from_secs(60) };

/// Tells of one service of the host's networks; `level` is the alarm of those that are without it.
#[derive(Debug)]
pub struct Unserved<'a> {
    log: &'a HostLog,
    alarms: &'a Alarms,
    level: Level,
    /// Why each network is without it.
    failures: Mutex<BTreeMap<Token, String>>,
    rate: Mutex<Bucket>,
}

impl<'a> Unserved<'a> {
    /// Nothing is told yet.
    #[must_use]
    pub fn new(log: &'a HostLog, alarms: &'a Alarms, level: Level) -> Self {
        let rate = Mutex::new(Bucket::new(RATE, Instant::now()));
        Self { log, alarms, level, failures: Mutex::default(), rate }
    }

    /// Tells that a network has the service, or not; the same again is not told.
    pub fn tell(&self, served: &Served<'_>) {
        let Served { network, what, failure } = served;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            None if failures.remove(*network).is_some() => {
                info!(%network, service = what, "guests are served again")
            }
            None => {}
            Some(failure) => {
                if failures.get(*network) != Some(failure) {
                    error!(%network, service = what, failure, "guests are not served");
                    let text =
                        "a service that guests of a network ask is not there; the rest of the network works";
                    let note = HostNote::alarm("guests_unserved", text).with("network", network);
                    self.log.note(note.with("service", what).with("failure", failure));
                }
                failures.insert((*network).clone(), failure.clone());
            }
        }
        self.alarms.note(&self.level, failures.len() as u64);
    }

    /// Tells that a guest declined its address.
    pub fn declined(&self, guest: &Guest) {
        let Guest { vm_id, network, ipv4, .. } = guest;
        warn!(%vm_id, %network, address = %ipv4, "a guest says that somebody else has its address");
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = rate.take(Instant::now()) {
            let text = "a guest says that somebody else has its address; another machine or bridge of that network \
                        answers for it";
            let note = HostNote::alarm("dhcp_declined", text).with("vm_id", vm_id).with("network", network);
            self.log.note(note.with("address", ipv4).with("more", suppressed));
        }
    }
}
