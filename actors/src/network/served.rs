//! Whether the guests of a network are answered by the host's own services.

use drover_schemas::token::Token;
use tokio::sync::watch;

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

/// Waits until a bridge has another number.
pub(super) async fn changed(moved: &mut watch::Receiver<()>) {
    if moved.changed().await.is_err() {
        // The network is gone; so are we, soon.
        std::future::pending().await
    }
}
