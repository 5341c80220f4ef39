//! A bucket of objects, laid out as NATS's object store is: a description at `$O.<bucket>.M.<name>`, and the bytes in
//! chunks at `$O.<bucket>.C.<id>`.
//!
//! The client's own object store writes one chunk after another, leaves them behind where it fails, and replaces an
//! object whoever else does so too. Here several chunks are on their way at once, a description is compared and set, and
//! whoever writes knows the id beforehand, to take the chunks away.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use async_nats::jetstream::{self, Context, ErrorCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::claims::kv::{Kv, KvError, Written};

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 128 * 1024;
/// Chunks that are written, or read, before the first of them is looked at.
const AHEAD: usize = 16;
/// A server that is silent for longer does not come back to this object.
const STALL: Duration = Duration::from_secs(30);
/// A server that answers later has lost the request, or it is lost on the way.
const ANSWER: Duration = Duration::from_secs(10);
/// A reader that is gone is forgotten by the server after this.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// How a server says that there is no room: in its store, in the account, in the bucket.
const FULL: [ErrorCode; 4] = [
    ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ErrorCode::INSUFFICIENT_RESOURCES,
    ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ErrorCode::STREAM_STORE_FAILED,
];

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The bucket of objects did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// A description could not be read or written.
    #[error("read or write the description of the object {name}")]
    Describe {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: KvError,
    },
    /// A description is none.
    #[error("the description of the object {name} cannot be read")]
    Unreadable {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A chunk was not stored.
    #[error("store a chunk of the object")]
    Write(#[source] PublishError),
    /// A chunk did not come.
    #[error("read chunk {chunk} of the object {name}")]
    Read {
        /// The object.
        name: String,
        /// Which of them.
        chunk: usize,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Nothing came for too long.
    #[error("chunk {chunk} of the object {name} did not come within {} s", STALL.as_secs())]
    Stalled {
        /// The object.
        name: String,
        /// Which of them.
        chunk: usize,
    },
    /// Chunks could not be taken away.
    #[error("take chunks away")]
    Purge(#[source] BoxError),
}

impl ObjectError {
    /// The bus has no room for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let Self::Write(error) = self else { return false };
        let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<jetstream::Error>());
        source.is_some_and(|error| FULL.contains(&error.error_code()))
    }
}

/// The bucket.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    js: Context,
    bucket: String,
    descriptions: Kv,
}

impl Objects {
    pub(crate) fn new(client: async_nats::Client, bucket: &str) -> Self {
        let mut js = async_nats::jetstream::new(client);
        js.set_timeout(ANSWER);
        Self { descriptions: Kv::of_objects(js.clone(), bucket), js, bucket: bucket.to_owned() }
    }

    fn chunks(&self, id: &str) -> String {
        format!("$O.{}.C.{id}", self.bucket)
    }

    fn stream(&self) -> String {
        format!("OBJ_{}", self.bucket)
    }

    /// What an object is, if it is there, and the revision that a change of it states.
    pub(crate) async fn describe(&self, name: &str) -> Result<(Option<ObjectInfo>, u64), ObjectError> {
        let entry = self.descriptions.get(&URL_SAFE.encode(name)).await;
        let entry = entry.map_err(|source| ObjectError::Describe { name: name.to_owned(), source })?;
        let Some(value) = entry.value else { return Ok((None, entry.revision)) };
        let info: ObjectInfo = serde_json::from_slice(&value)
            .map_err(|source| ObjectError::Unreadable { name: name.to_owned(), source })?;
        Ok((Some(info).filter(|info| !info.deleted), entry.revision))
    }

    /// A description of what was written under `id`.
    pub(crate) fn info(&self, name: &str, id: &str, chunks: usize, size: u64, sha256: &[u8]) -> ObjectInfo {
        ObjectInfo {
            name: name.to_owned(),
            description: None,
            metadata: std::collections::HashMap::new(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(CHUNK) }),
            bucket: self.bucket.clone(),
            nuid: id.to_owned(),
            size: usize::try_from(size).unwrap_or(usize::MAX),
            chunks,
            modified: None,
            digest: Some(format!("SHA-256={}", URL_SAFE.encode(sha256))),
            deleted: false,
        }
    }

    /// Sets a description if nobody has since `revision`.
    pub(crate) async fn set(&self, info: ObjectInfo, revision: u64) -> Result<Written, ObjectError> {
        let info = ObjectInfo { modified: Some(async_nats::datetime::now()), ..info };
        let name = info.name.clone();
        let value = serde_json::to_vec(&info)
            .map_err(|source| ObjectError::Unreadable { name: name.clone(), source })?;
        let (key, headers) = (URL_SAFE.encode(&name), [("Nats-Rollup", "sub")]);
        let set = self.descriptions.put(&key, value.into(), revision, None, &headers).await;
        set.map_err(|source| ObjectError::Describe { name, source })
    }

    /// Says that an object is gone, if nobody has changed it since `revision`. Its chunks are still there.
    pub(crate) async fn delete(&self, info: ObjectInfo, revision: u64) -> Result<Written, ObjectError> {
        self.set(ObjectInfo { chunks: 0, size: 0, deleted: true, ..info }, revision).await
    }

    /// Stores chunks under `id` as they come and answers how many. An error leaves some behind: see [`Self::purge`].
    pub(crate) async fn write(
        &self,
        id: &str,
        mut bytes: mpsc::Receiver<Bytes>,
    ) -> Result<usize, ObjectError> {
        let subject = self.chunks(id);
        let mut acks = VecDeque::with_capacity(AHEAD);
        let mut chunks = 0;
        while let Some(chunk) = bytes.recv().await {
            if acks.len() >= AHEAD
                && let Some(first) = acks.pop_front()
            {
                stored(first).await?;
            }
            let sent = self.js.publish(subject.clone(), chunk).await;
            acks.push_back(sent.map_err(ObjectError::Write)?);
            chunks += 1;
        }
        for ack in acks {
            stored(ack).await?;
        }
        Ok(chunks)
    }

    /// Reads the chunks of an object in order into `to`; ends early if nobody takes them.
    pub(crate) async fn read(&self, info: &ObjectInfo, to: &mpsc::Sender<Bytes>) -> Result<(), ObjectError> {
        let failed = |chunk, source: BoxError| ObjectError::Read { name: info.name.clone(), chunk, source };
        let stream = self.js.get_stream_no_info(self.stream()).await.map_err(|e| failed(0, e.into()))?;
        let config = pull::Config {
            filter_subject: self.chunks(&info.nuid),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|e| failed(0, e.into()))?;
        let mut chunk = 0;
        while chunk < info.chunks {
            let wanted = AHEAD.min(info.chunks - chunk);
            let batch = consumer.fetch().max_messages(wanted).expires(STALL).messages().await;
            let mut batch = batch.map_err(|e| failed(chunk, e.into()))?;
            let before = chunk;
            while let Some(message) = batch.next().await {
                let message = message.map_err(|e| failed(chunk, e))?;
                chunk += 1;
                if to.send(message.message.payload).await.is_err() {
                    return Ok(());
                }
            }
            if chunk == before {
                return Err(ObjectError::Stalled { name: info.name.clone(), chunk });
            }
        }
        Ok(())
    }

    /// Takes the chunks of an id away.
    pub(crate) async fn purge(&self, id: &str) -> Result<(), ObjectError> {
        let stream = self.js.get_stream_no_info(self.stream()).await;
        let stream = stream.map_err(|e| ObjectError::Purge(e.into()))?;
        stream.purge().filter(self.chunks(id)).await.map_err(|e| ObjectError::Purge(e.into()))?;
        Ok(())
    }
}

async fn stored(ack: PublishAckFuture) -> Result<(), ObjectError> {
    ack.await.map(|_| ()).map_err(ObjectError::Write)
}
