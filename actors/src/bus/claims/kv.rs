//! A bucket as drover needs it: compare-and-set over values, deletes and expiry markers alike, with
//! a TTL on any write. The client's own bucket drops the TTL of a create over a marker.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy, pull};
use async_nats::jetstream::context::{GetStreamError, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

const OPERATION: &str = "KV-Operation";
/// The server's note on a marker that it wrote itself.
const MARKER: &str = "Nats-Marker-Reason";
/// How long a delete by us is remembered.
const TOMBSTONE: Duration = Duration::from_secs(3600);

/// A bucket did not answer.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The bucket's stream could not be addressed.
    #[error("find the bucket")]
    Bucket(#[source] GetStreamError),
    /// The entry could not be read.
    #[error("read the entry")]
    Get(#[source] LastRawMessageError),
    /// The entry could not be written.
    #[error("write the entry")]
    Put(#[source] PublishError),
    /// The entries could not be read one after another.
    #[error("read the entries in order")]
    Scan(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The last message of a key.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The value; `None` for a key that is absent, deleted or expired.
    pub value: Option<Bytes>,
    /// What a write states to follow this; 0 for nothing at all.
    pub revision: u64,
    headers: HeaderMap,
}

impl Entry {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.as_str())
    }
}

/// What came of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Done {
        revision: u64,
    },
    /// The key has another revision.
    Lost,
}

/// A message of a bucket holds a value, and does not tell that one went.
pub(crate) fn is_value(headers: Option<&HeaderMap>) -> bool {
    headers.is_none_or(|headers| headers.get(OPERATION).is_none() && headers.get(MARKER).is_none())
}

#[derive(Debug, Clone)]
pub(crate) struct Kv {
    js: Context,
    stream: String,
    prefix: String,
}

impl Kv {
    pub(crate) fn new(js: Context, bucket: &str) -> Self {
        Self { js, stream: format!("KV_{bucket}"), prefix: format!("$KV.{bucket}.") }
    }

    /// The descriptions of a bucket of objects.
    pub(crate) fn of_objects(js: Context, bucket: &str) -> Self {
        Self { js, stream: format!("OBJ_{bucket}"), prefix: format!("$O.{bucket}.M.") }
    }

    fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// From the stream's leader: a replica may lag behind a write that was acknowledged.
    pub(crate) async fn get(&self, key: &str) -> Result<Entry, KvError> {
        let stream = self.js.get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(KvError::Bucket)?;
        match stream.get_last_raw_message_by_subject(&self.subject(key)).await {
            Ok(message) => {
                let is_value = is_value(Some(&message.headers));
                Ok(Entry {
                    value: is_value.then_some(message.payload),
                    revision: message.sequence,
                    headers: message.headers,
                })
            }
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(Entry { value: None, revision: 0, headers: HeaderMap::new() })
            }
            Err(e) => Err(KvError::Get(e)),
        }
    }

    /// The key that a message of the bucket is about.
    pub(crate) fn key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(self.prefix.as_str())
    }

    /// The last message of each key that matches `keys`, and then those that follow.
    pub(crate) async fn latest(&self, keys: &str) -> Result<Consumer<pull::OrderedConfig>, KvError> {
        let stream = self.js.get_stream(&self.stream).await.map_err(KvError::Bucket)?;
        let config = pull::OrderedConfig {
            filter_subject: self.subject(keys),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..pull::OrderedConfig::default()
        };
        stream.create_consumer(config).await.map_err(|e| KvError::Scan(e.into()))
    }

    /// Goes once over the values of keys that match `keys`, and keeps what `pick` makes of them: memory is set
    /// aside for that only.
    pub(crate) async fn scan<T>(
        &self,
        keys: &str,
        mut pick: impl FnMut(&str, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, KvError> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| KvError::Scan(e);
        let mut consumer = self.latest(keys).await?;
        let waiting = consumer.info().await.map_err(|e| failed(e.into()))?.num_pending;
        let mut kept = Vec::new();
        if waiting == 0 {
            return Ok(kept);
        }
        let mut messages = consumer.messages().await.map_err(|e| failed(e.into()))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|e| failed(e.into()))?;
            let last = message.info().map_err(failed)?.pending == 0;
            if let Some(key) = self.key(&message.subject)
                && is_value(message.headers.as_ref())
                && let Some(found) = pick(key, &message.payload)
            {
                kept.push(found);
            }
            if last {
                break;
            }
        }
        Ok(kept)
    }

    /// Keys that match `keys`, of values and of what went, as far as `pick` takes them.
    pub(crate) async fn keys<T>(
        &self,
        keys: &str,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<Vec<T>, KvError> {
        let stream = self.js.get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(KvError::Bucket)?;
        let info = stream.info_with_subjects(self.subject(keys)).await;
        let mut info = info.map_err(|e| KvError::Scan(e.into()))?;
        let mut kept = Vec::new();
        while let Some((subject, _)) = info.try_next().await.map_err(|e| KvError::Scan(e.into()))? {
            kept.extend(self.key(&subject).and_then(&mut pick));
        }
        Ok(kept)
    }

    pub(crate) async fn put(
        &self,
        key: &str,
        value: Bytes,
        revision: u64,
        ttl: Option<Duration>,
        headers: &[(&'static str, &str)],
    ) -> Result<Written, KvError> {
        let mut message = PublishMessage::build().payload(value.clone());
        for (name, value) in headers {
            message = message.header(*name, *value);
        }
        self.write(key, message, revision, ttl, Some(&value)).await
    }

    /// Removes the value; the tombstone goes by itself.
    pub(crate) async fn purge(&self, key: &str, revision: u64) -> Result<Written, KvError> {
        let message = PublishMessage::build().header(OPERATION, "PURGE").header("Nats-Rollup", "sub");
        self.write(key, message, revision, Some(TOMBSTONE), None).await
    }

    async fn write(
        &self,
        key: &str,
        mut message: PublishMessage,
        revision: u64,
        ttl: Option<Duration>,
        value: Option<&Bytes>,
    ) -> Result<Written, KvError> {
        message = message.header(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string().as_str());
        if let Some(ttl) = ttl {
            // Whole seconds, at least one: what the server takes.
            message = message.header(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)).as_str());
        }
        let sent = match self.js.send_publish(self.subject(key), message).await {
            Ok(ack) => ack.await,
            Err(e) => Err(e),
        };
        match sent {
            Ok(ack) => Ok(Written::Done { revision: ack.sequence }),
            Err(e) if e.kind() == PublishErrorKind::WrongLastSequence => Ok(Written::Lost),
            Err(e) => self.after_unknown(key, revision, value, e).await,
        }
    }

    /// The answer was lost: what is there now tells whether the write happened.
    async fn after_unknown(
        &self,
        key: &str,
        revision: u64,
        value: Option<&Bytes>,
        error: PublishError,
    ) -> Result<Written, KvError> {
        let Ok(now) = self.get(key).await else { return Err(KvError::Put(error)) };
        if now.revision > revision && now.value.as_ref() == value {
            return Ok(Written::Done { revision: now.revision });
        }
        // Unchanged: the write may still be on its way, so it is not said to be lost.
        if now.revision == revision { Err(KvError::Put(error)) } else { Ok(Written::Lost) }
    }
}
