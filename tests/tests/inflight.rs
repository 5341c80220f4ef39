//! Each verb of the guest, under way while something breaks: it ends with a result or a code, in time, and what is asked
//! for again with its id is not done twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::status::{AgentFaultCode, AgentState, VmStatus};
use drover_schemas::guest::RunInfo;
use drover_schemas::stream::{Channel, PEER_LOST_MS, StreamEnd, StreamFrame};
use drover_schemas::verbs::{Class, Plane, VERBS, VerbRow};
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure};
use drover_tests::events;
use drover_tests::liar::agent_of;
use drover_tests::stream::Stream;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, World, run};
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A key that nobody has.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g test";
/// What each request may take.
const DEADLINE: Duration = Duration::from_secs(8);
/// How much later its end may be heard, on a loaded machine.
const LATE: Duration = Duration::from_secs(5);
/// A link whose agent answers nothing is given up after so long, by the protocol, and no earlier.
const HALF_OPEN: Duration = Duration::from_secs(40);

/// A stream whose client is not heard is given up after so long, and whoever asks for the same waits for that.
const PEER_LOST: Duration = Duration::from_millis(PEER_LOST_MS);

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AgentKilled,
    GuestRebooted,
    VmmKilled,
    DaemonKilled,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Done,
    Coded(ErrorCode),
    /// Nothing was heard: its client asks again.
    Unheard,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Coded(error) => Self::Coded(error.code),
            Failure::Nobody | Failure::Silence(_) => Self::Unheard,
        }
    }
}

/// A request for each verb of the guest; `run` is a detached command.
fn body(verb: &str, run: RequestId) -> Value {
    match verb {
        "ping" | "info" | "health" | "processes" | "runs" | "thaw" | "frozen" | "clock" | "online"
        | "trim" => json!({}),
        "exec" => json!({"argv": ["sh", "-c", "echo ran >> /tmp/ran"]}),
        "attach" => json!({"run": run, "no_follow": true}),
        "kill" => json!({"run": run, "signal": Signal::SIGUSR1 as i32}),
        "put" => json!({"path": "/tmp/put", "size_bytes": 0}),
        "get" | "stat" => json!({"path": "/tmp/in"}),
        "ls" | "pack" => json!({"path": "/tmp/dir"}),
        "rm" => json!({"path": "/tmp/gone"}),
        "mkdir" => json!({"path": "/tmp/made"}),
        "unpack" => json!({"path": "/tmp/unpacked", "size_bytes": 0}),
        "users" => json!({}),
        "user_add" => json!({"user": "added"}),
        "user_rm" => json!({"user": "nobody-there"}),
        "keys" => json!({"user": "root"}),
        "keys_change" => json!({"user": "root", "add": [KEY]}),
        // It is no program of an agent.
        "upgrade" => json!({"size_bytes": 1, "sha256": "0".repeat(64)}),
        "freeze" => json!({"timeout_ms": 1_000}),
        "identity" => json!({"hostname": "other"}),
        // A process has the network of its namespace: it is only looked for.
        "network" => json!({"mac": "02:00:00:00:00:01"}),
        "shutdown" => json!({"mode": "reboot"}),
        other => panic!("no row for {other:?}: say here what is asked of it"),
    }
}

/// The verbs of the guest, but the one that ends it for all others.
fn verbs() -> impl Iterator<Item = &'static VerbRow> {
    VERBS.iter().filter(|row| row.plane == Plane::VmGuest && row.verb != "shutdown")
}

/// One that answers with a stream here.
fn is_stream(row: &VerbRow) -> bool {
    row.class == Class::Stream && row.verb != "exec"
}

/// Asks, and waits for the end: of a stream that has begun, as long as whoever has it may take to be given up.
async fn ask(bus: Bus, name: &str, row: &VerbRow, run: RequestId, id: RequestId) -> Outcome {
    let (tail, body) = (format!("vm.{name}.guest.{}", row.verb), body(row.verb, run));
    if !is_stream(row) {
        let ask = bus.ask(&tail, &body).id(id).within(DEADLINE);
        let done = match row.verb {
            // Bytes are no JSON.
            "exec" => ask.get::<ExecReply>().await.map(drop),
            _ => ask.get::<Value>().await.map(drop),
        };
        return done.map_or_else(Outcome::from, |()| Outcome::Done);
    }
    let mut stream = match Stream::open_as(&bus, &tail, &body, id, DEADLINE).await {
        Ok(stream) => stream,
        Err(failure) => return failure.into(),
    };
    if matches!(row.verb, "put" | "unpack" | "upgrade") {
        // An archive of nothing, or a file of nothing.
        let len = match row.verb {
            "unpack" => 1_024,
            "upgrade" => 1,
            _ => 0,
        };
        let data = Some(vec![0; len].into());
        let (ch, off) = (Some(Channel::Data), Some(0));
        stream.send(&StreamFrame { ch, off, data, eof: true, ..StreamFrame::default() }).await;
    }
    let end = Instant::now() + PEER_LOST + DEADLINE;
    while let Some(frame) = stream.next_within(end.saturating_duration_since(Instant::now())).await {
        if let (Some(ch), Some(off)) = (frame.ch, frame.off) {
            let len = frame.data.as_ref().map_or(0, |data| data.as_slice().len());
            // The end counts as one more.
            stream.ack(ch, off + len as u64 + u64::from(frame.eof), 64 << 10).await;
        }
        if let Some(end) = frame.end {
            stream.send(&StreamFrame { done: true, ..StreamFrame::default() }).await;
            return match end {
                StreamEnd::Result(_) => Outcome::Done,
                StreamEnd::Error(error) => Outcome::Coded(error.code),
            };
        }
    }
    Outcome::Unheard
}

/// A VM that starts again whatever ends it, with what the requests are about.
async fn up(bus: &Bus, name: &str) -> (VmStatus, RequestId) {
    let spec = json!({"memory_bytes": 64 << 20, "restart": {"policy": "always"}});
    let vm = bus.create(name, json!({"wait": "agent", "spec": spec})).await;
    let vm = vm.unwrap_or_else(|e| panic!("create {name}: {e}")).vm;
    let script = "trap 'echo got >> /tmp/got' USR1; echo ready; while :; do sleep 0.05; done";
    let detached = json!({"argv": ["sh", "-c", script], "detach": true});
    let id = RequestId::generate();
    let reply = bus.ask(&format!("vm.{name}.guest.exec"), &detached).id(id).get().await.unwrap();
    let ExecReply::Run(RunInfo { run, .. }) = reply else { panic!("{reply:?}") };
    sh(bus, name, "mkdir -p /tmp/dir; echo text > /tmp/in; echo text > /tmp/gone").await;
    (vm, run)
}

async fn sh(bus: &Bus, name: &str, script: &str) -> String {
    let body = json!({"argv": ["sh", "-c", script]});
    let reply = bus.ask(&format!("vm.{name}.guest.exec"), &body).get().await;
    match reply.unwrap_or_else(|e| panic!("{name}: {script}: {e}")) {
        ExecReply::Result(result) => String::from_utf8_lossy(result.stdout.unwrap().as_slice()).into_owned(),
        other => panic!("{other:?}"),
    }
}

async fn ready(bus: &Bus, name: &str) {
    until_within(Duration::from_secs(60), &format!("{name} answers"), async || {
        let vm = bus.status(name).await.ok()?;
        let ping = bus.ask(&format!("vm.{name}.guest.ping"), &json!({})).within(Duration::from_secs(2));
        (vm.agent.state == AgentState::Ready && ping.get::<Value>().await.is_ok()).then_some(())
    })
    .await;
}

/// How often a line was written in the guest.
async fn count(bus: &Bus, name: &str, file: &str) -> usize {
    sh(bus, name, &format!("cat {file} 2>/dev/null; true")).await.lines().count()
}

type Asked = Vec<(&'static VerbRow, RequestId, tokio::task::JoinHandle<(Outcome, Duration)>)>;

/// Asks for everything at once of an agent that stands still, so that all of it is under way.
async fn ask_all(bus: &Bus, name: &'static str, run: RequestId, rows: &[&'static VerbRow]) -> Asked {
    let asked = rows.iter().map(|row| {
        let (row, id, bus) = (*row, RequestId::generate(), bus.clone());
        let work = async move {
            let began = Instant::now();
            (ask(bus, name, row, run, id).await, began.elapsed())
        };
        (row, id, tokio::task::spawn_local(work))
    });
    let asked: Asked = asked.collect();
    // They went before this over the same connection, and nothing of them is answered.
    tokio::task::yield_now().await;
    bus.nats.flush().await.unwrap();
    bus.status(name).await.unwrap();
    asked
}

/// What was asked for, by its id.
type Ids = Vec<(&'static VerbRow, RequestId)>;

/// Waits for all ends.
async fn ends(what: &str, asked: Asked, within: impl Fn(&VerbRow) -> Duration, allowed: &[Outcome]) -> Ids {
    let mut first = BTreeMap::new();
    let mut ids = Vec::new();
    for (row, id, work) in asked {
        let (outcome, took) = work.await.unwrap();
        assert!(took <= within(row) + LATE, "{what}: {} ended after {took:?}", row.verb);
        assert!(
            allowed.contains(&outcome) || is_of_processes(row, &outcome),
            "{what}: {} ended as {outcome:?}",
            row.verb
        );
        first.insert(row.verb, outcome);
        ids.push((row, id));
    }
    println!("{what}: {first:?}");
    ids
}

/// Asks again with the same ids, as a client does that does not know what became of it.
async fn again(bus: &Bus, name: &'static str, what: &str, run: RequestId, ids: &Ids) {
    ready(bus, name).await;
    let again = join_all(
        ids.iter().map(|(row, id)| async move { (row.verb, ask(bus.clone(), name, row, run, *id).await) }),
    )
    .await;
    println!("{what}, again: {again:?}");
    for (verb, outcome) in again {
        let known = [
            // Another boot, or another agent, has forgotten the id.
            Outcome::Coded(ErrorCode::Conflict),
            // In another boot there is no such run, no such file.
            Outcome::Coded(ErrorCode::NotFound),
            Outcome::Coded(ErrorCode::AlreadyExists),
            // Its first was ended by the fault, and is not run again.
            Outcome::Coded(ErrorCode::Unavailable),
            Outcome::Coded(ErrorCode::DeadlineExceeded),
            // What a guest of processes cannot do.
            Outcome::Coded(ErrorCode::Unsupported),
            Outcome::Done,
        ];
        assert!(known.contains(&outcome), "{what}: {verb} again: {outcome:?}");
    }
    for file in ["/tmp/ran", "/tmp/got"] {
        let times = count(bus, name, file).await;
        assert!(times <= 1, "{what}: {times} lines in {file}");
    }
}

/// What a guest without a kernel of its own answers.
fn is_of_processes(row: &VerbRow, outcome: &Outcome) -> bool {
    let verbs = ["clock", "online", "trim", "identity", "freeze"];
    verbs.contains(&row.verb) && *outcome == Outcome::Coded(ErrorCode::Unsupported)
}

async fn breaks(world: &mut World, fault: Fault, vm: &VmStatus, name: &str) {
    let agent = agent_of(world, vm.vm_id).unwrap();
    match fault {
        Fault::AgentKilled => kill(agent, Signal::SIGKILL).unwrap(),
        Fault::GuestRebooted => drop(world.bus.change(name, "reboot").await.unwrap()),
        Fault::VmmKilled => world.kill_vmm(vm.vm_id),
        Fault::DaemonKilled => {
            world.kill().await;
            kill(agent, Signal::SIGCONT).unwrap();
            world.start();
            world.ready().await;
        }
    }
}

#[test]
fn each_verb_under_way_ends_with_a_code_and_is_not_done_twice() {
    let test = "each_verb_under_way_ends_with_a_code_and_is_not_done_twice";
    run(test, Options { budget: Duration::from_secs(240), ..Options::default() }, async |world| {
        let bus = world.bus.clone();
        let of = |code| Outcome::Coded(code);
        let lost = [of(ErrorCode::GuestUnreachable), of(ErrorCode::Unavailable), of(ErrorCode::InvalidState)];
        let unheard = [Outcome::Unheard, Outcome::Done];
        let faults: [(&'static str, Fault, &[Outcome]); 4] = [
            ("agent", Fault::AgentKilled, &lost),
            ("guest", Fault::GuestRebooted, &lost),
            ("vmm", Fault::VmmKilled, &lost),
            ("daemon", Fault::DaemonKilled, &unheard),
        ];
        for (name, fault, allowed) in faults {
            let rows: Vec<_> = verbs().collect();
            let (vm, run) = up(&bus, name).await;
            kill(agent_of(world, vm.vm_id).unwrap(), Signal::SIGSTOP).unwrap();
            let asked = ask_all(&bus, name, run, &rows).await;
            breaks(world, fault, &vm, name).await;
            // Whoever hears nothing of a daemon that is gone waits for a stream as long as its protocol says.
            let within = |row: &VerbRow| match fault {
                Fault::DaemonKilled if is_stream(row) => DEADLINE + PEER_LOST + DEADLINE,
                _ => DEADLINE,
            };
            let what = format!("{fault:?}");
            let ids = ends(&what, asked, within, allowed).await;
            again(&bus, name, &what, run, &ids).await;
            bus.change(name, "delete").await.unwrap();
        }
    });
}

#[test]
fn a_shutdown_under_way_ends_with_a_code_and_is_done_once() {
    let test = "a_shutdown_under_way_ends_with_a_code_and_is_done_once";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let row = VERBS.iter().find(|row| row.plane == Plane::VmGuest && row.verb == "shutdown").unwrap();
        for (name, fault) in [
            ("agent", Fault::AgentKilled),
            ("guest", Fault::GuestRebooted),
            ("vmm", Fault::VmmKilled),
            ("daemon", Fault::DaemonKilled),
        ] {
            let (vm, run) = up(&bus, name).await;
            kill(agent_of(world, vm.vm_id).unwrap(), Signal::SIGSTOP).unwrap();
            let mut asked = ask_all(&bus, name, run, &[row]).await;
            breaks(world, fault, &vm, name).await;
            let (row, id, work) = asked.pop().unwrap();
            let (outcome, took) = work.await.unwrap();
            assert!(took <= DEADLINE + LATE, "{fault:?}: {took:?}");
            ready(&bus, name).await;
            let before = bus.status(name).await.unwrap();
            let again = ask(bus.clone(), name, row, run, id).await;
            println!("{fault:?}: {outcome:?} after {took:?}, again: {again:?}");
            assert_ne!(again, Outcome::Unheard);
            if outcome != Outcome::Unheard {
                // It is not known whether the first was done, so it is not done again in another boot.
                assert_eq!(again, Outcome::Coded(ErrorCode::Conflict), "{fault:?}");
                assert_eq!(bus.status(name).await.unwrap().agent.boot_id, before.agent.boot_id);
            }
        }
    });
}

#[test]
fn a_link_whose_agent_answers_nothing_is_found_and_comes_back() {
    let test = "a_link_whose_agent_answers_nothing_is_found_and_comes_back";
    run(test, Options { budget: Duration::from_secs(240), ..Options::default() }, async |world| {
        let bus = world.bus.clone();
        let name = "still";
        let (vm, run) = up(&bus, name).await;
        let rows: Vec<_> = verbs().collect();
        let agent = agent_of(world, vm.vm_id).unwrap();
        kill(agent, Signal::SIGSTOP).unwrap();
        let began = Instant::now();
        let asked = ask_all(&bus, name, run, &rows).await;
        let what = "the silence is found";
        let lost = until_within(HALF_OPEN + LATE, what, async || {
            bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Lost)
        })
        .await;
        println!("the silence was found after {:?}", began.elapsed());
        assert_eq!(lost.agent.fault.unwrap().code, AgentFaultCode::Silent);
        let error = bus.ask("vm.still.guest.ping", &json!({})).within(Duration::from_secs(2));
        error.refused(ErrorCode::GuestUnreachable).await;
        kill(agent, Signal::SIGCONT).unwrap();
        let codes = [ErrorCode::DeadlineExceeded, ErrorCode::GuestUnreachable, ErrorCode::Unavailable];
        let allowed = codes.map(Outcome::Coded);
        // A stream has no deadline once it is open: it ends with its link.
        let within = |row: &VerbRow| if is_stream(row) { HALF_OPEN } else { DEADLINE };
        let ids = ends("HalfOpen", asked, within, &allowed).await;
        again(&bus, name, "HalfOpen", run, &ids).await;
        let back = until("the same agent", async || {
            bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
        })
        .await;
        assert_eq!((back.agent.boot_id, back.incarnation), (vm.agent.boot_id, vm.incarnation));
    });
}

#[test]
fn each_verb_ends_while_what_lies_between_stands_still_and_is_not_done_twice() {
    let test = "each_verb_ends_while_what_lies_between_stands_still_and_is_not_done_twice";
    run(test, Options { budget: Duration::from_secs(300), ..Options::default() }, async |world| {
        let bus = world.bus.clone();
        let rows: Vec<_> = verbs().collect();
        // The VMM stands still, and with it the way to the guest.
        let name = "vmm";
        let (vm, run) = up(&bus, name).await;
        let vmm = Pid::from_raw(i32::try_from(vm.vmm_pid.unwrap()).unwrap());
        kill(vmm, Signal::SIGSTOP).unwrap();
        let asked = ask_all(&bus, name, run, &rows).await;
        let codes = [ErrorCode::DeadlineExceeded, ErrorCode::GuestUnreachable, ErrorCode::Unavailable];
        let within = |row: &VerbRow| if is_stream(row) { HALF_OPEN } else { DEADLINE };
        let ids = ends("VmmStopped", asked, within, &codes.map(Outcome::Coded)).await;
        kill(vmm, Signal::SIGCONT).unwrap();
        again(&bus, name, "VmmStopped", run, &ids).await;
        bus.change(name, "delete").await.unwrap();

        // The daemon stands still with all that it was asked for, which its guest does meanwhile.
        let name = "daemon";
        let (vm, run) = up(&bus, name).await;
        let agent = agent_of(world, vm.vm_id).unwrap();
        kill(agent, Signal::SIGSTOP).unwrap();
        let asked = ask_all(&bus, name, run, &rows).await;
        let daemon = Pid::from_raw(i32::try_from(world.daemon_id().unwrap()).unwrap());
        kill(daemon, Signal::SIGSTOP).unwrap();
        kill(agent, Signal::SIGCONT).unwrap();
        let unheard = [Outcome::Unheard, Outcome::Done];
        let within = |row: &VerbRow| if is_stream(row) { DEADLINE + PEER_LOST + DEADLINE } else { DEADLINE };
        let ids = ends("DaemonStopped", asked, within, &unheard).await;
        kill(daemon, Signal::SIGCONT).unwrap();
        again(&bus, name, "DaemonStopped", run, &ids).await;
        bus.change(name, "delete").await.unwrap();
    });
}

#[test]
fn a_shutdown_of_a_guest_that_answers_nothing_ends_with_a_code_and_is_done_once() {
    let test = "a_shutdown_of_a_guest_that_answers_nothing_ends_with_a_code_and_is_done_once";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let row = VERBS.iter().find(|row| row.plane == Plane::VmGuest && row.verb == "shutdown").unwrap();
        let (vm, run) = up(&bus, "still").await;
        let agent = agent_of(world, vm.vm_id).unwrap();
        kill(agent, Signal::SIGSTOP).unwrap();
        let (row, id, work) = ask_all(&bus, "still", run, &[row]).await.pop().unwrap();
        let (outcome, took) = work.await.unwrap();
        assert!(took <= DEADLINE + LATE, "{took:?}");
        assert_eq!(outcome, Outcome::Coded(ErrorCode::DeadlineExceeded));
        until_within(HALF_OPEN + LATE, "the silence is found", async || {
            bus.status("still").await.ok().filter(|vm| vm.agent.state == AgentState::Lost)
        })
        .await;
        // It finds the request, whose link has ended meanwhile; whether it does it is its own affair.
        kill(agent, Signal::SIGCONT).unwrap();
        ready(&bus, "still").await;
        let again = ask(bus.clone(), "still", row, run, id).await;
        println!("again: {again:?}");
        assert_ne!(again, Outcome::Unheard);
        ready(&bus, "still").await;
        let third = ask(bus.clone(), "still", row, run, id).await;
        println!("once more: {third:?}");
        ready(&bus, "still").await;
        let greeted = events::read(&bus).await.into_iter().filter_map(|event| event.cause);
        let boots: BTreeSet<_> =
            greeted.filter_map(|cause| cause.evidence.get("boot_id").map(ToString::to_string)).collect();
        assert!(boots.len() <= 2, "it was rebooted more than once: {boots:?}");
        let now = bus.status("still").await.unwrap();
        assert_eq!(now.incarnation, vm.incarnation);
        assert!(
            now.agent.boot_id.is_some_and(|boot| boots.is_empty() || boots.iter().any(|b| b.contains(&boot)))
        );
    });
}
