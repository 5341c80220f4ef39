//! Elements of sets, as `nft` is given them: pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{self, Expression};
use nftables::schema::{Element, NfListObject, Nftables};
use nftables::types::NfFamily;

use super::Member;
use super::ipv6::EGRESS_REFUSED6;
use super::rules::{
    DHCP_RATE, DNS_RATE, EGRESS_REFUSED, Expr, LIMIT_RECEIVE, LIMIT_SEND, OF_TAPS, OVER_RECEIVE, OVER_SEND,
    REFUSED, concat, prefix, text,
};

/// Sets whose elements are limits.
const LIMITS: [&str; 2] = [LIMIT_SEND, LIMIT_RECEIVE];
/// Sets whose elements count.
const COUNTERS: [&str; 5] = [OVER_SEND, OVER_RECEIVE, REFUSED, EGRESS_REFUSED, EGRESS_REFUSED6];
/// Sets whose elements have a limit that is the same for all, in packets a second: a machine that boots asks a few times
/// for its address, and a busy one often for names.
const RATES: [(&str, u32); 2] = [(DHCP_RATE, 20), (DNS_RATE, 200)];
/// What may come at once beyond a second's worth, in KiB: the largest frame that the kernel hands on in one piece.
const BURST_KIB: u64 = 64;

/// Elements, by set.
fn elements(table: &str, members: &[Member]) -> Vec<NfListObject<'static>> {
    let mut sets: BTreeMap<&str, Vec<Expr>> = BTreeMap::new();
    // Those have words of their own.
    for Member { set, parts, value } in members.iter().filter(|one| !is_limit(one)) {
        let key = match parts.as_slice() {
            [single] => part(single),
            many => concat(many.iter().map(|text| part(text)).collect()),
        };
        let element = match value {
            Some(value) => Expression::List(vec![key, part(value)]),
            None => key,
        };
        sets.entry(set).or_default().push(element);
    }
    let element = |(set, members): (&str, Vec<Expr>)| {
        let of_bridge = OF_TAPS.contains(&set);
        NfListObject::Element(Element {
            family: if of_bridge { NfFamily::Bridge } else { NfFamily::INet },
            table: Cow::Owned(table.to_owned()),
            name: set.to_owned().into(),
            elem: members.into(),
        })
    };
    sets.into_iter().map(element).collect()
}

/// A part of an element as an expression: a prefix, a range of ports, or as it stands.
fn part(part: &str) -> Expr {
    if let Ok(net) = part.parse::<IpNet>() {
        return prefix(net);
    }
    match part.split_once('-').map(|(first, last)| (first.parse(), last.parse())) {
        Some((Ok(first), Ok(last))) => {
            let range = [Expression::Number(first), Expression::Number(last)];
            Expression::Range(Box::new(expr::Range { range }))
        }
        _ => text(part),
    }
}

/// Makes exactly `add` present and `remove` absent, whatever was there.
pub(super) fn alter(batch: &mut Batch<'static>, table: &str, add: &[Member], remove: &[Member]) {
    // Deleting what is not there would fail the transaction; adding what is there does not.
    let (forwards, of_taps): (Vec<_>, Vec<_>) =
        remove.iter().cloned().partition(|member| member.tap().is_none());
    // Forwards cannot be deleted in the transaction that adds them: those that are there only are to be removed.
    let gone = elements(table, &of_taps);
    for element in gone.iter().cloned() {
        batch.add(element);
    }
    for element in gone.into_iter().chain(elements(table, &forwards)) {
        batch.delete(element);
    }
    for element in elements(table, add) {
        batch.add(element);
    }
}

/// One transaction that makes `add` present and `remove` absent.
pub(super) fn change(table: &str, add: &[Member], remove: &[Member]) -> Nftables<'static> {
    let mut batch = Batch::new();
    alter(&mut batch, table, add, remove);
    batch.to_nftables()
}

/// Whether it is a limit.
pub(super) fn is_limit(member: &Member) -> bool {
    is_limited(&member.set)
}

/// Whether each element of the set has a limit of its own.
pub(super) fn is_limited(set: &str) -> bool {
    LIMITS.contains(&set)
}

/// The document as `nft` reads it. The crate has no words for sets whose elements count or limit, and the wrong ones for what
/// is not tracked.
pub(super) fn document(document: &Nftables<'_>) -> serde_json::Result<String> {
    let mut json = serde_json::to_value(document)?;
    for command in json["nftables"].as_array_mut().into_iter().flatten() {
        let statements = command.pointer_mut("/add/rule/expr").and_then(serde_json::Value::as_array_mut);
        for statement in statements.into_iter().flatten().filter(|statement| *statement == "notrack") {
            *statement = serde_json::json!({"notrack": null});
        }
        let Some(set) = command.pointer_mut("/add/set") else { continue };
        let name = set["name"].as_str().unwrap_or_default();
        let of_elements = if COUNTERS.contains(&name) {
            serde_json::json!({"counter": null})
        } else if LIMITS.contains(&name) {
            let unit = "bytes";
            serde_json::json!({"limit": {"rate": 1, "burst": 0, "per": "second", "inv": true, "rate_unit": unit,
                "burst_unit": unit}})
        } else if let Some((_, rate)) = RATES.iter().find(|(set, _)| *set == name) {
            // Elements take it over, each for itself; a limit that is "over" matches what is beyond.
            serde_json::json!({"limit": {"rate": rate, "burst": rate * 2, "per": "second", "inv": true}})
        } else {
            continue;
        };
        set["stmt"] = serde_json::json!([of_elements]);
    }
    serde_json::to_string(&json)
}

/// One transaction that makes the limits among `add` present and those among `remove` absent, in words; empty if there
/// are none. A limit that is there already begins anew.
pub(super) fn limits(table: &str, add: &[Member], remove: &[Member]) -> String {
    let mut words = String::new();
    let mut element = |command: &str, Member { set, parts, .. }: &Member, limit: &str| {
        let tap = parts.first().map(String::as_str).unwrap_or_default();
        words.push_str(&format!("{command} element bridge {table} {set} {{ \"{tap}\"{limit} }}\n"));
    };
    for member in remove.iter().chain(add).filter(|one| is_limit(one)) {
        // Added first: deleting what is not there would fail the transaction.
        element("add", member, "");
        element("delete", member, "");
    }
    for member in add.iter().filter(|one| is_limit(one)) {
        let rate = member.value.as_deref().unwrap_or("0");
        let limit = format!(" limit rate over {rate} bytes/second burst {BURST_KIB} kbytes");
        element("add", member, &limit);
    }
    words
}
