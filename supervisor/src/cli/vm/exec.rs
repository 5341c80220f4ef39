//! `drover vm exec`: a program in the guest with the streams of this one.

use std::io::IsTerminal as _;
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecRequest, ExecResult};
use drover_schemas::guest::ResourceLimit;
use drover_schemas::secret::Secret;
use drover_schemas::size::ByteSize;
use drover_schemas::stream::Channel;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::super::Global;
use super::super::exit::{BROKEN_PIPE, CliError, INTERRUPTED};
use super::change;
use super::terminal::{self, Raw, Sizes};
use crate::client::{Client, ClientError, Input, Output};

/// How long the guest may take to start the program.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// As `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// The VM.
    name: Token,
    /// Forward stdin even though it is a terminal; a pipe or file is forwarded anyway.
    #[arg(long, short)]
    interactive: bool,
    /// Give the program a terminal: the size of this one, and every key goes to the program.
    #[arg(long, short)]
    tty: bool,
    /// Start the program and leave it alone; prints the name of the run, for `vm runs`.
    #[arg(long, short, conflicts_with = "stats")]
    detach: bool,
    /// How much of each of stdout and stderr the guest keeps of a detached program, as 4MiB.
    #[arg(long, value_name = "SIZE", requires = "detach")]
    ring: Option<ByteSize>,
    /// When the program has ended, print how, when and with how much time and memory, to stderr, as JSON.
    #[arg(long)]
    stats: bool,
    /// Seconds after which the guest kills the program and its children.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// An environment variable.
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Directory to run in.
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// User to run as, by name or number.
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// A group of the program, by name or number, in place of those that the user has; may be repeated.
    #[arg(long, value_name = "GROUP")]
    group: Option<Vec<String>>,
    /// The mask of new files' permissions, octal, as 027.
    #[arg(long, value_name = "MASK", value_parser = umask)]
    umask: Option<u32>,
    /// A limit of the program, as nofile=64, nofile=64:128 (soft:hard) or core=unlimited; may be repeated.
    #[arg(long, value_name = "RESOURCE=VALUE", value_parser = limit)]
    limit: Vec<ResourceLimit>,
    /// Name of the request; a repetition under the same name runs nothing again.
    #[arg(long, value_name = "ULID")]
    request_id: Option<RequestId>,
    /// Program and arguments; no shell is added.
    #[arg(last = true, required = true, value_name = "CMD")]
    argv: Vec<String>,
}

impl ExecArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.name
    }

    fn request(&self) -> Result<ExecRequest, CliError> {
        let mut env = std::collections::BTreeMap::new();
        for pair in &self.env {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| CliError::Usage(format!("--env {pair:?} is not KEY=VALUE")))?;
            env.insert(key.to_owned(), Secret::new(value));
        }
        let timeout_ms = match self.timeout {
            None => None,
            Some(seconds) => {
                let timeout = Duration::try_from_secs_f64(seconds)
                    .map_err(|e| CliError::Usage(format!("--timeout {seconds}: {e}")))?;
                Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
            }
        };
        Ok(ExecRequest {
            argv: self.argv.clone(),
            env,
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            groups: self.group.clone(),
            umask: self.umask,
            limits: self.limit.clone(),
            tty: self.tty,
            size: self.tty.then(terminal::size).flatten(),
            detach: self.detach,
            interactive: self.detach && self.interactive,
            ring_bytes: self.ring.map(|size| size.0),
            timeout_ms,
            stdin: None,
            stream: !self.detach,
        })
    }
}

pub(super) async fn run(args: &ExecArgs, client: &Client, global: &Global) -> Result<u8, CliError> {
    let request = args.request()?;
    let options = change::options(args.request_id, global.deadline(OPEN_DEADLINE));
    if args.detach {
        let reply = client.call(&client.guest_subject(&args.name, "exec")?, &request, options).await?;
        let ExecReply::Run(run) = reply else {
            let text = format!("the host of {} does not detach programs yet; leave --detach out", args.name);
            return Err(CliError::Usage(text));
        };
        global.output.print(&run, |run| run.run.to_string())?;
        return Ok(0);
    }
    let cancel = cancel_on_signal();
    let opening = client.open(&client.guest_subject(&args.name, "exec")?, &request, options).await?;
    let result = match opening.reply()? {
        ExecReply::Result(result) => {
            print(&result).await?;
            Ok(result)
        }
        ExecReply::Stream(opened) => {
            let session = opening.session(&opened)?;
            let raw = (args.tty && args.interactive).then(Raw::enter).transpose()?.flatten();
            let sizes = args.tty.then(|| Sizes::watch(request.size)).transpose()?;
            let control = sizes.map(|sizes| Input { channel: Channel::Ctl, reader: Box::new(sizes) });
            let outputs = vec![
                Output { channel: Channel::Stdout, writer: Box::new(tokio::io::stdout()) },
                Output { channel: Channel::Stderr, writer: Box::new(tokio::io::stderr()) },
            ];
            let input = Input { channel: Channel::Stdin, reader: stdin(args.interactive) };
            let result = session.run_with::<ExecResult>([Some(input), control], outputs, cancel).await;
            drop(raw);
            result
        }
        ExecReply::Run(_) => {
            let text = "the host started the program detached, though it was not asked to";
            return Err(ClientError::from(ErrorBody::new(ErrorCode::Internal, text)).into());
        }
    };
    if args.stats
        && let Ok(result) = &result
    {
        eprintln!("{}", stats(result)?);
    }
    match result {
        Ok(result) => Ok(exit_code(&result)),
        Err(ClientError::Cancelled) => Ok(INTERRUPTED),
        Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(error) => Err(error.into()),
    }
}

/// A mask as `umask(1)` has it.
fn umask(text: &str) -> Result<u32, String> {
    let mask = u32::from_str_radix(text, 8).map_err(|e| e.to_string())?;
    if mask > 0o777 { Err("at most 777".into()) } else { Ok(mask) }
}

fn limit(text: &str) -> Result<ResourceLimit, String> {
    let (name, values) = text.split_once('=').ok_or("it is not RESOURCE=VALUE")?;
    let resource = serde_json::from_value(serde_json::Value::from(name)).map_err(|e| e.to_string())?;
    let value = |text: &str| match text {
        "unlimited" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("{number:?} is no number and not unlimited")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    Ok(ResourceLimit { resource, soft: value(soft)?, hard: value(hard)? })
}

fn stats(result: &ExecResult) -> Result<String, CliError> {
    // The output went to where it belongs.
    let result = ExecResult { stdout: None, stderr: None, ..result.clone() };
    serde_json::to_string(&result).map_err(|e| CliError::Output { format: "JSON", source: e.into() })
}

/// Stdin, or nothing at all where nobody forwards a terminal: a program that reads then sees the
/// end at once rather than waiting for ever.
pub(super) fn stdin(interactive: bool) -> Box<dyn AsyncRead + Send + Unpin> {
    if interactive || !std::io::stdin().is_terminal() {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(tokio::io::empty())
    }
}

/// Ends with the first SIGINT or SIGTERM.
pub(super) fn cancel_on_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        crate::dev::signalled().await;
        cancel.cancel();
    });
    token
}

async fn print(result: &ExecResult) -> Result<(), CliError> {
    let failed = |source| CliError::File { action: "write", path: "stdout".into(), source };
    if let Some(data) = &result.stdout {
        let mut out = tokio::io::stdout();
        out.write_all(data.as_slice()).await.map_err(failed)?;
        out.flush().await.map_err(failed)?;
    }
    if let Some(data) = &result.stderr {
        let mut out = tokio::io::stderr();
        out.write_all(data.as_slice()).await.map_err(failed)?;
        out.flush().await.map_err(failed)?;
    }
    Ok(())
}

fn exit_code(result: &ExecResult) -> u8 {
    ended(result.timed_out, result.duration_ms, result.exit_code, result.signal)
}

/// The exit code of a program that has ended so.
pub(super) fn ended(timed_out: bool, duration_ms: u64, exit_code: Option<i32>, signal: Option<i32>) -> u8 {
    if timed_out {
        eprintln!("error: deadline_exceeded: the program was ended after {duration_ms} ms");
        return TIMED_OUT;
    }
    let code = match (exit_code, signal) {
        (Some(code), _) => code & 0xff,
        (None, Some(signal)) => 128 + (signal & 0x7f),
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use drover_schemas::guest::Resource;

    use super::*;

    #[test]
    fn the_exit_code_is_the_programs() {
        let exited = |code| ExecResult { exit_code: Some(code), ..ExecResult::default() };
        assert_eq!(exit_code(&exited(0)), 0);
        assert_eq!(exit_code(&exited(3)), 3);
        assert_eq!(exit_code(&ExecResult { signal: Some(9), ..ExecResult::default() }), 137);
        assert_eq!(exit_code(&ExecResult { timed_out: true, ..exited(0) }), TIMED_OUT);
    }

    #[test]
    fn limits_and_masks_are_read() {
        let nofile = |soft, hard| ResourceLimit { resource: Resource::Nofile, soft, hard };
        assert_eq!(limit("nofile=64"), Ok(nofile(Some(64), Some(64))));
        assert_eq!(limit("nofile=64:unlimited"), Ok(nofile(Some(64), None)));
        for bad in ["nofile", "files=1", "nofile=x", "nofile=1:2:3", "nofile=-1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (umask("027"), umask("777").is_ok(), umask("1000").is_err(), umask("8").is_err()),
            (Ok(0o27), true, true, true)
        );
    }
}
