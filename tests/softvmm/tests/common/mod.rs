//! A VMM process with its folder: starts it, calls it, and leaves nothing of it behind.
#![allow(dead_code, missing_docs)] // each test file uses a part

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(20);

/// Asks `what` until it says yes; waits on a socket that nobody writes to, since nothing here sleeps.
#[track_caller]
pub fn until<T>(limit: Duration, why: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    let (quiet, _other) = UnixStream::pair().expect("socket pair");
    quiet.set_read_timeout(Some(Duration::from_millis(5))).expect("timeout");
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "in time: {why}");
        let _ = (&quiet).read(&mut [0]);
    }
}

pub struct Vmm {
    pub dir: TempDir,
    pub child: Child,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = std::fs::read(self.path("console")).unwrap_or_default();
            println!("stderr: {}", self.stderr());
            println!("events: {:?}", self.events());
            println!("console: {}", String::from_utf8_lossy(&console));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vmm {
    pub fn process() -> Self {
        Self::start(&[("SOFTVMM_GUEST", "process")])
    }

    pub fn start(env: &[(&str, &str)]) -> Self {
        let mut vmm = Self::start_in(TempDir::new().expect("temp dir"), env);
        until(LIMIT, "the API socket is there", || {
            assert!(vmm.child.try_wait().expect("wait").is_none(), "it started: {}", vmm.stderr());
            UnixStream::connect(vmm.path("api")).ok()
        });
        vmm
    }

    pub fn start_in(dir: TempDir, env: &[(&str, &str)]) -> Self {
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("kernel"), b"\x7fELF").expect("write");
        std::fs::write(at("disk"), [0; 4096]).expect("write");
        let stderr =
            OpenOptions::new().create(true).append(true).mode(0o600).open(at("stderr")).expect("open");
        let mut command = Command::new(env!("CARGO_BIN_EXE_softvmm"));
        command.arg("--api-socket").arg(format!("path={}", at("api").display()));
        command.arg("--event-monitor").arg(format!("path={}", at("events").display()));
        command.arg("--no-shutdown").env("SOFTVMM_AGENT", env!("CARGO_BIN_EXE_softvmm-stand-in"));
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().expect("spawn");
        Self { dir, child }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    pub fn config(&self) -> Value {
        json!({
            "payload": {"kernel": self.path("kernel"), "cmdline": "console=ttyS0"},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 134_217_728},
            "disks": [{"path": self.path("disk"), "image_type": "Raw", "id": "disk0"}],
            "vsock": {"cid": 3, "socket": self.path("v"), "id": "vsock0"},
            "serial": {"mode": "Socket", "socket": self.path("serial")},
            "console": {"mode": "Off"},
            "pvpanic": true,
        })
    }

    pub fn call(&self, method: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.path("api")).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("timeout");
        call(&mut stream, method, name, body).expect("an answer")
    }

    #[track_caller]
    pub fn put(&self, name: &str) {
        assert_eq!(self.call("PUT", name, None), (204, Value::Null), "{name}");
    }

    #[track_caller]
    pub fn create_and_boot(&self) {
        assert_eq!(self.call("PUT", "vm.create", Some(&self.config())), (204, Value::Null));
        self.put("vm.boot");
    }

    pub fn state(&self) -> Value {
        self.call("GET", "vm.info", None).1["state"].clone()
    }

    /// The events so far, as `source event`.
    pub fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("events")).unwrap_or_default();
        let whole = serde_json::Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok);
        whole.map(|e| format!("{} {}", e["source"].as_str().unwrap(), e["event"].as_str().unwrap())).collect()
    }

    #[track_caller]
    pub fn wait_event(&self, event: &str, times: usize) {
        let count = || self.events().iter().filter(|e| *e == event).count();
        until(LIMIT, event, || (count() >= times).then_some(()));
    }

    /// Dials a port of the guest until somebody answers.
    #[track_caller]
    pub fn dial(&self, port: u32) -> Guest {
        until(LIMIT, "the guest answers", || self.dial_once(port))
    }

    pub fn dial_once(&self, port: u32) -> Option<Guest> {
        let mut stream = UnixStream::connect(self.path("v")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).ok()?;
        let mut lines = BufReader::new(stream);
        let mut answer = String::new();
        lines.read_line(&mut answer).ok()?;
        answer.starts_with("OK ").then_some(Guest(lines))
    }

    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until(LIMIT, "it ends", || child.try_wait().expect("wait"))
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).expect("signal");
    }

    /// The direct children of the VMM.
    pub fn helpers(&self) -> Vec<u32> {
        let id = self.child.id();
        let list = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|p| p.parse().ok()).collect()
    }
}

pub struct Guest(BufReader<UnixStream>);

impl Guest {
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("write");
        self.hear()
    }

    /// The next line that the guest says.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("read");
        answer.trim_end().to_owned()
    }

    /// Waits until the other side is gone.
    #[track_caller]
    pub fn wait_end(&mut self) {
        let mut rest = Vec::new();
        let end = self.0.read_to_end(&mut rest);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }

    pub fn tell(&mut self, line: &str) {
        let _ = self.0.get_mut().write_all(format!("{line}\n").as_bytes());
    }
}

pub fn call(
    stream: &mut UnixStream,
    method: &str,
    name: &str,
    body: Option<&Value>,
) -> std::io::Result<(u16, Value)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream
        .write_all(format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}").as_bytes())?;
    softvmm::conformance::read_answer(stream).map(|(status, text)| {
        (
            status,
            serde_json::from_str(&text).unwrap_or(if text.is_empty() { Value::Null } else { text.into() }),
        )
    })
}

pub fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// A TAP of the test, up and persistent; removed with the value.
pub struct Tap(pub String);

impl Tap {
    /// `None`, with a printed reason, where none can be made.
    pub fn make() -> Option<Self> {
        let name = format!("svt{}", std::process::id());
        let ip = |args: &[&str]| Command::new("ip").args(args).output().is_ok_and(|o| o.status.success());
        if !ip(&["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"]) {
            println!("skipped: a TAP cannot be made here");
            return None;
        }
        let tap = Self(name);
        assert!(ip(&["link", "set", &tap.0, "up"]));
        Some(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}
