//! `attach`: what a detached command has written and writes, from any offset that is kept.
//!
//! The run is never held up: a reader that is slower than the ring turns over is told what it lost. The end
//! of a stream is no end of the run.

use std::time::Duration;

use drover_schemas::guest::{AttachHead, AttachRequest, AttachResult, AttachedAt, Channel, Extent, MAX_DATA};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, codec};

use tokio::time::sleep;

use super::reply;
use crate::Agent;
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::log::chain;
use crate::runs::{Attached, ReadError};

const CHANNELS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

/// A keeper that is killed is told of by the closing of its files, a moment before its lock is free.
const CLOSING: Duration = Duration::from_millis(100);

/// How far one channel was read.
struct Cursor {
    channel: Channel,
    off: u64,
    /// Where to stop, for a reader that does not follow.
    stop: Option<u64>,
}

pub(super) async fn run(agent: &Agent, stream: &Stream, request: AttachRequest) -> Outcome {
    let (folder, info) = agent.runs.get(request.run)?;
    let attached = Attached::open(folder)?;
    let follow = !request.no_follow;
    let (stdout, out) = place(&attached, Channel::Stdout, request.stdout_off, follow)?;
    let (stderr, err) = place(&attached, Channel::Stderr, request.stderr_off, follow)?;
    let head = AttachHead { run: info, stdout, stderr };
    let head = codec::encode(&head).map_err(|e| ErrorBody::new(ErrorCode::Internal, chain(&e)))?;
    stream.head(head);

    let feeding = async {
        if request.stdin {
            feed(stream, &attached).await;
        }
        std::future::pending::<()>().await;
    };
    let steering = async {
        loop {
            attached.steer(stream.steered().await);
        }
    };
    tokio::select! {
        sent = send(stream, &attached, request.run, [out, err]) => sent,
        () = feeding => Err(super::failed()),
        () = steering => Err(super::failed()),
    }
}

/// Where a channel is read from.
fn place(
    attached: &Attached,
    channel: Channel,
    wanted: Option<u64>,
    follow: bool,
) -> Result<(AttachedAt, Cursor), ErrorBody> {
    let kept = match attached.ring(channel) {
        Some(ring) => ring.extent().map_err(|source| unreadable(&source.into()))?,
        None => Extent::default(),
    };
    let off = wanted.unwrap_or(0).max(kept.start);
    if off > kept.end {
        let text =
            format!("nothing was written at {off} yet; what is kept is {} to {}", kept.start, kept.end);
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("end", kept.end));
    }
    let lost_before = (off > wanted.unwrap_or(0)).then_some(off);
    Ok((AttachedAt { off, lost_before }, Cursor { channel, off, stop: (!follow).then_some(kept.end) }))
}

fn unreadable(error: &ReadError) -> ErrorBody {
    ErrorBody::new(ErrorCode::GuestError, chain(error))
}

async fn send(stream: &Stream, attached: &Attached, run: RequestId, mut cursors: [Cursor; 2]) -> Outcome {
    let mut look_again = false;
    loop {
        // Before the rings: with a result, all of the output is there.
        let (state, result) = attached.folder().state();
        let ended = state != drover_schemas::guest::RunState::Running;
        let (mut moved, mut full, mut done) = (false, [false; 2], true);
        for (cursor, full) in cursors.iter_mut().zip(&mut full) {
            let Some(ring) = attached.ring(cursor.channel) else { continue };
            let end = ring.extent().map_err(|source| unreadable(&source.into()))?.end;
            let end = cursor.stop.unwrap_or(end);
            if cursor.off >= end {
                done &= ended || cursor.stop.is_some();
                continue;
            }
            done = false;
            let most = stream.room_now(cursor.channel).min(end - cursor.off).min(MAX_DATA as u64);
            *full = most == 0;
            if *full {
                continue;
            }
            let bytes = ring.read(cursor.off, most as usize).map_err(|e| lost(&e, run, cursor))?;
            moved |= !bytes.is_empty();
            cursor.off += bytes.len() as u64;
            tokio::select! {
                () = stream.send(cursor.channel, bytes) => {}
                ending = stream.ending() => return Err(ending.error()),
            }
        }
        if done {
            let [stdout_off, stderr_off] = cursors.map(|c| c.off);
            return reply(&AttachResult { state, result, stdout_off, stderr_off });
        }
        if moved {
            continue;
        }
        let [out, err] = full;
        tokio::select! {
            biased;
            ending = stream.ending() => return Err(ending.error()),
            _ = stream.room(CHANNELS[0]), if out => {}
            _ = stream.room(CHANNELS[1]), if err => {}
            () = attached.changed() => look_again = true,
            () = sleep(CLOSING), if look_again => look_again = false,
        }
    }
}

fn lost(error: &ReadError, run: RequestId, cursor: &Cursor) -> ErrorBody {
    let ReadError::Lost { start } = error else { return unreadable(error) };
    let channel = if cursor.channel == Channel::Stderr { "stderr" } else { "stdout" };
    let text = format!(
        "run {run} wrote faster than it was read: {channel} from {} to {start} is not kept any more; attach again \
         from {start}, or keep more by ring_bytes",
        cursor.off
    );
    ErrorBody::new(ErrorCode::Conflict, text)
        .with("cause", "output_lost")
        .with("channel", channel)
        .with("off", cursor.off)
        .with("lost_before", start)
}

/// Moves the host's bytes to the run's input; where nobody reads it they are dropped.
async fn feed(stream: &Stream, attached: &Attached) {
    let mut input = attached.input();
    while let Some(bytes) = stream.recv().await {
        if let Some(pipe) = &input
            && pipe.write_all(&bytes).await.is_err()
        {
            input = None;
        }
    }
    if input.is_some() {
        attached.end_input();
    }
}
