//! The typed bus client: what the command line, the demo and later the gateway speak.
//!
//! A [`Client`] is one NATS connection with a namespace. Every call carries a deadline and the
//! caller's trace context; a mutating call also carries a request id, made once and sent again with
//! every retry, so that repeating is always safe. Headers are read before bodies: an error reply is
//! never decoded as a result.
//!
//! Invariant: a call ends within its deadline, with a reply or a coded error. `503 no responders`
//! says only that nobody listens now; the client then asks what became of the name and says that.

mod connect;
mod error;
mod events;
mod lookup;
mod request;
mod session;
mod session_io;
mod shared_images;
pub mod time;
pub mod trace;
mod verbs;

pub use connect::{Auth, Target, Tls};
pub use error::ClientError;
pub use events::{EventFeed, Since, Wanted};
pub use request::CallOptions;
pub use session::Opening;
pub use session_io::{Input, Output};

use drover_schemas::Token;
use drover_schemas::subject::Subjects;
use tokio::sync::watch;

/// One connection to the bus, bound to a namespace.
#[derive(Debug, Clone)]
pub struct Client {
    nats: async_nats::Client,
    target: Target,
    subjects: Subjects,
    /// Counts connects of `nats`, so that a stream can say anew where its frames go.
    connects: watch::Receiver<u64>,
}

impl Client {
    /// The connection, for what has no typed call.
    pub const fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    /// The namespace of all calls that do not name another.
    pub const fn namespace(&self) -> &Token {
        &self.target.namespace
    }

    /// Builds and parses subjects below the root.
    pub const fn subjects(&self) -> &Subjects {
        &self.subjects
    }
}

#[cfg(test)]
mod tests;
