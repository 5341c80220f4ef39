//! A host by hand, and the real agent as a process of its own.

#![allow(clippy::expect_used, reason = "a test")]
#![allow(dead_code, reason = "each program of tests uses a part")]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drover_agent::conn::Came;
use drover_agent::door::Door;
use drover_agent::emit::Events;
use drover_agent::facts::Facts;
use drover_agent::power::Power;
use drover_agent::release::Release;
use drover_agent::runs::Runs;
use drover_agent::{Agent, conn};
use drover_schemas::guest::wire::{self, Decoder};
use drover_schemas::guest::*;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take, on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(5);

/// An agent in this process, without runs.
pub fn agent() -> Arc<Door> {
    let facts = Facts {
        release: &Release::THIS,
        kind: GuestKind::Vm,
        boot_id: "b".into(),
        instance: "i".into(),
        booted_unix_ms: None,
    };
    let runs = Runs::new("/nonexistent".into(), "/nonexistent".into(), &facts.boot_id);
    // In memory alone.
    let events = Events::open(Path::new("/proc/none"), &facts.boot_id);
    let door = Door::new(facts);
    door.open(Agent::new(&door, Power::Nobody, runs, events, None));
    door
}

/// The daemon's end of a connection, by hand.
pub struct Host {
    pub socket: UnixStream,
    pub decoder: Decoder,
}

impl Host {
    pub fn new(door: &Arc<Door>) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let place = door.connections.take().unwrap();
        tokio::spawn(conn::serve(Box::new(theirs), Came { door: Arc::clone(door), place }));
        Self { socket, decoder: Decoder::default() }
    }

    pub async fn greeted() -> Self {
        let mut host = Self::new(&agent());
        host.say(&hello(1, 1)).await;
        assert!(matches!(host.hear().await, Some(AgentFrame::Hello(h)) if h.proto == 1));
        host
    }

    pub async fn say(&mut self, frame: &HostFrame) {
        let bytes = wire::encode(frame).unwrap();
        self.socket.write_all(&bytes).await.unwrap();
    }

    pub async fn hear(&mut self) -> Option<AgentFrame> {
        loop {
            if let Some(frame) = self.decoder.frame().unwrap() {
                return Some(frame);
            }
            let read = timeout(DEADLINE, self.socket.read_buf(self.decoder.room())).await;
            let read = read.expect("the agent says something in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The agent says why, and closes.
    pub async fn hung_up_on(mut self) -> ErrorCode {
        let mut code = None;
        while let Some(frame) = self.hear().await {
            if let AgentFrame::Bye(bye) = frame {
                code = bye.error.map(|e| e.code);
            }
        }
        code.unwrap()
    }
}

/// The greeting of a host.
pub fn hello(proto_min: u32, proto_max: u32) -> HostFrame {
    HostFrame::Hello(HostHello { proto_min, proto_max, version: "test".into(), features: Vec::new() })
}

/// Looks until `look` finds something.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "still not so: {what}");
        sleep(PAUSE).await;
    }
}

/// Whether a process has ended. A zombie is as good as gone: whoever adopts it will reap it.
pub fn gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// The agent as a process of its own, on a socket of its own.
pub struct Guest {
    pub dir: TempDir,
    program: PathBuf,
    child: Child,
}

impl Guest {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_as(tempfile::tempdir().unwrap(), env!("CARGO_BIN_EXE_drover-agent").into())
    }

    /// Starts one that says much, to nobody.
    pub fn start_unread() -> Self {
        let (dir, program) =
            (tempfile::tempdir().unwrap(), PathBuf::from(env!("CARGO_BIN_EXE_drover-agent")));
        let mut command = Self::command(dir.path(), &program);
        let child = command.args(["--log", "debug"]).stderr(Stdio::piped()).spawn().unwrap();
        Self { dir, program, child }
    }

    /// What it says.
    pub fn says(&mut self) -> ChildStderr {
        self.child.stderr.take().unwrap()
    }

    /// Starts one whose program lies in its own folder: upgrades replace it.
    pub fn start_a_copy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("drover-agent");
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_drover-agent"));
        assert!(strip.status().unwrap().success());
        Self::start_as(dir, program)
    }

    fn start_as(dir: TempDir, program: PathBuf) -> Self {
        let child = Self::command(dir.path(), &program).spawn().unwrap();
        Self { dir, program, child }
    }

    fn command(dir: &Path, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg(format!("--listen=unix:{}", dir.join("agent.sock").display()));
        command.arg("--run-dir").arg(dir.join("run")).args(["--log", "warn"]);
        command.env("DROVER_AGENT_GUEST", "process").env("DROVER_AGENT_BOOT_ID", "boot");
        // As `nohup` and a shell's background leave them: its commands must end by Ctrl-C all the same.
        // SAFETY: system calls on integers, in the child.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                Ok(())
            })
        };
        command.stdin(Stdio::null());
        command
    }

    /// Kills the agent as a crash would, and starts another.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::command(self.dir.path(), &self.program).spawn().unwrap();
    }

    /// Kills the agent, with the process that stands before it.
    pub fn kill(&mut self) {
        let front = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{front}/task/{front}/children"));
        let is_agent = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "drover-agent\n")
        };
        let children = children.unwrap_or_default();
        let agents: Vec<&str> = children.split_whitespace().filter(is_agent).collect();
        let _ = self.child.kill();
        self.child.wait().unwrap();
        for agent in agents {
            // It ends by itself when the one before it has; the next must not meet it.
            let until = std::time::Instant::now() + DEADLINE;
            while !gone(agent) && std::time::Instant::now() < until {
                std::thread::park_timeout(PAUSE);
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A connection that was greeted. As a host does, it connects again when one was closed before: an agent that
    /// another follows in that very moment does so.
    pub async fn host(&self) -> Host {
        let until = Instant::now() + DEADLINE;
        loop {
            let why = match UnixStream::connect(self.path("agent.sock")).await {
                Ok(socket) => {
                    let mut host = Host { socket, decoder: Decoder::default() };
                    host.say(&hello(1, 1)).await;
                    match host.hear().await {
                        Some(AgentFrame::Hello(_)) => return host,
                        None => "it closed the connection".to_owned(),
                        Some(frame) => panic!("no greeting: {frame:?}"),
                    }
                }
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < until, "no agent: {why}");
            sleep(PAUSE).await;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A shell that runs `script`.
pub fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["sh".into(), "-c".into(), script.into()], ..Default::default() }
}

/// What came on a stream.
#[derive(Debug, Default)]
pub struct Said {
    pub head: Option<Vec<u8>>,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

const WINDOW: u64 = 256 * 1024;

impl Host {
    /// Opens a stream.
    pub async fn open<T: Serialize>(&mut self, stream: u32, verb: &str, id: Option<RequestId>, body: &T) {
        let request = Request {
            stream,
            verb: verb.into(),
            request_id: id,
            deadline_ms: None,
            traceparent: None,
            caller: None,
            credit: WINDOW,
            body: codec::encode(body).unwrap().into(),
        };
        self.say(&HostFrame::Req(request)).await;
    }

    /// Sends input.
    pub async fn type_in(&mut self, stream: u32, off: &mut u64, text: &str, eof: bool) {
        let data = Data { stream, ch: Channel::Stdin, off: *off, data: text.as_bytes().to_vec().into(), eof };
        *off += text.len() as u64;
        self.say(&HostFrame::Data(data)).await;
    }

    /// Takes one frame into `said`; the answer when it comes.
    pub async fn take(&mut self, said: &mut Said) -> Option<Result<Vec<u8>, ErrorBody>> {
        match self.hear().await.expect("the agent stays") {
            AgentFrame::Head(head) => said.head = Some(head.body.0.to_vec()),
            AgentFrame::Data(data) => {
                let into = if data.ch == Channel::Stderr { &mut said.err } else { &mut said.out };
                assert_eq!(data.off, into.len() as u64);
                into.extend_from_slice(data.data.as_slice());
                let (stream, ch, limit) = (data.stream, data.ch, into.len() as u64 + WINDOW);
                self.say(&HostFrame::Credit(Credit { stream, ch, limit })).await;
            }
            AgentFrame::Res(res) => {
                return Some(match (res.body, res.error) {
                    (_, Some(error)) => Err(error),
                    (body, None) => Ok(body.unwrap().0.to_vec()),
                });
            }
            _ => {}
        }
        None
    }

    /// Reads until `wanted` was said.
    pub async fn sees(&mut self, said: &mut Said, wanted: &str) {
        while !said.text().contains(wanted) {
            let ended = self.take(said).await;
            assert!(ended.is_none(), "it ended without {wanted:?} in {:?}: {ended:?}", said.text());
        }
    }

    /// Reads to the end.
    pub async fn end<T: DeserializeOwned>(&mut self, said: &mut Said) -> Result<T, ErrorBody> {
        loop {
            if let Some(end) = self.take(said).await {
                return end.map(|bytes| codec::decode(&bytes).unwrap());
            }
        }
    }

    /// One request, to its end.
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        verb: &str,
        id: Option<RequestId>,
        body: &Q,
    ) -> Result<A, ErrorBody> {
        self.open(99, verb, id, body).await;
        self.end(&mut Said::default()).await
    }

    /// A command, to its end.
    pub async fn exec(&mut self, request: &ExecRequest) -> (Said, Result<ExecResult, ErrorBody>) {
        let mut said = Said::default();
        self.open(99, verb::EXEC, None, request).await;
        let end = self.end(&mut said).await;
        (said, end)
    }
}
