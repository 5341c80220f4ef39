//! What is told when the network was not as it should be: an event for what is mended, an alarm while something is not.

use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::alarms::NETWORK;
use crate::chain;
use crate::host_log::HostNote;
use crate::network::{Finding, NetworkError, Repair};
use crate::rate::{Bucket, Rate};
use crate::services::Services;

/// Events of repairs: who undoes a repair again and again does not fill the log.
const RATE: Rate = Rate { burst: 10, refill: Duration::from_secs(1) };
/// How many things an event names.
const NAMED: usize = 8;

/// Tells of repairs.
#[derive(Debug)]
pub struct Mended {
    rate: Bucket,
    /// Not told yet, as too soon after the last; at most [`NAMED`], and how many there are.
    kept: (Vec<Finding>, usize),
    left: Vec<Finding>,
}

impl Default for Mended {
    fn default() -> Self {
        Self { rate: Bucket::new(RATE, Instant::now()), kept: Default::default(), left: Vec::new() }
    }
}

impl Mended {
    /// Tells of an outcome.
    pub fn tell(&mut self, services: &Services, outcome: &Result<Repair, NetworkError>) {
        match outcome {
            Ok(repair) => {
                for finding in &repair.mended {
                    warn!(%finding, "mended the network");
                }
                if repair.left != self.left {
                    for finding in &repair.left {
                        error!(%finding, "the network cannot be mended");
                    }
                    self.left.clone_from(&repair.left);
                    let text = "the network of VMs was changed by others and this cannot be mended";
                    if !self.left.is_empty() {
                        services.log.note(alarm("network_unmended", text, &self.left, self.left.len()));
                    }
                }
                services.alarms.note(&NETWORK, repair.left.len() as u64);
                if let Some(note) = self.note(&repair.mended, Instant::now()) {
                    services.log.note(note);
                }
            }
            Err(failure) => {
                error!(error = %chain(failure), "the network cannot be looked at or mended");
                services.alarms.note(&NETWORK, 1);
            }
        }
    }

    /// The event of what was mended, if there is any and it is not too soon.
    fn note(&mut self, mended: &[Finding], now: Instant) -> Option<HostNote> {
        let (named, count) = &mut self.kept;
        named.extend(mended.iter().take(NAMED.saturating_sub(named.len())).cloned());
        *count += mended.len();
        if *count == 0 || !self.rate.admit(now) {
            return None;
        }
        let (kept, count) = std::mem::take(&mut self.kept);
        let text = "the network of VMs was changed by others and is mended";
        Some(alarm("network_mended", text, &kept, count))
    }
}

fn alarm(alarm: &str, text: &str, findings: &[Finding], count: usize) -> HostNote {
    let found: Vec<String> = findings.iter().take(NAMED).map(ToString::to_string).collect();
    HostNote::alarm(alarm, text).with("count", count).with("found", found.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::findings::Wrong;

    #[test]
    fn one_who_undoes_each_repair_is_told_of_once_a_second_and_nothing_is_forgotten() {
        let (mut mended, start) = (Mended::default(), Instant::now());
        let wrong = |n: usize| vec![Finding::new(Wrong::RulesGone, "t"); n];
        assert_eq!(mended.note(&[], start), None);
        let first = mended.note(&wrong(1), start).unwrap();
        assert_eq!(
            (first.details["count"].as_str(), first.details["found"].as_str()),
            ("1", "the tables t were removed")
        );
        let told = (0..100).filter(|_| mended.note(&wrong(1), start + RATE.refill / 2).is_some()).count();
        assert_eq!(told, 9, "a burst, the first included");
        let later = mended.note(&wrong(1), start + RATE.refill).unwrap();
        assert_eq!(later.details["count"], "92");
        assert_eq!(later.details["found"].split("; ").count(), NAMED);
        assert_eq!(mended.note(&[], start + RATE.refill * 2), None);
    }
}
