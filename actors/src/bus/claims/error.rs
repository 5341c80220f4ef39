//! What can go wrong with a claim.

use drover_schemas::error::{ErrorBody, ErrorCode};
use drover_schemas::{Token, codec};

use super::RACES;
use super::kv::KvError;

/// A claim could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The bucket did not answer.
    #[error("{operation} the claim of {key}")]
    Bucket {
        /// What was tried.
        operation: &'static str,
        /// The key.
        key: String,
        /// What happened.
        #[source]
        source: KvError,
    },
    /// The entry cannot be read: made by a newer drover, or by hand.
    #[error("understand the claim of {key}")]
    Malformed {
        /// The key.
        key: String,
        /// Why.
        #[source]
        source: codec::DecodeError,
    },
    /// A claim cannot be written.
    #[error("encode the claim of {key}")]
    Encode {
        /// The key.
        key: String,
        /// Why.
        #[source]
        source: codec::EncodeError,
    },
    /// Others were faster too often.
    #[error("the claim of {key} changed {RACES} times while it was being changed")]
    Contended {
        /// The key.
        key: String,
    },
    /// Other hosts have all of a pool.
    #[error(
        "no subnet of /{prefix} is free in {pool} for network {network}: forget hosts that are gone (`drover host \
         forget`), or configure a larger pool on all hosts"
    )]
    PoolUsedUp {
        /// The network.
        network: Token,
        /// The pool.
        pool: ipnet::Ipv4Net,
        /// How long the prefix of a subnet is.
        prefix: u8,
    },
    /// Another installation uses the name of this host.
    #[error(
        "the host name {host} belongs to installation {installation}, which {}; give each host a name of its own{}",
        if *alive { "is alive" } else { "is silent" },
        if *alive { "" } else { ", or, if that host is gone for good, free its names: `drover host forget` on \
            another host, or `drover host run --replace` here" }
    )]
    HostTaken {
        /// The host.
        host: Token,
        /// Whose the name is.
        installation: String,
        /// It has been heard within its lease.
        alive: bool,
    },
}

impl ClaimError {
    /// What a client is told: to come again.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let code = match self {
            Self::Bucket { .. } | Self::Contended { .. } => ErrorCode::Unavailable,
            Self::HostTaken { .. } => ErrorCode::Conflict,
            Self::PoolUsedUp { .. } => ErrorCode::ResourceExhausted,
            _ => ErrorCode::Internal,
        };
        ErrorBody::new(code, self.to_string()).with("cause", "claims")
    }
}
