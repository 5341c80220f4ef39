//! The codec of every body: MessagePack maps with named fields, or JSON made by hand.
//!
//! Decoding is strict where a client's mistake must not pass (requests: unknown fields, trailing
//! bytes, depth) and lenient where a newer peer must be understood (replies and events: unknown
//! fields are ignored).

mod walk;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How deep a body may nest. rmp-serde's own limit of 1,024 would allow a deep stack.
pub const MAX_DEPTH: usize = 32;

/// The media type that drover sends.
pub const MSGPACK: &str = "application/msgpack";
/// The media type of JSON bodies.
pub const JSON: &str = "application/json";
/// Spellings of MessagePack that are accepted.
pub const MSGPACK_ALIASES: [&str; 3] = [MSGPACK, "application/vnd.msgpack", "application/x-msgpack"];

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// MessagePack with named fields.
    MsgPack,
    /// JSON, for requests made by hand; answered in JSON.
    Json,
}

impl Format {
    /// The media type to state in `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::MsgPack => MSGPACK,
            Self::Json => JSON,
        }
    }

    /// The format of a body: by its `Content-Type`, and without one by its first byte (`{` is never
    /// the first byte of a MessagePack map).
    ///
    /// # Errors
    /// [`DecodeError::ContentType`] for a media type that is neither.
    pub fn detect(content_type: Option<&str>, body: &[u8]) -> Result<Self, DecodeError> {
        let by_first_byte = || match body.iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'{') => Self::Json,
            _ => Self::MsgPack,
        };
        let Some(content_type) = content_type else { return Ok(by_first_byte()) };
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if MSGPACK_ALIASES.contains(&media.as_str()) {
            Ok(Self::MsgPack)
        } else if media == JSON {
            Ok(Self::Json)
        } else {
            Err(DecodeError::ContentType { content_type: media })
        }
    }
}

/// Why a body could not be read. The messages are shown to clients.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The media type is neither MessagePack nor JSON.
    #[error("Content-Type {content_type:?} is not spoken here; send {MSGPACK} or {JSON}")]
    ContentType {
        /// The media type that was sent.
        content_type: String,
    },
    /// The bytes are not a body of this type.
    #[error("the body is not valid {format}: {reason}")]
    Malformed {
        /// What the bytes were read as.
        format: &'static str,
        /// What the decoder found.
        reason: String,
    },
    /// Bytes follow the body.
    #[error("{count} bytes follow the body; send exactly one map")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The top level is not a map.
    #[error("the body must be a map with named fields")]
    NotAMap,
    /// A request has a field that this version does not know.
    #[error("unknown field {path:?}; check the spelling, or the host is older than the client")]
    UnknownField {
        /// The field with its parents, joined by dots.
        path: String,
    },
}

/// A value could not be written.
#[derive(Debug, thiserror::Error)]
#[error("encode {type_name} as {format}")]
pub struct EncodeError {
    /// The Rust type.
    pub type_name: &'static str,
    /// The format that was asked for.
    pub format: &'static str,
    /// What the encoder said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Writes `value` as a MessagePack map with named fields.
///
/// # Errors
/// [`EncodeError`] when the value holds what MessagePack cannot say (a non-text map key).
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    rmp_serde::to_vec_named(value).map_err(|source| EncodeError {
        type_name: std::any::type_name::<T>(),
        format: "MessagePack",
        source: source.into(),
    })
}

/// Writes `value` in `format`.
///
/// # Errors
/// As [`encode`].
pub fn encode_as<T: Serialize + ?Sized>(format: Format, value: &T) -> Result<Vec<u8>, EncodeError> {
    match format {
        Format::MsgPack => encode(value),
        Format::Json => serde_json::to_vec(value).map_err(|source| EncodeError {
            type_name: std::any::type_name::<T>(),
            format: "JSON",
            source: source.into(),
        }),
    }
}

/// Reads a MessagePack body, ignoring fields that this version does not know (replies, events).
///
/// # Errors
/// [`DecodeError`] for anything that is not exactly one map of this type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    decode_msgpack(body, false)
}

/// Reads MessagePack bodies that follow each other, as [`decode`] does.
///
/// # Errors
/// [`DecodeError`] for the first that cannot be read.
pub fn decode_each<T: DeserializeOwned>(bodies: &[u8]) -> Result<Vec<T>, DecodeError> {
    let (mut all, mut rest) = (Vec::new(), bodies);
    while !rest.is_empty() {
        let malformed =
            |e: walk::WalkError| DecodeError::Malformed { format: "MessagePack", reason: e.to_string() };
        let after = walk::skip(rest).map_err(malformed)?;
        all.push(decode(&rest[..rest.len() - after.len()])?);
        rest = after;
    }
    Ok(all)
}

/// Reads a body in `format`, ignoring unknown fields.
///
/// # Errors
/// As [`decode`].
pub fn decode_as<T: DeserializeOwned>(format: Format, body: &[u8]) -> Result<T, DecodeError> {
    decode_inner(format, body, false)
}

/// Reads a request: an empty body is an empty map, an unknown field is an error that names it.
///
/// # Errors
/// [`DecodeError`], with the path of the first unknown field.
pub fn decode_request<T: DeserializeOwned>(format: Format, body: &[u8]) -> Result<T, DecodeError> {
    decode_inner(format, body, true)
}

fn decode_inner<T: DeserializeOwned>(format: Format, body: &[u8], strict: bool) -> Result<T, DecodeError> {
    const EMPTY_MAP: &[u8] = &[0x80];
    match format {
        Format::MsgPack => decode_msgpack(if body.is_empty() { EMPTY_MAP } else { body }, strict),
        Format::Json => decode_json(if body.is_empty() { b"{}" } else { body }, strict),
    }
}

fn decode_msgpack<T: DeserializeOwned>(body: &[u8], strict: bool) -> Result<T, DecodeError> {
    match body.first() {
        Some(0x80..=0x8f | 0xde | 0xdf) => {}
        _ => return Err(DecodeError::NotAMap),
    }
    let malformed = |reason: String| DecodeError::Malformed { format: "MessagePack", reason };
    match walk::skip(body).map_err(|e| malformed(e.to_string()))?.len() {
        0 => {}
        count => return Err(DecodeError::TrailingBytes { count }),
    }
    let mut rest = body;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(MAX_DEPTH);
    with_unknown(&mut deserializer, strict, |e: rmp_serde::decode::Error| malformed(e.to_string()))
}

fn decode_json<T: DeserializeOwned>(body: &[u8], strict: bool) -> Result<T, DecodeError> {
    if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(DecodeError::NotAMap);
    }
    let malformed = |e: serde_json::Error| DecodeError::Malformed { format: "JSON", reason: e.to_string() };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = with_unknown(&mut deserializer, strict, malformed)?;
    deserializer.end().map_err(malformed)?;
    Ok(value)
}

fn with_unknown<'de, D, T, E>(deserializer: D, strict: bool, wrap: E) -> Result<T, DecodeError>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
    E: Fn(D::Error) -> DecodeError,
{
    let mut unknown = None;
    let value = serde_ignored::deserialize(deserializer, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    })
    .map_err(wrap)?;
    match unknown {
        Some(path) if strict => Err(DecodeError::UnknownField { path: path.replace("?.", "") }),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests;
