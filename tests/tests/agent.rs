//! The agent as its users meet it: shells, commands and runs, in guests with kernels of their own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use drover_schemas::RequestId;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::{RunInfo, RunState, RunsResult};
use drover_tests::client::Bus;
use drover_tests::tmux::Terminal;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, URL, World, run};
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(180);

fn emulated() -> Options {
    Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() }
}

async fn boot(bus: &Bus, name: &str) -> VmStatus {
    let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
    let body = json!({"name": name, "spec": {"template": "linux-microvm", "agent": agent}});
    let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create {name}: {e}"));
    until_within(BOOT, &format!("the agent of {name}"), async || {
        bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

async fn exec(bus: &Bus, name: &str, script: &str) -> ExecResult {
    let body = json!({"argv": ["sh", "-c", script]});
    match bus.ask(&format!("vm.{name}.guest.exec"), &body).id(RequestId::generate()).get().await.unwrap() {
        ExecReply::Result(result) => result,
        _ => panic!("neither a stream nor a run was asked for"),
    }
}

/// What a command of the command line printed, and its exit code.
async fn drover(world: &World, args: &[&str]) -> (i32, String, String) {
    let done = world.drover(args).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
}

#[test]
fn a_shell_in_a_real_guest_is_used_through_a_terminal() {
    let test = "a_shell_in_a_real_guest_is_used_through_a_terminal";
    if !Terminal::is_there() {
        return println!("SKIP {test}: tmux is not installed");
    }
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        boot(&bus, "web").await;
        let command = format!(
            "DROVER_NATS_URL={URL} {} vm exec -it --env PS1='guest# ' web -- sh",
            world.bin("drover").display()
        );
        let terminal = Terminal::start(world.path("tmux"), (30, 100), &command);
        terminal.shows("guest#").await;
        terminal.line("stty size; tty");
        terminal.shows("/dev/pts/0").await;
        assert!(terminal.screen().contains("30 100"), "{}", terminal.screen());
        terminal.resize((40, 132));
        // Told by the terminal, passed on by the command line, the daemon and the agent.
        // On a line of its own: the terminal may just have answered where the shell asked for its cursor.
        terminal.line("until [ \"$(stty size)\" = '40 132' ]; do :; done; echo; echo resized");
        terminal.shows("resized").await;
        // Ctrl-C is for what runs in the guest, and for nothing else.
        terminal.line("echo began; sleep 1000");
        terminal.shows("began").await;
        terminal.key("C-c");
        terminal.line("echo \"after $?\"");
        terminal.shows("after 130").await;
        // A program that uses the whole screen.
        terminal.line("vi /tmp/note");
        terminal.shows("~").await;
        terminal.text("iwritten in the guest");
        terminal.shows("written in the guest").await;
        terminal.key("Escape");
        // Its line of state: it takes commands now.
        terminal.shows_begin("- /tmp/note [Modified]").await;
        terminal.line(":wq");
        terminal.shows("guest#").await;
        terminal.line("clear; cat /tmp/note; uname -s");
        let screen = terminal.shows_all("written in the guest\nLinux\nguest#").await;
        println!("{}", screen.trim_end());
        // What is fed faster than a person types comes whole.
        terminal.line("clear; n=0; while read x && [ $x != end ]; do n=$((n+1)); done; echo \"$n lines\"");
        (0..50).for_each(|n| terminal.line(&n.to_string()));
        terminal.line("end");
        terminal.shows("50 lines").await;
        terminal.line("exit 7");
        assert_eq!(terminal.ended().await, 7);

        // The rest of what a command may ask for, and what its result tells.
        let asked = [
            "vm",
            "exec",
            "--user",
            "65534:65534",
            "--group",
            "4242",
            "--umask",
            "027",
            "--limit",
            "nofile=77",
        ];
        let script = "id -u; id -G; umask; ulimit -n; ulimit -Hn; exit 3";
        let asked: Vec<&str> =
            asked.into_iter().chain(["--stats", "web", "--", "sh", "-c", script]).collect();
        let (code, out, err) = drover(world, &asked).await;
        assert_eq!((code, out.as_str()), (3, "65534\n65534 4242\n0027\n77\n77\n"), "{err}");
        let stats: ExecResult = serde_json::from_str(&err).unwrap();
        assert_eq!((stats.exit_code, stats.signal, stats.timed_out), (Some(3), None, false));
        assert!(stats.max_rss_kib > 0 && stats.ended_unix_ms >= stats.started_unix_ms, "{err}");
        assert!(stats.duration_ms > 0 && stats.started_unix_ms > 0, "{err}");

        // A deadline in the guest ends all that was started, in whatever session.
        let script = "(setsid sh -c 'trap \"\" TERM HUP; sleep 4242' &) ; exec sleep 4242";
        let (code, ..) =
            drover(world, &["vm", "exec", "--timeout", "1", "web", "--", "sh", "-c", script]).await;
        assert_eq!(code, 124);
        let left = exec(&bus, "web", "ps | grep '[s]leep 4242' | wc -l").await.stdout.unwrap();
        assert_eq!(String::from_utf8_lossy(left.as_slice()).trim(), "0");
    });
}

/// Bytes of one part of what the long command writes: a line with its number, and a block that it has in a file.
const BLOCK: usize = 1 << 20;

/// What it writes in all.
fn all_output() -> Vec<u8> {
    let block: Vec<u8> = (1_000_000..1_131_072).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert_eq!(block.len(), BLOCK);
    (100..200).flat_map(|n| [format!("block {n}\n").as_bytes(), &block].concat()).collect()
}

async fn info(bus: &Bus, run: RequestId) -> Option<RunInfo> {
    let found = bus.ask("vm.web.guest.runs", &json!({"run": run})).get::<RunsResult>().await;
    found.ok()?.runs.pop()
}

#[test]
fn a_detached_command_goes_on_while_the_daemon_is_killed_and_its_output_is_read_once() {
    let test = "a_detached_command_goes_on_while_the_daemon_is_killed_and_its_output_is_read_once";
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        boot(&bus, "web").await;
        let script = "seq 1000000 1131071 > /tmp/block; for n in $(seq 100 199); do \
             case $n in 133) until [ -e /tmp/second ]; do sleep 0.01; done ;; \
             166) until [ -e /tmp/third ]; do sleep 0.01; done ;; esac; \
             echo \"block $n\"; cat /tmp/block; done; echo oops >&2; exit 7";
        let began = Instant::now();
        let detach = ["vm", "exec", "--detach", "--ring", "1MiB", "web", "--", "sh", "-c", script];
        let (code, run, err) = drover(world, &detach).await;
        assert_eq!(code, 0, "{err}");
        let run: RequestId = run.trim().parse().unwrap();
        // A third of it is written beside a daemon that lives, and one in the time of each kill.
        let third = |n: u64| n * 33 * (BLOCK as u64 + 10);
        for (n, gate) in [(1, "second"), (2, "third")] {
            until_within(WORK, "a third of the output", async || {
                info(&bus, run).await.filter(|info| info.stdout.end == third(n))
            })
            .await;
            let opened = exec(&bus, "web", &format!("touch /tmp/{gate}")).await;
            assert_eq!(opened.exit_code, Some(0));
            world.kill().await;
            world.start();
            world.ready().await;
        }
        let ended = until_within(WORK, "the end of the run", async || {
            info(&bus, run).await.filter(|info| info.state == RunState::Ended)
        })
        .await;
        let all = all_output();
        assert_eq!(ended.stdout.end as usize, all.len());
        assert_eq!(ended.stdout.start, ended.stdout.end - (1 << 20));
        println!("{} MB in {:?}, the daemon killed twice", all.len() / 1_000_000, began.elapsed());

        // Everything after the start of what is kept, in order, and the exit code.
        let run = run.to_string();
        let attach = ["vm", "runs", "attach", "web", &run];
        let (code, out, err) = drover(world, &attach).await;
        assert_eq!(code, 7);
        assert!(
            out.as_bytes() == &all[ended.stdout.start as usize..],
            "{} bytes are not the last",
            out.len()
        );
        assert_eq!(
            err,
            format!("note: stdout from 0 to {} is not kept any more\noops\n", ended.stdout.start)
        );
        // Again, in two parts that meet: nothing twice and nothing missing.
        let middle = (ended.stdout.end - 1_000_000).to_string();
        let (code, rest, _) =
            drover(world, &["vm", "runs", "attach", "web", &run, "--stdout-from", &middle]).await;
        assert_eq!(code, 7);
        assert!(rest.as_bytes() == &all[all.len() - 1_000_000..]);
        let (_, listed, _) = drover(world, &["vm", "runs", "ls", "web"]).await;
        assert!(listed.contains(&run) && listed.contains("exit 7"), "{listed}");
        // The same request is the same run.
        let body = json!({"argv": ["sh", "-c", script], "detach": true, "ring_bytes": 1 << 20});
        let id: RequestId = run.parse().unwrap();
        let again: ExecReply = bus.ask("vm.web.guest.exec", &body).id(id).get().await.unwrap();
        assert!(matches!(again, ExecReply::Run(again) if again.pid == ended.pid));
    });
}

#[test]
fn runs_are_followed_over_the_daemons_end_and_killed_by_name() {
    let test = "runs_are_followed_over_the_daemons_end_and_killed_by_name";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; sleep 0.02; done; exit 5";
        let (code, run, err) = drover(world, &["vm", "exec", "-d", "web", "--", "sh", "-c", script]).await;
        assert_eq!(code, 0, "{err}");
        let run = run.trim().to_owned();
        let id: RequestId = run.parse().unwrap();
        // What is there, then what came later, with the daemon killed in between: it is one text.
        let part = async |world: &World, from: &str| {
            drover(world, &["vm", "runs", "attach", "web", &run, "--no-follow", "--stdout-from", from])
                .await
                .1
        };
        until("a first line", async || info(&bus, id).await.filter(|info| info.stdout.end > 0)).await;
        let first = part(world, "0").await;
        world.kill().await;
        world.start();
        world.ready().await;
        let from = first.len() as u64;
        until("more", async || info(&bus, id).await.filter(|info| info.stdout.end > from + 20)).await;
        let second = part(world, &from.to_string()).await;
        exec(&bus, "web", "touch /tmp/stop").await;
        let from = (first.len() + second.len()).to_string();
        let (code, third, _) =
            drover(world, &["vm", "runs", "attach", "web", &run, "--stdout-from", &from]).await;
        assert_eq!(code, 5);
        let text = [first, second, third].concat();
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());

        // Killed by its name, with what it started.
        let script = "setsid sh -c 'trap \"\" TERM; exec sleep 4242' & wait";
        let (_, run, _) = drover(world, &["vm", "exec", "-d", "web", "--", "sh", "-c", script]).await;
        let run = run.trim();
        until("it has started", async || {
            let seen = exec(&bus, "web", "ps ax | grep '[s]leep 4242'").await;
            (seen.exit_code == Some(0)).then_some(())
        })
        .await;
        assert_eq!(drover(world, &["vm", "runs", "kill", "web", run, "-s", "KILL"]).await.0, 0);
        assert_eq!(drover(world, &["vm", "runs", "attach", "web", run]).await.0, 137);
        assert_eq!(exec(&bus, "web", "ps ax | grep '[s]leep 4242'").await.exit_code, Some(1));
        let (code, _, err) = drover(world, &["vm", "runs", "kill", "web", run]).await;
        assert!(code == 4 && err.contains("has ended"), "{code}: {err}");

        // What does not go together, or is not there, is said.
        let refuse = async |body: Value| {
            let ask = bus.ask("vm.web.guest.exec", &body).id(RequestId::generate());
            ask.refused(drover_schemas::ErrorCode::InvalidArgument).await;
        };
        refuse(json!({"argv": ["true"], "tty": true})).await;
        refuse(json!({"argv": ["true"], "detach": true, "stream": true})).await;
        refuse(json!({"argv": ["true"], "ring_bytes": 1})).await;
        let none = RequestId::generate().to_string();
        assert_eq!(drover(world, &["vm", "runs", "attach", "web", &none]).await.0, 3);
    });
}
