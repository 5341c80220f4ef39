//! What rules counted of each guest, as `nft` lists it: pure.

use std::collections::HashMap;

use serde_json::Value;

use super::rules::{EGRESS_REFUSED, OVER_RECEIVE, OVER_SEND, REFUSED};

/// How many frames or packets of each guest met a rule that drops them, by TAP or address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(HashMap<String, HashMap<String, u64>>);

impl Counters {
    /// The sets whose elements count, and their families.
    pub const SETS: [(&str, &str); 4] =
        [("bridge", REFUSED), ("bridge", OVER_SEND), ("bridge", OVER_RECEIVE), ("inet", EGRESS_REFUSED)];

    /// Takes in the listing of a set.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn take(&mut self, listing: &str) -> Result<(), serde_json::Error> {
        let listing: Value = serde_json::from_str(listing)?;
        for object in listing["nftables"].as_array().into_iter().flatten() {
            let set = &object["set"];
            let Some(name) = set["name"].as_str() else { continue };
            let of_set = self.0.entry(name.to_owned()).or_default();
            for element in set["elem"].as_array().into_iter().flatten() {
                let element = &element["elem"];
                let key = element["val"].as_str().map(ToOwned::to_owned);
                of_set.extend(key.zip(element["counter"]["packets"].as_u64()));
            }
        }
        Ok(())
    }

    /// What was counted in a set under a name, if that is counted.
    #[must_use]
    pub fn get(&self, set: &str, key: &str) -> Option<u64> {
        self.0.get(set)?.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_read_by_set_and_guest() {
        let listing = |set: &str, key: &str, packets: u64| {
            format!(
                r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {{"set": {{"family": "bridge", "name": "{set}",
                "table": "t", "type": "ifname", "elem": [{{"elem": {{"val": "{key}",
                "counter": {{"packets": {packets}, "bytes": 9}}}}}}], "stmt": [{{"counter": null}}]}}}}]}}"#
            )
        };
        let mut counters = Counters::default();
        counters.take(&listing(REFUSED, "dr1", 7)).unwrap();
        counters.take(&listing(EGRESS_REFUSED, "10.77.0.2", 3)).unwrap();
        assert_eq!(counters.get(REFUSED, "dr1"), Some(7));
        assert_eq!(counters.get(EGRESS_REFUSED, "10.77.0.2"), Some(3));
        assert_eq!([counters.get(REFUSED, "dr2"), counters.get(OVER_SEND, "dr1")], [None; 2]);
        counters.take("{").unwrap_err();
    }
}
