//! Verbs that change nothing of the guest, to try the frames of a connection with.

use std::sync::Arc;

use bytes::Bytes;
use drover_schemas::guest::{AgentHello, Channel, EventAck, GuestKind, MAX_STREAMS, Request};
use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Greets, Outbox, Serves, Stream};
use crate::dedupe::Outcome;
use crate::facts::FIRST_CREDIT;
use crate::release::Release;

/// What `flood` sends at the most, in bytes.
const FLOOD: usize = 1024 * 1024;

/// `echo` sends what it gets, `flood` as much as it may, `hang` nothing; other verbs are refused.
#[derive(Debug)]
pub struct Echo(Arc<Semaphore>);

impl Default for Echo {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(2 * MAX_STREAMS)))
    }
}

async fn send(stream: &Stream, ch: Channel, mut bytes: Bytes) {
    while !bytes.is_empty() {
        let room = usize::try_from(stream.room(ch).await).unwrap_or(usize::MAX);
        stream.send(ch, bytes.split_to(bytes.len().min(room))).await;
    }
}

async fn work(stream: &Stream, verb: &str) -> Outcome {
    match verb {
        "echo" => {
            while let Some(bytes) = stream.recv().await {
                send(stream, Channel::Stdout, bytes).await;
            }
            Ok(Bytes::new())
        }
        "flood" => {
            for _ in 0..FLOOD / 4096 {
                send(stream, Channel::Data, Bytes::from_static(&[7; 4096])).await;
            }
            Ok(Bytes::new())
        }
        "hang" => std::future::pending().await,
        _ => Err(ErrorBody::new(ErrorCode::Unsupported, "no such verb")),
    }
}

impl Greets for Arc<Echo> {
    type Agent = Echo;

    fn release(&self) -> &'static Release {
        &Release::THIS
    }

    fn greeting(&self, proto: u32) -> Option<AgentHello> {
        Some(AgentHello {
            proto,
            version: String::new(),
            boot_id: String::new(),
            instance: String::new(),
            os: String::new(),
            arch: String::new(),
            kernel: String::new(),
            hostname: String::new(),
            capabilities: Vec::new(),
            allowed: None,
            guest: GuestKind::Process,
            stream_credit: FIRST_CREDIT,
            max_streams: 64,
        })
    }

    async fn agent(&self, _: &Arc<Outbox>) -> Self {
        Self::clone(self)
    }

    fn moved(&self) {}
}

impl Serves for Echo {
    type Events = ();

    fn takes(&self, verb: &str) -> Option<Channel> {
        (verb == "echo").then_some(Channel::Stdin)
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    async fn run(self: &Arc<Self>, stream: &Stream, request: &Request) -> Outcome {
        tokio::select! {
            biased;
            ending = stream.ending() => Err(ending.error()),
            outcome = work(stream, &request.verb) => outcome,
        }
    }

    fn events(&self, _: &Arc<Outbox>) {}

    fn acknowledge(&self, _: &EventAck) {}

    fn awake(&self) {}

    fn idle(&self) {}
}
