//! The verbs that change a VM.

use std::time::Duration;

use drover_schemas::body::vm::{ChangeReply, ChangeRequest, GrowRequest, ShutdownRequest, StopRequest, Wait};
use drover_schemas::size::ByteSize;
use drover_schemas::{RequestId, Token, VmId};
use serde::Serialize;

use super::super::Global;
use super::super::exit::CliError;
use super::super::progress::watched;
use super::show;
use crate::client::{CallOptions, Client};

/// Time for a verb whose reply comes when it is done.
const DEADLINE: Duration = Duration::from_secs(60);
/// Time on top of what the host itself may wait.
const MARGIN: Duration = Duration::from_secs(10);

/// What every change can carry.
#[derive(Debug, clap::Args)]
pub struct Conditions {
    /// The VM.
    name: Token,
    /// Name of the request; a repetition under the same name has no second effect.
    #[arg(long, value_name = "ULID")]
    request_id: Option<RequestId>,
    /// Only if the VM has this id.
    #[arg(long, value_name = "ULID")]
    if_vm_id: Option<VmId>,
    /// Only if its spec has this revision.
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
}

/// Arguments of a verb without parameters of its own.
#[derive(Debug, clap::Args)]
pub struct PlainArgs {
    #[command(flatten)]
    conditions: Conditions,
    /// Wait until the guest runs, or until its agent answers.
    #[arg(long, value_enum)]
    wait: Option<WaitFor>,
}

/// Arguments of `shutdown`.
#[derive(Debug, clap::Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    conditions: Conditions,
    /// Seconds that the guest may take; 60 if left out.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    conditions: Conditions,
    /// Seconds that the guest may take before it is forced; 10 if left out.
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    grace: Option<u64>,
    /// Do not ask the guest, and end an operation that is in the way.
    #[arg(long)]
    force: bool,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WaitFor {
    /// Until the guest runs.
    Running,
    /// Until the guest agent answers.
    Agent,
}

impl From<WaitFor> for Wait {
    fn from(wait: WaitFor) -> Self {
        match wait {
            WaitFor::Running => Self::Running,
            WaitFor::Agent => Self::Agent,
        }
    }
}

impl Conditions {
    pub(super) const fn name(&self) -> &Token {
        &self.name
    }

    /// The VM's id and revision, if the change is only meant for these.
    pub(super) const fn expected(&self) -> (Option<VmId>, Option<u64>) {
        (self.if_vm_id, self.if_revision)
    }
}

impl PlainArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.conditions.name
    }
}

impl ShutdownArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.conditions.name
    }
}

impl StopArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.conditions.name
    }
}

pub(super) async fn plain(
    verb: &str,
    args: &PlainArgs,
    client: &Client,
    global: &Global,
) -> Result<(), CliError> {
    let request = ChangeRequest {
        if_vm_id: args.conditions.if_vm_id,
        if_revision: args.conditions.if_revision,
        wait: args.wait.map(Wait::from),
    };
    let usual = if args.wait.is_some() { longest_wait() } else { DEADLINE };
    change(verb, &args.conditions, &request, usual, client, global).await
}

pub(super) async fn shutdown(args: &ShutdownArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let request = ShutdownRequest {
        if_vm_id: args.conditions.if_vm_id,
        if_revision: args.conditions.if_revision,
        timeout_ms: args.timeout.map(|seconds| seconds.saturating_mul(1_000)),
    };
    let usual = Duration::from_secs(args.timeout.unwrap_or(60)) + MARGIN;
    change("shutdown", &args.conditions, &request, usual, client, global).await
}

pub(super) async fn stop(args: &StopArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let request = StopRequest {
        if_vm_id: args.conditions.if_vm_id,
        if_revision: args.conditions.if_revision,
        grace_ms: args.grace.map(|seconds| seconds.saturating_mul(1_000)),
        force: args.force,
    };
    let usual = Duration::from_secs(args.grace.unwrap_or(10)) + DEADLINE;
    change("stop", &args.conditions, &request, usual, client, global).await
}

/// A change that is made at once, or not; `request` has its conditions.
pub(super) async fn at_once<Q: Serialize + Sync>(
    verb: &str,
    conditions: &Conditions,
    request: &Q,
    client: &Client,
    global: &Global,
) -> Result<(), CliError> {
    change(verb, conditions, request, DEADLINE, client, global).await
}

/// A disk becomes longer.
pub(super) async fn grow(
    conditions: &Conditions,
    disk: &Token,
    size: ByteSize,
    client: &Client,
    global: &Global,
) -> Result<(), CliError> {
    let (if_vm_id, if_revision) = conditions.expected();
    let request = GrowRequest { if_vm_id, if_revision, disk: disk.clone(), size_bytes: size };
    let reply = asked("grow", conditions, &request, DEADLINE, client, global).await?;
    global.output.print(&reply, |reply| {
        let already = if reply.already { " already" } else { "" };
        format!("disk {disk} of {} has {size}{already}", reply.vm.name)
    })
}

/// The longest time that a `wait` may take, with time for the way.
pub(super) fn longest_wait() -> Duration {
    Duration::from_millis(drover_schemas::body::vm::MAX_WAIT_MS) + MARGIN
}

async fn change<Q: Serialize + Sync>(
    verb: &str,
    conditions: &Conditions,
    request: &Q,
    usual: Duration,
    client: &Client,
    global: &Global,
) -> Result<(), CliError> {
    let reply = asked(verb, conditions, request, usual, client, global).await?;
    global.output.print(&reply, |reply| show::change(verb, reply))
}

async fn asked<Q: Serialize + Sync>(
    verb: &str,
    conditions: &Conditions,
    request: &Q,
    usual: Duration,
    client: &Client,
    global: &Global,
) -> Result<ChangeReply, CliError> {
    let options = options(conditions.request_id, global.deadline(usual));
    let name = &conditions.name;
    let call = client.vm::<_, ChangeReply>(name, verb, request, options);
    Ok(watched(client, name, &format!("{verb} {name}"), call).await?)
}

/// The options of a change under the caller's id, or a new one.
pub(super) fn options(request_id: Option<RequestId>, deadline: Duration) -> CallOptions {
    CallOptions { request_id: Some(request_id.unwrap_or_else(RequestId::generate)), deadline }
}
