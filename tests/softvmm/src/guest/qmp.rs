//! QEMU's machine protocol, over an inherited socket: commands with answers, and events.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long QEMU may take to answer.
const LIMIT: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket is gone, or never spoke.
    #[error("QEMU does not answer")]
    Silent(#[source] io::Error),
    /// QEMU refused; its words.
    #[error("QEMU refused: {0}")]
    Refused(String),
}

/// A connection on which commands are accepted; clones share it.
#[derive(Clone)]
pub struct Qmp {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Waiting,
    next: Arc<AtomicU64>,
}

fn silent(kind: io::ErrorKind) -> QmpError {
    QmpError::Silent(kind.into())
}

impl Qmp {
    /// Says hello. Events go to `events`, which ends with QEMU.
    ///
    /// # Errors
    /// QEMU ended, or said nothing in time.
    pub async fn connect(stream: UnixStream, events: mpsc::UnboundedSender<Value>) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let greeting = timeout(LIMIT, lines.next_line()).await;
        match greeting {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(silent(io::ErrorKind::UnexpectedEof)),
            Ok(Err(error)) => return Err(QmpError::Silent(error)),
            Err(_) => return Err(silent(io::ErrorKind::TimedOut)),
        }
        let waiting: Waiting = Arc::default();
        let answers = waiting.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                if value.get("event").is_some() {
                    let _ = events.send(value);
                } else if let Some(id) = value.get("id").and_then(Value::as_u64) {
                    let waiter = answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    let _ = waiter.map(|w| w.send(value));
                }
            }
            // Whoever still waits learns at once that nothing will come.
            answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let qmp = Self { writer, waiting, next: Arc::default() };
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned.
    ///
    /// # Errors
    /// QEMU refused, ended or was silent.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, answer);
        let mut request = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let line = format!("{request}\n");
        self.writer.lock().await.write_all(line.as_bytes()).await.map_err(QmpError::Silent)?;
        let value = match timeout(LIMIT, answered).await {
            Ok(Ok(value)) => value,
            Ok(Err(_)) => return Err(silent(io::ErrorKind::BrokenPipe)),
            Err(_) => return Err(silent(io::ErrorKind::TimedOut)),
        };
        match value.get("error") {
            Some(error) => Err(QmpError::Refused(error["desc"].as_str().unwrap_or("no reason").to_owned())),
            None => Ok(value["return"].clone()),
        }
    }
}
