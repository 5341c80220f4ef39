//! The host's network for VMs: a bridge per network, a persistent TAP per interface, addresses from a pool,
//! and two nftables tables, in the network namespace that the process runs in.
//!
//! Everything carries the installation's mark and only such things are ever changed or removed. [`names`] and
//! [`lease`] are pure; [`tap`], [`link`] and [`nft`] each wrap one kernel interface; [`actor`] orders them:
//! requests that arrive while a firewall transaction runs are merged into the next one.

pub mod actor;
pub mod bridges;
pub mod counters;
pub mod dhcp;
pub mod dns;
pub mod egress;
pub mod findings;
pub mod forward;
pub mod guests;
pub mod ipv6;
mod kernel6;
pub mod known;
pub mod lease;
pub mod limit;
pub mod link;
pub mod mend;
pub mod mtu;
pub mod names;
pub mod nft;
pub mod ops;
pub mod served;
pub mod tap;
pub mod watch;

pub use actor::{NetworkHandle, NetworkMsg};
pub use counters::Counted;
pub use dns::DnsDef;
pub use findings::Finding;
pub use guests::VmName;
pub use ipv6::Ipv6Lease;
pub use lease::{NicLease, Pool};
pub use mend::{Before, Repair, Why};
pub use mtu::Mtu;
pub use ops::{NetworkConfig, NetworkDef, NetworkError, SweepReport, VmNet};
