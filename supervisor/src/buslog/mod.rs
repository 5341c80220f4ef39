//! `drover bus audit`: from the log of a bus server to the audit.
//!
//! What a server denies somebody reaches no host, and nats-server publishes nothing of it: its system account hears
//! of connections, of logins that failed, and of no subject that was refused. It stands in the server's log, so that
//! is followed, line by line, and each denial becomes an event of the audit.
//!
//! How far the log was read, and what of it was only counted so far, stands with the last event in the stream, and
//! each event says which one it expects to follow. So whatever ends, is begun again or runs twice, each denial is told
//! or counted once and in order, and nothing is kept beside the log and the stream. Where the stream keeps nothing of
//! a server any more, a follower that begins tells all that the server's logs still hold.

mod file;
mod line;
mod tell;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_actors::rate::{Bucket, Rate, Shares};
use drover_schemas::audit::{AuditAction, AuditKind, Caller};
use tokio::task::spawn_blocking;
use tracing::warn;

use file::{Line, Log, Position};
use line::{Denial, parse};
pub use tell::{AuditStream, TellError};

/// Denials of one user.
const OF_ONE: Rate = Rate { burst: 200, refill: Duration::from_millis(1_000) };
/// Denials of everybody together.
const OF_ALL: Rate = Rate { burst: 2_000, refill: Duration::from_millis(50) };
/// How often it is looked for new lines.
const LOOK: Duration = Duration::from_millis(250);
/// How often what was suppressed is told.
const SUMS: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The log cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The log.
    #[error("read the server's log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The audit.
    #[error("tell the audit what the server denied")]
    Tell(#[source] TellError),
}

/// Follows the log at `path`; with `once`, to its end. Answers how many denials were told.
///
/// # Errors
/// The log cannot be read. A stream that is away is waited for, unless it is only `once`.
pub async fn follow(path: &Path, stream: &AuditStream, once: bool) -> Result<u64, FollowError> {
    let (mut told, mut pause) = (0, FIRST_PAUSE);
    loop {
        let before = told;
        match session(path, stream, once, &mut told).await {
            Ok(()) => return Ok(told),
            Err(FollowError::Tell(failure)) if !once => {
                warn!(error = %drover_actors::chain(&failure), "the audit does not take what the server denied");
                if told > before {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Goes on behind what the stream has, until something fails.
async fn session(path: &Path, stream: &AuditStream, once: bool, told: &mut u64) -> Result<(), FollowError> {
    let mut last = stream.last().await.map_err(FollowError::Tell)?;
    let mut log = Log::new(path, last.position.clone());
    let mut rates = Rates::new(last.untold, Instant::now());
    rates.behind.clone_from(&last.position);
    let mut sums = Instant::now();
    loop {
        let (read, back) = spawn_blocking(move || (log.read(), log)).await.map_err(|panic| {
            FollowError::Log { path: path.to_owned(), source: std::io::Error::other(panic) }
        })?;
        log = back;
        let lines = read.map_err(|source| FollowError::Log { path: path.to_owned(), source })?;
        if log.take_lost() {
            warn!(
                "the file that was read last is gone, and what stood in it behind that is not in the audit"
            );
        }
        let end = lines.is_empty();
        for Line { text, end } in lines {
            let Some(denial) = parse(&text) else { continue };
            rates.behind = Some(end.clone());
            if rates.admit(&denial.caller) {
                stream
                    .tell(&mut last, event_of(denial), &end, rates.untold)
                    .await
                    .map_err(FollowError::Tell)?;
                *told += 1;
            }
        }
        if sums.elapsed() >= SUMS || (end && once) {
            sums = Instant::now();
            for (caller, count) in rates.suppressed(once) {
                let Some(behind) = &rates.behind else { break };
                let left = rates.untold.saturating_sub(count);
                stream.tell(&mut last, sum(caller, count), behind, left).await.map_err(FollowError::Tell)?;
                rates.untold = left;
            }
        }
        if end && once {
            return Ok(());
        }
        if end {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// How much of what may be told.
struct Rates {
    shares: Shares<(Option<String>, Option<String>)>,
    all: Bucket,
    /// What was counted and not told yet.
    untold: u64,
    /// The place behind the last denial that was looked at.
    behind: Option<Position>,
}

impl Rates {
    /// `untold` were counted before; by whom they were is not known any more.
    fn new(untold: u64, now: Instant) -> Self {
        let mut shares = Shares::new(OF_ONE, now);
        shares.crowd().suppress(untold);
        Self { shares, all: Bucket::new(OF_ALL, now), untold, behind: None }
    }

    /// Whether a denial may be told; if not, it was counted.
    fn admit(&mut self, caller: &Caller) -> bool {
        let now = Instant::now();
        // Who cannot prove to be anybody has no share of their own.
        let user = caller.user.clone().filter(|_| caller.verified);
        let own = self.shares.of(&(caller.account.clone(), user), now);
        let admitted = own.admit(now) && self.all.admit(now);
        if !admitted {
            own.suppress(1);
            self.untold += 1;
        }
        admitted
    }

    /// What was suppressed, as far as there is room; or all of it, if nothing follows.
    fn suppressed(&mut self, all: bool) -> Vec<(Caller, u64)> {
        let later = if all { OF_ONE.refill } else { Duration::ZERO };
        let counts = self.shares.take_suppressed(Instant::now() + later).into_iter();
        let caller = |key: Option<(Option<String>, Option<String>)>| {
            let (account, user) = key.unwrap_or_default();
            Caller { verified: user.is_some(), account, user, ..Caller::default() }
        };
        counts.map(|(key, count)| (caller(key), count)).collect()
    }
}

fn event_of(denial: Denial) -> Told {
    let Denial { time_unix_ms, caller, action, subject } = denial;
    Told { kind: AuditKind::Denied, time_unix_ms, caller, action, subject, count: 1 }
}

fn sum(caller: Caller, count: u64) -> Told {
    let (time_unix_ms, action) = (crate::client::time::now_unix_ms(), AuditAction::Unknown);
    Told { kind: AuditKind::Suppressed, time_unix_ms, caller, action, subject: String::new(), count }
}

/// What an event says; the rest of an [`drover_schemas::audit::AuditEvent`] follows from it and its place.
#[derive(Debug, Clone)]
pub struct Told {
    kind: AuditKind,
    time_unix_ms: u64,
    caller: Caller,
    action: AuditAction,
    subject: String,
    count: u64,
}

#[cfg(test)]
mod tests;
