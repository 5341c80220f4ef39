//! The task that owns a link's connection.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use drover_schemas::guest::AgentFrame;
use drover_schemas::guest::wire::Decoder;
use tokio::io::{Interest, Ready};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::dial::io_error;
use super::error::LinkError;
use super::pace::Pace;
use super::table::Shared;

/// How many reads are made before others get their turn.
const READS: usize = 16;

/// How half-open links are found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heartbeat {
    /// After how much silence the agent is asked.
    pub(super) every: Duration,
    /// How long it has to answer.
    pub(super) patience: Duration,
}

/// Moves frames until the link ends, and leaves the reason in `shared`.
pub(super) async fn run(socket: UnixStream, decoder: Decoder, shared: Arc<Shared>, heartbeat: Heartbeat) {
    let now = Instant::now();
    let pace = Pace::new(now);
    let mut task = Task { socket, decoder, out: Bytes::new(), shared, heard: now, asked: false, pace };
    let reason = loop {
        if let Err(reason) = task.turn(heartbeat).await {
            break reason;
        }
    };
    tracing::debug!(reason = %reason, "guest link ended");
    task.shared.close(reason);
}

struct Task {
    socket: UnixStream,
    decoder: Decoder,
    /// The rest of the frame that is being written.
    out: Bytes,
    shared: Arc<Shared>,
    /// When the agent was last heard of.
    heard: Instant,
    /// Whether it was asked since.
    asked: bool,
    pace: Pace,
}

impl Task {
    async fn turn(&mut self, heartbeat: Heartbeat) -> Result<(), LinkError> {
        if let Some(reason) = self.shared.state().closed.clone() {
            return Err(reason);
        }
        // Frames that came with the greeting, too.
        self.take_frames()?;
        if self.out.is_empty() {
            self.refill();
        }
        // What comes too fast waits in the guest.
        let rests = self.pace.rests_until(Instant::now());
        let interest = match (rests, self.out.is_empty()) {
            (None, true) => Some(Interest::READABLE),
            (None, false) => Some(Interest::READABLE | Interest::WRITABLE),
            (Some(_), true) => None,
            (Some(_), false) => Some(Interest::WRITABLE),
        };
        let wait = if self.asked { heartbeat.every + heartbeat.patience } else { heartbeat.every };
        tokio::select! {
            ready = ready(&self.socket, interest) => {
                let ready = ready.map_err(io_error)?;
                if rests.is_none() && (ready.is_readable() || ready.is_read_closed()) {
                    self.read()?;
                }
                if ready.is_writable() {
                    self.write()?;
                }
            }
            () = self.shared.wake.notified() => {}
            () = sleep_until(rests.unwrap_or_else(Instant::now)), if rests.is_some() => {}
            () = sleep_until(self.heard + wait), if rests.is_none() => {
                if self.asked {
                    return Err(LinkError::Silent { after_ms: self.heard.elapsed().as_millis() as u64 });
                }
                self.asked = true;
                self.shared.state().ping(1);
            }
        }
        Ok(())
    }

    fn refill(&mut self) {
        if let Some(bytes) = self.shared.state().next() {
            self.out = bytes;
            self.shared.changed.notify_waiters();
        }
    }

    fn write(&mut self) -> Result<(), LinkError> {
        while !self.out.is_empty() {
            match self.socket.try_write(&self.out) {
                Ok(n) => self.out.advance(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(io_error(e)),
            }
            if self.out.is_empty() {
                self.refill();
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), LinkError> {
        for _ in 0..READS {
            match self.socket.try_read_buf(self.decoder.room()) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(_) => {
                    self.heard = Instant::now();
                    self.asked = false;
                    self.take_frames()?;
                    if self.pace.rests_until(self.heard).is_some() {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.decoder.release();
                    return Ok(());
                }
                Err(e) => return Err(io_error(e)),
            }
        }
        Ok(())
    }

    fn take_frames(&mut self) -> Result<(), LinkError> {
        loop {
            let now = Instant::now();
            if self.pace.rests_until(now).is_some() {
                return Ok(());
            }
            let before = self.decoder.taken();
            let frame = self.decoder.frame().map_err(|e| LinkError::Wire { source: Arc::new(e) })?;
            let Some(frame) = frame else { return Ok(()) };
            let bytes = usize::try_from(self.decoder.taken() - before).unwrap_or(usize::MAX);
            let is_event = matches!(frame, AgentFrame::Event(_));
            let is_moved = matches!(frame, AgentFrame::Moved(_));
            let carries = self.shared.state().take(frame)?;
            if is_moved {
                self.shared.changed.notify_waiters();
            }
            if is_event {
                self.shared.events.notify_one();
            }
            self.pace.note(carries, bytes, now).map_err(|frames| LinkError::Endless { frames })?;
        }
    }
}

/// Waits for what the socket is wanted for; for ever if that is nothing.
async fn ready(socket: &UnixStream, interest: Option<Interest>) -> std::io::Result<Ready> {
    match interest {
        Some(interest) => socket.ready(interest).await,
        None => std::future::pending().await,
    }
}
