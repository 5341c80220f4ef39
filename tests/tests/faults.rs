//! Things are killed and cut off; nothing is lost, doubled or left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::status::{AgentState, CauseKind, VmStatus};
use drover_schemas::body::vm::{ChangeReply, ListReply};
use drover_schemas::event::VmEventKind;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::refused;
use drover_tests::wait::{pass, until};
use drover_tests::world::{Options, run};
use drover_tests::{events, leak};
use futures_util::future::join_all;
use serde_json::{Value, json};

#[test]
fn a_vmm_that_fails_at_any_step_of_a_create_leaves_a_cause_and_nothing_else() {
    const STEPS: [&str; 12] = [
        "die@start",
        "die@api",
        "die@create.before",
        "die@create.after",
        "die@boot.before",
        "die@boot.mid",
        "exit0@boot.mid",
        "exit:3@start",
        "500@create",
        "500@boot",
        "garbage@create",
        "garbage@boot",
    ];
    let test = "a_vmm_that_fails_at_any_step_of_a_create_leaves_a_cause_and_nothing_else";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        for (number, step) in STEPS.iter().enumerate() {
            world.misbehave(step);
            let name = format!("vm-{number}");
            let error =
                refused(step, ErrorCode::VmmError, bus.create(&name, json!({"wait": "running"})).await);
            let vm = bus.status(&name).await.unwrap();
            assert_eq!(
                (vm.state, vm.vm_id.to_string()),
                (VmState::Failed, error.details["vm_id"].clone()),
                "{step}"
            );
            let cause = vm.cause.clone().unwrap();
            assert!(
                matches!(
                    cause.kind,
                    CauseKind::VmmExit | CauseKind::VmmSignal | CauseKind::VmmError | CauseKind::VmmSpawn
                ),
                "{step}: {cause:?}"
            );
            assert_eq!(leak::runtime(world, &vm), Vec::<String>::new(), "{step}");
        }
        world.misbehave("");
        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.cpus_used, host.capacity.memory_used_bytes), (0, 0));
        bus.up("well").await;
        let told = events::log(&bus).await;
        let failed = told.values().filter_map(|log| log.last()).filter(|e| e.state == VmState::Failed);
        assert_eq!(failed.filter(|e| e.cause.is_some()).count(), STEPS.len());
    });
}

#[test]
fn a_vmm_that_dies_after_its_boot_was_done_is_not_reported_as_running() {
    let test = "a_vmm_that_dies_after_its_boot_was_done_is_not_reported_as_running";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        world.misbehave("die@boot.after");
        // Whether the create itself still succeeds is a race that both may win.
        let _ = bus.create("a", json!({"wait": "agent"})).await;
        let vm = bus.until("a", "failed", |vm| vm.state == VmState::Failed).await;
        assert!(vm.cause.is_some());
        assert_eq!(leak::runtime(world, &vm), Vec::<String>::new());
        events::log(&bus).await;
    });
}

#[test]
fn a_vmm_that_hangs_in_a_create_is_given_up_with_a_reason() {
    let budget = Duration::from_secs(240);
    let options = Options { budget, ..Options::misbehaving() };
    run("a_vmm_that_hangs_in_a_create_is_given_up_with_a_reason", options, async |world| {
        let bus = world.bus.clone();
        for (number, step) in ["hang@api", "hang@create.before", "hang@boot.before"].iter().enumerate() {
            world.misbehave(step);
            let name = format!("vm-{number}");
            let body = json!({"name": name, "wait": "running"});
            let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(75));
            ask.refused(ErrorCode::VmmError).await;
            let vm = bus.status(&name).await.unwrap();
            assert_eq!(
                (vm.state, vm.cause.unwrap().kind),
                (VmState::Failed, CauseKind::VmmTimeout),
                "{step}"
            );
        }
    });
}

#[test]
fn a_killed_vmm_is_told_with_its_signal_and_the_policy_acts() {
    let test = "a_killed_vmm_is_told_with_its_signal_and_the_policy_acts";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let plain = bus.up("plain").await;
        let restart = json!({"policy": "on_failure", "limit": 3, "backoff_ms": 10, "backoff_max_ms": 20});
        let body = json!({"wait": "agent", "spec": {"restart": restart}});
        let again = bus.create("again", body).await.unwrap().vm;
        world.kill_vmm(plain.vm_id);
        world.kill_vmm(again.vm_id);
        let failed = bus.until("plain", "failed", |vm| vm.state == VmState::Failed).await;
        let cause = failed.cause.unwrap();
        assert_eq!((cause.kind, cause.evidence["signal"].as_str()), (CauseKind::VmmSignal, "9"));
        assert_eq!(leak::runtime(world, &plain), Vec::<String>::new());
        let ready = |vm: &VmStatus| vm.incarnation == 2 && vm.agent.state == AgentState::Ready;
        assert_eq!(bus.until("again", "restarted", ready).await.restarts, 1);
        assert_eq!(world.vmms(again.vm_id).len(), 1);
        // A clean end is no failure.
        bus.ask("vm.again.guest.shutdown", &json!({})).get::<Value>().await.unwrap();
        let off = bus.until("again", "stopped", |vm| vm.state == VmState::Stopped).await;
        assert_eq!(off.cause.unwrap().kind, CauseKind::GuestPowerOff);
        events::log(&bus).await;
    });
}

#[test]
fn a_crash_loop_ends_in_failed_with_its_history() {
    run("a_crash_loop_ends_in_failed_with_its_history", Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        let restart = json!({"policy": "always", "limit": 2, "backoff_ms": 10, "backoff_max_ms": 20});
        let vm = bus.create("loop", json!({"wait": "agent", "spec": {"restart": restart}})).await.unwrap().vm;
        world.misbehave("die@boot.mid");
        world.kill_vmm(vm.vm_id);
        let failed = bus.until("loop", "failed", |vm| vm.state == VmState::Failed).await;
        assert_eq!(failed.cause.unwrap().kind, CauseKind::CrashLoop);
        assert_eq!(leak::runtime(world, &vm), Vec::<String>::new());
        let log = events::log(&bus).await;
        let backoffs = log[&vm.vm_id].iter().filter(|e| {
            e.kind == VmEventKind::State
                && e.state == VmState::Backoff
                && e.previous != Some(VmState::Backoff)
        });
        assert_eq!(backoffs.count(), 2);
    });
}

#[test]
fn vms_outlive_a_killed_daemon_running_or_paused() {
    run("vms_outlive_a_killed_daemon_running_or_paused", Options::default(), async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..6).map(|n| format!("v{n}")).collect();
        let vms: Vec<VmStatus> = join_all(names.iter().map(|name| bus.up(name))).await;
        let before: Vec<Vec<i32>> = vms.iter().map(|vm| world.vmms(vm.vm_id)).collect();
        bus.change("v1", "pause").await.unwrap();
        for _ in 0..3 {
            world.kill().await;
            world.start();
            world.ready().await;
        }
        for (vm, pids) in vms.iter().zip(&before) {
            assert_eq!(&world.vmms(vm.vm_id), pids, "{}", vm.name);
            let now = bus.status(vm.name.as_str()).await.unwrap();
            let paused = vm.name.as_str() == "v1";
            assert_eq!(now.state, if paused { VmState::Paused } else { VmState::Running });
            assert_eq!((now.vm_id, now.incarnation, now.vmm_pid), (vm.vm_id, 1, vm.vmm_pid));
            if !paused {
                bus.until_ping(vm.name.as_str()).await;
            }
        }
        bus.change("v1", "resume").await.unwrap();
        bus.until_ping("v1").await;
        // One that dies while nobody watches is told with its cause.
        world.kill().await;
        world.kill_vmm(vms[2].vm_id);
        world.start();
        world.ready().await;
        let failed = bus.until("v2", "failed", |vm| vm.state == VmState::Failed).await;
        assert_eq!(failed.cause.unwrap().kind, CauseKind::VmmSignal);
        for name in &names {
            bus.change(name, "delete").await.unwrap();
        }
        for vm in &vms {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        assert!(events::log(&bus).await.values().all(|log| log.last().unwrap().last));
    });
}

#[test]
fn a_daemon_killed_in_the_middle_of_creates_finishes_each_once() {
    let test = "a_daemon_killed_in_the_middle_of_creates_finishes_each_once";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let work: Vec<_> = (0..8)
            .map(|n| {
                let bus = bus.clone();
                tokio::task::spawn_local(async move {
                    bus.insist::<ChangeReply>(
                        "vm.create",
                        &json!({"name": format!("k{n}"), "wait": "agent"}),
                        RequestId::generate(),
                    )
                    .await
                })
            })
            .collect();
        for ms in [30, 60, 110] {
            pass(Duration::from_millis(ms)).await;
            world.kill().await;
            world.start();
        }
        let replies: Vec<ChangeReply> =
            join_all(work).await.into_iter().map(|done| done.unwrap().unwrap()).collect();
        for reply in &replies {
            assert_eq!(world.vmms(reply.vm.vm_id).len(), 1, "VMMs of {}", reply.vm.name);
        }
        let page: ListReply = bus.ask("vm.list", &json!({})).get().await.unwrap();
        assert_eq!(page.vms.len(), replies.len());
        for reply in &replies {
            bus.insist_on_delete(reply.vm.name.as_str()).await;
            assert_eq!(leak::anything(world, &reply.vm), Vec::<String>::new());
        }
        events::log(&bus).await;
    });
}

#[test]
fn a_bus_that_is_gone_for_longer_than_its_window_loses_and_doubles_nothing() {
    let options = Options { duplicate_window_ms: Some(1_000), ..Options::default() };
    let test = "a_bus_that_is_gone_for_longer_than_its_window_loses_and_doubles_nothing";
    run(test, options, async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..4).map(|n| format!("n{n}")).collect();
        let vms: Vec<VmStatus> = join_all(names.iter().map(|name| bus.up(name))).await;
        let mut work = Vec::new();
        for n in 0..2 {
            let bus = bus.clone();
            work.push(tokio::task::spawn_local(async move { bus.insist_on_delete(&format!("n{n}")).await }));
        }
        for n in 0..3 {
            let bus = bus.clone();
            work.push(tokio::task::spawn_local(async move {
                bus.insist::<ChangeReply>(
                    "vm.create",
                    &json!({"name": format!("m{n}"), "wait": "running"}),
                    RequestId::generate(),
                )
                .await
                .unwrap();
            }));
        }
        pass(Duration::from_millis(20)).await;
        world.stop_nats().await;
        let alive = world.vmms(vms[2].vm_id);
        world.kill_vmm(vms[3].vm_id);
        pass(Duration::from_millis(2_500)).await;
        assert_eq!(world.vmms(vms[2].vm_id), alive, "a lost bus harms no VM");
        world.start_nats().await;
        for task in work {
            task.await.unwrap();
        }
        world.ready().await;
        bus.until("n3", "failed", |vm| vm.state == VmState::Failed).await;
        let logs = events::log(&bus).await;
        assert_eq!(logs[&vms[3].vm_id].last().unwrap().cause.as_ref().unwrap().kind, CauseKind::VmmSignal);
        for vm in &vms[..2] {
            assert!(logs[&vm.vm_id].last().unwrap().last);
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        // Each connection of the host comes back by itself; nobody hears what belongs to one that has not yet.
        let page: ListReply = bus.insist("vm.list", &json!({}), RequestId::generate()).await.unwrap();
        assert_eq!(page.vms.len(), 5);
        for n in 0..3 {
            bus.until_ping(&format!("m{n}")).await;
        }
        for vm in page.vms.iter().filter(|vm| vm.state == VmState::Running) {
            assert_eq!(world.vmms(vm.vm_id).len(), 1);
        }
    });
}

#[test]
fn a_host_adopts_without_a_bus_and_is_reached_when_there_is_one() {
    let test = "a_host_adopts_without_a_bus_and_is_reached_when_there_is_one";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("a").await;
        let alive = world.vmms(vm.vm_id);
        world.kill().await;
        world.stop_nats().await;
        world.start();
        until("adoption", async || world.told().contains("ready vms=1").then_some(())).await;
        assert_eq!(world.vmms(vm.vm_id), alive);
        // Its death is seen without a bus, and told when there is one.
        world.kill_vmm(vm.vm_id);
        world.start_nats().await;
        world.ready().await;
        bus.until("a", "failed", |vm| vm.state == VmState::Failed).await;
        let logs = events::log(&bus).await;
        assert_eq!(logs[&vm.vm_id].last().unwrap().cause.as_ref().unwrap().kind, CauseKind::VmmSignal);
    });
}

#[test]
fn a_vm_that_cannot_be_looked_at_is_unknown_until_it_can() {
    run("a_vm_that_cannot_be_looked_at_is_unknown_until_it_can", Options::default(), async |world| {
        let bus = world.bus.clone();
        let (hidden, seen) = (bus.up("hidden").await, bus.up("seen").await);
        world.kill().await;
        // The record of its process cannot be read just now.
        let dir = world.vm_dir(hidden.vm_id);
        std::fs::rename(dir.join("vmm.pid"), dir.join("away")).unwrap();
        std::fs::create_dir(dir.join("vmm.pid")).unwrap();
        world.start();
        world.ready().await;
        bus.until_ping("seen").await;
        let vm = bus.until("hidden", "unknown", |vm| vm.state == VmState::Unknown).await;
        assert!(vm.cause.unwrap().message.contains("cannot be looked at"));
        let error = refused("stop", ErrorCode::Unavailable, bus.change("hidden", "stop").await);
        assert!(error.retryable, "{error:?}");
        assert_eq!(world.vmms(hidden.vm_id).len(), 1, "it is left alone");
        // It is found without a restart of the daemon when it can be.
        std::fs::remove_dir(dir.join("vmm.pid")).unwrap();
        std::fs::rename(dir.join("away"), dir.join("vmm.pid")).unwrap();
        let back = bus.until("hidden", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!((back.vmm_pid, back.incarnation), (hidden.vmm_pid, hidden.incarnation));
        bus.until_ping("hidden").await;
        for vm in [&hidden, &seen] {
            bus.change(vm.name.as_str(), "delete").await.unwrap();
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        events::log(&bus).await;
    });
}

#[test]
fn a_daemon_killed_in_the_middle_of_deletes_finishes_each() {
    let test = "a_daemon_killed_in_the_middle_of_deletes_finishes_each";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
        let vms: Vec<VmStatus> = join_all(names.iter().map(|name| bus.up(name))).await;
        let work: Vec<_> = names
            .iter()
            .map(|name| {
                let (bus, name) = (bus.clone(), name.clone());
                tokio::task::spawn_local(async move { bus.insist_on_delete(&name).await })
            })
            .collect();
        for ms in [15, 60, 110] {
            pass(Duration::from_millis(ms)).await;
            world.kill().await;
            world.start();
        }
        for done in join_all(work).await {
            done.unwrap();
        }
        world.ready().await;
        for vm in &vms {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        let logs = events::log(&bus).await;
        assert!(vms.iter().all(|vm| logs[&vm.vm_id].last().unwrap().last));
        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.vms, host.capacity.cpus_used), (0, 0));
    });
}

#[test]
fn a_vmm_that_answers_nothing_and_ignores_signals_is_deleted_all_the_same() {
    let test = "a_vmm_that_answers_nothing_and_ignores_signals_is_deleted_all_the_same";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("deaf").await;
        world.misbehave(
            "ignore-sigterm,hang@ping,hang@info,hang@counters,hang@pause,hang@power-button,hang@shutdown,hang@delete,hang@vmm-shutdown",
        );
        bus.change("deaf", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        world.misbehave("");
        let vm = bus.up("deaf").await;
        world.misbehave("ignore-sigterm,hang@power-button,hang@shutdown,hang@delete,hang@vmm-shutdown");
        let body = json!({"grace_ms": 200});
        assert_eq!(bus.change_with("deaf", "stop", body).await.unwrap().vm.state, VmState::Stopped);
        assert_eq!(leak::runtime(world, &vm), Vec::<String>::new());
    });
}

#[test]
fn lost_and_countless_events_of_a_vmm_are_survived() {
    run("lost_and_countless_events_of_a_vmm_are_survived", Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        world.misbehave("lose-events");
        let silent = bus.up("silent").await;
        world.misbehave("flood-events");
        bus.up("loud").await;
        assert_eq!(bus.change("silent", "pause").await.unwrap().vm.state, VmState::Paused);
        assert_eq!(bus.change("silent", "resume").await.unwrap().vm.state, VmState::Running);
        world.kill_vmm(silent.vm_id);
        bus.until("silent", "failed", |vm| vm.state == VmState::Failed).await;
        bus.until_ping("loud").await;
        bus.change("loud", "delete").await.unwrap();
        events::log(&bus).await;
    });
}
