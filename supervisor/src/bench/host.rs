//! Rows without a guest: the host's description, its memory, and the bare bus.

use std::time::Duration;

use bytes::Bytes;
use drover_schemas::{ErrorBody, ErrorCode, Token};
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;

use super::report::{HostDescription, Row};
use super::sample::Percentiles;
use crate::client::{Client, ClientError};

const DEADLINE: Duration = Duration::from_secs(10);

/// The host and the machine that measures.
pub async fn describe(client: &Client, host: &Token) -> Result<HostDescription, ClientError> {
    let info = client.host_info(host, DEADLINE).await?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(HostDescription {
        host: info.host.to_string(),
        drover: info.version,
        cpu: model.map_or_else(|| "an unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        kernel: info.kernel,
        vmm: info.vmm.version,
        emulated: info.vmm.emulated,
        nats: client.nats().server_info().version,
    })
}

/// Resident memory of the daemon, by VM where it has any.
pub async fn memory(client: &Client, host: &Token, pid: Option<u32>) -> Result<Row, ClientError> {
    let info = client.host_info(host, DEADLINE).await?;
    let vms = info.capacity.vms;
    let kib = pid.map(resident_kib).transpose()?;
    let value = Percentiles {
        p50: kib.unwrap_or(0) as f64,
        p99: kib.unwrap_or(0) as f64,
        count: usize::from(kib.is_some()),
    };
    let what = match (pid, vms) {
        (None, _) => "memory of the daemon: give --pid".to_owned(),
        (Some(_), vms) => format!("memory of the daemon with {vms} VMs"),
    };
    Ok(Row::new(&what, "KiB", value).goal("64 KiB for each idle VM"))
}

fn resident_kib(pid: u32) -> Result<u64, ClientError> {
    let failed = |reason: String| {
        let text = format!("the memory of process {pid} cannot be read: {reason}");
        ClientError::from(ErrorBody::new(ErrorCode::InvalidArgument, text))
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| failed(e.to_string()))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| failed("it has no VmRSS".to_owned()))
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
