//! The actors of a drover host, and the pure machines inside them.

pub mod guest;
pub mod images;
pub mod spec;
pub mod vm;
