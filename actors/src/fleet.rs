//! The fleet as one host sees it: who else is there, where a new VM goes, whether this host still has what it believes
//! to have, and what becomes of a host that is gone.
//!
//! | module | holds |
//! |---|---|
//! | [`demand`] | what a spec asks of a host |
//! | [`placement`] | which hosts fit, the best one first: pure |
//! | [`inventory`] | the watched copy of the bucket of hosts |
//! | [`presence`] | this host's own row and the claim of its name |
//! | [`fence`] | nothing is changed for a VM before the bus has said that it is still this host's |
//! | [`quarantine`] | VMs that are not this host's any more |
//! | [`forget`] | frees the names of a host that is gone for good |
//! | [`states`] | the last known state of every VM of the fleet |
//!
//! There is no leader: whatever two hosts could do against each other goes through compare-and-set on the bus.

pub mod demand;
pub mod fence;
pub mod forget;
pub mod inventory;
pub mod placement;
pub mod presence;
pub mod quarantine;
pub mod states;
