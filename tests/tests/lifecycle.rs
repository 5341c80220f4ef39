//! The life of a VM as its caller sees it, and every way to ask wrongly.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drover_schemas::body::events::EventsReadReply;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::AgentState;
use drover_schemas::body::vm::{ExplainReply, ListReply, LogsReply, LookupReply, ValidateReply};
use drover_schemas::contract::{ASYNCAPI, ContractReply};
use drover_schemas::guest::{HealthResult, InfoResult};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::world::{Options, run};
use drover_tests::{events, leak, wait};
use serde_json::{Value, json};

async fn exec(bus: &Bus, name: &str, argv: &[&str]) -> ExecResult {
    let reply = bus.ask(&format!("vm.{name}.guest.exec"), &json!({"argv": argv})).get().await.unwrap();
    match reply {
        ExecReply::Result(result) => result,
        _ => panic!("nobody asked for a stream"),
    }
}

#[test]
fn a_vm_lives_through_every_verb_and_leaves_nothing() {
    run("a_vm_lives_through_every_verb_and_leaves_nothing", Options::default(), async |world| {
        let bus = world.bus.clone();
        let vm = bus.up("web").await;
        assert_eq!((vm.state, vm.agent.state), (VmState::Running, AgentState::Ready));
        assert_eq!(world.vmms(vm.vm_id).len(), 1);
        let result = exec(&bus, "web", &["sh", "-c", "echo hi; echo no >&2; exit 3"]).await;
        assert_eq!(result.exit_code, Some(3));
        assert_eq!(result.stdout.unwrap().as_slice(), b"hi\n");
        assert_eq!(result.stderr.unwrap().as_slice(), b"no\n");

        assert_eq!(bus.change("web", "pause").await.unwrap().vm.state, VmState::Paused);
        assert!(bus.change("web", "pause").await.unwrap().already);
        let asleep = bus.ask("vm.web.guest.ping", &json!({})).refused(ErrorCode::GuestUnreachable).await;
        assert!(asleep.message.contains("resume it"), "{asleep}");
        let error = refused("shutdown", ErrorCode::InvalidState, bus.change("web", "shutdown").await);
        assert_eq!(error.details["state"], "paused");
        assert_eq!(bus.change("web", "resume").await.unwrap().vm.state, VmState::Running);
        assert_eq!(bus.change("web", "shutdown").await.unwrap().vm.state, VmState::Stopped);
        assert_eq!(leak::runtime(world, &vm), Vec::<String>::new(), "a stopped VM has no runtime");
        bus.ask("vm.web.guest.ping", &json!({})).refused(ErrorCode::InvalidState).await;
        assert_eq!(bus.host().await.unwrap().capacity.memory_used_bytes, 0);

        let again = bus.change_with("web", "start", json!({"wait": "agent"})).await.unwrap().vm;
        assert_eq!((again.incarnation, again.vm_id), (2, vm.vm_id));
        assert_eq!(exec(&bus, "web", &["true"]).await.exit_code, Some(0));
        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.vms, host.capacity.cpus_used, host.capacity.memory_used_bytes), (0, 0, 0));
        assert!(events::log(&bus).await[&vm.vm_id].last().unwrap().last);
        // The owner does not listen for it any more: nobody answers, and lookup says why.
        assert!(bus.status("web").await.unwrap_err().may_repeat());
        let found: LookupReply = bus.ask("vm.lookup", &json!({"name": "web"})).get().await.unwrap();
        assert!(matches!(found, LookupReply::Gone { vm_id, .. } if vm_id == vm.vm_id), "{found:?}");
    });
}

#[test]
fn whoever_heard_that_a_vm_is_deleted_hears_that_nobody_is_there() {
    let test = "whoever_heard_that_a_vm_is_deleted_hears_that_nobody_is_there";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        for number in 0..20 {
            let name = format!("v{number}");
            bus.create(&name, json!({})).await.unwrap();
            bus.change(&name, "delete").await.unwrap();
            let nobody = bus.status(&name).await;
            assert!(matches!(nobody, Err(Failure::Nobody)), "{name}: {nobody:?}");
        }
    });
}

#[test]
fn a_vm_can_be_asked_as_soon_as_its_create_was_accepted() {
    run("a_vm_can_be_asked_as_soon_as_its_create_was_accepted", Options::default(), async |world| {
        let bus = world.bus.clone();
        for n in 0..20 {
            let name = format!("v{n}");
            let vm = bus.create(&name, json!({})).await.unwrap().vm;
            assert_eq!(bus.status(&name).await.unwrap().vm_id, vm.vm_id);
            bus.change(&name, "delete").await.unwrap();
            assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        }
        events::log(&bus).await;
    });
}

#[test]
fn a_file_goes_into_the_guest_and_comes_back_the_same() {
    run("a_file_goes_into_the_guest_and_comes_back_the_same", Options::default(), async |world| {
        world.bus.up("web").await;
        let (there, back) = (world.path("there"), world.path("back"));
        let bytes: Vec<u8> =
            (0..3_000_001_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        std::fs::write(&there, &bytes).unwrap();
        for (from, to) in [(there.to_str().unwrap(), "web:/tmp/f"), ("web:/tmp/f", back.to_str().unwrap())] {
            let done = world.drover(&["vm", "cp", from, to]).await;
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        assert_eq!(std::fs::read(&back).unwrap(), bytes);
    });
}

#[test]
fn what_is_asked_by_hand_in_json_is_answered_in_json() {
    run("what_is_asked_by_hand_in_json_is_answered_in_json", Options::default(), async |world| {
        let bus = &world.bus;
        let json = async |tail: &str, body: &str| -> Value {
            serde_json::from_slice(&bus.raw(tail, body).message().await.unwrap().payload).unwrap()
        };
        let made = json("vm.create", r#"{"name": "j", "wait": "running"}"#).await;
        assert_eq!(made["vm"]["state"], "running");
        bus.until_ping("j").await;
        assert_eq!(json("vm.j.guest.exec", r#"{"argv": ["echo", "x"]}"#).await["result"]["stdout"], "eAo=");
        assert_eq!(json("vm.j.explode", " {}").await["code"], "unsupported");
        // An empty body is an empty map.
        let page: ListReply = bus.raw("vm.list", "").get().await.unwrap();
        assert_eq!(page.vms.len(), 1);
    });
}

#[test]
fn every_bad_request_is_answered_with_a_code_and_has_no_effect() {
    run("every_bad_request_is_answered_with_a_code_and_has_no_effect", Options::default(), async |world| {
        use ErrorCode::{GuestError, InvalidArgument, NotFound, Unsupported};
        let bus = &world.bus;
        bus.up("x").await;
        let error = bus.ask("vm.x.paus", &json!({})).refused(Unsupported).await;
        assert!(error.message.contains("did you mean \"pause\""), "{error}");
        bus.ask("vm.x.guest.explode", &json!({})).refused(Unsupported).await;
        bus.ask("image.list", &json!({})).refused(Unsupported).await;
        bus.ask("drover.v1.host.h1.explode", &json!({})).refused(Unsupported).await;
        bus.ask("vm.x.pause.now", &json!({})).refused(InvalidArgument).await;
        let error = bus.ask("vm.list", &json!({"limmit": 3})).refused(InvalidArgument).await;
        assert!(error.message.contains("limmit"), "{error}");
        let nested = json!({"name": "a", "spec": {"memry": 1}});
        let error = bus.ask("vm.create", &nested).refused(InvalidArgument).await;
        assert!(error.message.contains("memry"), "{error}");
        exec(bus, "x", &["ln", "-s", "loop", "/root/loop"]).await;
        bus.ask("vm.x.guest.exec", &json!({"argv": ["/root/loop"]})).refused(GuestError).await;
        // Another version is another subject, where nobody listens.
        let other = bus.ask("drover.v2.cmd.default.vm.list", &json!({})).get::<Value>().await;
        assert!(matches!(other, Err(Failure::Nobody)), "{other:?}");
        for bad in [&b"\x81\xa1"[..], b"\x80\x80", b"\xc1", b"[]", b"{", b"{}x", b"\x93\x01\x02\x03"] {
            bus.raw("vm.list", bad).refused(InvalidArgument).await;
        }
        let plain = bus.raw("vm.list", "{}").header("Content-Type", "text/plain");
        plain.refused(InvalidArgument).await;
        bus.raw("vm.list", vec![b'x'; 70_000]).refused(InvalidArgument).await;
        let no_id = bus.ask("vm.list", &json!({})).header("Drover-Request-Id", "no");
        no_id.refused(InvalidArgument).await;
        assert!(refuse(bus, "a.b", json!({})).await.contains("position 1"));
        assert!(refuse(bus, "a", json!({"memory_bytes": 3})).await.contains("64 MiB"));
        assert!(refuse(bus, "a", json!({"template": "linux-defualt"})).await.contains("linux-default"));
        let unknown = json!({"name": "a", "spec": {"boot": {"kernel": "nope"}}});
        bus.ask("vm.create", &unknown).refused(NotFound).await;
        let found: LookupReply = bus.ask("vm.lookup", &json!({"name": "a"})).get().await.unwrap();
        assert!(matches!(found, LookupReply::NotFound {}), "{found:?}");
        let page: ListReply = bus.ask("vm.list", &json!({})).get().await.unwrap();
        assert_eq!(page.vms.len(), 1);
    });
}

async fn refuse(bus: &Bus, name: &str, spec: Value) -> String {
    let body = json!({"name": name, "spec": spec});
    bus.ask("vm.create", &body).id(RequestId::generate()).refused(ErrorCode::InvalidArgument).await.message
}

#[test]
fn what_reads_only_tells_how_things_are() {
    run("what_reads_only_tells_how_things_are", Options::default(), async |world| {
        let bus = &world.bus;
        for name in ["a", "b", "c"] {
            bus.up(name).await;
        }
        let first: ListReply = bus.ask("vm.list", &json!({"limit": 2})).get().await.unwrap();
        let rest = json!({"limit": 2, "cursor": first.next_cursor.unwrap()});
        let rest: ListReply = bus.ask("vm.list", &rest).get().await.unwrap();
        let names: Vec<&str> = first.vms.iter().chain(&rest.vms).map(|vm| vm.name.as_str()).collect();
        assert_eq!((names.as_slice(), rest.next_cursor), (&["a", "b", "c"][..], None));

        let valid: ValidateReply = bus.ask("vm.validate", &json!({"spec": {"cpus": 2}})).get().await.unwrap();
        let config: Value = serde_json::from_str(&valid.vmm_config).unwrap();
        assert_eq!((valid.spec.cpus, &config["cpus"]["boot_vcpus"]), (2, &json!(2)));

        let why: ExplainReply = bus.ask("vm.a.explain", &json!({})).get().await.unwrap();
        assert!(
            !why.findings.is_empty() && !why.history.is_empty() && !why.vmm_command.is_empty(),
            "{why:?}"
        );
        let guest: InfoResult = bus.ask("vm.a.guest.info", &json!({})).get().await.unwrap();
        let booted = bus.status("a").await.unwrap().agent.boot_id;
        assert_eq!((&*guest.os, Some(&guest.boot_id)), ("linux", booted.as_ref()));
        let health: HealthResult = bus.ask("vm.a.guest.health", &json!({})).get().await.unwrap();
        assert!(health.cpu_total_ms >= health.cpu_busy_ms && health.cpu_busy_ms > 0, "{health:?}");
        let _: LogsReply = bus.ask("vm.a.logs", &json!({})).get().await.unwrap();
        let _: LogsReply = bus.ask("vm.a.logs", &json!({"source": "vmm"})).get().await.unwrap();
        // The contract is answered and printed as it is published.
        let published: Value = serde_json::from_str(ASYNCAPI).unwrap();
        let told: ContractReply = bus.ask("contract.read", &json!({})).get().await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(&told.asyncapi).unwrap(), published);
        for args in [&["bus", "contract"][..], &["bus", "contract", "--own"]] {
            let printed = world.drover(args).await.stdout;
            assert_eq!(serde_json::from_slice::<Value>(&printed).unwrap(), published);
        }
        // The host says that it lives a moment after it has made the buckets on a new bus.
        wait::until("the owner is online", async || {
            let found = bus.ask("vm.lookup", &json!({"name": "a"})).get().await.unwrap();
            matches!(found, LookupReply::Owned { online: true, .. }).then_some(())
        })
        .await;

        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.vms, host.states["running"], host.vmm.emulated), (3, 3, world.emulated()));
        let all = events::log(bus).await.values().map(Vec::len).sum::<usize>();
        let (mut after, mut read) = (0, 0);
        loop {
            let body = json!({"after": after, "limit": 2});
            let page: EventsReadReply = bus.ask("events.read", &body).get().await.unwrap();
            assert!(page.events.len() <= 2);
            (after, read) = (page.next_cursor, read + page.events.len());
            if page.end {
                break;
            }
        }
        assert_eq!(read, all);
    });
}
