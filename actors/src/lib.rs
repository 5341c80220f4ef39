//! The actors of a drover host, and the pure machines inside them.

pub mod adopt;
pub mod alarms;
pub mod bus;
mod chain;
pub mod console;
pub mod create;
pub mod directory;
pub mod fleet;
pub mod guest;
pub mod host;
pub mod host_log;
pub mod hypervisor;
pub mod images;
pub mod ingress;
pub mod journal;
pub mod manager;
pub mod metrics;
pub mod network;
pub mod orphans;
mod pause;
pub mod quota;
pub mod rejections;
pub mod restored;
pub mod root;
pub mod router;
pub mod samples;
pub mod service;
pub mod services;
pub mod spec;
pub mod stream;
pub mod subscribe;
pub mod trace;
pub mod vm;

pub use chain::chain;
use pause::pause_while_waiting;
