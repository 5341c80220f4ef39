//! Rows beside QEMU's own guest agent in the same guest, by turns.
//!
//! It is reached through a virtio-serial port that Cloud Hypervisor does not have: `softvmm` makes one beside the vsock
//! when it is told to (`SOFTVMM_QGA`), and the guest's udev starts `qemu-ga` for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{Empty, PingReply};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::guest;
use super::report::{Goal, Row};
use super::sample::Sample;
use crate::client::{CallOptions, Client, ClientError};

/// How long it may take to come up beside the agent, which may be there earlier.
const START: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(60);
/// What is read in one call: it takes a file piece by piece, in base64.
const CHUNK: u64 = 1 << 20;
/// Its share of the file is smaller: it is that slow.
const FILE: u64 = 8 << 20;

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// There is no port.
    #[error(
        "there is no port of QEMU's guest agent at {path:?}; start the host with SOFTVMM_QGA=true and guests with kernels"
    )]
    NoPort {
        /// Where it would be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers in the guest.
    #[error("QEMU's guest agent does not answer; is qemu-ga installed in the guest?")]
    Silent,
    /// The connection broke.
    #[error("speak with QEMU's guest agent")]
    Io(#[from] io::Error),
    /// It answers what cannot be read.
    #[error("read an answer of QEMU's guest agent")]
    Answer(#[from] serde_json::Error),
    /// It refuses.
    #[error("QEMU's guest agent refuses {command}: {why}")]
    Refused {
        /// What.
        command: &'static str,
        /// Why.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct Piece {
    count: u64,
    eof: bool,
    #[serde(rename = "buf-b64")]
    bytes: Blob,
}

/// A connection to it.
#[derive(Debug)]
struct Qga {
    stream: BufReader<UnixStream>,
}

impl Qga {
    /// Connects, and waits until it answers.
    async fn connect(vsock: &Path) -> Result<Self, QgaError> {
        let path = vsock.with_extension("qga");
        let until = Instant::now() + START;
        loop {
            let stream = UnixStream::connect(&path).await;
            let stream = stream.map_err(|source| QgaError::NoPort { path: path.clone(), source })?;
            let mut qga = Self { stream: BufReader::new(stream) };
            // What was asked before it listened may be answered late: then another connection begins anew.
            let pinged = timeout(Duration::from_secs(5), qga.call("guest-ping", json!({}))).await;
            match pinged {
                Ok(Ok(_)) => return Ok(qga),
                Ok(Err(error)) if Instant::now() >= until => return Err(error),
                Err(_) if Instant::now() >= until => return Err(QgaError::Silent),
                _ => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn call(&mut self, command: &'static str, arguments: Value) -> Result<Value, QgaError> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        let read = timeout(LIMIT, self.stream.read_line(&mut answer)).await;
        if read.map_err(|_| QgaError::Silent)?? == 0 {
            return Err(QgaError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut answer: Value = serde_json::from_str(&answer)?;
        match answer["error"]["desc"].as_str() {
            Some(why) => Err(QgaError::Refused { command, why: why.to_owned() }),
            None => Ok(answer["return"].take()),
        }
    }

    async fn ping(&mut self) -> Result<(), QgaError> {
        self.call("guest-ping", json!({})).await.map(drop)
    }

    /// `true`; it is asked for its end again and again, as there is no other way.
    async fn exec(&mut self) -> Result<(), QgaError> {
        let started = self.call("guest-exec", json!({"path": "true"})).await?;
        while self.call("guest-exec-status", json!({"pid": started["pid"]})).await?["exited"] != true {}
        Ok(())
    }

    /// Reads the file of the guest; answers how much there was.
    async fn read(&mut self) -> Result<u64, QgaError> {
        let handle = self.call("guest-file-open", json!({"path": guest::PATH, "mode": "r"})).await?;
        let mut total = 0;
        loop {
            let piece = self.call("guest-file-read", json!({"handle": handle, "count": CHUNK})).await?;
            let piece: Piece = serde_json::from_value(piece)?;
            total += piece.count.min(piece.bytes.as_slice().len() as u64);
            if piece.eof {
                break;
            }
        }
        self.call("guest-file-close", json!({"handle": handle})).await?;
        Ok(total)
    }
}

const PING: &str = "ping of the agent, beside qemu-ga";
const EXEC: &str = "exec of true, beside qemu-ga";
const GET: &str = "file from the guest, beside qemu-ga";

/// Drover's ping, command and file beside those of QEMU's guest agent, by turns.
///
/// # Errors
/// As [`Client::call`]; what the other cannot do is said in the rows.
pub async fn rows(
    client: &Client,
    name: &Token,
    vsock: Result<PathBuf, String>,
    calls: usize,
    rounds: usize,
) -> Result<Vec<Row>, ClientError> {
    let connected = match vsock {
        Ok(vsock) => Qga::connect(&vsock).await.map_err(|error| drover_actors::chain(&error).to_string()),
        Err(why) => Err(why),
    };
    let mut qga = match connected {
        Ok(qga) => qga,
        Err(why) => {
            let row = |(what, unit)| Row::new(what, unit, Default::default()).unmeasured(&why);
            return Ok([(PING, "ms"), (EXEC, "ms"), (GET, "MiB/s")].into_iter().map(row).collect());
        }
    };
    let mut rows = Vec::new();
    let against = "QEMU's guest agent over a virtio-serial port";
    for what in [PING, EXEC] {
        let (mut drover, mut beside, mut why) = (Sample::default(), Sample::default(), None);
        for _ in 0..calls {
            if what == PING {
                drover.time(ping(client, name)).await?;
            } else {
                drover.time(guest::result(client, name, &["true"])).await?;
            }
            if why.is_none() {
                let turn = async { if what == PING { qga.ping().await } else { qga.exec().await } };
                why = beside.time(turn).await.err();
            }
        }
        let limit = outcome(why).map(|()| beside.percentiles(1e3));
        let row = Row::new(what, "ms", drover.percentiles(1e3)).against(against, limit);
        rows.push(row.goal(Goal::RatioAtMost(1.0)));
    }
    let bulk = client.for_bulk().await?;
    let (mut gets, mut reads, mut why) = (Sample::default(), Sample::default(), None);
    guest::put(&bulk, name, FILE).await?;
    for _ in 0..rounds.max(1) {
        gets.time(guest::get(&bulk, name)).await?;
        if why.is_none() {
            match reads.time(qga.read()).await {
                Ok(FILE) => {}
                Ok(other) => {
                    let said = format!("{other} of {FILE} bytes");
                    why = Some(QgaError::Refused { command: "guest-file-read", why: said });
                }
                Err(error) => why = Some(error),
            }
        }
    }
    guest::result(client, name, &["rm", "-f", guest::PATH]).await?;
    let limit = outcome(why).map(|()| reads.rates(FILE));
    let row = Row::new(&format!("{GET}, {} MiB", FILE >> 20), "MiB/s", gets.rates(FILE));
    rows.push(row.against(against, limit).goal(Goal::RatioAtLeast(1.0)));
    Ok(rows)
}

async fn ping(client: &Client, name: &Token) -> Result<PingReply, ClientError> {
    client.call(&client.guest_subject(name, "ping")?, &Empty {}, CallOptions::read(LIMIT)).await
}

fn outcome(why: Option<QgaError>) -> Result<(), String> {
    why.map_or(Ok(()), |error| Err(drover_actors::chain(&error).to_string()))
}
