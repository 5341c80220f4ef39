//! Streams that say nothing for much longer than the server remembers, between two accounts, where answers go.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, FileResult};
use drover_schemas::codec;
use drover_schemas::stream::{Channel, MAX_WINDOW, StreamEnd, StreamFrame};
use drover_tests::client::Bus;
use drover_tests::relay::Relay;
use drover_tests::stream::Stream;
use drover_tests::tmux::Terminal;
use drover_tests::wait::{until, until_within};
use drover_tests::wire::Publication;
use drover_tests::world::{Options, URL, World, run};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// What the server is told instead of ten minutes: less than half of the time between two keep-alives.
const THRESHOLD: &str = "8s";
/// A client sends one when it begins and then one each 20 s: with three, five times the threshold has passed.
const KEEP_ALIVES: usize = 3;
/// A boot in software emulation, or the time that is idled away, on a busy machine.
const LONG: Duration = Duration::from_secs(300);
/// More than a window, so that whoever reads a file may stop in the middle of it.
const FILE: usize = 2 * MAX_WINDOW as usize;

/// How many keep-alives went over a relay, by stream.
type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

fn keep_alives(relay: &Relay) -> Counts {
    let counts = Counts::default();
    let counting = Arc::clone(&counts);
    relay.rule(move |publication| {
        // Only with a reply subject does the server remember anew where answers go.
        if publication.reply.is_some() && publication.frame().is_some_and(|frame| frame.keep_alive) {
            *counting.lock().unwrap().entry(publication.subject.clone()).or_default() += 1;
        }
        vec![publication]
    });
    counts
}

/// All that a host answers across accounts.
fn answers(relay: &Relay) -> Arc<Mutex<Vec<Publication>>> {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let kept = Arc::clone(&seen);
    relay.rule(move |publication| {
        if publication.subject.starts_with("_R_.") {
            kept.lock().unwrap().push(publication.clone());
        }
        vec![publication]
    });
    seen
}

fn holds(payload: &[u8], wanted: &str) -> bool {
    payload.windows(wanted.len()).any(|part| part == wanted.as_bytes())
}

/// Two accounts on a server that forgets soon, a host whose answers go over a relay, and a real guest `a`.
async fn start(world: &mut World) -> Relay {
    let file = json!({
        "mode": "tenants",
        "servers": [{"name": "n1", "listen": "127.0.0.1:4222"}],
        "store_dir": world.path("js"),
        "hosts": [world.user("h1", &[])],
        "admins": [world.user("ops", &[])],
        "namespaces": [{"name": "default", "users": [world.user("all", &["operator", "guest"])]}],
    });
    let printed = world.print_config(&file, None).await;
    let text = fs::read_to_string(&printed).unwrap();
    let usual = "response_threshold: \"600s\"";
    assert!(text.contains(usual), "{text}");
    fs::write(&printed, text.replace(usual, &format!("response_threshold: \"{THRESHOLD}\""))).unwrap();
    world.start_nats_as(&printed).await;
    world.init_bus("ops").await;
    let host = Relay::start("127.0.0.1:4302", URL).await;
    world.urls = vec![host.url.clone()];
    world.configure_with(|config| config["bus"]["nkey_seed_file"] = json!(world.seed("h1")));
    world.start();
    world.bus = world.enter("ops", URL).await;
    world.ready().await;
    let spec = json!({"boot": {"cmdline": "console=ttyS0 panic=-1"}, "agent": {"ready_timeout_ms": 300_000}});
    world.bus.create("a", json!({"spec": spec})).await.unwrap();
    until_within(LONG, "the agent", async || {
        world.bus.ask("vm.a.guest.ping", &json!({})).get::<serde_json::Value>().await.ok()
    })
    .await;
    host
}

fn drover(world: &World, url: &str, args: &[&str]) -> String {
    let login = world.login("all").join(" ");
    format!("DROVER_NATS_URL={url} {} {login} {}", world.bin("drover").display(), args.join(" "))
}

/// A command that writes to a pipe.
fn piped(line: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec env {line}")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

async fn reads(from: &mut BufReader<ChildStdout>, wanted: &str) {
    let mut line = String::new();
    let found = async {
        while !line.contains(wanted) {
            line.clear();
            assert!(from.read_line(&mut line).await.unwrap() > 0, "it ended without {wanted:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
}

/// A put and a get of one file, both stopped in the middle, whose client only says that it is there.
struct Files {
    put: Stream,
    get: Stream,
    got: Vec<u8>,
}

fn bytes() -> Vec<u8> {
    (0..FILE).map(|n| (n / 251 + n) as u8).collect()
}

impl Files {
    async fn open(all: &Bus) -> Self {
        let made = json!({"argv": ["sh", "-c", format!("head -c {FILE} /dev/urandom > /root/there")]});
        all.ask("vm.a.guest.exec", &made).get::<ExecReply>().await.unwrap();
        let body = json!({"path": "/root/here", "size_bytes": FILE});
        let put = Stream::open(all, "vm.a.guest.put", &body).await.unwrap();
        put.data(Channel::Data, 0, &bytes()[..1_000]).await;
        let mut get = Stream::open(all, "vm.a.guest.get", &json!({"path": "/root/there"})).await.unwrap();
        let mut got = Vec::new();
        while got.len() < MAX_WINDOW as usize {
            take(&mut got, &get.next().await);
        }
        Self { put, get, got }
    }

    async fn finish(mut self) {
        let whole = bytes();
        let mut at = 1_000;
        let mut limit = self.put.opened.window as usize;
        while at < whole.len() {
            let end = whole.len().min(at + 32 * 1024);
            while limit < end {
                let frame = self.put.find(|frame| frame.window.is_some()).await;
                limit = limit.max((frame.acked_off.unwrap() + frame.window.unwrap()) as usize);
            }
            self.put.data(Channel::Data, at as u64, &whole[at..end]).await;
            at = end;
        }
        let (ch, off, data) = (Some(Channel::Data), Some(at as u64), Some(Vec::new().into()));
        self.put.send(&StreamFrame { ch, off, data, eof: true, ..StreamFrame::default() }).await;
        let end = self.put.find(|frame| frame.end.is_some()).await.end.unwrap();
        let StreamEnd::Result(result) = end else { panic!("{end:?}") };
        let put: FileResult = codec::decode(&result.0).unwrap();
        assert_eq!(put.size_bytes, FILE as u64);

        let mut ended = false;
        let end = loop {
            let acked = self.got.len() as u64 + u64::from(ended);
            self.get.ack(Channel::Data, acked, MAX_WINDOW).await;
            let frame = self.get.next().await;
            take(&mut self.got, &frame);
            ended |= frame.eof && self.got.len() == FILE;
            if let Some(end) = frame.end {
                break end;
            }
        };
        let StreamEnd::Result(result) = end else { panic!("{end:?}") };
        let get: FileResult = codec::decode(&result.0).unwrap();
        assert_eq!(self.got.len(), FILE);
        assert_eq!(get.sha256, format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(&self.got)));
        for stream in [&self.put, &self.get] {
            stream.send(&StreamFrame { done: true, ..StreamFrame::default() }).await;
        }
    }
}

/// Keeps what a frame has that is new and next.
fn take(got: &mut Vec<u8>, frame: &StreamFrame) {
    if let (Some(off), Some(data)) = (frame.off, &frame.data) {
        let known = got.len().saturating_sub(off as usize);
        if off as usize <= got.len() && known < data.0.len() {
            got.extend_from_slice(&data.0[known..]);
        }
    }
}

#[test]
fn streams_that_idle_between_accounts_go_on() {
    let test = "streams_that_idle_between_accounts_go_on";
    if !Terminal::is_there() {
        return println!("SKIP {test}: tmux is not installed");
    }
    let options = Options { guest: "qemu", budget: LONG * 2, ..Options::down() };
    run(test, options, async |world| {
        let host = start(world).await;
        let answered = answers(&host);
        let client = Relay::start("127.0.0.1:4301", URL).await;
        let counts = keep_alives(&client);

        let start = ["vm", "exec", "-it", "--env", "PS1='guest# '", "a", "--", "sh"];
        let shell = Terminal::start(world.path("shell"), (24, 90), &drover(world, &client.url, &start));
        shell.shows("guest#").await;
        let line = drover(world, &client.url, &["vm", "console", "a"]);
        let console = Terminal::start(world.path("console"), (24, 90), &line);
        // These have no way in, on which the host would say something of itself.
        let (mut log, mut logged) = piped(&drover(world, &client.url, &["vm", "logs", "a", "--follow"]));
        let script = "'until [ -e /tmp/go ]; do sleep 1; done; echo went; exit 5'";
        let (mut waits, mut said) =
            piped(&drover(world, &client.url, &["vm", "exec", "a", "--", "sh", "-c", script]));
        let all = world.enter("all", URL).await;
        let files = Files::open(&all).await;

        // One whose keep-alives are lost.
        let dumb = Relay::start("127.0.0.1:4303", URL).await;
        dumb.rule(|publication| match publication.frame().is_some_and(|frame| frame.keep_alive) {
            true => Vec::new(),
            false => vec![publication],
        });
        let forgotten = world.enter("all", &dumb.url).await;
        let mut forgotten =
            Stream::open(&forgotten, "vm.a.logs", &json!({"follow": true, "tail_bytes": 0})).await.unwrap();
        let its = answered.lock().unwrap().iter().find_map(|answer| {
            holds(&answer.payload, &forgotten.opened.io_subject).then(|| answer.subject.clone())
        });
        let (its, mut heard) = (its.unwrap(), Vec::new());

        for round in 1..=KEEP_ALIVES {
            until_within(LONG, "every stream has said that it is there", async || {
                let counts = counts.lock().unwrap();
                (counts.len() == 4 && counts.values().all(|count| *count >= round)).then_some(())
            })
            .await;
            files.put.here().await;
            files.get.here().await;
            // The host hears of this one too, which says nothing of where it is.
            while let Some(frame) = forgotten.waiting() {
                take(&mut heard, &frame);
            }
            forgotten.ack(Channel::Stdout, heard.len() as u64, MAX_WINDOW).await;
        }

        shell.line("echo back-$((6 * 7))");
        shell.shows("back-42").await;
        console.line("");
        console.line("echo here-$((40 + 2))");
        console.shows("here-42").await;
        reads(&mut logged, "here-42").await;
        // The host has told it twice, so the server had the first time, and did not know whom to give it to.
        let known = heard.len() as u64;
        until("the host tells again what is not acknowledged", async || {
            let answered = answered.lock().unwrap();
            let told = answered.iter().filter(|answer| answer.subject == its);
            let told = told.filter(|answer| answer.frame().is_some_and(|frame| frame.off == Some(known)));
            (told.count() >= 2).then_some(())
        })
        .await;
        while let Some(frame) = forgotten.waiting() {
            assert!(frame.off.is_none_or(|off| off < known), "the server had not forgotten: {frame:?}");
        }
        dumb.rule(|publication| vec![publication]);
        forgotten.here().await;
        while !holds(&heard, "here-42") {
            take(&mut heard, &forgotten.next().await);
        }
        forgotten.cancel().await;

        shell.line("touch /tmp/go");
        reads(&mut said, "went").await;
        assert_eq!(waits.wait().await.unwrap().code(), Some(5));
        files.finish().await;
        shell.line("exit 7");
        assert_eq!(shell.ended().await, 7);
        console.key("C-]");
        assert_eq!(console.ended().await, 0);
        world.bus.change("a", "delete").await.unwrap();
        assert_eq!(log.wait().await.unwrap().code(), Some(0));
    });
}
