//! The task that owns a link's connection.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use drover_schemas::guest::AgentFrame;
use drover_schemas::guest::wire::Decoder;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::dial::io_error;
use super::error::LinkError;
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
    let mut task = Task { socket, decoder, out: Bytes::new(), shared, heard: Instant::now(), asked: false };
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
        let interest =
            if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let wait = if self.asked { heartbeat.every + heartbeat.patience } else { heartbeat.every };
        tokio::select! {
            ready = self.socket.ready(interest) => {
                let ready = ready.map_err(io_error)?;
                if ready.is_readable() || ready.is_read_closed() {
                    self.read()?;
                }
                if ready.is_writable() {
                    self.write()?;
                }
            }
            () = self.shared.wake.notified() => {}
            () = sleep_until(self.heard + wait) => {
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
        while let Some(frame) = self.decoder.frame().map_err(|e| LinkError::Wire { source: Arc::new(e) })? {
            let is_event = matches!(frame, AgentFrame::Event(_));
            self.shared.state().take(frame)?;
            if is_event {
                self.shared.events.notify_one();
            }
        }
        Ok(())
    }
}
