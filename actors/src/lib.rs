//! The actors of a drover host, and the pure machines inside them.

mod chain;
pub mod guest;
pub mod hypervisor;
pub mod images;
pub mod ingress;
pub mod journal;
pub mod spec;
pub mod vm;

pub use chain::chain;
