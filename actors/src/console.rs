//! A VM's serial console as the far end of a stream: what the holder keeps in its ring, from some point of the past
//! on and as it grows, and a way for one writer to the guest.
//!
//! Any number of readers follow the same ring, each at its own pace; one that is slower than the ring is long
//! is told how much it missed. A guest that is stopped and started goes on in the same ring.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bytes::Bytes;
use drover_schemas::body::vm::ConsoleResult;
use drover_schemas::guest::Channel;
use drover_schemas::stream::MAX_CHUNK;
use drover_schemas::{ErrorBody, ErrorCode, codec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::guest::StreamEvent;
use crate::hypervisor::record::file;
use crate::hypervisor::ring::{self, RingChunk};
use crate::hypervisor::run_dir::RunDir;

/// A console cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its files cannot be watched.
    #[error("cannot watch {path:?}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its ring cannot be read.
    #[error("cannot read the console of {path:?}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One reader of a console, who may be its writer.
#[derive(Debug)]
pub struct Console {
    dir: RunDir,
    /// Where in the ring it began.
    offset: u64,
    /// Readable when a file of the run directory has changed.
    changes: AsyncFd<OwnedFd>,
    reader: Mutex<Reader>,
    writer: Mutex<Option<pipe::Sender>>,
    /// Ends the writer.
    ended: CancellationToken,
    /// The writer closed its end.
    closed: CancellationToken,
    _guard: Option<DropGuard>,
}

#[derive(Debug)]
struct Reader {
    /// The next byte of the ring.
    at: u64,
    /// Bytes of the stream so far.
    sent: u64,
    lost: u64,
    over: bool,
}

impl Console {
    /// A reader that begins with the last `tail` bytes.
    ///
    /// # Errors
    /// The console's files cannot be read or watched.
    pub async fn open(dir: RunDir, tail: usize) -> Result<Self, ConsoleError> {
        let path = || dir.path().to_owned();
        // Before the first look, so that no change is missed.
        let changes = watch(&dir).map_err(|source| ConsoleError::Watch { path: path(), source })?;
        let first = blocking(&dir, move |dir| {
            let end = ring::end(dir, file::CONSOLE)?;
            ring::read(dir, file::CONSOLE, end.saturating_sub(tail as u64), 1)
        });
        let first = first.await.map_err(|source| ConsoleError::Read { path: path(), source })?;
        // The oldest byte may be younger than what was asked for: that is no loss yet.
        let offset = first.offset;
        Ok(Self {
            dir,
            offset,
            changes,
            reader: Mutex::new(Reader { at: offset, sent: 0, lost: 0, over: false }),
            writer: Mutex::new(None),
            ended: CancellationToken::new(),
            closed: CancellationToken::new(),
            _guard: None,
        })
    }

    /// Lets this one write, until `ended` is cancelled; cancels it at its own end.
    #[must_use]
    pub fn for_writer(mut self, ended: CancellationToken) -> Self {
        self._guard = Some(ended.clone().drop_guard());
        self.ended = ended;
        self
    }

    /// Where in the ring it began.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, or the end; `None` after it.
    pub async fn recv(&self) -> Option<StreamEvent> {
        let mut reader = self.reader.lock().await;
        loop {
            if reader.over {
                return None;
            }
            if self.ended.is_cancelled() {
                reader.over = true;
                let taken = ErrorBody::new(ErrorCode::Conflict, "somebody else has taken the console");
                return Some(StreamEvent::End(Err(taken.with("cause", "superseded"))));
            }
            let at = reader.at;
            match blocking(&self.dir, move |dir| ring::read(dir, file::CONSOLE, at, MAX_CHUNK / 2)).await {
                Ok(chunk) if !chunk.data.is_empty() => return Some(reader.data(chunk)),
                Ok(_) if !self.closed.is_cancelled() && self.dir.path().is_dir() => {}
                Ok(_) => return Some(reader.end()),
                Err(error) => {
                    reader.over = true;
                    let text = format!("the console cannot be read any more: {error}");
                    return Some(StreamEvent::End(Err(ErrorBody::new(ErrorCode::Internal, text))));
                }
            }
            tokio::select! {
                changed = self.changes.readable() => {
                    if let Ok(mut ready) = changed {
                        // What changed is seen in the ring.
                        let mut events = [0; 4096];
                        while rustix::io::read(ready.get_inner(), &mut events).is_ok_and(|n| n > 0) {}
                        ready.clear_ready();
                    }
                }
                () = self.ended.cancelled() => {}
                () = self.closed.cancelled(), if !self.closed.is_cancelled() => {}
            }
        }
    }

    /// Gives bytes to the guest. Of a VM that is down they are lost, as with a cable that is not plugged in.
    pub async fn send(&self, data: &Bytes, eof: bool) {
        let mut writer = self.writer.lock().await;
        // A holder that came later has another FIFO: once more, then.
        for _ in 0..2 {
            if data.is_empty() || self.ended.is_cancelled() {
                break;
            }
            let opened = match writer.take() {
                Some(open) => Ok(open),
                None => self.dir.open_console_in().and_then(pipe::Sender::from_file),
            };
            let Ok(mut open) = opened else { break };
            tokio::select! {
                written = open.write_all(data) => match written {
                    Ok(()) => {
                        *writer = Some(open);
                        break;
                    }
                    Err(error) => debug!(%error, "the console takes no input"),
                },
                () = self.ended.cancelled() => break,
            }
        }
        if eof {
            self.closed.cancel();
        }
    }
}

impl Reader {
    fn data(&mut self, chunk: RingChunk) -> StreamEvent {
        let missed = chunk.offset.saturating_sub(self.at);
        let mut data = Vec::new();
        if missed > 0 {
            self.lost += missed;
            data.extend(format!("\r\n[{missed} bytes were overwritten before they were read]\r\n").bytes());
        }
        self.at = chunk.offset + chunk.data.len() as u64;
        data.extend(chunk.data);
        let off = self.sent;
        self.sent += data.len() as u64;
        StreamEvent::Data { ch: Channel::Stdout, off, data: data.into(), eof: false }
    }

    fn end(&mut self) -> StreamEvent {
        self.over = true;
        let result = ConsoleResult { offset: self.at, lost_bytes: self.lost };
        let encoded = codec::encode(&result).map(Bytes::from);
        StreamEvent::End(encoded.map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string())))
    }
}

fn watch(dir: &RunDir) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::MODIFY
        | WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&inotify, dir.path(), what)?;
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on, which lends it and never gives it away, so it
    // stays the same and open for as long as it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
}

async fn blocking<T: Send + 'static>(
    dir: &RunDir,
    work: impl FnOnce(&RunDir) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let dir = dir.clone();
    tokio::task::spawn_blocking(move || work(&dir)).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
