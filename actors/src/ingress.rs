//! The edge of the host: what arrives on the bus becomes a [`request::Request`], gets a permit, and is
//! routed. Everything that arrives is answered.

pub mod permits;
pub mod request;
