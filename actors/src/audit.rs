//! Who did what: each request that changes something or reaches into a guest, and each refusal, becomes an event of
//! the host's audit; never its content.
//!
//! A note never waits and costs a request no commit: notes are gathered in memory and go to the outbox several at a
//! time, from where they reach the stream like the events of a VM, once and in order, over an absent bus and the end
//! of the daemon. What that risks: of a daemon that is killed, the notes of its last moment ([`LINGER`]) are lost;
//! the events of VMs, which are in the journal before the answer, still name the request.

pub(crate) mod caller;
mod rates;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use drover_schemas::audit::{AuditAction, AuditEvent, AuditKind, Caller, GuestTarget, MAX_SUBJECT, told};
use drover_schemas::codec::Format;
use drover_schemas::subject::{Family, Subject, Subjects};
use drover_schemas::verbs::{self, Class, Plane, Role, VerbRow};
use drover_schemas::{ErrorCode, RequestId, Token, headers};
use tokio::sync::{mpsc, oneshot};

use self::rates::{Rates, Sort, Whose};
use crate::ingress::request::{header, namespace_of};
use crate::journal::JournalHandle;
use crate::services::now_ms;

/// Notes that wait for the journal.
const QUEUE: usize = 2_048;
/// How long notes are gathered before they go to the journal.
const LINGER: Duration = Duration::from_millis(50);

/// A request as the audit sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The subject, or what was sent where that is none of the contract's.
    pub subject: Result<&'a Subject, &'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// Its reply subject.
    pub reply: Option<&'a str>,
    /// Its body, of which only what [`GuestTarget`] has is told.
    pub body: Option<(Format, &'a [u8])>,
}

/// Takes notes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Token,
    subjects: Subjects,
    queue: mpsc::Sender<Entry>,
    rates: Mutex<Rates>,
}

#[derive(Debug)]
enum Entry {
    Note(Box<Note>),
    /// Answered when everything before it is in the journal.
    Settle(oneshot::Sender<()>),
}

/// An event without its place in the audit.
#[derive(Debug)]
struct Note {
    event: AuditEvent,
    sort: Sort,
}

impl Audit {
    /// Starts the audit of `host`. It ends when the last handle is gone.
    #[must_use]
    pub fn start(journal: JournalHandle, subjects: Subjects, host: Token) -> Self {
        let (audit, queued) = Self::new(subjects, host);
        tokio::spawn(write::run(Arc::downgrade(&audit.0), journal, queued));
        audit
    }

    fn new(subjects: Subjects, host: Token) -> (Self, mpsc::Receiver<Entry>) {
        let (queue, queued) = mpsc::channel(QUEUE);
        let rates = Mutex::new(Rates::new(Instant::now()));
        (Self(Arc::new(Inner { host, subjects, queue, rates })), queued)
    }

    /// Notes what came of a request, if it is one to be noted; never waits.
    pub fn note(&self, asked: &Asked<'_>, outcome: Result<(), ErrorCode>) {
        let row = asked.subject.ok().and_then(row_of);
        let Some(sort) = sort(row, outcome) else { return };
        let namespace = self.0.namespace(asked);
        if self.0.rates().admit(namespace.as_ref(), sort, Instant::now()) {
            let event = self.0.event(asked, namespace, row, outcome);
            self.0.put(Note { event, sort });
        }
    }

    /// Notes that a frame of a stream wants the answers at `reply`, which is no inbox; they go on to the one before.
    pub fn refused_frame(&self, subject: &str, headers: Option<&HeaderMap>, reply: &str) {
        let parsed = self.0.subjects.parse(subject);
        let subject = parsed.as_ref().ok_or(subject);
        let none = HeaderMap::new();
        let asked = Asked { subject, headers: headers.unwrap_or(&none), reply: Some(reply), body: None };
        self.note(&asked, Err(ErrorCode::PermissionDenied));
    }

    /// Waits until everything that was noted is in the journal.
    pub async fn settled(&self) {
        let (done, settled) = oneshot::channel();
        if self.0.queue.send(Entry::Settle(done)).await.is_ok() {
            // An error: the writer has ended, and nothing is written any more.
            let _ = settled.await;
        }
    }
}

impl Inner {
    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace that a request is about. That of a placed create stands in a header, and a subject that is none
    /// of the contract's may still say whose it is.
    fn namespace(&self, asked: &Asked<'_>) -> Option<Token> {
        match asked.subject {
            Ok(Subject::Host { verb, .. }) if verb == "create" => {
                Token::new(header(asked.headers, headers::NAMESPACE)?).ok()
            }
            Ok(Subject::Io { ns, .. }) => Some(ns.clone()),
            Ok(subject) => namespace_of(subject).cloned(),
            Err(text) => {
                let mut rest = text.strip_prefix(self.subjects.root().as_str())?.split('.').skip(2);
                (rest.next() == Some("cmd")).then(|| Token::new(rest.next()?).ok()).flatten()
            }
        }
    }

    fn event(
        &self,
        asked: &Asked<'_>,
        namespace: Option<Token>,
        row: Option<&VerbRow>,
        outcome: Result<(), ErrorCode>,
    ) -> AuditEvent {
        let request_id = header(asked.headers, headers::REQUEST_ID);
        let (subject, vm) = match asked.subject {
            // Who knows the token of a stream may write to it.
            Ok(Subject::Io { ns, .. }) => (self.subjects.frames(Some(ns)), None),
            Ok(subject) => (self.subjects.build(subject), vm_of(subject).cloned()),
            Err(text) => (text.to_owned(), None),
        };
        AuditEvent {
            reporter: self.host.clone(),
            seq: 0,
            kind: if outcome.is_ok() { AuditKind::Done } else { AuditKind::Refused },
            time_unix_ms: now_ms(),
            action: AuditAction::Request,
            caller: caller::of(asked.headers, asked.reply),
            subject: told(&subject, MAX_SUBJECT),
            namespace,
            vm,
            verb: row.map(|row| row.verb.to_owned()),
            target: asked
                .body
                .filter(|_| row.is_some_and(|row| row.plane == Plane::VmGuest))
                .and_then(|(format, body)| GuestTarget::of(format, body)),
            request_id: request_id.and_then(|id| id.parse::<RequestId>().ok()),
            error: outcome.err(),
            count: 1,
        }
    }

    fn put(&self, note: Note) {
        if let Err(refused) = self.queue.try_send(Entry::Note(Box::new(note)))
            && let Entry::Note(note) = refused.into_inner()
        {
            self.untold(&note);
        }
    }

    /// Counts a note that could not be told after all.
    fn untold(&self, note: &Note) {
        let (ns, count) = (note.event.namespace.as_ref(), note.event.count);
        self.rates().suppress(ns, note.sort, count, Instant::now());
    }

    /// Notes what was suppressed since, as far as there is room.
    fn note_suppressed(&self) {
        // The lock ends with the statement: what does not fit is counted again.
        let counts = self.rates().suppressed(Instant::now());
        for (whose, sort, count) in counts {
            let namespace = match whose {
                Whose::Namespace(ns) => Some(ns),
                Whose::Host | Whose::Crowd => None,
            };
            let event = AuditEvent {
                reporter: self.host.clone(),
                seq: 0,
                kind: AuditKind::Suppressed,
                time_unix_ms: now_ms(),
                action: AuditAction::Request,
                caller: Caller::default(),
                subject: String::new(),
                namespace,
                vm: None,
                verb: None,
                target: None,
                request_id: None,
                error: None,
                count,
            };
            self.put(Note { event, sort });
        }
    }
}

/// What kind of note a request makes. A look that was answered makes none, unless it reached into a guest.
fn sort(row: Option<&VerbRow>, outcome: Result<(), ErrorCode>) -> Option<Sort> {
    let is_within = row.is_some_and(|row| row.plane == Plane::VmGuest && row.role == Role::Guest);
    match (outcome, row.map(|row| row.class)) {
        (Err(_), _) => Some(Sort::Refusal),
        (Ok(()), Some(Class::Read)) if is_within => Some(Sort::Guest),
        (Ok(()), Some(Class::Journalled | Class::Setting)) => Some(Sort::Change),
        (Ok(()), Some(Class::Guest | Class::Stream)) => Some(Sort::Guest),
        (Ok(()), Some(Class::Read) | None) => None,
    }
}

/// The verb of a request in the table, if it is there.
#[must_use]
pub fn row_of(subject: &Subject) -> Option<&'static VerbRow> {
    match subject {
        Subject::VmPool { verb, .. } => verbs::find(Plane::Pool, verb.as_str()),
        Subject::Vm { verb, .. } => verbs::find(Plane::Vm, verb.as_str()),
        Subject::Guest { verb, .. } => verbs::find(Plane::VmGuest, verb.as_str()),
        Subject::Host { verb, .. } => verbs::find(Plane::Host, verb),
        Subject::Registry { family, verb, .. } => verbs::find(plane_of(*family)?, verb.as_str()),
        _ => None,
    }
}

/// The plane of a family's verbs; none if this version offers no verb of it.
#[must_use]
pub const fn plane_of(family: Family) -> Option<Plane> {
    match family {
        Family::Events => Some(Plane::Events),
        Family::Template => Some(Plane::Template),
        Family::Contract => Some(Plane::Contract),
        Family::Image | Family::Snapshot => None,
    }
}

/// The VM that a request is about, if it is about one.
#[must_use]
pub const fn vm_of(subject: &Subject) -> Option<&Token> {
    match subject {
        Subject::Vm { name, .. } | Subject::Guest { name, .. } => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
