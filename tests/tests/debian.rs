//! The agent on Debian: under systemd, beside sshd, on a disk that was imported. A boot in software emulation takes
//! most of the time, so all of it is shown on one guest, a function for each part.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use drover_schemas::body::guest::{ClockChange, ClockReply, ExecReply, ExecResult};
use drover_schemas::body::image::ImageImportReply;
use drover_schemas::body::status::{AgentState, VmStatus};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::AgentEvent;
use drover_schemas::guest::{
    FreezeResult, IdentityPart, IdentityResult, InfoResult, PartOutcome, ProcessesResult, RunInfo, RunState,
    RunsResult, ThawResult,
};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId};
use drover_tests::client::Failure;
use drover_tests::digest::digest_of;
use drover_tests::tmux::Terminal;
use drover_tests::wait::until_within;
use drover_tests::world::{Options, URL, World, run};
use drover_tests::{clients, events, leak};
use serde_json::{Value, json};
use tokio::process::Command;

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);
/// For work of a guest in software emulation.
const WORK: Duration = Duration::from_secs(120);
const VM: &str = "deb";
/// `adjtimex(2)` on x86-64, and its mode that tells what is left of a correction: `ADJ_OFFSET_SS_READ`.
const SYS_ADJTIMEX: u32 = 159;
const SINGLESHOT_READ: u32 = 0xa001;
/// Sets the clock back by 20 ms: `clock_gettime(2)` and `clock_settime(2)` in one process, which take no time.
const LATE: &str = "perl -e '$time = pack(q(qq), 0, 0); syscall(228, 0, $time); ($s, $n) = unpack(q(qq), $time); \
    $n -= 20_000_000; if ($n < 0) { $n += 1_000_000_000; $s -= 1 } \
    syscall(227, 0, pack(q(qq), $s, $n)) < 0 and die qq($!)'";

/// The guest, as its user has it.
struct Guest<'a> {
    world: &'a World,
    vm: VmStatus,
}

#[test]
fn debian_is_used_through_its_agent() {
    let test = "debian_is_used_through_its_agent";
    let Some(folder) = std::env::var_os("DROVER_DEBIAN").map(PathBuf::from) else {
        return println!(
            "SKIP {test}: DROVER_DEBIAN is not set; tests/run.sh agent builds the disk and sets it"
        );
    };
    let options =
        Options { guest: "qemu", budget: Duration::from_secs(900), started: false, ..Options::default() };
    run(test, options, async move |world| {
        world.up_with(|config| config["images"] = json!({"import_dirs": [folder]})).await;
        let guest = Guest { vm: boot(world, &folder).await, world };
        guest.is_one_of_systemds_services().await;
        guest.runs_commands_as_its_users().await;
        guest.has_a_shell_in_a_terminal().await;
        guest.takes_and_gives_files_and_folders().await;
        guest.is_logged_in_to_with_keys_that_were_added_over_the_bus().await;
        let late = guest.has_its_clock_slewed().await;
        guest.becomes_another_than_its_twin().await;
        guest.has_its_disk_stand_still_for_a_copy().await;
        guest.tells_of_its_programs_and_of_services_that_fail().await;
        guest.says_what_it_is_and_what_runs().await;
        guest.does_what_its_owner_lets_the_host_do().await;
        guest.is_used_by_the_client_in_python().await;
        guest.has_its_clock_right_without_a_jump(late).await;
        guest.gets_another_agent_and_systemd_does_not_notice().await;
        guest.has_its_agent_back_when_it_is_killed().await;
        guest.gets_another_package_of_the_agent(&folder).await;
        guest.goes_down_in_order().await;
        world.bus.change(VM, "delete").await.unwrap();
        events::log(&world.bus).await;
    });
}

/// Imports the disk and boots it.
async fn boot(world: &World, folder: &std::path::Path) -> VmStatus {
    let bus = &world.bus;
    let began = Instant::now();
    let image = json!({"name": "drover-debian", "kind": "disk", "path": folder.join("debian.raw")});
    let import = bus.ask("drover.v1.host.h1.image.import", &image).within(Duration::from_secs(90));
    let imported: ImageImportReply = import.get().await.unwrap();
    println!("{} MiB imported in {:?}", imported.image.size_bytes >> 20, began.elapsed());
    let began = Instant::now();
    let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
    let body = json!({"name": VM, "spec": {"template": "linux-debian", "agent": agent}});
    let ask = bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(90));
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create {VM}: {e}"));
    let vm = until_within(BOOT, "the agent", async || {
        bus.status(VM).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await;
    println!("from create to agent in {:?}", began.elapsed());
    vm
}

/// What it printed, without the end of the last line.
fn text(result: &ExecResult) -> String {
    let bytes = result.stdout.as_ref().map(|bytes| bytes.as_slice()).unwrap_or_default();
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

impl Guest<'_> {
    async fn exec(&self, body: Value) -> ExecResult {
        let ask = self.world.bus.ask(&format!("vm.{VM}.guest.exec"), &body).id(RequestId::generate());
        match ask.within(WORK.min(Duration::from_secs(90))).get().await.unwrap() {
            ExecReply::Result(result) => result,
            _ => panic!("neither a stream nor a run was asked for"),
        }
    }

    /// What a script of root's prints; it succeeds.
    async fn says(&self, script: &str) -> String {
        let result = self.exec(json!({"argv": ["bash", "-c", script]})).await;
        assert_eq!(result.exit_code, Some(0), "{script}: {result:?}");
        text(&result)
    }

    /// What a command of the command line prints; it succeeds.
    async fn drover(&self, args: &[&str]) -> String {
        self.world.printed(args).await.trim_end().to_owned()
    }

    /// Waits until a script of root's succeeds; an agent that has just ended does not matter.
    async fn until(&self, what: &str, script: &str) {
        let body = json!({"argv": ["bash", "-c", script]});
        until_within(WORK, what, async || {
            let ask = self.world.bus.ask(&format!("vm.{VM}.guest.exec"), &body).id(RequestId::generate());
            let reply = ask.get::<ExecReply>().await;
            matches!(reply, Ok(ExecReply::Result(ExecResult { exit_code: Some(0), .. }))).then_some(())
        })
        .await;
    }

    async fn is_one_of_systemds_services(&self) {
        self.until("systemd has started everything", "systemctl is-system-running").await;
        println!("{}", self.says("systemd-analyze time | head -n 1").await);
        assert_eq!(self.says("cat /proc/1/comm; hostname").await, format!("systemd\n{VM}"));
        assert_eq!(self.says("systemctl is-enabled drover-agent").await, "enabled");
        let agents = "pgrep -f '^/usr/bin/drover-agent$'; systemctl show --value -p MainPID drover-agent";
        let pids = self.says(agents).await;
        let (all, main) = pids.rsplit_once('\n').unwrap();
        assert!(all.lines().any(|pid| pid == main), "{pids}");
        // A command is of the agent's unit, and nothing that the unit asks for is in its way.
        let script =
            "cat /proc/self/cgroup /proc/self/oom_score_adj; touch /usr/x /boot/x && rm /usr/x /boot/x";
        assert_eq!(self.says(script).await, "0::/system.slice/drover-agent.service\n0");
    }

    async fn runs_commands_as_its_users(&self) {
        let mut body = json!({"argv": ["sh", "-c", "id -un; id -Gn; pwd"], "user": "debian"});
        assert_eq!(text(&self.exec(body.clone()).await), "debian\ndebian adm users\n/home/debian");
        body["user"] = json!("nobody");
        assert_eq!(text(&self.exec(body).await).lines().next(), Some("nobody"));
    }

    async fn has_a_shell_in_a_terminal(&self) {
        if !Terminal::is_there() {
            return println!("SKIP the shell in a terminal: tmux is not installed");
        }
        let command = format!(
            "DROVER_NATS_URL={URL} {} vm exec -it --user debian --env PS1='debian$ ' {VM} -- bash --norc",
            self.world.bin("drover").display()
        );
        let terminal = Terminal::start(self.world.path("tmux"), (24, 80), &command);
        terminal.shows("debian$").await;
        terminal.line("systemctl is-active ssh; stty size; tty");
        terminal.shows("/dev/pts/0").await;
        let screen = terminal.screen();
        assert!(screen.contains("active") && screen.contains("24 80"), "{screen}");
        // What bash does with a terminal: a job in the background, the line that was typed before.
        terminal.line("clear; sleep 1000 & kill %1; wait %1; echo \"job $?\"");
        terminal.shows("job 143").await;
        terminal.line("exit 3");
        assert_eq!(terminal.ended().await, 3);
    }

    async fn takes_and_gives_files_and_folders(&self) {
        let (there, back) = (self.world.path("there"), self.world.path("back"));
        fs::create_dir_all(there.join("deep")).unwrap();
        let bytes: Vec<u8> =
            (0..2_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        fs::write(there.join("deep/file"), &bytes).unwrap();
        fs::write(there.join("note"), "of the host").unwrap();
        let (file, folder) = (there.join("deep/file"), there.to_str().unwrap());
        let (file, to) = (file.to_str().unwrap(), format!("{VM}:/home/debian/file"));
        self.drover(&["vm", "cp", file, &to, "--mode", "0640"]).await;
        self.drover(&["vm", "cp", "--recursive", folder, &format!("{VM}:/home/debian/tree")]).await;
        let script = "cd /home/debian; cmp file tree/deep/file && stat -c %a file; cat tree/note; echo guest > tree/new";
        assert_eq!(self.says(script).await, "640\nof the host");
        let back = back.to_str().unwrap();
        self.drover(&["vm", "cp", "--recursive", &format!("{VM}:/home/debian/tree"), back]).await;
        assert!(fs::read(format!("{back}/deep/file")).unwrap() == bytes);
        assert_eq!(fs::read_to_string(format!("{back}/new")).unwrap(), "guest\n");
    }

    /// A command over SSH, with a key, to a guest whose own key is known.
    async fn ssh(&self, user: &str, key: &str, known: &str, command: &str) -> Output {
        let address = format!("{user}@{}", self.vm.nics[0].ipv4);
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]);
        ssh.args(["-o", "StrictHostKeyChecking=yes", "-o", &format!("UserKnownHostsFile={known}")]);
        ssh.args(["-o", "ConnectTimeout=60", &address, command]).kill_on_drop(true);
        tokio::time::timeout(WORK, ssh.output()).await.unwrap().unwrap()
    }

    /// Its host key comes over the link too: nothing is trusted that the network says.
    async fn knows_its_host_key(&self, known: &str) {
        let host_key = self.world.path("host.pub").display().to_string();
        let in_guest = format!("{VM}:/etc/ssh/ssh_host_ed25519_key.pub");
        self.drover(&["vm", "cp", &in_guest, &host_key]).await;
        let host_key = fs::read_to_string(host_key).unwrap();
        fs::write(known, format!("{} {host_key}", self.vm.nics[0].ipv4)).unwrap();
    }

    async fn is_logged_in_to_with_keys_that_were_added_over_the_bus(&self) {
        let (key, known) = (self.world.path("key"), self.world.path("known"));
        let (key, known) = (key.to_str().unwrap(), known.to_str().unwrap());
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", key]).status();
        assert!(made.await.unwrap().success());
        self.knows_its_host_key(known).await;
        let refused = self.ssh("debian", key, known, "true").await;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(255) && why.contains("Permission denied"), "{why}");
        let public = format!("{key}.pub");
        self.drover(&["vm", "keys", "add", VM, "debian", "--file", &public]).await;
        // A user that was not there, with the guest's own files of users and its own programs beside the agent.
        let check = "{ pwck -qr; grpck -r; } 2>&1; true";
        let before = self.says(check).await;
        let add = ["vm", "user", "add", VM, "deploy", "--groups", "adm", "--shell", "/bin/bash"];
        self.drover(&add).await;
        self.drover(&["vm", "keys", "add", VM, "deploy", "--file", &public]).await;
        self.says("useradd --create-home other && userdel --remove other").await;
        assert_eq!(self.says(check).await, before);
        for (user, groups) in [("debian", "debian adm users"), ("deploy", "deploy adm")] {
            let script = "id -un; id -Gn; hostname; cat; exit 9 < /dev/null";
            let done = self.ssh(user, key, known, script).await;
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            let why = String::from_utf8_lossy(&done.stderr).into_owned();
            let wanted = format!("{user}\n{groups}\n{VM}\n");
            assert_eq!((done.status.code(), said.as_str()), (Some(9), wanted.as_str()), "{why}");
        }
        // The key is gone, and then the user; what its logins have left runs no more.
        self.drover(&["vm", "keys", "rm", VM, "deploy", "--file", &public]).await;
        assert_eq!(self.ssh("deploy", key, known, "true").await.status.code(), Some(255));
        self.drover(&["vm", "user", "rm", VM, "deploy", "--remove-home", "--force"]).await;
        self.says("! id deploy && ! ls /home/deploy").await;
        assert_eq!(self.says(check).await, before);
    }

    /// What a clone has that its twin has too, each as one line.
    async fn identity(&self) -> Vec<String> {
        let script = "cat /etc/machine-id; hostname; cat /etc/hostname; grep -c localhost /etc/hosts; \
             cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; sha256sum < /etc/ssh/ssh_host_ed25519_key; \
             sha256sum < /var/lib/systemd/random-seed";
        self.says(script).await.lines().map(str::to_owned).collect()
    }

    async fn becomes_another_than_its_twin(&self) {
        let (key, known) = (self.world.path("key"), self.world.path("known"));
        let (key, known) = (key.to_str().unwrap(), known.to_str().unwrap());
        // As a disk is that was in use: the next boot's seed lies there, and a lease.
        self.says(
            "/lib/systemd/systemd-random-seed save; mkdir -p /var/lib/dhcp; touch /var/lib/dhcp/eth0.leases",
        )
        .await;
        let before = self.identity().await;
        let sshd = self.says("systemctl show --value -p MainPID ssh").await;
        // Whoever is logged in stays so.
        let script = "until [ -e /tmp/is-another ]; do sleep 0.2; done; hostname";
        let stays = self.ssh("debian", key, known, script);
        let becomes = async {
            self.until("somebody is logged in", "pgrep -u debian -f is-another").await;
            let identity = ["-o", "json", "vm", "guest", "identity", VM, "--hostname", "twin"];
            let done: IdentityResult = serde_json::from_str(&self.drover(&identity).await).unwrap();
            self.says("touch /tmp/is-another").await;
            done
        };
        let (stayed, done) = tokio::join!(stays, becomes);
        assert_eq!((stayed.status.code(), stayed.stdout.as_slice()), (Some(0), &b"twin\n"[..]), "{stayed:?}");
        let part = |part| done.parts.iter().find(|done| done.part == part).unwrap();
        for name in [
            IdentityPart::Rng,
            IdentityPart::MachineId,
            IdentityPart::Hostname,
            IdentityPart::SshHostKeys,
            IdentityPart::Dhcp,
        ] {
            assert_eq!(part(name).outcome, PartOutcome::Done, "{done:?}");
        }
        assert_eq!(part(IdentityPart::CloudInit).outcome, PartOutcome::Absent);
        let after = self.identity().await;
        assert_eq!(
            (&before[1..3], &after[1..3]),
            (&[VM.into(), VM.into()][..], &["twin".into(), "twin".into()][..])
        );
        assert_eq!(after[0], part(IdentityPart::MachineId).detail);
        for line in [0, 4, 5, 6] {
            assert_ne!(before[line], after[line], "line {line}");
        }
        assert_eq!(before[3], after[3]);
        assert_eq!(self.says("ls -A /etc/ssh /var/lib/dhcp | grep -c drover-keys || true").await, "0");
        // What runs takes it over: sshd is the same process, and answers with the new key alone.
        assert_eq!(
            self.says("systemctl show --value -p MainPID ssh; systemctl is-system-running").await,
            format!("{sshd}\nrunning")
        );
        let twin = self.ssh("debian", key, known, "true").await;
        let why = String::from_utf8_lossy(&twin.stderr).into_owned();
        assert!(twin.status.code() == Some(255) && why.contains("HOST IDENTIFICATION HAS CHANGED"), "{why}");
        self.knows_its_host_key(known).await;
        let another = self.ssh("debian", key, known, "hostname").await;
        assert_eq!(
            (another.status.code(), another.stdout.as_slice()),
            (Some(0), &b"twin\n"[..]),
            "{another:?}"
        );
        // Its name is its own again for what follows; nothing else is asked for.
        let back = [
            "vm",
            "guest",
            "identity",
            VM,
            "--hostname",
            VM,
            "--keep",
            "machine-id",
            "--keep",
            "ssh-host-keys",
        ];
        self.drover(&back).await;
        let kept = self.identity().await;
        assert_eq!((&kept[0], kept[1].as_str(), &kept[4]), (&after[0], VM, &after[4]));
    }

    /// What the kernel has still to make good by running faster or slower, in microseconds.
    async fn left_to_slew(&self) -> i64 {
        let script = format!(
            "perl -e '$timex = pack(q(L x4 q x256), {SINGLESHOT_READ}, 0); \
             syscall({SYS_ADJTIMEX}, $timex) < 0 and die qq($!); print((unpack(q(L x4 q), $timex))[1])'"
        );
        self.says(&script).await.parse().unwrap()
    }

    async fn clock(&self, more: &[&str]) -> ClockReply {
        let clock = [&["-o", "json", "vm", "guest", "clock", VM], more].concat();
        serde_json::from_str(&self.drover(&clock).await).unwrap()
    }

    /// A clock that is off by little is never set back or on: it runs faster until it is right.
    async fn has_its_clock_slewed(&self) -> ClockReply {
        // At its boot it is right to a second only.
        assert_ne!(self.clock(&["--set", "--slew", "0"]).await.change, ClockChange::Slewed);
        let set = async || {
            // It is off by a little more each time, until that is more than whoever looks can be wrong by.
            self.says(LATE).await;
            let clock = self.clock(&["--set"]).await;
            Some(clock).filter(|clock| clock.change == ClockChange::Slewed && clock.ahead_us < 0)
        };
        let late = until_within(WORK, "a clock that is late by little", set).await;
        assert!(late.error_us < late.ahead_us.unsigned_abs(), "{late:?}");
        let left = self.left_to_slew().await;
        // The kernel makes half a millisecond good in a second; it has not jumped.
        assert!(left > 0 && left <= -late.ahead_us, "{left} of {late:?}");
        let less = until_within(WORK, "it runs faster", async || {
            Some(self.left_to_slew().await).filter(|less| *less < left)
        })
        .await;
        println!("late by {} ms: {left} µs to be made good, {less} a moment later", -late.ahead_us / 1000);
        late
    }

    async fn has_its_clock_right_without_a_jump(&self, late: ClockReply) {
        let began = Instant::now();
        // What an emulated clock is off by itself meanwhile is its own affair.
        until_within(WORK * 3, "nothing is left to be made good", async || {
            (self.left_to_slew().await == 0).then_some(())
        })
        .await;
        let clock = self.clock(&[]).await;
        println!("right after {:?} more: {clock:?}, {late:?}", began.elapsed());
    }

    async fn has_its_disk_stand_still_for_a_copy(&self) {
        // A hook says what it was called for, as a database's would.
        let script = "mkdir -p /etc/drover-agent/freeze.d; cd /etc/drover-agent/freeze.d; \
             printf '#!/bin/sh\\necho \"$1\" >> /run/hooks\\n' > note; chmod 755 note";
        self.says(script).await;
        let frozen: FreezeResult =
            serde_json::from_str(&self.drover(&["-o", "json", "vm", "guest", "freeze", VM]).await).unwrap();
        assert!(
            frozen.frozen.iter().any(|mount| mount.mount == "/" && mount.fs_type == "ext4"),
            "{frozen:?}"
        );
        let thawed: ThawResult =
            serde_json::from_str(&self.drover(&["-o", "json", "vm", "guest", "thaw", VM]).await).unwrap();
        assert!(thawed.thawed.iter().any(|mount| mount == "/"), "{thawed:?}");
        assert_eq!(self.says("cat /run/hooks; touch /thawed").await, "freeze\nthaw");
    }

    /// The first event of a type that the guest tells.
    async fn hears(&self, kind: &str) -> AgentEvent {
        until_within(WORK, kind, async || {
            let told = events::read(&self.world.bus).await.into_iter().filter_map(|event| event.agent_event);
            told.into_iter().find(|event| event.kind.as_str() == kind)
        })
        .await
    }

    async fn tells_of_its_programs_and_of_services_that_fail(&self) {
        let user = ["vm", "exec", "--user", "debian", VM, "--"];
        let emit = ["drover-agent", "emit", "app.deployed", "build=7", "--wait", "--timeout", "60"];
        self.drover(&[&user[..], &emit[..]].concat()).await;
        let said = self.hears("app.deployed").await;
        assert_eq!((said.uid, serde_json::to_value(&said.data).unwrap()), (1000, json!({"build": "7"})));
        // What is the agent's own to tell, no user tells.
        let forged =
            self.world.drover(&[&user[..], &["drover-agent", "emit", "drover.shutdown"]].concat()).await;
        assert_eq!(forged.status.code(), Some(77), "{}", String::from_utf8_lossy(&forged.stderr));
        // It fails while there is no agent, and is told of once there is one.
        let script = "cd /run/systemd/system; printf '[Service]\\nExecStart=/bin/sh -c \"exit 3\"\\n' > bad.service; \
             systemctl daemon-reload; systemctl stop drover-agent; systemctl start bad; \
             until [ \"$(systemctl show --value -p NRestarts drover-agent-failed@bad.service.service)\" -gt 0 ]; do sleep 0.1; done; \
             systemctl start drover-agent";
        let run = self.drover(&["vm", "exec", "-d", VM, "--", "sh", "-c", script]).await;
        let failed = self.hears("drover.unit-failed").await;
        let data = json!({"unit": "bad.service", "result": "exit-code", "exit_status": 3, "exit_code": 1, "restarts": 0});
        assert_eq!((failed.uid, serde_json::to_value(&failed.data).unwrap()), (0, data));
        let attached = self.world.drover(&["vm", "runs", "attach", VM, &run]).await;
        assert_eq!(attached.status.code(), Some(0), "{attached:?}");
        self.says("systemctl reset-failed bad").await;
        let seen = self.drover(&["events", "--vm", VM, "--kind", "agent"]).await;
        assert!(seen.contains("app.deployed") && seen.contains("bad.service"), "{seen}");
    }

    async fn says_what_it_is_and_what_runs(&self) {
        let info: InfoResult =
            serde_json::from_str(&self.drover(&["-o", "json", "vm", "info", VM]).await).unwrap();
        assert_eq!((info.os_id.as_str(), info.hostname.as_str(), info.cpus), ("debian", VM, 1), "{info:?}");
        assert_eq!(info.kernel, self.says("uname -r").await);
        let ps = ["-o", "json", "vm", "ps", VM, "--sort", "pid", "--limit", "500"];
        let listed: ProcessesResult = serde_json::from_str(&self.drover(&ps).await).unwrap();
        let first = &listed.processes[0];
        assert_eq!((first.pid, first.name.as_str(), first.uid), (1, "systemd", 0), "{first:?}");
        let main = self.says("systemctl show --value -p MainPID drover-agent").await;
        let front = listed.processes.iter().find(|process| process.pid.to_string() == main).unwrap();
        assert_eq!(front.name, "drover-front");
        let agent = listed.processes.iter().find(|process| process.name == "drover-agent").unwrap();
        println!("the agent has {} KiB resident", agent.memory_bytes >> 10);
        let table = self.drover(&["vm", "ps", VM]).await;
        assert!(table.starts_with("PID") && table.contains("sshd"), "{table}");
    }

    async fn does_what_its_owner_lets_the_host_do(&self) {
        let script = "echo line > /var/log/line; cd /etc/drover-agent; \
             printf 'exec user=debian\\nget /var/log\\nstat /var/log\\n' > new; mv new policy; \
             until [ -e /home/debian/enough ]; do sleep 0.2; done; rm policy";
        self.drover(&["vm", "exec", "-d", VM, "--", "sh", "-c", script]).await;
        let of_root = json!({"argv": ["true"]});
        let error = until_within(WORK, "the policy", async || {
            let ask = self.world.bus.ask(&format!("vm.{VM}.guest.exec"), &of_root).id(RequestId::generate());
            match ask.get::<ExecReply>().await {
                Err(Failure::Coded(error)) if error.code == ErrorCode::PermissionDenied => Some(error),
                _ => None,
            }
        })
        .await;
        assert_eq!(error.details.get("policy").map(String::as_str), Some("guest"), "{error:?}");
        let log = self.world.path("line").display().to_string();
        for (file, allowed) in [("/var/log/line", true), ("/etc/shadow", false)] {
            let done = self.world.drover(&["vm", "cp", &format!("{VM}:{file}"), &log]).await;
            assert_eq!(done.status.success(), allowed, "{file}: {done:?}");
        }
        let shell = ["vm", "exec", "--user", "debian", VM, "--", "sh", "-c", "id -un; touch ~/enough"];
        assert_eq!(self.drover(&shell).await, "debian");
        self.until("the policy is gone", "true").await;
    }

    async fn is_used_by_the_client_in_python(&self) {
        let env = [("DROVER_URL", URL.to_owned()), ("DROVER_VM", VM.to_owned())];
        for test in ["test_debian.py", "test_accounts.py"] {
            clients::passes("python3", &["-W", "ignore", test], "python", &env, WORK * 2).await;
        }
    }

    async fn gets_another_agent_and_systemd_does_not_notice(&self) {
        let unit = "systemctl show --value -p MainPID,NRestarts,ActiveEnterTimestampMonotonic drover-agent";
        let before = self.says(unit).await;
        let other = "pgrep -x drover-agent";
        let agent = self.says(other).await;
        let program = std::env::var("DROVER_AGENT").unwrap();
        let said = self.drover(&["vm", "guest", "upgrade", VM, &program]).await;
        assert!(said.contains("took over") && said.contains("/usr/bin/drover-agent"), "{said}");
        self.until(
            "the old agent has ended",
            &format!("[ \"$({other})\" != {agent} ] && [ $({other} | wc -l) = 1 ]"),
        )
        .await;
        assert_eq!(self.says(unit).await, before);
        let cgroup = self.says("cat /proc/$(pgrep -x drover-agent)/cgroup").await;
        assert_eq!(cgroup, "0::/system.slice/drover-agent.service");
        // What a restart starts is the new one.
        let digest = self.says("sha256sum < /usr/bin/drover-agent").await;
        assert!(digest.starts_with(&digest_of(program.as_ref())), "{digest}");
        assert_eq!(self.says("ls -A /usr/bin | grep -c drover-agent.next || true").await, "0");
    }

    async fn has_its_agent_back_when_it_is_killed(&self) {
        let script = "until [ -e /run/go-on ]; do sleep 0.2; done; echo went on; exit 4";
        let run = self.drover(&["vm", "exec", "-d", VM, "--", "sh", "-c", script]).await;
        let before = self.says("systemctl show --value -p MainPID drover-agent").await;
        let gone = json!({"argv": ["kill", "-KILL", before]});
        // Whoever asks does not hear: the answer's way ends with it.
        let _ = self
            .world
            .bus
            .ask(&format!("vm.{VM}.guest.exec"), &gone)
            .id(RequestId::generate())
            .get::<ExecReply>()
            .await;
        let other = format!("[ \"$(systemctl show --value -p MainPID drover-agent)\" != {before} ]");
        self.until("another agent", &other).await;
        assert_eq!(self.says("systemctl show --value -p NRestarts drover-agent").await, "1");
        // What was detached has not noticed, and its end is read.
        self.says("touch /run/go-on").await;
        let attached = self.world.drover(&["vm", "runs", "attach", VM, &run]).await;
        assert_eq!((attached.status.code(), attached.stdout.as_slice()), (Some(4), b"went on\n".as_slice()));
    }

    async fn gets_another_package_of_the_agent(&self, folder: &std::path::Path) {
        let deb = folder.join("drover-agent.deb").display().to_string();
        self.drover(&["vm", "cp", &deb, &format!("{VM}:/root/agent.deb")]).await;
        let before = self.says("systemctl show --value -p MainPID drover-agent").await;
        // The command that upgrades is the agent's own, and outlives it.
        let dpkg = ["vm", "exec", "-d", VM, "--", "dpkg", "-i", "/root/agent.deb"];
        let run: RequestId = self.drover(&dpkg).await.parse().unwrap();
        let bus = &self.world.bus;
        let ended: RunInfo = until_within(WORK, "the end of dpkg", async || {
            let found =
                bus.ask(&format!("vm.{VM}.guest.runs"), &json!({"run": run})).get::<RunsResult>().await;
            found.ok()?.runs.pop().filter(|info| info.state == RunState::Ended)
        })
        .await;
        let said = self.world.drover(&["vm", "runs", "attach", VM, &run.to_string()]).await;
        assert_eq!(ended.result.unwrap().exit_code, Some(0), "{said:?}");
        let after = self.says("systemctl show --value -p MainPID drover-agent").await;
        assert_ne!(before, after);
        assert_eq!(
            self.says("systemctl is-active drover-agent; systemctl --failed --plain -q").await,
            "active"
        );
    }

    async fn goes_down_in_order(&self) {
        let began = Instant::now();
        self.drover(&["vm", "shutdown", VM]).await;
        let bus = &self.world.bus;
        let stopped = until_within(WORK, "the guest has powered off", async || {
            bus.status(VM).await.ok().filter(|vm| vm.state == VmState::Stopped)
        })
        .await;
        println!("down in {:?}: {:?}", began.elapsed(), stopped.cause);
        self.hears("drover.shutdown").await;
        let told = self.drover(&["vm", "logs", VM]).await;
        assert!(told.contains("reboot: Power down") || told.contains("Power down"), "{told}");
        assert_eq!(leak::processes(self.world.run_dir(), self.vm.vm_id), []);
    }
}
