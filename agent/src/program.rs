//! A small program of the guest, run to its end for the agent's own purposes: no input, its output bounded.

use std::io::ErrorKind;
use std::time::Duration;

use drover_schemas::ErrorBody;
use drover_schemas::guest::ExecRequest;
use tokio::time::timeout;

use crate::command;
use crate::process::{Exit, Pipe, Running};

/// How long output is still read after the program's end: others may hold its pipes open.
const REST: Duration = Duration::from_millis(20);
/// What is read at a time, in bytes.
const CHUNK: usize = 4 * 1024;

/// Output, of which the first or the last bytes are kept.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    most: usize,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Room for the tail beside the head, without moving bytes each time.
        if self.bytes.len() > 4 * self.most {
            let end = self.bytes.len() - self.most;
            self.bytes.drain(self.most..end);
        }
    }

    /// The first of it, at most as much as was asked for.
    #[must_use]
    pub fn head(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(self.most)]).into_owned()
    }

    /// The last of it, likewise.
    #[must_use]
    pub fn tail(&self) -> String {
        let from = self.bytes.len().saturating_sub(self.most);
        String::from_utf8_lossy(&self.bytes[from..]).into_owned()
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code or signal.
    pub exit: Exit,
    /// Whether its time was over.
    pub timed_out: bool,
    /// What it printed.
    pub stdout: Output,
    /// What it complained of.
    pub stderr: Output,
}

impl Ran {
    /// Its last words: of what it complained of, or else of what it printed.
    #[must_use]
    pub fn last_line(&self) -> String {
        let last = |output: &Output| output.tail().trim_end().lines().last().map(str::to_owned);
        last(&self.stderr).or_else(|| last(&self.stdout)).unwrap_or_default()
    }
}

/// How it ended, as the rest of a sentence.
#[must_use]
pub fn ended(exit: Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Runs a program to its end, or to the end of its time. What it leaves running is killed in either case, and all of it
/// when this is dropped before.
///
/// # Errors
/// A coded error when it cannot be started, or nobody knows how it ended.
pub async fn run(request: &ExecRequest, most: usize) -> Result<Ran, ErrorBody> {
    run_until(request, most, std::future::pending()).await
}

/// The same, but when `over` comes first all of it is killed, and that is how it ended.
///
/// # Errors
/// As [`run`].
pub async fn run_until(
    request: &ExecRequest,
    most: usize,
    over: impl Future<Output = ()>,
) -> Result<Ran, ErrorBody> {
    let mut command = command::start(request)?;
    let empty = || Output { bytes: Vec::new(), most };
    let (mut stdout, mut stderr) = (empty(), empty());
    let timed_out = {
        let process = &command.process;
        let supervising = command.supervise(over);
        tokio::pin!(supervising);
        let timed_out = tokio::select! {
            timed_out = &mut supervising => timed_out,
            () = pump(process, &mut stdout, &mut stderr) => supervising.await,
        };
        let _ = timeout(REST, pump(process, &mut stdout, &mut stderr)).await;
        timed_out
    };
    if !timed_out {
        command.process.kill_rest().await;
    }
    let exit = command.reap()?;
    Ok(Ran { exit, timed_out, stdout, stderr })
}

/// Reads both until both are at their end.
async fn pump(process: &Running, out: &mut Output, err: &mut Output) {
    let (stdout, stderr) = (&process.stdout, process.stderr.as_ref());
    let (mut out_open, mut err_open) = (true, stderr.is_some());
    while out_open || err_open {
        tokio::select! {
            ready = stdout.wait_readable(), if out_open => out_open = ready.is_ok() && take(stdout, out),
            ready = wait(stderr), if err_open => {
                err_open = ready && stderr.is_some_and(|pipe| take(pipe, err));
            }
        }
    }
}

async fn wait(pipe: Option<&Pipe>) -> bool {
    match pipe {
        Some(pipe) => pipe.wait_readable().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Takes what is there; whether more may come.
fn take(pipe: &Pipe, output: &mut Output) -> bool {
    match pipe.read(CHUNK, 0) {
        Ok(bytes) if bytes.is_empty() => false,
        Ok(bytes) => {
            output.add(&bytes);
            true
        }
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64) -> ExecRequest {
        ExecRequest {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout_ms: Some(timeout_ms),
            kill_grace_ms: Some(0),
            ..ExecRequest::default()
        }
    }

    fn runs(name: &str) -> bool {
        let pids = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        pids.filter_map(|path| std::fs::read(path.join("cmdline")).ok())
            .any(|line| line.windows(name.len()).any(|part| part == name.as_bytes()))
    }

    #[tokio::test]
    async fn output_has_two_ends_and_a_bound() {
        let ran = run(&sh("seq 100000; echo oops >&2; exit 3", 30_000), 64).await.unwrap();
        assert_eq!((ran.exit.code, ran.timed_out), (Some(3), false));
        assert!(ran.stdout.head().starts_with("1\n2\n") && ran.stdout.head().len() == 64);
        assert!(ran.stdout.tail().ends_with("100000\n"), "{:?}", ran.stdout.tail());
        assert!(ran.stdout.bytes.len() <= 4 * 64);
        assert_eq!(ran.last_line(), "oops");
        assert_eq!(ended(ran.exit), "exited with 3");
        let quiet = run(&sh("exec >&- 2>&-; sleep 0.05; exit 4", 30_000), 64).await.unwrap();
        assert_eq!((quiet.exit.code, quiet.last_line().as_str()), (Some(4), ""));
        assert!(run(&ExecRequest { argv: vec!["/nope".into()], ..Default::default() }, 1).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_left_of_it() {
        // A number that no other test of any run has.
        let mark = format!("{}", 100_000 + std::process::id());
        let left = format!("setsid sleep {mark} & echo begun");
        let ran = run(&sh(&left, 30_000), 64).await.unwrap();
        assert_eq!((ran.exit.code, ran.last_line().as_str()), (Some(0), "begun"));
        assert!(!runs(&mark), "what it left in the background runs on");
        let ran = run(&sh(&format!("setsid sleep {mark} & sleep {mark}"), 100), 64).await.unwrap();
        assert!(ran.timed_out && !runs(&mark), "{ran:?}");
    }
}
