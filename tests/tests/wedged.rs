//! One VM is stuck; fifty others do not notice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::{Bus, Failure, refused};
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use drover_tests::{events, leak};
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const OTHERS: usize = 50;
/// Shorter than what a stuck VMM takes of the host's patience, so nobody may have waited for it.
const AT_ONCE: Duration = Duration::from_secs(8);

async fn exec(bus: &Bus, name: &str, within: Duration) -> Result<ExecReply, Failure> {
    bus.ask(&format!("vm.{name}.guest.exec"), &json!({"argv": ["true"]})).within(within).get().await
}

/// Every verb that is used daily, on every VM at once.
async fn all_work(bus: &Bus, names: &[String]) {
    let one = async |name: &String| {
        for verb in ["pause", "resume"] {
            let ask =
                bus.ask(&format!("vm.{name}.{verb}"), &json!({})).id(RequestId::generate()).within(AT_ONCE);
            ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("{verb} {name}: {e}"));
        }
        bus.until_ping(name).await;
        exec(bus, name, AT_ONCE).await.unwrap_or_else(|e| panic!("exec {name}: {e}"));
    };
    join_all(names.iter().map(one)).await;
}

#[test]
fn a_vm_that_is_stuck_holds_up_nobody_else_and_comes_back() {
    let options = Options { budget: Duration::from_secs(300), ..Options::default() };
    run("a_vm_that_is_stuck_holds_up_nobody_else_and_comes_back", options, async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..OTHERS).map(|n| format!("w{n:02}")).collect();
        let stuck = bus.up("stuck").await;
        let up = async |name: &String| {
            let body = json!({"name": name, "wait": "agent", "spec": {"memory_bytes": 64 << 20}});
            let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(90));
            ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        };
        join_all(names.iter().map(up)).await;

        let vmm = Pid::from_raw(world.vmms(stuck.vm_id)[0]);
        kill(vmm, Signal::SIGSTOP).unwrap();
        // It is asked for much; each is answered in the end.
        let asked = bus.clone();
        let pause = tokio::task::spawn_local(async move { asked.change("stuck", "pause").await });
        let asked = bus.clone();
        let guest = tokio::task::spawn_local(async move {
            join_all((0..20).map(|_| exec(&asked, "stuck", Duration::from_secs(5)))).await
        });
        until("the pause is under way", async || {
            bus.status("stuck").await.ok().filter(|vm| vm.operation.as_deref() == Some("pause"))
        })
        .await;
        all_work(&bus, &names).await;
        let error = refused("a second verb", ErrorCode::Busy, bus.change("stuck", "stop").await);
        assert_eq!(error.details["operation"], "pause");
        for outcome in guest.await.unwrap() {
            // What was on its way when the agent fell silent, or came to nobody.
            let Err(Failure::Coded(error)) = outcome else { panic!("{outcome:?}") };
            let codes = [ErrorCode::GuestUnreachable, ErrorCode::DeadlineExceeded, ErrorCode::Busy];
            assert!(codes.contains(&error.code), "{error:?}");
        }
        let error = refused("the pause", ErrorCode::VmmError, pause.await.unwrap());
        assert!(error.message.contains("pause") || error.details.contains_key("step"), "{error:?}");
        let new = bus.up("new").await;
        bus.change("new", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &new), Vec::<String>::new());

        // A daemon that starts now adopts it with the others, and what was asked is done when it goes on.
        world.kill().await;
        world.start();
        world.ready().await;
        all_work(&bus, &names).await;
        kill(vmm, Signal::SIGCONT).unwrap();
        bus.until_ping("stuck").await;
        let again = bus.until("stuck", "running", |vm| vm.state == VmState::Running).await;
        assert_eq!(again.incarnation, stuck.incarnation);
        bus.change("stuck", "pause").await.unwrap();
        bus.change("stuck", "resume").await.unwrap();

        // And one that never goes on is deleted all the same.
        kill(vmm, Signal::SIGSTOP).unwrap();
        bus.change("stuck", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &stuck), Vec::<String>::new());
        events::log(&bus).await;
    });
}
