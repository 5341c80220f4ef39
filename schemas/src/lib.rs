//! The bus contract of drover.
//!
//! Everything that crosses a process boundary is defined here and nowhere else: subjects, bodies,
//! error codes, events, the verb table, the state table and the frames of the guest link. The crate
//! has no runtime and no I/O, so the guest agent, the daemon and a code generator can all link it.
//!
//! What is contract: every public type in [`body`], [`event`], [`error`], [`stream`] and the guest
//! frames, every subject in [`subject`], and every row of [`verbs`] and [`state`]. What is not:
//! Rust names and module paths.
//!
//! # Adding a field
//! 1. Make it optional (`#[serde(default, skip_serializing_if = …)]`); never reuse a name.
//! 2. Run the golden tests: old bytes must still decode. Add a vector for the new field.
//!
//! # Breaking changes
//! Removing or renaming a field, narrowing a type, changing a unit, giving a code a new meaning, or
//! moving a subject is breaking and needs a new version token in the subject.

pub mod audit;
pub mod blob;
pub mod body;
pub mod codec;
pub mod contract;
pub mod error;
pub mod event;
pub mod guest;
pub mod headers;
pub mod id;
pub mod secret;
pub mod size;
pub mod state;
pub mod stream;
pub mod subject;
pub mod token;
pub mod verbs;

pub use error::{ErrorBody, ErrorCode};
pub use id::{InstallationId, RequestId, VmId};
pub use token::Token;
