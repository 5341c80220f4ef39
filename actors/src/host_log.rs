//! The host's own log of events: that it started, is ready, stops, and what an operator should look at.
//! It goes through the outbox like the events of a VM, so it arrives exactly once and in order.

use std::collections::BTreeMap;

use drover_schemas::event::{HostEvent, HostEventKind};
use drover_schemas::subject::{Subject, Subjects};
use drover_schemas::{Token, VmId, codec};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::chain;
use crate::cloud_event::attributes;
use crate::journal::{Batch, EventClass, JournalError, JournalHandle, Op, OutboxRow, host_stream_key};
use crate::services::now_ms;

/// Events that wait for the journal.
const QUEUE: usize = 256;
/// Rows that are read at a time.
const PAGE: usize = 256;

/// An event without its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNote {
    /// What kind of event.
    pub kind: HostEventKind,
    /// One sentence for a person.
    pub message: String,
    /// Facts by name.
    pub details: BTreeMap<String, String>,
}

impl HostNote {
    /// A note without facts.
    #[must_use]
    pub fn new(kind: HostEventKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: BTreeMap::new() }
    }

    /// An alarm; `name` is what a rule can match.
    #[must_use]
    pub fn alarm(name: &str, message: impl Into<String>) -> Self {
        Self::new(HostEventKind::Alarm, message).with("alarm", name)
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

/// Takes notes; cheap to clone.
#[derive(Debug, Clone)]
pub struct HostLog(mpsc::Sender<HostNote>);

impl HostLog {
    /// Starts the log of `host`. It ends when the last handle is gone.
    #[must_use]
    pub fn start(journal: JournalHandle, subjects: Subjects, host: Token) -> Self {
        let (notes, noted) = mpsc::channel(QUEUE);
        tokio::spawn(write(journal, subjects, host, noted));
        Self(notes)
    }

    /// Notes an event; never waits. A host that has 256 notes waiting has said enough.
    pub fn note(&self, note: HostNote) {
        if let Err(failure) = self.0.try_send(note) {
            warn!(%failure, "an event of the host was not taken");
        }
    }

    /// Notes an event and waits until the log has taken it.
    pub async fn note_soon(&self, note: HostNote) {
        let _ = self.0.send(note).await;
    }
}

async fn write(journal: JournalHandle, subjects: Subjects, host: Token, mut noted: mpsc::Receiver<HostNote>) {
    let mut last = match last_seq(&journal, host_stream_key(journal.installation())) {
        Ok(last) => last,
        Err(failure) => {
            return error!(error = %chain(&failure), "the host's own events cannot be written");
        }
    };
    while let Some(note) = noted.recv().await {
        let row = match row(&journal, &subjects, &host, last + 1, note) {
            Ok(row) => Box::new(row),
            Err(failure) => {
                error!(error = %chain(&failure), "an event of the host could not be encoded");
                continue;
            }
        };
        let op = Op::PutOutbox { class: EventClass::State, row };
        match journal.commit(Batch::new().essential().with(op)).await {
            Ok(()) => last += 1,
            Err(JournalError::Closed) => return,
            Err(failure) => error!(error = %chain(&failure), "an event of the host was not recorded"),
        }
    }
}

/// The last sequence of a log that was given: of what is published, or of what still waits.
pub(crate) fn last_seq(journal: &JournalHandle, key: VmId) -> Result<u64, JournalError> {
    let mut last = journal.position(key)?.map_or(0, |p| p.seq);
    loop {
        let page = journal.outbox_page(key, last + 1, PAGE)?;
        match page.last() {
            Some(row) => last = row.seq,
            None => return Ok(last),
        }
    }
}

fn row(
    journal: &JournalHandle,
    subjects: &Subjects,
    host: &Token,
    seq: u64,
    note: HostNote,
) -> Result<OutboxRow, codec::EncodeError> {
    let HostNote { kind, message, details } = note;
    let now = now_ms();
    let event = HostEvent { host: host.clone(), seq, time_unix_ms: now, kind, message, details };
    let token = Token::new(kind.as_str()).unwrap_or_else(|_| host.clone());
    Ok(OutboxRow {
        key: host_stream_key(journal.installation()),
        seq,
        subject: subjects.build(&Subject::HostEvent { host: host.clone(), kind: token }),
        filter: subjects.host_events(host),
        headers: attributes(host.as_str(), &format!("host.{}", kind.as_str()), now, host.to_string()),
        body: codec::encode(&event)?.into(),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{JournalConfig, open};

    async fn rows(journal: &JournalHandle, count: usize) -> Vec<HostEvent> {
        let key = host_stream_key(journal.installation());
        loop {
            let page = journal.outbox_page(key, 0, PAGE).unwrap();
            if page.len() >= count {
                return page.iter().map(|row| codec::decode(row.body.as_slice()).unwrap()).collect();
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_log_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let host = Token::new("h1").unwrap();
        let subjects = || Subjects::new(Token::new("drover").unwrap());
        for round in 1..=2_u64 {
            // The task of the last round lets go of the folder meanwhile.
            let config = JournalConfig::new(folder.path());
            let journal = tokio::task::spawn_blocking(move || open(&config)).await.unwrap().unwrap();
            let log = HostLog::start(journal.clone(), subjects(), host.clone());
            log.note(HostNote::new(HostEventKind::Started, "again"));
            log.note(HostNote::alarm("stream_replaced", "the stream is new").with("before", 1));
            let events = rows(&journal, usize::try_from(2 * round).unwrap()).await;
            assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=2 * round).collect::<Vec<_>>());
            assert_eq!(events[1].details["alarm"], "stream_replaced");
            drop(log);
            journal.close().await;
            drop(journal);
        }
    }
}
