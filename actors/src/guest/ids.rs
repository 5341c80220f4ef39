//! In which boot of the guest a request was sent to it. The agent remembers ids for one boot; after
//! a reboot a repeated id would run again, so it is refused here instead. Both memories are bounded,
//! and losing both (a restart of the daemon and a reboot of the guest) is a stated limit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_schemas::{ErrorBody, ErrorCode, RequestId};

/// Ids that are remembered for one VM.
const MOST: usize = 1_000;
/// How long an id is remembered.
const KEPT: Duration = Duration::from_secs(600);

/// The ids of one VM.
#[derive(Debug, Default)]
pub struct GuestIds {
    boots: HashMap<RequestId, Arc<str>>,
    order: VecDeque<(Instant, RequestId)>,
}

impl GuestIds {
    /// Notes that `id` goes to the boot `boot_id` of the guest.
    ///
    /// # Errors
    /// `conflict{cause: guest_rebooted}`: it went to an earlier boot, and nobody knows what it did.
    pub fn bind(&mut self, id: RequestId, boot_id: &str, now: Instant) -> Result<(), ErrorBody> {
        while let Some((since, old)) = self.order.front()
            && (self.order.len() >= MOST || now.saturating_duration_since(*since) > KEPT)
        {
            self.boots.remove(old);
            self.order.pop_front();
        }
        if self.boots.is_empty() {
            // An idle VM keeps nothing of a busy hour.
            *self = Self::default();
        }
        match self.boots.get(&id) {
            Some(bound) if **bound == *boot_id => Ok(()),
            Some(_) => Err(ErrorBody::new(
                ErrorCode::Conflict,
                "the guest has rebooted, or its agent was started anew, since this request was sent; it may have been carried out, wholly or in \
                 part: look, and send it with a new request id if it is to run again",
            )
            .with("cause", "guest_rebooted")),
            None => {
                let shared = self.order.back().and_then(|(_, last)| self.boots.get(last));
                let boot = shared.filter(|b| ***b == *boot_id).cloned().unwrap_or_else(|| boot_id.into());
                self.boots.insert(id, boot);
                self.order.push_back((now, id));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_belongs_to_one_boot_and_is_forgotten_in_time() {
        let (mut ids, now) = (GuestIds::default(), Instant::now());
        let id = RequestId::from_u128(1);
        ids.bind(id, "a", now).unwrap();
        ids.bind(id, "a", now).unwrap();
        let error = ids.bind(id, "b", now).unwrap_err();
        assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::Conflict, "guest_rebooted"));
        ids.bind(RequestId::from_u128(2), "b", now).unwrap();
        ids.bind(id, "b", now + KEPT + Duration::from_secs(1)).unwrap();
        for n in 10..5_000 {
            ids.bind(RequestId::from_u128(n), "b", now + KEPT).unwrap();
        }
        assert!(ids.boots.len() <= MOST && ids.boots.len() == ids.order.len());
    }
}
