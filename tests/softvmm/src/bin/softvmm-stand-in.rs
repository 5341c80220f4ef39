//! A stand-in for the agent, for this crate's own tests: listens where the agent would and does what
//! one line tells it: `poweroff` and `reboot` as the agent asks pid 1 for them, `crash` ends it,
//! `env` and `pids` say what it sees, anything else comes back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gethostname};

fn main() -> ExitCode {
    let address = std::env::args().nth(2).unwrap_or_default();
    let Some(path) = address.strip_prefix("unix:") else { return ExitCode::FAILURE };
    let Ok(listener) = UnixListener::bind(path) else { return ExitCode::FAILURE };
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
    ExitCode::SUCCESS
}

fn serve(mut stream: UnixStream) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        let line = line?;
        let answer = match line.as_str() {
            "poweroff" => format!("{:?}", kill(Pid::from_raw(1), Signal::SIGTERM)),
            "reboot" => format!("{:?}", kill(Pid::from_raw(1), Signal::SIGINT)),
            "crash" => std::process::abort(),
            "env" => std::env::vars().map(|(k, v)| format!("{k}={v} ")).collect(),
            "pids" => {
                let entries = std::fs::read_dir("/proc")?.flatten().map(|e| e.file_name());
                let pids = entries.filter_map(|name| name.to_string_lossy().parse::<u32>().ok());
                pids.map(|pid| format!("{pid} ")).collect()
            }
            "hostname" => format!("{:?}", gethostname()),
            other => other.to_owned(),
        };
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}
