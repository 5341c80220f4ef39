//! What happens inside a guest, from a program of it (or the agent itself) to the bus.
//!
//! The agent keeps events in a log until the host has acknowledged them, and numbers them from 1 on without gaps. The
//! log has a name of its own: another one under another name begins when the old one was lost, as with a boot. The
//! host acknowledges a number when its journal has it, and remembers the last one of the last log, so an event that is
//! sent again is known again.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use crate::blob::Blob;
use crate::codec::{self, DecodeError};

/// The feature of a host that takes events and acknowledges them, and the capability of an agent that sends them so.
pub const EVENTS: &str = "events";
/// The most bytes of an event's data, encoded.
pub const MAX_EVENT_DATA: usize = 8 * 1024;
/// The most events that the agent sends before the first of them is acknowledged.
pub const EVENTS_IN_FLIGHT: usize = 32;
/// The most bytes of data in these; one event may always be sent.
pub const EVENT_BYTES_IN_FLIGHT: usize = 64 * 1024;
/// What types of the agent's own events begin with; programs cannot publish such.
pub const OWN_EVENTS: &str = "drover.";
/// The agent's own event about those that it could not keep: `count` of its data says how many.
pub const REFUSED_EVENTS: &str = "drover.refused";
/// The most bytes of an event's type.
pub const MAX_EVENT_TYPE: usize = 63;
/// The most bytes of a log's name.
pub const MAX_EVENT_LOG: usize = 64;

/// The greatest integer that every reader of a body understands.
const MAX_INTEGER: u64 = 1 << 53;

/// One event of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The agent's log that the event stands in.
    pub log: String,
    /// Its number there, from 1.
    pub n: u64,
    /// When it was published, by the guest's clock.
    pub time_unix_ms: u64,
    /// User of the process that published it, by the guest's kernel.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process id.
    pub pid: u32,
    /// What happened: see [`EventType`].
    pub kind: String,
    /// [`EventData`], encoded: at most [`MAX_EVENT_DATA`] bytes.
    #[serde(default)]
    pub body: Blob,
}

/// The host has these events of a log, and need not hear of them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAck {
    /// The log.
    pub log: String,
    /// The last event that it has; those before it too.
    pub n: u64,
}

/// What happened, as a name: `[a-z0-9]` first, then up to 62 of `[a-z0-9-_.]`. What begins with [`OWN_EVENTS`] is
/// said by the agent alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct EventType(String);

/// A text is not the type of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventTypeError {
    /// The length does not do.
    #[error("a type of an event has 1 to {MAX_EVENT_TYPE} characters, not {len}")]
    Length {
        /// How many bytes it has.
        len: usize,
    },
    /// A character does not do.
    #[error(
        "{found:?} has no place in the type of an event: use a-z, 0-9, '-', '_' and '.', a letter or digit first"
    )]
    Character {
        /// Which.
        found: char,
    },
}

impl EventType {
    /// Checks a name.
    ///
    /// # Errors
    /// [`EventTypeError`]
    pub fn new(text: impl Into<String>) -> Result<Self, EventTypeError> {
        let text = text.into();
        if text.is_empty() || text.len() > MAX_EVENT_TYPE {
            return Err(EventTypeError::Length { len: text.len() });
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let wrong = |(at, c): &(usize, char)| !(plain(*c) || (*at > 0 && matches!(c, '-' | '_' | '.')));
        match text.char_indices().find(wrong) {
            Some((_, found)) => Err(EventTypeError::Character { found }),
            None => Ok(Self(text)),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Only the agent says so.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.starts_with(OWN_EVENTS)
    }
}

impl TryFrom<String> for EventType {
    type Error = EventTypeError;
    fn try_from(text: String) -> Result<Self, EventTypeError> {
        Self::new(text)
    }
}

impl std::fmt::Display for EventType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for EventType {
    fn schema_name() -> Cow<'static, str> {
        "EventType".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "What happened, as a name; what begins with `drover.` is said by the agent itself.",
            "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$",
        })
    }
}

/// What the publisher of an event says about it: a map, which drover reads to see that it is one and does not look at.
///
/// Bytes, which JSON does not have, become base64 text. An integer beyond 2^53 or a number that is none is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct EventData(pub Map<String, Value>);

/// Data of an event cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum EventDataError {
    /// There is too much of it.
    #[error(
        "the data of an event has at most {MAX_EVENT_DATA} bytes, not {len}; put it into a file and name that"
    )]
    Length {
        /// How many bytes it has, encoded.
        len: usize,
    },
    /// It is no map of what a body may hold.
    #[error("the data of an event cannot be read")]
    Malformed {
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// It cannot be written.
    #[error("the data of an event cannot be written")]
    Encode {
        /// Why.
        #[source]
        source: codec::EncodeError,
    },
}

impl EventData {
    /// Reads what a frame carries; no bytes are an empty map.
    ///
    /// # Errors
    /// [`EventDataError`]
    pub fn read(body: &[u8]) -> Result<Self, EventDataError> {
        match body.len() {
            0 => Ok(Self::default()),
            len if len > MAX_EVENT_DATA => Err(EventDataError::Length { len }),
            _ => codec::decode(body).map_err(|source| EventDataError::Malformed { source }),
        }
    }

    /// What a frame carries.
    ///
    /// # Errors
    /// [`EventDataError::Length`] when it is too long.
    pub fn write(&self) -> Result<Blob, EventDataError> {
        let body = codec::encode(self).map_err(|source| EventDataError::Encode { source })?;
        if body.len() > MAX_EVENT_DATA {
            return Err(EventDataError::Length { len: body.len() });
        }
        // As deep as a reader goes, and no further.
        Self::read(&body)?;
        Ok(body.into())
    }
}

impl<'de> Deserialize<'de> for EventData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Tame::deserialize(deserializer)?.0 {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(D::Error::custom("not a map")),
        }
    }
}

impl JsonSchema for EventData {
    fn schema_name() -> Cow<'static, str> {
        "EventData".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "What the publisher says about it: drover does not look at it.",
            "additionalProperties": true,
        })
    }
}

/// A value that both formats can say.
struct Tame(Value);

impl<'de> Deserialize<'de> for Tame {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value of JSON, or bytes")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > MAX_INTEGER {
            return Err(E::custom("an integer beyond 2^53; write it as text"));
        }
        Ok(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > MAX_INTEGER {
            return Err(E::custom("an integer beyond 2^53; write it as text"));
        }
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is none"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(STANDARD.encode(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Tame(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((key, Tame(value))) = map.next_entry::<String, Tame>()? {
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn data(value: Value) -> EventData {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn types_are_names() {
        for good in ["a", "0", "app.deployed", "a-b_c.d", &"x".repeat(63)] {
            assert!(EventType::new(good).is_ok(), "{good}");
        }
        assert_eq!(EventType::new(""), Err(EventTypeError::Length { len: 0 }));
        assert_eq!(EventType::new("x".repeat(64)), Err(EventTypeError::Length { len: 64 }));
        for (bad, found) in [("-a", '-'), (".a", '.'), ("A", 'A'), ("a b", ' '), ("a\n", '\n'), ("é", 'é')]
        {
            assert_eq!(EventType::new(bad), Err(EventTypeError::Character { found }), "{bad:?}");
        }
        assert!(
            EventType::new("drover.x").unwrap().is_own() && !EventType::new("drover-x").unwrap().is_own()
        );
    }

    #[test]
    fn data_is_what_both_formats_can_say() {
        let said = data(json!({"a": [1, -2, 0.5, null, true, {"b": "é"}]}));
        assert_eq!(EventData::read(said.write().unwrap().as_slice()).unwrap(), said);
        assert_eq!(EventData::read(&[]).unwrap(), EventData::default());
        // Bytes are text in JSON, as everywhere.
        let bytes =
            rmp_serde::to_vec_named(&std::collections::BTreeMap::from([("b", Blob::from(vec![0, 255]))]));
        assert_eq!(EventData::read(&bytes.unwrap()).unwrap(), data(json!({"b": "AP8="})));
        for (bad, why) in [(json!({"n": MAX_INTEGER + 1}), "2^53"), (json!([1]), "map"), (json!(7), "map")] {
            let error = serde_json::from_value::<EventData>(bad).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let infinite =
            rmp_serde::to_vec_named(&std::collections::BTreeMap::from([("n", f64::INFINITY)])).unwrap();
        assert!(matches!(EventData::read(&infinite), Err(EventDataError::Malformed { .. })));
        let long = data(json!({"text": "x".repeat(MAX_EVENT_DATA)}));
        assert!(matches!(long.write(), Err(EventDataError::Length { .. })));
        let deep = (0..40).fold(json!({}), |inner, _| json!({ "a": inner }));
        assert!(matches!(data(deep).write(), Err(EventDataError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn random_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(data) = EventData::read(&bytes) {
                let text = serde_json::to_string(&data).unwrap();
                prop_assert_eq!(&serde_json::from_str::<EventData>(&text).unwrap(), &data);
            }
        }
    }
}
