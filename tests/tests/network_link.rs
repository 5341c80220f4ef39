//! Interfaces of guests that are set up over the link, on a kernel that was told of no address.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::NetworkResult;
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::wait::until_within;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};
use tokio::process::Command;

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(120);

async fn exec(bus: &Bus, script: &str) -> Option<ExecResult> {
    let body = json!({"argv": ["sh", "-c", script]});
    match bus.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.ok()? {
        ExecReply::Result(result) => Some(result),
        other => panic!("{other:?}"),
    }
}

async fn says(bus: &Bus, script: &str) -> String {
    let done = exec(bus, script).await.unwrap();
    assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
    String::from_utf8_lossy(done.stdout.unwrap_or_default().as_slice()).trim_end().to_owned()
}

async fn until_ready(bus: &Bus) -> VmStatus {
    until_within(BOOT, "the agent", async || {
        bus.status("web").await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

async fn has(bus: &Bus, address: &str) {
    let script =
        format!("ip -4 addr show dev eth0 | grep -qF 'inet {address} ' && ip route | grep -q '^default via'");
    until_within(WORK, &format!("the guest has {address}"), async || {
        exec(bus, &script).await.filter(|done| done.exit_code == Some(0))
    })
    .await;
}

async fn pings(bus: &Bus, vm: &VmStatus) {
    let nic = &vm.nics[0];
    let out = Command::new("ping").args(["-c", "1", "-W", "20", &nic.ipv4]).output().await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    says(bus, &format!("ping -c 1 -W 20 {}", nic.gateway)).await;
}

async fn network(world: &World, more: &[&str]) -> NetworkResult {
    let text = world.printed(&[&["-o", "json", "vm", "guest", "network", "web"], more].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_guest_whose_kernel_knows_no_address_gets_it_over_the_link() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::down() };
    run("a_guest_whose_kernel_knows_no_address_gets_it_over_the_link", options, async |world| {
        // A kernel takes over what its interface is made for.
        world.up_with(|config| config["networks"][0]["mtu"] = json!(1450)).await;
        let bus = world.bus.clone();
        let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
        let nics = json!([{"network": "default", "setup": "agent"}]);
        let body =
            json!({"name": "web", "spec": {"template": "linux-microvm", "agent": agent, "nics": nics}});
        let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(100));
        ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
        let vm = until_ready(&bus).await;
        let own = format!("{}/{}", vm.nics[0].ipv4, vm.nics[0].prefix_len);
        assert!(!says(&bus, "cat /proc/cmdline").await.contains("ip="));
        has(&bus, &own).await;
        pings(&bus, &vm).await;

        // It is looked at, and what is so stays so.
        let seen = network(world, &[]).await;
        assert!(!seen.changed && seen.before == seen.after, "{seen:?}");
        assert_eq!(seen.after.addresses, [own.as_str()]);
        assert_eq!(seen.after.gateway.as_deref(), Some(vm.nics[0].gateway.as_str()));
        let same = network(world, &["--address", &own, "--gateway", &vm.nics[0].gateway]).await;
        assert!(!same.changed, "{same:?}");
        let route = format!("10.200.0.0/16={}", vm.nics[0].gateway);
        let more = ["--mtu", "1400", "--dns", "10.1.1.1", "--address", &own, "--address", "10.99.0.2/24"];
        let set = network(world, &[&more[..], &["--route", &route]].concat()).await;
        assert!(set.changed && set.before.mtu == 1450 && set.after.mtu == 1400, "{set:?}");
        assert_eq!((set.after.addresses.len(), set.after.routes.len()), (2, 1));
        assert_eq!(set.after.dns, ["10.1.1.1"]);
        assert_eq!(
            says(&bus, "cat /etc/resolv.conf; cat /sys/class/net/eth0/mtu").await,
            "nameserver 10.1.1.1\n1400"
        );
        let less = network(world, &["--address", &own, "--mtu", "1450"]).await;
        assert_eq!((less.after.addresses.len(), less.after.mtu), (1, 1450));
        pings(&bus, &vm).await;
        let refusal =
            bus.ask("vm.web.guest.network", &json!({"mac": "02:00:00:00:00:01"})).id(RequestId::generate());
        let _: ErrorBody = refusal.refused(ErrorCode::NotFound).await;
        let wrong = json!({"mac": vm.nics[0].mac, "gateway": "203.0.113.1"});
        let refusal = bus.ask("vm.web.guest.network", &wrong).id(RequestId::generate());
        let _: ErrorBody = refusal.refused(ErrorCode::GuestError).await;

        // Whoever takes it away: another daemon sets it again, and nothing of it lies in the guest.
        says(&bus, "ip addr flush dev eth0").await;
        world.kill().await;
        world.start();
        world.ready().await;
        until_ready(&bus).await;
        has(&bus, &own).await;
        pings(&bus, &vm).await;
        let _: Value = json!(bus.change("web", "reboot").await.unwrap());
        has(&bus, &own).await;

        // The owner of the guest may keep the network for itself.
        let policy =
            "mkdir -p /etc/drover-agent && echo exec > /etc/drover-agent/policy && ip addr flush dev eth0";
        says(&bus, policy).await;
        let look = json!({"mac": vm.nics[0].mac});
        let denied = bus.ask("vm.web.guest.network", &look).id(RequestId::generate());
        let denied: ErrorBody = denied.refused(ErrorCode::PermissionDenied).await;
        assert_eq!(denied.details["policy"], "guest");
        world.kill().await;
        world.start();
        world.ready().await;
        until_ready(&bus).await;
        until_within(WORK, "the refusal is told", async || {
            world.told().contains("the guest's network is not set over the link").then_some(())
        })
        .await;
        assert_eq!(says(&bus, "ip -4 -o addr show dev eth0").await, "");
        bus.change("web", "delete").await.unwrap();
    });
}
