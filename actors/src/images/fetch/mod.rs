//! Images from URLs and registries. A process of its own, without rights, speaks to the server and writes what it gets
//! into a pipe: whatever a server sends meets neither the daemon's rights nor its memory. The daemon reads, measures
//! and checks.

pub mod login;
mod oci;
pub mod policy;
mod spawn;
mod transfer;
mod web;
pub mod worker;

use drover_schemas::ErrorBody;
use serde::{Deserialize, Serialize};

use self::login::Credentials;
pub use self::oci::{Reference, Refused};
pub use self::policy::{UrlPolicy, UrlRefused};
pub(super) use self::spawn::{Fetch, FetchError};

/// What the worker is told, in JSON on its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What is fetched.
    pub what: What,
    /// From where it may fetch.
    pub policy: UrlPolicy,
    /// Authorities of servers beside those of the system, in PEM.
    pub ca_pem: Option<String>,
    /// Whom it is at the registry that the reference names, and at none else.
    pub login: Option<Credentials>,
    /// More bytes are not fetched.
    pub max_bytes: u64,
}

/// What is fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// What a URL leads to.
    Url(String),
    /// An image of a registry, by its reference.
    Oci(String),
}

/// The worker's first line, in JSON; the bytes follow.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Begin {
    size: u64,
    /// What the reference means, by its digest.
    manifest: Option<String>,
}

/// The worker's last word on its standard error, in JSON, where it failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Failed {
    error: ErrorBody,
}
