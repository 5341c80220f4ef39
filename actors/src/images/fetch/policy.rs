//! From where images may be fetched: pure. Checked for the URL that is asked for, for every address that its name has at
//! the moment of the connection, and again at each redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use drover_schemas::size::ByteSize;
use ipnet::IpNet;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::login::RegistryLogin;

/// What an operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UrlPolicy {
    /// Hosts, each as `name`, `*.domain` or an address, with `:port` if it is not 443; none, and nothing is fetched.
    pub hosts: Vec<String>,
    /// Ranges that are allowed though they are no addresses of the public internet.
    pub private: Vec<IpNet>,
    /// How long a server may be silent, in milliseconds; 20 s if left out.
    pub silence_ms: Option<u64>,
    /// The longest image; what the store takes if left out.
    pub max_size: Option<ByteSize>,
    /// Authorities of servers beside those that the host trusts, in PEM.
    pub ca: Option<PathBuf>,
    /// How the host logs in at registries; from others comes what anybody may pull. The worker is not told of them.
    #[serde(skip_serializing)]
    pub registries: Vec<RegistryLogin>,
}

/// An image is not fetched from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefused {
    /// Nothing is fetched.
    #[error("no host for images is configured; an operator sets images.urls.hosts of the host")]
    NoHosts,
    /// It is no URL.
    #[error("the url cannot be read: {reason}")]
    NotAUrl {
        /// Why.
        reason: String,
    },
    /// Another protocol.
    #[error("only https is fetched, and not {scheme}")]
    Scheme {
        /// The protocol.
        scheme: String,
    },
    /// A URL with a user or a password would put them into logs.
    #[error("a url with a user or a password is not taken")]
    Credentials,
    /// The host is not one of those.
    #[error("images are not fetched from {host}; an operator allows it with images.urls.hosts of the host")]
    Host {
        /// The host and port.
        host: String,
    },
    /// The address is of a private or special range.
    #[error(
        "{host} is at {address}, which is no address of the public internet; an operator allows it with images.urls.private of the host"
    )]
    Address {
        /// The host.
        host: String,
        /// Its address.
        address: IpAddr,
    },
}

impl UrlPolicy {
    /// Reads a URL and sees whether its host may be asked.
    ///
    /// # Errors
    /// [`UrlRefused`]
    pub fn url(&self, text: &str) -> Result<Url, UrlRefused> {
        let url = Url::parse(text).map_err(|e| UrlRefused::NotAUrl { reason: e.to_string() })?;
        self.check(&url)?;
        Ok(url)
    }

    /// Whether the host of a URL may be asked.
    ///
    /// # Errors
    /// [`UrlRefused`]
    pub fn check(&self, url: &Url) -> Result<(), UrlRefused> {
        if self.hosts.is_empty() {
            return Err(UrlRefused::NoHosts);
        }
        if url.scheme() != "https" {
            return Err(UrlRefused::Scheme { scheme: url.scheme().to_owned() });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefused::Credentials);
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.hosts.iter().any(|allowed| covers(allowed, host, port)) {
            return Err(UrlRefused::Host { host: format!("{host}:{port}") });
        }
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) => self.address(host, address),
            Err(_) => Ok(()),
        }
    }

    /// Whether an address of a host may be connected to.
    ///
    /// # Errors
    /// [`UrlRefused::Address`]
    pub fn address(&self, host: &str, address: IpAddr) -> Result<(), UrlRefused> {
        let address = address.to_canonical();
        if is_public(address) || self.private.iter().any(|range| range.contains(&address)) {
            return Ok(());
        }
        Err(UrlRefused::Address { host: host.to_owned(), address })
    }
}

/// Whether an entry of the list is for a host. Names are in lower case in a URL that was read.
fn covers(allowed: &str, host: &str, port: u16) -> bool {
    let allowed = allowed.to_ascii_lowercase();
    let rest = match allowed.strip_prefix("*.") {
        Some(domain) => {
            let (domain, of_port) = split(domain);
            return of_port == port
                && host
                    .strip_suffix(domain)
                    .and_then(|rest| rest.strip_suffix('.'))
                    .is_some_and(|sub| !sub.is_empty());
        }
        None => &allowed,
    };
    split(rest) == (host, port)
}

/// Host and port; an address of IPv6 is in brackets.
pub(super) fn split(text: &str) -> (&str, u16) {
    let port = |text: &str| text.parse().ok();
    match text.rsplit_once(':') {
        Some((host, number)) if !host.contains(':') || host.ends_with(']') => match port(number) {
            Some(number) => (host, number),
            None => (text, 443),
        },
        _ => (text, 443),
    }
}

/// Ranges that lead to the host itself, to its neighbours, or nowhere (IANA's registries of special-purpose addresses).
const SPECIAL_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !SPECIAL_V4.iter().any(|(net, len)| (v4.to_bits() ^ net.to_bits()) >> (32 - len) == 0)
        }
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// Global unicast (2000::/3), but for ranges that are none or that carry an address of IPv4 within them.
fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.segments();
    let special = a == 0x2001 && (b < 0x0200 || b == 0x0db8) || a == 0x2002 || (0x3fff, 0) == (a, b & 0xf000);
    a & 0xe000 == 0x2000 && !special
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
