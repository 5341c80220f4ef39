//! Attached commands: terminals, signals, users and limits, deadlines.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use drover_schemas::ErrorCode;
use drover_schemas::guest::*;

use common::{Guest, Said, gone, sh, until};

fn control(stream: u32, size: Option<TermSize>, signal: Option<i32>) -> HostFrame {
    HostFrame::Control(Control { stream, size, signal })
}

#[tokio::test]
async fn a_terminal_has_a_size_that_changes_and_an_end_of_file() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let size = Some(TermSize { rows: 33, cols: 101 });
    let request = ExecRequest {
        tty: true,
        stdin: true,
        size,
        ..sh(
            "trap 'stty size; seen=1' WINCH; tty; stty size; echo $TERM; until [ $seen ]; do sleep 0.01; done; \
             while read line; do echo got-$line; done; exit 7",
        )
    };
    let mut said = Said::default();
    host.open(1, verb::EXEC, None, &request).await;
    host.sees(&mut said, "xterm\r\n").await;
    assert!(said.text().starts_with("/dev/pts/") && said.text().contains("33 101\r\n"), "{:?}", said.text());
    host.say(&control(1, Some(TermSize { rows: 50, cols: 132 }), None)).await;
    host.sees(&mut said, "50 132\r\n").await;
    let mut off = 0;
    host.type_in(1, &mut off, "a\n", false).await;
    host.sees(&mut said, "got-a\r\n").await;
    host.type_in(1, &mut off, "", true).await;
    let end: ExecResult = host.end(&mut said).await.unwrap();
    assert_eq!((end.exit_code, end.signal), (Some(7), None));
    assert_eq!((end.stdout_bytes, end.stderr_bytes), (said.out.len() as u64, 0));
    assert!(end.started_unix_ms > 1_700_000_000_000 && end.ended_unix_ms >= end.started_unix_ms);
}

#[tokio::test]
async fn keys_and_signals_reach_the_foreground() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let request = ExecRequest { tty: true, stdin: true, ..sh("echo ready; exec sleep 1000") };
    let mut said = Said::default();
    host.open(1, verb::EXEC, None, &request).await;
    host.sees(&mut said, "ready").await;
    host.type_in(1, &mut 0, "\x03", false).await;
    assert_eq!(host.end::<ExecResult>(&mut said).await.unwrap().signal, Some(2));

    // By name of the stream, without a terminal too; and a resize there is no harm.
    // Asleep in `wait`: a shell that forks at that moment may be slow to see its trap.
    let request = sh("trap 'echo term; kill $!; exit 3' TERM; sleep 1000 & echo ready; wait");
    let mut said = Said::default();
    host.open(2, verb::EXEC, None, &request).await;
    host.sees(&mut said, "ready").await;
    host.say(&control(2, Some(TermSize::default()), Some(15))).await;
    let end: ExecResult = host.end(&mut said).await.unwrap();
    assert_eq!((end.exit_code, said.text().as_str()), (Some(3), "ready\nterm\n"));
}

#[tokio::test]
async fn the_last_bytes_at_a_terminal_are_not_lost() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    for _ in 0..10 {
        let request = ExecRequest { tty: true, ..sh("seq 1 5000") };
        let (said, end) = host.exec(&request).await;
        assert!(said.text().ends_with("4999\r\n5000\r\n"), "{:?}", &said.text()[said.out.len() - 40..]);
        assert_eq!(end.unwrap().exit_code, Some(0));
    }
}

#[tokio::test]
async fn users_groups_umask_and_limits_are_set() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let nofile = ResourceLimit { resource: Resource::Nofile, soft: Some(77), hard: Some(99) };
    let core = ResourceLimit { resource: Resource::Core, soft: Some(0), hard: None };
    let request = ExecRequest {
        user: Some("nobody".into()),
        groups: Some(vec!["daemon".into(), "4242".into()]),
        umask: Some(0o027),
        limits: vec![nofile, core],
        cwd: Some("/usr".into()),
        env: [("A".to_owned(), "b c".to_owned())].into(),
        ..sh("id -un; id -G; umask; ulimit -n; ulimit -Hn; ulimit -c; pwd; echo $A $HOME")
    };
    let (said, end) = host.exec(&request).await;
    assert_eq!(end.unwrap().exit_code, Some(0));
    assert_eq!(said.text(), "nobody\n65534 1 4242\n0027\n77\n99\n0\n/usr\nb c /nonexistent\n");
    // The user owns the terminal.
    let request = ExecRequest { user: Some("nobody".into()), tty: true, ..sh("echo mine > $(tty)") };
    let (said, end) = host.exec(&request).await;
    assert_eq!((end.unwrap().exit_code, said.text().as_str()), (Some(0), "mine\r\n"));

    let mut refused = async |request: ExecRequest| host.exec(&request).await.1.unwrap_err().code;
    let nobody = ExecRequest { groups: Some(vec!["no-such-group".into()]), ..sh("true") };
    assert_eq!(refused(nobody).await, ErrorCode::NotFound);
    assert_eq!(refused(ExecRequest { umask: Some(0o1000), ..sh("true") }).await, ErrorCode::InvalidArgument);
    let limit = ResourceLimit { resource: Resource::Nofile, soft: Some(9), hard: Some(8) };
    assert_eq!(refused(ExecRequest { limits: vec![limit], ..sh("true") }).await, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_deadline_kills_what_forked_twice_and_made_a_session() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    // Orphans in sessions of their own that ignore the signal, and one that makes others without end.
    let script = "for n in 1 2 3; do (setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 0.01; done' &) ; done; \
                  (setsid sh -c 'echo $$; trap \"\" TERM; while :; do (sleep 0.02 &); sleep 0.01; done' &); exec sleep 1000";
    let request = ExecRequest { timeout_ms: Some(500), kill_grace_ms: Some(50), ..sh(script) };
    let (said, end) = host.exec(&request).await;
    let end = end.unwrap();
    assert!(end.timed_out && end.signal.is_some(), "{end:?}");
    let text = said.text();
    let pids: Vec<&str> = text.lines().collect();
    assert_eq!(pids.len(), 4, "{text}");
    for pid in pids {
        assert!(gone(pid), "{pid} of {text}");
    }

    // A command that ends by itself leaves what it left in the background.
    let (said, end) = host.exec(&sh("(setsid sleep 1000 > /dev/null 2>&1 & echo $!)")).await;
    assert_eq!(end.unwrap().exit_code, Some(0));
    let left = said.text();
    assert!(!gone(&left));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(left.trim().parse().unwrap()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    until("the keeper is reaped with it", || gone(&left).then_some(())).await;
}

#[tokio::test]
async fn a_cancel_and_a_lost_link_kill_the_tree() {
    let guest = Guest::start();
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000";
    let mut host = guest.host().await;
    let mut said = Said::default();
    host.open(1, verb::EXEC, None, &sh(script)).await;
    host.sees(&mut said, "\n").await;
    host.say(&HostFrame::Cancel(Cancel { stream: 1 })).await;
    let error = host.end::<ExecResult>(&mut said).await.unwrap_err();
    assert_eq!(error.details["cause"], "cancelled");
    assert!(gone(&said.text()));

    let mut said = Said::default();
    host.open(1, verb::EXEC, None, &sh(script)).await;
    host.sees(&mut said, "\n").await;
    drop(host);
    until("its tree is killed", || gone(&said.text()).then_some(())).await;
}

#[tokio::test]
async fn the_result_tells_of_time_and_memory() {
    let guest = Guest::start();
    let mut host = guest.host().await;
    let (_, small) = host.exec(&sh("true")).await;
    // A buffer of 64 MiB, filled.
    let large = ExecRequest {
        argv: ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let (_, large) = host.exec(&large).await;
    let (small, large) = (small.unwrap(), large.unwrap());
    assert!(small.max_rss_kib > 0 && small.max_rss_kib < 32 << 10, "{small:?}");
    assert!(large.max_rss_kib > 64 << 10, "{large:?}");
    let (_, busy) = host.exec(&sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).await;
    let busy = busy.unwrap();
    assert!(busy.user_ms > 0 && busy.user_ms + busy.sys_ms <= busy.duration_ms + 20, "{busy:?}");
}
