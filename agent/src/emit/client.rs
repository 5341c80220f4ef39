//! `drover-agent emit`: publishes one event through the local socket.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use drover_schemas::ErrorCode;
use drover_schemas::guest::{EventData, EventType};
use serde_json::{Map, Value};

use super::own::UNIT_FAILED;
use super::socket::{Answer, MAX_WAIT_MS, Said};
use super::socket_beside;
use crate::{RUN_DIR, log};

/// What `emit` takes.
pub const USAGE: &str = "\
usage: drover-agent emit TYPE [--data JSON | KEY=VALUE…] [--wait] [--timeout SECONDS] [--socket PATH]

Publishes an event on the bus of this guest's host, from the user who runs this.
  TYPE       what happened, such as app.deployed: a-z, 0-9, '-', '_' and '.', at most 63 characters
  --data     a JSON object; or pairs, whose values are text
  --wait     until the host has it for good
  --timeout  how long to wait, at most 300 (default 30)
  --socket   the agent's (default /run/drover-agent.sock)

Exit codes: 0 taken (with --wait: delivered), 64 usage, 65 not an event, 69 no agent answers, 75 refused for now or not
delivered in time, 77 not allowed.
";

/// Usage errors and the rest, after sysexits.h.
const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_UNAVAILABLE: u8 = 69;
const EX_TEMPFAIL: u8 = 75;
const EX_NOPERM: u8 = 77;

/// How long the agent may take beside what it is told to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum EmitError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Data(String),
    #[error("no agent answers at {path}; see that drover-agent runs")]
    Agent {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the agent answered what this program does not understand")]
    Answer {
        #[source]
        source: serde_json::Error,
    },
    #[error("the agent refused the event ({code}): {message}")]
    Refused { code: ErrorCode, message: String },
    #[error(
        "the event is kept as {id}, and did not reach the host within {seconds} s; it will when the host is there"
    )]
    NotYet { id: String, seconds: u64 },
}

impl EmitError {
    const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => EX_USAGE,
            Self::Data(_) => EX_DATAERR,
            Self::Agent { .. } | Self::Answer { .. } => EX_UNAVAILABLE,
            Self::Refused { code: ErrorCode::InvalidArgument, .. } => EX_DATAERR,
            Self::Refused { code: ErrorCode::PermissionDenied, .. } => EX_NOPERM,
            Self::Refused { .. } | Self::NotYet { .. } => EX_TEMPFAIL,
        }
    }
}

#[derive(Debug, PartialEq)]
struct Emit {
    kind: String,
    data: Map<String, Value>,
    wait_s: Option<u64>,
    socket: PathBuf,
}

fn parse(args: impl Iterator<Item = String>) -> Result<Option<Emit>, EmitError> {
    let usage = |text: String| Err(EmitError::Usage(text));
    let mut args = args;
    let (mut kind, mut json, mut pairs) = (None, None, Map::new());
    let (mut wait, mut seconds, mut socket) = (false, 30, socket_beside(RUN_DIR.as_ref()));
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (arg, None),
        };
        let mut value =
            || value.clone().or_else(|| args.next()).ok_or(EmitError::Usage(format!("{name} needs a value")));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--wait" => wait = true,
            "--data" => json = Some(value()?),
            "--socket" => socket = value()?.into(),
            "--timeout" => {
                seconds = value()?.parse().ok().filter(|s| (1..=MAX_WAIT_MS / 1000).contains(s)).ok_or_else(
                    || EmitError::Usage(format!("--timeout takes 1 to {} seconds", MAX_WAIT_MS / 1000)),
                )?;
            }
            other if other.starts_with('-') => return usage(format!("unknown argument {other:?}")),
            _ if kind.is_none() => kind = Some(name),
            pair => match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    if pairs.insert(key.to_owned(), value.into()).is_some() {
                        return usage(format!("{key:?} is given twice"));
                    }
                }
                _ => return usage(format!("{pair:?} is no KEY=VALUE")),
            },
        }
    }
    let Some(kind) = kind else { return usage("what happened? give a TYPE".into()) };
    EventType::new(kind.as_str()).map_err(|e| EmitError::Data(e.to_string()))?;
    let data = match json {
        Some(_) if !pairs.is_empty() => return usage("--data and KEY=VALUE exclude each other".into()),
        Some(text) => {
            let read = serde_json::from_str::<EventData>(&text);
            read.map_err(|e| EmitError::Data(format!("--data is not a JSON object: {e}")))?.0
        }
        None => pairs,
    };
    Ok(Some(Emit { kind, data, wait_s: wait.then_some(seconds), socket }))
}

fn emit(emit: Emit) -> Result<(), EmitError> {
    let failed = |source| EmitError::Agent { path: emit.socket.clone(), source };
    let wait_ms = emit.wait_s.map(|seconds| seconds * 1000);
    let said = Said { kind: emit.kind, data: EventData(emit.data), wait_ms };
    let mut line = serde_json::to_vec(&said).map_err(|source| EmitError::Answer { source })?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(&emit.socket).map_err(failed)?;
    let patience = Duration::from_secs(emit.wait_s.unwrap_or(0)) + PATIENCE;
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(failed)?;
    // An agent that turns it away closes before it has read, and has said why.
    let written = stream.write_all(&line);
    let mut answer = String::new();
    let read = BufReader::new(&stream).read_line(&mut answer);
    if answer.is_empty() {
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
        return Err(failed(written.and(read).err().unwrap_or_else(closed)));
    }
    let answer: Answer = serde_json::from_str(&answer).map_err(|source| EmitError::Answer { source })?;
    match (answer.accepted, answer.error) {
        (true, _) if answer.delivered == Some(false) => {
            Err(EmitError::NotYet { id: answer.id.unwrap_or_default(), seconds: emit.wait_s.unwrap_or(0) })
        }
        (true, _) => Ok(()),
        (false, Some(error)) => Err(EmitError::Refused { code: error.code, message: error.message }),
        (false, None) => {
            Err(EmitError::Refused { code: ErrorCode::Internal, message: "it did not say why".into() })
        }
    }
}

fn ended(result: Result<(), EmitError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drover-agent: {}", log::chain(&error));
            if let EmitError::Usage(_) = error {
                eprint!("{USAGE}");
            }
            ExitCode::from(error.code())
        }
    }
}

/// `drover-agent emit`.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    ended(match parse(args) {
        Ok(Some(asked)) => emit(asked),
        Ok(None) => {
            print!("{USAGE}");
            Ok(())
        }
        Err(error) => Err(error),
    })
}

/// What systemd says of a unit that is told.
const PROPERTIES: [(&str, &str); 4] = [
    ("Result", "result"),
    ("ExecMainStatus", "exit_status"),
    ("ExecMainCode", "exit_code"),
    ("NRestarts", "restarts"),
];

/// `drover-agent unit-failed UNIT`: for systemd, which knows of the failure and runs this as root.
pub fn unit_failed(mut args: impl Iterator<Item = String>) -> ExitCode {
    let Some(unit) = args.next().filter(|unit| !unit.is_empty() && !unit.starts_with('-')) else {
        eprintln!("usage: drover-agent unit-failed UNIT");
        return ExitCode::from(EX_USAGE);
    };
    let names: Vec<&str> = PROPERTIES.iter().map(|(name, _)| *name).collect();
    let shown = Command::new("systemctl")
        .args(["show", "--property", &names.join(","), "--", &unit])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // Without it the name alone is told.
    let shown = shown.map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned()).unwrap_or_default();
    let (kind, data) = (UNIT_FAILED.to_owned(), unit_data(&unit, &shown));
    ended(emit(Emit { kind, data, wait_s: None, socket: socket_beside(RUN_DIR.as_ref()) }))
}

/// From what `systemctl show` prints.
fn unit_data(unit: &str, shown: &str) -> Map<String, Value> {
    let mut data =
        Map::from_iter([("unit".to_owned(), Value::from(unit.chars().take(255).collect::<String>()))]);
    for (name, value) in shown.lines().filter_map(|line| line.split_once('=')) {
        if let Some((_, key)) = PROPERTIES.iter().find(|(property, _)| *property == name) {
            let number = value.parse::<u32>().map(Value::from);
            let text = || Value::from(value.chars().take(64).collect::<String>());
            data.insert((*key).to_owned(), number.unwrap_or_else(|_| text()));
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(args: &[&str]) -> Result<Option<Emit>, EmitError> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn arguments_become_an_event() {
        let plain = parsed(&["app.up"]).unwrap().unwrap();
        assert_eq!((plain.kind.as_str(), plain.wait_s), ("app.up", None));
        assert_eq!(plain.socket, PathBuf::from("/run/drover-agent.sock"));
        let pairs =
            parsed(&["app.up", "a=1", "b=x=y", "--wait", "--timeout=5", "--socket", "/s"]).unwrap().unwrap();
        assert_eq!(Value::Object(pairs.data), json!({"a": "1", "b": "x=y"}));
        assert_eq!((pairs.wait_s, pairs.socket), (Some(5), PathBuf::from("/s")));
        let json = parsed(&["--data", r#"{"a": [1, "=", null]}"#, "app.up"]).unwrap().unwrap();
        assert_eq!(Value::Object(json.data), json!({"a": [1, "=", null]}));
        assert_eq!(parsed(&["--help"]).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_exit_code() {
        let cases: [(&[&str], u8, &str); 11] = [
            (&[], 64, "TYPE"),
            (&["a", "b"], 64, "KEY=VALUE"),
            (&["a", "=b"], 64, "KEY=VALUE"),
            (&["a", "b=1", "b=2"], 64, "twice"),
            (&["a", "--data", "{}", "b=1"], 64, "exclude"),
            (&["a", "--data"], 64, "needs a value"),
            (&["a", "--timeout", "301"], 64, "1 to 300"),
            (&["a", "--wat"], 64, "--wat"),
            (&["A"], 65, "'A'"),
            (&["a", "--data", "[1]"], 65, "JSON object"),
            (&["a", "--data", r#"{"n": 9007199254740993}"#], 65, "2^53"),
        ];
        for (args, code, said) in cases {
            let error = parsed(args).unwrap_err();
            assert_eq!(error.code(), code, "{args:?}");
            assert!(error.to_string().contains(said), "{error}");
        }
        let nobody = Emit { socket: "/nonexistent".into(), ..parsed(&["a"]).unwrap().unwrap() };
        assert_eq!(emit(nobody).unwrap_err().code(), 69);
    }

    #[test]
    fn a_units_failure_is_told_as_systemd_tells_it() {
        let shown = "Result=exit-code\nExecMainStatus=3\nExecMainCode=1\nNRestarts=0\nOther=x\n";
        let told = json!({"unit": "a.service", "result": "exit-code", "exit_status": 3, "exit_code": 1, "restarts": 0});
        assert_eq!(Value::Object(unit_data("a.service", shown)), told);
        assert_eq!(Value::Object(unit_data("a.service", "")), json!({"unit": "a.service"}));
    }
}
