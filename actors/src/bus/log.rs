//! Reads of the stream of events that leave nothing behind on the server: one request for many messages.
//!
//! The server answers a batched direct get from the stream itself, without a consumer. In a cluster a replica may
//! answer that has not got the newest messages yet: a page then ends early, and the next one goes on from there.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};

/// How long the server may take for the next message.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages in one answer: fewer than a subscription holds, or they would be lost.
const BATCH: usize = 200;

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At this position of the stream.
    Position(u64),
    /// With what was stored at or after this time.
    UnixMs(u64),
}

/// A message of the stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its position.
    pub position: u64,
    /// Its subject.
    pub subject: String,
    /// Its body.
    pub body: Bytes,
}

/// Messages in order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The messages.
    pub messages: Vec<Stored>,
    /// There were no more when they were read.
    pub end: bool,
}

/// The stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The request did not leave.
    #[error("ask for events: the connection to the bus is closed")]
    Ask,
    /// Nobody answers for the stream.
    #[error("the stream is not there, or does not allow direct reads")]
    NoStream,
    /// The answer did not come, or broke off.
    #[error("the bus did not answer in time")]
    Silent,
    /// The answer is not one that we know.
    #[error("the bus answered {status}")]
    Status {
        /// What it said.
        status: String,
    },
    /// The consumer of last events could not be made.
    #[error("make a consumer of the last events")]
    Consumer {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[derive(Serialize)]
struct BatchRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    next_by_subj: &'a str,
    batch: usize,
    max_bytes: usize,
}

/// Reads messages below a filter: at most `limit`, and about `max_bytes`, but one at least.
///
/// # Errors
/// [`ReadError`].
pub async fn page(
    client: &Client,
    stream: &str,
    filter: &str,
    from: From,
    limit: usize,
    max_bytes: usize,
) -> Result<Page, ReadError> {
    let request = BatchRequest {
        seq: match from {
            From::Position(position) => Some(position.max(1)),
            From::UnixMs(_) => None,
        },
        start_time: match from {
            From::Position(_) => None,
            From::UnixMs(at) => Some(crate::cloud_event::rfc3339(at)),
        },
        next_by_subj: filter,
        batch: limit.clamp(1, BATCH),
        max_bytes: max_bytes.max(1),
    };
    let body = serde_json::to_vec(&request).map_err(|e| ReadError::Status { status: e.to_string() })?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| ReadError::Ask)?;
    let api = format!("$JS.API.DIRECT.GET.{stream}");
    client.publish_with_reply(api, inbox, body.into()).await.map_err(|_| ReadError::Ask)?;
    collect(&mut answers).await
}

async fn collect(answers: &mut Subscriber) -> Result<Page, ReadError> {
    let mut page = Page::default();
    loop {
        let message = timeout(PATIENCE, answers.next()).await;
        let message = message.ok().flatten().ok_or(ReadError::Silent)?;
        let pending = number(message.headers.as_ref(), "Nats-Num-Pending");
        match message.status {
            Some(StatusCode::NO_RESPONDERS) => return Err(ReadError::NoStream),
            Some(StatusCode::NOT_FOUND) => {
                page.end = true;
                return Ok(page);
            }
            Some(status) if status.as_u16() == 204 => {
                page.end = pending == Some(0);
                return Ok(page);
            }
            Some(status) if !status.is_success() => {
                let words = message.description.unwrap_or_default();
                return Err(ReadError::Status { status: format!("{status} {words}").trim().to_owned() });
            }
            _ => page.messages.extend(stored(message)),
        }
    }
}

fn stored(message: Message) -> Option<Stored> {
    let headers = message.headers.as_ref()?;
    let position = number(Some(headers), "Nats-Sequence")?;
    let subject = headers.get("Nats-Subject")?.to_string();
    Some(Stored { position, subject, body: message.payload })
}

fn number(headers: Option<&HeaderMap>, name: &str) -> Option<u64> {
    headers?.get(name)?.as_str().parse().ok()
}

/// The last message of each subject below a filter, in the order of the stream, from behind `after` on; and
/// whether there are more. The server looks at all of them for each page.
///
/// # Errors
/// [`ReadError`].
pub async fn last_of_each(
    client: &Client,
    stream: &str,
    filter: &str,
    after: u64,
    limit: usize,
    max_bytes: usize,
) -> Result<Page, ReadError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| ReadError::Consumer { source };
    let js = async_nats::jetstream::new(client.clone());
    let stream = js.get_stream_no_info(stream).await.map_err(|e| failed(e.into()))?;
    let consumer = stream
        .create_consumer(Config {
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: filter.to_owned(),
            inactive_threshold: Duration::from_secs(10),
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        })
        .await
        .map_err(|e| failed(e.into()))?;
    let mut page = Page { messages: Vec::new(), end: true };
    let (mut left, mut bytes) = (consumer.cached_info().num_pending, 0);
    let until = Instant::now() + PATIENCE * 2;
    'pages: while left > 0 {
        let fetched = consumer.fetch().max_messages(BATCH).messages().await;
        let mut messages = fetched.map_err(|e| failed(e.into()))?;
        let before = left;
        while let Some(message) = timeout_at(until, messages.next()).await.map_err(|_| ReadError::Silent)? {
            let message = message.map_err(failed)?;
            let info = message.info().map_err(failed)?;
            left = info.pending;
            if info.stream_sequence <= after {
                continue;
            }
            if page.messages.len() >= limit || bytes > max_bytes {
                page.end = false;
                break 'pages;
            }
            bytes += message.payload.len();
            let position = info.stream_sequence;
            page.messages.push(Stored {
                position,
                subject: message.subject.to_string(),
                body: message.payload.clone(),
            });
        }
        if left == before {
            break;
        }
    }
    let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    Ok(page)
}
