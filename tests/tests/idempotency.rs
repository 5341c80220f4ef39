//! Effects happen once: the same request id gives the same reply, and a contradiction is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::status::AgentState;
use drover_schemas::body::vm::{ChangeReply, ListReply, LookupReply};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId, VmId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use drover_tests::{events, leak};
use futures_util::future::join_all;
use serde_json::{Value, json};

async fn change_as(
    bus: &Bus,
    id: RequestId,
    name: &str,
    verb: &str,
    body: Value,
) -> Result<ChangeReply, Failure> {
    bus.ask(&format!("vm.{name}.{verb}"), &body).id(id).get().await
}

#[test]
fn one_request_id_makes_one_vm_and_gives_one_reply() {
    run("one_request_id_makes_one_vm_and_gives_one_reply", Options::default(), async |world| {
        let bus = world.bus.clone();
        let (id, body) = (RequestId::generate(), json!({"wait": "running"}));
        let replies = join_all((0..5).map(|_| bus.create_as(id, "web", body.clone()))).await;
        let first = replies[0].as_ref().unwrap();
        assert_eq!(first.request_id, id);
        assert!(replies.iter().all(|reply| reply.as_ref().unwrap() == first));
        assert_eq!(world.vmms(first.vm.vm_id).len(), 1);
        assert_eq!(&bus.create_as(id, "web", body.clone()).await.unwrap(), first, "once it is done");
        world.kill().await;
        world.start();
        world.ready().await;
        assert_eq!(&bus.create_as(id, "web", body.clone()).await.unwrap(), first, "after a crash");
        let page: ListReply = bus.ask("vm.list", &json!({})).get().await.unwrap();
        assert_eq!(page.vms.len(), 1);

        let other = bus.create_as(id, "web", json!({"wait": "agent"})).await;
        assert_eq!(refused("another body", ErrorCode::Conflict, other).details["cause"], "request_id");
        let other = bus.create_as(id, "other", body.clone()).await;
        assert_eq!(refused("another name", ErrorCode::Conflict, other).details["cause"], "request_id");
        refused("another id", ErrorCode::AlreadyExists, bus.create("web", body).await);
        events::log(&bus).await;
    });
}

#[test]
fn a_request_that_failed_before_it_was_accepted_binds_nothing() {
    let test = "a_request_that_failed_before_it_was_accepted_binds_nothing";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let id = RequestId::generate();
        let too_much = json!({"spec": {"memory_bytes": 1_u64 << 40}});
        refused("too much", ErrorCode::ResourceExhausted, bus.create_as(id, "web", too_much).await);
        let vm = bus.create_as(id, "web", json!({"wait": "running"})).await.unwrap().vm;
        assert_eq!(vm.state, VmState::Running);
    });
}

#[test]
fn a_verb_is_done_once_for_each_id_and_replayed_after_a_crash() {
    let test = "a_verb_is_done_once_for_each_id_and_replayed_after_a_crash";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let pause = RequestId::generate();
        let first = change_as(&bus, pause, "web", "pause", json!({})).await.unwrap();
        bus.change("web", "resume").await.unwrap();
        assert_eq!(change_as(&bus, pause, "web", "pause", json!({})).await.unwrap(), first);
        assert_eq!(bus.status("web").await.unwrap().state, VmState::Running, "a replay has no effect");
        world.kill().await;
        world.start();
        world.ready().await;
        bus.until("web", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!(change_as(&bus, pause, "web", "pause", json!({})).await.unwrap(), first);
        assert_eq!(bus.status("web").await.unwrap().state, VmState::Running);
        let other = change_as(&bus, pause, "web", "pause", json!({"wait": "running"})).await;
        refused("another body", ErrorCode::Conflict, other);
        let other = change_as(&bus, pause, "web", "stop", json!({})).await;
        refused("another verb", ErrorCode::Conflict, other);
        events::log(&bus).await;
    });
}

#[test]
fn a_delete_that_is_repeated_after_the_end_finds_its_reply() {
    run("a_delete_that_is_repeated_after_the_end_finds_its_reply", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let id = RequestId::generate();
        let gone = change_as(&bus, id, "web", "delete", json!({})).await.unwrap();
        // The owner remembers it while its subscription ends; then nobody listens.
        match change_as(&bus, id, "web", "delete", json!({})).await {
            Ok(again) => assert_eq!(again, gone),
            Err(error) => assert!(matches!(error, Failure::Nobody), "{error}"),
        }
        for _ in 0..2 {
            let found: LookupReply = bus.ask("vm.lookup", &json!({"name": "web"})).get().await.unwrap();
            let LookupReply::Gone { vm_id, request_id, reply, .. } = found else { panic!("{found:?}") };
            assert_eq!((vm_id, request_id, *reply.unwrap()), (vm.vm_id, id, gone.clone()));
            world.kill().await;
            world.start();
            world.ready().await;
        }
        // The name is free for another VM, with a log of its own.
        let second = bus.up("web").await;
        assert_ne!(second.vm_id, vm.vm_id);
        assert_eq!(events::log(&bus).await.len(), 2);
    });
}

#[test]
fn a_condition_that_does_not_hold_refuses_the_verb() {
    run("a_condition_that_does_not_hold_refuses_the_verb", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        let other = json!({"if_vm_id": VmId::generate()});
        let error = refused("other VM", ErrorCode::Conflict, bus.change_with("web", "stop", other).await);
        assert_eq!(error.details["cause"], "vm_id");
        let other = json!({"if_revision": vm.revision + 1});
        let error =
            refused("other revision", ErrorCode::Conflict, bus.change_with("web", "stop", other).await);
        assert_eq!(error.details["cause"], "revision");
        assert_eq!(bus.status("web").await.unwrap().state, VmState::Running);
        let same = json!({"if_vm_id": vm.vm_id, "if_revision": vm.revision});
        assert_eq!(bus.change_with("web", "stop", same).await.unwrap().vm.state, VmState::Stopped);
        let error = refused("pause", ErrorCode::InvalidState, bus.change("web", "pause").await);
        assert_eq!(error.details["state"], "stopped");
        assert!(bus.change("web", "stop").await.unwrap().already);
        let before = bus.host().await.unwrap().capacity.memory_used_bytes;
        assert_eq!(before, 0);
        let other = json!({"if_revision": vm.revision + 1});
        refused("start", ErrorCode::Conflict, bus.change_with("web", "start", other).await);
        let after = bus.host().await.unwrap().capacity.memory_used_bytes;
        assert_eq!(after, 0, "a start that was refused holds no memory");
    });
}

#[test]
fn a_delete_pre_empts_a_boot_that_hangs_and_its_caller_is_told() {
    let test = "a_delete_pre_empts_a_boot_that_hangs_and_its_caller_is_told";
    run(test, Options::misbehaving(), async |world| {
        let bus = world.bus.clone();
        world.misbehave("hang@boot.before");
        let creator = bus.clone();
        let create =
            tokio::task::spawn_local(async move { creator.create("slow", json!({"wait": "agent"})).await });
        let vm = until("the create", async || bus.status("slow").await.ok()).await;
        until("the VMM", async || (!world.vmms(vm.vm_id).is_empty()).then_some(())).await;
        let error = refused("pause", ErrorCode::Busy, bus.change("slow", "pause").await);
        assert!(error.retryable && error.details.contains_key("operation"), "{error:?}");
        bus.change("slow", "delete").await.unwrap();
        let error = refused("the create", ErrorCode::Conflict, create.await.unwrap());
        assert_eq!(error.details["cause"], "superseded");
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        events::log(&bus).await;
    });
}

#[test]
fn a_command_is_not_run_again_in_another_boot_of_the_guest() {
    let test = "a_command_is_not_run_again_in_another_boot_of_the_guest";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let id = RequestId::generate();
        let exec = async || {
            let body = json!({"argv": ["sh", "-c", "echo ran >> /tmp/ran; wc -l < /tmp/ran"]});
            bus.ask("vm.web.guest.exec", &body).id(id).get::<ExecReply>().await
        };
        let ExecReply::Result(first) = exec().await.unwrap() else { panic!("nobody asked for a stream") };
        assert_eq!(first.stdout.unwrap().as_slice(), b"1\n");
        let ExecReply::Result(again) = exec().await.unwrap() else { panic!("nobody asked for a stream") };
        assert_eq!((again.exit_code, again.truncated), (Some(0), true), "the result without its output");
        bus.change("web", "stop").await.unwrap();
        bus.change("web", "start").await.unwrap();
        until("the agent", async || {
            bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
        })
        .await;
        let error = refused("another boot", ErrorCode::Conflict, exec().await);
        assert_eq!(error.details["cause"], "guest_rebooted");
    });
}
