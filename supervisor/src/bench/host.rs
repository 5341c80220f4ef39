//! Rows without a guest: the host's description and the bare bus.

use std::time::Duration;

use bytes::Bytes;
use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::host::HostInfo;
use drover_schemas::subject::Subject;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;

use super::report::{Goal, HostDescription, Row};
use super::sample::Sample;
use crate::client::{CallOptions, Client, ClientError};

/// The host and the machine that measures.
pub fn describe(client: &Client, info: &HostInfo) -> HostDescription {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let load = read("/proc/loadavg");
    HostDescription {
        host: info.host.to_string(),
        drover: info.version.clone(),
        debug_build: cfg!(debug_assertions),
        cpu: model.map_or_else(|| "an unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        load: load.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default(),
        kernel: info.kernel.clone(),
        vmm: info.vmm.version.clone(),
        emulated: info.vmm.emulated,
        guests: None,
        nats: client.nats().server_info().version,
    }
}

/// A `get` that is asked again and again.
pub struct GetCall<'a> {
    client: &'a Client,
    subject: Subject,
    /// The request.
    pub body: Bytes,
}

impl<'a> GetCall<'a> {
    /// Of VM `name`.
    pub fn new(client: &'a Client, name: &Token) -> Result<Self, ClientError> {
        let body = drover_schemas::codec::encode(&Empty {}).map_err(ClientError::Encode)?.into();
        Ok(Self { client, subject: client.vm_subject(name, "get")?, body })
    }

    /// One call; gives the reply.
    pub async fn ask(&self) -> Result<Bytes, ClientError> {
        let options = CallOptions::read(Duration::from_secs(5));
        self.client.call_bytes(&self.subject, self.body.clone(), options).await
    }
}

/// `get` and a bare echo by turns. The echo answers from a connection of its own, as a host does,
/// with as many bytes as `get` does.
pub async fn get(client: &Client, name: &Token, calls: usize) -> Result<Row, ClientError> {
    let call = GetCall::new(client, name)?;
    let reply = call.ask().await?;
    let echo = Echo::start(client, reply.clone()).await?;
    let (mut drover, mut bare) = (Sample::default(), Sample::default());
    for _ in 0..calls.max(1) {
        drover.time(call.ask()).await?;
        bare.time(echo.ask(call.body.clone())).await?;
    }
    Ok(Row::new(&format!("get, {} bytes", reply.len()), "us", drover.percentiles(1e6))
        .against("a bare NATS request and echo of the same size", Ok(bare.percentiles(1e6)))
        .goal(Goal::RatioAtMost(1.3)))
}

/// A responder that knows nothing of drover.
pub struct Echo {
    client: Client,
    subject: String,
    task: JoinHandle<()>,
}

impl Echo {
    /// Answers every request with `reply`.
    pub async fn start(client: &Client, reply: Bytes) -> Result<Self, ClientError> {
        let own = client.for_bulk().await?;
        let subject = client.nats().new_inbox();
        let mut requests = own
            .nats()
            .subscribe(subject.clone())
            .await
            .map_err(|source| ClientError::Subscribe { subject: subject.clone(), source })?;
        // A request over this connection and back is a proof that the server knows the subscription.
        let nats = own.nats().clone();
        let task = tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                let Some(inbox) = message.reply else { continue };
                if nats.publish(inbox, reply.clone()).await.is_err() {
                    break;
                }
            }
        });
        let echo = Self { client: client.clone(), subject, task };
        ask(own.nats(), &echo.subject, Bytes::new()).await?;
        Ok(echo)
    }

    /// One request.
    pub async fn ask(&self, body: Bytes) -> Result<(), ClientError> {
        ask(self.client.nats(), &self.subject, body).await
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(nats: &async_nats::Client, subject: &str, body: Bytes) -> Result<(), ClientError> {
    match nats.request(subject.to_owned(), body).await {
        Ok(_) => Ok(()),
        Err(source) => Err(ClientError::Send { subject: subject.to_owned(), source: Box::new(source) }),
    }
}
