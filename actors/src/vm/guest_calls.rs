//! Verbs that the guest's agent carries out: one call each, or a stream between client and agent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_schemas::body::guest::{
    Empty, ExecReply, ExecRequest, ExecResult, FileResult, GetRequest, GuestShutdownRequest, PingReply,
    PutRequest, ShutdownMode,
};
use drover_schemas::body::spec::AgentSpec;
use drover_schemas::guest as proto;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::guest::{CallError, GuestStream, Link, LinkError, Open, StreamEvent};

/// Output that a reply carries, for each of stdout and stderr.
pub const COLLECTED: usize = 128 * 1024;
/// How long a collected command may run if the caller does not say.
const EXEC_TIMEOUT_MS: u64 = 30_000;
/// How long the agent may take for a small call.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// A call failed, as the client is told.
#[must_use]
pub fn call_error(error: CallError) -> ErrorBody {
    match error {
        CallError::Guest(body) => body,
        CallError::Link(link) => link.into(),
    }
}

pub(super) async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
    link: &Link,
    verb: &str,
    request_id: Option<RequestId>,
    deadline: Duration,
    body: &Q,
) -> Result<A, ErrorBody> {
    let body = encode(body)?;
    let reply = link.call(verb, request_id, deadline, body).await.map_err(call_error)?;
    decode_guest(&reply)
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, ErrorBody> {
    codec::encode(value)
        .map(Bytes::from)
        .map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the request could not be encoded: {e}")))
}

/// Reads what the guest sent; a guest is not trusted to send what it should.
pub fn decode_guest<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ErrorBody> {
    codec::decode(bytes).map_err(|e| {
        ErrorBody::new(ErrorCode::GuestError, format!("the agent answered what cannot be read: {e}"))
    })
}

/// `guest.ping`
///
/// # Errors
/// The coded error for the caller.
pub async fn ping(link: &Link, left: Duration) -> Result<PingReply, ErrorBody> {
    let began = Instant::now();
    let pong: proto::PingResult = call(link, proto::verb::PING, None, left.min(CALL), &Empty {}).await?;
    Ok(PingReply {
        round_trip_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        agent_version: link.hello().version.clone(),
        boot_id: pong.boot_id,
    })
}

/// `guest.info`
///
/// # Errors
/// The coded error for the caller.
pub async fn info(link: &Link, left: Duration) -> Result<proto::InfoResult, ErrorBody> {
    call(link, proto::verb::INFO, None, left.min(CALL), &Empty {}).await
}

/// `guest.health`, with what the spec has `wanted` of an agent that is too old for it.
///
/// # Errors
/// The coded error for the caller.
pub async fn health(
    link: &Link,
    left: Duration,
    wanted: &AgentSpec,
) -> Result<proto::HealthResult, ErrorBody> {
    let mut health: proto::HealthResult =
        call(link, proto::verb::HEALTH, None, left.min(CALL), &Empty {}).await?;
    if let Err(error) = link.offers(proto::verb::CONFIGURE)
        && wanted.settings() != proto::ConfigureRequest::default()
    {
        health.status = health.status.max(proto::HealthStatus::Warn);
        health.reasons.push(format!("what the spec wants watched is not watched: {error}"));
    }
    Ok(health)
}

/// `guest.shutdown`
///
/// # Errors
/// The coded error for the caller.
pub async fn shutdown(
    link: &Link,
    request_id: Option<RequestId>,
    left: Duration,
    request: &GuestShutdownRequest,
) -> Result<(), ErrorBody> {
    let mode = match request.mode {
        ShutdownMode::PowerOff => proto::ShutdownMode::Poweroff,
        ShutdownMode::Reboot => proto::ShutdownMode::Reboot,
    };
    let body = proto::ShutdownRequest { mode, delay_ms: None };
    let _: proto::ShutdownResult =
        call(link, proto::verb::SHUTDOWN, request_id, left.min(CALL), &body).await?;
    Ok(())
}

/// Asks the agent to power the guest off, for the stop ladder.
///
/// # Errors
/// The coded error.
pub async fn power_off(link: &Link) -> Result<(), ErrorBody> {
    shutdown(link, None, CALL, &GuestShutdownRequest::default()).await
}

/// The agent's request for an exec.
pub fn exec_open(
    request: &ExecRequest,
    request_id: Option<RequestId>,
    credit: u64,
    streamed_stdin: bool,
) -> Result<Open, ErrorBody> {
    if request.argv.is_empty() {
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, "argv: name at least the program to run")
            .with("field", "argv"));
    }
    let timeout_ms = request.timeout_ms.or((!request.stream && !request.detach).then_some(EXEC_TIMEOUT_MS));
    let body = proto::ExecRequest {
        argv: request.argv.clone(),
        env: request.env.iter().map(|(k, v)| (k.clone(), v.reveal().to_owned())).collect(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        groups: request.groups.clone(),
        umask: request.umask,
        limits: request.limits.clone(),
        stdin: if request.detach { request.interactive } else { streamed_stdin },
        tty: request.tty,
        size: request.size,
        detach: request.detach,
        ring_bytes: request.ring_bytes,
        timeout_ms,
        kill_grace_ms: None,
        max_output_bytes: None,
    };
    Ok(Open { verb: proto::verb::EXEC.into(), request_id, credit, body: encode(&body)?, ..Open::default() })
}

/// `guest.exec` with its output in the reply.
///
/// # Errors
/// The coded error for the caller.
pub async fn exec_collected(
    link: &Link,
    request_id: Option<RequestId>,
    request: &ExecRequest,
) -> Result<ExecReply, ErrorBody> {
    let open = exec_open(request, request_id, COLLECTED as u64, request.stdin.is_some())?;
    let stream = link.open(open).map_err(ErrorBody::from)?;
    if let Some(stdin) = &request.stdin {
        match stream.send(proto::Channel::Stdin, stdin.0.clone(), true).await {
            // The program may end without reading.
            Ok(()) | Err(LinkError::StreamEnded) => {}
            Err(error) => return Err(error.into()),
        }
    }
    collect(&stream).await.map(ExecReply::Result)
}

async fn collect(stream: &GuestStream) -> Result<ExecResult, ErrorBody> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut truncated = false;
    while let Some(event) = stream.recv().await {
        match event {
            StreamEvent::Head(_) => {}
            StreamEvent::Data { ch, off, data, .. } => {
                let into = if ch == proto::Channel::Stderr { &mut stderr } else { &mut stdout };
                let room = COLLECTED.saturating_sub(into.len());
                into.extend_from_slice(&data[..data.len().min(room)]);
                truncated |= data.len() > room;
                // What does not fit is read all the same, so that the program is not stopped by it.
                stream.grant(ch, off + data.len() as u64 + COLLECTED as u64);
            }
            StreamEvent::End(end) => {
                let result: proto::ExecResult = decode_guest(&end?)?;
                // A repeated request gets the first one's result, and the agent keeps no output.
                let is_whole =
                    stdout.len() as u64 >= result.stdout_bytes && stderr.len() as u64 >= result.stderr_bytes;
                let mut result = exec_result(result);
                result.truncated |= truncated || !is_whole;
                result.stdout = Some(stdout.into());
                result.stderr = Some(stderr.into());
                return Ok(result);
            }
        }
    }
    Err(ErrorBody::new(ErrorCode::GuestUnreachable, "the link to the agent ended before the command did"))
}

/// The agent's result as clients see it.
#[must_use]
pub fn exec_result(result: proto::ExecResult) -> ExecResult {
    ExecResult {
        exit_code: result.exit_code,
        signal: result.signal,
        timed_out: result.timed_out,
        started_unix_ms: result.started_unix_ms,
        ended_unix_ms: result.ended_unix_ms,
        duration_ms: result.duration_ms,
        user_ms: result.user_ms,
        sys_ms: result.sys_ms,
        max_rss_kib: result.max_rss_kib,
        stdout: None,
        stderr: None,
        truncated: result.truncated,
    }
}

/// A verb whose request and answer the agent and the client see alike.
///
/// # Errors
/// The coded error for the caller.
pub async fn alike<Q: Serialize + Sync, A: DeserializeOwned>(
    link: &Link,
    verb: &str,
    request_id: Option<RequestId>,
    left: Duration,
    body: &Q,
) -> Result<A, ErrorBody> {
    call(link, verb, request_id, left, body).await
}

/// A stream of a verb whose request the agent and the client see alike.
///
/// # Errors
/// A request that cannot be encoded.
pub fn open<Q: Serialize>(
    verb: &str,
    request_id: Option<RequestId>,
    credit: u64,
    body: &Q,
) -> Result<Open, ErrorBody> {
    Ok(Open { verb: verb.into(), request_id, credit, body: encode(body)?, ..Open::default() })
}

/// The agent's request for a put.
pub fn put_open(request: &PutRequest, request_id: Option<RequestId>) -> Result<Open, ErrorBody> {
    let body = proto::PutRequest {
        path: request.path.clone(),
        size: request.size_bytes,
        mode: request.mode,
        sha256: request.sha256.clone(),
        create_dirs: request.create_dirs,
        owner: request.owner.clone(),
        mtime_ms: request.mtime_ms,
        ranges: request.ranges.clone(),
        partial: request.partial.clone(),
    };
    Ok(Open { verb: proto::verb::PUT.into(), request_id, body: encode(&body)?, ..Open::default() })
}

/// The agent's request for a get.
pub fn get_open(request: &GetRequest, credit: u64) -> Result<Open, ErrorBody> {
    let body = proto::GetRequest {
        path: request.path.clone(),
        ranges: request.ranges.clone(),
        max_size: request.max_size_bytes,
    };
    Ok(Open { verb: proto::verb::GET.into(), credit, body: encode(&body)?, ..Open::default() })
}

/// The agent's result of a put as clients see it.
pub fn put_result(bytes: &[u8], request: &PutRequest) -> Result<FileResult, ErrorBody> {
    let result: proto::PutResult = decode_guest(bytes)?;
    Ok(FileResult {
        size_bytes: result.size,
        sha256: result.sha256,
        mode: request.mode.unwrap_or(0o644),
        ..FileResult::default()
    })
}

/// The agent's result of a get as clients see it.
pub fn get_result(bytes: &[u8]) -> Result<FileResult, ErrorBody> {
    let result: proto::GetResult = decode_guest(bytes)?;
    Ok(FileResult {
        size_bytes: result.size,
        sha256: result.sha256,
        mode: result.mode,
        mtime_ms: Some(result.mtime_ms),
        uid: Some(result.uid),
        gid: Some(result.gid),
    })
}
