//! The contract as it is published: one AsyncAPI 3 document, made from the verb table and the types of bodies.
//!
//! `tests/asyncapi.rs` makes it and keeps `asyncapi.json` as it makes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The document, as indented JSON.
pub const ASYNCAPI: &str = include_str!("../asyncapi.json");

/// Reply of `contract.read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContractReply {
    /// Version of the host that answers.
    pub version: String,
    /// An AsyncAPI 3 document, as JSON text. Its addresses begin with `drover`, whatever the root of this bus is.
    pub asyncapi: String,
}
