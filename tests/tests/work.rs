//! Work that a guest does for its host, in guests with kernels of their own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use drover_schemas::body::guest::{ClockChange, ClockReply, Empty, ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::guest::{
    FreezeResult, FreezeState, FrozenResult, IdentityPart, IdentityResult, OnlineResult, PartOutcome,
    PartResult, RunInfo, RunsResult, ThawResult, ThawedBy, TrimResult,
};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use drover_tests::client::Bus;
use drover_tests::clients;
use drover_tests::wait::{pass, until_within};
use drover_tests::world::{Options, URL, World, run};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(120);

fn emulated() -> Options {
    Options { guest: "qemu", budget: Duration::from_secs(900), ..Options::default() }
}

/// A guest with a disk of its own beside the system in its memory.
async fn boot(bus: &Bus, name: &str, more: Value) -> VmStatus {
    let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
    let mut spec =
        json!({"template": "linux-microvm", "agent": agent, "disks": [{"image": "drover-rootfs"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let ask = bus.ask("vm.create", &json!({"name": name, "spec": spec})).id(RequestId::generate());
    let created = ask.within(Duration::from_secs(100)).get::<ChangeReply>().await;
    created.unwrap_or_else(|e| panic!("create {name}: {e}"));
    until_within(BOOT, &format!("the agent of {name}"), async || {
        bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

/// The guest `web`, and how it is asked.
struct Guest(Bus);

impl Guest {
    async fn exec(&self, script: &str) -> ExecResult {
        let body = json!({"argv": ["sh", "-c", script]});
        match self.0.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
            ExecReply::Result(result) => result,
            _ => panic!("neither a stream nor a run was asked for"),
        }
    }

    /// What a script prints that must succeed.
    async fn sh(&self, script: &str) -> String {
        let done = self.exec(script).await;
        let text = |blob: Option<drover_schemas::blob::Blob>| {
            String::from_utf8_lossy(blob.unwrap_or_default().as_slice()).trim_end().to_owned()
        };
        assert_eq!(done.exit_code, Some(0), "{script}: {done:?}");
        text(done.stdout)
    }

    async fn detach(&self, script: &str) -> RequestId {
        let body = json!({"argv": ["sh", "-c", script], "detach": true});
        match self.0.ask("vm.web.guest.exec", &body).id(RequestId::generate()).get().await.unwrap() {
            ExecReply::Run(run) => run.run,
            _ => panic!("a run was asked for"),
        }
    }

    async fn run(&self, run: RequestId) -> Option<RunInfo> {
        let ask = self.0.ask("vm.web.guest.runs", &json!({"run": run})).within(Duration::from_secs(5));
        ask.get::<RunsResult>().await.ok()?.runs.pop()
    }

    /// The agent may be killed by it before it can answer.
    async fn signal(&self, run: RequestId, signal: Signal) {
        let body = json!({"run": run, "signal": signal as i32});
        let ask = self.0.ask("vm.web.guest.kill", &body).id(RequestId::generate());
        let _ = ask.get::<Empty>().await;
    }

    async fn change<R: DeserializeOwned>(&self, verb: &str, body: Value) -> R {
        let ask = self.0.ask(&format!("vm.web.guest.{verb}"), &body).id(RequestId::generate());
        ask.get().await.unwrap_or_else(|e| panic!("{verb}: {e}"))
    }

    async fn refused(&self, verb: &str, body: Value, code: ErrorCode) -> ErrorBody {
        let ask = self.0.ask(&format!("vm.web.guest.{verb}"), &body).id(RequestId::generate());
        ask.refused(code).await
    }

    /// What is frozen, once it is so.
    async fn until_frozen(&self, what: &str, look: impl Fn(&FrozenResult) -> bool) -> FrozenResult {
        until_within(WORK, what, async || {
            let ask = self.0.ask("vm.web.guest.frozen", &json!({})).within(Duration::from_secs(5));
            ask.get::<FrozenResult>().await.ok().filter(&look)
        })
        .await
    }
}

async fn json<R: DeserializeOwned>(world: &World, args: &[&str]) -> R {
    let text = world.printed(&[&["-o", "json"], args].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// Writes to the disk and tells of it where no disk is: one byte each.
const WRITER: &str = "while :; do echo line >> /mnt/written; printf .; usleep 10000; done";
/// Kills by signal, as no command can be started while something is frozen: the agent, what keeps the disk frozen,
/// or both.
const KILLER: &str = "agent=$1; freezer() { ps -o pid,args | awk '/[e]xe --freeze/ { print $1 }'; }
    trap 'kill -9 $agent' USR1; trap 'kill -9 $(freezer)' USR2; trap 'kill -9 $agent $(freezer)' HUP
    while :; do usleep 20000; done";
/// The agent, and no process that it made of itself.
const AGENT: &str =
    r#"ps -o pid,comm,args | awk '$2 == "drover-agent" && $3 == "/sbin/drover-agent" { print $1 }'"#;

#[test]
fn a_disk_stands_still_while_it_is_frozen_and_goes_on_whoever_dies() {
    let test = "a_disk_stands_still_while_it_is_frozen_and_goes_on_whoever_dies";
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        boot(&bus, "web", json!({})).await;
        let guest = Guest(bus.clone());
        guest.sh("mount /dev/vda /mnt && mkdir -p /etc/drover-agent/freeze.d").await;
        let hook = "#!/bin/sh\\necho $1 >> /tmp/told\\n";
        guest
            .sh(&format!("cd /etc/drover-agent/freeze.d && printf '{hook}' > 10-note && chmod 755 10-note"))
            .await;
        let writer = guest.detach(WRITER).await;
        let written = async || guest.run(writer).await.unwrap().stdout.end;
        let goes_on = async |what: &str| {
            let from = until_within(WORK, what, async || guest.run(writer).await).await.stdout.end;
            // More than the one that was on its way when the disk stood still.
            until_within(WORK, what, async || {
                guest.run(writer).await.filter(|run| run.stdout.end > from + 2)
            })
            .await;
        };
        goes_on("the writer begins").await;

        // Asked for and ended by the command line.
        let freeze = ["vm", "guest", "freeze", "web", "--timeout", "300", "--mount", "/mnt"];
        let frozen: FreezeResult = json(world, &freeze).await;
        assert_eq!(frozen.frozen.len(), 1);
        assert_eq!((frozen.frozen[0].mount.as_str(), frozen.frozen[0].fs_type.as_str()), ("/mnt", "ext4"));
        assert_eq!(
            (frozen.frozen[0].device.as_str(), frozen.hooks.as_slice()),
            ("/dev/vda", &["10-note".to_owned()][..])
        );
        assert!((200_000..=300_000).contains(&frozen.thaws_in_ms), "{frozen:?}");
        let before = written().await;
        pass(Duration::from_secs(2)).await;
        let after = written().await;
        assert!(after <= before + 1, "the writer wrote {} times to a frozen disk", after - before);
        let status = world.printed(&["vm", "guest", "frozen", "web"]).await;
        assert!(status.starts_with("frozen for ") && status.contains("/mnt"), "{status}");
        // What may write is refused at once, and so is a second freeze; what reads is not.
        for (verb, body) in [
            ("exec", json!({"argv": ["true"]})),
            ("rm", json!({"path": "/mnt/written"})),
            ("mkdir", json!({"path": "/mnt/new"})),
        ] {
            let error = guest.refused(verb, body, ErrorCode::Busy).await;
            assert_eq!(error.details["cause"], "frozen", "{error:?}");
            assert!(error.details.contains_key("thaws_in_ms"), "{error:?}");
        }
        let error = guest.refused("freeze", json!({}), ErrorCode::Conflict).await;
        assert_eq!(error.details["cause"], "frozen");
        world.printed(&["vm", "file", "ls", "web:/mnt"]).await;
        let thawed: ThawResult = json(world, &["vm", "guest", "thaw", "web"]).await;
        assert_eq!((thawed.thawed.as_slice(), thawed.by), (&["/mnt".to_owned()][..], ThawedBy::Request));
        assert!(thawed.frozen_ms >= 2000 && thawed.failed.is_empty() && thawed.hooks_failed.is_empty());
        goes_on("the writer goes on").await;
        let error = guest.refused("thaw", json!({}), ErrorCode::Conflict).await;
        assert_eq!(error.details["cause"], "not_frozen");
        assert_eq!(guest.sh("cat /tmp/told").await, "freeze\nthaw");

        // Nobody asks for the thaw.
        guest.change::<FreezeResult>("freeze", json!({"timeout_ms": 1500})).await;
        let now = guest.until_frozen("its time is over", |now| now.state == FreezeState::Thawed).await;
        let last = now.last.unwrap();
        assert_eq!(last.by, ThawedBy::Deadline);
        assert!((1000..30_000).contains(&last.frozen_ms), "{last:?}");
        let error = guest.refused("thaw", json!({}), ErrorCode::Conflict).await;
        assert!(error.message.contains("may be torn"), "{error:?}");
        goes_on("the writer goes on by itself").await;

        // Nor can they: the daemon is killed.
        guest.change::<FreezeResult>("freeze", json!({"timeout_ms": 4000})).await;
        world.kill().await;
        world.start();
        world.ready().await;
        let now =
            guest.until_frozen("thawed without the daemon", |now| now.state == FreezeState::Thawed).await;
        assert_eq!(now.last.unwrap().by, ThawedBy::Deadline);
        goes_on("the writer goes on without the daemon").await;

        // The agent is killed, then what keeps the disk frozen, then both at once. Of minutes that were left none is
        // needed.
        for (signal, by) in
            [(Signal::SIGUSR1, None), (Signal::SIGUSR2, Some(ThawedBy::KeeperLost)), (Signal::SIGHUP, None)]
        {
            let agent = guest.sh(AGENT).await;
            assert!(agent.parse::<u32>().is_ok(), "{agent:?}");
            let killer = guest.detach(&KILLER.replacen("$1", &agent, 1)).await;
            let frozen: FreezeResult = guest.change("freeze", json!({"timeout_ms": 300_000})).await;
            assert_eq!(frozen.frozen.len(), 1);
            guest.signal(killer, signal).await;
            let is_over = |now: &FrozenResult| {
                now.state == FreezeState::Thawed && now.last.as_ref().map(|last| last.by) == by
            };
            guest.until_frozen(&format!("thawed after signal {signal}"), is_over).await;
            goes_on("the writer goes on").await;
            guest.signal(killer, Signal::SIGKILL).await;
        }

        // What cannot be is said.
        let error = guest.refused("freeze", json!({"mounts": ["/nowhere"]}), ErrorCode::NotFound).await;
        assert!(error.message.contains("/nowhere"), "{error:?}");
        guest.refused("freeze", json!({"mounts": ["/proc"]}), ErrorCode::InvalidArgument).await;
        guest.refused("freeze", json!({"timeout_ms": 300_001}), ErrorCode::InvalidArgument).await;
        guest.sh("echo 'exit 3' >> /etc/drover-agent/freeze.d/10-note").await;
        let error = guest.refused("freeze", json!({}), ErrorCode::GuestError).await;
        assert_eq!(error.details["hook"], "10-note");
        guest.sh("chmod 777 /etc/drover-agent/freeze.d/10-note").await;
        guest.refused("freeze", json!({}), ErrorCode::PermissionDenied).await;
        guest.sh("rm /etc/drover-agent/freeze.d/10-note").await;

        // A guest that is switched off goes on first.
        guest.change::<FreezeResult>("freeze", json!({"timeout_ms": 300_000})).await;
        let Empty {} = guest.change("shutdown", json!({})).await;
        until_within(WORK, "the guest is off", async || {
            bus.status("web").await.ok().filter(|vm| vm.vmm_pid.is_none())
        })
        .await;
        bus.change("web", "delete").await.unwrap();
    });
}

/// What a clock is off by at most that was set a moment ago, in software emulation on a busy machine.
const RIGHT_US: u64 = 30_000_000;
const HOUR_US: i64 = 3_600_000_000;

fn part(done: &IdentityResult, part: IdentityPart) -> &PartResult {
    done.parts.iter().find(|result| result.part == part).unwrap()
}

/// A block of memory is taken away as a host does it that wants memory back, and brought into use again: the way that
/// memory takes which was added to a guest.
async fn memory_that_was_taken_away_comes_back(world: &World, guest: &Guest) {
    let total = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";
    let whole: u64 = guest.sh(total).await.parse().unwrap();
    let take = "cd /sys/devices/system/memory; for block in $(ls -d memory[0-9]* | sort -rV); do
        echo offline > $block/state 2> /dev/null && echo $block && exit; done; exit 1";
    let block = guest.sh(take).await;
    let state = format!("cat /sys/devices/system/memory/{block}/state");
    assert_eq!(guest.sh(&state).await, "offline");
    let size = guest.sh("cat /sys/devices/system/memory/block_size_bytes").await;
    let size = u64::from_str_radix(&size, 16).unwrap();
    let less: u64 = guest.sh(total).await.parse().unwrap();
    assert_eq!((whole - less) << 10, size, "{block}");
    let online: OnlineResult = json(world, &["vm", "guest", "online", "web"]).await;
    assert_eq!((online.memory_added_bytes, online.failed.as_slice()), (size, &[][..]), "{online:?}");
    assert_eq!(guest.sh(&state).await, "online");
    assert_eq!(guest.sh(total).await.parse::<u64>().unwrap(), whole);
    let again: OnlineResult = guest.change("online", json!({})).await;
    assert_eq!((again.memory_bytes, again.memory_added_bytes), (online.memory_bytes, 0));
    println!("{block} of {} MiB was away, {} MiB are there", size >> 20, again.memory_bytes >> 20);
}

#[test]
fn a_guest_sets_its_clock_brings_up_what_it_has_and_becomes_another() {
    let test = "a_guest_sets_its_clock_brings_up_what_it_has_and_becomes_another";
    run(test, emulated(), async |world| {
        let bus = world.bus.clone();
        // Memory that can be taken away from a kernel that runs is set apart at its boot.
        let boots = json!({"cmdline": "console=ttyS0 panic=-1 quiet loglevel=4 movablecore=256M"});
        boot(&bus, "web", json!({"cpus": 2, "memory": "768MiB", "boot": boots})).await;
        let guest = Guest(bus.clone());

        // An hour late: it is told, and stays so until somebody sets it.
        let late = "date -s @$(($(date +%s) - 3600)) > /dev/null";
        guest.sh(late).await;
        for _ in 0..2 {
            let clock: ClockReply = json(world, &["vm", "guest", "clock", "web"]).await;
            assert_eq!(clock.change, ClockChange::None);
            assert!((clock.ahead_us + HOUR_US).unsigned_abs() < RIGHT_US, "{clock:?}");
        }
        let clock: ClockReply = json(world, &["vm", "guest", "clock", "web", "--set"]).await;
        assert_eq!(clock.change, ClockChange::Stepped);
        let is_right = async || {
            let ask = bus.ask("vm.web.guest.clock", &json!({})).id(RequestId::generate());
            let clock = ask.within(Duration::from_secs(5)).get::<ClockReply>().await.ok()?;
            (clock.ahead_us.unsigned_abs() < RIGHT_US).then_some(clock)
        };
        assert!(is_right().await.is_some(), "the clock is still off");

        // After a resume it is right by itself.
        guest.sh(late).await;
        assert!(is_right().await.is_none(), "the clock cannot be made wrong");
        bus.change("web", "pause").await.unwrap();
        bus.change("web", "resume").await.unwrap();
        until_within(WORK, "the clock is right after the resume", is_right).await;

        guest.sh("echo 0 > /sys/devices/system/cpu/cpu1/online").await;
        let online: OnlineResult = json(world, &["vm", "guest", "online", "web"]).await;
        assert_eq!((online.cpus, online.cpus_added.as_slice()), (2, &[1][..]), "{online:?}");
        assert!(online.memory_bytes > 0 && online.failed.is_empty(), "{online:?}");
        assert_eq!(guest.sh("nproc").await, "2");
        let online: OnlineResult = guest.change("online", json!({})).await;
        assert_eq!((online.cpus, online.cpus_added.len()), (2, 0), "{online:?}");

        memory_that_was_taken_away_comes_back(world, &guest).await;

        guest.sh("mount /dev/vda /mnt").await;
        let trimmed: TrimResult = json(world, &["vm", "guest", "trim", "web", "--mount", "/mnt"]).await;
        assert_eq!((trimmed.trimmed.len(), trimmed.skipped.len()), (1, 0), "{trimmed:?}");
        assert!(
            trimmed.trimmed[0].mount == "/mnt" && trimmed.trimmed[0].trimmed_bytes > 1 << 20,
            "{trimmed:?}"
        );
        let error = guest.refused("trim", json!({"mounts": ["/nowhere"]}), ErrorCode::NotFound).await;
        assert!(error.message.contains("/nowhere"), "{error:?}");

        guest.refused("identity", json!({"hostname": "a b"}), ErrorCode::InvalidArgument).await;
        guest
            .sh("mkdir -p /var/lib/dhcp && touch /var/lib/dhcp/eth0.leases && echo old > /etc/machine-id")
            .await;
        let identity = ["vm", "guest", "identity", "web", "--hostname", "twin", "--keep", "machine-id"];
        let done: IdentityResult = json(world, &identity).await;
        assert_eq!(part(&done, IdentityPart::MachineId).outcome, PartOutcome::Kept);
        assert_eq!(guest.sh("cat /etc/machine-id; hostname; cat /etc/hostname").await, "old\ntwin\ntwin");
        for done in
            [IdentityPart::Rng, IdentityPart::Hostname, IdentityPart::Dhcp].map(|name| part(&done, name))
        {
            assert_eq!(done.outcome, PartOutcome::Done, "{done:?}");
        }
        assert_eq!(guest.sh("ls /var/lib/dhcp").await, "");
        // Once for each request, however often that is sent.
        let id = RequestId::generate();
        let again = async || {
            bus.ask("vm.web.guest.identity", &json!({})).id(id).get::<IdentityResult>().await.unwrap()
        };
        let first = again().await;
        assert_eq!(again().await, first);
        let machine = part(&first, IdentityPart::MachineId);
        assert_eq!((machine.outcome, machine.detail.len()), (PartOutcome::Done, 32));
        assert_eq!(guest.sh("cat /etc/machine-id").await, machine.detail);

        // A part that fails is told with the others, which are done all the same; so is the end of the command.
        guest.sh("mkdir -p /etc/ssh && echo twin > /etc/ssh/ssh_host_ed25519_key").await;
        let third = ["-o", "json", "vm", "guest", "identity", "web", "--hostname", "third"];
        let failed = world.drover(&third).await;
        assert_eq!(failed.status.code(), Some(6), "{failed:?}");
        let error: ErrorBody = serde_json::from_slice(&failed.stderr).unwrap();
        assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::GuestError, "partial"));
        assert!(error.details["ssh_host_keys"].starts_with("failed: there are host keys"), "{error:?}");
        assert_eq!((error.details["rng"].as_str(), error.details["hostname"].as_str()), ("done", "done"));
        assert_eq!(guest.sh("hostname; cat /etc/ssh/ssh_host_ed25519_key").await, "third\ntwin");
        guest.sh("rm -r /etc/ssh").await;

        let env = [("DROVER_URL", URL.to_owned()), ("DROVER_VM", "web".to_owned())];
        clients::passes("python3", &["-W", "ignore", "test_work.py"], "python", &env, WORK).await;
        bus.change("web", "delete").await.unwrap();
    });
}

#[test]
fn a_guest_of_processes_says_what_it_cannot_do() {
    run("a_guest_of_processes_says_what_it_cannot_do", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let guest = Guest(bus);
        for verb in ["freeze", "thaw", "clock", "online", "trim", "identity"] {
            let error = guest.refused(verb, json!({}), ErrorCode::Unsupported).await;
            assert!(error.message.contains("made of processes"), "{error:?}");
        }
        let now: FrozenResult = guest.0.ask("vm.web.guest.frozen", &json!({})).get().await.unwrap();
        assert_eq!(now, FrozenResult::default());
    });
}
