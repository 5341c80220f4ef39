//! Rows with a guest in them: programs and files.

use std::time::{Duration, Instant};

use drover_schemas::Token;
use drover_schemas::body::guest::{ExecReply, ExecRequest, FileResult, GetRequest, PutRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use drover_schemas::{ErrorBody, ErrorCode};
use indicatif::ProgressBar;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::report::Row;
use super::sample::{Percentiles, Sample};
use crate::cli::tally::{Tallied, Tally};
use crate::client::{CallOptions, Client, ClientError, Input, Output};

const DEADLINE: Duration = Duration::from_secs(30);
const PATH: &str = "/tmp/drover-bench";

/// `true`, again and again, each as one request and one reply.
pub async fn exec(client: &Client, name: &Token, calls: usize) -> Result<Row, ClientError> {
    let request = ExecRequest {
        argv: vec!["true".to_owned()],
        env: std::collections::BTreeMap::new(),
        cwd: None,
        user: None,
        timeout_ms: None,
        stdin: None,
        stream: false,
    };
    let subject = client.guest_subject(name, "exec")?;
    let mut sample = Sample::default();
    for _ in 0..calls {
        let call = client.call::<_, ExecReply>(&subject, &request, CallOptions::change(DEADLINE));
        sample.time(call).await?;
    }
    Ok(Row::new("exec of true", "us", sample.percentiles(1e6))
        .against("vsock echo and fork/exec in the guest", None)
        .goal("1.3x at p50"))
}

/// A file to the guest and back, hashed at both ends.
pub async fn files(
    client: &Client,
    name: &Token,
    size: u64,
    bar: &ProgressBar,
) -> Result<[Row; 2], ClientError> {
    let bulk = client.for_bulk().await?;
    let started = Instant::now();
    let request =
        PutRequest { path: PATH.to_owned(), size_bytes: size, mode: None, sha256: None, create_dirs: false };
    let opening =
        bulk.open(&bulk.guest_subject(name, "put")?, &request, CallOptions::change(DEADLINE)).await?;
    let opened: StreamOpened = opening.reply()?;
    let sent = Tally::new(bar.clone());
    let reader = Tallied::new(tokio::io::repeat(0x5a).take(size), sent.clone());
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let never = CancellationToken::new();
    let result: FileResult = opening.session(&opened)?.run(Some(input), Vec::new(), never.clone()).await?;
    same(&sent, &result)?;
    let put = rate(size, started);

    let started = Instant::now();
    let request = GetRequest { path: PATH.to_owned(), max_size_bytes: None };
    let opening =
        bulk.open(&bulk.guest_subject(name, "get")?, &request, CallOptions::change(DEADLINE)).await?;
    let opened: StreamOpened = opening.reply()?;
    let received = Tally::new(bar.clone());
    let writer = Box::new(Tallied::new(tokio::io::sink(), received.clone()));
    let output = Output { channel: Channel::Data, writer };
    let result: FileResult = opening.session(&opened)?.run(None, vec![output], never).await?;
    same(&received, &result)?;
    let row = |what: &str, rate| {
        Row::new(&format!("{what}, {} MiB", size >> 20), "MiB/s", rate)
            .against("raw copy through the same vsock, SHA-256 at both ends", None)
            .goal("0.8x or more")
    };
    Ok([row("file to the guest", put), row("file from the guest", rate(size, started))])
}

fn rate(size: u64, started: Instant) -> Percentiles {
    let rate = (size as f64 / f64::from(1 << 20)) / started.elapsed().as_secs_f64();
    Percentiles { p50: rate, p99: rate, count: 1 }
}

fn same(tally: &Tally, result: &FileResult) -> Result<(), ClientError> {
    let (bytes, sha256) = tally.total();
    if bytes == result.size_bytes && sha256 == result.sha256 {
        return Ok(());
    }
    Err(ErrorBody::new(ErrorCode::Internal, "the copy differs from the file").into())
}
