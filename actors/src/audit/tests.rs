use super::*;
use crate::host_log::last_seq;
use crate::journal::{JournalConfig, audit_stream_key, open};
use drover_schemas::codec;
use drover_schemas::verbs::find;

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn subjects() -> Subjects {
    Subjects::new(token("drover"))
}

fn vm(verb: &str) -> Subject {
    Subject::Vm { ns: token("acme"), name: token("web"), verb: token(verb) }
}

fn note(audit: &Audit, verb: &str, outcome: Result<(), ErrorCode>) {
    let (subject, headers) = (vm(verb), HeaderMap::new());
    let asked =
        Asked { subject: Ok(&subject), headers: &headers, reply: Some("_INBOX.alice.N.1"), body: None };
    audit.note(&asked, outcome);
}

async fn journal_of(folder: &std::path::Path) -> JournalHandle {
    let config = JournalConfig::new(folder);
    tokio::task::spawn_blocking(move || open(&config)).await.unwrap().unwrap()
}

fn told_by(journal: &JournalHandle) -> Vec<AuditEvent> {
    let page = journal.outbox_page(audit_stream_key(journal.installation()), 0, 10_000).unwrap();
    page.iter().map(|row| codec::decode(row.body.as_slice()).unwrap()).collect()
}

#[test]
fn a_look_that_is_answered_makes_no_note_and_every_refusal_makes_one() {
    for (plane, verb, wanted) in [
        (Plane::Vm, "get", None),
        (Plane::VmGuest, "exec", Some(Sort::Guest)),
        (Plane::VmGuest, "shutdown", Some(Sort::Guest)),
        (Plane::VmGuest, "ls", Some(Sort::Guest)),
        (Plane::VmGuest, "info", None),
        (Plane::Vm, "stop", Some(Sort::Change)),
        (Plane::Host, "drain", Some(Sort::Change)),
    ] {
        let row = find(plane, verb);
        assert!(row.is_some(), "{verb}");
        assert_eq!(super::sort(row, Ok(())), wanted, "{verb}");
        assert_eq!(super::sort(row, Err(ErrorCode::Busy)), Some(Sort::Refusal), "{verb}");
    }
    assert_eq!(super::sort(None, Err(ErrorCode::Unsupported)), Some(Sort::Refusal));
}

#[test]
fn a_request_is_told_to_the_namespace_that_it_names() {
    let (audit, _queued) = Audit::new(subjects(), token("h1"));
    let mut headers = HeaderMap::new();
    headers.insert(headers::NAMESPACE, "acme");
    let namespace =
        |subject| audit.0.namespace(&Asked { subject, headers: &headers, reply: None, body: None });
    assert_eq!(namespace(Err("drover.v1.cmd.acme.vm.x.pause.now")), Some(token("acme")));
    for host in ["drover.v1.host.h1.a.b.c", "drover.v1.cmd", "drover.v1.cmd.A.vm", "other.v1.cmd.acme.x", ""]
    {
        assert_eq!(namespace(Err(host)), None, "{host}");
    }
    let of_host = |verb: &str| Subject::Host { host: token("h1"), verb: verb.to_owned() };
    let (create, drain, stop) = (of_host("create"), of_host("drain"), vm("stop"));
    assert_eq!(namespace(Ok(&create)), Some(token("acme")));
    assert_eq!(namespace(Ok(&drain)), None);
    assert_eq!(namespace(Ok(&stop)), Some(token("acme")));
}

#[tokio::test]
async fn the_audit_goes_on_where_it_ended_and_holds_no_body() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=2_u64 {
        let journal = journal_of(folder.path()).await;
        let audit = Audit::start(journal.clone(), subjects(), token("h1"));
        note(&audit, "stop", Ok(()));
        note(&audit, "get", Ok(()));
        note(&audit, "start", Err(ErrorCode::InvalidState));
        audit.settled().await;
        let told = told_by(&journal);
        let seqs: Vec<u64> = told.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=2 * round).collect::<Vec<_>>());
        let [.., done, refused] = &told[..] else { panic!("{told:?}") };
        assert_eq!((done.kind, done.verb.as_deref(), done.error), (AuditKind::Done, Some("stop"), None));
        assert_eq!((refused.kind, refused.error), (AuditKind::Refused, Some(ErrorCode::InvalidState)));
        assert_eq!(refused.caller.user.as_deref(), Some("alice"));
        assert!(!refused.caller.verified);
        drop(audit);
        journal.close().await;
        drop(journal);
    }
}

#[tokio::test]
async fn a_flood_neither_waits_nor_grows_and_every_note_is_counted() {
    const FLOOD: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let journal = journal_of(folder.path()).await;
    let audit = Audit::start(journal.clone(), subjects(), token("h1"));
    // Nothing is awaited meanwhile, so the writer takes none of them.
    for _ in 0..FLOOD {
        note(&audit, "stop", Err(ErrorCode::Busy));
    }
    note(&audit, "stop", Ok(()));
    audit.settled().await;
    let told = told_by(&journal);
    assert!(told.len() < 300, "{}", told.len());
    assert_eq!(told.last().unwrap().kind, AuditKind::Done);
    let refused: u64 =
        told.iter().filter(|event| event.kind == AuditKind::Refused).map(|event| event.count).sum();
    let later = Instant::now() + Duration::from_secs(60);
    let untold: u64 = audit.0.rates().suppressed(later).iter().map(|(_, _, count)| count).sum();
    assert_eq!(refused + untold, FLOOD);
}

#[tokio::test]
async fn what_was_suppressed_is_told_as_one_sum() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal_of(folder.path()).await;
    let audit = Audit::start(journal.clone(), subjects(), token("h1"));
    audit.0.rates().suppress(None, Sort::Refusal, 17, Instant::now());
    audit.0.note_suppressed();
    audit.settled().await;
    let told = told_by(&journal);
    let [sum] = &told[..] else { panic!("{told:?}") };
    assert_eq!((sum.kind, sum.count, &sum.namespace), (AuditKind::Suppressed, 17, &None));
    assert_eq!(last_seq(&journal, audit_stream_key(journal.installation())).unwrap(), 1);
}

#[tokio::test]
async fn what_the_journal_does_not_take_is_counted_as_suppressed() {
    let folder = tempfile::tempdir().unwrap();
    let limits = crate::journal::OutboxLimits { max_bytes: 1, ..Default::default() };
    let config = JournalConfig { outbox: limits, ..JournalConfig::new(folder.path()) };
    let journal = tokio::task::spawn_blocking(move || open(&config)).await.unwrap().unwrap();
    let audit = Audit::start(journal.clone(), subjects(), token("h1"));
    note(&audit, "stop", Ok(()));
    audit.settled().await;
    assert_eq!(told_by(&journal).len(), 1, "the outbox was empty");
    note(&audit, "stop", Ok(()));
    audit.settled().await;
    assert_eq!(told_by(&journal).len(), 1);
    let untold = audit.0.rates().suppressed(Instant::now());
    assert_eq!(untold, [(Whose::Namespace(token("acme")), Sort::Change, 1)]);
}

#[tokio::test]
async fn a_frame_that_wants_its_answers_elsewhere_is_told_without_the_token_of_its_stream() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal_of(folder.path()).await;
    let audit = Audit::start(journal.clone(), subjects(), token("h1"));
    audit.refused_frame("drover.v1.io.acme.0123456789abcdef", None, "$JS.API.STREAM.DELETE.X");
    audit.settled().await;
    let told = told_by(&journal);
    let [event] = &told[..] else { panic!("{told:?}") };
    assert_eq!(event.subject, "drover.v1.io.acme.*");
    assert_eq!(
        (event.namespace.as_ref(), event.error),
        (Some(&token("acme")), Some(ErrorCode::PermissionDenied))
    );
}
