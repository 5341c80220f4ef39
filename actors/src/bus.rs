//! The bus: the connection, the JetStream assets, the name claims, and the way of events from the
//! journal's outbox into the stream.
//!
//! Unhappy paths: NATS may be absent at start and lost at any time. The client keeps trying;
//! [`connect::BusState`] says how it stands, and everything here waits for it and catches up. No VM
//! depends on it.

pub mod assets;
pub mod claims;
pub mod connect;
pub mod egress;
pub mod lanes;
pub mod log;
pub mod objects;
pub mod permissions;
pub mod refusal;
#[cfg(test)]
pub(crate) mod testing;
pub mod upgrade;
pub mod watch;
