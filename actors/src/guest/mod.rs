//! The daemon's end of the guest link.
//!
//! A [`Link`] is a handle on one task that owns one connection to the agent of one guest. The VM
//! actor makes it with [`Link::connect`] or, while the guest boots, [`connect_when_ready`], asks by
//! [`Link::call`] and [`Link::open`], and watches [`Link::closed`]: a link never comes back, the
//! actor makes another. When the last handle and the last stream are gone, the connection is closed.
//!
//! The agent is a stranger (the guest's root may have replaced it): what breaks a rule of the
//! protocol closes the link with a typed [`LinkError`], and no queue grows beyond the credit that
//! was given. An idle link holds no buffer. Frames are taken at a bounded rate, and an agent that sends them for nothing
//! is hung up on.
//!
//! ```text
//!  VM actor ── Link ─┐                        ┌─ frames ─ hybrid socket ─ agent
//!  requests ─ GuestStream ─ Shared (table) ─ task
//! ```

mod dial;
mod error;
mod ids;
mod inbox;
mod link;
mod pace;
mod stream;
mod table;
mod task;

pub use dial::{LastError, connect_when_ready, dial};
pub use error::{CallError, LinkError};
pub use ids::GuestIds;
pub use inbox::{EventBatch, EventReader};
pub use link::{HelloInfo, Link, Open, on_behalf_of};
pub use stream::{GuestStream, StreamEvent};

#[cfg(test)]
mod tests;
