//! Every message that a test sees is held against the published contract.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_schemas::codec::Format;
use drover_schemas::contract::ASYNCAPI;
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

/// Which side of a channel a message is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A request that was answered with a result.
    Request,
    /// A result.
    Reply,
    /// A coded error.
    Error,
    /// What is published unasked, and a frame from a client.
    Message,
}

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(ASYNCAPI).expect("the contract is JSON"));
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// Holds a message against the contract.
///
/// # Panics
/// The contract has no such message, or another one.
pub fn check(subject: &str, side: Side, format: Format, body: &[u8]) {
    let channel = channel_of(subject);
    let messages = match side {
        Side::Request | Side::Message => DOCUMENT["channels"][&channel]["messages"].as_object(),
        Side::Reply | Side::Error => DOCUMENT["channels"][format!("{channel}.reply")]["messages"].as_object(),
    };
    let name = match side {
        Side::Reply => "reply",
        Side::Error => "error",
        Side::Request => "request",
        Side::Message => {
            if channel == "io" {
                "frame"
            } else {
                "message"
            }
        }
    };
    let message = messages.and_then(|messages| messages.get(name));
    let message = message.unwrap_or_else(|| panic!("the contract has no {name} of {subject}"));
    let value = json_of(format, body);
    let problems = problems(&payload(message), &value);
    assert!(problems.is_empty(), "{subject}, {name}: {problems:?} in {value}");
}

/// What the schema has against a value.
fn problems(schema: &str, value: &Value) -> Vec<String> {
    let validator = validator(schema);
    validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect()
}

fn validator(schema: &str) -> Arc<Validator> {
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let root = json!({
            "allOf": [{"$ref": format!("#/components/schemas/{schema}")}],
            "components": DOCUMENT["components"],
        });
        let validator = jsonschema::options().with_draft(Draft::Draft7).build(&root);
        Arc::new(validator.unwrap_or_else(|e| panic!("the schema {schema}: {e}")))
    };
    Arc::clone(validators.entry(schema.to_owned()).or_insert_with(make))
}

fn payload(message: &Value) -> String {
    let name =
        |value: &Value| value["$ref"].as_str().unwrap_or_default().rsplit('/').next().map(str::to_owned);
    let message = name(message).expect("a reference to a message");
    name(&DOCUMENT["components"]["messages"][message]["payload"]).expect("a reference to a schema")
}

/// The channel whose address fits; words win over placeholders.
fn channel_of(subject: &str) -> String {
    let tokens: Vec<&str> = subject.split('.').collect();
    let channels = DOCUMENT["channels"].as_object().expect("channels");
    let fits = channels.iter().filter_map(|(id, channel)| {
        let address: Vec<&str> = channel["address"].as_str()?.split('.').collect();
        let free = address.iter().filter(|token| token.starts_with('{')).count();
        let same = |(wanted, token): (&&str, &&str)| wanted.starts_with('{') || wanted == token;
        (address.len() == tokens.len() && address.iter().zip(&tokens).all(same)).then_some((free, id))
    });
    fits.min()
        .map(|(_, id)| id.clone())
        .unwrap_or_else(|| panic!("the contract has no channel for {subject}"))
}

/// A body as JSON has it: bytes are base64.
fn json_of(format: Format, body: &[u8]) -> Value {
    match format {
        _ if body.is_empty() => json!({}),
        Format::Json => serde_json::from_slice(body).expect("JSON"),
        Format::MsgPack => convert(rmpv::decode::read_value(&mut &body[..]).expect("MessagePack")),
    }
}

fn convert(value: rmpv::Value) -> Value {
    use rmpv::Value as Pack;
    match value {
        Pack::Nil => Value::Null,
        Pack::Boolean(value) => value.into(),
        Pack::Integer(value) => match value.as_u64() {
            Some(value) => value.into(),
            None => value.as_i64().into(),
        },
        Pack::F32(value) => value.into(),
        Pack::F64(value) => value.into(),
        Pack::String(text) => text.into_str().expect("UTF-8").into(),
        Pack::Binary(bytes) => STANDARD.encode(bytes).into(),
        Pack::Array(values) => values.into_iter().map(convert).collect(),
        Pack::Map(fields) => {
            let field = |(name, value)| match name {
                Pack::String(name) => (name.into_str().expect("UTF-8"), convert(value)),
                other => panic!("a field is named {other}"),
            };
            fields.into_iter().map(field).collect::<Map<_, _>>().into()
        }
        Pack::Ext(kind, _) => panic!("an extension of type {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_win_over_placeholders() {
        assert_eq!(channel_of("drover.v1.cmd.default.vm.list"), "pool.list");
        assert_eq!(channel_of("drover.v1.cmd.default.vm.list.get"), "vm.get");
        assert_eq!(channel_of("drover.v1.cmd.a.vm.b.guest.exec"), "guest.exec");
        assert_eq!(channel_of("drover.v1.host.h1.orphans.remove"), "host.orphans.remove");
    }

    #[test]
    fn a_message_that_deviates_is_found() {
        assert_eq!(problems("CreateRequest", &json!({"name": "a"})), Vec::<String>::new());
        for deviating in
            [json!({}), json!({"name": "a.b"}), json!({"name": "a", "nmae": 1}), json!({"name": 1})]
        {
            assert!(!problems("CreateRequest", &deviating).is_empty(), "{deviating}");
        }
        assert!(!problems("VmState", &json!("dreaming")).is_empty());
    }
}
