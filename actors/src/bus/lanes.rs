//! Connections for the verbs of VMs, one for each namespace up to a number: a tenant that floods fills its own
//! connection, and the requests of others do not stand behind its own in a queue.
//!
//! Verbs that any host answers have a connection of their own too, apart from the host's work on the bus.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use async_nats::Client;
use drover_schemas::Token;
use tokio::sync::{Mutex, watch};
use tracing::error;

use super::connect::{Bus, BusConfig, BusState, caught_up, connect};
use crate::chain;

/// Connections for namespaces; what is beyond them shares those that have the fewest.
const LANES: usize = 16;
/// Namespaces whose connection is remembered; others go by their name's hash.
const REMEMBERED: usize = 4_096;

/// The connections of a host to its bus.
#[derive(Debug)]
pub struct Lanes {
    config: BusConfig,
    /// Serves a namespace if no connection can be made for it.
    control: Bus,
    /// Verbs that any host answers.
    front: Bus,
    others: Vec<watch::Receiver<BusState>>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lanes: Vec<(Bus, usize)>,
    by_namespace: HashMap<Token, usize>,
}

impl Lanes {
    /// Without connections yet but `front`; `others` are counted with them.
    #[must_use]
    pub fn new(config: BusConfig, control: &Bus, front: Bus, bulk: &Bus) -> Self {
        let others = vec![control.state.clone(), front.state.clone(), bulk.state.clone()];
        Self { config, control: control.clone(), front, others, inner: Mutex::default() }
    }

    /// The connection for verbs that any host answers.
    #[must_use]
    pub const fn front(&self) -> &Client {
        &self.front.client
    }

    /// The connection for the VMs of a namespace.
    pub async fn of(&self, namespace: &Token) -> Bus {
        let mut inner = self.inner.lock().await;
        if let Some((bus, _)) = inner.by_namespace.get(namespace).and_then(|lane| inner.lanes.get(*lane)) {
            return bus.clone();
        }
        if inner.by_namespace.len() >= REMEMBERED {
            let lane = hash(namespace) % inner.lanes.len().max(1);
            return inner.lanes.get(lane).map_or_else(|| self.control.clone(), |(bus, _)| bus.clone());
        }
        if inner.lanes.len() < LANES {
            let name = format!("{} lane {}", self.config.name, inner.lanes.len() + 1);
            match connect(&BusConfig { name, ..self.config.clone() }).await {
                Ok(bus) => inner.lanes.push((bus, 0)),
                Err(failure) => {
                    error!(error = %chain(&failure), %namespace, "no connection of its own for a namespace");
                    return self.control.clone();
                }
            }
        }
        let fewest = inner.lanes.iter().enumerate().min_by_key(|(_, (_, namespaces))| *namespaces);
        let Some(lane) = fewest.map(|(lane, _)| lane) else { return self.control.clone() };
        inner.by_namespace.insert(namespace.clone(), lane);
        let (bus, namespaces) = &mut inner.lanes[lane];
        *namespaces += 1;
        bus.clone()
    }

    /// Waits until the server knows of every subscription that was made on these connections until now.
    pub async fn heard(&self) {
        let lanes: Vec<Bus> = self.inner.lock().await.lanes.iter().map(|(bus, _)| bus.clone()).collect();
        for bus in lanes.iter().chain([&self.front]) {
            bus.connected().await;
            caught_up(&bus.client).await;
        }
    }

    /// How often subscriptions of all connections were too slow and lost messages.
    pub async fn slow_consumers(&self) -> u64 {
        let inner = self.inner.lock().await;
        let lanes = inner.lanes.iter().map(|(bus, _)| &bus.state);
        self.others.iter().chain(lanes).map(|state| state.borrow().slow_consumers).sum()
    }

    /// Sends what is on its way.
    pub async fn flush(&self) {
        let inner = self.inner.lock().await;
        for client in inner.lanes.iter().map(|(bus, _)| &bus.client).chain([self.front()]) {
            let _ = client.flush().await;
        }
    }
}

fn hash(namespace: &Token) -> usize {
    let mut hasher = DefaultHasher::new();
    namespace.hash(&mut hasher);
    // The low bits are as good as any.
    hasher.finish() as usize
}
