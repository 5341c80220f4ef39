//! Streams over a bus that loses what it can: connections, the server, frames, and patience.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drover_schemas::ErrorCode;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::codec;
use drover_schemas::stream::{Channel, MAX_CHUNK, MAX_WINDOW, StreamEnd, StreamFrame};
use drover_tests::admin::{ADMIN, metric};
use drover_tests::audit;
use drover_tests::client::{Bus, refused};
use drover_tests::digest::{digest_of, random_file};
use drover_tests::relay::Relay;
use drover_tests::stream::Stream;
use drover_tests::wait::{until, until_within};
use drover_tests::wire::Publication;
use drover_tests::world::{Options, URL, World, run};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

const MIB: u64 = 1 << 20;
/// A transfer on a busy machine.
const LONG: Duration = Duration::from_secs(900);

/// The ways of a client and of the host to the bus.
struct Ways {
    client: Relay,
    host: Relay,
}

/// Starts a host whose connections, like those of its clients, go over relays.
async fn start(world: &mut World, change: impl FnOnce(&mut Value)) -> Ways {
    let ways = Ways {
        client: Relay::start("127.0.0.1:4301", URL).await,
        host: Relay::start("127.0.0.1:4302", URL).await,
    };
    world.urls = vec![ways.host.url.clone()];
    world
        .up_with(|config| {
            config["admin"] = json!({"listen": ADMIN});
            change(config);
        })
        .await;
    ways
}

/// The command line on the bus at `url`.
fn drover(world: &World, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(world.bin("drover"));
    command.args(args).env("DROVER_NATS_URL", url).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn up_with(bus: &Bus, name: &str, memory_bytes: u64) {
    let body = json!({"wait": "agent", "spec": {"memory_bytes": memory_bytes}});
    let reply: Result<ChangeReply, _> = bus.create(name, body).await;
    reply.unwrap_or_else(|e| panic!("create {name}: {e}"));
}

async fn exec(bus: &Bus, argv: &[&str]) -> ExecResult {
    match bus.ask("vm.a.guest.exec", &json!({"argv": argv})).get().await.unwrap() {
        ExecReply::Result(result) => result,
        _ => panic!("a stream was not asked for"),
    }
}

/// How many processes of the guest have this command line.
async fn running(bus: &Bus, command: &str) -> String {
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2> /dev/null | grep -c '^{command}' || true"
    );
    let result = exec(bus, &["sh", "-c", &script]).await;
    String::from_utf8(result.stdout.unwrap().0.to_vec()).unwrap().trim().to_owned()
}

/// Counts the bytes of frames that go over a relay.
fn counted(relay: &Relay) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&count);
    relay.rule(move |publication| {
        let data = publication.frame().and_then(|frame| frame.data);
        counting.fetch_add(data.map_or(0, |data| data.0.len() as u64), Ordering::Relaxed);
        vec![publication]
    });
    count
}

/// Runs `drover vm cp` and cuts the client, the server and the host once each; gives the digest and how many bytes
/// were sent twice.
async fn copy_with_cuts(
    world: &mut World,
    ways: &Ways,
    args: [&str; 2],
    size: u64,
    from: &Relay,
) -> (String, u64) {
    let sent = counted(from);
    let command =
        drover(world, &ways.client.url, &["-o", "json", "vm", "cp", args[0], args[1]]).spawn().unwrap();
    let output = tokio::spawn(command.wait_with_output());
    for quarter in 1..=3 {
        until_within(LONG, "a quarter of the file", async || {
            assert!(!output.is_finished(), "the copy ended before quarter {quarter}");
            (sent.load(Ordering::Relaxed) >= size * quarter / 4).then_some(())
        })
        .await;
        match quarter {
            1 => ways.client.cut(),
            2 => {
                world.stop_nats().await;
                world.start_nats().await;
            }
            _ => ways.host.cut(),
        }
    }
    let output = tokio::time::timeout(LONG, output).await.unwrap().unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copied: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(copied["size_bytes"], size);
    (copied["sha256"].as_str().unwrap().to_owned(), sent.load(Ordering::Relaxed) - size)
}

#[test]
fn a_transfer_outlives_the_loss_of_each_connection_and_of_the_server() {
    let test = "a_transfer_outlives_the_loss_of_each_connection_and_of_the_server";
    run(test, Options { budget: LONG * 2, ..Options::down() }, async |world| {
        let mib = std::env::var("DROVER_STREAM_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(96);
        let size = mib * MIB;
        let ways = start(world, |_| {}).await;
        up_with(&world.bus, "a", size + 512 * MIB).await;
        let (there, back) = (world.path("there"), world.path("back"));
        let digest = random_file(&there, size, 4);
        let began = Instant::now();
        let there = there.to_str().unwrap();
        let (put, resent) = copy_with_cuts(world, &ways, [there, "a:/root/file"], size, &ways.client).await;
        assert_eq!(put, digest);
        let seconds = began.elapsed().as_secs_f64();
        println!("STREAM put of {mib} MiB in {seconds:.1} s, three cuts, {resent} bytes sent again");
        let began = Instant::now();
        let args = ["a:/root/file", back.to_str().unwrap()];
        let (got, again) = copy_with_cuts(world, &ways, args, size, &ways.host).await;
        assert_eq!((got, digest_of(&back)), (digest.clone(), digest));
        let seconds = began.elapsed().as_secs_f64();
        println!("STREAM get of {mib} MiB in {seconds:.1} s, three cuts, {again} bytes sent again");
        // A cut costs what was under way, never the whole.
        assert!(resent.max(again) <= 10 * MAX_WINDOW, "{resent} and {again} bytes were sent again");
        until("no stream is left", async || (metric("drover_streams").await == 0).then_some(())).await;
    });
}

/// Loses, doubles and swaps frames at random, and loses each stream's last frame once.
fn lossy(seed: u64, ends: Arc<AtomicU64>) -> impl FnMut(Publication) -> Vec<Publication> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut held: Option<Publication> = None;
    let mut ended = std::collections::HashSet::new();
    move |publication| {
        let Some(frame) = publication.frame() else { return vec![publication] };
        if frame.end.is_some() && ended.insert(publication.subject.clone()) {
            ends.fetch_add(1, Ordering::Relaxed);
            return Vec::new();
        }
        let mut sent = match random.random_range(0..100) {
            0..3 => Vec::new(),
            3..6 => vec![publication.clone(), publication],
            6..9 if held.is_none() => {
                held = Some(publication);
                return Vec::new();
            }
            _ => vec![publication],
        };
        sent.extend(held.take());
        sent
    }
}

#[test]
fn frames_that_are_lost_doubled_and_swapped_are_mended() {
    run("frames_that_are_lost_doubled_and_swapped_are_mended", Options::down(), async |world| {
        let ways = start(world, |_| {}).await;
        world.bus.up("a").await;
        let ends = Arc::new(AtomicU64::new(0));
        ways.client.rule(lossy(1, Arc::clone(&ends)));
        ways.host.rule(lossy(2, Arc::clone(&ends)));
        let (there, back) = (world.path("there"), world.path("back"));
        let digest = random_file(&there, 6 * MIB, 5);
        let there = there.to_str().unwrap();
        for args in [[there, "a:/root/file"], ["a:/root/file", back.to_str().unwrap()]] {
            let output =
                drover(world, &ways.client.url, &["vm", "cp", args[0], args[1]]).output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(digest_of(&back), digest);
        let args = ["vm", "exec", "-i", "a", "--", "sh", "-c", "tee /proc/self/fd/2; exit 3"];
        let mut command = drover(world, &ways.client.url, &args);
        let output = command.stdin(std::fs::File::open(there).unwrap()).output().await.unwrap();
        assert_eq!(output.status.code(), Some(3));
        for bytes in [&output.stdout, &output.stderr] {
            assert_eq!(format!("{:x}", Sha256::digest(bytes)), digest);
        }
        assert_eq!(ends.load(Ordering::Relaxed), 3, "each last frame was lost once");
        let (sent, again) = (
            metric("drover_stream_sent_bytes_total").await,
            metric("drover_stream_resent_bytes_total").await,
        );
        println!("STREAM the host sent {sent} bytes, {again} of them again");
        until("no stream is left", async || (metric("drover_streams").await == 0).then_some(())).await;
    });
}

#[test]
fn a_client_that_is_away_too_long_learns_how_far_it_got() {
    run("a_client_that_is_away_too_long_learns_how_far_it_got", Options::down(), async |world| {
        let ways = start(world, |config| config["streams"] = json!({"peer_timeout_s": 2})).await;
        world.bus.up("a").await;
        let args = ["-o", "json", "vm", "exec", "-i", "a", "--", "cat"];
        let mut command = drover(world, &ways.client.url, &args).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
        stdin.write_all(b"hello\n").await.unwrap();
        let mut echo = [0; 6];
        stdout.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello\n");
        ways.client.refuse(true);
        until("the host gives the client up", async || (metric("drover_streams").await == 0).then_some(()))
            .await;
        assert_eq!(running(&world.bus, "cat").await, "0", "and so does the guest");
        ways.client.refuse(false);
        let output = tokio::time::timeout(LONG, command.wait_with_output()).await.unwrap().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{told}");
        // Before it there are lines of the log.
        let last = told.trim().lines().next_back().unwrap();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {told}"));
        let error = error.get("error").unwrap_or(&error);
        assert_eq!(error["code"], "unavailable", "{told}");
        assert_eq!(error["details"]["received_off"], "6", "{told}");
        // So little is acknowledged after a while only.
        let acked = error["details"]["acked_off"].as_str().unwrap();
        assert!(["0", "6"].contains(&acked), "{told}");
    });
}

#[test]
fn frames_follow_the_client_and_go_nowhere_else() {
    run("frames_follow_the_client_and_go_nowhere_else", Options::default(), async |world| {
        world.bus.up("a").await;
        let body = json!({"argv": ["cat"], "stream": true});
        let mut stream = Stream::open(&world.bus, "vm.a.guest.exec", &body).await.unwrap();
        let is_data = |frame: &StreamFrame| frame.ch == Some(Channel::Stdout) && frame.off.is_some();
        stream.data(Channel::Stdin, 0, b"one").await;
        assert_eq!(stream.find(is_data).await.data.unwrap().as_slice(), b"one");
        stream.ack(Channel::Stdout, 3, MAX_WINDOW).await;
        stream.move_on().await;
        // Where no client is, no frame goes.
        stream.at("drover.v1.evt.host.h1.ready").await;
        stream.at("$JS.API.STREAM.DELETE.DROVER_EVENTS").await;
        stream.data(Channel::Stdin, 3, b"two").await;
        let frame = stream.find(is_data).await;
        assert_eq!((frame.off, frame.data.unwrap().as_slice()), (Some(3), &b"two"[..]));
        // The end is told until it is known to have arrived, and a frame of any kind asks for it.
        let eof = StreamFrame { ch: Some(Channel::Stdin), off: Some(6), eof: true, ..StreamFrame::default() };
        stream.send(&eof).await;
        stream.ack(Channel::Stdout, 6, MAX_WINDOW).await;
        stream.find(|frame| is_data(frame) && frame.eof).await;
        stream.ack(Channel::Stdout, 7, MAX_WINDOW).await;
        stream.find(|frame| frame.ch == Some(Channel::Stderr) && frame.eof).await;
        stream.ack(Channel::Stderr, 1, MAX_WINDOW).await;
        for _ in 0..2 {
            let end = stream.find(|frame| frame.end.is_some()).await.end;
            let Some(StreamEnd::Result(result)) = end else { panic!("{end:?}") };
            let result: ExecResult = codec::decode(&result.0).unwrap();
            assert_eq!(result.exit_code, Some(0));
            stream.here().await;
        }
        stream.send(&StreamFrame { done: true, ..StreamFrame::default() }).await;
        let events: Value = world.bus.ask("events.read", &json!({})).get().await.unwrap();
        assert!(!events["events"].as_array().unwrap().is_empty(), "the stream of events was not deleted");
        until("the audit tells of both", async || {
            let all = audit::read(&world.bus).await;
            let told = all.iter().filter(|event| event.subject == "drover.v1.io.default.*");
            (told.filter(|event| event.error == Some(ErrorCode::PermissionDenied)).count() == 2).then_some(())
        })
        .await;
    });
}

#[test]
fn a_cancel_ends_a_command_that_reads_nothing() {
    run("a_cancel_ends_a_command_that_reads_nothing", Options::default(), async |world| {
        world.bus.up("a").await;
        let body = json!({"argv": ["sleep", "4444"], "stream": true});
        let mut stream = Stream::open(&world.bus, "vm.a.guest.exec", &body).await.unwrap();
        until("it runs", async || (running(&world.bus, "sleep 4444").await == "1").then_some(())).await;
        // As much as everybody on the way takes.
        let (mut off, chunk) = (0, vec![0; 32 * 1024]);
        let mut limit = stream.opened.window;
        while off + chunk.len() as u64 <= limit {
            stream.data(Channel::Stdin, off, &chunk).await;
            off += chunk.len() as u64;
            let acked = stream.find(|frame| frame.acked_off.is_some()).await;
            limit = limit.max(acked.acked_off.unwrap() + acked.window.unwrap());
        }
        stream.cancel().await;
        until("it has ended", async || (running(&world.bus, "sleep 4444").await == "0").then_some(())).await;
    });
}

#[test]
fn streams_beyond_the_memory_of_the_host_are_refused_without_effect() {
    run("streams_beyond_the_memory_of_the_host_are_refused_without_effect", Options::down(), async |world| {
        let _ways = start(world, |config| config["streams"] = json!({"max_memory": "5MiB"})).await;
        world.bus.up("a").await;
        let open = async |file: &str| {
            let argv = json!(["sh", "-c", format!("touch /root/{file}; exec sleep 4444")]);
            Stream::open(&world.bus, "vm.a.guest.exec", &json!({"argv": argv, "stream": true})).await
        };
        let held = [open("one").await.unwrap(), open("two").await.unwrap()];
        let error = refused("a third", ErrorCode::ResourceExhausted, open("three").await);
        assert_eq!((&*error.details["resource"], error.retryable), ("stream_windows", true), "{error:?}");
        until("the first two ran", async || {
            let made = exec(&world.bus, &["ls", "/root"]).await.stdout.unwrap();
            (made.as_slice() == b"one\ntwo\n").then_some(())
        })
        .await;
        held[0].cancel().await;
        let third = until("there is room again", async || open("four").await.ok()).await;
        third.cancel().await;
        held[1].cancel().await;
        until("nothing is promised any more", async || {
            (metric("drover_stream_windows_bytes").await == 0).then_some(())
        })
        .await;
    });
}

#[test]
fn readers_that_stop_cost_their_windows_and_no_more() {
    run("readers_that_stop_cost_their_windows_and_no_more", Options::down(), async |world| {
        let _ways = start(world, |_| {}).await;
        world.bus.up("a").await;
        let bus = world.bus.clone();
        let pid = world.daemon_id().unwrap();
        let resident = || {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let body = json!({"argv": ["yes"], "stream": true});
        // One that is read to its end, so that what every stream needs once is there.
        Stream::open(&bus, "vm.a.guest.exec", &body).await.unwrap().cancel().await;
        // The agent of a guest of processes has this kernel's word for its memory.
        let agent = async || {
            let script = r"for pid in $(ls /proc | grep '^[0-9]' | sort -n); do
                tr '\0' '\n' < /proc/$pid/cmdline | head -n 1 | grep -q 'drover-agent$' || continue
                grep -q drover-agent /proc/$pid/comm || continue
                exec grep VmRSS /proc/$pid/status
            done";
            let line = exec(&bus, &["sh", "-c", script]).await.stdout.unwrap();
            let line = String::from_utf8_lossy(line.as_slice()).into_owned();
            let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
            kib.unwrap_or_else(|| panic!("no memory of the agent in {line:?}"))
        };
        let (before, agent_before) = (resident(), agent().await);
        let mut streams = Vec::new();
        const READERS: u64 = 24;
        for _ in 0..READERS {
            streams.push(Stream::open(&bus, "vm.a.guest.exec", &body).await.unwrap());
        }
        until("every window is full", async || {
            let again = metric("drover_stream_resent_bytes_total").await;
            let sent = metric("drover_stream_sent_bytes_total").await;
            // Less than one more frame has room.
            (sent - again >= READERS * (MAX_WINDOW - MAX_CHUNK as u64)).then_some(())
        })
        .await;
        let grown = resident().saturating_sub(before);
        let in_agent = agent().await.saturating_sub(agent_before);
        println!(
            "STREAM {READERS} readers that stopped: {} KiB more in the daemon, {in_agent} KiB in the agent",
            grown / 1024
        );
        assert!(grown < READERS * 5 * MAX_WINDOW + 16 * MIB, "{grown}");
        // It reads no byte for which the daemon has no room.
        assert!(in_agent < 8 * 1024, "{in_agent} KiB");
        let began = Instant::now();
        bus.status("a").await.unwrap();
        println!("STREAM and a `get` takes {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
        for stream in &streams {
            stream.cancel().await;
        }
        until("all have ended", async || (running(&bus, "yes").await == "0").then_some(())).await;
    });
}

/// Round trips of single bytes through `cat` in the guest.
struct Echo {
    stream: Stream,
    off: u64,
}

impl Echo {
    async fn open(bus: &Bus) -> Self {
        let body = json!({"argv": ["cat"], "stream": true});
        Self { stream: Stream::open(bus, "vm.a.guest.exec", &body).await.unwrap(), off: 0 }
    }

    async fn once(&mut self) -> Duration {
        let began = Instant::now();
        let off = self.off;
        self.stream.data(Channel::Stdin, off, b".").await;
        self.stream.find(|frame| frame.ch == Some(Channel::Stdout) && frame.off == Some(off)).await;
        self.off += 1;
        let took = began.elapsed();
        self.stream.ack(Channel::Stdout, self.off, MAX_WINDOW).await;
        took
    }
}

fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}

#[test]
fn a_command_answers_while_files_move() {
    let options = Options { budget: LONG, ..Options::default() };
    run("a_command_answers_while_files_move", options, async |world| {
        up_with(&world.bus, "a", 1024 * MIB).await;
        let bus = world.bus.clone();
        let mut echo = Echo::open(&bus).await;
        let mut quiet = Vec::new();
        for _ in 0..500 {
            quiet.push(echo.once().await);
        }
        let file = world.path("file");
        random_file(&file, 64 * MIB, 6);
        let (there, back) = (file.to_str().unwrap().to_owned(), world.path("back"));
        let copy = |from: &str, to: &str| drover(world, URL, &["vm", "cp", from, to]).spawn().unwrap();
        let status = copy(&there, "a:/root/file").wait().await.unwrap();
        assert!(status.success());
        // Both ways at once, more of them than there are processors.
        let copies: Vec<_> = (0..4)
            .map(|n| match n % 2 {
                0 => copy(&there, &format!("a:/root/file{n}")),
                _ => copy("a:/root/file", &format!("{}{n}", back.display())),
            })
            .map(|mut copy| tokio::spawn(async move { copy.wait().await.unwrap().success() }))
            .collect();
        let mut busy = Vec::new();
        while copies.iter().all(|copy| !copy.is_finished()) {
            busy.push(echo.once().await);
        }
        for copy in copies {
            assert!(copy.await.unwrap());
        }
        let (count, quiet, busy_ms) = (busy.len(), percentiles(&mut quiet), percentiles(&mut busy));
        println!("STREAM echo quiet p50 {:.2} ms p99 {:.2} ms", quiet.0, quiet.1);
        println!(
            "STREAM echo beside four files p50 {:.2} ms p99 {:.2} ms ({count} round trips)",
            busy_ms.0, busy_ms.1
        );
        assert!(count >= 10, "{count} round trips while the files moved");
        echo.stream.cancel().await;
    });
}
