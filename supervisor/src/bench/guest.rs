//! Rows with a guest in them: programs and files, each beside the plain program by turns.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::{
    Empty, ExecReply, ExecRequest, ExecResult, FileResult, GetRequest, PutRequest,
};
use drover_schemas::guest::InfoResult;
use drover_schemas::stream::{Channel, StreamOpened};
use drover_schemas::{ErrorBody, ErrorCode};
use indicatif::ProgressBar;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::plain::{Plain, PlainError};
use super::report::{Goal, Row};
use super::sample::Sample;
use crate::cli::tally::{Tallied, Tally};
use crate::client::{CallOptions, Client, ClientError, Input, Output};

const DEADLINE: Duration = Duration::from_secs(60);
/// The file that is copied, in the guest.
pub const PATH: &str = "/tmp/drover-bench";

/// What a row is held against, or why it is not.
pub type Limit<'a> = Result<&'a mut Plain, String>;

fn reason(error: &PlainError) -> String {
    drover_actors::chain(error).to_string()
}

/// Takes the time of the limit's turn; after its first failure the reason stays.
async fn turn(
    limit: &mut Limit<'_>,
    sample: &mut Sample,
    work: impl AsyncFnOnce(&mut Plain) -> Result<(), PlainError>,
) {
    if let Ok(plain) = limit
        && let Err(error) = sample.time(work(plain)).await
    {
        *limit = Err(reason(&error));
    }
}

async fn run(client: &Client, name: &Token, argv: &[&str]) -> Result<ExecReply, ClientError> {
    let request =
        ExecRequest { argv: argv.iter().map(|&arg| arg.to_owned()).collect(), ..ExecRequest::default() };
    client.call(&client.guest_subject(name, "exec")?, &request, CallOptions::change(DEADLINE)).await
}

/// Asks the agent what the guest is.
///
/// # Errors
/// As [`Client::call`].
pub async fn info(client: &Client, name: &Token) -> Result<InfoResult, ClientError> {
    client.call(&client.guest_subject(name, "info")?, &Empty {}, CallOptions::read(DEADLINE)).await
}

/// Runs a command to its end.
///
/// # Errors
/// As [`Client::call`].
pub async fn result(client: &Client, name: &Token, argv: &[&str]) -> Result<ExecResult, ClientError> {
    match run(client, name, argv).await? {
        ExecReply::Result(result) => Ok(result),
        ExecReply::Stream(_) | ExecReply::Run(_) => {
            Err(ErrorBody::new(ErrorCode::Internal, "a stream or a run was not asked for").into())
        }
    }
}

/// `true`, again and again, each as one request and one reply.
pub async fn exec(
    client: &Client,
    name: &Token,
    calls: usize,
    mut limit: Limit<'_>,
) -> Result<Row, ClientError> {
    let (mut drover, mut bare) = (Sample::default(), Sample::default());
    for _ in 0..calls {
        drover.time(run(client, name, &["true"])).await?;
        turn(&mut limit, &mut bare, async |plain| plain.exec().await).await;
    }
    Ok(Row::new("exec of true", "us", drover.percentiles(1e6))
        .against(
            "echo over the guest's vsock, with fork and exec of true between",
            limit.map(|_| bare.percentiles(1e6)),
        )
        .goal(Goal::RatioAtMost(1.3)))
}

/// A file to the guest and back, hashed at both ends, `rounds` times.
pub async fn files(
    client: &Client,
    name: &Token,
    size: u64,
    rounds: usize,
    mut limit: Limit<'_>,
) -> Result<[Row; 2], ClientError> {
    let bulk = client.for_bulk().await?;
    let (mut puts, mut gets) = (Sample::default(), Sample::default());
    let (mut raw_puts, mut raw_gets) = (Sample::default(), Sample::default());
    for _ in 0..rounds.max(1) {
        puts.time(put(&bulk, name, size)).await?;
        turn(&mut limit, &mut raw_puts, async |plain| plain.put(size).await).await;
        gets.time(get(&bulk, name)).await?;
        turn(&mut limit, &mut raw_gets, async |plain| plain.get().await).await;
        run(client, name, &["rm", PATH]).await?;
    }
    let row = |what: &str, drover: Sample, raw: Sample| {
        let what = format!("{what}, {} MiB", size >> 20);
        Row::new(&what, "MiB/s", drover.rates(size))
            .against(
                "raw copy of the file through the same vsock, SHA-256 at both ends",
                limit.as_ref().map(|_| raw.rates(size)).map_err(Clone::clone),
            )
            .goal(Goal::RatioAtLeast(0.8))
    };
    Ok([row("file to the guest", puts, raw_puts), row("file from the guest", gets, raw_gets)])
}

/// Sends a file of `size` bytes; both ends hash it.
pub async fn put(bulk: &Client, name: &Token, size: u64) -> Result<(), ClientError> {
    let request = PutRequest { path: PATH.to_owned(), size_bytes: size, ..PutRequest::default() };
    let opening =
        bulk.open(&bulk.guest_subject(name, "put")?, &request, CallOptions::change(DEADLINE)).await?;
    let opened: StreamOpened = opening.reply()?;
    let sent = Tally::new(ProgressBar::hidden());
    let reader = Tallied::new(tokio::io::repeat(0x5a).take(size), sent.clone());
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let never = CancellationToken::new();
    let result: FileResult = opening.session(&opened)?.run(Some(input), Vec::new(), never).await?;
    same(&sent, &result)
}

/// Fetches what was sent; both ends hash it.
pub async fn get(bulk: &Client, name: &Token) -> Result<(), ClientError> {
    let request = GetRequest { path: PATH.to_owned(), ..GetRequest::default() };
    let opening =
        bulk.open(&bulk.guest_subject(name, "get")?, &request, CallOptions::change(DEADLINE)).await?;
    let opened: StreamOpened = opening.reply()?;
    let received = Tally::new(ProgressBar::hidden());
    let writer = Box::new(Tallied::new(tokio::io::sink(), received.clone()));
    let output = Output { channel: Channel::Data, writer };
    let never = CancellationToken::new();
    let result: FileResult = opening.session(&opened)?.run(None, vec![output], never).await?;
    same(&received, &result)
}

fn same(tally: &Tally, result: &FileResult) -> Result<(), ClientError> {
    let (bytes, sha256) = tally.total();
    if bytes == result.size_bytes && sha256 == result.sha256 {
        return Ok(());
    }
    Err(ErrorBody::new(ErrorCode::Internal, "the copy differs from the file").into())
}
