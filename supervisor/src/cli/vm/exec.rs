//! `drover vm exec`: a program in the guest with the streams of this one.

use std::io::IsTerminal as _;
use std::time::Duration;

use drover_schemas::body::guest::{ExecReply, ExecRequest, ExecResult};
use drover_schemas::secret::Secret;
use drover_schemas::stream::Channel;
use drover_schemas::{RequestId, Token};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::super::Global;
use super::super::exit::{BROKEN_PIPE, CliError};
use super::change;
use crate::client::{Client, ClientError, Input, Output};

/// How long the guest may take to start the program.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// As `timeout(1)`.
const TIMED_OUT: u8 = 124;
/// As a shell for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// The VM.
    name: Token,
    /// Forward stdin even though it is a terminal; a pipe or file is forwarded anyway.
    #[arg(long, short)]
    interactive: bool,
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
            timeout_ms,
            stdin: None,
            stream: true,
        })
    }
}

pub(super) async fn run(args: &ExecArgs, client: &Client, global: &Global) -> Result<u8, CliError> {
    let request = args.request()?;
    let options = change::options(args.request_id, global.deadline(OPEN_DEADLINE));
    let cancel = cancel_on_signal();
    let opening = client.open(&client.guest_subject(&args.name, "exec")?, &request, options).await?;
    let result = match opening.reply()? {
        ExecReply::Result(result) => {
            print(&result).await?;
            Ok(result)
        }
        ExecReply::Stream(opened) => {
            let outputs = vec![
                Output { channel: Channel::Stdout, writer: Box::new(tokio::io::stdout()) },
                Output { channel: Channel::Stderr, writer: Box::new(tokio::io::stderr()) },
            ];
            let input = Input { channel: Channel::Stdin, reader: stdin(args.interactive) };
            opening.session(&opened)?.run::<ExecResult>(Some(input), outputs, cancel).await
        }
    };
    match result {
        Ok(result) => Ok(exit_code(&result)),
        Err(ClientError::Cancelled) => Ok(INTERRUPTED),
        Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(error) => Err(error.into()),
    }
}

/// Stdin, or nothing at all where nobody forwards a terminal: a program that reads then sees the
/// end at once rather than waiting for ever.
fn stdin(interactive: bool) -> Box<dyn AsyncRead + Send + Unpin> {
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
    if result.timed_out {
        eprintln!("error: deadline_exceeded: the program was ended after {} ms", result.duration_ms);
        return TIMED_OUT;
    }
    let code = match (result.exit_code, result.signal) {
        (Some(code), _) => code & 0xff,
        (None, Some(signal)) => 128 + (signal & 0x7f),
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_programs() {
        let exited = |code| ExecResult { exit_code: Some(code), ..ExecResult::default() };
        assert_eq!(exit_code(&exited(0)), 0);
        assert_eq!(exit_code(&exited(3)), 3);
        assert_eq!(exit_code(&ExecResult { signal: Some(9), ..ExecResult::default() }), 137);
        assert_eq!(exit_code(&ExecResult { timed_out: true, ..exited(0) }), TIMED_OUT);
    }
}
