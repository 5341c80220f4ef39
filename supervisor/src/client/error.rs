//! Why a call did not give a result.

use std::path::PathBuf;

use drover_actors::bus::refusal::Refusal;
use drover_schemas::codec::{DecodeError, EncodeError};
use drover_schemas::stream::StreamError;
use drover_schemas::{ErrorBody, ErrorCode};

/// One variant for each operation that can fail; `Display` does not print the source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server took the connection.
    #[error("connect to the bus at {server}")]
    Connect {
        /// The URL, without credentials.
        server: String,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// A file with a key or a certificate.
    #[error("read the key or certificate in {}", path.display())]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A request could not be written.
    #[error("write the request")]
    Encode(#[source] EncodeError),
    /// A reply could not be read.
    #[error("read the reply of {subject}")]
    Decode {
        /// What was asked.
        subject: String,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The connection did not take a message.
    #[error("send to {subject}")]
    Send {
        /// Where to.
        subject: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection did not take a subscription.
    #[error("subscribe to {subject}")]
    Subscribe {
        /// To what.
        subject: String,
        /// Why.
        #[source]
        source: async_nats::SubscribeError,
    },
    /// The connection was closed under a subscription.
    #[error("the connection to the bus was closed")]
    Closed,
    /// The peer broke the rules of a stream.
    #[error("the host broke the rules of the stream")]
    Stream(#[source] StreamError),
    /// The source of a stream's data could not be read.
    #[error("read the data to send")]
    Input(#[source] std::io::Error),
    /// The target of a stream's data could not be written.
    #[error("write the data received")]
    Output(#[source] std::io::Error),
    /// The caller gave up, and the host was told.
    #[error("cancelled")]
    Cancelled,
    /// A coded error: from a host, or from this client for the host that did not answer.
    #[error("{0}")]
    Refused(Box<ErrorBody>),
}

impl ClientError {
    /// The error as a coded body; failures of this side are coded too.
    pub fn body(&self) -> ErrorBody {
        let text = drover_actors::chain(self).to_string();
        match self {
            Self::Refused(body) => (**body).clone(),
            Self::Connect { source, .. } => match Refusal::of(&drover_actors::chain(source).to_string()) {
                Some(refusal) => refused(refusal, text),
                None => ErrorBody::new(ErrorCode::Unavailable, text),
            },
            Self::Send { .. } | Self::Subscribe { .. } | Self::Closed => {
                ErrorBody::new(ErrorCode::Unavailable, text)
            }
            Self::ReadKey { .. } => ErrorBody::new(ErrorCode::InvalidArgument, text),
            Self::Encode(_) | Self::Decode { .. } | Self::Stream(_) => {
                ErrorBody::new(ErrorCode::Internal, text)
            }
            Self::Input(_) | Self::Output(_) | Self::Cancelled => {
                ErrorBody::new(ErrorCode::InvalidArgument, text)
            }
        }
    }
}

/// A server that is there, and with which it will not come to a connection before somebody changes something.
fn refused(refusal: Refusal, text: String) -> ErrorBody {
    let code = match refusal {
        Refusal::Login | Refusal::NoCertificate | Refusal::OwnExpired | Refusal::OwnUnknown => {
            ErrorCode::PermissionDenied
        }
        Refusal::Unknown | Refusal::Name | Refusal::Files => ErrorCode::InvalidArgument,
        Refusal::Expired => ErrorCode::Unavailable,
    };
    let text = format!("{text}: {}", refusal.meaning());
    ErrorBody::new(code, text).with("cause", refusal.cause()).retryable(false)
}

impl From<ErrorBody> for ClientError {
    fn from(body: ErrorBody) -> Self {
        Self::Refused(Box::new(body))
    }
}
