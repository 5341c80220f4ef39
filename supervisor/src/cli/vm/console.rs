//! `drover vm console` and `drover vm logs --follow`: the serial console at this terminal.

use std::io::IsTerminal as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::vm::{ConsoleReply, ConsoleRequest, ConsoleResult, LogsReply, LogsRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::super::Global;
use super::super::exit::{BROKEN_PIPE, CliError};
use super::exec::cancel_on_signal;
use crate::client::{CallOptions, Client, ClientError, Input, Opening, Output};

/// Time to open the stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Ctrl-], as `telnet` and `virsh console` have it.
const LEAVE: u8 = 0x1d;

/// Arguments of `console`.
#[derive(Debug, clap::Args)]
pub struct ConsoleArgs {
    /// The VM.
    name: Token,
    /// Take the console from whoever writes to it.
    #[arg(long)]
    take: bool,
}

impl ConsoleArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.name
    }
}

pub(super) async fn run(args: &ConsoleArgs, client: &Client, global: &Global) -> Result<u8, CliError> {
    let options = CallOptions::read(global.deadline(OPEN_DEADLINE));
    let request = ConsoleRequest { tail_bytes: None, take: args.take };
    let opening = client.open(&client.vm_subject(&args.name, "console")?, &request, options).await?;
    let reply: ConsoleReply = opening.reply()?;
    let leave = cancel_on_signal();
    let terminal = Raw::enter()?;
    if terminal.is_some() {
        eprint!("the console of {}; Ctrl-] leaves it\r\n", args.name);
    }
    let reader: Box<dyn AsyncRead + Send + Unpin> = match terminal {
        Some(_) => Box::new(UntilLeft { inner: tokio::io::stdin(), leave: leave.clone() }),
        None => Box::new(tokio::io::stdin()),
    };
    let input = Input { channel: Channel::Stdin, reader };
    let code = show(opening, &reply.stream, Some(input), leave).await;
    if terminal.is_some() {
        eprint!("\r\n");
    }
    drop(terminal);
    code
}

pub(super) async fn follow(
    name: &Token,
    request: &LogsRequest,
    client: &Client,
    deadline: Duration,
) -> Result<u8, CliError> {
    let subject = client.vm_subject(name, "logs")?;
    let opening = client.open(&subject, request, CallOptions::read(deadline)).await?;
    let reply: LogsReply = opening.reply()?;
    let Some(opened) = &reply.stream else {
        let text = format!("the host of {name} does not follow logs yet; leave --follow out");
        return Err(CliError::Usage(text));
    };
    show(opening, opened, None, cancel_on_signal()).await
}

async fn show(
    opening: Opening,
    opened: &StreamOpened,
    input: Option<Input>,
    leave: CancellationToken,
) -> Result<u8, CliError> {
    let output = Output { channel: Channel::Stdout, writer: Box::new(tokio::io::stdout()) };
    match opening.session(opened)?.run::<ConsoleResult>(input, vec![output], leave).await {
        Ok(_) | Err(ClientError::Cancelled) => Ok(0),
        Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(error) => Err(error.into()),
    }
}

/// A terminal that passes every key on, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    /// None if stdin is no terminal.
    fn enter() -> Result<Option<Self>, CliError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |errno: nix::Error| CliError::File {
            action: "set up",
            path: "the terminal".into(),
            source: errno.into(),
        };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Passes bytes on up to the key that leaves, which ends the session.
struct UntilLeft<R> {
    inner: R,
    leave: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilLeft<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.leave.is_cancelled() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Some(at) = buffer.filled()[before..].iter().position(|byte| *byte == LEAVE) {
            buffer.set_filled(before + at);
            self.leave.cancel();
            if at == 0 {
                // An empty read would be the end of the input.
                return Poll::Pending;
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn what_is_typed_before_the_key_that_leaves_is_passed_on() {
        let leave = CancellationToken::new();
        let mut reader = UntilLeft { inner: &b"ls\x1drest"[..], leave: leave.clone() };
        let mut buffer = [0; 16];
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 2);
        assert_eq!((&buffer[..2], leave.is_cancelled()), (&b"ls"[..], true));
        let more = tokio::time::timeout(Duration::from_millis(20), reader.read(&mut buffer)).await;
        assert!(more.is_err(), "nothing comes after it, not even the end");
    }
}
