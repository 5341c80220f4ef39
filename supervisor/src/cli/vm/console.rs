//! `drover vm console` and `drover vm logs --follow`: the serial console at this terminal.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::vm::{ConsoleReply, ConsoleRequest, ConsoleResult, LogsReply, LogsRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::super::Global;
use super::super::exit::{BROKEN_PIPE, CliError};
use super::exec::cancel_on_signal;
use super::terminal::{Raw, UntilLeft};
use crate::client::{CallOptions, Client, ClientError, Input, Opening, Output};

/// Time to open the stream.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

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
        Some(_) => Box::new(UntilLeft::new(tokio::io::stdin(), leave.clone())),
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
