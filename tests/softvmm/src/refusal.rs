//! The answer to a call that is not done: an HTTP status and an error chain.
//!
//! The chain is what the API sends as a JSON array, outermost message first. Clients match on it
//! (loosely), so the strings are facts of the v53 API and are compared with recorded transcripts.

use std::fmt;
use std::io;

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status: 400 for what could not be read, 404 for what is not there, 500 for the rest.
    pub status: u16,
    /// Messages from the outermost to the root cause. Empty: the answer has no body.
    pub chain: Vec<String>,
}

impl Refusal {
    /// A request that no handler takes: wrong method, or a body where none belongs.
    pub fn bad_request() -> Self {
        Self { status: 400, chain: vec!["Bad Request".into()] }
    }

    /// An unknown route.
    pub fn not_found() -> Self {
        Self { status: 404, chain: vec!["Not Found".into()] }
    }

    /// A body that is not the JSON of its call.
    pub fn json(error: &serde_json::Error) -> Self {
        Self { status: 400, chain: vec!["Failed to deserialize JSON".into(), error.to_string()] }
    }

    /// The API refused `what` (an outer message such as "The VM could not boot") for `cause`.
    pub fn api(what: &str, cause: Cause) -> Self {
        let status = if cause.not_found { 404 } else { 500 };
        let mut chain = vec!["Error from API".to_owned(), what.to_owned()];
        chain.extend(cause.chain);
        Self { status, chain }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.chain.join(": "))
    }
}

/// The inner part of a chain: what failed below the API layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    chain: Vec<String>,
    not_found: bool,
}

impl Cause {
    /// A failure with the given messages, outermost first.
    pub fn new<const N: usize>(chain: [&str; N]) -> Self {
        Self { chain: chain.iter().map(|s| (*s).to_owned()).collect(), not_found: false }
    }

    /// The same with an operating system error at the root.
    pub fn io<const N: usize>(chain: [&str; N], error: &io::Error) -> Self {
        Self::new(chain).because(error)
    }

    /// Appends a root cause.
    pub fn because(mut self, root: impl fmt::Display) -> Self {
        self.chain.push(root.to_string());
        self
    }

    /// There is no VM: the calls that need its configuration answer 404.
    pub fn not_created() -> Self {
        Self { not_found: true, ..Self::new(["VM is not created"]) }
    }

    /// `vm.boot` without a configuration: 404 too, in other words.
    pub fn config_missing() -> Self {
        Self { not_found: true, ..Self::new(["VM config is missing"]) }
    }

    /// There is a configuration but no VM made from it.
    pub fn not_running() -> Self {
        Self::new(["VM is not running"])
    }

    /// A VM, or a configuration, is there already.
    pub fn already_created() -> Self {
        Self::new(["VM is already created"])
    }
}
