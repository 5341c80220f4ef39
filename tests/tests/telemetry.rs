//! What an operator sees of a host from outside: traces from a request to its effect, metrics, health, logs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use drover_schemas::RequestId;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::vm::ChangeReply;
use drover_tests::admin::{ADMIN, alarm_lasts, page};
use drover_tests::client::Bus;
use drover_tests::collector::{Collector, Span};
use drover_tests::events::alarm;
use drover_tests::relay::Relay;
use drover_tests::wait::until;
use drover_tests::world::{Options, URL, run};
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const COLLECTOR: &str = "127.0.0.1:4318";

/// Waits for the spans of a trace that has all these names.
async fn trace(collector: &Collector, trace_id: &str, names: &[&str]) -> Vec<Span> {
    until(&format!("{names:?} in the trace"), async || {
        let spans = collector.trace(trace_id);
        names.iter().all(|name| spans.iter().any(|span| span.name == *name)).then_some(spans)
    })
    .await
}

#[test]
fn a_trace_goes_from_the_callers_request_to_every_effect() {
    run("a_trace_goes_from_the_callers_request_to_every_effect", Options::down(), async |world| {
        let collector = Collector::start(COLLECTOR).await;
        world.up_with(|config| config["log"] = json!({"otlp_endpoint": format!("http://{COLLECTOR}")})).await;
        let bus = world.bus.clone();
        let (trace_id, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let ask = |tail: &str, body: Value| {
            let parent = format!("00-{trace_id}-{caller}-01");
            bus.ask(tail, &body).id(RequestId::generate()).header("traceparent", &parent)
        };
        let _: ChangeReply = ask("vm.create", json!({"name": "a", "wait": "agent"})).get().await.unwrap();
        let _: ExecReply = ask("vm.a.guest.exec", json!({"argv": ["true"]})).get().await.unwrap();
        let _: ChangeReply = ask("vm.a.pause", json!({})).get().await.unwrap();

        let spans = trace(&collector, trace_id, &["request", "task", "vmm.call", "guest.call"]).await;
        let parent_of = |span: &Span| spans.iter().find(|other| other.id == span.parent);
        let attribute = |span: &Span, key: &str| span.attributes.get(key).cloned().unwrap_or_default();
        let find = |name: &str, key: &str, value: &str| {
            let found = spans.iter().find(|span| span.name == name && attribute(span, key) == value);
            found.unwrap_or_else(|| panic!("{name} with {key} = {value} is not in {spans:#?}"))
        };
        for request in spans.iter().filter(|span| span.name == "request") {
            assert_eq!(request.parent, caller, "{request:?}");
        }
        // From the bus over the actor and its task to the VMM.
        for (call, task, verb) in
            [("vm.create", "start", "Create"), ("vm.boot", "start", "Create"), ("vm.pause", "pause", "pause")]
        {
            let of_task = parent_of(find("vmm.call", "call", call)).unwrap();
            assert_eq!((of_task.name.as_str(), attribute(of_task, "task").as_str()), ("task", task));
            let of_request = parent_of(of_task).unwrap();
            assert_eq!(of_request.name, "request");
            assert!(attribute(of_request, "subject").contains(verb), "{of_request:?}");
        }
        // And to the guest.
        let of_call = parent_of(find("guest.call", "verb", "exec")).unwrap();
        assert!(attribute(of_call, "subject").contains("exec"), "{of_call:?}");
        // A span ends with what it is about, not with the actor.
        assert!(spans.iter().all(|span| span.nanoseconds < 60_000_000_000), "{spans:#?}");

        // What nobody asked for is a trace of its own.
        let vm = bus.until("a", "paused", |vm| vm.vmm_pid.is_some()).await;
        world.kill_vmm(vm.vm_id);
        until("the release in a trace of its own", async || {
            let spans = collector.spans();
            let release = spans.into_iter().find(|s| attribute(s, "task") == "release")?;
            (release.trace_id != trace_id && release.parent.is_empty()).then_some(())
        })
        .await;
    });
}

#[test]
fn metrics_and_health_tell_how_the_host_is() {
    run("metrics_and_health_tell_how_the_host_is", Options::down(), async |world| {
        world.up_with(|config| config["admin"] = json!({"listen": ADMIN})).await;
        world.bus.up("a").await;
        assert_eq!(page("/healthz").await.0, 200);
        assert_eq!(page("/readyz").await, (200, "ok\n".to_owned()));
        let wanted = [
            "drover_requests_total{verb=\"create\",code=\"ok\"} 1",
            "drover_vms 1",
            "drover_bus_connected 1",
            "drover_request_duration_seconds_count",
            "drover_boot_step_seconds_count{step=\"network\"} 1",
            "drover_boot_step_seconds_count{step=\"vm.boot\"} 1",
        ];
        until("the metrics", async || {
            let metrics = page("/metrics").await.1;
            wanted.iter().all(|line| metrics.contains(line)).then_some(())
        })
        .await;
        world.stop_nats().await;
        until("not ready without a bus", async || (page("/readyz").await.0 == 503).then_some(())).await;
        assert_eq!(page("/healthz").await.0, 200, "a lost bus is no reason to end the daemon");
        until("the metric of the bus", async || {
            page("/metrics").await.1.contains("drover_bus_connected 0").then_some(())
        })
        .await;
    });
}

#[test]
fn logs_are_lines_of_json_in_a_file_that_is_rotated() {
    run("logs_are_lines_of_json_in_a_file_that_is_rotated", Options::down(), async |world| {
        let dir = world.path("logs");
        let file = json!({"dir": dir, "rotation": "hourly", "keep": 2});
        world.up_with(|config| config["log"] = json!({"format": "json", "file": file})).await;
        let vm = world.bus.up("a").await;
        world.stop_host().await;
        let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty() && files.len() <= 2, "{files:?}");
        let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let state = lines.iter().find(|line| line["message"] == "state" && line["to"] == "running");
        let state = state.unwrap_or_else(|| panic!("{text}"));
        assert!(state["timestamp"].is_string() && state["level"] == "INFO", "{state}");
        let span = state["spans"].as_array().unwrap().iter().find(|s| s["name"] == "vm").unwrap();
        assert_eq!((span["vm_id"].as_str(), span["vm"].as_str()), (Some(&*vm.vm_id.to_string()), Some("a")));
    });
}

/// What hosts ask of the stream of events, and where it goes instead.
const INFO: &str = "$JS.API.STREAM.INFO.DROVER_EVENTS";
const ELSEWHERE: &str = "test.stream.info";

/// Answers for a server whose clock is so many milliseconds ahead of the real one's.
async fn other_clock(bus: &Bus) -> Arc<AtomicI64> {
    let ahead_ms = Arc::new(AtomicI64::new(0));
    let (nats, ahead) = (bus.nats.clone(), Arc::clone(&ahead_ms));
    let mut asked = nats.subscribe(ELSEWHERE).await.unwrap();
    nats.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let Ok(answer) = nats.request(INFO, message.payload).await else { continue };
            let mut answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            if let Some(at) = answer["ts"].as_str() {
                let at: Timestamp = at.parse().unwrap();
                answer["ts"] =
                    (at + SignedDuration::from_millis(ahead.load(Ordering::Relaxed))).to_string().into();
            }
            nats.publish(message.reply.unwrap(), answer.to_string().into()).await.unwrap();
        }
    });
    ahead_ms
}

#[test]
fn a_clock_that_is_off_is_an_alarm_that_ends() {
    run("a_clock_that_is_off_is_an_alarm_that_ends", Options::down(), async |world| {
        world.start_nats().await;
        let ahead_ms = other_clock(&world.bus).await;
        let way = Relay::start("127.0.0.1:4302", URL).await;
        way.rule(|mut publication| {
            if publication.subject == INFO {
                ELSEWHERE.clone_into(&mut publication.subject);
            }
            vec![publication]
        });
        world.urls = vec![way.url.clone()];
        world.configure_with(|config| config["admin"] = json!({"listen": ADMIN}));
        world.start();
        world.ready().await;
        let bus = world.bus.clone();
        let info = async |is: &dyn Fn(i64, bool) -> bool| {
            let host = bus.host().await.ok()?;
            let lasts = host.alarms.iter().any(|alarm| alarm.alarm == "clock_offset");
            host.clock_offset_ms.filter(|offset| is(*offset, lasts))
        };
        until("the clocks agree", async || info(&|_, lasts| !lasts).await).await;
        assert!(!alarm_lasts("clock_offset").await);

        ahead_ms.store(-5_000, Ordering::Relaxed);
        let offset = until("the alarm lasts", async || info(&|_, lasts| lasts).await).await;
        assert!(offset > 1_000, "{offset} ms");
        assert!(alarm_lasts("clock_offset").await);
        let metrics = page("/metrics").await.1;
        let seconds = metrics.lines().find_map(|line| line.strip_prefix("drover_clock_offset_seconds "));
        assert!(seconds.is_some_and(|seconds| seconds.parse::<f64>().unwrap() > 1.0), "{seconds:?}");
        let begun = alarm(&bus, "clock_offset", |event| event.details["phase"] == "begin").await;
        assert!(begun.details["value"].parse::<i64>().unwrap() > 1_000, "{begun:?}");

        ahead_ms.store(0, Ordering::Relaxed);
        until("the alarm is over", async || info(&|_, lasts| !lasts).await).await;
        assert!(!alarm_lasts("clock_offset").await);
        alarm(&bus, "clock_offset", |event| event.details["phase"] == "end").await;
    });
}
