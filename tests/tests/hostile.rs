//! Agents that lie to their host: what it costs the host, what others notice of it, and what is told about it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drover_schemas::blob::Blob;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::status::{AgentFaultCode, AgentState, CauseKind, VmStatus};
use drover_schemas::body::vm::ExplainReply;
use drover_schemas::event::VmEvent;
use drover_schemas::guest::{
    AgentFrame, AgentHello, Bye, Channel, Credit, Data, Event, EventAck, Head, HostFrame, Pong, Response,
};
use drover_schemas::{ErrorBody, ErrorCode};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::events;
use drover_tests::liar::{Call, Liar, bytes, hello};
use drover_tests::wait::{pass, until, until_within};
use drover_tests::world::{Options, run};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// What a request to an honest VM may take while others lie.
const DEADLINE: Duration = Duration::from_secs(10);
/// For how long the others are looked at beside the liars.
const BESIDE: Duration = Duration::from_secs(12);
/// What a daemon has after some thousand requests of anybody, in bytes: its journal's cache, and memory that it does not
/// give back. Where it stands between its start and this when liars come is chance.
const USUAL: u64 = 72 << 20;
/// What the daemon's memory may grow by for each agent that lies: what a link may hold (two frames, a window of events,
/// the credit of its streams), and what the allocator keeps of it.
const FOR_EACH: u64 = 2 << 20;
/// A link is given up after so much silence, by the protocol.
const SILENCE: Duration = Duration::from_secs(40);

type Lie = fn(&mut Call) -> io::Result<()>;

fn unknown_frame() -> Vec<u8> {
    let body = drover_schemas::codec::encode(&json!({"t": "teleport"})).unwrap();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn event(n: u64) -> AgentFrame {
    let (log, kind, body) = ("l".into(), "a".into(), Blob::default());
    AgentFrame::Event(Event { log, n, time_unix_ms: 0, uid: 0, gid: 0, pid: 0, kind, body })
}

fn again(call: &mut Call, frame: &[u8]) -> io::Result<()> {
    let many = frame.repeat(1 + 16_384 / frame.len());
    loop {
        call.raw(&many)?;
    }
}

/// Each lie, and what it is called.
const LIES: &[(&str, AgentFaultCode, Lie)] = &[
    ("bomb", AgentFaultCode::FrameLength, |call| {
        call.hear()?;
        call.raw(&[0xff; 4])?;
        again(call, &[0xff; 4096])
    }),
    ("bomb-later", AgentFaultCode::FrameLength, |call| {
        call.greet()?;
        call.raw(&(1_u32 << 30).to_be_bytes())?;
        again(call, &[0; 4096])
    }),
    ("not-utf8", AgentFaultCode::FrameFormat, |call| {
        call.greet()?;
        // {"t": "bye"} with other bytes in the text.
        call.raw(b"\0\0\0\x07\x81\xa1t\xa3\xff\xfe\xfd")?;
        call.silence()
    }),
    ("wrong-stream", AgentFaultCode::StreamId, |call| {
        let stream = call.asked()?.stream + 7;
        call.say(&AgentFrame::Head(Head { stream, body: Blob::default() }))?;
        call.silence()
    }),
    ("no-credit", AgentFaultCode::Credit, |call| {
        let stream = call.asked()?.stream;
        let data = vec![7; 60_000].into();
        call.say(&AgentFrame::Data(Data { stream, ch: Channel::Stdout, off: 0, data, eof: false }))?;
        call.silence()
    }),
    ("answers-twice", AgentFaultCode::StreamId, |call| {
        let stream = call.asked()?.stream;
        let response = AgentFrame::Res(Response { stream, body: Some(Blob::default()), error: None });
        call.say(&response)?;
        call.say(&response)?;
        call.silence()
    }),
    ("greets-twice", AgentFaultCode::OutOfPlace, |call| {
        call.greet()?;
        call.say(&AgentFrame::Hello(hello()))?;
        call.silence()
    }),
    ("talks", AgentFaultCode::OutOfPlace, |call| {
        call.hear()?;
        let capabilities = vec!["x".to_owned(); 40_000];
        call.say(&AgentFrame::Hello(AgentHello { capabilities, ..hello() }))?;
        call.silence()
    }),
    ("pongs", AgentFaultCode::FrameFlood, |call| {
        call.greet()?;
        again(call, &bytes(&AgentFrame::Pong(Pong { nonce: 1 })))
    }),
    ("unknown-frames", AgentFaultCode::FrameFlood, |call| {
        call.greet()?;
        again(call, &unknown_frame())
    }),
    ("a-million-events", AgentFaultCode::EventFlood, |call| {
        call.greet()?;
        for n in 1..=1_000_000 {
            call.say(&event(n))?;
        }
        call.silence()
    }),
    ("of-another-time", AgentFaultCode::Incompatible, |call| {
        call.hear()?;
        let error = ErrorBody::new(ErrorCode::Unsupported, "this agent speaks protocol 7 to 9");
        call.say(&AgentFrame::Bye(Bye { error: Some(error) }))?;
        call.silence()
    }),
    ("silent", AgentFaultCode::Silent, |call| {
        call.greet()?;
        call.silence()
    }),
];

/// It breaks no rule, and never stops: credit without end for a request that it does not answer.
fn endless(call: &mut Call) -> io::Result<()> {
    let stream = call.asked()?.stream;
    let mut limit = 1_000;
    loop {
        let mut many = Vec::new();
        for _ in 0..200 {
            limit += 5_000;
            many.extend(bytes(&AgentFrame::Credit(Credit { stream, ch: Channel::Stdin, limit })));
        }
        call.raw(&many)?;
    }
}

/// What the daemon has of the machine's memory, and how long it has worked.
fn daemon(pid: u32) -> (u64, Duration) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let ticks: u64 =
        fields.get(11..13).map_or(0, |both| both.iter().map(|n| n.parse::<u64>().unwrap()).sum());
    (kib << 10, Duration::from_millis(ticks * 10))
}

/// Asks honest VMs for as long as `time` and says how long each request took: all are answered in time, and well.
async fn ask(bus: &Bus, names: &[&str], time: Duration) -> Vec<Duration> {
    let end = Instant::now() + time;
    let one = async |name: &str| {
        let mut took = Vec::new();
        while Instant::now() < end {
            let began = Instant::now();
            let body = json!({"argv": ["true"]});
            let exec = bus.ask(&format!("vm.{name}.guest.exec"), &body).within(DEADLINE);
            let reply: ExecReply = exec.get().await.unwrap_or_else(|e| panic!("exec {name}: {e}"));
            assert!(matches!(reply, ExecReply::Result(result) if result.exit_code == Some(0)));
            took.push(began.elapsed());
            let get = bus.ask(&format!("vm.{name}.get"), &json!({})).within(DEADLINE);
            let _: VmStatus = get.get().await.unwrap_or_else(|e| panic!("get {name}: {e}"));
        }
        took
    };
    let mut all = join_all(names.iter().map(|name| one(name))).await.concat();
    all.sort_unstable();
    all
}

fn percentiles(took: &[Duration]) -> String {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    format!("p50 {:?}, p99 {:?} of {}", at(50), at(99), took.len())
}

async fn small(bus: &Bus, name: &str) -> VmStatus {
    let rest = json!({"wait": "agent", "spec": {"memory_bytes": 64 << 20}});
    bus.create(name, rest).await.unwrap_or_else(|e| panic!("create {name}: {e}")).vm
}

async fn faulty(bus: &Bus, name: &str, code: AgentFaultCode) -> VmStatus {
    until_within(SILENCE * 2, &format!("{name}: {}", code.as_str()), async || {
        let vm = bus.status(name).await.ok()?;
        vm.agent.fault.as_ref().is_some_and(|fault| fault.code == code).then_some(vm)
    })
    .await
}

#[test]
fn a_host_with_agents_that_lie_stays_small_and_serves_the_others_and_says_who_lies() {
    let test = "a_host_with_agents_that_lie_stays_small_and_serves_the_others_and_says_who_lies";
    // What is measured would be the observer.
    let options = Options { budget: Duration::from_secs(300), observed: false, ..Options::default() };
    run(test, options, async |world| {
        let bus = world.bus.clone();
        let honest = ["one", "two"];
        for name in honest {
            small(&bus, name).await;
        }
        let mut all = Vec::new();
        for (name, ..) in LIES {
            all.push(small(&bus, name).await);
        }
        let quiet = ask(&bus, &honest, BESIDE).await;
        let pid = world.daemon_id().unwrap();
        let ((before, worked), began) = (daemon(pid), Instant::now());

        // The most that the daemon ever has.
        let (most, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, over) = (Arc::clone(&most), Arc::clone(&ends));
        let looks = tokio::task::spawn_blocking(move || {
            while !over.load(Ordering::Relaxed) {
                seen.fetch_max(daemon(pid).0, Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let mut liars = Vec::new();
        for ((_, _, lie), vm) in LIES.iter().zip(&all) {
            liars.push(Liar::replace(world, vm.vm_id, lie).await);
        }
        let beside = ask(&bus, &honest, BESIDE).await;
        for (name, code, _) in LIES {
            is_told(&bus, name, *code).await;
        }
        ends.store(true, Ordering::Relaxed);
        looks.await.unwrap();
        let (spent, (_, worked_then)) = (began.elapsed(), daemon(pid));
        let grown = most.load(Ordering::Relaxed).saturating_sub(before);
        let share = (worked_then - worked).as_secs_f64() / spent.as_secs_f64();
        println!(
            "others: {} in quiet; {} beside {} liars",
            percentiles(&quiet),
            percentiles(&beside),
            LIES.len()
        );
        println!(
            "the daemon: {} KiB before, at most {} KiB more; {:.0} % of a core for {spent:?}",
            before >> 10,
            grown >> 10,
            share * 100.0
        );
        assert!(
            before + grown <= before.max(USUAL) + FOR_EACH * LIES.len() as u64,
            "{before} and {grown} bytes more"
        );
        for ((name, code, _), liar) in LIES.iter().zip(&liars) {
            println!("{name}: dialled {} times, sent {}", liar.dials(), liar.sent());
            // Each pause is twice the last one, from a second on; the wrong version is asked for every five.
            let times = match code {
                AgentFaultCode::Incompatible => spent.as_secs() / 5 + 2,
                _ => u64::from((spent.as_secs() + 2).ilog2()) + 2,
            };
            assert!(liar.dials() <= times, "{name} was dialled {} times in {spent:?}", liar.dials());
        }
        let logs = events::log(&bus).await;
        for ((name, code, _), vm) in LIES.iter().zip(&all) {
            let log = &logs[&vm.vm_id];
            assert!(log.iter().any(|event| tells(event, *code)), "{name}: {log:?}");
            // Two for each time that it greeted, at the most; what its programs say has a quota of its own.
            let of_the_link =
                log.iter().filter(|event| event.agent_event.is_none() && event.dropped.is_none());
            assert!(of_the_link.count() < 40, "{name}: {} events", log.len());
        }
    });
}

fn tells(event: &VmEvent, code: AgentFaultCode) -> bool {
    let kind = match code {
        AgentFaultCode::Silent => CauseKind::AgentLost,
        AgentFaultCode::Incompatible => CauseKind::AgentIncompatible,
        _ => CauseKind::AgentBreach,
    };
    let fault = |cause: &drover_schemas::body::status::Cause| cause.evidence.get("fault").cloned();
    event
        .cause
        .as_ref()
        .is_some_and(|cause| cause.kind == kind && fault(cause).as_deref() == Some(code.as_str()))
}

/// `get`, `explain` and a request for the guest say what its agent did.
async fn is_told(bus: &Bus, name: &str, code: AgentFaultCode) {
    let vm = faulty(bus, name, code).await;
    let fault = vm.agent.fault.unwrap();
    assert!(!fault.message.is_empty() && fault.at_unix_ms > 0, "{name}: {fault:?}");
    let explained: ExplainReply = bus.look(&format!("vm.{name}.explain"), &json!({})).await.unwrap();
    let said = format!("({})", code.as_str());
    assert!(explained.findings.iter().any(|finding| finding.contains(&said)), "{:?}", explained.findings);
    if code == AgentFaultCode::Silent {
        return;
    }
    assert!(fault.retry_unix_ms > Some(fault.at_unix_ms), "{name}: {fault:?}");
    // It may be dialled right now.
    until(&format!("{name} is left alone"), async || {
        let ping = bus.ask(&format!("vm.{name}.guest.ping"), &json!({})).within(Duration::from_secs(5));
        match ping.get::<Value>().await {
            Err(Failure::Coded(error)) => {
                (error.details.get("fault").map(String::as_str) == Some(code.as_str())).then_some(())
            }
            _ => None,
        }
    })
    .await;
}

#[test]
fn an_agent_that_never_stops_is_read_at_a_bounded_pace() {
    let test = "an_agent_that_never_stops_is_read_at_a_bounded_pace";
    let options = Options { observed: false, ..Options::default() };
    run(test, options, async |world| {
        let bus = world.bus.clone();
        small(&bus, "one").await;
        let vm = small(&bus, "endless").await;
        let quiet = ask(&bus, &["one"], BESIDE / 2).await;
        let pid = world.daemon_id().unwrap();
        let liar = Liar::replace(world, vm.vm_id, endless).await;
        until("it is dialled", async || (liar.sent() > 1).then_some(())).await;
        let ((before, worked), sent, began) = (daemon(pid), liar.sent(), Instant::now());
        let beside = ask(&bus, &["one"], BESIDE).await;
        let ((after, worked_then), spent) = (daemon(pid), began.elapsed());
        let frames = (liar.sent() - sent) * 200;
        let share = (worked_then - worked).as_secs_f64() / spent.as_secs_f64();
        println!("others: {} in quiet; {} beside it", percentiles(&quiet), percentiles(&beside));
        println!(
            "{frames} frames in {spent:?}; the daemon: {} KiB more, {:.0} % of a core",
            after.saturating_sub(before) >> 10,
            share * 100.0
        );
        // 10,000 each second, and what may come at once; what waits in sockets on the way was not read.
        let bound = 10_000 * (spent.as_secs() + 3) + 60_000;
        assert!(frames <= bound, "{frames} frames are more than {bound}");
        assert!(after <= before.max(USUAL) + FOR_EACH, "{before} then {after}");
        assert_eq!(bus.status("endless").await.unwrap().agent.state, AgentState::Ready, "no rule is broken");
        // Its request ends all the same, and so do others.
        let ping = bus.ask("vm.endless.guest.ping", &json!({})).within(Duration::from_secs(2));
        refused("ping", ErrorCode::DeadlineExceeded, ping.get::<Value>().await);
    });
}

#[test]
fn an_agent_that_is_honest_again_is_taken_back_and_what_it_did_is_still_told() {
    let test = "an_agent_that_is_honest_again_is_taken_back_and_what_it_did_is_still_told";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let lie: Lie = |call| {
            call.greet()?;
            call.say(&AgentFrame::Pong(Pong { nonce: 1 }))?;
            call.raw(&[0xff; 4])?;
            call.silence()
        };
        let liar = Liar::replace(world, vm.vm_id, lie).await;
        let seen = faulty(&bus, "web", AgentFaultCode::FrameLength).await;
        assert!(seen.agent.fault.unwrap().breaches >= 1);
        let broken = bus.until("web", "its cause", |vm| {
            vm.cause.as_ref().is_some_and(|cause| cause.kind == CauseKind::AgentBreach)
        });
        assert!(broken.await.cause.unwrap().message.contains("left alone"));
        drop(liar);
        let back = bus.until("web", "it answers", |vm| {
            vm.agent.state == AgentState::Ready && vm.agent.version.as_deref() != Some("0.0.1")
        });
        let back = back.await;
        let fault = back.agent.fault.unwrap();
        assert_eq!((back.cause, fault.code), (None, AgentFaultCode::FrameLength));
        let shown = world.printed(&["vm", "get", "web"]).await;
        assert!(shown.contains("(frame_length)"), "{shown}");
        let _: Value = bus.ask("vm.web.guest.ping", &json!({})).get().await.unwrap();
        // Another run of the VM has nothing to do with it.
        bus.change("web", "stop").await.unwrap();
        bus.change("web", "start").await.unwrap();
        let anew = bus.until("web", "it answers", |vm| vm.agent.state == AgentState::Ready).await;
        assert_eq!(anew.agent.fault, None);
    });
}

#[test]
fn what_an_agent_of_another_version_does_not_watch_is_told_where_an_operator_looks() {
    let test = "what_an_agent_of_another_version_does_not_watch_is_told_where_an_operator_looks";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let threshold = json!({"name": "busy", "of": "cpu", "above": 90});
        let spec = json!({"agent": {"thresholds": [threshold]}});
        let vm = bus.create("web", json!({"wait": "agent", "spec": spec})).await.unwrap().vm;
        assert_eq!(bus.status("web").await.unwrap().agent.unwatched, None);
        // One that knows the verb and not the setting, and one that does not know the verb.
        let refuses: Lie = |call| {
            let stream = call.asked()?.stream;
            let error = ErrorBody::new(ErrorCode::InvalidArgument, "unknown field \"thresholds\"");
            call.say(&AgentFrame::Res(Response { stream, body: None, error: Some(error) }))?;
            call.silence()
        };
        let lacks: Lie = |call| {
            call.hear()?;
            call.say(&AgentFrame::Hello(AgentHello { capabilities: vec!["ping".to_owned()], ..hello() }))?;
            call.silence()
        };
        for (lie, said) in [(refuses, "thresholds"), (lacks, "does not offer configure")] {
            let liar = Liar::replace(world, vm.vm_id, lie).await;
            let told = bus.until("web", "it is told", |vm| {
                vm.agent.unwatched.as_ref().is_some_and(|why| why.contains(said))
            });
            assert_eq!(told.await.agent.state, AgentState::Ready, "the rest is done all the same");
            let explained: ExplainReply = bus.look("vm.web.explain", &json!({})).await.unwrap();
            assert!(
                explained.findings.iter().any(|f| f.contains("not watched") && f.contains(said)),
                "{explained:?}"
            );
            let shown = world.printed(&["vm", "get", "web"]).await;
            assert!(shown.contains("not watched") && shown.contains(said), "{shown}");
            let exec = bus.ask("vm.web.guest.get", &json!({"path": "/etc/passwd"}));
            exec.refused(ErrorCode::Unsupported).await;
            drop(liar);
            bus.until("web", "all is watched", |vm| {
                vm.agent.state == AgentState::Ready
                    && vm.agent.unwatched.is_none()
                    && vm.agent.version.as_deref() != Some("0.0.1")
            })
            .await;
        }
    });
}

/// Waits for the host's next frame that is an acknowledgement of events.
fn acknowledged(call: &mut Call) -> io::Result<EventAck> {
    loop {
        if let HostFrame::EventAck(ack) = call.hear()? {
            return Ok(ack);
        }
    }
}

#[test]
fn a_million_events_that_keep_to_the_window_cost_no_more_than_the_quota() {
    let test = "a_million_events_that_keep_to_the_window_cost_no_more_than_the_quota";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let liar = Liar::replace(world, vm.vm_id, |call| {
            call.greet()?;
            for n in 1..=1_000_000 {
                call.say(&event(n))?;
                if n % 32 == 0 {
                    while acknowledged(call)?.n < n {}
                }
            }
            call.silence()
        })
        .await;
        let dropped = bus.until("web", "events are dropped", |vm| {
            vm.agent.dropped_events.as_ref().is_some_and(|dropped| dropped.quota > 100)
        });
        dropped.await;
        pass(Duration::from_secs(5)).await;
        let (sent, log) = (liar.sent(), events::read(&bus).await.len());
        println!("{sent} frames, {log} events in the stream");
        // 200 at once and 20 each second, by the quota of every VM.
        assert!(log < 800, "{log} events");
    });
}
