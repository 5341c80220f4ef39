//! The host's end of a stream: between a client on the bus and the agent of a guest, or a VM's console.
//!
//! Bytes are read from the guest only with room in the client's window, and taken from the client only
//! with room towards the guest, so a slow end slows the other and memory stays within the windows, whose sum
//! has a limit ([`budget`]). [`lane`] says which frames go over which connection.
//!
//! Unhappy paths: a frame that is lost is sent again, the last one too; a client that is silent for a minute is
//! given up, and finds the offsets when it comes back soon; a client that breaks the rules of a channel ends its
//! stream with `invalid_argument`; an agent that is lost ends it with `guest_unreachable`.

use std::time::Duration;

use bytes::Bytes;
use drover_schemas::body::guest::ExecControl;
use drover_schemas::guest as proto;
use drover_schemas::stream::{Channel, MAX_WINDOW, StreamOpened};
use drover_schemas::subject::Subject;
use drover_schemas::{ErrorBody, ErrorCode, Token};
use tracing::debug;

use crate::audit::Audit;
use crate::bus::connect::Bus;
use crate::console::Console;
use crate::guest::{GuestStream, StreamEvent};
use crate::ingress::permits::Permit;
use crate::ingress::request::ReplyPolicy;
use crate::services::Services;

pub mod budget;
pub mod lane;
mod linger;
mod pump;

use self::budget::{Budget, Windows};
use self::lane::{Lane, Lanes};

/// The window of each channel on the bus and towards the guest.
pub const WINDOW: u64 = MAX_WINDOW;
/// That of what a client writes to a command or a console: it comes over the control connection, where little of it
/// may stand before a request.
const STDIN_WINDOW: u64 = WINDOW / 4;

const fn up_window(channel: Channel) -> u64 {
    match channel {
        Channel::Data => WINDOW,
        _ => STDIN_WINDOW,
    }
}

/// What all streams of a host share; clones share it too.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The connection of files.
    pub bulk: Bus,
    /// Where frames may go.
    pub policy: ReplyPolicy,
    /// Who wanted them to go elsewhere.
    pub audit: Audit,
    /// The memory of all.
    pub budget: Budget,
    /// How long a silent client is waited for.
    pub peer_lost: Duration,
}

/// What streams may take.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// The memory of all of them, in bytes.
    pub max_memory_bytes: u64,
    /// How long a silent client is waited for.
    pub peer_lost: Duration,
}

/// Which channels a stream has, and which way they go.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// From the guest to the client.
    pub down: &'static [Channel],
    /// From the client to the guest.
    pub up: Option<Channel>,
    /// Whether there is a command that takes [`Channel::Ctl`].
    pub ctl: bool,
}

impl Shape {
    fn channels(&self) -> impl Iterator<Item = Channel> {
        self.down.iter().copied().chain(self.up)
    }

    /// What its windows take at most, on the bus and towards the guest, in bytes.
    fn memory_bytes(&self) -> u64 {
        self.down.len() as u64 * 2 * WINDOW + self.up.map_or(0, up_window)
    }
}

/// Where a stream's bytes come from and go to, beyond this host's end.
#[derive(Debug)]
pub enum Far {
    /// Work of the agent.
    Guest(GuestStream),
    /// The serial console.
    Console(Box<Console>),
}

impl Far {
    /// The next event; `None` after the end. Nothing is lost if the future is dropped.
    async fn recv(&self) -> Option<StreamEvent> {
        match self {
            Self::Guest(guest) => guest.recv().await,
            Self::Console(console) => console.recv().await,
        }
    }

    async fn send(&self, channel: Channel, data: Bytes, eof: bool) {
        match self {
            Self::Guest(guest) => {
                let Some(channel) = to_proto(channel) else { return };
                if let Err(error) = guest.send(channel, data, eof).await {
                    // The guest's end of the stream, or of the link, comes to the pump.
                    debug!(%error, "the guest takes no more");
                }
            }
            Self::Console(console) => console.send(&data, eof).await,
        }
    }

    /// Says something to a command.
    fn control(&self, control: ExecControl) {
        if let Self::Guest(guest) = self {
            guest.control(control.size, control.signal);
        }
    }

    /// Lets bytes below `limit` come. A console's are read when they are wanted.
    fn grant(&self, channel: proto::Channel, limit: u64) {
        if let Self::Guest(guest) = self {
            guest.grant(channel, limit);
        }
    }
}

/// Makes the client's result of the agent's.
pub type Finish = Box<dyn FnOnce(&[u8]) -> Result<Bytes, ErrorBody> + Send>;

/// A stream that was opened on the bus and whose reply is not sent yet.
#[derive(Debug)]
pub struct Opening {
    frames: async_nats::Subscriber,
    inbox: async_nats::Subject,
    shape: Shape,
    /// Given back when the work is done.
    held: (Permit, Windows),
    /// The connection of the namespace's requests.
    control: Bus,
    /// The connection of the reply: that of the frames that follow it, so that none of them comes before it.
    pub reply_over: async_nats::Client,
    /// The reply for the client.
    pub opened: StreamOpened,
}

/// Sets the stream's memory aside and subscribes for the client's frames.
///
/// # Errors
/// `invalid_argument` without a reply subject, `resource_exhausted` without memory, `unavailable` without the bus.
pub async fn open(
    services: &Services,
    namespace: &Token,
    permit: Permit,
    inbox: Option<&async_nats::Subject>,
    shape: Shape,
) -> Result<Opening, ErrorBody> {
    let Some(inbox) = inbox.cloned() else {
        return Err(ErrorBody::new(
            ErrorCode::InvalidArgument,
            "a stream needs a reply subject for its frames",
        ));
    };
    let streams = &services.streams;
    let windows = streams.budget.take(shape.memory_bytes())?;
    let token = format!("{:032x}", rand::random::<u128>());
    let token = Token::new(&token).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
    let io_subject = services.subjects.build(&Subject::Io { ns: namespace.clone(), token });
    let control = services.lanes.of(namespace).await;
    let client = match Lanes::of(shape.channels()).home() {
        Lane::Control => control.client.clone(),
        Lane::Bulk => streams.bulk.client.clone(),
    };
    // The reply leaves over the same connection later, so the server knows of the subscription before it.
    let frames = client.subscribe(io_subject.clone()).await.map_err(|e| {
        ErrorBody::new(ErrorCode::Unavailable, format!("the stream could not be opened: {e}"))
    })?;
    let window = shape.up.map_or(WINDOW, up_window);
    let opened = StreamOpened { io_subject, window };
    Ok(Opening { frames, inbox, shape, held: (permit, windows), control, reply_over: client, opened })
}

/// Moves bytes until the far end's outcome was told, or the client is gone.
pub async fn run(services: &Services, opening: Opening, far: Far, finish: Finish) {
    pump::run(&services.metrics, &services.streams, opening, far, finish).await;
}

/// As the agent knows it; what goes there as a frame of its own has none.
const fn to_proto(channel: Channel) -> Option<proto::Channel> {
    match channel {
        Channel::Stdin => Some(proto::Channel::Stdin),
        Channel::Stdout => Some(proto::Channel::Stdout),
        Channel::Stderr => Some(proto::Channel::Stderr),
        Channel::Data => Some(proto::Channel::Data),
        Channel::Ctl => None,
    }
}
