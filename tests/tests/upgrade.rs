//! The agent of a guest is replaced while the guest works, and nobody's work notices.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, CauseKind, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::VmEventKind;
use drover_schemas::guest::{RunsResult, UpgradeResult};
use drover_schemas::stream::StreamEnd;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::digest::{random_file, sha256};
use drover_tests::events;
use drover_tests::stream::Stream;
use drover_tests::tmux::Terminal;
use drover_tests::wait::until_within;
use drover_tests::world::{Options, URL, World, run};
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(180);
/// The agent's processes: how many serve, or still have work, and how many stand before them.
const AGENTS: &str = r#"ps -o comm,args | awk '/ emit /{ next } { n[$1]++ } END { print n["drover-agent"] + 0, n["drover-front"] + 0 }'"#;

/// What an upgrade changes.
const SAME: &str = "sha256sum /sbin/drover-agent; ps -o pid,comm | awk '$2 ~ /^drover-(agent|front)$/'";

fn emulated() -> Options {
    Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() }
}

async fn boot(bus: &Bus, agent: Value) -> VmStatus {
    let mut agent = agent;
    agent["enabled"] = json!(true);
    agent["ready_timeout_ms"] = json!(300_000);
    let body =
        json!({"name": "web", "spec": {"template": "linux-microvm", "memory": "512MiB", "agent": agent}});
    let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
    until_within(BOOT, "the agent", async || {
        bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

async fn exec(bus: &Bus, id: RequestId, script: &str) -> ExecResult {
    let body = json!({"argv": ["sh", "-c", script]});
    match bus.ask("vm.web.guest.exec", &body).id(id).get().await.unwrap() {
        ExecReply::Result(result) => result,
        other => panic!("neither a stream nor a run was asked for: {other:?}"),
    }
}

/// What a script prints that must succeed.
async fn sh(bus: &Bus, script: &str) -> String {
    let done = exec(bus, RequestId::generate(), script).await;
    assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

async fn detach(bus: &Bus, script: &str) -> RequestId {
    let body = json!({"argv": ["sh", "-c", script], "detach": true});
    match bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
        ExecReply::Run(run) => run.run,
        other => panic!("a run was asked for: {other:?}"),
    }
}

/// Replaces the agent by the one that the host's tests were built with.
async fn upgrade(world: &World) -> UpgradeResult {
    let program = std::env::var("DROVER_AGENT").unwrap();
    let text = world.printed(&["-o", "json", "vm", "guest", "upgrade", "web", &program]).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Events of a type, by what they count.
async fn counted(bus: &Bus, kind: &str) -> Vec<u64> {
    let events = events::read(bus).await.into_iter().filter_map(|event| event.agent_event);
    let number = |data: &Value| data.as_str().map_or_else(|| data.as_u64(), |text| text.parse().ok());
    events
        .filter(|event| event.kind.as_str() == kind)
        .map(|event| number(&event.data.0["n"]).unwrap())
        .collect()
}

#[test]
fn what_runs_in_a_guest_goes_on_when_its_agent_is_replaced() {
    let test = "what_runs_in_a_guest_goes_on_when_its_agent_is_replaced";
    if !Terminal::is_there() {
        return println!("SKIP {test}: tmux is not installed");
    }
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        let check =
            json!({"name": "up", "argv": ["test", "-e", "/tmp/up"], "interval_ms": 1_000, "failures": 1});
        let memory = json!({"name": "little", "of": "memory", "above": 1, "for_ms": 0});
        boot(&bus, json!({"checks": [check], "thresholds": [memory]})).await;
        let watched = async || {
            let events = events::read(&bus).await.into_iter().filter_map(|event| event.agent_event);
            let kinds = events.map(|event| event.kind.as_str().to_owned());
            kinds.filter(|kind| kind.contains("check") || kind.contains("threshold")).collect::<Vec<_>>()
        };
        let mut first = until_within(WORK, "what is watched", async || {
            Some(watched().await).filter(|told| told.len() == 2)
        })
        .await;
        first.sort();
        assert_eq!(first, ["drover.check-failed", "drover.threshold-exceeded"]);

        // A shell, a command that reads, a run, a publisher, and a file on its way.
        let command = format!(
            "DROVER_NATS_URL={URL} {} vm exec -it --env PS1='guest# ' web -- sh",
            world.bin("drover").display()
        );
        let terminal = Terminal::start(world.path("tmux"), (30, 100), &command);
        terminal.shows("guest#").await;
        terminal.line("kept=before");
        let counting =
            detach(&bus, "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 20000; done").await;
        let publish = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); until drover-agent emit load.step n=$n; do \
                       usleep 50000; done; done; echo $n";
        let publishing = detach(&bus, publish).await;
        until_within(WORK, "events", async || (counted(&bus, "load.step").await.len() > 2).then_some(()))
            .await;
        let once = (RequestId::generate(), "echo once >> /tmp/once; cat /tmp/once");
        let done = exec(&bus, once.0, once.1).await;
        let file = world.path("file");
        let digest = random_file(&file, 64 << 20, 7);
        let mut copy = world.command(&["vm", "cp", file.to_str().unwrap(), "web:/root/file", "-o", "json"]);
        let copy = tokio::task::spawn_local(async move { copy.output().await.unwrap() });
        until_within(WORK, "the file is on its way", async || {
            (sh(&bus, "ls -a /root | grep -c drover$ || true").await == "1").then_some(())
        })
        .await;
        assert_eq!(sh(&bus, AGENTS).await, "1 1");

        let result = upgrade(world).await;
        assert!(result.going_on >= 2, "a shell and a file at least: {result:?}");
        assert_eq!((result.before, result.path.as_str()), (result.version, "/sbin/drover-agent"));
        assert_eq!(sh(&bus, AGENTS).await, "2 1");
        // The shell is the same one, and what was done is known.
        terminal.line("echo kept $kept");
        terminal.shows("kept before").await;
        assert_eq!(exec(&bus, once.0, once.1).await.exit_code, done.exit_code);
        assert_eq!(sh(&bus, "cat /tmp/once").await, "once");
        let copied = copy.await.unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let copied: Value = serde_json::from_slice(&copied.stdout).unwrap();
        assert_eq!(copied["sha256"], digest);
        assert!(sh(&bus, "sha256sum /root/file").await.starts_with(&digest));
        // Once more, while the first one still has the shell.
        upgrade(world).await;
        terminal.line("exit 3");
        terminal.shows("ended with 3").await;
        until_within(WORK, "one agent is left", async || (sh(&bus, AGENTS).await == "1 1").then_some(()))
            .await;
        assert_eq!(sh(&bus, "ls -a /sbin | grep -c 'drover-agent.next' || true").await, "0");

        // The run and the publisher have not noticed, and each event is there once and in order.
        sh(&bus, "touch /tmp/stop /tmp/up").await;
        let ended = async |run: RequestId| {
            until_within(WORK, "the run ends", async || {
                let runs =
                    bus.ask("vm.web.guest.runs", &json!({"run": run})).get::<RunsResult>().await.unwrap();
                runs.runs.into_iter().next().filter(|run| run.result.is_some())
            })
            .await
        };
        assert_eq!(ended(counting).await.result.unwrap().exit_code, Some(0));
        assert_eq!(ended(publishing).await.result.unwrap().exit_code, Some(0));
        let printed = world.printed(&["vm", "runs", "attach", "web", &publishing.to_string()]).await;
        let last: u64 = printed.lines().last().unwrap().trim().parse().unwrap();
        let steps = until_within(WORK, "all events", async || {
            Some(counted(&bus, "load.step").await).filter(|steps| steps.last() == Some(&last))
        })
        .await;
        assert_eq!(steps, (1..=last).collect::<Vec<_>>());
        // What is watched was told once, and is watched still.
        until_within(WORK, "the check's end", async || (watched().await.len() == 3).then_some(())).await;
        assert_eq!(watched().await.last().unwrap(), "drover.check-ok");
        // Of the agent itself: three were ready, none was lost.
        let log = events::read(&bus).await;
        let agents: Vec<CauseKind> = log
            .into_iter()
            .filter(|event| event.kind == VmEventKind::Agent)
            .filter_map(|event| event.cause.map(|cause| cause.kind))
            .collect();
        assert_eq!(agents, [CauseKind::AgentReady; 3]);
    });
}

#[test]
fn an_upgrade_that_cannot_be_or_breaks_leaves_the_agent_as_it_was() {
    let test = "an_upgrade_that_cannot_be_or_breaks_leaves_the_agent_as_it_was";
    run(test, emulated(), async |world| {
        boot(&world.bus.clone(), json!({})).await;
        let before = sh(&world.bus, SAME).await;
        let script = world.path("script");
        std::fs::write(&script, "#!/bin/sh\necho not an agent\n").unwrap();
        let failed = world.drover(&["vm", "guest", "upgrade", "web", script.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains("no drover-agent"), "{said}");
        let program = std::env::var("DROVER_AGENT").unwrap();
        let other = ["vm", "guest", "upgrade", "web", &program, "--expect", "99.0.0"];
        let failed = world.drover(&other).await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains("not 99.0.0"), "{said}");

        // The daemon is killed while the program is on its way.
        let bytes = std::fs::read(&program).unwrap();
        let body = json!({"size_bytes": bytes.len(), "sha256": sha256(&bytes)});
        let stream = Stream::open(&world.bus, "vm.web.guest.upgrade", &body).await.unwrap();
        let parts = "ls -a /sbin | grep -c '^[.].*drover-agent' || true";
        until_within(WORK, "it has begun", async || (sh(&world.bus, parts).await == "1").then_some(())).await;
        // Another cannot begin meanwhile.
        let mut busy = Stream::open(&world.bus, "vm.web.guest.upgrade", &body).await.unwrap();
        match busy.find(|frame| frame.end.is_some()).await.end.unwrap() {
            StreamEnd::Error(error) => {
                assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::Busy, "upgrading"));
            }
            end => panic!("{end:?}"),
        }
        world.kill().await;
        drop(stream);
        world.start();
        world.ready().await;
        let bus = world.bus.clone();
        until_within(WORK, "nothing is left of it", async || {
            let ask = bus.ask("vm.web.guest.ping", &json!({})).within(Duration::from_secs(5));
            ask.get::<Value>().await.ok()?;
            (sh(&bus, parts).await == "0").then_some(())
        })
        .await;
        assert_eq!(sh(&bus, SAME).await, before);
        upgrade(world).await;
        until_within(WORK, "one agent is left", async || (sh(&bus, AGENTS).await == "1 1").then_some(()))
            .await;
        // The owner's policy guards the program where it lies now, not where it came.
        sh(&bus, "mkdir -p /etc/drover-agent && cd /etc/drover-agent && printf 'rm\\n' > policy").await;
        let rm = bus.ask("vm.web.guest.rm", &json!({"path": "/sbin/drover-agent"})).id(RequestId::generate());
        let error = rm.refused(ErrorCode::PermissionDenied).await;
        assert!(error.message.contains("has to do with the agent"), "{error}");
    });
}
