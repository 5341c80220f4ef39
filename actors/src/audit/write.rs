//! From memory into the outbox, several notes at a time.

use std::sync::Weak;
use std::time::Duration;

use drover_schemas::audit::AuditEvent;
use drover_schemas::subject::{Subject, Subjects};
use drover_schemas::{Token, codec};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{error, warn};

use super::{Entry, Inner, LINGER, Note};
use crate::chain;
use crate::cloud_event::attributes;
use crate::host_log::last_seq;
use crate::journal::{Batch, EventClass, JournalError, JournalHandle, Op, OutboxRow, audit_stream_key};

/// Notes of one commit.
const BATCH: usize = 256;
/// How often it is looked for what was suppressed.
const LOOK: Duration = Duration::from_secs(5);

pub(super) async fn run(audit: Weak<Inner>, journal: JournalHandle, mut queued: mpsc::Receiver<Entry>) {
    let mut last = match last_seq(&journal, audit_stream_key(journal.installation())) {
        Ok(last) => last,
        Err(failure) => return error!(error = %chain(&failure), "the audit cannot be written"),
    };
    // At the start nothing was suppressed.
    let mut look = interval_at(Instant::now() + LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut entries = Vec::new();
    loop {
        let taken = tokio::select! {
            taken = queued.recv_many(&mut entries, BATCH) => taken,
            _ = look.tick() => {
                let Some(audit) = audit.upgrade() else { return };
                audit.note_suppressed();
                continue;
            }
        };
        if taken == 0 {
            return;
        }
        if entries.iter().all(|entry| matches!(entry, Entry::Note(_))) && taken < BATCH {
            tokio::time::sleep(LINGER).await;
            while entries.len() < BATCH
                && let Ok(entry) = queued.try_recv()
            {
                entries.push(entry);
            }
        }
        let mut settled: Vec<oneshot::Sender<()>> = Vec::new();
        let mut notes = Vec::new();
        for entry in entries.drain(..) {
            match entry {
                Entry::Note(note) => notes.push(*note),
                Entry::Settle(done) => settled.push(done),
            }
        }
        let Some(audit) = audit.upgrade() else { return };
        match store(&audit, &journal, last, &mut notes).await {
            Ok(()) => last += notes.len() as u64,
            Err(JournalError::Closed) => return,
            Err(failure) => {
                warn!(error = %chain(&failure), notes = notes.len(), "the audit could not be recorded");
                notes.iter().for_each(|note| audit.untold(note));
            }
        }
        for done in settled {
            let _ = done.send(());
        }
    }
}

/// Stores the notes, behind `last`, together or not at all. Those that cannot be encoded are left out.
async fn store(
    audit: &Inner,
    journal: &JournalHandle,
    last: u64,
    notes: &mut Vec<Note>,
) -> Result<(), JournalError> {
    let mut seq = last;
    let mut batch = Batch::new();
    notes.retain_mut(|note| {
        note.event.seq = seq + 1;
        match row(journal, &audit.subjects, &audit.host, &note.event) {
            Ok(row) => {
                seq += 1;
                batch.push(Op::PutOutbox { class: EventClass::Agent, row: Box::new(row) });
                true
            }
            Err(failure) => {
                error!(error = %chain(&failure), "an audit event could not be encoded");
                false
            }
        }
    });
    if batch.is_empty() { Ok(()) } else { journal.commit(batch).await }
}

fn row(
    journal: &JournalHandle,
    subjects: &Subjects,
    host: &Token,
    event: &AuditEvent,
) -> Result<OutboxRow, codec::EncodeError> {
    let kind = Token::new(event.kind.as_str()).unwrap_or_else(|_| host.clone());
    let what = format!("audit.{}", event.kind.as_str());
    let about = event.namespace.as_ref().unwrap_or(host);
    Ok(OutboxRow {
        key: audit_stream_key(journal.installation()),
        seq: event.seq,
        subject: subjects.build(&Subject::HostAudit { host: host.clone(), kind }),
        filter: subjects.host_audit(host),
        headers: attributes(host.as_str(), &what, event.time_unix_ms, about.to_string()),
        body: codec::encode(event)?.into(),
        status: None,
    })
}
