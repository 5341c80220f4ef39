//! The plain program in the guest that the agent is held against, and this end of it.
//!
//! It is the agent's own binary in another mode (see `drover_agent::baseline`), started through the agent,
//! reached through the VM's hybrid socket on a port of its own, and ended with its stream.

use std::io;
use std::path::Path;
use std::time::Duration;

use drover_actors::guest::{LinkError, dial};
use drover_schemas::Token;
use drover_schemas::body::guest::{ExecReply, ExecRequest, ExecResult};
use drover_schemas::stream::Channel;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::client::{CallOptions, Client, ClientError, Output};

/// Not privileged, not used by drover.
const PORT: u32 = 10_230;
/// How long the program may live if nobody ends it.
const LIFE: Duration = Duration::from_secs(900);
const START: Duration = Duration::from_secs(20);
/// What is written in one go: as the program does.
const CHUNK: usize = 256 * 1024;
const FILE: &str = "/tmp/drover-plain";

/// Why there is no limit beside the agent.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The agent would not start it.
    #[error("the plain program could not be started in the guest")]
    Start(#[source] ClientError),
    /// It ended.
    #[error("the plain program ended: {said}; the guest's agent may be older than this program")]
    Ended {
        /// What it said.
        said: String,
    },
    /// The hybrid socket does not lead to it.
    #[error("the plain program in the guest cannot be reached")]
    Dial(#[source] LinkError),
    /// The connection broke.
    #[error("the plain program in the guest")]
    Io(#[source] io::Error),
    /// The file is not what was sent.
    #[error("the raw copy differs from the file")]
    Differs,
}

/// A connection to the program. Dropped, the program ends.
#[derive(Debug)]
pub struct Plain {
    socket: UnixStream,
    cancel: CancellationToken,
    _task: JoinHandle<()>,
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Plain {
    /// Starts the program in VM `name` and dials it through `vsock`.
    ///
    /// # Errors
    /// [`PlainError`]
    pub async fn start(
        client: &Client,
        name: &Token,
        vsock: &Path,
        process: bool,
    ) -> Result<Self, PlainError> {
        // In a guest of processes a port is a socket's file.
        let listen = if process { format!("unix:/run/vsock-{PORT}.sock") } else { format!("vsock:{PORT}") };
        // The agent is the parent of what it starts, wherever its binary lies.
        let command = format!("exec /proc/$PPID/exe --baseline {FILE} --listen {listen}");
        let request = ExecRequest {
            argv: ["sh", "-c", &command].map(str::to_owned).to_vec(),
            timeout_ms: Some(LIFE.as_millis() as u64),
            stream: true,
            ..ExecRequest::default()
        };
        let subject = client.guest_subject(name, "exec").map_err(PlainError::Start)?;
        let options = CallOptions::change(START);
        let opening = client.open(&subject, &request, options).await.map_err(PlainError::Start)?;
        let session = match opening.reply().map_err(PlainError::Start)? {
            ExecReply::Stream(opened) => opening.session(&opened).map_err(PlainError::Start)?,
            ExecReply::Result(_) | ExecReply::Run(_) => {
                return Err(PlainError::Ended { said: "at once".to_owned() });
            }
        };
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let (mut hear, said) = tokio::io::simplex(64 * 1024);
        let task = tokio::spawn(async move {
            let outputs = vec![
                Output { channel: Channel::Stdout, writer: Box::new(tokio::io::sink()) },
                Output { channel: Channel::Stderr, writer: Box::new(said) },
            ];
            let ended = session.run::<ExecResult>(None, outputs, token).await;
            tracing::debug!(?ended, "the plain program ended");
        });
        let guard = cancel.clone().drop_guard();
        let until = Instant::now() + START;
        loop {
            match dial(vsock, PORT).await {
                Ok(socket) => {
                    guard.disarm();
                    return Ok(Self { socket, cancel, _task: task });
                }
                Err(_) if task.is_finished() => {
                    let mut text = String::new();
                    // What cannot be read is told as nothing.
                    let _ = hear.read_to_string(&mut text).await;
                    let first = text.lines().next().unwrap_or("without a word").to_owned();
                    return Err(PlainError::Ended { said: first });
                }
                Err(error) if Instant::now() >= until => return Err(PlainError::Dial(error)),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn ask(&mut self, operation: u8, length: u64) -> io::Result<()> {
        let mut head = [operation; 9];
        head[1..].copy_from_slice(&length.to_le_bytes());
        self.socket.write_all(&head).await
    }

    /// Sends a message; it comes back after `true` has run.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn exec(&mut self) -> Result<(), PlainError> {
        // As long as the two messages of an exec are, in round numbers.
        const MESSAGE: [u8; 128] = [7; 128];
        let mut request = [7; 9 + MESSAGE.len()];
        request[0] = b'x';
        request[1..9].copy_from_slice(&(MESSAGE.len() as u64).to_le_bytes());
        let mut reply = MESSAGE;
        self.socket.write_all(&request).await.map_err(PlainError::Io)?;
        self.socket.read_exact(&mut reply).await.map(drop).map_err(PlainError::Io)
    }

    /// Sends a file of `size` bytes; both ends hash it.
    ///
    /// # Errors
    /// The connection broke, or the digests differ.
    pub async fn put(&mut self, size: u64) -> Result<(), PlainError> {
        let chunk = vec![0x5a_u8; CHUNK];
        self.ask(b'p', size).await.map_err(PlainError::Io)?;
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            let count = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            hash.update(&chunk[..count]);
            self.socket.write_all(&chunk[..count]).await.map_err(PlainError::Io)?;
            left -= count as u64;
        }
        self.same(hash).await
    }

    /// Fetches the file that was put; both ends hash it.
    ///
    /// # Errors
    /// The connection broke, or the digests differ.
    pub async fn get(&mut self) -> Result<(), PlainError> {
        self.ask(b'g', 0).await.map_err(PlainError::Io)?;
        let mut left = self.socket.read_u64_le().await.map_err(PlainError::Io)?;
        let mut chunk = vec![0_u8; CHUNK];
        let mut hash = Sha256::new();
        while left > 0 {
            let want = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = self.socket.read(&mut chunk[..want]).await.map_err(PlainError::Io)?;
            if count == 0 {
                return Err(PlainError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            hash.update(&chunk[..count]);
            left -= count as u64;
        }
        self.same(hash).await
    }

    async fn same(&mut self, hash: Sha256) -> Result<(), PlainError> {
        let mut theirs = [0; 32];
        self.socket.read_exact(&mut theirs).await.map_err(PlainError::Io)?;
        if hash.finalize()[..] == theirs { Ok(()) } else { Err(PlainError::Differs) }
    }
}
