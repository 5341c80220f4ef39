//! Detached commands of a guest, and what an older agent cannot do for a command.

use std::time::Duration;

use drover_schemas::body::guest::ExecRequest;
use drover_schemas::guest::{AttachRequest, KillRequest, RunInfo, RunsRequest, RunsResult, verb};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::guest_calls::{CALL, call, call_error, decode_guest, encode, exec_open};
use crate::guest::{GuestStream, Link, Open, StreamEvent};

fn invalid(field: &str, message: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, format!("{field}: {message}")).with("field", field)
}

/// Says what of a request does not go together.
///
/// # Errors
/// `invalid_argument`
pub fn check(request: &ExecRequest) -> Result<(), ErrorBody> {
    if request.detach {
        if request.stream {
            return Err(invalid("stream", "a detached command has none; attach to it"));
        }
        if request.stdin.is_some() {
            return Err(invalid("stdin", "a detached command gets it from who attaches: use interactive"));
        }
        return Ok(());
    }
    if request.interactive {
        return Err(invalid("interactive", "is for detached commands; a stream takes stdin anyway"));
    }
    if request.ring_bytes.is_some() {
        return Err(invalid("ring_bytes", "is for detached commands; set detach or leave it out"));
    }
    if request.tty && !request.stream {
        return Err(invalid("tty", "a terminal needs a stream, or detach; set one of them"));
    }
    if request.size.is_some() && !request.tty {
        return Err(invalid("size", "is that of a terminal; set tty or leave it out"));
    }
    Ok(())
}

/// Says what the agent at the other end is too old for: it would not look at it.
///
/// # Errors
/// `unsupported`
pub fn is_known(link: &Link, request: &ExecRequest) -> Result<(), ErrorBody> {
    if request.detach {
        link.offers(verb::ATTACH)?;
    }
    if request.tty || request.groups.is_some() || request.umask.is_some() || !request.limits.is_empty() {
        link.offers(verb::EXEC_SETTINGS)?;
    }
    Ok(())
}

/// `guest.exec` with `detach`
///
/// # Errors
/// The coded error for the caller.
pub async fn detach(
    link: &Link,
    request_id: Option<RequestId>,
    left: Duration,
    request: &ExecRequest,
) -> Result<RunInfo, ErrorBody> {
    let body = exec_open(request, request_id, 0, false)?.body;
    let reply = link.call(verb::EXEC, request_id, left.min(CALL), body).await.map_err(call_error)?;
    decode_guest(&reply)
}

/// `guest.runs`
///
/// # Errors
/// The coded error for the caller.
pub async fn list(link: &Link, left: Duration, request: &RunsRequest) -> Result<RunsResult, ErrorBody> {
    call(link, verb::RUNS, None, left.min(CALL), request).await
}

/// `guest.kill`
///
/// # Errors
/// The coded error for the caller.
pub async fn kill(
    link: &Link,
    request_id: Option<RequestId>,
    left: Duration,
    request: &KillRequest,
) -> Result<(), ErrorBody> {
    let _: drover_schemas::body::guest::Empty =
        call(link, verb::KILL, request_id, left.min(CALL), request).await?;
    Ok(())
}

/// The agent's request for an attach.
///
/// # Errors
/// The coded error for the caller.
pub fn attach_open(request: &AttachRequest, credit: u64) -> Result<Open, ErrorBody> {
    Ok(Open { verb: verb::ATTACH.into(), credit, body: encode(request)?, ..Open::default() })
}

/// Waits for what a stream will bring.
///
/// # Errors
/// The agent's refusal, or `deadline_exceeded` for one that does not say.
pub async fn head<T: DeserializeOwned>(stream: &GuestStream, left: Duration) -> Result<T, ErrorBody> {
    let early = || ErrorBody::new(ErrorCode::GuestError, "the agent sent output before it said of what");
    match timeout(left.min(CALL), stream.recv()).await {
        Ok(Some(StreamEvent::Head(head))) => decode_guest(&head),
        Ok(Some(StreamEvent::End(Err(error)))) => Err(error),
        Ok(Some(StreamEvent::End(Ok(_)) | StreamEvent::Data { .. })) => Err(early()),
        Ok(None) => {
            Err(ErrorBody::new(ErrorCode::GuestUnreachable, "the link to the agent ended before it answered"))
        }
        Err(_) => {
            Err(ErrorBody::new(ErrorCode::DeadlineExceeded, "the agent did not answer in time; try again"))
        }
    }
}
