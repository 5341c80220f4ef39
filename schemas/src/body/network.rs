//! Bodies of `host.<host>.network.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Token;

/// Request of `network.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkCreateRequest {
    /// The name that specs use.
    pub name: Token,
    /// Its addresses, as `10.78.0.0/20`; the first is the gateway's. This or `subnet_from` has to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// In its place: a subnet that no other host of the fleet has, out of a pool that all know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_from: Option<NetworkPool>,
    /// Its addresses of IPv6, with the same places in it; no IPv6 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// The longest packet of its guests, in bytes from 1,280 to 9,216; 1,500 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Guests cannot reach each other; so if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    /// Where guests may not go, as prefixes; the ranges of clouds' metadata services if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_deny: Option<Vec<String>>,
    /// Guests that ask by DHCP get their addresses; so if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<bool>,
    /// Names that guests ask the gateway for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<NetworkDns>,
}

/// A pool of subnets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPool {
    /// All of them together, the same on each host, as `10.64.0.0/12`.
    pub pool: String,
    /// How long the prefix of one is; 20 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<u8>,
}

/// Names of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDns {
    /// The gateway answers, and guests are told to ask there; so if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<bool>,
    /// What follows the name of a VM; `vm.drover.internal` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Who is asked for other names, as `192.0.2.53` or `192.0.2.53:5353`; nobody if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Vec<String>>,
}

/// Reply of `network.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkCreateReply {
    /// The network.
    pub network: NetworkInfo,
    /// It was there already as it was asked for, and nothing was done.
    #[serde(default)]
    pub already: bool,
}

/// Request of `network.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkRemoveRequest {
    /// Its name.
    pub name: Token,
}

/// Reply of `network.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworksReply {
    /// Networks by name.
    pub networks: Vec<NetworkInfo>,
}

/// A network of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInfo {
    /// Its name.
    pub name: Token,
    /// It is of the host's configuration, which alone can remove it; others were made by `network.create`.
    pub configured: bool,
    /// Its addresses.
    pub subnet: String,
    /// The pool that these are out of, if they are out of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Its addresses of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// The gateway of its guests.
    pub gateway: String,
    /// The longest packet of its guests, in bytes.
    pub mtu: u32,
    /// Guests cannot reach each other.
    pub isolate: bool,
    /// Where guests may not go.
    pub egress_deny: Vec<String>,
    /// Guests that ask by DHCP get their addresses.
    pub dhcp: bool,
    /// What follows the name of a VM, if the gateway answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Addresses that guests can have in all.
    pub addresses: u64,
    /// How many VMs have, or had until a moment ago.
    pub addresses_used: u64,
    /// Linux bridges that it is made of.
    pub bridges: u32,
}
