//! Transcripts: what a VMM answered to a list of requests, in a form that can be compared.
//!
//! A transcript is a JSON file with scenarios. Each scenario starts a fresh VMM in a folder with the
//! files it names, sends its requests, and ends it with SIGTERM; what is recorded is every status and
//! body, the events, the exit status and what is left in the folder. Volatile facts (the folder, the
//! pid, versions, addresses on the PCI bus) are replaced by names before anything is written down.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);
/// What stands for the folder of a scenario.
pub const FOLDER: &str = "{dir}";
/// What stands for a kernel that can be booted.
pub const KERNEL: &str = "{kernel}";

/// A file of scenarios.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// What was recorded: name and version of the VMM.
    pub of: String,
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
}

/// One life of a VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// What it shows.
    pub name: String,
    /// Files that are there before: name and size in bytes of zeroes.
    #[serde(default)]
    pub files: Vec<(String, usize)>,
    /// Stale sockets that are there before.
    #[serde(default)]
    pub sockets: Vec<String>,
    /// Requests with their answers.
    pub exchanges: Vec<Exchange>,
    /// Events as `source event`, in order.
    #[serde(default)]
    pub events: Vec<String>,
    /// The exit status after the last exchange and, if that did not end it, SIGTERM.
    #[serde(default)]
    pub exit: Option<i32>,
    /// Names that are left in the folder, sorted, without those that were there before.
    #[serde(default)]
    pub left: Vec<String>,
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Body as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Body as text, where it is not JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `Content-Length` without that many bytes, for a body that is refused unseen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<usize>,
    /// Status of the answer.
    #[serde(default)]
    pub status: u16,
    /// Body of the answer: JSON, or text, or nothing.
    #[serde(default)]
    pub answer: Value,
}

/// In what `played` is not as `recorded`, in words.
#[must_use]
pub fn differences(recorded: &Scenario, played: &Scenario) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |what: &str, there: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug| {
        found.push(format!("{}: {what}\n  recorded {there:?}\n  here     {here:?}", recorded.name));
    };
    for (n, (there, here)) in recorded.exchanges.iter().zip(&played.exchanges).enumerate() {
        if there != here {
            let what = format!("exchange {n}, {} {}", there.method, there.path);
            differs(&what, &(there.status, &there.answer), &(here.status, &here.answer));
        }
    }
    // The real one writes events from a thread that its end does not wait for: the last ones may be missing.
    let common = recorded.events.len().min(played.events.len());
    if recorded.events[..common] != played.events[..common] {
        differs("events", &recorded.events, &played.events);
    }
    if recorded.exit != played.exit {
        differs("exit", &recorded.exit, &played.exit);
    }
    if recorded.left != played.left {
        differs("left", &recorded.left, &played.left);
    }
    found
}

/// Runs a scenario against the VMM at `program`, with guests of `kernel`, and gives what happened in place of what
/// was written.
///
/// # Errors
/// The VMM did not start, or did not answer.
pub fn play(
    scenario: &Scenario,
    program: &Path,
    kernel: &Path,
    env: &[(&str, &str)],
    dir: &Path,
) -> io::Result<Scenario> {
    let mut played = scenario.clone();
    for (name, size) in &scenario.files {
        std::fs::write(dir.join(name), vec![0; *size])?;
    }
    for name in &scenario.sockets {
        drop(UnixListener::bind(dir.join(name))?);
    }
    let mut command = Command::new(program);
    command.arg("--api-socket").arg(format!("path={}", dir.join("api").display()));
    command.arg("--event-monitor").arg(format!("path={}", dir.join("events").display()));
    command.arg("--no-shutdown").envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut vmm = Killed(command.spawn()?);
    await_socket(&dir.join("api"))?;
    for exchange in &mut played.exchanges {
        let (status, text) = exchange.send(dir, kernel)?;
        exchange.status = status;
        exchange.answer = normalise(&text, dir, kernel);
    }
    played.exit = end(&mut vmm.0)?;
    played.events = events(&std::fs::read_to_string(dir.join("events"))?);
    let before = |name: &String| {
        scenario.files.iter().any(|(file, _)| file == name) || scenario.sockets.contains(name)
    };
    let names = std::fs::read_dir(dir)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    played.left = names.filter(|name| !before(name)).collect();
    played.left.sort();
    Ok(played)
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits a little, on a socket that nobody writes to.
fn pause() -> io::Result<()> {
    let (quiet, _other) = UnixStream::pair()?;
    quiet.set_read_timeout(Some(Duration::from_millis(5)))?;
    let _ = (&quiet).read(&mut [0]);
    Ok(())
}

fn await_socket(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    while UnixStream::connect(path).is_err() {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no API socket"));
        }
        pause()?;
    }
    Ok(())
}

fn end(vmm: &mut Child) -> io::Result<Option<i32>> {
    // Something that was told to end does so before the signal reaches it, or because of it.
    let _ = kill(Pid::from_raw(vmm.id() as i32), Signal::SIGTERM);
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = vmm.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"));
        }
        pause()?;
    }
}

impl Exchange {
    fn send(&self, dir: &Path, kernel: &Path) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(dir.join("api"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let fill = |text: String| {
            text.replace(FOLDER, &dir.to_string_lossy()).replace(KERNEL, &kernel.to_string_lossy())
        };
        let json = self.body.as_ref().map(|body| fill(body.to_string()));
        let body = json.or_else(|| self.text.clone()).unwrap_or_default();
        let length = self.announce.unwrap_or(body.len());
        let header = if length > 0 { format!("Content-Length: {length}\r\n") } else { String::new() };
        let head = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n", self.method, self.path);
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        read_answer(&mut stream)
    }
}

/// Reads one answer: its status and its body.
///
/// # Errors
/// The connection ended first, or what came is not HTTP.
pub fn read_answer(stream: &mut UnixStream) -> io::Result<(u16, String)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        if head.len() > 4096 || !b"HTTP/1.1".starts_with(&head[..head.len().min(8)]) {
            return Err(bad());
        }
    }
    let head = String::from_utf8(head).map_err(|_| bad())?;
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body).map_err(|_| bad())?))
}

fn normalise(text: &str, dir: &Path, kernel: &Path) -> Value {
    let text = text.replace(&*kernel.to_string_lossy(), KERNEL).replace(&*dir.to_string_lossy(), FOLDER);
    let mut value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) if text.is_empty() => Value::Null,
        Err(_) => return Value::from(text),
    };
    for (field, name) in [("pid", "{pid}"), ("version", "{version}"), ("build_version", "{version}")] {
        if let Some(found) = value.get_mut(field) {
            *found = Value::from(name);
        }
    }
    // The nodes are compared, where they sit on the bus is not.
    if let Some(tree) = value.get_mut("device_tree").and_then(Value::as_object_mut) {
        for node in tree.values_mut().filter_map(Value::as_object_mut) {
            node.remove("resources");
            node.remove("pci_bdf");
        }
    }
    value
}

fn events(text: &str) -> Vec<String> {
    let whole = serde_json::Deserializer::from_str(text).into_iter::<Value>().map_while(Result::ok);
    let name = |event: &Value, field: &str| event[field].as_str().unwrap_or("?").to_owned();
    // When devices are activated is the guest's affair.
    let of_vm = whole.filter(|event| event["source"] != "virtio-device");
    of_vm.map(|event| format!("{} {}", name(&event, "source"), name(&event, "event"))).collect()
}
