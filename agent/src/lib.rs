//! The agent inside a guest: serves the host over the guest link.
//!
//! [`Door`] accepts connections; each is a task in [`conn`] that reads frames and starts one task
//! per stream, which runs a verb of [`verbs`]. Nothing here waits for the host with a byte in hand
//! that the host gave no credit for, and every queue has a bound, so a guest of 64 MiB is enough.
//!
//! The protocol itself is documented in [`drover_schemas::guest`].

pub mod account;
pub mod baseline;
pub mod command;
pub mod commands;
pub mod conn;
pub mod dedupe;
pub mod door;
pub mod emit;
pub mod facts;
pub mod front;
pub mod life;
pub mod listen;
pub mod log;
pub mod look;
pub mod memory;
pub mod mounts;
pub mod policy;
pub mod power;
pub mod process;
pub mod program;
pub mod release;
pub mod runs;
pub mod start;
pub mod upgrade;
pub mod verbs;
pub mod watch;
pub mod work;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::commands::Commands;
use crate::conn::Connections;
use crate::dedupe::Memory;
use crate::door::Door;
use crate::emit::Events;
use crate::facts::Facts;
use crate::look::Look;
use crate::policy::Policy;
use crate::power::Power;
use crate::runs::Runs;
use crate::upgrade::Succession;
use crate::verbs::Partials;
use crate::watch::{CHECKS_DIR, Watch};
use crate::work::freeze::Freezer;

/// How many streams all connections together may have open.
pub const MAX_STREAMS_IN_ALL: usize = 128;
/// Where the agent keeps what lives as long as a boot.
pub const RUN_DIR: &str = "/run/drover-agent";
/// How many files are written and read at a time.
pub const MAX_TRANSFERS: usize = 16;

/// What all connections share.
#[derive(Debug)]
pub struct Agent {
    /// What is known of this guest and boot.
    pub facts: Facts,
    /// How this guest is powered off.
    pub power: Power,
    /// Requests of this boot that must not run twice.
    pub memory: Memory,
    /// Detached commands.
    pub runs: Runs,
    /// Events from inside.
    pub events: Arc<Events>,
    /// Streams of all connections.
    pub streams: Arc<Semaphore>,
    /// Files on the way.
    pub transfers: Arc<Semaphore>,
    /// What the guest's owner allows.
    pub policy: Arc<Policy>,
    /// The log of what the host asked for.
    pub commands: Commands,
    /// What may be gone on with of files on the way.
    pub partials: Partials,
    /// File systems that may stand still.
    pub freezer: Freezer,
    /// What is seen of the guest.
    pub look: Look,
    /// What it is watched for.
    pub watch: Arc<Watch>,
    /// Connections that are open.
    pub connections: Arc<Connections>,
    /// The way to a successor, if this one may have one.
    pub succession: Option<Succession>,
}

impl Agent {
    /// The agent behind a door. It knows of no request yet, but of detached commands and events of an earlier one.
    #[must_use]
    pub fn new(
        door: &Door,
        power: Power,
        runs: Runs,
        events: Arc<Events>,
        succession: Option<Succession>,
    ) -> Arc<Self> {
        let Door { facts, policy, connections, .. } = door;
        let (facts, policy, connections) = (facts.clone(), Arc::clone(policy), Arc::clone(connections));
        let freezer = Freezer::new(runs.home(), runs.program());
        let watch = Watch::new(
            CHECKS_DIR.into(),
            &runs.home(),
            &facts,
            Arc::clone(&events),
            Arc::clone(&policy),
            freezer.clone(),
        );
        Arc::new(Self {
            facts,
            power,
            memory: Memory::default(),
            runs,
            events,
            streams: Arc::new(Semaphore::new(MAX_STREAMS_IN_ALL)),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            policy,
            commands: Commands::default(),
            partials: Partials::default(),
            freezer,
            look: Look::default(),
            watch,
            connections,
            succession,
        })
    }
}
