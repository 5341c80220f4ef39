//! `drover bench`: what drover costs beside its limit, in one run on one machine.
//!
//! Each row measures drover and, where it can be had from here, the limit by turns, so that a busy
//! machine slows both. Numbers are printed with the host that gave them; nothing here is a test.

mod guest;
mod host;
mod report;
mod sample;

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::VmSpec;
use drover_schemas::body::vm::{ChangeReply, ChangeRequest, CreateRequest, Wait};
use indicatif::ProgressBar;

use crate::client::{CallOptions, Client, ClientError};
pub use report::Report;
use report::Row;

const CREATE_DEADLINE: Duration = Duration::from_secs(100);
const DELETE_DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure; all of it if left out.
    #[arg(value_enum, value_name = "ROWS")]
    rows: Vec<What>,
    /// Template of the VMs that are made for it; they are deleted at the end.
    #[arg(long, short, value_name = "TEMPLATE")]
    template: Option<Token>,
    /// How many calls give a percentile.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    calls: usize,
    /// How many VMs are created one after another.
    #[arg(long, default_value_t = 3, value_name = "N")]
    creates: usize,
    /// Size of the file that is copied, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    file: u64,
    /// Process of the daemon, for its memory; it must run on this machine.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// As -o json.
    #[arg(long)]
    pub json: bool,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// `get` over the bus against a bare NATS echo of the same size.
    Get,
    /// From create to an agent that answers.
    Create,
    /// `exec` of `true`.
    Exec,
    /// A file to and from the guest.
    Files,
    /// Memory of the daemon.
    Memory,
}

impl BenchArgs {
    fn wants(&self, what: What) -> bool {
        self.rows.is_empty() || self.rows.contains(&what)
    }
}

/// Measures on `host`.
///
/// # Errors
/// The first call that failed; the VMs made for it are deleted all the same.
pub async fn run(args: &BenchArgs, client: &Client, host: &Token) -> Result<Report, ClientError> {
    let mut report = Report { host: host::describe(client, host).await?, rows: Vec::new() };
    if args.wants(What::Memory) {
        report.rows.push(host::memory(client, host, args.pid).await?);
    }
    if ![What::Get, What::Create, What::Exec, What::Files].into_iter().any(|what| args.wants(what)) {
        return Ok(report);
    }
    let creates = if args.wants(What::Create) { args.creates.max(1) } else { 1 };
    let mut created = Vec::new();
    let outcome = with_vms(args, client, creates, &mut created, &mut report.rows).await;
    for name in &created {
        let request = ChangeRequest::default();
        let deleted: Result<ChangeReply, _> =
            client.vm(name, "delete", &request, CallOptions::change(DELETE_DEADLINE)).await;
        if let Err(error) = deleted {
            tracing::warn!(vm = %name, error = %drover_actors::chain(&error), "a VM of the bench is left");
        }
    }
    outcome.map(|()| report)
}

async fn with_vms(
    args: &BenchArgs,
    client: &Client,
    creates: usize,
    created: &mut Vec<Token>,
    rows: &mut Vec<Row>,
) -> Result<(), ClientError> {
    let mut times = sample::Sample::default();
    for _ in 0..creates {
        let name = name()?;
        let spec = VmSpec { template: args.template.clone(), ..VmSpec::default() };
        let request = CreateRequest { name: name.clone(), spec, wait: Some(Wait::Agent) };
        // Noted before it is asked for: a create that is given up may still come about.
        created.push(name);
        times.time(client.create(&request, CallOptions::change(CREATE_DEADLINE))).await?;
    }
    if args.wants(What::Create) {
        rows.push(
            Row::new("create to agent ready", "ms", times.percentiles(1e3))
                .against("the same VMM started by hand, same agent awaited", None)
                .goal("+ 15 ms"),
        );
    }
    let Some(name) = created.first() else { return Ok(()) };
    if args.wants(What::Get) {
        rows.push(get(client, name, args.calls).await?);
    }
    if args.wants(What::Exec) {
        rows.push(guest::exec(client, name, (args.calls / 20).max(20)).await?);
    }
    if args.wants(What::Files) {
        rows.extend(guest::files(client, name, args.file << 20, &ProgressBar::hidden()).await?);
    }
    Ok(())
}

/// `get` and a bare echo by turns. The echo answers from a connection of its own, as a host does,
/// with as many bytes as `get` does.
async fn get(client: &Client, name: &Token, calls: usize) -> Result<Row, ClientError> {
    let subject = client.vm_subject(name, "get")?;
    let body: bytes::Bytes = drover_schemas::codec::encode(&Empty {}).map_err(ClientError::Encode)?.into();
    let options = CallOptions::read(Duration::from_secs(5));
    let reply = client.call_bytes(&subject, body.clone(), options).await?;
    let echo = host::Echo::start(client, reply.clone()).await?;
    let (mut drover, mut bare) = (sample::Sample::default(), sample::Sample::default());
    for _ in 0..calls.max(1) {
        drover.time(client.call_bytes(&subject, body.clone(), options)).await?;
        bare.time(echo.ask(body.clone())).await?;
    }
    Ok(Row::new(&format!("get, {} bytes", reply.len()), "us", drover.percentiles(1e6))
        .against("bare NATS request and echo, same size", Some(bare.percentiles(1e6)))
        .goal("1.3x at p50"))
}

fn name() -> Result<Token, ClientError> {
    let text = format!("bench-{:08x}", rand::random::<u32>());
    Token::new(&text).map_err(|e| {
        drover_schemas::ErrorBody::new(drover_schemas::ErrorCode::Internal, e.to_string()).into()
    })
}
