//! Why a link or a call failed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use drover_schemas::body::status::AgentFaultCode;
use drover_schemas::guest::flow::FlowError;
use drover_schemas::guest::wire::WireError;
use drover_schemas::{ErrorBody, ErrorCode};

use crate::chain;

/// A link cannot be had, or has ended. Cheap to clone: everyone who waits gets the same reason.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The hypervisor's socket cannot be reached.
    #[error("cannot reach the vsock socket {path:?}")]
    Dial {
        /// Which socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The hypervisor closed the connection in place of an answer.
    #[error("no agent listens in the guest")]
    NobodyListens,
    /// The hypervisor answered something else than `OK <port>`.
    #[error("the vsock socket answered {line:?} to CONNECT")]
    BadConnect {
        /// What it answered, printable, at most 32 bytes.
        line: String,
    },
    /// A step took too long.
    #[error("{step} took longer than {after_ms} ms")]
    Deadline {
        /// Which step.
        step: &'static str,
        /// How long it had, in milliseconds.
        after_ms: u64,
    },
    /// The agent said why it ends the connection.
    #[error("the agent ended the link ({})", error.code)]
    Bye {
        /// Its reason.
        error: ErrorBody,
    },
    /// The agent closed the connection.
    #[error("the agent closed the link")]
    Closed,
    /// The connection failed.
    #[error("the link failed")]
    Io {
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// What the agent sends are not frames.
    #[error("the agent broke the framing")]
    Wire {
        /// How.
        #[source]
        source: Arc<WireError>,
    },
    /// The agent broke the credit or the order of a stream.
    #[error("the agent broke the flow of stream {stream}")]
    Flow {
        /// Which stream.
        stream: u32,
        /// How.
        #[source]
        source: FlowError,
    },
    /// The agent spoke of a stream that is not open.
    #[error("the agent spoke of stream {stream}, which is not open")]
    UnknownStream {
        /// Which stream.
        stream: u32,
    },
    /// The agent sent a frame that has no place there.
    #[error("the agent sent a {frame} that has no place there")]
    Unexpected {
        /// Which frame.
        frame: &'static str,
    },
    /// The agent sent more events than it may before they are acknowledged.
    #[error("the agent flooded the host with events: {beyond} more than it may send at once")]
    Flood {
        /// How many were too many.
        beyond: u64,
    },
    /// The agent sent frames without end that carry nothing.
    #[error("the agent sent frames without end that carry nothing: {frames} of them")]
    Endless {
        /// How many.
        frames: u64,
    },
    /// The agent answered no heartbeat.
    #[error("the agent was silent for {after_ms} ms")]
    Silent {
        /// For how long, in milliseconds.
        after_ms: u64,
    },
    /// As many streams as a connection may have are open.
    #[error("{limit} requests of this guest are under way")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The agent does not offer the verb.
    #[error("the agent in the guest, version {version:?}, does not offer {verb}")]
    Lacks {
        /// The verb.
        verb: String,
        /// What the agent says of its version, at most 32 characters.
        version: String,
    },
    /// The request does not fit into a frame.
    #[error("the request is too long for the guest link")]
    TooLong,
    /// The stream has ended already; its result is at the other half.
    #[error("the stream has ended")]
    StreamEnded,
    /// The daemon itself gave the link up.
    #[error("the link was given up")]
    GivenUp,
}

/// The step of a link's beginning at which the agent has to say something.
pub(super) const GREETING: &str = "the agent's greeting";

impl LinkError {
    /// What the agent did wrong, if this is its doing.
    #[must_use]
    pub fn fault(&self) -> Option<AgentFaultCode> {
        Some(match self {
            Self::Wire { source } => match **source {
                WireError::Length { .. } => AgentFaultCode::FrameLength,
                _ => AgentFaultCode::FrameFormat,
            },
            Self::Flow { source: FlowError::Credit { .. }, .. } => AgentFaultCode::Credit,
            Self::Flow { .. } => AgentFaultCode::Offset,
            Self::UnknownStream { .. } => AgentFaultCode::StreamId,
            Self::Unexpected { .. } => AgentFaultCode::OutOfPlace,
            Self::Flood { .. } => AgentFaultCode::EventFlood,
            Self::Endless { .. } => AgentFaultCode::FrameFlood,
            Self::Silent { .. } => AgentFaultCode::Silent,
            Self::Deadline { step, .. } if *step == GREETING => AgentFaultCode::Silent,
            Self::Bye { error } if error.code == ErrorCode::Unsupported => AgentFaultCode::Incompatible,
            _ => return None,
        })
    }

    /// Whether dialling again may help: the guest may still be booting.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Dial { .. } | Self::NobodyListens | Self::Closed | Self::Io { .. } | Self::Deadline { .. }
        )
    }
}

impl From<LinkError> for ErrorBody {
    fn from(error: LinkError) -> Self {
        let text = chain(&error).to_string();
        match error {
            LinkError::Bye { error } => Self::new(
                match error.code {
                    ErrorCode::Unsupported => ErrorCode::Unsupported,
                    _ => ErrorCode::GuestUnreachable,
                },
                format!("{text}: {}", error.message),
            ),
            LinkError::Deadline { .. } => Self::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "{text}; the outcome is unknown: repeat with the same request id, or allow more time"
                ),
            ),
            LinkError::Lacks { .. } => {
                Self::new(ErrorCode::Unsupported, format!("{text}; install the agent of this host's version"))
            }
            LinkError::Full { .. } => Self::new(ErrorCode::Busy, format!("{text}; wait for one to end")),
            LinkError::TooLong => {
                Self::new(ErrorCode::InvalidArgument, format!("{text}; send the bulk as a stream"))
            }
            LinkError::StreamEnded => Self::new(ErrorCode::Conflict, text),
            _ => Self::new(
                ErrorCode::GuestUnreachable,
                format!("{text}; see whether the guest runs and its agent is started, then repeat"),
            ),
        }
    }
}

/// A call failed: in the guest, or on the way to it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The agent answered with an error.
    #[error("the guest refused or failed ({})", .0.code)]
    Guest(ErrorBody),
    /// There was no answer.
    #[error("the guest gave no answer")]
    Link(#[source] LinkError),
}

impl From<CallError> for ErrorBody {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Guest(body) => body,
            CallError::Link(error) => error.into(),
        }
    }
}
