//! One VM: the pure machine, and the actor that carries it out.
//!
//! [`machine`] decides, [`actor`] makes each decision durable and then acts, [`tasks`] does the work.
//! [`watch`] observes the VMM and the guest and only reports. [`row`] translates between the machine,
//! the journal and what clients see.

pub mod actor;
pub mod clock;
pub mod disks;
pub mod explain;
pub mod guest_calls;
pub mod inside;
mod laps;
pub mod machine;
pub mod marks;
pub mod message;
pub mod network;
pub mod prepare;
pub mod restart;
pub mod row;
pub mod run_calls;
pub mod tasks;
pub mod tend;
pub mod watch;
