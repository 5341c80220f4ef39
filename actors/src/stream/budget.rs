//! The memory of all streams together: each has its windows, and their sum has a limit.

use std::sync::Arc;

use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of the budget, in bytes: a semaphore counts in 32 bits.
const UNIT: u64 = 4 * 1024;
/// How many ended streams wait for the word that their last frame arrived.
const LINGERING: usize = 1_024;

/// What is left of the memory of a host's streams; clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    total_bytes: u64,
    units: Arc<Semaphore>,
    lingering: Arc<Semaphore>,
}

/// The windows of one stream, given back when it is dropped.
#[derive(Debug)]
pub struct Windows(#[expect(dead_code, reason = "held, not looked at")] OwnedSemaphorePermit);

impl Budget {
    /// A budget of `total_bytes`.
    #[must_use]
    pub fn new(total_bytes: u64) -> Self {
        let units = usize::try_from(total_bytes / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            total_bytes,
            units: Arc::new(Semaphore::new(units)),
            lingering: Arc::new(Semaphore::new(LINGERING)),
        }
    }

    /// Takes the windows of a stream, or says at once that there is no room.
    ///
    /// # Errors
    /// `resource_exhausted`; other streams must end first.
    pub fn take(&self, bytes: u64) -> Result<Windows, ErrorBody> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.units).try_acquire_many_owned(units).map(Windows).map_err(|_| {
            let message = "the streams of this host have all the memory that they may take; repeat the request when \
                           some have ended, or raise streams.max_memory";
            ErrorBody::new(ErrorCode::ResourceExhausted, message)
                .with("resource", "stream_windows")
                .with("limit_bytes", self.total_bytes)
                .with("used_bytes", self.used_bytes())
                .with("needed_bytes", bytes)
        })
    }

    /// What all windows take now, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.units.available_permits() as u64 * UNIT)
    }

    /// A place among the ended streams, if there is one.
    pub(super) fn linger(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lingering).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_promised_once_and_given_back() {
        let budget = Budget::new(1 << 20);
        let held = [budget.take(512 * 1024).unwrap(), budget.take(500 * 1024).unwrap()];
        assert_eq!(budget.used_bytes(), 1012 * 1024);
        let refused = budget.take(64 * 1024).unwrap_err();
        assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        assert!(refused.retryable);
        drop(held);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.take(u64::MAX).is_err());
        let _all = budget.take(1 << 20).unwrap();
    }
}
