//! `network`: an interface of the guest is set up over the link, without a network.

use serde::{Deserialize, Serialize};

/// The most addresses, routes or servers of one request.
pub const MAX_NETWORK: usize = 16;

/// A route of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NetworkRoute {
    /// Where to, as a prefix (`10.0.0.0/8`).
    pub to: String,
    /// By which router, an address.
    pub via: String,
}

/// Looks at an interface of the guest, or sets it up. What is left out stays as it is; nothing but the servers of names
/// outlives the guest's boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NetworkRequest {
    /// Which interface, by its hardware address (`aa:bb:cc:dd:ee:ff`).
    pub mac: String,
    /// All its addresses with their prefix lengths (`10.0.0.2/24`, `fd00::2/64`); others are taken away, of the kinds that
    /// are named here: a list with addresses of IPv6 only leaves those of IPv4 alone, and the other way round. An empty
    /// one takes those of IPv4 away. What a kernel gives an interface for its link (`fe80::`) is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// The default gateway, by this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// Further routes by this interface; those that are there stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<NetworkRoute>,
    /// The longest packet, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// All servers that names are asked of, by their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<String>>,
    /// Only if the interface has no address, of the kinds that `addresses` names: else nothing is changed.
    #[serde(default)]
    pub if_unset: bool,
}

/// How an interface is set up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NetworkState {
    /// Whether it is up.
    #[serde(default)]
    pub up: bool,
    /// The longest packet, in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths, sorted, those of IPv4 first; without those of the link (`fe80::`).
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The default gateway by this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// Further routes by routers of this interface, sorted; at most 64.
    #[serde(default)]
    pub routes: Vec<NetworkRoute>,
    /// Servers that names are asked of, as far as `/etc/resolv.conf` tells.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// What was, and what is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NetworkResult {
    /// The interface's name in the guest.
    pub interface: String,
    /// Something was changed.
    #[serde(default)]
    pub changed: bool,
    /// As it was.
    pub before: NetworkState,
    /// As it is.
    pub after: NetworkState,
}
