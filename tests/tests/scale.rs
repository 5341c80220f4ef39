//! Many VMs at once, with guests of processes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::RequestId;
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::{ChangeReply, ListReply};
use drover_tests::world::{Options, run};
use drover_tests::{events, leak};
use futures_util::future::join_all;
use serde_json::json;

const VMS: usize = 100;
/// For a hundred on a small machine.
const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn a_hundred_vms_at_once_get_ready_and_leave_nothing() {
    let options = Options { budget: Duration::from_secs(300), ..Options::default() };
    run("a_hundred_vms_at_once_get_ready_and_leave_nothing", options, async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..VMS).map(|n| format!("s{n:03}")).collect();
        let create = async |name: &String| -> VmStatus {
            let body = json!({"name": name, "wait": "agent", "spec": {"memory_bytes": 64 << 20}});
            let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(DEADLINE);
            ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("{name}: {e}")).vm
        };
        let vms = join_all(names.iter().map(create)).await;
        assert!(vms.iter().all(|vm| vm.agent.state == AgentState::Ready));
        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.vms, host.capacity.cpus_used), (VMS as u64, VMS as u64));
        let page: ListReply = bus.ask("vm.list", &json!({"limit": 500})).get().await.unwrap();
        assert!(page.vms.iter().map(|vm| vm.name.as_str()).eq(names.iter().map(String::as_str)));
        let delete = async |name: &String| {
            let tail = format!("vm.{name}.delete");
            let ask = bus.ask(&tail, &json!({})).id(RequestId::generate()).within(DEADLINE);
            ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        };
        join_all(names.iter().map(delete)).await;
        assert_eq!(leak::all_processes(world.run_dir()), Vec::<(i32, String)>::new());
        for vm in &vms {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        let host = bus.host().await.unwrap();
        assert_eq!((host.capacity.vms, host.capacity.cpus_used, host.capacity.memory_used_bytes), (0, 0, 0));
        let logs = events::log(&bus).await;
        assert_eq!(logs.len(), VMS);
        assert!(logs.values().all(|log| log.last().unwrap().last));
    });
}
