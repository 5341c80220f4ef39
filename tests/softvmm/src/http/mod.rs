//! The HTTP server of the API socket, with the limits and the manners of the real one.
//!
//! Written by hand because a client can tell the difference: 10 connections, bodies up to 51,200
//! bytes, lines up to 1,024, `GET`, `PUT` and `PATCH` only, and an error that is answered without
//! closing the connection. A general server would hide exactly the traps a supervisor must survive.

pub mod parse;
pub mod server;
