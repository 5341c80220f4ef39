//! Detached commands: read by several, over the end of connections and of the agent, each byte once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;

use drover_schemas::guest::*;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};
use tokio::time::{Instant, sleep};

use common::{DEADLINE, Guest, Host, PAUSE, Said, gone, sh, until};

fn id(n: u128) -> Option<RequestId> {
    Some(RequestId::from_u128(n))
}

fn detached(script: &str) -> ExecRequest {
    ExecRequest { detach: true, ..sh(script) }
}

fn from(run: RequestId) -> AttachRequest {
    AttachRequest { run, stdout_off: None, stderr_off: None, stdin: false, no_follow: false }
}

async fn start(host: &mut Host, n: u128, request: &ExecRequest) -> RunInfo {
    host.call(verb::EXEC, id(n), request).await.unwrap()
}

async fn attach(
    host: &mut Host,
    request: &AttachRequest,
) -> (Said, AttachHead, Result<AttachResult, ErrorBody>) {
    let mut said = Said::default();
    host.open(50, verb::ATTACH, None, request).await;
    let end = host.end(&mut said).await;
    let head = codec::decode(said.head.as_ref().expect("a head")).unwrap();
    (said, head, end)
}

async fn info(host: &mut Host, run: RequestId) -> RunInfo {
    let runs: RunsResult = host.call(verb::RUNS, None, &RunsRequest { run: Some(run) }).await.unwrap();
    runs.runs[0].clone()
}

/// The run once it has ended; looked at with pauses, in which a busy machine gets to run it.
async fn ended(host: &mut Host, run: RequestId) -> RunInfo {
    let until = Instant::now() + DEADLINE;
    loop {
        let info = info(host, run).await;
        if info.state != RunState::Running {
            return info;
        }
        assert!(Instant::now() < until, "still running: {info:?}");
        sleep(PAUSE).await;
    }
}

#[tokio::test]
async fn a_run_outlives_connections_and_the_agent() {
    let mut guest = Guest::start();
    let mut host = guest.host().await;
    let gate = guest.path("gate");
    let script = format!(
        "echo begun; echo oops >&2; while [ ! -e {} ]; do sleep 0.01; done; echo done; exit 7",
        gate.display()
    );
    let run = start(&mut host, 7, &detached(&script)).await;
    assert_eq!((run.run, run.state, run.user.as_str()), (id(7).unwrap(), RunState::Running, "root"));
    // Over another connection, while the first is gone.
    drop(host);
    let mut host = guest.host().await;
    let mut said = Said::default();
    host.open(1, verb::ATTACH, None, &from(run.run)).await;
    host.sees(&mut said, "begun\n").await;
    // And over the agent's end, which attached streams do not outlive.
    guest.restart();
    let mut host = guest.host().await;
    assert_eq!(info(&mut host, run.run).await.state, RunState::Running);
    assert!(!gone(&run.pid.to_string()));
    let mut rest = Said::default();
    let next = AttachRequest { stdout_off: Some(said.out.len() as u64), ..from(run.run) };
    host.open(1, verb::ATTACH, None, &next).await;
    std::fs::write(gate, "").unwrap();
    let end: AttachResult = host.end(&mut rest).await.unwrap();
    assert_eq!((rest.text().as_str(), &rest.err[..]), ("done\n", &b"oops\n"[..]));
    let result = end.result.unwrap();
    assert_eq!(
        (end.state, result.exit_code, end.stdout_off, end.stderr_off),
        (RunState::Ended, Some(7), 11, 5)
    );
    // The result is kept, and what is read again is the same.
    let again = attach(&mut host, &from(run.run)).await;
    assert_eq!((again.0.text().as_str(), again.2.unwrap().result), ("begun\ndone\n", Some(result)));
    assert_eq!(info(&mut host, run.run).await.result, Some(result));
}

#[tokio::test]
async fn the_same_id_is_one_run_over_agents() {
    let mut guest = Guest::start();
    let mut host = guest.host().await;
    let log = guest.path("log");
    let request = detached(&format!("echo x >> {}", log.display()));
    let first = start(&mut host, 8, &request).await;
    assert_eq!(start(&mut host, 8, &request).await.pid, first.pid);
    until("it has ended", || std::fs::read_to_string(&log).ok().filter(|text| text == "x\n")).await;
    guest.restart();
    let mut host = guest.host().await;
    assert_eq!(start(&mut host, 8, &request).await.pid, first.pid);
    let other: Result<RunInfo, ErrorBody> = host.call(verb::EXEC, id(8), &detached("true")).await;
    assert_eq!(other.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "x\n");
    // Without an id it would have no name.
    let nameless: Result<RunInfo, ErrorBody> = host.call(verb::EXEC, None, &request).await;
    assert_eq!(nameless.unwrap_err().code, ErrorCode::InvalidArgument);
    // What could not be started has used nothing up.
    let missing = ExecRequest { argv: vec!["/no/such".into()], ..request };
    let refused: Result<RunInfo, ErrorBody> = host.call(verb::EXEC, id(9), &missing).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
    let listed: RunsResult = host.call(verb::RUNS, None, &RunsRequest::default()).await.unwrap();
    assert_eq!(listed.runs.len(), 1);
}

#[tokio::test]
async fn each_byte_that_is_kept_is_read_once_and_the_rest_is_told() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    // 8 bytes a line.
    let request =
        ExecRequest { ring_bytes: Some(65_536), ..detached("seq -w 1000001 1400000; echo end >&2") };
    let run = start(&mut host, 1, &request).await.run;
    let (total, ring) = (400_000 * 8, 65_536);
    let ended = ended(&mut host, run).await;
    assert_eq!(ended.stdout, Extent { start: total - ring, end: total });
    let (said, head, end) = attach(&mut host, &from(run)).await;
    assert_eq!(head.stdout, AttachedAt { off: total - ring, lost_before: Some(total - ring) });
    assert_eq!(head.stderr, AttachedAt { off: 0, lost_before: None });
    let all: Vec<u8> = (1_000_001..=1_400_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(said.out == all[(total - ring) as usize..] && said.err == b"end\n");
    assert_eq!(end.unwrap().stdout_off, total);
    let part = AttachRequest { stdout_off: Some(total - 16), stderr_off: Some(4), ..from(run) };
    let (said, head, _) = attach(&mut host, &part).await;
    assert_eq!((said.text().as_str(), head.stdout.lost_before), ("1399999\n1400000\n", None));
    let beyond = AttachRequest { stdout_off: Some(total + 1), ..from(run) };
    let refused: Result<AttachResult, ErrorBody> = host.call(verb::ATTACH, None, &beyond).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_and_two_read_the_same() {
    let guest = Guest::start();
    let (mut one, mut other) = (guest.host().await, guest.host().await);
    let request = ExecRequest { stdin: true, ring_bytes: Some(8_192), ..detached("echo first; cat") };
    let run = start(&mut one, 1, &request).await.run;
    let (mut seen, mut also) = (Said::default(), Said::default());
    let reading = AttachRequest { stdin: true, ..from(run) };
    one.open(1, verb::ATTACH, None, &reading).await;
    other.open(1, verb::ATTACH, None, &from(run)).await;
    one.sees(&mut seen, "first\n").await;
    other.sees(&mut also, "first\n").await;
    let (mut off, mut late) = (0, guest.host().await);
    // One that gives credit for no more than this.
    let open = Request {
        stream: 1,
        verb: verb::ATTACH.into(),
        request_id: None,
        deadline_ms: None,
        traceparent: None,
        caller: None,
        credit: 6,
        body: codec::encode(&from(run)).unwrap().into(),
    };
    late.say(&HostFrame::Req(open)).await;
    let (mut slow, mut text) = (Said::default(), String::from("first\n"));
    while !slow.text().contains("first\n") {
        // Its credit is not renewed here.
        if let AgentFrame::Data(data) = late.hear().await.unwrap() {
            slow.out.extend_from_slice(data.data.as_slice());
        }
    }
    for n in 0..40 {
        let line = format!("{n:03}{}\n", "x".repeat(500));
        one.type_in(1, &mut off, &line, false).await;
        text += &line;
        one.sees(&mut seen, &line).await;
        other.sees(&mut also, &line).await;
    }
    late.say(&HostFrame::Credit(Credit { stream: 1, ch: Channel::Stdout, limit: 1 << 20 })).await;
    let lost = late.end::<AttachResult>(&mut slow).await.unwrap_err();
    assert_eq!((lost.code, lost.details["cause"].as_str()), (ErrorCode::Conflict, "output_lost"));
    assert_eq!(lost.details["off"], "6");
    let begin: u64 = lost.details["lost_before"].parse().unwrap();
    assert_eq!(begin, text.len() as u64 - 8_192);
    // The end of input ends the command, for all.
    one.type_in(1, &mut off, "", true).await;
    let ended: AttachResult = one.end(&mut seen).await.unwrap();
    assert_eq!(ended.result.unwrap().exit_code, Some(0));
    other.end::<AttachResult>(&mut also).await.unwrap();
    assert!(seen.text() == text && also.text() == text);
}

#[tokio::test]
async fn runs_are_killed_by_id_and_by_deadline_with_all_that_they_started() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let script = "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.01; done' & wait";
    let kill = |run, signal| KillRequest { run, signal };
    let run = start(&mut host, 1, &detached(script)).await.run;
    let mut said = Said::default();
    host.open(1, verb::ATTACH, None, &from(run)).await;
    host.sees(&mut said, "\n").await;
    let mut other = guest.host().await;
    let _: serde_json::Value = other.call(verb::KILL, None, &kill(run, Some(9))).await.unwrap();
    let ended: AttachResult = host.end(&mut said).await.unwrap();
    assert_eq!(ended.result.unwrap().signal, Some(9));
    assert!(gone(&said.text()));
    let again: Result<serde_json::Value, ErrorBody> = other.call(verb::KILL, None, &kill(run, None)).await;
    assert_eq!(again.unwrap_err().code, ErrorCode::InvalidState);
    let nobody = kill(RequestId::from_u128(77), None);
    let missing: Result<serde_json::Value, ErrorBody> = other.call(verb::KILL, None, &nobody).await;
    assert_eq!(missing.unwrap_err().code, ErrorCode::NotFound);

    let run = start(&mut host, 2, &detached("trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done"))
        .await
        .run;
    let mut said = Said::default();
    host.open(1, verb::ATTACH, None, &from(run)).await;
    host.sees(&mut said, "ready").await;
    let _: serde_json::Value = other.call(verb::KILL, None, &kill(run, Some(10))).await.unwrap();
    assert_eq!(host.end::<AttachResult>(&mut said).await.unwrap().result.unwrap().exit_code, Some(5));

    let timed = ExecRequest { timeout_ms: Some(300), kill_grace_ms: Some(0), ..detached(script) };
    let run = start(&mut host, 3, &timed).await.run;
    let (said, _, ended) = attach(&mut host, &from(run)).await;
    assert!(ended.unwrap().result.unwrap().timed_out && gone(&said.text()));
}

#[tokio::test]
async fn a_run_at_a_terminal_is_used_by_whoever_attaches() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let script = "stty size; until [ \"$(stty size)\" = '40 90' ]; do sleep 0.01; done; echo resized; read line; \
                  echo got-$line";
    let request = ExecRequest { tty: true, stdin: true, ..detached(script) };
    let run = start(&mut host, 1, &request).await;
    assert!(run.tty && run.stdin);
    let mut said = Said::default();
    host.open(1, verb::ATTACH, None, &AttachRequest { stdin: true, ..from(run.run) }).await;
    host.sees(&mut said, "24 80\r\n").await;
    let size = Some(TermSize { rows: 40, cols: 90 });
    host.say(&HostFrame::Control(Control { stream: 1, size, signal: None })).await;
    // Sizes and input come by ways of their own, so nothing is typed before the size is seen.
    host.sees(&mut said, "resized\r\n").await;
    host.type_in(1, &mut 0, "hello\n", false).await;
    let ended: AttachResult = host.end(&mut said).await.unwrap();
    assert_eq!(ended.result.unwrap().exit_code, Some(0));
    assert!(said.text().ends_with("hello\r\ngot-hello\r\n"), "{:?}", said.text());
}

#[tokio::test]
async fn who_attaches_learns_that_the_keeper_was_killed() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let run = start(&mut host, 1, &detached("echo $$; exec sleep 1000")).await;
    let mut said = Said::default();
    host.open(1, verb::ATTACH, None, &from(run.run)).await;
    host.sees(&mut said, "\n").await;
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    // Above the command is the one that reaps it, above that the one that keeps its output.
    let keeper = parent(parent(run.pid));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper as i32), nix::sys::signal::SIGKILL).unwrap();
    let ended: AttachResult = host.end(&mut said).await.unwrap();
    assert_eq!((ended.state, ended.result), (RunState::Lost, None));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.pid as i32), nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn ended_runs_make_room_and_running_ones_do_not() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let small = |script| ExecRequest { ring_bytes: Some(4_096), ..detached(script) };
    let stays = start(&mut host, 1, &small("exec sleep 1000")).await;
    for n in 2..MAX_RUNS as u128 + 6 {
        let run = start(&mut host, n, &small("true")).await.run;
        ended(&mut host, run).await;
    }
    let listed: RunsResult = host.call(verb::RUNS, None, &RunsRequest::default()).await.unwrap();
    assert_eq!(listed.runs.len(), MAX_RUNS);
    assert_eq!(listed.runs[0].run, stays.run);
    // More output than all may keep is refused, and nothing is left of it.
    let large = ExecRequest { ring_bytes: Some(MAX_RING_BYTES), ..detached("exec sleep 1000") };
    let first = start(&mut host, 100, &ExecRequest { tty: true, ..large.clone() }).await;
    let refused: Result<RunInfo, ErrorBody> = host.call(verb::EXEC, id(101), &large).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::ResourceExhausted);
    let missing: Result<RunsResult, ErrorBody> =
        host.call(verb::RUNS, None, &RunsRequest { run: id(101) }).await;
    assert_eq!(missing.unwrap_err().code, ErrorCode::NotFound);
    for run in [stays, first] {
        let _: serde_json::Value =
            host.call(verb::KILL, None, &KillRequest { run: run.run, signal: Some(9) }).await.unwrap();
        until("it is gone", || gone(&run.pid.to_string()).then_some(())).await;
    }
}
