//! Agents of other versions than their host's, as programs that run: what they have works, what they lack is an error that
//! says so, and each is replaced by this version's without an end of what runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentFaultCode, AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::{RunsResult, UpgradeResult};
use drover_schemas::state::VmState;
use drover_schemas::stream::{Channel, MAX_WINDOW};
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure};
use drover_tests::digest::random_file;
use drover_tests::events;
use drover_tests::stream::Stream;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(180);

/// The program that is an agent of any version, beside the one of this version.
fn other() -> Option<PathBuf> {
    let other = Path::new(&std::env::var_os("DROVER_AGENT")?).with_file_name("other-agent");
    other.exists().then_some(other)
}

/// An agent of another version, as a program of the world's.
fn agent(world: &World, version: &str) -> PathBuf {
    let path = world.path(version);
    std::fs::copy(other().unwrap(), &path).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    writeln!(file, "as {version}").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A test with the program.
fn with_others<F>(test: &str, options: Options, body: F)
where
    F: AsyncFnOnce(&mut World) + Send + 'static,
{
    if other().is_none() {
        return println!("SKIP {test}: other-agent is not beside DROVER_AGENT; tests/run.sh builds it");
    }
    run(test, options, body);
}

/// A world whose guests have an agent of that version.
async fn start(world: &mut World, version: &str) {
    let agent = agent(world, version);
    world.has_agent(agent);
    world.start_nats().await;
    world.start();
    world.ready().await;
}

async fn exec(bus: &Bus, script: &str) -> ExecResult {
    let body = json!({"argv": ["sh", "-c", script]});
    match bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
        ExecReply::Result(result) => result,
        other => panic!("neither a stream nor a run was asked for: {other:?}"),
    }
}

/// What a script prints that must succeed.
async fn sh(bus: &Bus, script: &str) -> String {
    let done = exec(bus, script).await;
    assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

/// A `cat` in the guest.
async fn cat(bus: &Bus) -> Stream {
    Stream::open(bus, "vm.web.guest.exec", &json!({"argv": ["cat"], "stream": true})).await.unwrap()
}

/// Says so much to it and hears it.
async fn hears(cat: &mut Stream, from: u64, text: &[u8]) {
    cat.data(Channel::Stdin, from, text).await;
    let frame = cat.find(|frame| frame.ch == Some(Channel::Stdout) && frame.off == Some(from)).await;
    assert_eq!(frame.data.unwrap().as_slice(), text);
    cat.ack(Channel::Stdout, from + text.len() as u64, MAX_WINDOW).await;
}

/// Commands, streams, runs and files, which each version has.
async fn main_job(world: &World) {
    let bus = &world.bus;
    assert_eq!(exec(bus, "exit 3").await.exit_code, Some(3));
    let mut stream = cat(bus).await;
    hears(&mut stream, 0, b"over the bus").await;
    stream.cancel().await;
    let run = world.printed(&["vm", "exec", "-d", "web", "--", "sh", "-c", "echo kept; exit 4"]).await;
    let attached = world.drover(&["vm", "runs", "attach", "web", run.trim()]).await;
    assert_eq!((attached.status.code(), attached.stdout.as_slice()), (Some(4), &b"kept\n"[..]));
    let (there, back) = (world.path("there"), world.path("back"));
    let digest = random_file(&there, 3 << 20, 7);
    for args in [[there.to_str().unwrap(), "web:/root/file"], ["web:/root/file", back.to_str().unwrap()]] {
        world.printed(&["vm", "cp", args[0], args[1]]).await;
    }
    assert_eq!(drover_tests::digest::digest_of(&back), digest);
    world.printed(&["vm", "info", "web"]).await;
}

#[test]
fn an_older_agent_does_what_it_can_and_what_it_lacks_is_said() {
    let test = "an_older_agent_does_what_it_can_and_what_it_lacks_is_said";
    with_others(test, Options::down(), async |world| {
        start(world, "older").await;
        let bus = world.bus.clone();
        // What its host wants watched, and it cannot watch.
        let check = json!({"name": "up", "argv": ["true"], "interval_ms": 1_000});
        let spec = json!({"agent": {"enabled": true, "checks": [check]}});
        let created: ChangeReply = bus.create("web", json!({"wait": "agent", "spec": spec})).await.unwrap();
        assert_eq!(created.vm.agent.version.as_deref(), Some("0.0.9"));
        main_job(world).await;
        let vm = bus.until("web", "nothing is watched", |vm| vm.agent.unwatched.is_some()).await;
        assert_eq!(vm.agent.state, AgentState::Ready);
        assert!(vm.agent.unwatched.as_ref().unwrap().contains("0.0.9"), "{vm:?}");

        for (verb, body) in [
            ("processes", json!({})),
            ("users", json!({})),
            ("user_add", json!({"user": "new"})),
            ("user_rm", json!({"user": "new"})),
            ("keys", json!({"user": "root"})),
            ("keys_change", json!({"user": "root", "replace": true})),
            ("network", json!({"mac": "02:00:00:00:00:01"})),
            ("exec", json!({"argv": ["true"], "umask": 0o77})),
        ] {
            let ask = bus.ask(&format!("vm.web.guest.{verb}"), &body).id(RequestId::generate());
            let error = ask.refused(ErrorCode::Unsupported).await;
            let said = &error.message;
            assert!(said.contains("0.0.9") && said.contains("install the agent"), "{verb}: {error}");
        }
        for (verb, body) in
            [("pack", json!({"path": "/root"})), ("unpack", json!({"path": "/root/x", "size_bytes": 0}))]
        {
            match Stream::open(&bus, &format!("vm.web.guest.{verb}"), &body).await {
                Err(Failure::Coded(error)) => {
                    assert_eq!(error.code, ErrorCode::Unsupported, "{verb}: {error}")
                }
                other => panic!("{verb}: {other:?}"),
            }
        }
        let ps = world.drover(&["vm", "ps", "web"]).await;
        let said = String::from_utf8_lossy(&ps.stderr).into_owned();
        assert!(!ps.status.success() && said.contains("0.0.9"), "{said}");
        // Its programs publish, and nobody hears it: not a word too much, and nothing stands still.
        sh(&bus, "drover-agent emit app.said n=1").await;
        main_job(world).await;
        let told = events::read(&bus).await;
        assert!(told.iter().all(|event| event.agent_event.is_none()), "{told:?}");
        assert_eq!(bus.status("web").await.unwrap().agent.fault, None);
        bus.change("web", "shutdown").await.unwrap();
        bus.until("web", "it is off", |vm| vm.state == VmState::Stopped).await;
        bus.change("web", "delete").await.unwrap();
    });
}

#[test]
fn a_newer_agent_speaks_as_its_host_does() {
    let test = "a_newer_agent_speaks_as_its_host_does";
    with_others(test, Options::down(), async |world| {
        start(world, "newer").await;
        let bus = world.bus.clone();
        assert_eq!(bus.up("web").await.agent.version.as_deref(), Some("9.0.0"));
        main_job(world).await;
        world.printed(&["vm", "ps", "web"]).await;
        sh(&bus, "drover-agent emit app.said n=1").await;
        until("its event", async || {
            let told = events::read(&bus).await.into_iter().filter_map(|event| event.agent_event);
            told.into_iter().find(|event| event.kind.as_str() == "app.said")
        })
        .await;
        // What only the agent knows is no verb of the host's, whatever the agent offers.
        let teleport = bus.ask("vm.web.guest.teleport", &json!({})).id(RequestId::generate());
        teleport.refused(ErrorCode::Unsupported).await;
        world.kill().await;
        world.start();
        world.ready().await;
        bus.until_ping("web").await;
        assert_eq!(bus.status("web").await.unwrap().agent.fault, None);
        bus.change("web", "delete").await.unwrap();
    });
}

#[test]
fn an_agent_that_speaks_otherwise_is_told_of_and_holds_nothing_up() {
    let test = "an_agent_that_speaks_otherwise_is_told_of_and_holds_nothing_up";
    with_others(test, Options::down(), async |world| {
        start(world, "later").await;
        let bus = world.bus.clone();
        let spec = json!({"agent": {"enabled": true, "ready_timeout_ms": 60_000}});
        let created: ChangeReply = bus.create("web", json!({"wait": "running", "spec": spec})).await.unwrap();
        assert_eq!(created.vm.state, VmState::Running);
        let vm = bus.until("web", "the fault", |vm| vm.agent.fault.is_some()).await;
        let fault = vm.agent.fault.unwrap();
        assert_eq!(fault.code, AgentFaultCode::Incompatible);
        let said = world.printed(&["vm", "explain", "web"]).await;
        assert!(said.contains("install the agent of this host's version"), "{said}");
        for (verb, body) in
            [("exec", json!({"argv": ["true"]})), ("ping", json!({})), ("stat", json!({"path": "/"}))]
        {
            let ask = bus.ask(&format!("vm.web.guest.{verb}"), &body).id(RequestId::generate());
            let error = ask.within(Duration::from_secs(5)).refused(ErrorCode::Unsupported).await;
            assert_eq!(error.details["fault"], "incompatible", "{verb}: {error}");
        }
        let stopped = world.drover(&["vm", "stop", "web", "--force"]).await;
        assert!(stopped.status.success(), "{stopped:?}");
        // With one that speaks as its host does it is as any other.
        world.kill().await;
        let agent = PathBuf::from(std::env::var_os("DROVER_AGENT").unwrap());
        world.has_agent(agent);
        world.start();
        world.ready().await;
        bus.change("web", "start").await.unwrap();
        let ready = bus.until("web", "the agent", |vm| vm.agent.state == AgentState::Ready).await;
        assert_eq!(ready.agent.fault, None);
        main_job(world).await;
        bus.change("web", "delete").await.unwrap();
    });
}

async fn boot(bus: &Bus) -> VmStatus {
    let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
    let body =
        json!({"name": "web", "spec": {"template": "linux-microvm", "memory": "512MiB", "agent": agent}});
    let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
    until_within(BOOT, "the agent", async || {
        bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

async fn upgrade(world: &World, program: &Path) -> UpgradeResult {
    let text =
        world.printed(&["-o", "json", "vm", "guest", "upgrade", "web", program.to_str().unwrap()]).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

async fn version(bus: &Bus) -> String {
    bus.ask("vm.web.guest.info", &json!({})).get::<Value>().await.unwrap()["agent_version"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn agents_of_several_versions_follow_each_other_and_commands_go_on() {
    let test = "agents_of_several_versions_follow_each_other_and_commands_go_on";
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() };
    with_others(test, options, async |world| {
        let bus = world.bus.clone();
        boot(&bus).await;
        let this = PathBuf::from(std::env::var_os("DROVER_AGENT").unwrap());
        let [older, newer, later] = ["older", "newer", "later"].map(|version| agent(world, version));
        let mine = version(&bus).await;

        // Back to an older one, as somebody does whom the newer one disappoints.
        let said = upgrade(world, &older).await;
        assert_eq!((said.before.as_str(), said.version.as_str()), (mine.as_str(), "0.0.9"));
        assert_eq!(version(&bus).await, "0.0.9");
        let processes = bus.ask("vm.web.guest.processes", &json!({})).id(RequestId::generate());
        processes.refused(ErrorCode::Unsupported).await;

        // With a command that reads, a run, and a request that was carried out.
        let mut stream = cat(&bus).await;
        hears(&mut stream, 0, b"of the older one; ").await;
        let counting = "n=0; until [ -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 50000; done; exit 5";
        let detached =
            world.printed(&["vm", "exec", "-d", "web", "--", "sh", "-c", counting]).await.trim().to_owned();
        let once = RequestId::generate();
        let body = json!({"argv": ["sh", "-c", "echo once >> /tmp/once"]});
        let done: ExecReply = bus.ask("vm.web.guest.exec", &body).id(once).get().await.unwrap();
        assert!(matches!(done, ExecReply::Result(ExecResult { exit_code: Some(0), .. })), "{done:?}");

        let said = upgrade(world, &this).await;
        assert_eq!((said.before.as_str(), said.version.as_str()), ("0.0.9", mine.as_str()));
        assert!(said.going_on >= 1, "{said:?}");
        hears(&mut stream, 18, b"of this one; ").await;
        let _: ExecReply = bus.ask("vm.web.guest.exec", &body).id(once).get().await.unwrap();
        assert_eq!(sh(&bus, "cat /tmp/once").await, "once");
        world.printed(&["vm", "ps", "web"]).await;

        // To a newer one; and one that this host cannot speak with does not get in.
        let said = upgrade(world, &newer).await;
        assert_eq!((said.before.as_str(), said.version.as_str()), (mine.as_str(), "9.0.0"));
        hears(&mut stream, 31, b"of the newer one").await;
        let refused = world.drover(&["vm", "guest", "upgrade", "web", later.to_str().unwrap()]).await;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("the old one goes on"), "{why}");
        assert_eq!(version(&bus).await, "9.0.0");
        hears(&mut stream, 47, b" to the end").await;
        let said = upgrade(world, &this).await;
        assert_eq!((said.before.as_str(), said.version.as_str()), ("9.0.0", mine.as_str()));

        stream.cancel().await;
        sh(&bus, "touch /tmp/stop").await;
        let body = json!({"run": detached});
        let ended = until_within(WORK, "the run ends", async || {
            let runs = bus.ask("vm.web.guest.runs", &body).get::<RunsResult>().await.unwrap();
            runs.runs.into_iter().next().filter(|run| run.result.is_some())
        })
        .await;
        assert_eq!(ended.result.unwrap().exit_code, Some(5));
        // Each line once and in order, whichever agent read it.
        let printed = world.drover(&["vm", "runs", "attach", "web", &detached]).await;
        let lines = String::from_utf8(printed.stdout).unwrap();
        let numbers: Vec<u64> = lines.lines().map(|line| line.trim().parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        assert_eq!(bus.status("web").await.unwrap().agent.fault, None);
        bus.change("web", "delete").await.unwrap();
    });
}
