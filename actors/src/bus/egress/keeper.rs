//! Sees to the assets after every connect, and tells the lanes when they are there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{EgressReport, Shared};
use crate::bus::assets;
use crate::journal::{Batch, Op};

/// The longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(10);

pub(super) async fn run(shared: Arc<Shared>, ready: watch::Sender<bool>) {
    let cancel = shared.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = keep(shared, ready) => {}
    }
}

async fn keep(shared: Arc<Shared>, ready: watch::Sender<bool>) {
    let mut state = shared.bus.state.clone();
    loop {
        if state.wait_for(|s| s.connected).await.is_err() {
            return;
        }
        let connects = state.borrow_and_update().connects;
        look(&shared).await;
        ready.send_replace(true);
        tokio::select! {
            changed = state.wait_for(|s| !s.connected || s.connects != connects) => {
                if changed.is_err() {
                    return;
                }
            }
            () = shared.look_again.notified() => {}
        }
        ready.send_replace(false);
    }
}

/// Makes what is absent, until it is there.
async fn look(shared: &Shared) {
    let mut pause = Duration::from_millis(100);
    loop {
        match assets::ensure(&shared.js, &shared.config.assets).await {
            Ok(report) => {
                note_identity(shared, &report.stream_identity).await;
                shared.report(EgressReport::Assets(report));
                return;
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, source, "the assets of the bus are not ready");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Notices another stream under the name. Order is safe all the same: each lane finds out what its
/// filter holds.
async fn note_identity(shared: &Shared, now: &str) {
    let before = match shared.journal.stream_identity() {
        Ok(before) => before,
        Err(error) => return tracing::error!(%error, "the stream's identity could not be read"),
    };
    if before.as_deref() == Some(now) {
        return;
    }
    let op = Op::PutStreamIdentity(now.to_owned());
    if let Err(error) = shared.journal.commit(Batch::new().with(op).essential()).await {
        tracing::error!(%error, "the stream's identity could not be noted");
    }
    if let Some(before) = before {
        shared.report(EgressReport::StreamReplaced { before, now: now.to_owned() });
    }
}
