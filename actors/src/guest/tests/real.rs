//! Against the real agent, in this process.

use std::os::unix::fs::PermissionsExt as _;

use drover_agent::door::Door;
use drover_agent::emit::Events;
use drover_agent::facts::Facts;
use drover_agent::power::Power;
use drover_agent::runs::Runs;
use drover_agent::{Agent, conn};
use drover_schemas::guest::*;
use drover_schemas::{ErrorCode, RequestId};
use tokio_util::sync::CancellationToken;

use super::*;

fn guest() -> Hypervisor {
    let facts = Facts {
        release: &drover_agent::release::Release::THIS,
        kind: GuestKind::Vm,
        boot_id: "boot-1".into(),
        instance: "i".into(),
        booted_unix_ms: Some(0),
    };
    // No test here starts a run.
    let runs = Runs::new("/nonexistent".into(), "/nonexistent".into(), &facts.boot_id);
    let events = Events::open(std::path::Path::new("/proc/none"), &facts.boot_id);
    let door = Door::new(facts);
    door.open(Agent::new(&door, Power::Nobody, runs, events, None));
    Hypervisor::start(move |socket| {
        let place = door.connections.take().unwrap();
        conn::serve(Box::new(socket), conn::Came { door: std::sync::Arc::clone(&door), place })
    })
}

async fn linked() -> (Hypervisor, Link) {
    let guest = guest();
    let link = connect(&guest.socket()).await.unwrap();
    (guest, link)
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["sh".into(), "-c".into(), script.into()], ..Default::default() }
}

fn exec(link: &Link, request: &ExecRequest, credit: u64) -> GuestStream {
    link.open(Open { verb: verb::EXEC.into(), credit, body: body(request), ..Open::default() }).unwrap()
}

async fn put(
    link: &Link,
    request: &PutRequest,
    data: &[u8],
    id: Option<RequestId>,
) -> Result<PutResult, ErrorCode> {
    let open = Open { verb: verb::PUT.into(), request_id: id, body: body(request), ..Open::default() };
    let stream = link.open(open).unwrap();
    // A refusal may come while bytes are still on their way.
    let _ = stream.send(Channel::Data, Bytes::copy_from_slice(data), true).await;
    drain(&stream, 0).await.2.map_err(|e| e.code)
}

fn gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie is as good as gone: whoever adopts it will reap it.
    stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn the_agent_greets_and_answers() {
    let (_guest, link) = linked().await;
    assert_eq!((link.hello().proto, link.hello().boot_id.as_str()), (1, "boot-1"));
    let pong: PingResult = read(&link.call(verb::PING, None, DEADLINE, Bytes::new()).await.unwrap());
    assert_eq!(pong.boot_id, "boot-1");
    let info: InfoResult = read(&link.call(verb::INFO, None, DEADLINE, Bytes::new()).await.unwrap());
    assert_eq!(info.os, "linux");
    let health: HealthResult = read(&link.call(verb::HEALTH, None, DEADLINE, Bytes::new()).await.unwrap());
    assert!(health.memory_total_bytes > 0);
}

#[tokio::test]
async fn mistakes_are_named() {
    let (_guest, link) = linked().await;
    let refused = async |verb: &str, bytes: Bytes| match link.call(verb, None, DEADLINE, bytes).await {
        Err(CallError::Guest(error)) => error,
        other => panic!("{other:?}"),
    };
    let lacks = link.call("dance", None, DEADLINE, Bytes::new()).await;
    assert!(matches!(lacks, Err(CallError::Link(LinkError::Lacks { .. }))), "{lacks:?}");
    assert_eq!(refused(verb::SHUTDOWN, Bytes::new()).await.code, ErrorCode::Unsupported);
    let typo = refused(verb::EXEC, body(&serde_json::json!({"argv": ["true"], "cmd": "x"}))).await;
    assert!(typo.code == ErrorCode::InvalidArgument && typo.message.contains("cmd"), "{typo}");
    let exec = async |request: ExecRequest| refused(verb::EXEC, body(&request)).await.code;
    assert_eq!(exec(ExecRequest::default()).await, ErrorCode::InvalidArgument);
    assert_eq!(exec(ExecRequest { argv: vec!["/no/such".into()], ..sh("") }).await, ErrorCode::NotFound);
    assert_eq!(
        exec(ExecRequest { argv: vec!["/etc/passwd".into()], ..sh("") }).await,
        ErrorCode::PermissionDenied
    );
    assert_eq!(exec(ExecRequest { cwd: Some("/no/such".into()), ..sh("") }).await, ErrorCode::NotFound);
    assert_eq!(exec(ExecRequest { user: Some("nobody-here".into()), ..sh("") }).await, ErrorCode::NotFound);
    assert!(link.is_open());
}

#[tokio::test]
async fn a_command_has_its_own_environment_and_exit_code() {
    let (_guest, link) = linked().await;
    let mut request = sh("echo \"$A:$CARGO_MANIFEST_DIR\"; pwd; echo oops >&2; exit 7");
    request.env.insert("A".into(), "b c".into());
    request.cwd = Some("/".into());
    let (out, err, end) = drain::<ExecResult>(&exec(&link, &request, 1 << 16), 1 << 16).await;
    assert_eq!((out.as_slice(), err.as_slice()), (&b"b c:\n/\n"[..], &b"oops\n"[..]));
    let end = end.unwrap();
    assert_eq!((end.exit_code, end.signal, end.timed_out), (Some(7), None, false));
    assert_eq!((end.stdout_bytes, end.stderr_bytes), (7, 5));
    let killed = drain::<ExecResult>(&exec(&link, &sh("kill -9 $$"), 0), 0).await.2.unwrap();
    assert_eq!((killed.exit_code, killed.signal), (None, Some(9)));
}

#[tokio::test]
async fn bytes_go_through_a_command_unchanged() {
    let (_guest, link) = linked().await;
    let data: Bytes = (0..3_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect::<Vec<_>>().into();
    let request = ExecRequest { argv: vec!["cat".into()], stdin: true, ..Default::default() };
    let stream = exec(&link, &request, 10_000);
    let (sent, (out, _, end)) =
        tokio::join!(stream.send(Channel::Stdin, data.clone(), true), drain::<ExecResult>(&stream, 100_000),);
    sent.unwrap();
    assert_eq!(end.unwrap().exit_code, Some(0));
    assert!(out == data);
}

#[tokio::test]
async fn input_that_nobody_reads_holds_nothing_up() {
    let (_guest, link) = linked().await;
    let request = ExecRequest { stdin: true, ..sh("exec <&-; echo done; read line < /dev/zero; true") };
    let request = ExecRequest { timeout_ms: Some(300), kill_grace_ms: Some(0), ..request };
    let stream = exec(&link, &request, 1 << 16);
    stream.send(Channel::Stdin, vec![0; 1 << 20].into(), true).await.unwrap();
    let (out, _, end) = drain::<ExecResult>(&stream, 1 << 16).await;
    assert_eq!(out, b"done\n");
    assert!(end.unwrap().timed_out);
}

#[tokio::test]
async fn output_waits_for_credit_to_the_byte() {
    let (_guest, link) = linked().await;
    let stream = exec(&link, &sh("echo $$; exec yes"), 0);
    let mut seen = Vec::new();
    for limit in [1, 10, 70_000, 70_001] {
        stream.grant(Channel::Stdout, limit);
        while (seen.len() as u64) < limit {
            match stream.recv().await.unwrap() {
                StreamEvent::Data { data, .. } => seen.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen.len() as u64, limit);
    }
    let pid = String::from_utf8(seen.split(|b| *b == b'\n').next().unwrap().to_vec()).unwrap();
    assert!(!gone(&pid));
    drop(stream);
    until("a cancelled command is killed", || gone(&pid)).await;
    until("its number is free again", || link.shared().state().streams.is_empty()).await;
}

#[tokio::test]
async fn a_deadline_kills_the_whole_group() {
    let (_guest, link) = linked().await;
    let request = ExecRequest {
        timeout_ms: Some(200),
        kill_grace_ms: Some(100),
        ..sh(
            "(trap '' TERM; echo $BASHPID; while :; do sleep 1000; done) & echo $!; trap '' TERM; while :; do wait; done",
        )
    };
    let (out, _, end) = drain::<ExecResult>(&exec(&link, &request, 1 << 16), 1 << 16).await;
    let end = end.unwrap();
    assert_eq!((end.timed_out, end.signal), (true, Some(9)));
    let out = String::from_utf8(out).unwrap();
    for pid in out.lines().filter(|l| !l.is_empty()) {
        until("a member of the group is killed", || gone(pid)).await;
    }

    let stream = link
        .open(Open {
            verb: verb::EXEC.into(),
            deadline: Some(Duration::from_millis(100)),
            credit: 100,
            body: body(&sh("echo $$; exec sleep 1000")),
            ..Open::default()
        })
        .unwrap();
    let (out, _, end) = drain::<ExecResult>(&stream, 100).await;
    assert_eq!(end.unwrap_err().code, ErrorCode::DeadlineExceeded);
    assert!(gone(&String::from_utf8(out).unwrap()));
}

#[tokio::test]
async fn a_lost_link_ends_its_commands() {
    let (_guest, link) = linked().await;
    let stream = exec(&link, &sh("echo $$; exec sleep 1000"), 100);
    let Some(StreamEvent::Data { data, .. }) = stream.recv().await else { panic!("the pid comes first") };
    let pid = String::from_utf8(data.to_vec()).unwrap();
    let closed = link.closed();
    link.close();
    assert!(matches!(closed.await, LinkError::GivenUp));
    let Some(StreamEvent::End(Err(error))) = stream.recv().await else { panic!("the stream ends") };
    assert_eq!(error.code, ErrorCode::GuestUnreachable);
    assert_eq!(stream.recv().await, None);
    assert!(matches!(
        link.open(Open { verb: verb::PING.into(), ..Open::default() }),
        Err(LinkError::GivenUp)
    ));
    until("its command is killed", || gone(&pid)).await;
}

#[tokio::test]
async fn files_arrive_whole_or_not_at_all() {
    let (guest, link) = linked().await;
    let path = guest.dir.path().join("a/b/file");
    let text = path.to_str().unwrap().to_owned();
    let data: Vec<u8> = (0..1_000_003u32).map(|n| (n * 7) as u8).collect();
    let request = PutRequest {
        path: text.clone(),
        size: data.len() as u64,
        mode: Some(0o640),
        create_dirs: true,
        ..Default::default()
    };
    assert_eq!(
        put(&link, &PutRequest { create_dirs: false, ..request.clone() }, &data, None).await,
        Err(ErrorCode::NotFound)
    );
    let done = put(&link, &request, &data, None).await.unwrap();
    assert_eq!(done.size, data.len() as u64);
    assert!(std::fs::read(&path).unwrap() == data);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);

    let again = PutRequest { sha256: Some("0".repeat(64)), ..request.clone() };
    assert_eq!(put(&link, &again, &data, None).await, Err(ErrorCode::InvalidArgument));
    assert_eq!(put(&link, &request, &data[1..], None).await, Err(ErrorCode::InvalidArgument));
    let short = PutRequest { size: 5, ..request.clone() };
    assert_eq!(put(&link, &short, &data, None).await, Err(ErrorCode::InvalidArgument));
    let half = link.open(Open { verb: verb::PUT.into(), body: body(&request), ..Open::default() }).unwrap();
    half.send(Channel::Data, Bytes::from_static(b"half"), false).await.unwrap();
    drop(half);
    assert!(std::fs::read(&path).unwrap() == data, "the old file stays");
    until("no draft is left", || std::fs::read_dir(path.parent().unwrap()).unwrap().count() == 1).await;

    let ranges = vec![FileRange { off: 3, len: 700_000 }];
    let get = GetRequest { path: text, ranges: Some(ranges), max_size: None };
    let open = Open { verb: verb::GET.into(), credit: 1000, body: body(&get), ..Open::default() };
    let stream = link.open(open).unwrap();
    let Some(StreamEvent::Head(head)) = stream.recv().await else { panic!("the head comes first") };
    assert_eq!(read::<GetHead>(&head).size, data.len() as u64);
    let (out, _, end) = drain::<GetResult>(&stream, 200_000).await;
    assert!(out == data[3..700_003]);
    let end = end.unwrap();
    assert_eq!((end.size, end.mode), (data.len() as u64, 0o640));
    assert_eq!(end.sha256, done.sha256, "the digest is over the whole file");
}

#[tokio::test]
async fn the_same_request_id_has_one_effect_over_all_links() {
    let (guest, link) = linked().await;
    let other = connect(&guest.socket()).await.unwrap();
    let id = Some(RequestId::from_u128(7));
    let log = guest.dir.path().join("log");
    let request = body(&sh(&format!("echo x >> {}; sleep 0.1; exit 4", log.display())));
    let call = |link: &Link| {
        let (link, request) = (link.clone(), request.clone());
        async move { read::<ExecResult>(&link.call(verb::EXEC, id, DEADLINE, request).await.unwrap()) }
    };
    let (first, second) = tokio::join!(call(&link), call(&other));
    drop(link);
    assert_eq!((first.exit_code, &first), (Some(4), &second));
    assert_eq!(call(&other).await, first);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "x\n");
    match other.call(verb::EXEC, id, DEADLINE, body(&sh("true"))).await {
        Err(CallError::Guest(error)) => assert_eq!(error.code, ErrorCode::Conflict),
        other => panic!("{other:?}"),
    }
    // What failed without an effect does not use the id up.
    let put_id = Some(RequestId::from_u128(8));
    let request = PutRequest { path: "/no/such/dir/file".into(), ..Default::default() };
    assert_eq!(put(&other, &request, b"", put_id).await, Err(ErrorCode::NotFound));
    assert_eq!(put(&other, &request, b"", put_id).await, Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn streams_are_capped_and_control_passes_bulk() {
    let (_guest, link) = linked().await;
    let busy: Vec<_> = (0..MAX_STREAMS - 1).map(|_| exec(&link, &sh("exec yes"), 1 << 16)).collect();
    let pong = link.call(verb::PING, None, DEADLINE, Bytes::new()).await;
    assert!(pong.is_ok());
    let last = exec(&link, &sh("exec sleep 1000"), 0);
    assert!(matches!(
        link.open(Open { verb: verb::PING.into(), ..Open::default() }),
        Err(LinkError::Full { limit: MAX_STREAMS })
    ));
    drop(busy);
    until("numbers come back", || link.shared().state().streams.len() <= 1).await;
    link.call(verb::PING, None, DEADLINE, Bytes::new()).await.unwrap();
    // Its command is killed before its number comes back.
    drop(last);
    until("all of them", || link.shared().state().streams.is_empty()).await;
}

#[tokio::test]
async fn a_booting_guest_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let (info, cancel) = (HelloInfo::default(), CancellationToken::new());
    let last = LastError::default();
    let waiting = connect_when_ready(&path, &info, &cancel, DEADLINE, &last);
    let booting = async {
        // First no socket, then a guest without an agent, then the agent.
        let listener = UnixListener::bind(&path).unwrap();
        drop(listener.accept().await.unwrap());
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let guest = guest();
        // Another name for the socket itself: a link would not be followed.
        std::fs::hard_link(guest.socket(), &path).unwrap();
        guest
    };
    let (link, _guest) = tokio::join!(waiting, booting);
    assert!(link.unwrap().0.is_open());
}

#[tokio::test]
async fn an_idle_link_holds_no_buffer_and_dies_with_its_handles() {
    let (_guest, link) = linked().await;
    let (out, _, _) =
        drain::<ExecResult>(&exec(&link, &sh("head -c 1000000 /dev/zero"), 1 << 20), 1 << 20).await;
    assert_eq!(out.len(), 1_000_000);
    let closed = link.closed();
    assert!(std::mem::size_of_val(&*link.shared().state()) < 1024);
    drop(link);
    assert!(matches!(closed.await, LinkError::GivenUp));
}

#[tokio::test]
async fn requests_move_to_the_next_agent_and_what_is_open_goes_on_at_the_first() {
    let ((first, old), (_second, new)) = (linked().await, linked().await);
    let stream = exec(&old, &ExecRequest { stdin: true, ..sh("read line; echo heard $line") }, 1 << 16);
    old.move_to(&new);
    old.call(verb::PING, None, DEADLINE, Bytes::new()).await.unwrap();
    assert_eq!(old.shared().state().streams.len(), 1);
    stream.send(Channel::Stdin, Bytes::from_static(b"you\n"), true).await.unwrap();
    let (out, _, end) = drain::<ExecResult>(&stream, 1 << 16).await;
    assert_eq!((&out[..], end.unwrap().exit_code), (&b"heard you\n"[..], Some(0)));
    // Without a handle and a stream the first connection ends, and nobody needs it.
    let closed = old.closed();
    drop((old, stream));
    assert!(matches!(closed.await, LinkError::GivenUp));
    drop(first);
    new.call(verb::PING, None, DEADLINE, Bytes::new()).await.unwrap();
}
