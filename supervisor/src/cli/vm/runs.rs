//! `drover vm runs`: programs of a guest that go on by themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use drover_schemas::body::guest::{AttachReply, Empty};
use drover_schemas::guest::{
    AttachRequest, AttachResult, AttachedAt, KillRequest, RunInfo, RunState, RunsRequest, RunsResult,
};
use drover_schemas::stream::Channel;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::super::Global;
use super::super::exit::{BROKEN_PIPE, CliError};
use super::super::output::{render, table};
use super::exec::{cancel_on_signal, ended, stdin};
use super::terminal::{Raw, Sizes, UntilLeft};
use super::{READ_DEADLINE, change};
use crate::client::{CallOptions, Client, ClientError, Input, Output, time};

/// How long the guest may take to open the output of a run, its host's restart included.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// Between two tries to attach again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often one attaches again without a byte in between.
const TRIES: u32 = 10;

/// Verbs of runs.
#[derive(Debug, clap::Subcommand)]
pub enum RunsCommand {
    /// List the runs of the guest's boot, with their results.
    Ls {
        /// The VM.
        vm: Token,
    },
    /// Read the output of a run until it ends, and end with its exit code; Ctrl-C leaves it running.
    Attach(AttachArgs),
    /// Send a signal to a run.
    Kill {
        /// The VM.
        vm: Token,
        /// The run.
        run: RequestId,
        /// The signal, by name or number; KILL ends everything that the program started.
        #[arg(long, short, default_value = "TERM", value_parser = signal)]
        signal: i32,
    },
}

/// Arguments of `runs attach`.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// The VM.
    vm: Token,
    /// The run.
    run: RequestId,
    /// Send stdin to the program, which was started with `--interactive`.
    #[arg(long, short)]
    interactive: bool,
    /// The first byte of its output that is wanted; the oldest that is kept if left out.
    #[arg(long, value_name = "OFFSET")]
    stdout_from: Option<u64>,
    /// The same of its error output.
    #[arg(long, value_name = "OFFSET")]
    stderr_from: Option<u64>,
    /// End with what is there already.
    #[arg(long)]
    no_follow: bool,
}

impl RunsCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Ls { vm } | Self::Kill { vm, .. } | Self::Attach(AttachArgs { vm, .. }) => vm,
        }
    }
}

pub(super) async fn run(command: &RunsCommand, client: &Client, global: &Global) -> Result<u8, CliError> {
    match command {
        RunsCommand::Ls { vm } => {
            let options = CallOptions::read(global.deadline(READ_DEADLINE));
            let subject = client.guest_subject(vm, "runs")?;
            let listed: RunsResult = client.call(&subject, &RunsRequest::default(), options).await?;
            global.output.print(&listed.runs, |runs| list(runs))?;
            Ok(0)
        }
        RunsCommand::Kill { vm, run, signal } => {
            let options = change::options(None, global.deadline(READ_DEADLINE));
            let request = KillRequest { run: *run, signal: Some(*signal) };
            let _: Empty = client.call(&client.guest_subject(vm, "kill")?, &request, options).await?;
            Ok(0)
        }
        RunsCommand::Attach(args) => attach(args, client, global).await,
    }
}

fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().map(|s| s as i32).map_err(|_| format!("{text:?} is no signal"))
}

fn list(runs: &[RunInfo]) -> String {
    let mut table = table(&["RUN", "STATE", "USER", "PID", "STARTED", "OUTPUT", "COMMAND"]);
    for run in runs {
        let state = match (run.state, &run.result) {
            (RunState::Running, _) => "running".to_owned(),
            (RunState::Ended, Some(result)) if result.timed_out => "timed out".to_owned(),
            (RunState::Ended, Some(result)) => match (result.exit_code, result.signal) {
                (Some(code), _) => format!("exit {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            _ => "lost".to_owned(),
        };
        table.add_row([
            run.run.to_string(),
            state,
            run.user.clone(),
            run.pid.to_string(),
            time::rfc3339(run.started_unix_ms),
            format!("{}+{}", run.stdout.end, run.stderr.end),
            run.argv.join(" "),
        ]);
    }
    render(&mut table)
}

/// Counts what was written, so that a reader that comes again goes on from there.
struct Counted<W> {
    inner: W,
    count: Arc<AtomicU64>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Counted<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.count.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Reads to the end, over the loss of hosts, links and agents: each byte that is still kept once.
async fn attach(args: &AttachArgs, client: &Client, global: &Global) -> Result<u8, CliError> {
    let leave = cancel_on_signal();
    let mut request = AttachRequest {
        run: args.run,
        stdout_off: args.stdout_from,
        stderr_off: args.stderr_from,
        stdin: args.interactive,
        no_follow: args.no_follow,
    };
    let subject = client.guest_subject(&args.vm, "attach")?;
    let mut tries = 0;
    loop {
        let options = CallOptions::read(global.deadline(OPEN_DEADLINE));
        let opening = client.open(&subject, &request, options).await?;
        let reply: AttachReply = opening.reply()?;
        tell_lost("stdout", request.stdout_off, reply.stdout);
        tell_lost("stderr", request.stderr_off, reply.stderr);
        let session = opening.session(&reply.stream)?;
        let raw = match args.interactive && reply.run.tty {
            true => Raw::enter()?,
            false => None,
        };
        let sizes = raw.as_ref().map(|_| Sizes::watch(None)).transpose()?;
        let control = sizes.map(|sizes| Input { channel: Channel::Ctl, reader: Box::new(sizes) });
        let counts = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let [out, err] = counts.clone();
        let out = Counted { inner: tokio::io::stdout(), count: out };
        let err = Counted { inner: tokio::io::stderr(), count: err };
        let outputs = vec![
            Output { channel: Channel::Stdout, writer: Box::new(out) },
            Output { channel: Channel::Stderr, writer: Box::new(err) },
        ];
        let reader: Box<dyn AsyncRead + Send + Unpin> = match raw {
            Some(_) => Box::new(UntilLeft::new(tokio::io::stdin(), leave.clone())),
            None => stdin(args.interactive),
        };
        // Without input for it the program's stays open, for others who attach.
        let input = args.interactive.then_some(Input { channel: Channel::Stdin, reader });
        let ended = session.run_with::<AttachResult>([input, control], outputs, leave.clone()).await;
        drop(raw);
        let [out, err] = counts.map(|count| count.load(Ordering::Relaxed));
        request.stdout_off = Some(reply.stdout.off + out);
        request.stderr_off = Some(reply.stderr.off + err);
        tries = if out + err > 0 { 0 } else { tries + 1 };
        match ended {
            Ok(result) => return Ok(exit_code(&result)),
            Err(ClientError::Cancelled) => return Ok(0),
            Err(ClientError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                return Ok(BROKEN_PIPE);
            }
            Err(error) if tries < TRIES && !args.interactive && may_go_on(&error.body()) => {
                tracing::debug!(%error, "attaching again");
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn may_go_on(error: &ErrorBody) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::GuestUnreachable)
        || error.details.get("cause").is_some_and(|cause| cause == "output_lost")
}

fn tell_lost(channel: &str, wanted: Option<u64>, at: AttachedAt) {
    if let Some(before) = at.lost_before {
        let from = wanted.unwrap_or(0);
        eprintln!("note: {channel} from {from} to {before} is not kept any more");
    }
}

fn exit_code(result: &AttachResult) -> u8 {
    match (&result.result, result.state) {
        (Some(r), _) => ended(r.timed_out, r.duration_ms, r.exit_code, r.signal),
        // Of a run that goes on nothing has failed.
        (None, RunState::Running) => 0,
        (None, _) => {
            eprintln!("error: guest_error: what kept the run was killed, so nobody knows how it ended");
            6
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!([signal("TERM"), signal("SIGkill"), signal("9")], [Ok(15), Ok(9), Ok(9)]);
        assert!(signal("NOPE").is_err());
    }
}
