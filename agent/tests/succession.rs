//! An agent takes the place of another, and nobody's work notices.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use drover_schemas::guest::*;
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use sha2::{Digest as _, Sha256};

use common::{Guest, Host, Said, gone, sh, until};

/// Numbers of streams.
const COMMAND: u32 = 1;
const UPGRADE: u32 = 2;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the agent that runs is started with, and whose child it is: the agents of a guest, oldest first.
fn agents(guest: &Guest) -> Vec<(String, String)> {
    let socket = guest.path("agent.sock").display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if line.contains(&socket) && name == "drover-agent\n" && !gone(&pid) {
            found.push((pid.parse::<u32>().unwrap(), pid, line));
        }
    }
    found.sort();
    found.into_iter().map(|(_, pid, line)| (pid, line)).collect()
}

/// Opens an upgrade to `program` and sends it.
async fn send(host: &mut Host, program: &[u8], version: Option<&str>) {
    let version = version.map(str::to_owned);
    let request = UpgradeRequest { size_bytes: program.len() as u64, sha256: hex(program), version };
    host.open(UPGRADE, verb::UPGRADE, Some(RequestId::generate()), &request).await;
    let (mut off, mut limit) = (0usize, 64 * 1024u64);
    loop {
        let len = (program.len() - off).min(MAX_DATA).min(limit as usize - off);
        let (bytes, eof) = (program[off..off + len].to_vec(), off + len == program.len());
        let data = Data { stream: UPGRADE, ch: Channel::Data, off: off as u64, data: bytes.into(), eof };
        host.say(&HostFrame::Data(data)).await;
        off += len;
        if eof {
            return;
        }
        while limit as usize == off {
            match host.hear().await.unwrap() {
                AgentFrame::Credit(credit) if credit.stream == UPGRADE => limit = credit.limit,
                AgentFrame::Res(res) => panic!("it ended early: {:?}", res.error),
                _ => {}
            }
        }
    }
}

/// Waits until the agent asks its host to connect anew.
async fn asked_to_move(host: &mut Host) {
    loop {
        match host.hear().await.unwrap() {
            AgentFrame::Moved(_) => return,
            AgentFrame::Res(res) => panic!("it ended: {:?}", res.error),
            _ => {}
        }
    }
}

async fn ended(host: &mut Host) -> Result<UpgradeResult, ErrorBody> {
    host.end(&mut Said::default()).await
}

/// The whole of it as a host does it; the connection to the new agent.
async fn upgrade(guest: &Guest, host: &mut Host, program: &[u8]) -> (Host, UpgradeResult) {
    send(host, program, None).await;
    asked_to_move(host).await;
    let next = guest.host().await;
    host.say(&HostFrame::Moved(Moved {})).await;
    let result = ended(host).await.unwrap();
    (next, result)
}

#[tokio::test]
async fn what_runs_goes_on_and_no_request_is_carried_out_twice() {
    let guest = Guest::start_a_copy();
    let program = fs::read(guest.path("drover-agent")).unwrap();
    let mut host = guest.host().await;
    let before = agents(&guest);
    let counted = guest.path("counted");
    let count = sh(&format!("echo once >> {}; echo done", counted.display()));
    let (done, running) = (RequestId::generate(), RequestId::generate());
    let first: ExecResult = host.call(verb::EXEC, Some(done), &count).await.unwrap();
    assert_eq!(first.exit_code, Some(0));
    let asks = ExecRequest { stdin: true, ..sh("echo begun; read line; echo heard $line; exit 7") };
    host.open(COMMAND, verb::EXEC, Some(running), &asks).await;
    let mut said = Said::default();
    host.sees(&mut said, "begun").await;

    let (mut next, result) = upgrade(&guest, &mut host, &program).await;
    assert_eq!((result.going_on, Path::new(&result.path)), (1, &*guest.path("drover-agent")));
    assert_eq!(fs::read(guest.path("drover-agent")).unwrap(), program);
    let both = agents(&guest);
    assert_eq!((before.len(), both.len()), (1, 2));

    // What was done is known to the new one, and what runs is waited for.
    let again: ExecResult = next.call(verb::EXEC, Some(done), &count).await.unwrap();
    assert_eq!((again, fs::read_to_string(&counted).unwrap().as_str()), (first, "once\n"));
    next.open(COMMAND, verb::EXEC, Some(running), &asks).await;
    let reused = next.call::<_, ExecResult>(verb::EXEC, Some(running), &count).await.unwrap_err();
    assert_eq!(reused.code, ErrorCode::Conflict);
    let (out, end) = next.exec(&sh("echo $PPID")).await;
    assert_eq!(end.unwrap().exit_code, Some(0));
    assert!(!out.text().is_empty());

    // The command is still at the old one, with its input and output.
    host.type_in(COMMAND, &mut 0, "you\n", true).await;
    host.sees(&mut said, "heard you").await;
    let end: ExecResult = host.end(&mut said).await.unwrap();
    assert_eq!(end.exit_code, Some(7));
    let told: ExecResult = next.end(&mut Said::default()).await.unwrap();
    assert_eq!(told, end);

    drop(host);
    until("the old agent ends", || (agents(&guest).len() == 1).then_some(())).await;
    assert_eq!(agents(&guest)[0], both[1]);
    let pong: PingResult = next.call(verb::PING, None, &Empty {}).await.unwrap();
    assert_eq!(pong.boot_id, "boot");
}

#[derive(serde::Serialize)]
struct Empty {}

#[tokio::test]
async fn a_command_outlives_several_upgrades() {
    let guest = Guest::start_a_copy();
    let program = fs::read(guest.path("drover-agent")).unwrap();
    let mut first = guest.host().await;
    let asks = ExecRequest { stdin: true, ..sh("echo begun; read line; echo heard $line") };
    first.open(COMMAND, verb::EXEC, Some(RequestId::generate()), &asks).await;
    let mut said = Said::default();
    first.sees(&mut said, "begun").await;
    let (mut host, _) = upgrade(&guest, &mut first, &program).await;
    for _ in 0..2 {
        host = upgrade(&guest, &mut host, &program).await.0;
    }
    // Each waits for the end of what it has to tell the next.
    assert_eq!(agents(&guest).len(), 4);
    first.type_in(COMMAND, &mut 0, "you\n", true).await;
    first.sees(&mut said, "heard you").await;
    assert_eq!(first.end::<ExecResult>(&mut said).await.unwrap().exit_code, Some(0));
    drop(first);
    until("one agent is left", || (agents(&guest).len() == 1).then_some(())).await;
    assert_eq!(host.exec(&sh("true")).await.1.unwrap().exit_code, Some(0));
}

/// A program of which an upgrade must leave nothing but the error.
async fn refused(guest: &Guest, program: &[u8], version: Option<&str>) -> ErrorBody {
    let mut host = guest.host().await;
    let before = (agents(guest), fs::read(guest.path("drover-agent")).unwrap());
    send(&mut host, program, version).await;
    let error = ended(&mut host).await.unwrap_err();
    assert!(before == (agents(guest), fs::read(guest.path("drover-agent")).unwrap()), "{error}");
    assert!(!guest.path(".drover-agent.next").exists());
    assert_eq!(host.exec(&sh("true")).await.1.unwrap().exit_code, Some(0));
    error
}

#[tokio::test]
async fn what_is_no_agent_changes_nothing() {
    let guest = Guest::start_a_copy();
    let program = fs::read(guest.path("drover-agent")).unwrap();
    for (what, words) in [
        (&b"no program"[..], "no drover-agent"),
        (b"\x7fELF\x02\x01\x01", "no drover-agent"),
        (b"#!/bin/sh\nexit 3\n", "exited with 3"),
        (b"#!/bin/sh\necho something else\n", "something else"),
        (b"#!/bin/sh\nprintf 'drover-agent 1\\nmore'\n", "no drover-agent"),
    ] {
        let error = refused(&guest, what, None).await;
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let error = refused(&guest, &program, Some("99.0.0")).await;
    assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::InvalidArgument, "version"));

    let mut host = guest.host().await;
    let wrong = UpgradeRequest { size_bytes: 3, sha256: "0".repeat(64), version: None };
    host.open(UPGRADE, verb::UPGRADE, Some(RequestId::generate()), &wrong).await;
    let data = Data { stream: UPGRADE, ch: Channel::Data, off: 0, data: b"abc".to_vec().into(), eof: true };
    host.say(&HostFrame::Data(data)).await;
    assert_eq!(ended(&mut host).await.unwrap_err().code, ErrorCode::InvalidArgument);
    let huge = UpgradeRequest { size_bytes: MAX_PROGRAM + 1, ..wrong };
    let error = host.call::<_, UpgradeResult>(verb::UPGRADE, Some(RequestId::generate()), &huge).await;
    assert_eq!(error.unwrap_err().code, ErrorCode::InvalidArgument);
}

/// A program that says it is an agent, and then does what `rest` does.
fn script(rest: &str) -> Vec<u8> {
    format!("#!/bin/sh\n[ \"$1\" = --version ] && echo drover-agent 9.9.9 && exit\n{rest}\n").into_bytes()
}

#[tokio::test]
async fn an_agent_that_does_not_come_up_is_given_up() {
    let guest = Guest::start_a_copy();
    for rest in ["exit 1", "echo nonsense; exit 0", "kill -9 $$"] {
        let error = refused(&guest, &script(rest), Some("9.9.9")).await;
        assert_eq!(error.code, ErrorCode::GuestError, "{error}");
        assert_eq!(error.details["cause"], "upgrade_failed");
    }
}

#[tokio::test]
async fn one_that_dies_while_hosts_move_is_given_up_and_one_that_dies_later_is_followed_by_the_old_program() {
    let guest = Guest::start_a_copy();
    let program = fs::read(guest.path("drover-agent")).unwrap();
    let counted = guest.path("counted");
    let count = sh(&format!("echo once >> {}", counted.display()));
    let done = RequestId::generate();
    let mut host = guest.host().await;
    host.call::<_, ExecResult>(verb::EXEC, Some(done), &count).await.unwrap();
    let asks = ExecRequest { stdin: true, ..sh("echo begun; read line; echo heard $line") };
    host.open(COMMAND, verb::EXEC, Some(RequestId::generate()), &asks).await;
    let mut said = Said::default();
    host.sees(&mut said, "begun").await;

    send(&mut host, &program, None).await;
    asked_to_move(&mut host).await;
    // It waits for its host; the program is left as it was, as the new one has never served.
    let new = agents(&guest).pop().unwrap().0;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(new.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    until("it is dead", || gone(&new).then_some(())).await;
    host.say(&HostFrame::Moved(Moved {})).await;
    let error = ended(&mut host).await.unwrap_err();
    assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::GuestError, "upgrade_failed"));
    assert!(!guest.path(".drover-agent.next").exists());

    // The old program serves, in another process, and remembers.
    let mut next = guest.host().await;
    next.call::<_, ExecResult>(verb::EXEC, Some(done), &count).await.unwrap();
    assert_eq!(fs::read_to_string(&counted).unwrap(), "once\n");
    host.type_in(COMMAND, &mut 0, "you\n", true).await;
    host.sees(&mut said, "heard you").await;
    assert_eq!(host.end::<ExecResult>(&mut said).await.unwrap().exit_code, Some(0));
    drop(host);
    until("one agent is left", || (agents(&guest).len() == 1).then_some(())).await;
    assert_eq!(next.exec(&sh("true")).await.1.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn a_cancel_leaves_nothing_wherever_it_hits() {
    let guest = Guest::start_a_copy();
    let mut host = guest.host().await;
    let program = vec![b'x'; 48 * 1024];
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(guest.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for round in 0..64 {
        send(&mut host, &program, None).await;
        // At work on the last bytes, when it takes its name, or when it is asked for its version.
        tokio::time::sleep(Duration::from_micros(round * 50)).await;
        host.say(&HostFrame::Cancel(Cancel { stream: UPGRADE })).await;
        let error = ended(&mut host).await.unwrap_err();
        assert!(matches!(error.code, ErrorCode::Conflict | ErrorCode::InvalidArgument), "{error:?}");
        assert_eq!(names(), before, "round {round}");
    }
}

#[tokio::test]
async fn one_at_a_time_and_one_that_is_cancelled_leaves_nothing() {
    let guest = Guest::start_a_copy();
    let program = fs::read(guest.path("drover-agent")).unwrap();
    let (mut host, mut other) = (guest.host().await, guest.host().await);
    let request = UpgradeRequest { size_bytes: program.len() as u64, sha256: hex(&program), version: None };
    host.open(UPGRADE, verb::UPGRADE, Some(RequestId::generate()), &request).await;
    let parts = || {
        fs::read_dir(guest.dir.path())
            .unwrap()
            .flatten()
            .filter(|e| e.path().extension() == Some("drover".as_ref()))
    };
    until("the first has begun", || parts().next().map(drop)).await;
    let busy = other.call::<_, UpgradeResult>(verb::UPGRADE, Some(RequestId::generate()), &request).await;
    assert_eq!(busy.unwrap_err().code, ErrorCode::Busy);
    host.say(&HostFrame::Cancel(Cancel { stream: UPGRADE })).await;
    assert_eq!(ended(&mut host).await.unwrap_err().details["cause"], "cancelled");
    assert!(parts().next().is_none() && !guest.path(".drover-agent.next").exists());
    // One connection has not moved: it is waited for.
    let (next, _) = {
        send(&mut host, &program, None).await;
        asked_to_move(&mut host).await;
        let next = guest.host().await;
        host.say(&HostFrame::Moved(Moved {})).await;
        asked_to_move(&mut other).await;
        other.say(&HostFrame::Moved(Moved {})).await;
        (next, ended(&mut host).await.unwrap())
    };
    drop((host, other, next));
    until("one agent is left", || (agents(&guest).len() == 1).then_some(())).await;
}
