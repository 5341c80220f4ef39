//! The actors of a drover host and their pure machines.

pub mod bus;
pub mod journal;
