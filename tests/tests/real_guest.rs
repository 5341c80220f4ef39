//! Real kernels in QEMU's software emulation: slow, and as real as it gets without KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::vm::ExplainReply;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::guest::{boot, sh};
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use drover_tests::{events, leak};
use futures_util::future::join_all;
use serde_json::{Value, json};

fn emulated() -> Options {
    Options { guest: "qemu", budget: Duration::from_secs(600), ..Options::default() }
}

async fn exec(bus: &Bus, name: &str, argv: &[&str]) -> ExecResult {
    match bus.ask(&format!("vm.{name}.guest.exec"), &json!({"argv": argv})).get().await.unwrap() {
        ExecReply::Result(result) => result,
        _ => panic!("nobody asked for a stream"),
    }
}

#[test]
fn a_real_guest_runs_commands_is_on_the_network_and_takes_files() {
    run("a_real_guest_runs_commands_is_on_the_network_and_takes_files", emulated(), async |world| {
        let bus = world.bus.clone();
        let spec = json!({"cpus": 2, "cpu_topology": {"packages": 2}, "nics": [{"queues": 2}]});
        let vm = boot(&bus, "web", spec).await;
        let system = exec(&bus, "web", &["uname", "-sm"]).await.stdout.unwrap();
        assert_eq!(system.as_slice(), b"Linux x86_64\n");
        // It sees its CPUs as the spec lays them out; left alone they are cores of one socket here.
        let sockets = sh(&bus, "web", "grep 'physical id' /proc/cpuinfo | sort -u | wc -l").await;
        assert_eq!(sockets, "2");
        let nic = &vm.nics[0];
        let ping = Command::new("ping").args(["-c", "1", "-W", "20", &nic.ipv4]).output().unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
        let ping = exec(&bus, "web", &["ping", "-c", "1", "-W", "20", &nic.gateway]).await;
        assert_eq!(ping.exit_code, Some(0), "{ping:?}");

        // Its interface has two pairs of queues, and packets come by both.
        let queues = sh(&bus, "web", "ls /sys/class/net/eth0/queues | sort | xargs").await;
        assert_eq!(queues, "rx-0 rx-1 tx-0 tx-1");
        until("packets come by each of its queues", async || {
            for _ in 0..16 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"?", (nic.ipv4.as_str(), 9)).unwrap();
            }
            let came = "awk '/virtio[0-9]*-input.[01]$/ {for (n = i = 0; i < 2; i++) n += $(2 + i); print (n > 0)}' \
                        /proc/interrupts | xargs";
            (sh(&bus, "web", came).await == "1 1").then_some(())
        })
        .await;

        let (there, back) = (world.path("there"), world.path("back"));
        let bytes: Vec<u8> =
            (0..8_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        std::fs::write(&there, &bytes).unwrap();
        for (from, to) in [(there.to_str().unwrap(), "web:/tmp/f"), ("web:/tmp/f", back.to_str().unwrap())] {
            let done = world.drover(&["vm", "cp", from, to]).await;
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        assert!(std::fs::read(&back).unwrap() == bytes, "the file came back as it went");

        bus.change("web", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &vm), Vec::<String>::new());
        events::log(&bus).await;
    });
}

#[test]
fn ten_real_guests_at_once_get_ready() {
    run("ten_real_guests_at_once_get_ready", emulated(), async |world| {
        let bus = world.bus.clone();
        let names: Vec<String> = (0..10).map(|n| format!("q{n}")).collect();
        let vms = join_all(names.iter().map(|name| boot(&bus, name, json!({})))).await;
        let addresses: std::collections::HashSet<&str> =
            vms.iter().map(|vm| vm.nics[0].ipv4.as_str()).collect();
        assert_eq!(addresses.len(), vms.len());
        join_all(names.iter().map(async |name| bus.change(name, "delete").await.unwrap())).await;
        for vm in &vms {
            assert_eq!(leak::anything(world, vm), Vec::<String>::new());
        }
        events::log(&bus).await;
    });
}

#[test]
fn a_guest_may_run_vms_only_where_its_spec_and_the_host_say_so() {
    let test = "a_guest_may_run_vms_only_where_its_spec_and_the_host_say_so";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        let nested = json!({"security": {"nested": true}});
        let ask = bus.ask("vm.create", &json!({"name": "nested", "spec": nested})).id(RequestId::generate());
        let error = ask.refused(ErrorCode::Unsupported).await;
        let details = (error.details["field"].as_str(), error.details["missing"].as_str());
        assert_eq!(details, ("spec.security.nested", "vmm.nested"), "{error:?}");

        world.kill().await;
        world.configure_with(|config| config["vmm"]["nested"] = json!(true));
        world.start();
        world.ready().await;
        boot(&bus, "plain", json!({})).await;
        boot(&bus, "nested", nested).await;
        for (name, given) in [("nested", true), ("plain", false)] {
            let told: ExplainReply = bus.ask(&format!("vm.{name}.explain"), &json!({})).get().await.unwrap();
            let config: Value = serde_json::from_str(&told.vmm_config).unwrap();
            let cpus = &config["cpus"];
            assert_eq!((&cpus["nested"], &cpus["core_scheduling"]), (&json!(given), &json!("Vm")), "{name}");
        }

        // Where the operator thinks better of it, a start says so; what runs is left alone.
        world.kill().await;
        world.configure_with(|config| config["vmm"]["nested"] = json!(false));
        world.start();
        world.ready().await;
        assert_eq!(sh(&bus, "nested", "echo here").await, "here");
        bus.change_with("nested", "stop", json!({"force": true})).await.unwrap();
        let started = bus.change_with("nested", "start", json!({"wait": "running"})).await;
        let text = format!("{started:?}");
        assert!(started.is_err() && text.contains("vmm.nested"), "{text}");
        for name in ["plain", "nested"] {
            bus.change(name, "delete").await.unwrap();
        }
        events::log(&bus).await;
    });
}

#[test]
fn memory_of_huge_pages_is_refused_where_there_are_none() {
    let test = "memory_of_huge_pages_is_refused_where_there_are_none";
    let reserved = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages");
    if reserved.is_ok_and(|pages| pages.trim() != "0") {
        return println!("SKIP {test}: this machine has pages of 1 GiB reserved");
    }
    run(test, Options::default(), async |world| {
        let bus = &world.bus;
        let ask = async |spec: Value, code| {
            let body = json!({"name": "web", "spec": spec});
            bus.ask("vm.create", &body).id(RequestId::generate()).refused(code).await
        };
        let large = json!({"hugepages": "1GiB", "memory": "1GiB"});
        let error = ask(large, ErrorCode::ResourceExhausted).await;
        assert_eq!((&*error.details["resource"], &*error.details["free"]), ("hugepages", "0"), "{error:?}");
        // That the two do not go together is said before that.
        let error = ask(json!({"hugepages": "1GiB", "memory": "1536MiB"}), ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.hugepages");
        let error =
            ask(json!({"cpus": 3, "cpu_topology": {"cores_per_die": 2}}), ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.cpu_topology");
        let error = ask(json!({"cpus": 2, "nics": [{"queues": 3}]}), ErrorCode::InvalidArgument).await;
        assert_eq!(error.details["field"], "spec.nics[0].queues");
    });
}

/// Pages of 2 MiB that the machine has in reserve for as long as this lives.
struct Reserved(u64);

impl Reserved {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

    fn number(of: &str) -> Option<u64> {
        std::fs::read_to_string(format!("{}/{of}", Self::POOL)).ok()?.trim().parse().ok()
    }

    fn set(pages: u64) {
        let _ = std::fs::write(format!("{}/nr_hugepages", Self::POOL), pages.to_string());
    }

    /// So many more than there are, if the machine has the room.
    fn more(pages: u64) -> Option<Self> {
        let reserved = Self(Self::number("nr_hugepages")?);
        Self::set(reserved.0 + pages);
        (Self::number("nr_hugepages")? == reserved.0 + pages).then_some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

#[test]
fn a_guest_lies_on_huge_pages_where_there_are_some() {
    let test = "a_guest_lies_on_huge_pages_where_there_are_some";
    let Some(_reserved) = Reserved::more(72) else {
        return println!("SKIP {test}: this machine cannot keep 144 MiB in pages of 2 MiB");
    };
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        let free = || Reserved::number("free_hugepages").unwrap();
        let before = free();
        boot(&bus, "web", json!({"hugepages": "2MiB", "memory": "128MiB"})).await;
        assert_eq!(sh(&bus, "web", "echo here").await, "here");
        // A guest of 128 MiB that has booted has touched some of them, and all that it touches is of them.
        assert!((before - 64..before - 16).contains(&free()), "{before} pages before, {} now", free());
        bus.change("web", "delete").await.unwrap();
        until("the pages are back", async || (free() == before).then_some(())).await;
        events::log(&bus).await;
    });
}
