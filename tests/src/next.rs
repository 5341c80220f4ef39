//! A host that speaks as a later version would: a rule for its [`Relay`](crate::relay::Relay) to the bus.
//!
//! Whatever the host publishes gets fields, features and kinds of events that this version does not know, and another
//! version's number. To everybody else the host is one of the next version; itself it is as it was, so that what it
//! reads back of its own is the test of the way home too.

use drover_schemas::event::VmEventKind;
use rmpv::Value;

use crate::wire::Publication;

/// The version that the host claims to have.
pub const VERSION: &str = "0.99.0";
/// A feature that it claims to have.
pub const FEATURE: &str = "next.v1";
/// The kind of event that it tells in place of `agent`.
pub const KIND: &str = "hibernating";
/// The field that it adds to every map with fields.
pub const FIELD: &str = "of_the_next_version";

/// Maps whose keys are names of the user's or of the host's: these are no fields.
const NAMES: [&str; 8] =
    ["labels", "states", "confinement", "env", "evidence", "details", "networks", "subnets"];
/// A map with one of these alone says by its key what it is, and will have no other.
const VARIANTS: [&str; 3] = ["result", "stream", "error"];

/// As the next version would say it. Requests stay as they are: a host asks others only for what they announce.
#[must_use]
pub fn says(publication: Publication) -> Vec<Publication> {
    let subject = &publication.subject;
    let told = ["drover.v1.evt.", "drover.v1.metric.", "$KV.DROVER_", "_INBOX", "_R_"];
    let mut rest = &publication.payload[..];
    let value = match told.iter().any(|prefix| subject.starts_with(prefix)) {
        true => rmpv::decode::read_value(&mut rest).ok(),
        false => None,
    };
    let Some(mut value @ Value::Map(_)) = value.filter(|_| rest.is_empty()) else { return vec![publication] };
    let known = VmEventKind::Agent.as_str();
    let renamed = match subject.strip_suffix(&format!(".{known}")) {
        Some(of_vm) if subject.starts_with("drover.v1.evt.") => Some(format!("{of_vm}.{KIND}")),
        _ => None,
    };
    if let (Some(_), Value::Map(fields)) = (&renamed, &mut value) {
        let kind = fields.iter_mut().find(|(name, _)| name.as_str() == Some("kind"));
        kind.expect("an event has a kind").1 = KIND.into();
    }
    let subject = renamed.unwrap_or_else(|| subject.clone());
    later(&mut value, "");
    let mut payload = Vec::new();
    rmpv::encode::write_value(&mut payload, &value).expect("memory");
    vec![Publication { subject, payload: payload.into(), ..publication }]
}

fn later(value: &mut Value, name: &str) {
    match value {
        Value::Map(fields) => {
            for (name, value) in fields.iter_mut() {
                later(value, name.as_str().unwrap_or_default());
            }
            let is_variant = match &fields[..] {
                [(only, _)] => only.as_str().is_some_and(|only| VARIANTS.contains(&only)),
                _ => false,
            };
            if !is_variant && !NAMES.contains(&name) {
                let news = vec![("a".into(), vec![Value::from(1), Value::Nil].into())];
                fields.push((FIELD.into(), Value::Map(news)));
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| later(item, ""));
            if name == "features" {
                items.push(FEATURE.into());
            }
        }
        Value::String(text) if name == "version" && text.as_str() == Some(env!("CARGO_PKG_VERSION")) => {
            *value = VERSION.into();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::codec;
    use serde_json::json;

    #[test]
    fn fields_features_and_kinds_are_added_and_names_of_users_are_not() {
        let body = json!({"version": env!("CARGO_PKG_VERSION"), "features": ["vm.v1"], "vm": {"labels": {"a": "b"}}});
        let body = codec::encode(&body).unwrap();
        let of = |subject: &str| Publication {
            subject: subject.to_owned(),
            payload: body.clone().into(),
            ..Publication::default()
        };
        let asked = of("drover.v1.cmd.default.vm.create");
        assert_eq!(says(asked.clone()), [asked]);
        let said = says(of("_INBOX.a.b")).remove(0);
        let said: serde_json::Value = codec::decode(&said.payload).unwrap();
        assert_eq!((&said["version"], &said["features"]), (&json!(VERSION), &json!(["vm.v1", FEATURE])));
        assert_eq!(said["vm"]["labels"], json!({"a": "b"}));
        assert!(said[FIELD].is_object() && said["vm"][FIELD].is_object(), "{said}");
        let event = codec::encode(&json!({"kind": "agent"})).unwrap();
        let event = Publication {
            subject: "drover.v1.evt.ns.a.vm.b.agent".into(),
            payload: event.into(),
            ..Publication::default()
        };
        let event = says(event).remove(0);
        let told: serde_json::Value = codec::decode(&event.payload).unwrap();
        assert_eq!((&*event.subject, &told["kind"]), ("drover.v1.evt.ns.a.vm.b.hibernating", &json!(KIND)));
    }
}
