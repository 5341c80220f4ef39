//! What a network's names are and whom others are asked of: the configuration, checked as it is read.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};

/// The most servers that other names are asked of.
const MAX_UPSTREAMS: usize = 8;
/// The longest suffix: with the longest name of a VM before it, it still fits a message of DHCP.
const MAX_SUFFIX: usize = 64;
const PORT: u16 = 53;

/// Names that a network's guests ask the host for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsDef {
    /// The gateway answers, and guests are told to ask there.
    pub serve: bool,
    /// What follows the name of a VM.
    pub suffix: Suffix,
    /// Who is asked for other names, for guests whose `egress` lets them ask there; nobody if empty.
    pub upstreams: Upstreams,
}

impl Default for DnsDef {
    fn default() -> Self {
        Self { serve: true, suffix: Suffix::default(), upstreams: Upstreams::default() }
    }
}

/// The end of the names of a network's VMs, such as `vm.drover.internal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Suffix {
    text: String,
    name: Name,
}

impl Suffix {
    /// As guests write it, without a dot at the end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As messages have it.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Default for Suffix {
    fn default() -> Self {
        // Nobody's on the internet, for ever: ICANN, 29 July 2024.
        let labels = ["vm", "drover", "internal"];
        let name = labels
            .into_iter()
            .rev()
            .fold(Name::root(), |name, label| name.prepend_label(label).unwrap_or(name));
        Self { text: labels.join("."), name }
    }
}

impl FromStr for Suffix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('.').to_ascii_lowercase();
        let is_label = |label: &str| {
            let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            plain
                && !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() > MAX_SUFFIX
            || !text.split('.').all(is_label)
            || text.rsplit('.').next() == Some("arpa")
        {
            return Err(format!(
                "{text:?} is no end of names: labels of a-z, 0-9 and '-' with dots between, at most {MAX_SUFFIX} \
                 characters, such as vm.drover.internal"
            ));
        }
        let name = Name::from_ascii(format!("{text}.")).map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self { text, name })
    }
}

impl TryFrom<String> for Suffix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Suffix> for String {
    fn from(suffix: Suffix) -> Self {
        suffix.text
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Servers of names: addresses, with a port if it is not 53.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Upstreams(Vec<SocketAddr>);

impl Upstreams {
    /// In the order in which they are asked.
    #[must_use]
    pub fn all(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for Upstreams {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if texts.len() > MAX_UPSTREAMS {
            return Err(format!("{} servers; at most {MAX_UPSTREAMS}", texts.len()));
        }
        let read = |text: &String| {
            let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
            let address = address.or_else(|_| text.parse::<SocketAddr>()).ok();
            address.filter(|address| address.port() != 0 && !address.ip().is_unspecified()).ok_or_else(|| {
                format!("{text:?} is no address of a server, such as 192.0.2.53 or 192.0.2.53:5353")
            })
        };
        texts.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Upstreams> for Vec<String> {
    fn from(upstreams: Upstreams) -> Self {
        upstreams.0.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_the_default() {
        let def: DnsDef = serde_json::from_value(json!({})).unwrap();
        assert_eq!(def, DnsDef::default());
        assert_eq!(
            (def.suffix.as_str(), def.suffix.name().to_ascii().as_str()),
            ("vm.drover.internal", "vm.drover.internal.")
        );
        assert_eq!("vm.drover.internal".parse::<Suffix>().unwrap(), def.suffix);
        let json = serde_json::to_value(&def).unwrap();
        assert_eq!(json, json!({"serve": true, "suffix": "vm.drover.internal", "upstreams": []}));
    }

    #[test]
    fn servers_have_port_53_unless_they_say_another() {
        let def: DnsDef = serde_json::from_value(
            json!({"suffix": "Acme.Example.", "upstreams": ["192.0.2.1", "192.0.2.2:5353", "2001:db8::1"]}),
        )
        .unwrap();
        let texts: Vec<String> = def.upstreams.all().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "192.0.2.2:5353", "[2001:db8::1]:53"]);
        assert_eq!(def.suffix.as_str(), "acme.example");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_words() {
        for (json, word) in [
            (json!({"suffix": ""}), "end of names"),
            (json!({"suffix": "a..b"}), "end of names"),
            (json!({"suffix": "-a.b"}), "end of names"),
            (json!({"suffix": "10.in-addr.arpa"}), "end of names"),
            (json!({"suffix": "ä.b"}), "end of names"),
            (json!({"suffix": "a.".repeat(33)}), "end of names"),
            (json!({"upstreams": ["dns.example"]}), "192.0.2.53"),
            (json!({"upstreams": ["0.0.0.0"]}), "192.0.2.53"),
            (json!({"upstreams": ["192.0.2.1:0"]}), "192.0.2.53"),
            (json!({"upstreams": vec!["192.0.2.1"; 9]}), "at most 8"),
            (json!({"servers": []}), "unknown field"),
        ] {
            let said = serde_json::from_value::<DnsDef>(json.clone()).unwrap_err().to_string();
            assert!(said.contains(word), "{json}: {said}");
        }
    }
}
