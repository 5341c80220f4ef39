//! Bodies of requests and replies.
//!
//! Every request type denies unknown fields through [`crate::codec::decode_request`]; every reply
//! type tolerates them. Times are milliseconds since the Unix epoch, durations milliseconds; the
//! unit stands in the name.

pub mod events;
pub mod guest;
pub mod host;
pub mod image;
pub mod network;
pub mod samples;
pub mod spec;
pub mod status;
pub mod template;
pub mod usage;
pub mod vm;
pub mod volume;
