//! Whether the guests of a network are answered by the host's own services.

use std::sync::Arc;

use drover_schemas::token::Token;
use tokio::sync::watch;

use super::known::{Bridged, Networks};

/// A service of a network began to be there, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served<'a> {
    /// The network.
    pub network: &'a Token,
    /// `dhcp` or `dns`.
    pub what: &'static str,
    /// Why it is not there, and what can be done about it.
    pub failure: Option<String>,
}

/// Does some work, and never ends: a host without networks has nobody to serve, and that is no reason to begin again.
pub(super) async fn lasting(work: impl Future) {
    work.await;
    std::future::pending().await
}

/// Tells of networks that are not there any more: what could not be served of them is no failure now.
pub(super) fn tell_gone(before: &Networks, now: &Networks, what: &'static str, served: impl Fn(&Served<'_>)) {
    let is_gone = |network: &&Arc<Bridged>| !now.iter().any(|other| other.def.name == network.def.name);
    for network in before.iter().filter(is_gone) {
        served(&Served { network: &network.def.name, what, failure: None });
    }
}

/// Waits until a bridge has another number, or whatever else it tells of is another.
pub(super) async fn changed<T>(moved: &mut watch::Receiver<T>) {
    if moved.changed().await.is_err() {
        // The network is gone; so are we, soon.
        std::future::pending().await
    }
}
