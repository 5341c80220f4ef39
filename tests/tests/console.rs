//! The serial console of a real guest: kept from the first byte, followed by several, written to by one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Stdio;
use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::vm::LogsReply;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A `drover` that stays.
struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    seen: String,
}

impl Session {
    fn start(world: &World, args: &[&str]) -> Self {
        let mut command = Command::new(world.bin("drover"));
        command.args(args);
        Self::run(command)
    }

    /// At a terminal of its own.
    fn at_terminal(world: &World, args: &[&str]) -> Self {
        let line = format!("{} {}", world.bin("drover").display(), args.join(" "));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        command.env("DROVER_NATS_URL", drover_tests::world::URL);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, stdin, stdout, seen: String::new() }
    }

    async fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).await.unwrap();
        stdin.flush().await.unwrap();
    }

    async fn sees(&mut self, wanted: &str) {
        let mut buffer = [0; 4096];
        while !self.seen.contains(wanted) {
            let read = tokio::time::timeout(Duration::from_secs(30), self.stdout.read(&mut buffer)).await;
            let read = read.unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", self.seen)).unwrap();
            if read == 0 {
                let mut said = String::new();
                let _ = self.child.stderr.take().unwrap().read_to_string(&mut said).await;
                panic!("it ended without {wanted:?} in {:?}: {said}", self.seen);
            }
            self.seen += &String::from_utf8_lossy(&buffer[..read]);
        }
    }

    /// What it wrote to stderr, and its exit code.
    async fn end(mut self) -> (String, Option<i32>) {
        drop(self.stdin.take());
        let output = tokio::time::timeout(Duration::from_secs(30), self.child.wait_with_output()).await;
        let output = output.unwrap().unwrap();
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
    }
}

#[test]
fn the_console_is_kept_followed_and_used() {
    let options = Options { guest: "qemu", budget: Duration::from_secs(300), ..Options::default() };
    run("the_console_is_kept_followed_and_used", options, async |world| {
        let bus = world.bus.clone();
        let spec = json!({"boot": {"cmdline": "console=ttyS0 panic=-1"}});
        bus.create("a", json!({"spec": spec, "wait": "agent"})).await.unwrap();
        let log: LogsReply = bus.ask("vm.a.logs", &json!({"tail_bytes": 262_144})).get().await.unwrap();
        let text = String::from_utf8_lossy(log.data.as_slice()).into_owned();
        assert!(log.offset == 0 && text.contains("Linux version"), "kept from the first byte: {text}");

        let mut reader = Session::start(world, &["vm", "logs", "a", "--follow"]);
        let mut other = Session::start(world, &["vm", "logs", "a", "-f", "--tail", "1"]);
        reader.sees("Linux version").await;
        let mut writer = Session::start(world, &["vm", "console", "a"]);
        writer.say("\n").await;
        writer.sees("# ").await;
        writer.say("echo it-$((40 + 2))\n").await;
        for session in [&mut writer, &mut reader, &mut other] {
            session.sees("it-42").await;
        }

        // One writes at a time; who insists takes it over.
        let (said, code) = Session::start(world, &["vm", "console", "a"]).end().await;
        assert!(said.contains("busy") && said.contains("take") && code != Some(0), "{said}");
        let mut next = Session::start(world, &["vm", "console", "a", "--take"]);
        next.say("echo me-$((1 + 1))\n").await;
        next.sees("me-2").await;
        let (said, code) = writer.end().await;
        assert!(said.contains("taken the console") && code != Some(0), "{said}");

        // At a terminal every key goes to the guest but the one that leaves.
        let (said, code) = next.end().await;
        assert_eq!((said.as_str(), code), ("", Some(0)));
        let mut typed = Session::at_terminal(world, &["vm", "console", "a"]);
        typed.sees("Ctrl-] leaves it").await;
        typed.say("cat\r").await;
        // What is typed while a program takes or gives back the terminal may be lost, as on any terminal.
        let runs = async |wanted: bool| {
            let ask = bus.ask("vm.a.guest.exec", &json!({"argv": ["pidof", "cat"]}));
            let done: ExecReply = ask.get().await.ok()?;
            let ExecReply::Result(done) = done else { return None };
            (done.exit_code == Some(i32::from(!wanted))).then_some(())
        };
        until("the program waits for input", async || runs(true).await).await;
        typed.say("xyz\r").await;
        // Once by the terminal in the guest, once by the program, which then is interrupted.
        typed.sees("xyz\r\nxyz\r\n").await;
        typed.say("\x03").await;
        until("it was interrupted", async || runs(false).await).await;
        typed.say("\r").await;
        typed.say("echo tty-$((3 * 3))\r").await;
        typed.sees("tty-9").await;
        typed.say("\x1d").await;
        assert_eq!(typed.end().await.1, Some(0));
        let next = Session::start(world, &["vm", "console", "a"]);

        // The daemon may be killed: who was connected is told, and everything is still there.
        let (said, code) = next.end().await;
        assert_eq!((said.as_str(), code), ("", Some(0)));
        world.kill().await;
        world.start();
        world.ready().await;
        bus.until_ping("a").await;
        let mut again = Session::start(world, &["vm", "console", "a"]);
        again.sees("me-2").await;
        again.say("echo and-$((2 + 1))\n").await;
        again.sees("and-3").await;

        // The log goes on over a stop and a start, and ends with the VM.
        let mut last = Session::start(world, &["vm", "logs", "a", "-f", "--tail", "1"]);
        bus.change_with("a", "stop", json!({"force": true})).await.unwrap();
        let refused = Session::start(world, &["vm", "console", "a"]).end().await;
        assert!(refused.0.contains("invalid_state"), "{refused:?}");
        bus.change_with("a", "start", json!({"wait": "running"})).await.unwrap();
        last.sees("Linux version").await;
        bus.change("a", "delete").await.unwrap();
        let (said, code) = last.end().await;
        assert_eq!((said.as_str(), code), ("", Some(0)));
        until("nothing watches a VM that is gone", async || {
            (world.descriptors("inotify") == 0).then_some(())
        })
        .await;
    });
}
