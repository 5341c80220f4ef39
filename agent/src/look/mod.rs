//! What the guest is, how it is and what it does: the verbs `info`, `health`, `processes` and `sample`.
//!
//! Reading `/proc` costs little, but a file system whose disk hangs can hold whoever asks it, and so can thirty
//! thousand processes: all of it is done off the agent's one thread, one such work at a time.

mod health;
mod info;
pub(crate) mod measure;
mod parse;
mod processes;
mod units;

use std::fs::File;
use std::io::Read as _;

use drover_schemas::guest::{HealthResult, InfoResult, ProcessesRequest, ProcessesResult, SampleResult};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::Semaphore;

use crate::facts::Facts;
use crate::mounts::{self, Mount};
use crate::watch::States;

pub(crate) use self::health::local_disks;

/// The most that is read of a file below `/proc`, `/sys` or `/etc`, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// How many disks, interfaces, file systems and services are listed at most.
const MAX_LISTED: usize = 64;

/// What the looks at the guest share.
#[derive(Debug)]
pub struct Look {
    one_at_a_time: Semaphore,
}

impl Default for Look {
    fn default() -> Self {
        Self { one_at_a_time: Semaphore::new(1) }
    }
}

impl Look {
    /// What the guest is.
    ///
    /// # Errors
    /// The agent failed.
    pub async fn info(&self, facts: &Facts) -> Result<InfoResult, ErrorBody> {
        let facts = facts.clone();
        self.aside(move || info::gather(&facts)).await
    }

    /// How the guest is, and what is `watched`.
    ///
    /// # Errors
    /// The agent failed.
    pub async fn health(&self, facts: &Facts, watched: States) -> Result<HealthResult, ErrorBody> {
        let facts = facts.clone();
        let mut health = self.aside(move || health::gather(&facts)).await?;
        let services = units::failed().await;
        health::add_services(&mut health, services);
        health::add_watched(&mut health, watched);
        Ok(health)
    }

    /// Numbers of this moment.
    ///
    /// # Errors
    /// The agent failed.
    pub async fn sample(&self) -> Result<SampleResult, ErrorBody> {
        self.aside(health::sample).await
    }

    /// What the guest does.
    ///
    /// # Errors
    /// `invalid_argument` for a window that is too long.
    pub async fn processes(&self, request: ProcessesRequest) -> Result<ProcessesResult, ErrorBody> {
        processes::check(&request)?;
        let before = match request.sample_ms.filter(|ms| *ms > 0) {
            None => None,
            Some(ms) => {
                let before = self.aside(processes::times).await?;
                tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                Some(before)
            }
        };
        self.aside(move || processes::list(&request, before.as_ref())).await
    }

    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ErrorBody> {
        let failed =
            |why: String| ErrorBody::new(ErrorCode::Internal, format!("the agent could not look: {why}"));
        let _turn = self.one_at_a_time.acquire().await.map_err(|e| failed(e.to_string()))?;
        tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))
    }
}

/// What is mounted.
fn mounts() -> Vec<Mount> {
    mounts::parse(read("/proc/self/mountinfo").as_bytes(), parse::MAX_LINES)
}

/// The beginning of a file; empty where there is none.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // Half of a file of the kernel is better than none.
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
