//! A large file each way, while commands keep their usual time. `DROVER_FILE_MIB` is its size; with `DROVER_FILE_DISK` (a
//! folder of deploy/guest/build-debian.sh whose disk has room) the guest is Debian on a kernel of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use drover_schemas::RequestId;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::image::ImageImportReply;
use drover_schemas::body::status::AgentState;
use drover_schemas::body::vm::ChangeReply;
use drover_tests::client::Bus;
use drover_tests::digest::{digest_of, random_file};
use drover_tests::wait::until_within;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// For a boot and for copies in software emulation.
const LONG: Duration = Duration::from_secs(3600);
/// The least that is seen of commands while the file moves one way.
const ENOUGH: usize = 3;

/// A guest with room for the file; gives where in it.
async fn up(world: &mut World, mib: u64, disk: Option<PathBuf>) -> &'static str {
    let agent = json!({"enabled": true, "ready_timeout_ms": 300_000});
    let spec = match &disk {
        Some(folder) => {
            world.up_with(|config| config["images"] = json!({"import_dirs": [folder]})).await;
            let image = json!({"name": "drover-debian", "kind": "disk", "path": folder.join("debian.raw")});
            let import = world.bus.ask("drover.v1.host.h1.image.import", &image);
            import.within(Duration::from_secs(90)).get::<ImageImportReply>().await.unwrap();
            json!({"template": "linux-debian", "agent": agent})
        }
        // Its files are in its memory.
        None => {
            world.up_with(|_| {}).await;
            json!({"memory": format!("{}MiB", mib + 256), "agent": agent})
        }
    };
    let body = json!({"name": "web", "spec": spec});
    let ask = world.bus.ask("vm.create", &body).id(RequestId::generate()).within(Duration::from_secs(90));
    ask.get::<ChangeReply>().await.unwrap_or_else(|e| panic!("create: {e}"));
    until_within(LONG, "the agent", async || {
        let vm = world.bus.status("web").await.ok();
        vm.filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await;
    if disk.is_some() { "/var/tmp/file" } else { "/root/file" }
}

/// What requests took, over the bus.
#[derive(Default)]
struct Times {
    /// A sign of life of the agent: the way there and back.
    ping: Vec<Duration>,
    /// `true`.
    exec: Vec<Duration>,
    /// That part of it which the agent tells: from the start of the command to its end.
    inside: Vec<Duration>,
}

impl Times {
    async fn take(&mut self, bus: &Bus) {
        let began = Instant::now();
        let ping = bus.ask("vm.web.guest.ping", &json!({})).within(Duration::from_secs(60));
        ping.get::<Value>().await.unwrap();
        self.ping.push(began.elapsed());
        let began = Instant::now();
        let ask = bus.ask("vm.web.guest.exec", &json!({"argv": ["true"]})).id(RequestId::generate());
        let reply: ExecReply = ask.within(Duration::from_secs(60)).get().await.unwrap();
        self.exec.push(began.elapsed());
        let ExecReply::Result(result) = reply else { panic!("{reply:?}") };
        assert_eq!(result.exit_code, Some(0));
        self.inside.push(Duration::from_millis(result.duration_ms));
    }

    fn tell(mut self, what: &str) {
        let kinds =
            [("ping", &mut self.ping), ("exec", &mut self.exec), ("exec in the guest", &mut self.inside)];
        for (kind, times) in kinds {
            times.sort();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
            println!("LARGE {kind} {what}: p50 {:.1} ms, p99 {:.1} ms of {}", at(50), at(99), times.len());
        }
    }
}

#[test]
fn a_large_file_goes_each_way_while_commands_answer() {
    let mib = std::env::var("DROVER_FILE_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(96);
    let disk = std::env::var_os("DROVER_FILE_DISK").map(PathBuf::from);
    let guest = if disk.is_some() { "qemu" } else { "process" };
    // Of a real guest the times count, which an observer is in the way of.
    let options =
        Options { guest, budget: LONG, started: false, observed: disk.is_none(), ..Options::default() };
    run("a_large_file_goes_each_way_while_commands_answer", options, async move |world| {
        let in_guest = up(world, mib, disk).await;
        let bus = world.bus.clone();
        let (file, back) = (world.path("file"), world.path("back"));
        let digest = random_file(&file, mib * MIB, 7);
        let mut quiet = Times::default();
        for _ in 0..50 {
            quiet.take(&bus).await;
        }
        quiet.tell("quiet");
        let (file, there, back) =
            (file.to_str().unwrap().to_owned(), format!("web:{in_guest}"), back.to_str().unwrap().to_owned());
        for (way, from, to) in [("to the guest", &file, &there), ("from the guest", &there, &back)] {
            let began = Instant::now();
            let mut copy = world.command(&["vm", "cp", from, to, "-o", "json"]);
            let copy = tokio::task::spawn_local(async move { copy.output().await.unwrap() });
            let mut busy = Times::default();
            while !copy.is_finished() {
                busy.take(&bus).await;
            }
            let took = began.elapsed().as_secs_f64();
            let done = copy.await.unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let reply: Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(
                (reply["sha256"].as_str(), reply["size_bytes"].as_u64()),
                (Some(&*digest), Some(mib * MIB))
            );
            println!("LARGE {mib} MiB {way} in {took:.1} s: {:.1} MiB/s", mib as f64 / took);
            // The last one may have begun after the copy's end.
            assert!(busy.exec.len() > ENOUGH, "{} commands while the file moved", busy.exec.len());
            busy.tell(&format!("while it goes {way}"));
        }
        assert_eq!(digest_of(back.as_ref()), digest);
    });
}
