//! Some names are wanted on hosts with a label only, and are never anywhere else. Pure.

use std::collections::BTreeMap;

use super::history::Record;
use crate::cluster::LABELS;

/// The labels that a name asks for.
pub(super) fn asked(name: &str) -> BTreeMap<&'static str, &'static str> {
    let label = match name {
        "c0" => "left",
        "c1" => "right",
        _ => return BTreeMap::new(),
    };
    BTreeMap::from([(label, "yes")])
}

/// Whether a name may be on a host.
pub(super) fn may_be_on(name: &str, host: &str) -> bool {
    let number: Option<usize> = host.strip_prefix('h').and_then(|number| number.parse().ok());
    let has = number.and_then(|number| LABELS.get(number.checked_sub(1)?)).copied().unwrap_or_default();
    asked(name).keys().all(|label| has.contains(label))
}

/// What was answered by a host that must not have the VM.
pub(super) fn judge(records: &[Record]) -> Vec<String> {
    let replies = records.iter().filter_map(|record| Some((record, record.reply()?)));
    let wrong = replies.filter(|(record, reply)| !may_be_on(&record.name, reply.vm.host.as_str()));
    wrong.map(|(record, reply)| format!("{} is on {}: {record:?}", record.name, reply.vm.host)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_label_is_on_hosts_that_have_it() {
        let on = |name: &str| ["h1", "h2", "h3"].map(|host| may_be_on(name, host));
        assert_eq!(on("c0"), [true, true, false]);
        assert_eq!(on("c1"), [false, true, true]);
        assert_eq!(on("c2"), [true; 3]);
        assert!(!may_be_on("c0", "h0") && !may_be_on("c0", "h9") && !may_be_on("c0", "other"));
    }
}
