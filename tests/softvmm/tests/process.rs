//! The guest of processes, through the real binary.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;

use common::{LIMIT, Tap, Vmm, call, gone, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn a_vm_lives_from_create_to_delete() {
    let mut vmm = Vmm::process();
    let ping = vmm.call("GET", "vmm.ping", None).1;
    assert_eq!(ping["pid"], vmm.child.id());
    assert_eq!(ping["build_version"], "v53.0.0-softvmm");
    vmm.create_and_boot();
    assert_eq!(vmm.state(), "Running");
    let mut guest = vmm.dial(1023);
    assert_eq!(guest.ask("hello"), "hello");
    let pids = guest.ask("pids");
    assert!(pids.starts_with("1 ") && pids.split(' ').count() < 6, "a pid namespace of its own: {pids}");
    assert!(guest.ask("env").contains("DROVER_AGENT_GUEST=process"));
    assert!(vmm.dial_once(77).is_none(), "nobody listens there");
    assert!(vmm.call("GET", "vm.counters", None).1["disk0"]["read_bytes"].is_number());
    let helpers = vmm.helpers();
    assert_eq!(helpers.len(), 1);
    vmm.put("vm.shutdown");
    assert_eq!(vmm.state(), "Created");
    assert!(helpers.into_iter().all(gone));
    assert!(!vmm.path("v").exists() && !vmm.path("serial").exists());
    vmm.put("vm.delete");
    assert_eq!(vmm.call("GET", "vm.info", None).0, 404);
    assert_eq!(vmm.call("PUT", "vmm.shutdown", None).0, 200);
    assert_eq!(vmm.wait_exit().code(), Some(0));
    let left = |name: &str| vmm.path(name).exists();
    assert!(left("api.lock") && left("events") && !left("api"));
    let lived: Vec<_> = vmm.events().into_iter().filter(|e| !e.starts_with("virtio")).collect();
    assert_eq!(
        lived,
        ["vmm starting", "vm booting", "vm booted", "vm shutdown", "vm deleted", "vmm shutdown"]
    );
}

#[test]
fn a_guest_that_powers_off_leaves_a_created_vm_that_boots_again_with_another_boot_id() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    let mut guest = vmm.dial(1023);
    let first = guest.ask("env");
    guest.tell("poweroff");
    vmm.wait_event("vm shutdown", 1);
    assert_eq!(vmm.state(), "Created");
    assert!(vmm.events().contains(&"virtio-device reset".to_owned()));
    assert!(vmm.helpers().is_empty());
    vmm.put("vm.boot");
    assert_ne!(vmm.dial(1023).ask("env"), first);
}

#[test]
fn a_guest_that_reboots_keeps_the_vmm_and_gets_new_sockets() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    let mut guest = vmm.dial(1023);
    let first = guest.ask("env");
    guest.tell("reboot");
    vmm.wait_event("vm rebooted", 1);
    assert_eq!(vmm.state(), "Running");
    assert_ne!(vmm.dial(1023).ask("env"), first);
    vmm.put("vm.reboot");
    vmm.wait_event("vm rebooted", 2);
    assert_eq!(vmm.dial(1023).ask("again"), "again");
}

#[test]
fn the_power_button_powers_the_guest_off() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    vmm.dial(1023);
    vmm.put("vm.power-button");
    vmm.wait_event("vm shutdown", 1);
}

#[test]
fn a_paused_guest_does_not_answer_until_it_is_resumed() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    let mut guest = vmm.dial(1023);
    vmm.put("vm.pause");
    assert_eq!(vmm.state(), "Paused");
    let (status, chain) = vmm.call("PUT", "vm.pause", None);
    assert_eq!((status, chain[2].as_str()), (500, Some("Cannot pause VM")));
    guest.tell("late");
    assert!(vmm.dial_once(1023).is_none(), "nobody is there to accept");
    vmm.put("vm.resume");
    assert_eq!(guest.ask("next"), "late", "what was said meanwhile was kept");
    assert_eq!(vmm.dial(1023).ask("again"), "again");
}

#[test]
fn the_serial_socket_keeps_output_for_late_clients_and_has_one_at_a_time() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    vmm.dial(1023);
    let mut first = UnixStream::connect(vmm.path("serial")).expect("connect");
    first.set_read_timeout(Some(LIMIT)).expect("timeout");
    let mut said = [0; 8];
    first.read_exact(&mut said).expect("kept output");
    assert_eq!(&said, b"softvmm:");
    let _second = UnixStream::connect(vmm.path("serial")).expect("connect");
    until(LIMIT, "the first is shown out", || match first.read(&mut [0; 4096]) {
        Ok(0) => Some(()),
        Ok(_) => None,
        Err(error) => (error.kind() == std::io::ErrorKind::ConnectionReset).then_some(()),
    });
}

#[test]
fn an_agent_that_crashes_is_started_again() {
    let vmm = Vmm::process();
    vmm.create_and_boot();
    let mut guest = vmm.dial(1023);
    guest.tell("crash");
    guest.wait_end();
    assert_eq!(vmm.dial(1023).ask("back"), "back");
}

#[test]
fn sigterm_ends_everything_with_status_zero() {
    let mut vmm = Vmm::process();
    vmm.create_and_boot();
    vmm.dial(1023);
    let helpers = vmm.helpers();
    vmm.signal(Signal::SIGTERM);
    assert_eq!(vmm.wait_exit().code(), Some(0));
    assert!(helpers.into_iter().all(gone));
    assert!(!vmm.path("api").exists() && !vmm.path("v").exists());
}

#[test]
fn a_killed_vmm_takes_its_guest_with_it_and_leaves_its_sockets() {
    let mut vmm = Vmm::process();
    vmm.create_and_boot();
    vmm.dial(1023);
    let helpers = vmm.helpers();
    vmm.signal(Signal::SIGKILL);
    assert_eq!(vmm.wait_exit().signal(), Some(9));
    until(LIMIT, "the guest is gone", || helpers.iter().all(|p| gone(*p)).then_some(()));
    for name in ["api", "api.lock", "serial", "v"] {
        assert!(vmm.path(name).exists(), "{name}");
    }
}

#[test]
fn a_vmm_dies_as_its_guest_did() {
    let mut vmm = Vmm::process();
    vmm.create_and_boot();
    vmm.dial(1023);
    let guest = nix::unistd::Pid::from_raw(vmm.helpers()[0] as i32);
    nix::sys::signal::kill(guest, Signal::SIGKILL).expect("kill");
    assert_eq!(vmm.wait_exit().signal(), Some(9));
}

#[test]
fn stale_sockets_are_in_the_way_except_that_of_the_api() {
    let vmm = Vmm::process();
    drop(std::os::unix::net::UnixListener::bind(vmm.path("v")).expect("bind"));
    assert_eq!(vmm.call("PUT", "vm.create", Some(&vmm.config())).0, 204);
    let (status, chain) = vmm.call("PUT", "vm.boot", None);
    assert_eq!((status, chain[5].as_str()), (500, Some("Address already in use (os error 98)")));
}

#[test]
fn a_second_instance_is_kept_from_the_socket_of_the_first() {
    let vmm = Vmm::process();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_softvmm"));
    let second = command.arg("--api-socket").arg(vmm.path("api")).output().expect("run");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"));
    assert_eq!(vmm.call("GET", "vmm.ping", None).0, 200, "the first is not harmed");
}

#[test]
fn a_missing_agent_fails_the_boot_with_a_reason() {
    let vmm = Vmm::start(&[("SOFTVMM_GUEST", "process"), ("SOFTVMM_AGENT", "/nonexistent/agent")]);
    assert_eq!(vmm.call("PUT", "vm.create", Some(&vmm.config())).0, 204);
    let (status, chain) = vmm.call("PUT", "vm.boot", None);
    assert_eq!(status, 500);
    assert!(chain.to_string().contains("No such file"), "{chain}");
}

#[test]
fn faults_show_at_their_steps_and_can_be_changed_at_run_time() {
    let dir = tempfile::TempDir::new().expect("temp dir");
    let faults = dir.path().join("faults");
    std::fs::write(&faults, "500@create").expect("write");
    let file = faults.to_string_lossy().into_owned();
    let mut vmm = Vmm::start(&[("SOFTVMM_GUEST", "process"), ("SOFTVMM_MISBEHAVE_FILE", &file)]);
    assert_eq!(vmm.call("PUT", "vm.create", Some(&vmm.config())).0, 500);
    std::fs::write(&faults, "lose-events@booted,garbage@counters,500@pause.after").expect("write");
    vmm.create_and_boot();
    assert!(!vmm.events().contains(&"vm booted".to_owned()));
    let mut stream = UnixStream::connect(vmm.path("api")).expect("connect");
    assert!(call(&mut stream, "GET", "vm.counters", None).is_err(), "not HTTP");
    assert_eq!(vmm.call("PUT", "vm.pause", None).0, 500);
    assert_eq!(vmm.state(), "Paused", "it was done all the same");
    std::fs::write(&faults, "kill:SEGV@info").expect("write");
    let mut stream = UnixStream::connect(vmm.path("api")).expect("connect");
    assert!(call(&mut stream, "GET", "vm.info", None).is_err());
    assert_eq!(vmm.wait_exit().signal(), Some(11));
}

#[test]
fn a_vmm_may_vanish_in_the_middle_of_a_boot_with_status_zero() {
    let mut vmm = Vmm::start(&[("SOFTVMM_GUEST", "process"), ("SOFTVMM_MISBEHAVE", "exit0@boot.mid")]);
    assert_eq!(vmm.call("PUT", "vm.create", Some(&vmm.config())).0, 204);
    let mut stream = UnixStream::connect(vmm.path("api")).expect("connect");
    assert!(call(&mut stream, "PUT", "vm.boot", None).is_err());
    assert_eq!(vmm.wait_exit().code(), Some(0));
    assert!(vmm.path("v").exists(), "nothing was released");
}

#[test]
fn a_hanging_call_holds_up_the_next_one_and_sigterm() {
    let vmm = Vmm::start(&[("SOFTVMM_GUEST", "process"), ("SOFTVMM_MISBEHAVE", "hang@info")]);
    let mut hung = UnixStream::connect(vmm.path("api")).expect("connect");
    hung.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n").expect("write");
    let mut next = UnixStream::connect(vmm.path("api")).expect("connect");
    next.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("timeout");
    assert!(call(&mut next, "GET", "vmm.ping", None).is_err(), "one at a time");
}

#[test]
fn the_eleventh_connection_is_turned_away() {
    let vmm = Vmm::process();
    let open = || UnixStream::connect(vmm.path("api")).expect("connect");
    let served = |mut stream: UnixStream| {
        let answer = call(&mut stream, "GET", "vmm.ping", None);
        answer.is_ok_and(|(status, _)| status == 200).then_some(stream)
    };
    // The probe of the start may still hold a place for a moment.
    let ten: Vec<_> =
        until(LIMIT, "ten are served", || (0..10).map(|_| served(open())).collect::<Option<_>>());
    assert_eq!(ten.len(), 10);
    assert_eq!(softvmm::conformance::read_answer(&mut open()).expect("an answer").0, 503);
}

#[test]
fn a_tap_that_may_not_be_used_fails_the_boot_and_is_forgotten() {
    let vmm = Vmm::process();
    let mut config = vmm.config();
    config["net"] = json!([{"tap": "averylongnameforatap0", "mac": "2e:00:00:00:00:01"}]);
    assert_eq!(vmm.call("PUT", "vm.create", Some(&config)).0, 204);
    assert_eq!(vmm.call("PUT", "vm.boot", None).0, 500);
    assert_eq!(vmm.call("GET", "vm.info", None).1["config"]["net"], Value::Null);
}

#[test]
fn a_tap_has_a_carrier_while_the_guest_runs_and_counters() {
    let Some(tap) = Tap::make() else { return };
    let carrier = || std::fs::read_to_string(format!("/sys/class/net/{}/carrier", tap.0)).unwrap_or_default();
    assert_eq!(carrier().trim(), "0");
    let vmm = Vmm::process();
    let mut config = vmm.config();
    config["net"] = json!([{"tap": tap.0, "mac": "2e:00:00:00:00:01", "id": "net0"}]);
    assert_eq!(vmm.call("PUT", "vm.create", Some(&config)).0, 204);
    vmm.put("vm.boot");
    assert_eq!(carrier().trim(), "1");
    let counters = &vmm.call("GET", "vm.counters", None).1["net0"];
    assert!(["rx_bytes", "rx_frames", "tx_bytes", "tx_frames"].iter().all(|c| counters[c].is_number()));
    vmm.put("vm.reboot");
    assert_eq!(carrier().trim(), "1", "the name was free again");
    vmm.put("vm.shutdown");
    assert_eq!(carrier().trim(), "0");
}
