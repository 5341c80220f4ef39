//! What is watched inside guests, for the spec and for the guest's owner: told once as events, whatever ends, and shown.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::event::AgentEvent;
use drover_schemas::guest::{
    CheckSource, CheckState, CheckStatus, HealthResult, HealthStatus, ThresholdStatus,
};
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::events;
use drover_tests::wait::until_within;
use drover_tests::world::{Options, run};
use serde_json::{Value, json};

/// For what comes each second or so, from a guest that may have to wait for its CPU.
const SOON: Duration = Duration::from_secs(90);

async fn up(bus: &Bus, agent: Value) {
    let body = json!({"name": "web", "spec": {"agent": agent}, "wait": "agent"});
    let id = RequestId::generate();
    let _: Value = bus.insist("vm.create", &body, id).await.unwrap_or_else(|e| panic!("create: {e}"));
}

async fn sh(bus: &Bus, script: &str) {
    let body = json!({"argv": ["sh", "-c", script]});
    let reply: ExecReply = bus.insist("vm.web.guest.exec", &body, RequestId::generate()).await.unwrap();
    let ExecReply::Result(result) = reply else { panic!("{reply:?}") };
    assert_eq!(result.exit_code, Some(0), "{script}: {result:?}");
}

/// A script of the guest that goes on by itself.
async fn later(bus: &Bus, script: &str) {
    let body = json!({"argv": ["sh", "-c", script], "detach": true});
    let _: ExecReply = bus.insist("vm.web.guest.exec", &body, RequestId::generate()).await.unwrap();
}

/// The health of the guest, if it answers.
async fn health(bus: &Bus) -> Option<HealthResult> {
    bus.look("vm.web.guest.health", &json!({})).await.ok()
}

/// The health of the guest once the check of a name is as wanted.
async fn shows(bus: &Bus, name: &str, wanted: impl Fn(&CheckState) -> bool) -> (HealthResult, CheckState) {
    until_within(SOON, name, async || {
        let health = health(bus).await?;
        let check = health.checks.iter().find(|check| check.name == name && wanted(check)).cloned()?;
        Some((health, check))
    })
    .await
}

/// What the agent told of checks and thresholds so far, in order.
async fn told(bus: &Bus) -> Vec<AgentEvent> {
    let events = events::read(bus).await.into_iter().filter_map(|event| event.agent_event);
    let watched = ["drover.check-", "drover.threshold-"];
    events.filter(|event| watched.iter().any(|kind| event.kind.as_str().starts_with(kind))).collect()
}

/// Waits until so much was told, and gives its kinds and the last of it.
async fn hears(bus: &Bus, count: usize) -> (Vec<String>, AgentEvent) {
    let told = until_within(SOON, &format!("{count} events"), async || {
        Some(told(bus).await).filter(|told| told.len() >= count)
    })
    .await;
    let kind = |event: &AgentEvent| {
        event.kind.as_str().trim_start_matches("drover.").trim_start_matches("check-").to_owned()
    };
    (told.iter().map(kind).collect(), told.last().unwrap().clone())
}

#[test]
fn checks_of_the_spec_and_of_the_owner_are_told_and_shown() {
    run("checks_of_the_spec_and_of_the_owner_are_told_and_shown", Options::default(), async |world| {
        let bus = world.bus.clone();
        for (bad, field) in [
            (json!({"name": "a", "argv": []}), "spec.agent.checks[0].argv"),
            (json!({"name": "a", "argv": ["true"], "interval_ms": 10}), "spec.agent.checks[0].interval_ms"),
        ] {
            let body = json!({"name": "web", "spec": {"agent": {"checks": [bad]}}});
            let error = bus
                .ask("vm.create", &body)
                .id(RequestId::generate())
                .refused(ErrorCode::InvalidArgument)
                .await;
            assert_eq!(error.details["field"], field, "{error}");
        }
        let script = "test -e /tmp/up || { echo it is down >&2; exit 7; }";
        let check = json!({"name": "up", "argv": ["sh", "-c", script], "interval_ms": 1_000, "failures": 2});
        up(&bus, json!({"checks": [check]})).await;
        let (kinds, failed) = hears(&bus, 1).await;
        assert_eq!((kinds, failed.uid), (vec!["failed".to_owned()], 0));
        let data = json!({
            "check": "up", "source": "spec", "status": "failing", "failures": 2, "reason": "it exited with 7",
            "output": "it is down",
        });
        assert_eq!(serde_json::to_value(&failed.data).unwrap(), data);
        let (seen, check) = shows(&bus, "up", |check| check.status == CheckStatus::Failing).await;
        assert_eq!((seen.status, check.source), (HealthStatus::Critical, CheckSource::Spec));
        assert!(seen.reasons.contains(&"up is failing: it exited with 7".to_owned()), "{:?}", seen.reasons);
        let shown = world.printed(&["vm", "health", "web"]).await;
        assert!(shown.contains("up failing since ") && shown.contains("it exited with 7"), "{shown}");

        sh(&bus, "touch /tmp/up").await;
        shows(&bus, "up", |check| check.status == CheckStatus::Ok && check.reason.is_none()).await;
        // Of the owner, as another user; and one that is none.
        let files = "mkdir -p /etc/drover-agent/checks.d && cd /etc/drover-agent/checks.d && \
                     printf 'run sh -c id\\ninterval 1s # often\\n' > own && printf 'run\\n' > none && \
                     chmod 755 /etc/drover-agent . && chmod 644 own none";
        sh(&bus, files).await;
        let (seen, _) = shows(&bus, "own", |check| check.status == CheckStatus::Ok).await;
        let own = seen.checks.iter().find(|check| check.name == "own").unwrap();
        assert_eq!((own.source, own.output.starts_with("uid=0")), (CheckSource::Guest, true), "{own:?}");
        assert!(seen.refused_files[0].file.ends_with("/none"), "{seen:?}");
        let shown = world.printed(&["vm", "health", "web"]).await;
        assert!(
            shown.contains("own (the guest's own) ok since ") && shown.contains("up ok since "),
            "{shown}"
        );
        // What is not declared any more is not shown.
        sh(&bus, "rm -r /etc/drover-agent/checks.d").await;
        let seen = health(&bus).await.unwrap();
        assert_eq!((seen.checks.len(), seen.refused_files.len()), (1, 0));
        let (kinds, _) = hears(&bus, 3).await;
        assert_eq!(kinds, ["failed", "ok", "ok"]);
    });
}

#[test]
fn what_changes_is_told_once_whatever_ends() {
    run("what_changes_is_told_once_whatever_ends", Options::default(), async |world| {
        let bus = world.bus.clone();
        let check =
            json!({"name": "up", "argv": ["test", "-e", "/tmp/up"], "interval_ms": 1_000, "failures": 1});
        up(&bus, json!({"checks": [check]})).await;
        assert_eq!(hears(&bus, 1).await.0, ["failed"]);
        // While the daemon is away.
        later(&bus, "sleep 2; touch /tmp/up").await;
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(hears(&bus, 2).await.0, ["failed", "ok"]);
        // While the bus is.
        later(&bus, "sleep 2; rm /tmp/up").await;
        world.stop_nats().await;
        world.start_nats().await;
        assert_eq!(hears(&bus, 3).await.0, ["failed", "ok", "failed"]);
        // Another agent is told by the host what to do, and knows what was told.
        let (_, before) = shows(&bus, "up", |check| check.status == CheckStatus::Failing).await;
        bus.kill_agent("web").await;
        let (_, after) = shows(&bus, "up", |check| check.last_unix_ms.is_some()).await;
        assert_eq!((after.status, after.since_unix_ms), (before.status, before.since_unix_ms));
        assert!(after.last_unix_ms > before.last_unix_ms);
        sh(&bus, "touch /tmp/up").await;
        assert_eq!(hears(&bus, 4).await.0, ["failed", "ok", "failed", "ok"]);
        // Of another boot nothing was told yet.
        bus.change("web", "reboot").await.unwrap();
        shows(&bus, "up", |check| check.status != CheckStatus::Starting).await;
        let (kinds, _) = hears(&bus, 5).await;
        assert_eq!(kinds.len(), 5, "{kinds:?}");
        events::log(&bus).await;
    });
}

#[test]
fn the_owner_of_the_guest_decides_whether_the_hosts_checks_run() {
    run("the_owner_of_the_guest_decides_whether_the_hosts_checks_run", Options::default(), async |world| {
        let bus = world.bus.clone();
        let check =
            json!({"name": "up", "argv": ["sh", "-c", "echo run >> /tmp/runs"], "interval_ms": 1_000});
        up(&bus, json!({"checks": [check]})).await;
        assert_eq!(hears(&bus, 1).await.0, ["ok"]);
        let policy = "mkdir -p /etc/drover-agent/checks.d && cd /etc/drover-agent && \
                      printf 'run test -e /tmp/runs\\ninterval 1s\\n' > checks.d/own && \
                      printf 'health\\n' > policy && chmod 755 . checks.d && chmod 644 policy checks.d/own";
        sh(&bus, policy).await;
        let (seen, refused) = shows(&bus, "up", |check| check.status == CheckStatus::Refused).await;
        assert_eq!((seen.status, refused.code), (HealthStatus::Warn, Some(ErrorCode::PermissionDenied)));
        shows(&bus, "own", |check| check.status == CheckStatus::Ok).await;
        let told = until_within(SOON, "the refusal", async || {
            told(&bus).await.into_iter().find(|event| event.kind.as_str() == "drover.check-refused")
        })
        .await;
        let data = serde_json::to_value(&told.data).unwrap();
        assert_eq!((&data["check"], &data["code"]), (&json!("up"), &json!("permission_denied")), "{data}");
        let shown = world.printed(&["vm", "health", "web"]).await;
        assert!(shown.contains("up refused since ") && shown.contains("exec"), "{shown}");
        // It stays so over the end of the daemon, which tells the agent again.
        world.kill().await;
        world.start();
        world.ready().await;
        shows(&bus, "up", |check| check.status == CheckStatus::Refused).await;
    });
}

#[test]
fn thresholds_are_told_when_they_begin_and_when_they_end() {
    run("thresholds_are_told_when_they_begin_and_when_they_end", Options::default(), async |world| {
        let bus = world.bus.clone();
        let bad = json!({"name": "web", "spec": {"agent": {"thresholds": [{"name": "a", "of": "cpu", "above": 101}]}}});
        let error =
            bus.ask("vm.create", &bad).id(RequestId::generate()).refused(ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.agent.thresholds[0].above", "{error}");
        // The last can never be; there is no file system at the first's mount yet.
        let thresholds = json!([
            {"name": "full", "of": "disk", "mount": "/tmp/full", "above": 60, "below": 40, "for_ms": 1_000},
            {"name": "memory", "of": "memory", "above": 100, "for_ms": 1_000},
        ]);
        up(&bus, json!({"thresholds": thresholds})).await;
        let is = async |name: &str, status: ThresholdStatus| {
            until_within(SOON, &format!("{name} {status:?}"), async || {
                let health = health(&bus).await?;
                let found = health.thresholds.iter().find(|found| found.name == name).cloned()?;
                (found.status == status).then_some((health, found))
            })
            .await
        };
        let (_, memory) = is("memory", ThresholdStatus::Ok).await;
        assert!(memory.value.is_some_and(|percent| (1..=100).contains(&percent)), "{memory:?}");
        sh(&bus, "mkdir /tmp/full && mount -t tmpfs -o size=8m none /tmp/full").await;
        let (_, full) = is("full", ThresholdStatus::Ok).await;
        assert_eq!((full.value, full.mount.as_deref()), (Some(0), Some("/tmp/full")));
        let fill = |mib: u32| format!("head -c {} /dev/zero > /tmp/full/file", mib << 20);
        sh(&bus, &fill(6)).await;
        let (seen, full) = is("full", ThresholdStatus::Exceeded).await;
        assert_eq!((seen.status, full.value), (HealthStatus::Warn, Some(75)));
        let shown = world.printed(&["vm", "health", "web"]).await;
        assert!(shown.contains("full exceeded since ") && shown.contains("75 %"), "{shown}");
        let (kinds, told) = hears(&bus, 1).await;
        let data = json!({
            "threshold": "full", "of": "disk", "mount": "/tmp/full", "status": "exceeded", "value": 75, "limit": 60,
        });
        assert_eq!(
            (kinds, serde_json::to_value(&told.data).unwrap()),
            (vec!["threshold-exceeded".to_owned()], data)
        );
        // A little better is not well, and another agent does not tell it again.
        sh(&bus, &fill(4)).await;
        bus.kill_agent("web").await;
        let again = until_within(SOON, "a look of another agent", async || {
            let found = health(&bus).await?.thresholds.into_iter().find(|found| found.name == "full")?;
            (found.value == Some(50)).then_some(found)
        })
        .await;
        assert_eq!((again.status, again.since_unix_ms), (ThresholdStatus::Exceeded, full.since_unix_ms));
        sh(&bus, &fill(2)).await;
        is("full", ThresholdStatus::Ok).await;
        let (kinds, told) = hears(&bus, 2).await;
        assert_eq!(kinds, ["threshold-exceeded", "threshold-ended"]);
        let data = serde_json::to_value(&told.data).unwrap();
        assert_eq!((&data["limit"], &data["status"]), (&json!(40), &json!("ok")), "{data}");
        // The owner may keep it to themselves.
        let policy = "mkdir -p /etc/drover-agent && printf 'ping\\n' > /etc/drover-agent/policy && \
                      chmod 755 /etc/drover-agent && chmod 644 /etc/drover-agent/policy";
        sh(&bus, policy).await;
        let (kinds, told) = hears(&bus, 4).await;
        assert_eq!(kinds[2..], ["threshold-refused", "threshold-refused"]);
        assert_eq!(serde_json::to_value(&told.data).unwrap()["code"], "permission_denied");
    });
}
