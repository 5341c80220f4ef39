//! Where the values of a resolved spec come from: pure.

use std::collections::BTreeMap;

use drover_schemas::body::spec::{ResolvedSpec, VmSpec};
use drover_schemas::body::template::SpecValue;
use serde_json::{Value, json};

use super::templates::Template;

/// What a request says itself.
pub const REQUEST: &str = "request";
/// What nobody says.
pub const DEFAULT: &str = "default";

/// The origin of each field that is not by default.
pub type Origins = BTreeMap<String, String>;

/// Whether a request, as JSON, says a field such as `boot.cmdline` or `nics[0].network` itself. A list is one word: all
/// of it is the request's.
pub(super) fn says(request: &Value, field: &str) -> bool {
    let mut at = request;
    for step in field.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
        match at {
            Value::Object(fields) => match fields.get(step) {
                Some(next) => at = next,
                None => return false,
            },
            _ => return true,
        }
    }
    true
}

/// Where the values of a spec over its template come from.
pub(super) fn origins(request: &VmSpec, template: &Template, resolved: &ResolvedSpec) -> Origins {
    let asked = serde_json::to_value(request).unwrap_or_default();
    let mut origins = Origins::new();
    for (field, _) in fields(resolved) {
        let place = template.place(&field).filter(|_| field != "template");
        let origin = match (says(&asked, &field), place) {
            // Both lists count, and are merged.
            (true, Some(place))
                if matches!(
                    field.as_str(),
                    "agent.allow" | "agent.deny" | "agent.checks" | "agent.thresholds"
                ) =>
            {
                format!("{REQUEST} and {place}")
            }
            (true, _) => REQUEST.to_owned(),
            (false, Some(place)) => place,
            (false, None) => continue,
        };
        origins.insert(field, origin);
    }
    origins
}

/// The values of a spec with their origins, in the order of the spec.
#[must_use]
pub fn values(spec: &ResolvedSpec, origins: &Origins) -> Vec<SpecValue> {
    let known = |field: &str| origins.get(field).map_or(DEFAULT, String::as_str).to_owned();
    fields(spec)
        .into_iter()
        .map(|(field, value)| SpecValue { value: value.to_string(), origin: known(&field), field })
        .collect()
}

/// The fields of a spec: maps field by field, lists and images as one.
fn fields(spec: &ResolvedSpec) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    walk(String::new(), serde_json::to_value(spec).unwrap_or_default(), &mut found);
    found
}

fn walk(field: String, value: Value, found: &mut Vec<(String, Value)>) {
    match short(value) {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if field.is_empty() { "" } else { "." };
                walk(format!("{field}{dot}{name}"), value, found);
            }
        }
        value => found.push((field, value)),
    }
}

/// Images by name and the start of the digest.
fn short(value: Value) -> Value {
    match value {
        Value::Object(fields) => match (&fields.get("name"), fields.get("sha256")) {
            (Some(Value::String(name)), Some(Value::String(sha256))) => {
                json!(format!("{name}@{}", sha256.get(..12).unwrap_or(sha256)))
            }
            _ => Value::Object(fields.into_iter().map(|(name, value)| (name, short(value))).collect()),
        },
        Value::Array(items) => items.into_iter().map(short).collect(),
        value => value,
    }
}
