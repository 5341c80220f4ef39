//! The actors of a drover host and their pure machines.

pub mod journal;
