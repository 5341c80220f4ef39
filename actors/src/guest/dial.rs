//! Through the hypervisor's hybrid socket to a port of the guest.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_schemas::guest::AgentHello;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::error::LinkError;
use super::link::{HelloInfo, Link};
use crate::pause_while_waiting;

/// The longest answer to `CONNECT`, with its line end.
const MAX_LINE: usize = 32;
/// The longest pause between two attempts while a guest boots.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest single attempt: the hypervisor itself gives up after 2 s.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Why the last try to reach an agent failed; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct LastError(Arc<Mutex<Option<LinkError>>>);

impl LastError {
    /// The reason, while there is no link.
    #[must_use]
    pub fn get(&self) -> Option<LinkError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the reason.
    pub fn set(&self, error: LinkError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

pub(super) fn io_error(source: io::Error) -> LinkError {
    match source.kind() {
        // How a hypervisor closes when its guest has no such port, or has just gone.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            LinkError::Closed
        }
        _ => LinkError::Io { source: Arc::new(source) },
    }
}

/// Connects to `port` of the guest behind `vsock_socket`. The caller sets the deadline.
///
/// # Errors
/// [`LinkError::NobodyListens`] while the guest has no such port; it may only be booting.
pub async fn dial(vsock_socket: &Path, port: u32) -> Result<UnixStream, LinkError> {
    let failed = |source| LinkError::Dial { path: vsock_socket.to_owned(), source: Arc::new(source) };
    let mut socket = crate::hypervisor::socket::connect(vsock_socket).await.map_err(failed)?;
    let nobody = |_| LinkError::NobodyListens;
    socket.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(nobody)?;
    // Byte by byte: what follows the line belongs to the agent.
    let mut line = Vec::with_capacity(MAX_LINE);
    while line.last() != Some(&b'\n') {
        let byte = socket.read_u8().await.map_err(nobody)?;
        line.push(byte);
        if line.len() >= MAX_LINE {
            break;
        }
    }
    let text = String::from_utf8_lossy(&line);
    match text.strip_suffix('\n').and_then(|l| l.strip_prefix("OK ")) {
        Some(port) if port.parse::<u32>().is_ok() => Ok(socket),
        _ => Err(LinkError::BadConnect { line: text.escape_default().to_string() }),
    }
}

/// As [`Link::connect`], again and again while the guest boots: its socket may not exist yet, and
/// closes while nobody listens. Why it did not work yet is in `last_error`.
///
/// # Errors
/// [`LinkError::GivenUp`] when `cancel` fired, [`LinkError::Deadline`] when the time was up, or what
/// cannot pass by waiting.
pub async fn connect_when_ready(
    vsock_socket: &Path,
    info: &HelloInfo,
    cancel: &CancellationToken,
    deadline: Duration,
    last_error: &LastError,
) -> Result<(Link, Arc<AgentHello>), LinkError> {
    let began = Instant::now();
    let until = began + deadline;
    let trying = async {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match Link::connect(vsock_socket, info, left.min(ATTEMPT)).await {
                Ok(linked) => return Ok(linked),
                Err(error) => {
                    last_error.set(error.clone());
                    if !error.may_pass() {
                        return Err(error);
                    }
                    if Instant::now() + pause_while_waiting(began.elapsed(), LONGEST_PAUSE) >= until {
                        let after_ms = deadline.as_millis() as u64;
                        return Err(LinkError::Deadline { step: "the start of the guest's agent", after_ms });
                    }
                }
            }
            sleep(pause_while_waiting(began.elapsed(), LONGEST_PAUSE)).await;
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(LinkError::GivenUp),
        result = trying => result,
    }
}
