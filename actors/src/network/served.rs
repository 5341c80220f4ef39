//! Whether the guests of a network are answered by the host's own services.

use drover_schemas::token::Token;

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
