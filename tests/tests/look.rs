//! What a guest says of itself over the bus: its system, its processes, its health, its figures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::samples::{GuestSample, NamespaceSample, VmSample};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::{
    CheckStatus, HealthResult, HealthStatus, InfoResult, ProcessesResult, RunInfo, ThresholdStatus,
};
use drover_schemas::{ErrorCode, RequestId, codec};
use drover_tests::client::Bus;
use drover_tests::events;
use drover_tests::wait::{until, until_within};
use drover_tests::world::{Options, run};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For what comes each second or so, from a guest that may have to wait for its CPU.
const SOON: Duration = Duration::from_secs(60);

async fn create(bus: &Bus, name: &str, spec: Value) {
    let id = RequestId::generate();
    let body = json!({"name": name, "spec": spec});
    let _: ChangeReply =
        bus.insist("vm.create", &body, id).await.unwrap_or_else(|e| panic!("create {name}: {e}"));
    until_within(BOOT, &format!("the agent of {name}"), async || {
        bus.ask(&format!("vm.{name}.guest.ping"), &json!({})).get::<Value>().await.ok()
    })
    .await;
}

async fn exec(bus: &Bus, name: &str, script: &str) -> ExecResult {
    let body = json!({"argv": ["sh", "-c", script]});
    // Not repeated: in software emulation it may take longer than an attempt.
    let ask = bus.ask(&format!("vm.{name}.guest.exec"), &body).id(RequestId::generate()).within(SOON);
    match ask.get().await.unwrap() {
        ExecReply::Result(result) => result,
        _ => panic!("neither a stream nor a run was asked for"),
    }
}

async fn detach(bus: &Bus, name: &str, script: &str) -> RunInfo {
    let body = json!({"argv": ["sh", "-c", script], "detach": true});
    match bus.insist(&format!("vm.{name}.guest.exec"), &body, RequestId::generate()).await.unwrap() {
        ExecReply::Run(run) => run,
        _ => panic!("a run was asked for"),
    }
}

async fn kill(bus: &Bus, name: &str, run: &RunInfo) {
    let body = json!({"run": run.run, "signal": 9});
    let _: Value = bus.insist(&format!("vm.{name}.guest.kill"), &body, RequestId::generate()).await.unwrap();
}

async fn processes(bus: &Bus, name: &str, body: Value) -> ProcessesResult {
    bus.look(&format!("vm.{name}.guest.processes"), &body).await.unwrap()
}

#[test]
fn processes_are_listed_by_what_they_use() {
    run("processes_are_listed_by_what_they_use", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let busy = detach(&bus, "web", "while :; do :; done").await;
        let rests = detach(&bus, "web", "exec sleep 4242").await;
        // However little of a CPU it gets, it is more than those get that wait.
        let listed = until("the busy one is first", async || {
            let listed = processes(&bus, "web", json!({"sample_ms": 300})).await;
            let first = listed.processes.first()?;
            (first.pid == busy.pid && first.cpu_percent > 0.0).then_some(listed)
        })
        .await;
        assert!(listed.sampled_ms.unwrap() >= 300);
        let first = &listed.processes[0];
        assert_eq!((first.user.as_deref(), first.uid, first.name.as_str()), (Some("root"), 0, "sh"));
        assert!(first.cpu_ms > 0 && first.memory_bytes > 0 && first.threads == 1, "{first:?}");
        assert!(
            first.started_unix_ms + 5_000 > busy.started_unix_ms && first.started_unix_ms <= listed.unix_ms
        );
        assert!(listed.processes.iter().all(|process| process.args.is_none()));

        // Arguments are told to who asks for them.
        let listed = processes(&bus, "web", json!({"args": true, "sort": "pid"})).await;
        let found = listed.processes.iter().find(|process| process.pid == rests.pid).unwrap();
        assert_eq!(found.args.as_deref().unwrap(), ["sleep", "4242"]);
        assert!(listed.processes.is_sorted_by_key(|process| process.pid));
        assert_eq!(listed.total as usize, listed.processes.len());
        let most = processes(&bus, "web", json!({"sort": "memory", "limit": 2})).await;
        assert_eq!(most.processes.len(), 2);
        assert!(most.total > 2 && most.processes[0].memory_bytes >= most.processes[1].memory_bytes);
        for bad in [json!({"limit": 501}), json!({"sample_ms": 5_001})] {
            bus.ask("vm.web.guest.processes", &bad).refused(ErrorCode::InvalidArgument).await;
        }

        let text = world.printed(&["vm", "ps", "web", "--sample", "200", "--limit", "50"]).await;
        assert!(text.starts_with("PID") && !text.contains("4242"), "{text}");
        let text = world.printed(&["vm", "ps", "web", "--args", "--sort", "pid"]).await;
        assert!(text.contains("sleep 4242"), "{text}");
    });
}

#[test]
fn a_guest_says_what_it_is_and_how() {
    run("a_guest_says_what_it_is_and_how", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let info: InfoResult = bus.look("vm.web.guest.info", &json!({})).await.unwrap();
        assert!(!info.hostname.is_empty());
        assert!(info.cpus > 0 && info.memory_bytes > 0, "{info:?}");
        assert!(!info.os_id.is_empty() && !info.kernel.is_empty() && !info.boot_id.is_empty(), "{info:?}");
        let health: HealthResult = bus.look("vm.web.guest.health", &json!({})).await.unwrap();
        assert!(health.memory_available_bytes <= health.memory_total_bytes && health.memory_total_bytes > 0);
        assert_eq!((health.services, health.failed_units.len()), (None, 0));

        // A keeper of services that is not there to be asked is said, and the rest is told all the same.
        assert_eq!(exec(&bus, "web", "mkdir -p /run/systemd/system").await.exit_code, Some(0));
        let health: HealthResult = bus.look("vm.web.guest.health", &json!({})).await.unwrap();
        assert_eq!(
            (health.services.as_deref(), health.status >= HealthStatus::Warn),
            (Some("systemd"), true)
        );
        assert!(health.reasons.iter().any(|r| r.contains("systemctl")), "{:?}", health.reasons);

        let text = world.printed(&["vm", "info", "web"]).await;
        assert!(text.contains(&info.kernel) && text.contains(&info.boot_id), "{text}");
        let text = world.printed(&["vm", "health", "web"]).await;
        assert!(text.contains("status") && text.contains("memory"), "{text}");
    });
}

/// The messages of a subject, decoded.
struct Heard(async_nats::Subscriber);

impl Heard {
    async fn on(bus: &Bus, subject: &str) -> Self {
        let heard = bus.nats.subscribe(format!("drover.v1.metric.ns.default.{subject}")).await.unwrap();
        bus.nats.flush().await.unwrap();
        Self(heard)
    }

    /// What of that which has come is as wanted.
    fn find<T: serde::de::DeserializeOwned, F>(&mut self, wanted: impl Fn(T) -> Option<F>) -> Option<F> {
        while let Some(message) = self.0.next().now_or_never() {
            let body = codec::decode(&message.unwrap().payload).unwrap();
            if let Some(found) = wanted(body) {
                return Some(found);
            }
        }
        None
    }
}

fn figures_of(name: &'static str) -> impl Fn(NamespaceSample) -> Option<Option<GuestSample>> {
    move |sample| sample.vms.into_iter().find(|vm| vm.name.as_str() == name).map(|vm| vm.guest)
}

#[test]
fn figures_are_told_while_the_guest_is_heard() {
    run("figures_are_told_while_the_guest_is_heard", Options::default(), async |world| {
        let bus = world.bus.clone();
        let (mut own, mut quiet) = (Heard::on(&bus, "vm.a").await, Heard::on(&bus, "vm.b").await);
        let mut all = Heard::on(&bus, "host.h1").await;
        // One that runs most of the time.
        let check = json!({
            "name": "slow", "argv": ["sleep", "2"], "interval_ms": 1_000, "timeout_ms": 10_000, "failures": 1,
        });
        create(&bus, "a", json!({"agent": {"metrics_interval_ms": 1_000, "checks": [check]}})).await;
        create(&bus, "b", json!({})).await;
        let bad = json!({"name": "c", "spec": {"agent": {"metrics_interval_ms": 999}}});
        let error =
            bus.ask("vm.create", &bad).id(RequestId::generate()).refused(ErrorCode::InvalidArgument).await;
        assert!(error.message.contains("metrics_interval_ms"), "{}", error.message);

        let first: VmSample = until_within(SOON, "figures of a", async || own.find(Some)).await;
        let guest = first.guest.unwrap();
        let health: HealthResult = bus.look("vm.a.guest.health", &json!({})).await.unwrap();
        assert_eq!(guest.memory_total_bytes, health.memory_total_bytes);
        assert!(guest.cpu_percent.is_none() && guest.time_unix_ms > 0);
        // The second has a share of the time between.
        let share = until_within(SOON, "a share of the CPUs", async || {
            own.find(|sample: VmSample| sample.guest.unwrap().cpu_percent)
        })
        .await;
        assert!((0.0..=100.0).contains(&share));
        // With the others, where they are found without having heard the first.
        let last =
            until_within(SOON, "figures with the namespace's", async || all.find(figures_of("a")).flatten())
                .await;
        assert!(last.time_unix_ms > guest.time_unix_ms);

        // Over the daemon's end; and forgotten as soon as nobody answers.
        world.kill().await;
        world.start();
        world.ready().await;
        own.find(|_: VmSample| None::<()>);
        until_within(SOON, "figures after the daemon's end", async || {
            own.find(|sample: VmSample| sample.guest)
        })
        .await;
        bus.change("a", "pause").await.unwrap();
        until_within(SOON, "no figures of a guest that stands still", async || {
            all.find(|sample| figures_of("a")(sample).filter(Option::is_none))
        })
        .await;
        bus.change("a", "resume").await.unwrap();
        until_within(SOON, "figures again", async || all.find(figures_of("a")).flatten()).await;
        // That the guest stood still for longer than the check may take is no failure of the check.
        let health: HealthResult = bus.look("vm.a.guest.health", &json!({})).await.unwrap();
        let resumed = health.checks[0].last_unix_ms;
        let ran = until_within(SOON, "a run after the pause", async || {
            let health: HealthResult = bus.look("vm.a.guest.health", &json!({})).await.unwrap();
            Some(health.checks[0].clone()).filter(|check| check.last_unix_ms > resumed)
        })
        .await;
        assert_eq!((ran.status, ran.failures), (CheckStatus::Ok, 0), "{ran:?}");
        let failed = events::read(&bus).await.into_iter().filter_map(|event| event.agent_event);
        assert_eq!(failed.filter(|event| event.kind.as_str() == "drover.check-failed").count(), 0);
        assert!(quiet.find(|sample: VmSample| Some(sample)).is_none(), "nobody asked for figures of b");
        let b = until_within(SOON, "b with the namespace's", async || all.find(figures_of("b"))).await;
        assert_eq!(b, None);
    });
}

#[test]
fn a_real_guest_tells_what_it_is_and_what_it_has_left() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() };
    run("a_real_guest_tells_what_it_is_and_what_it_has_left", options, async |world| {
        let bus = world.bus.clone();
        let mut own = Heard::on(&bus, "vm.web").await;
        // With these also what has not changed is told.
        let mut all = Heard::on(&bus, "host.h1").await;
        let check = json!({
            "name": "up", "argv": ["test", "-e", "/proc/uptime"], "interval_ms": 2_000, "timeout_ms": 60_000,
        });
        let threshold = json!({"name": "busy", "of": "cpu", "above": 80, "for_ms": 2_000});
        let agent = json!({
            "ready_timeout_ms": 300_000, "metrics_interval_ms": 2_000, "checks": [check], "thresholds": [threshold],
        });
        create(&bus, "web", json!({"template": "linux-microvm", "agent": agent})).await;
        let vm = bus.status("web").await.unwrap();
        let info: InfoResult = bus.look("vm.web.guest.info", &json!({})).await.unwrap();
        println!("{}", world.printed(&["vm", "info", "web"]).await);
        assert_eq!((info.hostname.as_str(), info.cpus), ("web", vm.cpus));
        assert!(!info.cpu_model.is_empty(), "{info:?}");
        let near = |bytes: u64| bytes <= vm.memory_bytes && bytes > vm.memory_bytes / 2;
        assert!(near(info.memory_bytes), "{} of {}", info.memory_bytes, vm.memory_bytes);
        let nic = &vm.nics[0];
        let found = info.interfaces.iter().find(|i| i.mac == nic.mac).unwrap();
        assert!(
            found.up && found.addresses.contains(&format!("{}/{}", nic.ipv4, nic.prefix_len)),
            "{found:?}"
        );

        // What it has left, and that it has less of it after 24 MiB of files in memory; its traffic too.
        let before = until_within(SOON, "figures", async || own.find(|sample: VmSample| sample.guest)).await;
        assert!(near(before.memory_total_bytes), "{before:?}");
        let ping = "ping -c 1 -w 30 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')";
        let pinged = exec(&bus, "web", ping).await;
        assert_eq!(pinged.exit_code, Some(0), "{pinged:?}");
        until_within(SOON, "traffic", async || {
            let came = |guest: &GuestSample| {
                guest
                    .interfaces
                    .iter()
                    .any(|i| i.name == found.name && i.received_bytes > 0 && i.sent_bytes > 0)
            };
            all.find(|sample| figures_of("web")(sample).flatten().filter(came))
        })
        .await;
        let filled = exec(
            &bus,
            "web",
            "mkdir -p /tmp/fill && mount -t tmpfs none /tmp/fill && head -c 25165824 /dev/zero > /tmp/fill/f",
        )
        .await;
        assert_eq!(filled.exit_code, Some(0), "{filled:?}");
        let after = until_within(SOON, "less memory", async || {
            let less = before.memory_available_bytes.saturating_sub(20 << 20);
            own.find(|sample: VmSample| sample.guest.filter(|guest| guest.memory_available_bytes < less))
        })
        .await;
        assert!(after.time_unix_ms > before.time_unix_ms);
        // One that burns all of its CPUs.
        let burn = "for n in $(seq $(nproc)); do while :; do :; done & done; wait";
        let busy = detach(&bus, "web", burn).await;
        until_within(SOON, "busy CPUs", async || {
            let share = |guest: GuestSample| guest.cpu_percent.filter(|share| *share > 80.0);
            all.find(|sample| figures_of("web")(sample).flatten().and_then(share))
        })
        .await;
        let listed = processes(&bus, "web", json!({"sample_ms": 1_000, "limit": 3})).await;
        assert_eq!(listed.processes[0].ppid, busy.pid, "{listed:?}");
        assert!(listed.processes[0].cpu_percent > 50.0, "{listed:?}");
        println!(
            "{}",
            world.printed(&["vm", "ps", "web", "--sample", "1000", "--limit", "5", "--args"]).await
        );
        let is = async |wanted: ThresholdStatus| {
            until_within(SOON, &format!("{wanted:?}"), async || {
                let health: HealthResult = bus.look("vm.web.guest.health", &json!({})).await.unwrap();
                (health.thresholds[0].status == wanted).then_some(health)
            })
            .await
        };
        let health = is(ThresholdStatus::Exceeded).await;
        assert_eq!(health.checks[0].status, CheckStatus::Ok, "{health:?}");
        println!("{}", world.printed(&["vm", "health", "web"]).await);
        kill(&bus, "web", &busy).await;
        is(ThresholdStatus::Ok).await;
        // Its boot may have been as busy: each beginning has its end.
        let told = until_within(SOON, "the end of it", async || {
            let told = events::read(&bus).await.into_iter().filter_map(|event| event.agent_event);
            let told = told.map(|event| event.kind.as_str().to_owned());
            let told: Vec<_> = told.filter(|kind| kind.starts_with("drover.threshold-")).collect();
            (told.last().is_some_and(|kind| kind == "drover.threshold-ended")).then_some(told)
        })
        .await;
        let ends = told.chunks(2).all(|pair| pair == ["drover.threshold-exceeded", "drover.threshold-ended"]);
        assert!(ends, "{told:?}");
        println!("{}", world.printed(&["vm", "health", "web"]).await);
    });
}
