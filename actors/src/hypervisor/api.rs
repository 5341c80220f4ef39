//! The VMM's HTTP API over its Unix socket: one call at a time, a deadline for each, bounded replies.
//!
//! The VMM answers calls one after the other on one thread, so a second call would only wait there: callers
//! wait here instead. Each call has a connection of its own, which costs an idle VM nothing. The peer may be
//! hostile: its pid is checked at each connect, and a reply above the cap ends the call. Status codes say
//! little (almost every refusal is a 500), so match on `vm.info`, not on codes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{Instrument as _, debug_span, info_span};

use super::config::VmConfig;

/// Longest reply that is read, in bytes.
pub const REPLY_MAX: usize = 1 << 20;
/// Longest body that the VMM takes, in bytes (v53).
pub const BODY_MAX: usize = 51_200;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiErrorKind {
    /// The socket refused: the VMM is not up, or gone.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// Somebody else listens on the socket.
    #[error("process {found:?} listens on the socket instead of {wanted}")]
    WrongPeer {
        /// The VMM.
        wanted: u32,
        /// Who listens.
        found: Option<i32>,
    },
    /// No answer in time.
    #[error("no answer within {after_ms} ms")]
    Timeout {
        /// The deadline.
        after_ms: u64,
    },
    /// The VMM refused.
    #[error("refused with status {code}: {}", errors.join(": "))]
    Status {
        /// HTTP status.
        code: u16,
        /// The VMM's chain of errors, outermost first.
        errors: Vec<String>,
    },
    /// The reply is longer than [`REPLY_MAX`].
    #[error("reply longer than {REPLY_MAX} bytes")]
    ReplyTooLarge,
    /// The body is longer than [`BODY_MAX`].
    #[error("body of {len} bytes; the VMM takes {BODY_MAX}")]
    BodyTooLarge {
        /// Its length.
        len: usize,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("broken connection")]
    Http(#[source] hyper::Error),
    /// The call or its body could not be put into HTTP.
    #[error("cannot make the request")]
    Request(#[source] hyper::http::Error),
    /// The body could not be encoded.
    #[error("cannot encode the body")]
    Encode(#[source] serde_json::Error),
    /// The reply is not what this call answers.
    #[error("reply not understood")]
    Garbage(#[source] serde_json::Error),
}

/// A call to the VMM failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct ApiError {
    /// The call, as `vm.boot`.
    pub call: &'static str,
    /// Why.
    #[source]
    pub kind: ApiErrorKind,
}

impl ApiError {
    /// The VMM was not there: nothing was done.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self.kind, ApiErrorKind::Connect(_))
    }

    /// The VMM may still be doing what was asked.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind, ApiErrorKind::Timeout { .. })
    }

    /// The VMM's own words, outermost first; empty unless it refused.
    #[must_use]
    pub fn vmm_errors(&self) -> &[String] {
        match &self.kind {
            ApiErrorKind::Status { errors, .. } => errors,
            _ => &[],
        }
    }
}

/// Reply of `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmmPing {
    /// Version, as `53.0.0`.
    pub version: String,
    /// Process id by the VMM's own account.
    #[serde(default)]
    pub pid: u32,
    /// Version with the build's mark.
    #[serde(default)]
    pub build_version: String,
    /// What it was built with.
    #[serde(default)]
    pub features: Vec<String>,
}

/// What the VMM says about its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum VmmState {
    /// No `vm.create` yet, or `vm.delete` after it.
    #[serde(skip_deserializing)]
    NotCreated,
    /// Configured and off: before the first boot, and after the guest powered off.
    Created,
    /// It runs.
    Running,
    /// Off; v53 reports [`VmmState::Created`] instead.
    Shutdown,
    /// Its processors are stopped.
    Paused,
    /// A state that this program does not know.
    #[serde(other)]
    Unknown,
}

impl VmmState {
    /// The guest does not run and will not without a boot.
    #[must_use]
    pub fn is_off(self) -> bool {
        matches!(self, Self::NotCreated | Self::Created | Self::Shutdown)
    }
}

/// Reply of `vm.info`, as much of it as steers us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct VmInfo {
    /// The VM's state.
    pub state: VmmState,
    /// Memory that the guest has now.
    #[serde(default)]
    pub memory_actual_size: Option<u64>,
}

/// Reply of `vm.counters`: values by name by device.
pub type Counters = std::collections::BTreeMap<String, std::collections::BTreeMap<String, i64>>;

/// How long each kind of call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiDeadlines {
    /// Calls that only ask, and the power button.
    pub quick: Duration,
    /// Calls that change the VM.
    pub change: Duration,
    /// `vm.create` and `vm.boot`, which map memory and load the kernel.
    pub boot: Duration,
}

impl Default for ApiDeadlines {
    fn default() -> Self {
        Self { quick: Duration::from_secs(2), change: Duration::from_secs(10), boot: Duration::from_secs(30) }
    }
}

/// The API of one VMM.
#[derive(Debug)]
pub struct ApiClient {
    socket: PathBuf,
    peer: Option<u32>,
    deadlines: ApiDeadlines,
    turn: tokio::sync::Mutex<()>,
}

impl ApiClient {
    /// A client of the API at `socket`; connects at each call.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, peer: None, deadlines: ApiDeadlines::default(), turn: tokio::sync::Mutex::new(()) }
    }

    /// Accepts only process `pid` at the other end.
    #[must_use]
    pub fn with_peer(mut self, pid: u32) -> Self {
        self.peer = Some(pid);
        self
    }

    /// Uses other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: ApiDeadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `vmm.ping`.
    ///
    /// # Errors
    /// See [`ApiErrorKind`]; so for every call.
    pub async fn ping(&self) -> Result<VmmPing, ApiError> {
        self.get("vmm.ping").await
    }

    /// `vm.create`: hands over the configuration; nothing runs yet.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn create(&self, config: &VmConfig) -> Result<(), ApiError> {
        const CALL: &str = "vm.create";
        let body =
            serde_json::to_vec(config).map_err(|e| ApiError { call: CALL, kind: ApiErrorKind::Encode(e) })?;
        self.put(CALL, Some(body), self.deadlines.boot).await
    }

    /// `vm.boot`.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn boot(&self) -> Result<(), ApiError> {
        self.put("vm.boot", None, self.deadlines.boot).await
    }

    /// `vm.info`, where "there is none" is an answer: [`VmmState::NotCreated`].
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        match self.get("vm.info").await {
            Err(ApiError { kind: ApiErrorKind::Status { code: 404, .. }, .. }) => {
                Ok(VmInfo { state: VmmState::NotCreated, memory_actual_size: None })
            }
            other => other,
        }
    }

    /// The whole reply of `vm.info`, for people.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn info_document(&self) -> Result<serde_json::Value, ApiError> {
        self.get("vm.info").await
    }

    /// `vm.counters`.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn counters(&self) -> Result<Counters, ApiError> {
        self.get("vm.counters").await
    }

    /// `vm.pause`. Pausing a paused VM is an error of the VMM's: ask [`ApiClient::info`] first.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.put("vm.pause", None, self.deadlines.change).await
    }

    /// `vm.resume`.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.put("vm.resume", None, self.deadlines.change).await
    }

    /// `vm.power-button`: the guest decides what to do about it.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn power_button(&self) -> Result<(), ApiError> {
        self.put("vm.power-button", None, self.deadlines.quick).await
    }

    /// `vm.shutdown`: switches the VM off; the VMM lives on.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn shutdown(&self) -> Result<(), ApiError> {
        self.put("vm.shutdown", None, self.deadlines.change).await
    }

    /// `vm.reboot`: a reset, within the same process.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn reboot(&self) -> Result<(), ApiError> {
        self.put("vm.reboot", None, self.deadlines.boot).await
    }

    /// `vm.resize-disk`: gives a disk, which must be raw, another length, and tells the guest.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), ApiError> {
        const CALL: &str = "vm.resize-disk";
        let body = serde_json::json!({"id": id, "desired_size": bytes}).to_string().into_bytes();
        self.put(CALL, Some(body), self.deadlines.change).await
    }

    /// `vm.delete`: drops the configuration.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn delete(&self) -> Result<(), ApiError> {
        self.put("vm.delete", None, self.deadlines.change).await
    }

    /// `vmm.shutdown`: the process ends after it has answered.
    ///
    /// # Errors
    /// See [`ApiErrorKind`].
    pub async fn vmm_shutdown(&self) -> Result<(), ApiError> {
        self.put("vmm.shutdown", None, self.deadlines.change).await
    }

    async fn get<T: DeserializeOwned>(&self, call: &'static str) -> Result<T, ApiError> {
        let reply = self.call(call, Method::GET, None, self.deadlines.quick).await?;
        serde_json::from_slice(&reply).map_err(|e| ApiError { call, kind: ApiErrorKind::Garbage(e) })
    }

    async fn put(
        &self,
        call: &'static str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        self.call(call, Method::PUT, body, deadline).await.map(|_| ())
    }

    /// The deadline counts from here: waiting for the turn is part of the call.
    async fn call(
        &self,
        call: &'static str,
        method: Method,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Bytes, ApiError> {
        let work = async {
            let _turn = self.turn.lock().await;
            self.exchange(call, method, body.unwrap_or_default()).await
        };
        // Asked for without end, these would drown the rest of a trace.
        let span = match call {
            "vmm.ping" | "vm.info" | "vm.counters" => debug_span!("vmm.call", call),
            _ => info_span!("vmm.call", call),
        };
        match tokio::time::timeout(deadline, work).instrument(span).await {
            Ok(done) => done,
            Err(_) => {
                let after_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(ApiErrorKind::Timeout { after_ms })
            }
        }
        .map_err(|kind| ApiError { call, kind })
    }

    async fn exchange(&self, call: &str, method: Method, body: Vec<u8>) -> Result<Bytes, ApiErrorKind> {
        if body.len() > BODY_MAX {
            return Err(ApiErrorKind::BodyTooLarge { len: body.len() });
        }
        let stream = super::socket::connect(&self.socket).await.map_err(ApiErrorKind::Connect)?;
        if let Some(wanted) = self.peer {
            let found = stream.peer_cred().map_err(ApiErrorKind::Connect)?.pid();
            if found.and_then(|pid| u32::try_from(pid).ok()) != Some(wanted) {
                return Err(ApiErrorKind::WrongPeer { wanted, found });
            }
        }
        let mut request =
            Request::builder().method(method).uri(format!("/api/v1/{call}")).header(HOST, "localhost");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(ApiErrorKind::Request)?;
        exchange(stream, request).await
    }
}

/// One request and its reply over a connection of its own. Whatever comes back, memory is bounded: 64 KiB
/// of head and 1 MiB of body.
///
/// # Errors
/// See [`ApiErrorKind`].
pub async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Bytes, ApiErrorKind>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ApiErrorKind::Http)?;
    // Driven here rather than by a task of its own: when the deadline drops us, the socket goes too.
    let reply = async {
        let response = sender.send_request(request).await.map_err(ApiErrorKind::Http)?;
        let status = response.status();
        let body = read_bounded(response.into_body()).await?;
        Ok((status, body))
    };
    let mut reply = std::pin::pin!(reply);
    let mut connection = std::pin::pin!(connection);
    let (status, body) = tokio::select! {
        biased;
        done = &mut reply => done?,
        ended = &mut connection => match ended {
            // Everything has been read: what is left is in the buffers of the reply.
            Ok(()) => reply.await?,
            Err(error) => return Err(ApiErrorKind::Http(error)),
        },
    };
    if status.is_success() {
        return Ok(body);
    }
    Err(ApiErrorKind::Status { code: status.as_u16(), errors: vmm_errors(&body) })
}

async fn read_bounded(mut body: Incoming) -> Result<Bytes, ApiErrorKind> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(ApiErrorKind::Http)?;
        if let Ok(data) = frame.into_data() {
            if read.len() + data.len() > REPLY_MAX {
                return Err(ApiErrorKind::ReplyTooLarge);
            }
            read.extend_from_slice(&data);
        }
    }
    Ok(read.freeze())
}

/// The VMM's error chain: an array of strings, or whatever text came, in bounds.
fn vmm_errors(body: &[u8]) -> Vec<String> {
    const EACH: usize = 1024;
    const COUNT: usize = 32;
    let mut errors = serde_json::from_slice::<Vec<String>>(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(EACH)]).trim().to_owned();
        if text.is_empty() { Vec::new() } else { vec![text] }
    });
    errors.truncate(COUNT);
    for error in &mut errors {
        if error.len() > EACH {
            let cut = error.floor_char_boundary(EACH);
            error.truncate(cut);
        }
    }
    errors
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
