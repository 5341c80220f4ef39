//! The frames. `t` is the discriminating field; each direction has its own enum.

use serde::{Deserialize, Serialize};

use crate::blob::Blob;
use crate::codec::{self, DecodeError};
use crate::error::ErrorBody;
use crate::guest::TermSize;
use crate::guest::event::{Event, EventAck};
use crate::id::RequestId;

/// A direction of data within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Host to a command.
    Stdin,
    /// A command's output.
    Stdout,
    /// A command's error output.
    Stderr,
    /// A file's bytes, either way.
    Data,
}

/// What kind of guest the agent is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestKind {
    /// A virtual machine with a kernel of its own.
    Vm,
    /// Processes in namespaces of the host's kernel, where there is no virtualisation.
    Process,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// The host's greeting: its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// The oldest version that the host speaks.
    pub proto_min: u32,
    /// The newest version that the host speaks.
    pub proto_max: u32,
    /// The version of the host's software.
    pub version: String,
    /// Optional parts that the host understands.
    #[serde(default)]
    pub features: Vec<String>,
}

/// The agent's greeting: its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// The version that is spoken from now on.
    pub proto: u32,
    /// The version of the agent's software.
    pub version: String,
    /// Changes with every boot of the guest.
    pub boot_id: String,
    /// Changes with every start of the agent.
    #[serde(default)]
    pub instance: String,
    /// `linux` or `windows`.
    pub os: String,
    /// The machine, as Rust names it (`x86_64`, `aarch64`).
    pub arch: String,
    /// The kernel's release.
    pub kernel: String,
    /// The guest's host name.
    pub hostname: String,
    /// The verbs and optional parts that the agent offers.
    pub capabilities: Vec<String>,
    /// Those of the verbs that the owner of the guest allows, where the guest has a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<String>>,
    /// A virtual machine, or processes.
    pub guest: GuestKind,
    /// How many bytes the host may send on each channel of a new stream before the first credit.
    pub stream_credit: u64,
    /// How many streams this connection may have open.
    pub max_streams: u32,
}

/// Opens a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The host's number for the stream; free again after its `res`.
    pub stream: u32,
    /// What to do: see [`verb`](super::verb).
    pub verb: String,
    /// Makes the request happen once, for verbs that change the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Milliseconds from arrival until the answer must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Who asks, by the host's word; for the agent's log only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The first limit of every channel that the agent sends, in bytes.
    #[serde(default)]
    pub credit: u64,
    /// The verb's request, encoded; empty means an empty map.
    #[serde(default)]
    pub body: Blob,
}

/// Ends a stream: a result or an error, never both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Which stream.
    pub stream: u32,
    /// The verb's result, encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Blob>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Tells what is coming, once, before the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which stream.
    pub stream: u32,
    /// The verb's head, encoded.
    pub body: Blob,
}

/// Bytes of one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Which stream.
    pub stream: u32,
    /// Which channel.
    pub ch: Channel,
    /// Offset of the first byte in the channel.
    pub off: u64,
    /// At most [`MAX_DATA`](super::MAX_DATA) bytes.
    #[serde(default)]
    pub data: Blob,
    /// No byte follows on this channel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eof: bool,
}

/// Lets the peer send the bytes of a channel below `limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Which stream.
    pub stream: u32,
    /// Which channel.
    pub ch: Channel,
    /// Absolute; a smaller one than before changes nothing.
    pub limit: u64,
}

/// Ends the work of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which stream.
    pub stream: u32,
}

/// For the command of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Which stream.
    pub stream: u32,
    /// Its terminal has this size now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TermSize>,
    /// Its process group gets the signal of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// Asks whether the peer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Comes back in the pong.
    pub nonce: u64,
}

/// Answers a [`Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// From the ping.
    pub nonce: u64,
}

/// The last frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why; absent when the peer just leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Says that requests do not belong on this connection any more. What is open on it goes on there to its end.
///
/// From the agent: its successor listens, connect to it. From the host: it has, and no request follows here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moved {}

/// Host to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum HostFrame {
    /// First of all.
    Hello(HostHello),
    /// Opens a stream.
    Req(Request),
    /// Bytes for the agent.
    Data(Data),
    /// Room for bytes of the agent.
    Credit(Credit),
    /// Ends the work of a stream.
    Cancel(Cancel),
    /// For the command of a stream.
    Control(Control),
    /// Asks whether the agent lives.
    Ping(Ping),
    /// Answers the agent's ping.
    Pong(Pong),
    /// The journal has these events.
    EventAck(EventAck),
    /// Requests come over another connection from now on.
    Moved(Moved),
    /// The host leaves.
    Bye(Bye),
    /// A frame of a later version; never sent.
    #[serde(skip)]
    Unknown,
}

/// Agent to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum AgentFrame {
    /// First of all.
    Hello(AgentHello),
    /// Tells what is coming on a stream.
    Head(Head),
    /// Ends a stream.
    Res(Response),
    /// Bytes for the host.
    Data(Data),
    /// Room for bytes of the host.
    Credit(Credit),
    /// Asks whether the host lives.
    Ping(Ping),
    /// Answers the host's ping.
    Pong(Pong),
    /// Something happened in the guest.
    Event(Event),
    /// Another agent takes the place of this one; only to a host that has asked for it by [`verb::UPGRADE`](super::verb::UPGRADE).
    Moved(Moved),
    /// The agent leaves.
    Bye(Bye),
    /// A frame of a later version; never sent.
    #[serde(skip)]
    Unknown,
}

/// A direction's set of frames.
pub trait FrameKind: Serialize + Sized {
    /// Reads one frame from its map. A `t` that is not known gives `Unknown`.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not such a frame.
    fn parse(body: &[u8]) -> Result<Self, DecodeError>;
}

/// Reads `t` alone. The frame itself is read in a second pass, straight into its own type: serde's
/// tagged enums would buffer every field, and with it copy the data once more.
fn tag(body: &[u8]) -> Result<String, DecodeError> {
    #[derive(Deserialize)]
    struct Tag {
        t: String,
    }
    codec::decode::<Tag>(body).map(|tag| tag.t)
}

impl FrameKind for HostFrame {
    fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(match tag(body)?.as_str() {
            "hello" => Self::Hello(codec::decode(body)?),
            "req" => Self::Req(codec::decode(body)?),
            "data" => Self::Data(codec::decode(body)?),
            "credit" => Self::Credit(codec::decode(body)?),
            "cancel" => Self::Cancel(codec::decode(body)?),
            "control" => Self::Control(codec::decode(body)?),
            "ping" => Self::Ping(codec::decode(body)?),
            "pong" => Self::Pong(codec::decode(body)?),
            "event_ack" => Self::EventAck(codec::decode(body)?),
            "moved" => Self::Moved(codec::decode(body)?),
            "bye" => Self::Bye(codec::decode(body)?),
            _ => Self::Unknown,
        })
    }
}

impl FrameKind for AgentFrame {
    fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(match tag(body)?.as_str() {
            "hello" => Self::Hello(codec::decode(body)?),
            "head" => Self::Head(codec::decode(body)?),
            "res" => Self::Res(codec::decode(body)?),
            "data" => Self::Data(codec::decode(body)?),
            "credit" => Self::Credit(codec::decode(body)?),
            "ping" => Self::Ping(codec::decode(body)?),
            "pong" => Self::Pong(codec::decode(body)?),
            "event" => Self::Event(codec::decode(body)?),
            "moved" => Self::Moved(codec::decode(body)?),
            "bye" => Self::Bye(codec::decode(body)?),
            _ => Self::Unknown,
        })
    }
}
