//! A journal that was restored from a backup is older than the world: VMs were started, stopped and deleted since.
//! The bus knows of it. Before anything is adopted, each row is brought to where the last event of its VM is, and
//! a row whose VM is gone, or somebody else's, is taken out; what may run for it is then an orphan that an operator
//! sees. Without that a VM that was started since would be ended, for its row says that it is down.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::{self, ErrorCode, context::GetStreamErrorKind, stream::LastRawMessageErrorKind};
use drover_schemas::event::{VmEvent, ce};
use drover_schemas::state::{Desired, VmState};
use drover_schemas::subject::Subjects;
use drover_schemas::{Token, VmId, codec};
use tracing::{info, warn};

use crate::bus::claims::{Claim, Claims, NameKey, Phase};
use crate::bus::egress::decide::parse_event_id;
use crate::chain;
use crate::journal::{
    Batch, JournalError, JournalHandle, Op, OpenError, Snapshot, VmRow, audit_stream_key, host_stream_key,
    restore,
};

/// Pause between two attempts to read from the bus.
const RETRY: Duration = Duration::from_secs(1);

/// Where it is told what happened since.
#[derive(Debug)]
pub struct Bus<'a> {
    /// A connection.
    pub js: jetstream::Context,
    /// Who has which name.
    pub claims: &'a Claims,
    /// The subjects of events.
    pub subjects: &'a Subjects,
    /// The stream of events.
    pub stream: &'a str,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// VMs that had gone on.
    pub brought_up: usize,
    /// VMs that are not this host's any more, with the reason.
    pub taken_out: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Since {
    Nothing,
    Went(Box<VmEvent>, u64),
    NotOurs(String),
}

/// A restored journal cannot be brought to what the bus knows.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    /// The journal cannot be read or written.
    #[error("bring the restored journal in {folder} up to date")]
    Journal {
        /// The state folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<JournalError>,
    },
    /// That it is up to date cannot be noted.
    #[error("note in {folder} that the restored journal is up to date")]
    Mark {
        /// The state folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
}

/// If the journal of `folder` was restored since the last daemon, brings it to what the bus knows. Answers what
/// was found, and what the journal holds now.
///
/// # Errors
/// [`CatchUpError`]; the next start tries again.
pub async fn if_restored(
    folder: &Path,
    journal: &JournalHandle,
    bus: &Bus<'_>,
    host: &Token,
    snapshot: Snapshot,
) -> Result<(Option<Report>, Snapshot), CatchUpError> {
    if !restore::is_restored(folder) {
        return Ok((None, snapshot));
    }
    let failed = |source| CatchUpError::Journal { folder: folder.to_owned(), source: Box::new(source) };
    let report = catch_up(journal, bus, host, &snapshot.vms).await.map_err(failed)?;
    let snapshot = journal.load().map_err(failed)?;
    restore::set_caught_up(folder)
        .map_err(|source| CatchUpError::Mark { folder: folder.to_owned(), source: Box::new(source) })?;
    Ok((Some(report), snapshot))
}

async fn catch_up(
    journal: &JournalHandle,
    bus: &Bus<'_>,
    host: &Token,
    rows: &[VmRow],
) -> Result<Report, JournalError> {
    warn!("the journal was restored from a backup; the bus is asked what happened since");
    let mut report = Report::default();
    if !insist("the stream of events", async || stream_is_there(bus).await).await {
        info!("the bus has no stream of events: nothing happened since that it could tell");
        return Ok(report);
    }
    for row in rows.iter().filter(|row| row.owned && row.quarantined.is_none()) {
        let name = NameKey { namespace: row.namespace.clone(), name: row.name.clone() };
        let claim = insist("a name's claim", async || bus.claims.lookup(&name).await.map_err(text)).await;
        let filter = bus.subjects.vm_events(&row.namespace, &row.name);
        let last = insist("a VM's last event", async || last_of(bus, &filter).await).await;
        let last = last.and_then(|last| Some((codec::decode::<VmEvent>(&last.payload).ok()?, last.sequence)));
        match since(row, host, claim.as_ref().map(|(claim, _)| claim), last) {
            Since::Nothing => {}
            Since::Went(event, stream_seq) => {
                info!(vm_id = %row.vm_id, seq = event.seq, state = %event.state.as_str(), "it went on since the backup");
                report.brought_up += 1;
                let acknowledged = Op::AckOutbox { key: row.vm_id, seq: event.seq, stream_seq };
                let row = Box::new(brought_up(row, &event));
                journal.commit(Batch::new().essential().with(acknowledged).with(Op::PutVm(row))).await?;
            }
            Since::NotOurs(reason) => {
                warn!(vm_id = %row.vm_id, namespace = %row.namespace, name = %row.name, reason, "its row is taken out");
                report.taken_out.push(format!("{}/{}: {reason}", row.namespace, row.name));
                journal.commit(Batch::take_out(row)).await?;
            }
        }
    }
    let (installation, subjects) = (journal.installation(), bus.subjects);
    own_log(journal, bus, host_stream_key(installation), &subjects.host_events(host)).await?;
    own_log(journal, bus, audit_stream_key(installation), &subjects.host_audit(host)).await?;
    Ok(report)
}

/// Says what became of a VM, from who has its name and from the last event under it.
fn since(row: &VmRow, host: &Token, claim: Option<&Claim>, last: Option<(VmEvent, u64)>) -> Since {
    if let Some(claim) = claim {
        if claim.vm_id != row.vm_id {
            return Since::NotOurs(format!("its name belongs to VM {} now", claim.vm_id));
        }
        if claim.host != *host {
            return Since::NotOurs(format!("it belongs to host {} now", claim.host));
        }
        if claim.phase == Phase::Gone {
            return Since::NotOurs("it was deleted after the backup".to_owned());
        }
    }
    match last.filter(|(event, _)| event.vm_id == row.vm_id) {
        // The name is still to be freed if the row says so as well.
        Some((event, _)) if event.last && !row.released => {
            Since::NotOurs("it was deleted after the backup".to_owned())
        }
        Some((event, stream_seq)) if event.seq > row.seq => Since::Went(Box::new(event), stream_seq),
        _ => Since::Nothing,
    }
}

fn brought_up(row: &VmRow, event: &VmEvent) -> VmRow {
    VmRow {
        state: event.state,
        desired: match event.state {
            VmState::Stopped | VmState::Stopping | VmState::Hibernated => Desired::Stopped,
            VmState::Paused => Desired::Paused,
            VmState::Deleting => Desired::Deleted,
            VmState::Failed | VmState::Unknown | VmState::Unrecognized => row.desired,
            VmState::Creating | VmState::Starting | VmState::Running | VmState::Backoff => Desired::Running,
        },
        seq: event.seq,
        revision: event.revision.max(row.revision),
        incarnation: event.incarnation.max(row.incarnation),
        state_since_unix_ms: event.time_unix_ms,
        cause: event.cause.clone(),
        operation: None,
        ..row.clone()
    }
}

/// A log of the host's own goes on after the last event that the stream has of it.
async fn own_log(
    journal: &JournalHandle,
    bus: &Bus<'_>,
    key: VmId,
    filter: &str,
) -> Result<(), JournalError> {
    let Some(last) = insist("the host's last event", async || last_of(bus, filter).await).await else {
        return Ok(());
    };
    let id = last.headers.get(ce::ID).map(|id| id.as_str().to_owned()).unwrap_or_default();
    match parse_event_id(&id) {
        Some((owner, seq)) if owner == key && journal.position(key)?.is_none_or(|p| p.seq < seq) => {
            let acknowledged = Op::AckOutbox { key, seq, stream_seq: last.sequence };
            journal.commit(Batch::new().essential().with(acknowledged)).await
        }
        _ => Ok(()),
    }
}

async fn stream_is_there(bus: &Bus<'_>) -> Result<bool, String> {
    match bus.js.get_stream(bus.stream).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refused) if refused.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(false)
            }
            _ => Err(text(error)),
        },
    }
}

async fn last_of(bus: &Bus<'_>, filter: &str) -> Result<Option<jetstream::message::StreamMessage>, String> {
    let stream = bus.js.get_stream_no_info(bus.stream).await.map_err(text)?;
    match stream.get_last_raw_message_by_subject(filter).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(text(error)),
    }
}

fn text(error: impl std::error::Error + 'static) -> String {
    chain(&error).to_string()
}

/// Asks until there is an answer.
async fn insist<T>(what: &str, ask: impl AsyncFn() -> Result<T, String>) -> T {
    let mut told = false;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if !told => {
                warn!(error, "the bus does not say yet: {what}; the host starts when it does");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests;
