//! The published contract as whoever reads the document has it: which message belongs on a subject, and what is wrong
//! with one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_schemas::codec::Format;
use drover_schemas::contract::ASYNCAPI;
use drover_schemas::headers;
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

use crate::wire::Publication;

/// As much of a blob as is looked at: more of the same bytes says nothing more.
const BLOB: usize = 1024;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(ASYNCAPI).expect("the contract is JSON"));
static CHANNELS: LazyLock<Vec<Channel>> = LazyLock::new(channels);
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// A channel with an address.
#[derive(Debug)]
pub struct Channel {
    /// What the document calls it, which is what it calls the operation on it too.
    pub id: String,
    address: Vec<String>,
    messages: BTreeMap<String, Message>,
    /// The schema of a stream's result, by name.
    result: Option<String>,
}

/// Schemas of a message, by name.
#[derive(Debug, Clone)]
struct Message {
    payload: String,
    headers: Option<String>,
}

/// The channel whose address fits; words win over placeholders.
#[must_use]
pub fn channel_of(subject: &str) -> Option<&'static Channel> {
    let tokens: Vec<&str> = subject.split('.').collect();
    let fits = CHANNELS.iter().filter(|channel| {
        let same = |(wanted, token): (&String, &&str)| wanted.starts_with('{') || wanted == token;
        channel.address.len() == tokens.len() && channel.address.iter().zip(&tokens).all(same)
    });
    fits.min_by_key(|channel| channel.address.iter().filter(|token| token.starts_with('{')).count())
}

impl Channel {
    /// What the contract has against a message of this channel, which is its `request`, `reply`, `error`, `message` or
    /// `frame`.
    ///
    /// # Errors
    /// In words.
    pub fn hold(&self, name: &str, message: &Publication) -> Result<(), String> {
        let of = self.messages.get(name).ok_or_else(|| format!("{} has no {name}", self.id))?;
        let known = hold(&of.payload, message).and_then(|()| match &of.headers {
            Some(schema) => hold_headers(schema, name, message),
            None => Ok(()),
        });
        known.map_err(|problem| format!("{} {name} on {}: {problem}", self.id, message.subject))
    }

    /// What the contract has against the result of a stream, which is MessagePack.
    ///
    /// # Errors
    /// In words.
    pub fn hold_result(&self, result: &[u8]) -> Result<(), String> {
        let schema = self.result.as_ref().ok_or_else(|| format!("{} has no stream", self.id))?;
        let value = json_of(Format::MsgPack, result);
        let held = value.and_then(|value| problems(schema, &value));
        held.map_err(|problem| format!("{} result of a stream: {problem}", self.id))
    }
}

fn channels() -> Vec<Channel> {
    let all = DOCUMENT["channels"].as_object().expect("channels");
    let named = |id: &str| {
        let messages = all.get(id).and_then(|channel| channel["messages"].as_object());
        messages.into_iter().flatten().map(|(name, message)| (name.clone(), message_of(message)))
    };
    let addressed = all.iter().filter_map(|(id, channel)| {
        let result = &DOCUMENT["operations"][id]["x-drover-stream"]["result"];
        Some(Channel {
            address: channel["address"].as_str()?.split('.').map(str::to_owned).collect(),
            messages: named(id).chain(named(&format!("{id}.reply"))).collect(),
            result: target(result),
            id: id.clone(),
        })
    });
    addressed.collect()
}

fn message_of(reference: &Value) -> Message {
    let name = target(reference).expect("a reference to a message");
    let message = &DOCUMENT["components"]["messages"][name];
    Message {
        payload: target(&message["payload"]).expect("a reference to a schema"),
        headers: target(&message["headers"]),
    }
}

/// The last part of a reference.
fn target(reference: &Value) -> Option<String> {
    reference["$ref"].as_str()?.rsplit('/').next().map(str::to_owned)
}

fn hold(schema: &str, message: &Publication) -> Result<(), String> {
    let format = Format::detect(message.header(headers::CONTENT_TYPE), &message.payload);
    let format = format.map_err(|e| e.to_string())?;
    problems(schema, &json_of(format, &message.payload)?)
}

/// A host has no headers but those of the contract and of NATS; a client may have more.
fn hold_headers(schema: &str, name: &str, message: &Publication) -> Result<(), String> {
    let fields: Map<String, Value> =
        message.headers().map(|(field, value)| (field.to_owned(), value.into())).collect();
    let known = &DOCUMENT["components"]["schemas"][schema]["properties"];
    let unknown = fields.keys().find(|field| !field.starts_with("Nats-") && known.get(field).is_none());
    match unknown {
        Some(unknown) if name != "request" => Err(format!("no header is called {unknown}")),
        _ => problems(schema, &fields.into()),
    }
}

/// What a schema has against a value.
fn problems(schema: &str, value: &Value) -> Result<(), String> {
    let validator = validator(schema);
    if validator.is_valid(value) {
        return Ok(());
    }
    let found = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path()));
    Err(format!("{:?} in {value}", found.collect::<Vec<_>>()))
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

/// A body as JSON has it: bytes are base64.
pub(crate) fn json_of(format: Format, body: &[u8]) -> Result<Value, String> {
    match format {
        _ if body.is_empty() => Ok(json!({})),
        Format::Json => serde_json::from_slice(body).map_err(|e| format!("no JSON: {e}")),
        Format::MsgPack => {
            let mut rest = body;
            let value = rmpv::decode::read_value(&mut rest).map_err(|e| format!("no MessagePack: {e}"))?;
            if rest.is_empty() {
                convert(value)
            } else {
                Err(format!("{} bytes follow the body", rest.len()))
            }
        }
    }
}

fn convert(value: rmpv::Value) -> Result<Value, String> {
    use rmpv::Value as Pack;
    let text = |text: rmpv::Utf8String| text.into_str().ok_or("a text is not UTF-8");
    Ok(match value {
        Pack::Nil => Value::Null,
        Pack::Boolean(value) => value.into(),
        Pack::Integer(value) => match value.as_u64() {
            Some(value) => value.into(),
            None => value.as_i64().into(),
        },
        Pack::F32(value) => value.into(),
        Pack::F64(value) => value.into(),
        Pack::String(value) => text(value)?.into(),
        Pack::Binary(bytes) => STANDARD.encode(&bytes[..bytes.len().min(BLOB)]).into(),
        Pack::Array(values) => values.into_iter().map(convert).collect::<Result<Vec<_>, _>>()?.into(),
        Pack::Map(fields) => {
            let field = |(name, value)| match name {
                Pack::String(name) => Ok((text(name)?, convert(value)?)),
                other => Err(format!("a field is named {other}")),
            };
            fields.into_iter().map(field).collect::<Result<Map<_, _>, String>>()?.into()
        }
        Pack::Ext(kind, _) => return Err(format!("an extension of type {kind}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::codec;

    fn id_of(subject: &str) -> Option<&str> {
        channel_of(subject).map(|channel| &*channel.id)
    }

    #[test]
    fn words_win_over_placeholders() {
        assert_eq!(id_of("drover.v1.cmd.default.vm.list"), Some("pool.list"));
        assert_eq!(id_of("drover.v1.cmd.default.vm.list.get"), Some("vm.get"));
        assert_eq!(id_of("drover.v1.cmd.a.vm.b.guest.exec"), Some("guest.exec"));
        assert_eq!(id_of("drover.v1.host.h1.orphans.remove"), Some("host.orphans.remove"));
        assert_eq!(id_of("drover.v1.host.h1.orphans.keep"), None);
    }

    #[test]
    fn a_message_that_deviates_is_found() {
        assert_eq!(problems("CreateRequest", &json!({"name": "a"})), Ok(()));
        for deviating in
            [json!({}), json!({"name": "a.b"}), json!({"name": "a", "nmae": 1}), json!({"name": 1})]
        {
            assert!(problems("CreateRequest", &deviating).is_err(), "{deviating}");
        }
        assert!(problems("VmState", &json!("dreaming")).is_err());
    }

    #[test]
    fn headers_are_held_too() {
        let lookup = channel_of("drover.v1.cmd.default.vm.lookup").unwrap();
        let reply = |fields: &str| Publication {
            subject: "_INBOX.a".into(),
            headers: format!("NATS/1.0\r\n{fields}\r\n\r\n").into_bytes().into(),
            payload: codec::encode(&json!({"found": "not_found"})).unwrap().into(),
            ..Publication::default()
        };
        lookup.hold("reply", &reply("Content-Type: application/msgpack")).unwrap();
        let surprise = lookup.hold("reply", &reply("Drover-Surprise: a")).unwrap_err();
        assert!(surprise.contains("no header is called Drover-Surprise"), "{surprise}");
        lookup
            .hold(
                "request",
                &Publication {
                    payload: codec::encode(&json!({"name": "a"})).unwrap().into(),
                    ..reply("My-Own: a")
                },
            )
            .unwrap();
    }
}
