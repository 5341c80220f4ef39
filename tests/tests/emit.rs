//! Events from inside guests, on their way to the bus: by users of a guest, by its agent, by one who lies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use drover_schemas::RequestId;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::{AgentEvent, DroppedEvents, VmEvent, VmEventKind};
use drover_tests::client::Bus;
use drover_tests::events;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For what a guest's heartbeat must bring about, and what it does in software emulation.
const WORK: Duration = Duration::from_secs(180);

async fn ask(bus: &Bus, name: &str, body: Value) -> ExecResult {
    let ask = bus.ask(&format!("vm.{name}.guest.exec"), &body).id(RequestId::generate());
    match ask.get().await.unwrap_or_else(|e| panic!("{body}: {e}")) {
        ExecReply::Result(result) => result,
        _ => panic!("neither a stream nor a run was asked for"),
    }
}

async fn exec(bus: &Bus, name: &str, script: &str) -> ExecResult {
    ask(bus, name, json!({"argv": ["sh", "-c", script]})).await
}

/// A guest of processes that is confined is a user namespace with one user; without it there are as many as on any
/// system.
fn with_users(config: &mut Value) {
    config["vmm"]["confine"] = json!(false);
}

/// As an ordinary user.
async fn by_user(bus: &Bus, name: &str, script: &str) -> (i32, String) {
    let done = ask(bus, name, json!({"argv": ["sh", "-c", script], "user": "1000:1000"})).await;
    let text = [done.stdout, done.stderr].into_iter().flatten();
    let text: String = text.map(|part| String::from_utf8_lossy(part.as_slice()).into_owned()).collect();
    (done.exit_code.unwrap_or(-1), text)
}

/// Starts a program in Python in the guest, which outlives the agent.
async fn start(bus: &Bus, program: &str, user: Option<&str>) {
    let mut body = json!({"argv": ["python3", "-c", program], "detach": true});
    if let Some(user) = user {
        body["user"] = json!(user);
    }
    let reply = bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get::<ExecReply>().await;
    assert!(matches!(reply, Ok(ExecReply::Run(_))), "{reply:?}");
}

/// Events of one type that are in the stream, in its order.
async fn said(bus: &Bus, kind: &str) -> Vec<AgentEvent> {
    let events = events::read(bus).await.into_iter().filter_map(|event| event.agent_event);
    events.filter(|event| event.kind.as_str() == kind).collect()
}

/// The first of a type, once it is there.
async fn hears(bus: &Bus, kind: &str) -> AgentEvent {
    until_within(WORK, kind, async || said(bus, kind).await.into_iter().next()).await
}

fn dropped(log: &[VmEvent]) -> DroppedEvents {
    let mut all = DroppedEvents::default();
    for event in log.iter().filter(|event| event.kind == VmEventKind::AgentDropped) {
        all.add(event.dropped.unwrap());
    }
    all
}

#[test]
fn events_of_a_user_arrive_once_and_in_order_whatever_breaks() {
    run("events_of_a_user_arrive_once_and_in_order_whatever_breaks", Options::down(), async |world| {
        world.up_with(with_users).await;
        let bus = world.bus.clone();
        bus.up("web").await;
        start(&bus, include_str!("emit/publisher.py"), Some("1000:1000")).await;
        // Whatever happens, more is published, and arrives.
        let mut seen = 0;
        let mut more = async |bus: &Bus| {
            let grows = async || Some(said(bus, "load.step").await.len()).filter(|count| *count > seen + 2);
            seen = until("more events", grows).await;
        };
        more(&bus).await;
        for _ in 0..3 {
            // The daemon is killed; the one after it has the journal, and the agent what was not acknowledged.
            world.kill().await;
            world.start();
            world.ready().await;
            more(&bus).await;
            // The bus is away: the journal has them.
            world.stop_nats().await;
            world.start_nats().await;
            more(&bus).await;
            // The agent is killed: the next one has what it kept.
            bus.kill_agent("web").await;
            more(&bus).await;
            // The link is cut by a daemon that stops in order.
            world.stop_host().await;
            world.start();
            world.ready().await;
            more(&bus).await;
        }
        exec(&bus, "web", "touch /tmp/stop").await;
        // It makes this file when it has written all.
        until("the publisher ends", async || {
            (exec(&bus, "web", "test -e /tmp/stopped").await.exit_code == Some(0)).then_some(())
        })
        .await;
        let accepted = exec(&bus, "web", "cat /tmp/accepted").await.stdout.unwrap();
        let accepted: Vec<u64> =
            String::from_utf8_lossy(accepted.as_slice()).lines().map(|line| line.parse().unwrap()).collect();
        let last = *accepted.last().unwrap();
        let attempt = |event: &AgentEvent| event.data.0["attempt"].as_u64().unwrap();
        until("the last one", async || {
            said(&bus, "load.step").await.last().is_some_and(|event| attempt(event) >= last).then_some(())
        })
        .await;
        // The logs have no gap and nothing twice; each event is in it once, in order, and none is missing.
        let logs = events::log(&bus).await;
        let all: Vec<&AgentEvent> =
            logs.values().flatten().filter_map(|event| event.agent_event.as_ref()).collect();
        let steps: Vec<u64> = all
            .iter()
            .filter(|event| event.kind.as_str() == "load.step")
            .map(|event| attempt(event))
            .collect();
        assert!(steps.is_sorted_by(|one, next| one < next), "twice or out of order: {steps:?}");
        let arrived: BTreeSet<u64> = steps.iter().copied().collect();
        let missing: Vec<&u64> = accepted.iter().filter(|attempt| !arrived.contains(attempt)).collect();
        assert!(missing.is_empty(), "accepted and lost: {missing:?}");
        // Who it was is what the kernel says, not what the event does.
        assert!(all.iter().all(|event| (event.uid, event.gid) == (1000, 1000) && event.pid > 1), "{all:?}");
        assert_eq!(bus.status("web").await.unwrap().agent.dropped_events, None);
        println!("{} events accepted, {} arrived, each once and in order", accepted.len(), steps.len());
    });
}

#[test]
fn an_event_is_taken_or_it_is_said_why_not() {
    run("an_event_is_taken_or_it_is_said_why_not", Options::down(), async |world| {
        world.up_with(with_users).await;
        let bus = world.bus.clone();
        bus.up("web").await;
        let says = async |args: &str| by_user(&bus, "web", &format!("drover-agent emit {args}")).await;
        assert_eq!(says("app.up --wait").await, (0, String::new()));
        assert_eq!(says("app.pairs a=1 b='x y=z'").await, (0, String::new()));
        let data = r#"--data '{"build": 7, "tags": ["a", null, 0.5], "text": "\u001b[2Jé"}'"#;
        assert_eq!(says(&format!("app.deployed {data} --wait")).await, (0, String::new()));
        // Without our program: a line of JSON, from any language.
        let python = "import json, os, socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/drover-agent.sock'); \
                      f = s.makefile('rw'); f.write('{\"type\": \"py.up\", \"wait_ms\": 20000}\\nno JSON\\n'); f.flush(); \
                      print(json.loads(f.readline())['delivered'], json.loads(f.readline())['error']['code'])";
        let (code, text) =
            by_user(&bus, "web", &format!("python3 -c \"{}\"", python.replace('"', "\\\""))).await;
        assert_eq!((code, text.trim()), (0, "True invalid_argument"));
        for (args, code, said) in [
            ("drover.shutdown", 77, "the agent's own"),
            ("No", 65, "'N'"),
            ("a --data '[]'", 65, "JSON object"),
            ("a --socket /run/none", 69, "no agent answers"),
            ("", 64, "TYPE"),
            (&format!("a text={}", "x".repeat(9_000)), 65, "8192 bytes"),
        ] {
            let (exit, text) = says(args).await;
            assert!(exit == code && text.contains(said), "{args:.60}: {exit} {text}");
        }
        let logs = events::log(&bus).await;
        let told: Vec<&VmEvent> =
            logs.values().flatten().filter(|event| event.agent_event.is_some()).collect();
        let told: Vec<(&str, u32, Value)> = told
            .iter()
            .filter_map(|event| event.agent_event.as_ref())
            .map(|event| (event.kind.as_str(), event.uid, json!(event.data)))
            .collect();
        assert_eq!(
            told,
            [
                ("app.up", 1000, json!({})),
                ("app.pairs", 1000, json!({"a": "1", "b": "x y=z"})),
                ("app.deployed", 1000, json!({"build": 7, "tags": ["a", null, 0.5], "text": "\u{1b}[2Jé"})),
                ("py.up", 1000, json!({})),
            ]
        );
        let page = world.printed(&["events", "--kind", "agent", "--vm", "web"]).await;
        assert!(page.contains("agent  app.deployed by user 1000  {\"build\":7,"), "{page}");
        assert!(page.contains("\\u001b[2Jé"), "{page}");
        // In JSON, as by hand.
        let page = world.printed(&["events", "--kind", "agent", "-o", "json"]).await;
        assert!(
            page.contains("\"type\":\"app.pairs\"") || page.contains("\"type\": \"app.pairs\""),
            "{page}"
        );
        // More than one user may publish is refused, counted and told; others are not kept from it.
        let flood = "n=0; while [ $n -lt 150 ]; do n=$((n+1)); echo '{\"type\": \"flood\"}'; done > /tmp/flood; \
                     python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"/run/drover-agent.sock\"); \
                     s.sendall(open(\"/tmp/flood\", \"rb\").read()); s.shutdown(1); \
                     t = b\"\".join(iter(lambda: s.recv(65536), b\"\")); print(t.count(b\"resource_exhausted\"))'";
        let (code, refused) = by_user(&bus, "web", flood).await;
        assert_eq!(code, 0, "{refused}");
        let refused: u64 = refused.trim().parse().unwrap();
        assert!((1..=60).contains(&refused), "{refused}");
        let (code, text) = says("flood").await;
        assert!(code == 0 || (code == 75 && text.contains("10 each second")), "{code} {text}");
        assert_eq!(exec(&bus, "web", "drover-agent emit root.too").await.exit_code, Some(0));
        let told = until_within(WORK, "what was refused is told", async || {
            let logs = events::log(&bus).await;
            Some(dropped(logs.values().next()?)).filter(|dropped| dropped.guest >= refused)
        })
        .await;
        assert_eq!(told.count, told.guest, "{told:?}");
        let page = world.printed(&["vm", "get", "web"]).await;
        assert!(page.contains("refused by the agent"), "{page}");
        // The end of the guest is told before it comes.
        bus.change("web", "stop").await.unwrap();
        let end = hears(&bus, "drover.shutdown").await;
        assert_eq!((end.uid, &end.data.0["by"]), (0, &json!("host")));
        bus.change("web", "delete").await.unwrap();
        events::log(&bus).await;
    });
}

#[test]
fn what_a_vm_may_not_publish_is_one_event_each_period() {
    run("what_a_vm_may_not_publish_is_one_event_each_period", Options::down(), async |world| {
        let limits = json!({"per_second": 5, "burst": 50});
        world.up_with(|config| config["agent_events"] = limits).await;
        let bus = world.bus.clone();
        let spec = |events: Value| json!({"wait": "agent", "spec": {"agent": {"events": events}}});
        let refused = bus.create("no", spec(json!({"burst": 100_001}))).await.unwrap_err();
        assert!(refused.to_string().contains("spec.agent.events.burst"), "{refused}");
        bus.create("web", spec(json!({"per_second": 0, "burst": 3}))).await.unwrap();
        let script = "for n in 1 2 3 4 5 6 7 8 9 10; do drover-agent emit step n=$n --wait || exit 1; done";
        assert_eq!(
            exec(&bus, "web", script).await.exit_code,
            Some(0),
            "what is dropped was taken all the same"
        );
        let log = until_within(WORK, "what was dropped", async || {
            let logs = events::log(&bus).await;
            let log = logs.into_values().next()?;
            (dropped(&log).count > 0).then_some(log)
        })
        .await;
        let steps: Vec<&Value> = log
            .iter()
            .filter_map(|event| event.agent_event.as_ref())
            .map(|event| &event.data.0["n"])
            .collect();
        assert_eq!(steps, [&json!("1"), &json!("2"), &json!("3")]);
        let told = log.iter().filter(|event| event.kind == VmEventKind::AgentDropped).count();
        assert_eq!(
            (told, dropped(&log)),
            (1, DroppedEvents { count: 7, quota: 7, ..DroppedEvents::default() })
        );
        // Over a restart it is known, and not told again.
        world.kill().await;
        world.start();
        world.ready().await;
        let counts = until("the counts", async || bus.status("web").await.ok()?.agent.dropped_events).await;
        assert_eq!(counts.quota, 7);
        let page = world.printed(&["events", "--kind", "agent-dropped"]).await;
        assert!(page.contains("7 events of the guest were dropped: 7 beyond the quota of the VM"), "{page}");
    });
}

/// Memory of the daemon, in KiB.
fn resident(world: &World) -> u64 {
    let pid = world.daemon_id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How long another VM's `get` takes, in the middle and at the worst.
async fn latency(bus: &Bus, times: usize) -> (Duration, Duration) {
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        bus.status("other").await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    (took[times / 2], took[times - 1])
}

#[test]
fn a_guest_that_floods_the_host_with_events_is_marked_and_harms_nobody() {
    let test = "a_guest_that_floods_the_host_with_events_is_marked_and_harms_nobody";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        bus.up("other").await;
        let quiet = latency(&bus, 50).await;
        start(&bus, include_str!("emit/liar.py"), None).await;
        until("the liar is there", async || {
            let ready = bus.ask("vm.web.guest.runs", &json!({})).within(Duration::from_secs(5));
            // The real agent is stopped: it answers no more.
            ready.get::<drover_schemas::guest::RunsResult>().await.is_err().then_some(())
        })
        .await;
        world.kill().await;
        world.start();
        world.ready().await;
        let before = resident(world);
        let (mut reasons, mut most, mut slowest) = (BTreeSet::new(), before, Duration::ZERO);
        let marked = until_within(WORK, "all kinds of lies are counted", async || {
            let vm = bus.status("web").await.ok()?;
            reasons.extend(vm.agent.last_error.clone());
            most = most.max(resident(world));
            slowest = slowest.max(latency(&bus, 10).await.0);
            let dropped = vm.agent.dropped_events?;
            let counted = dropped.window > 2_000 && dropped.malformed >= 16;
            (counted && reasons.iter().any(|reason| reason.contains("flooded"))).then_some(dropped)
        })
        .await;
        println!(
            "dropped {marked:?}; the daemon grew from {before} to {most} KiB; another VM's get took {:?} at the median of \
             10, {:?} before",
            slowest, quiet.0
        );
        assert!(most < before + 32 * 1024, "{before} KiB became {most}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        let explained = world.printed(&["vm", "get", "web"]).await;
        assert!(explained.contains("more at once than an agent may send"), "{explained}");
        // What it published within its quota is a log as any other; its sibling's is not touched.
        let logs = events::log(&bus).await;
        let published = logs.values().flatten().filter(|event| event.agent_event.is_some()).count();
        assert!((1..400).contains(&published), "{published}");
        assert_eq!(bus.status("other").await.unwrap().agent.state, AgentState::Ready);
        bus.change("web", "delete").await.unwrap();
    });
}

#[test]
fn a_real_guest_tells_of_its_kernel_its_disk_and_its_end() {
    let test = "a_real_guest_tells_of_its_kernel_its_disk_and_its_end";
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() };
    run(test, options, async |world| {
        let bus = world.bus.clone();
        let cmdline = "console=ttyS0 panic=-1 quiet loglevel=4 tsc=reliable no_timer_check root=/dev/vda rw";
        let spec = json!({
            "template": "linux-microvm",
            "agent": {"enabled": true, "ready_timeout_ms": 300_000},
            "boot": {"cmdline": cmdline},
            "disks": [{"image": "drover-rootfs"}],
        });
        let create = bus.ask("vm.create", &json!({"name": "web", "spec": spec})).id(RequestId::generate());
        create.within(Duration::from_secs(90)).get::<ChangeReply>().await.unwrap();
        let ready = async || bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready);
        let vm: VmStatus = until_within(BOOT, "the agent", ready).await;

        // By a user of the guest, on its vsock.
        let (code, text) = by_user(&bus, "web", "drover-agent emit app.up a=1 --wait --timeout 60").await;
        assert_eq!((code, text.as_str()), (0, ""));
        let event = hears(&bus, "app.up").await;
        assert_eq!((event.uid, event.gid, json!(event.data)), (1000, 1000, json!({"a": "1"})));

        // More memory than there is, less than the kernel refuses at once.
        let script =
            "set -- $(grep MemTotal /proc/meminfo); dd if=/dev/zero of=/dev/null bs=$(($2 - 2048))k count=1";
        let done = exec(&bus, "web", script).await;
        assert_ne!(done.exit_code, Some(0));
        let kill = hears(&bus, "drover.oom-kill").await;
        println!("{}", json!(kill));
        assert_eq!((kill.uid, &kill.data.0["name"], &kill.data.0["of"]), (0, &json!("dd"), &json!("guest")));
        assert!(kill.data.0["rss_bytes"].as_u64().unwrap() > 32 << 20 && kill.data.0["uid"] == 0);

        // A disk that is full; told with the heartbeat, and again when it is not.
        let script = "dd if=/dev/zero of=/fill bs=64k 2> /dev/null; df / | tail -n 1";
        println!(
            "{}",
            String::from_utf8_lossy(exec(&bus, "web", script).await.stdout.unwrap().as_slice()).trim()
        );
        let low = hears(&bus, "drover.disk-low").await;
        println!("{}", json!(low));
        assert_eq!(low.data.0["mount"], "/");
        assert!(low.data.0["used_percent"].as_u64().unwrap() >= 95);
        exec(&bus, "web", "rm /fill").await;
        assert!(
            hears(&bus, "drover.disk-ok").await.data.0["free_bytes"].as_u64()
                > low.data.0["free_bytes"].as_u64()
        );

        // A user of the guest switches it off: init ends the agent, which tells first.
        exec(&bus, "web", "poweroff").await;
        let end = hears(&bus, "drover.shutdown").await;
        assert_eq!(json!(end.data), json!({"by": "guest"}));
        let off = async || bus.status("web").await.ok().filter(|vm| vm.state.as_str() == "stopped");
        until_within(WORK, "it is off", off).await;
        let logs = events::log(&bus).await;
        let log = &logs[&vm.vm_id];
        let of_end = log.iter().position(|event| {
            event.agent_event.as_ref().is_some_and(|said| said.kind.as_str() == "drover.shutdown")
        });
        let of_stop = log.iter().rposition(|event| event.kind == VmEventKind::State);
        assert!(of_end < of_stop, "it was told before");
        assert_eq!(said(&bus, "drover.shutdown").await.len(), 1);
    });
}
