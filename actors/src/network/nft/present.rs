//! What `nft` lists of the installation's tables: pure.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use serde_json::Value;

use super::Member;
use super::elements::is_limited;
use super::ipv6::{NUMBERS, as_number};

/// What is in the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// Chains, rules and sets without their elements, in a form that is the same for the same rules.
    pub fixed: String,
    /// The elements.
    pub members: BTreeSet<Member>,
}

impl Present {
    /// Takes in the listing of a table.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn take(&mut self, listing: &str) -> Result<(), serde_json::Error> {
        let listing: Value = serde_json::from_str(listing)?;
        for object in listing["nftables"].as_array().into_iter().flatten() {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            if kind == "metainfo" {
                continue;
            }
            let mut body = body.clone();
            if let Some(body) = body.as_object_mut() {
                // Given anew at each making.
                body.remove("handle");
                let name = body.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                if let Some(Value::Array(members)) = body.remove("elem") {
                    self.members.extend(members.iter().map(|element| member(&name, element)));
                }
            }
            self.fixed.push_str(&format!("{kind} {body}\n"));
        }
        Ok(())
    }

    /// The TAPs that have elements.
    pub fn taps(&self) -> impl Iterator<Item = &str> {
        let taps: BTreeSet<&str> = self.members.iter().filter_map(Member::tap).collect();
        taps.into_iter()
    }
}

/// An element of the set `set`: alone, or with what it leads to.
fn member(set: &str, element: &Value) -> Member {
    if let Some(with) = element.get("elem") {
        // It counts, or limits.
        let value = with.get("limit").filter(|_| is_limited(set)).map(|limit| rate(limit).to_string());
        return Member { set: set.to_owned(), parts: parts(&with["val"]), value };
    }
    if NUMBERS.contains(&set) {
        let mut parts = parts(element);
        if let Some(last) = parts.last_mut() {
            *last = as_number(last);
        }
        return Member { set: set.to_owned(), parts, value: None };
    }
    let (key, value) = match element.as_array().map(Vec::as_slice) {
        Some([key, value]) => (key, Some(value)),
        _ => (element, None),
    };
    Member { set: set.to_owned(), parts: parts(key), value: value.and_then(|value| parts(value).pop()) }
}

/// A limit in bytes a second; 0, which nobody asks for, if it is none of ours.
fn rate(limit: &Value) -> u64 {
    let unit = match limit["rate_unit"].as_str() {
        Some("bytes") => 1,
        Some("kbytes") => 1 << 10,
        Some("mbytes") => 1 << 20,
        _ => 0,
    };
    let a_second = limit["per"] == "second" && limit["inv"] == true;
    limit["rate"].as_u64().filter(|_| a_second).unwrap_or_default().saturating_mul(unit)
}

/// An address as we write it, for some have several ways; another text as it is.
fn address(text: &str) -> String {
    text.parse::<Ipv6Addr>().map_or_else(|_| text.to_owned(), |address| address.to_string())
}

/// The parts of an element as texts.
fn parts(element: &Value) -> Vec<String> {
    let part = |value: &Value| match (value.as_str(), value.get("prefix"), value.get("range")) {
        (Some(text), ..) => address(text),
        (_, Some(prefix), _) => {
            format!("{}/{}", address(prefix["addr"].as_str().unwrap_or_default()), prefix["len"])
        }
        (_, _, Some(range)) => format!("{}-{}", range[0], range[1]),
        _ => value.to_string(),
    };
    match element.get("concat").and_then(Value::as_array) {
        Some(many) => many.iter().map(part).collect(),
        None => vec![part(element)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "bridge", "name": "t", "handle": 7}},
        {"set": {"family": "bridge", "name": "vm_mac", "table": "t", "type": ["ifname", "ether_addr"], "handle": 2,
                 "elem": [{"concat": ["dr1", "52:54:00:00:00:01"]}]}},
        {"set": {"family": "bridge", "name": "vm_if", "table": "t", "type": "ifname", "handle": 3, "elem": ["dr1"]}}]}"#;

    #[test]
    fn a_limit_is_known_by_its_rate_whatever_its_unit() {
        let limited = |rate: u64, unit: &str, inv: bool| {
            member(
                "limit_send",
                &serde_json::json!({"elem": {"val": "dr1", "limit": {"rate": rate, "burst": 64, "per": "second",
                    "inv": inv, "rate_unit": unit, "burst_unit": "kbytes"}}}),
            )
        };
        let wanted = |rate: &str| Member {
            set: "limit_send".into(),
            parts: vec!["dr1".into()],
            value: Some(rate.into()),
        };
        assert_eq!(limited(125_000, "bytes", true), wanted("125000"));
        assert_eq!(limited(3, "mbytes", true), wanted("3145728"));
        assert_eq!(limited(1, "kbytes", false), wanted("0"), "it lets through what is beyond");
        let of_all = serde_json::json!({"elem": {"val": "dr1", "limit": {"rate": 20, "burst": 40, "per": "second", "inv": true}}});
        let same = Member { set: "dhcp_rate".into(), parts: vec!["dr1".into()], value: None };
        assert_eq!(member("dhcp_rate", &of_all), same, "a limit that all have is none of the element's");
        let counted = member("refused", &serde_json::json!({"elem": {"val": "dr1", "counter": null}}));
        assert_eq!(counted, Member { set: "refused".into(), parts: vec!["dr1".into()], value: None });
    }

    #[test]
    fn elements_are_told_from_what_is_fixed() {
        let (mut present, mut again) = (Present::default(), Present::default());
        present.take(LISTING).unwrap();
        again
            .take(&LISTING.replace("\"handle\": 7", "\"handle\": 8").replace(r#", "elem": ["dr1"]"#, ""))
            .unwrap();
        assert_eq!(present.fixed, again.fixed);
        assert!(!present.fixed.contains("dr1") && present.fixed.contains("vm_mac"), "{}", present.fixed);
        assert_eq!(present.members.len(), 2);
        assert_eq!(present.taps().collect::<Vec<_>>(), ["dr1"]);
        let gone: Vec<_> = present.members.difference(&again.members).collect();
        assert_eq!(gone, [&Member { set: "vm_if".into(), parts: vec!["dr1".into()], value: None }]);
    }
}
