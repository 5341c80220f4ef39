//! The local socket: a line of JSON for each event, a line of JSON as the answer. Any language can speak it:
//!
//! ```text
//! > {"type": "app.deployed", "data": {"build": 7}}
//! < {"accepted":true,"id":"01M3….1"}
//! > {"type": "app.deployed", "wait_ms": 5000}
//! < {"accepted":true,"id":"01M3….2","delivered":true}
//! > {"type": "No"}
//! < {"accepted":false,"error":{"code":"invalid_argument","message":"…"}}
//! ```
//!
//! Who publishes is what the kernel says of the one who connected. Lines, connections and the time in which nothing is
//! said are bounded.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_schemas::ErrorCode;
use drover_schemas::guest::{EventData, EventType};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{Events, Publisher, Refusal};
use crate::log;

/// Everybody may publish.
const MODE: u32 = 0o666;
/// The longest line.
pub const MAX_LINE: usize = 32 * 1024;
/// Connections of all users but root.
const MAX_CONNECTIONS: usize = 64;
/// Connections of one user.
const MAX_OF_USER: usize = 16;
/// How long a connection may say nothing, and not read.
const IDLE: Duration = Duration::from_secs(60);
/// The longest that a publisher may wait for the host.
pub const MAX_WAIT_MS: u64 = 300_000;

/// What a program says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// What there is to say about it.
    #[serde(default)]
    pub data: EventData,
    /// Wait for the host's journal to have it, for so many milliseconds at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The event is kept, and will reach the host if this boot lasts.
    pub accepted: bool,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// If it was waited for: the host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<bool>,
    /// Why it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refused>,
}

/// Why an event is not taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refused {
    /// `invalid_argument`, or what passes: `resource_exhausted`.
    pub code: ErrorCode,
    /// For a person.
    pub message: String,
}

impl Answer {
    fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        let error = Some(Refused { code, message: message.into() });
        Self { accepted: false, id: None, delivered: None, error }
    }
}

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}")]
pub struct BindError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The open socket.
#[derive(Debug)]
pub struct EventSocket(UnixListener);

impl EventSocket {
    /// Opens it for everybody; one that an earlier agent left is replaced.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError { path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(Self(listener))
    }

    /// Goes on with the one that an agent before this has opened.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn inherit(fd: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }

    /// The socket once more, for another agent.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn again(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Serves whoever connects, until another agent does.
    pub async fn serve(self, events: Arc<Events>) {
        let places = Arc::new(Places::default());
        loop {
            let accepted = tokio::select! {
                biased;
                () = events.leaving.cancelled() => return,
                accepted = self.0.accept() => accepted,
            };
            let accepted = accepted.and_then(|(socket, _)| {
                let cred = socket.peer_cred()?;
                let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
                Ok((socket, Publisher { uid: cred.uid(), gid: cred.gid(), pid }))
            });
            match accepted {
                Ok((socket, who)) => match Places::take(&places, who.uid) {
                    Some(place) => {
                        let (events, publishers) = (Arc::clone(&events), events.publishers.clone());
                        publishers.spawn(async move {
                            if let Err(error) = converse(socket, who, &events).await {
                                log::debug(format_args!("a publisher of events has gone: {error}"));
                            }
                            drop(place);
                        });
                    }
                    None => drop(tokio::spawn(turn_away(socket))),
                },
                Err(error) => {
                    log::debug(format_args!("a publisher of events could not be taken: {error}"));
                    // Descriptors are short, or it has gone.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn turn_away(mut socket: UnixStream) {
    let text =
        format!("more than {MAX_OF_USER} connections of one user, or {MAX_CONNECTIONS} of all: close some");
    let _ = timeout(Duration::from_secs(1), say(&mut socket, &Answer::refused(ErrorCode::Busy, text))).await;
}

/// Connections, by user.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<u32, usize>>);

#[derive(Debug)]
struct Place(Arc<Places>, u32);

impl Places {
    fn take(places: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut taken = places.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&uid).copied().unwrap_or(0);
        // Nobody keeps root out.
        let others: usize = taken.iter().filter(|(uid, _)| **uid != 0).map(|(_, count)| count).sum();
        if own >= MAX_OF_USER || (uid != 0 && others >= MAX_CONNECTIONS) {
            return None;
        }
        taken.insert(uid, own + 1);
        Some(Place(Arc::clone(places), uid))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

async fn say(socket: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    timeout(IDLE, socket.write_all(&line)).await?
}

async fn converse(mut socket: UnixStream, who: Publisher, events: &Arc<Events>) -> io::Result<()> {
    let mut held = Vec::new();
    loop {
        let line = match held.iter().position(|byte| *byte == b'\n') {
            Some(end) => held.drain(..=end).collect::<Vec<u8>>(),
            None if held.len() >= MAX_LINE => {
                let text = format!("a line has at most {MAX_LINE} bytes, and each event is a line");
                return say(&mut socket, &Answer::refused(ErrorCode::InvalidArgument, text)).await;
            }
            None => {
                held.reserve(1024);
                let read = tokio::select! {
                    biased;
                    // What comes now is for another agent, on another connection.
                    () = events.leaving.cancelled() => return Ok(()),
                    read = timeout(IDLE, socket.read_buf(&mut held)) => read??,
                };
                if read > 0 {
                    continue;
                }
                // The last line may lack its end.
                std::mem::take(&mut held)
            }
        };
        let is_last = !line.ends_with(b"\n");
        if !line.trim_ascii().is_empty() {
            say(&mut socket, &answer(&line, who, events).await).await?;
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn answer(line: &[u8], who: Publisher, events: &Arc<Events>) -> Answer {
    let invalid = |text: String| Answer::refused(ErrorCode::InvalidArgument, text);
    let said: Said = match serde_json::from_slice(line) {
        Ok(said) => said,
        Err(error) => {
            let example = r#"{"type": "app.deployed", "data": {"build": 7}}"#;
            return invalid(format!("not an event: {error}; write a line such as {example}"));
        }
    };
    let kind = match EventType::new(said.kind) {
        Ok(kind) => kind,
        Err(error) => return invalid(error.to_string()),
    };
    if said.wait_ms.is_some_and(|ms| ms > MAX_WAIT_MS) {
        return invalid(format!("wait_ms is at most {MAX_WAIT_MS}"));
    }
    match events.publish(who, &kind, &said.data) {
        Ok(n) => {
            let delivered = match said.wait_ms {
                Some(ms) => Some(events.delivered(n, Duration::from_millis(ms)).await),
                None => None,
            };
            Answer { accepted: true, id: Some(events.id(n)), delivered, error: None }
        }
        Err(refusal) => {
            let code = match &refusal {
                Refusal::Own => ErrorCode::PermissionDenied,
                Refusal::Data(_) => ErrorCode::InvalidArgument,
                Refusal::Quota(_) | Refusal::Keep(_) => ErrorCode::ResourceExhausted,
                Refusal::Left => ErrorCode::Unavailable,
            };
            Answer::refused(code, log::chain(&refusal))
        }
    }
}
