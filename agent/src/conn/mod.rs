//! One connection: greeting, frames in, frames out, a task per stream.

mod connections;
#[cfg(any(test, feature = "testing"))]
pub mod echo;
mod outbox;
mod serves;
mod stream;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_schemas::guest::wire::{Decoder, WireError};
use drover_schemas::guest::{
    AgentFrame, Bye, EVENTS, HELLO_TIMEOUT_MS, HostFrame, HostHello, MAX_STREAMS, Pong, Request, SILENCE_MS,
};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

pub use self::connections::{Connections, MAX_CONNECTIONS, Place};
pub use self::outbox::Outbox;
pub use self::serves::{Came, Greets, Serves};
pub use self::stream::{Ending, Steer, Stream};
use crate::listen::Socket;
use crate::log;
use crate::release::Release;

/// How long a host that does not read may keep a closing connection open.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnError {
    #[error("the host sent nothing for too long")]
    Silence,
    #[error("the connection failed")]
    Read {
        #[source]
        source: std::io::Error,
    },
    #[error("the host broke the framing")]
    Wire {
        #[source]
        source: WireError,
    },
    #[error("the host broke the flow of stream {stream}")]
    Flow {
        stream: u32,
        #[source]
        source: drover_schemas::guest::flow::FlowError,
    },
    #[error("the host opened stream {stream}, which is open")]
    StreamInUse { stream: u32 },
    #[error("the host did not greet first")]
    Greeting,
    #[error("the host speaks protocol {min} to {max}, this agent {} to {}", own.start(), own.end())]
    Version { min: u32, max: u32, own: RangeInclusive<u32> },
}

impl ConnError {
    /// What the host is told, if it can still hear.
    fn bye(&self) -> Option<ErrorBody> {
        let code = match self {
            Self::Read { .. } => return None,
            Self::Silence => ErrorCode::DeadlineExceeded,
            Self::Version { .. } => ErrorCode::Unsupported,
            _ => ErrorCode::InvalidArgument,
        };
        let advice = match self {
            Self::Version { .. } => "; install a matching agent or host",
            _ => "",
        };
        Some(ErrorBody::new(code, format!("{}{advice}", log::chain(self))))
    }
}

type Streams = Arc<Mutex<HashMap<u32, Arc<Stream>>>>;

fn lock(streams: &Streams) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Stream>>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Frames {
    socket: ReadHalf<Box<dyn Socket>>,
    decoder: Decoder,
}

impl Frames {
    /// The next frame; `None` when the host has closed.
    async fn next(&mut self, patience: Duration) -> Result<Option<HostFrame>, ConnError> {
        loop {
            if let Some(frame) = self.decoder.frame().map_err(|source| ConnError::Wire { source })? {
                return Ok(Some(frame));
            }
            self.decoder.release();
            let read = timeout(patience, self.socket.read_buf(self.decoder.room())).await;
            let read = read.map_err(|_| ConnError::Silence)?;
            if read.map_err(|source| ConnError::Read { source })? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Serves one connection until it ends.
pub async fn serve<G: Greets>(socket: Box<dyn Socket>, host: G) {
    let (reader, writer) = tokio::io::split(socket);
    let outbox = Arc::new(Outbox::default());
    let mut writing = tokio::spawn(write(writer, Arc::clone(&outbox)));
    let mut frames = Frames { socket: reader, decoder: Decoder::default() };
    let streams = Streams::default();

    let ended = tokio::select! {
        ended = converse(&mut frames, &host, &outbox, &streams) => ended,
        // The writer ends first when the host has gone or does not read.
        () = outbox.closed() => Ok(()),
    };
    for stream in lock(&streams).values() {
        stream.end(Ending::LinkLost);
    }
    match &ended {
        Ok(()) => log::debug(format_args!("a connection has ended")),
        Err(error) => {
            log::warn(format_args!("a connection has ended: {}", log::chain(error)));
            if let Some(error) = error.bye() {
                outbox.control(&AgentFrame::Bye(Bye { error: Some(error) }));
            }
        }
    }
    outbox.close();
    if timeout(CLOSE_TIMEOUT, &mut writing).await.is_err() {
        // Or what waits would be kept, and the socket with it, for as long as the host likes.
        writing.abort();
        log::warn(format_args!("the host did not read the end of a connection"));
    }
}

async fn write(mut socket: WriteHalf<Box<dyn Socket>>, outbox: Arc<Outbox>) {
    while let Some(bytes) = outbox.next().await {
        if let Err(error) = socket.write_all(&bytes).await {
            log::debug(format_args!("cannot write: {error}"));
            outbox.close();
            return;
        }
    }
    let _ = socket.shutdown().await;
}

fn agree(release: &Release, hello: &HostHello) -> Result<u32, ConnError> {
    let (min, max) = (hello.proto_min, hello.proto_max);
    release.agree(&(min..=max)).ok_or_else(|| ConnError::Version { min, max, own: release.proto.clone() })
}

async fn converse<G: Greets>(
    frames: &mut Frames,
    host: &G,
    outbox: &Arc<Outbox>,
    streams: &Streams,
) -> Result<(), ConnError> {
    let hello = match frames.next(Duration::from_millis(HELLO_TIMEOUT_MS)).await? {
        Some(HostFrame::Hello(hello)) => hello,
        Some(_) => return Err(ConnError::Greeting),
        None => return Ok(()),
    };
    let release = host.release();
    let proto = agree(release, &hello)?;
    // One that was accepted a moment before the next agent took over will come to that one.
    let Some(greeting) = host.greeting(proto) else { return Ok(()) };
    log::debug(format_args!("host {:?} connected, protocol {proto}", hello.version));
    outbox.control(&AgentFrame::Hello(greeting));
    let agent = &host.agent(outbox).await;

    let takes_events = release.has(EVENTS) && hello.features.iter().any(|feature| feature == EVENTS);
    let _sending = takes_events.then(|| agent.events(outbox));
    let silence = Duration::from_millis(SILENCE_MS);
    let mut unknown = 0u64;
    while let Some(frame) = frames.next(silence).await? {
        agent.awake();
        match frame {
            HostFrame::Req(request) => open(request, agent, outbox, streams)?,
            // Frames of streams that have just ended are normal: the answer was on its way.
            HostFrame::Data(data) => {
                let stream = lock(streams).get(&data.stream).cloned();
                if let Some(stream) = stream {
                    let id = data.stream;
                    stream.accept(data).map_err(|source| ConnError::Flow { stream: id, source })?;
                }
            }
            HostFrame::Credit(credit) => {
                if let Some(stream) = lock(streams).get(&credit.stream) {
                    stream.grant(credit);
                }
            }
            HostFrame::Cancel(cancel) => {
                if let Some(stream) = lock(streams).get(&cancel.stream) {
                    stream.end(Ending::Cancelled);
                }
            }
            HostFrame::Control(control) => {
                if let Some(stream) = lock(streams).get(&control.stream) {
                    stream.steer(control);
                }
            }
            HostFrame::Ping(ping) => {
                outbox.control(&AgentFrame::Pong(Pong { nonce: ping.nonce }));
                // It comes when nothing else has come for a while.
                agent.idle();
            }
            HostFrame::EventAck(ack) => agent.acknowledge(&ack),
            HostFrame::Pong(_) => {}
            HostFrame::Moved(_) => host.moved(),
            HostFrame::Bye(_) => return Ok(()),
            HostFrame::Hello(_) => return Err(ConnError::Greeting),
            HostFrame::Unknown => {
                unknown += 1;
                log::debug(format_args!("ignored a frame of a later version, the {unknown}th"));
            }
        }
    }
    Ok(())
}

/// Frees a stream's place, and answers it should its task have died.
struct Open {
    streams: Streams,
    stream: Arc<Stream>,
    id: u32,
    _place: OwnedSemaphorePermit,
}

impl Open {
    /// Frees the number, unless a later stream has it already.
    fn free(&self) {
        let mut streams = lock(&self.streams);
        if streams.get(&self.id).is_some_and(|s| Arc::ptr_eq(s, &self.stream)) {
            streams.remove(&self.id);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.free();
        self.stream.answer(Err(ErrorBody::new(
            ErrorCode::Internal,
            "the agent failed while it worked on the request; see its log in the guest",
        )));
    }
}

fn open<S: Serves>(
    request: Request,
    agent: &Arc<S>,
    outbox: &Arc<Outbox>,
    streams: &Streams,
) -> Result<(), ConnError> {
    let id = request.stream;
    let takes = agent.takes(&request.verb);
    let stream = Arc::new(Stream::new(id, takes, request.credit, Arc::clone(outbox)));
    let place = {
        let mut streams = lock(streams);
        if streams.contains_key(&id) {
            return Err(ConnError::StreamInUse { stream: id });
        }
        match agent.place() {
            Some(place) if streams.len() < MAX_STREAMS => {
                streams.insert(id, Arc::clone(&stream));
                place
            }
            _ => {
                drop(streams);
                stream.answer(Err(ErrorBody::new(
                    ErrorCode::Busy,
                    format!("the agent works on its limit of requests ({MAX_STREAMS} per connection); wait for some to end"),
                )));
                return Ok(());
            }
        }
    };
    let open = Open { streams: Arc::clone(streams), stream, id, _place: place };
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        let outcome = agent.run(&open.stream, &request).await;
        // The number is free once the host has the answer, so it is freed before.
        open.free();
        open.stream.answer(outcome);
    });
    Ok(())
}

#[cfg(test)]
mod tests;
