//! Why a host cannot start.

use std::path::PathBuf;

use drover_schemas::ErrorBody;

use super::subnets::NoSubnet;
use crate::bus::claims::ClaimError;
use crate::bus::connect::ConnectError;
use crate::host::SubnetError;
use crate::host::users::UsersError;
use crate::hypervisor::run_dir::RunRootError;
use crate::journal::{JournalError, OpenError};
use crate::network::NetworkError;
use crate::restored::CatchUpError;

/// A host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A restored journal cannot be brought up to date.
    #[error(transparent)]
    Restored(#[from] CatchUpError),
    /// The journal cannot be opened.
    #[error("open the journal in {path}")]
    Journal {
        /// The state folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// The journal cannot be read.
    #[error("read the journal in {path}")]
    Load {
        /// The state folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<crate::journal::JournalError>,
    },
    /// The bus is configured wrongly.
    #[error("connect to the bus")]
    Bus {
        /// Why.
        #[source]
        source: Box<ConnectError>,
    },
    /// The run directory cannot be used.
    #[error("use the run directory {path}")]
    Run {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: RunRootError,
    },
    /// There are no users for VMs.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The notification socket cannot be made.
    #[error("make the socket for notifications")]
    Notify {
        /// Why.
        #[source]
        source: crate::hypervisor::notify::NotifyError,
    },
    /// The networks cannot be made.
    #[error("make the host's networks")]
    Network {
        /// Why.
        #[source]
        source: Box<NetworkError>,
    },
    /// The kernel does not say which boot of the host this is.
    #[error("read the kernel's boot id")]
    Boot {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another installation has the name of this host.
    #[error("take the host's name")]
    Name {
        /// Which, and what to do.
        #[source]
        source: Box<ClaimError>,
    },
    /// The installation that had the name could not be forgotten.
    #[error("take the host's name from the installation that had it: {0}")]
    Replace(ErrorBody),
    /// A subnet has no room.
    #[error("use the configured subnets")]
    Subnet {
        /// Why.
        #[source]
        source: SubnetError,
    },
    /// A network has none out of its pool.
    #[error("find the subnets of the networks")]
    Pool {
        /// Why.
        #[from]
        source: NoSubnet,
    },
    /// The journal does not keep which ones the networks have.
    #[error("keep the subnets of the networks")]
    Subnets {
        /// Why.
        #[source]
        source: Box<JournalError>,
    },
    /// An actor did not start.
    #[error("start the actor {actor}")]
    Actor {
        /// Which.
        actor: &'static str,
        /// Why.
        #[source]
        source: Box<ractor::SpawnErr>,
    },
}
