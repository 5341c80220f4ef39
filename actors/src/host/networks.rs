//! The networks of a host, as verbs change them.

use std::sync::{PoisonError, RwLock};

use drover_schemas::Token;

use super::{HostState, SubnetError, subnets};
use crate::network::{NetworkDef, Pool};

/// The networks that verbs made, as they were asked for and as the journal has them.
#[derive(Debug, Default)]
pub struct MadeNetworks {
    changing: tokio::sync::Mutex<()>,
    all: RwLock<Vec<NetworkDef>>,
}

impl MadeNetworks {
    /// Those of the journal.
    #[must_use]
    pub fn new(all: Vec<NetworkDef>) -> Self {
        Self { all: RwLock::new(all), ..Self::default() }
    }

    /// They.
    #[must_use]
    pub fn all(&self) -> Vec<NetworkDef> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whoever changes them waits for this first; whoever looks does not.
    pub async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Notes what is in the journal now.
    pub fn set(&self, all: Vec<NetworkDef>) {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// What stands in the way of removing a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// There is none of that name.
    Unknown,
    /// VMs have so many addresses of it.
    InUse(usize),
}

impl HostState {
    /// The networks.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkDef> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many addresses guests of a network can have, and how many they do.
    #[must_use]
    pub fn addresses_of(&self, name: &Token) -> Option<(u64, u64)> {
        let inner = self.lock();
        inner.pools.get(name).map(|pool| (pool.capacity() as u64, pool.leased() as u64))
    }

    /// Whether the host may have a network beside the others.
    ///
    /// # Errors
    /// [`SubnetError`].
    pub fn check_network(&self, def: &NetworkDef) -> Result<(), SubnetError> {
        // First: it is the one that is said to be wrong.
        let all: Vec<NetworkDef> = std::iter::once(def.clone()).chain(self.networks()).collect();
        subnets::pools(&all).map(drop)
    }

    /// VMs may have interfaces in a network from now on.
    ///
    /// # Errors
    /// [`SubnetError`].
    pub fn add_network(&self, def: NetworkDef) -> Result<(), SubnetError> {
        self.check_network(&def)?;
        let pools = subnets::pools(std::slice::from_ref(&def))?;
        let mut inner = self.lock();
        inner.pools.extend(pools);
        self.networks.write().unwrap_or_else(PoisonError::into_inner).push(def);
        drop(inner);
        self.changed();
        Ok(())
    }

    /// No VM may have an interface in a network from now on, if none has one.
    ///
    /// # Errors
    /// [`Kept`].
    pub fn remove_network(&self, name: &Token) -> Result<NetworkDef, Kept> {
        let mut inner = self.lock();
        match inner.pools.get(name).map(Pool::leased) {
            None => return Err(Kept::Unknown),
            Some(0) => {}
            Some(leased) => return Err(Kept::InUse(leased)),
        }
        let mut networks = self.networks.write().unwrap_or_else(PoisonError::into_inner);
        let index = networks.iter().position(|def| def.name == *name).ok_or(Kept::Unknown)?;
        inner.pools.remove(name);
        let def = networks.remove(index);
        drop(networks);
        drop(inner);
        self.changed();
        Ok(def)
    }
}
