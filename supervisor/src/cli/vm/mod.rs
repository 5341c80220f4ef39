//! `drover vm`.

mod accounts;
mod change;
mod console;
mod copy;
mod create;
mod disk;
mod egress;
mod exec;
mod folder;
mod forward;
mod guest;
mod limit;
mod look;
mod names;
mod network;
mod runs;
mod set;
mod show;
mod terminal;
mod transfer;
mod upgrade;

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{ExplainReply, LogSource, LogsReply, LogsRequest};
use drover_schemas::size::ByteSize;
use tokio::io::AsyncWriteExt as _;

use super::Global;
use super::exit::CliError;
use crate::client::CallOptions;

const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Verbs of VMs.
#[derive(Debug, clap::Subcommand)]
pub enum VmCommand {
    /// Create a VM and start it.
    Create(create::CreateArgs),
    /// List the VMs of the namespace.
    Ls,
    /// Show a VM.
    Get {
        /// The VM.
        name: Token,
    },
    /// Start a VM that is down.
    Start(change::PlainArgs),
    /// Ask the guest to switch off; it is never forced.
    Shutdown(change::ShutdownArgs),
    /// Stop a VM by the whole ladder, from asking to killing.
    Stop(change::StopArgs),
    /// Reboot the guest in the same VMM.
    Reboot(change::PlainArgs),
    /// Freeze the guest in memory.
    Pause(change::PlainArgs),
    /// Let a paused guest go on.
    Resume(change::PlainArgs),
    /// Ports of the host that lead to the guest: add, remove and list them.
    #[command(subcommand)]
    Forward(forward::ForwardCommand),
    /// What the guest may reach: allow, deny and list it.
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// Say how fast the guest may send and receive.
    Limit(limit::LimitArgs),
    /// Show what the guest sent and received, and what was refused of it.
    Stats {
        /// The VM.
        name: Token,
    },
    /// The VM's disks: make one longer, and list them.
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Stop a VM at once and remove everything of it.
    Rm(change::PlainArgs),
    /// Run a program in the guest.
    Exec(exec::ExecArgs),
    /// Programs that run in the guest by themselves, started by `exec --detach`.
    #[command(subcommand)]
    Runs(runs::RunsCommand),
    /// Say what system the guest is: kernel, CPUs, memory, disks, addresses.
    Info {
        /// The VM.
        name: Token,
    },
    /// Say how the guest is: what it has left, and failed services.
    Health {
        /// The VM.
        name: Token,
    },
    /// List the guest's processes.
    Ps(look::PsArgs),
    /// Copy a file to or from a guest.
    Cp(copy::CpArgs),
    /// Look at, list, remove and make names in a guest.
    #[command(subcommand)]
    File(names::FileCommand),
    /// Work that the guest does for its host.
    #[command(subcommand)]
    Guest(guest::GuestCommand),
    /// Users of the guest: make, remove and list them.
    #[command(subcommand)]
    User(accounts::UserCommand),
    /// SSH keys that log in to the guest: list, add, remove and set them.
    #[command(subcommand)]
    Keys(accounts::KeysCommand),
    /// Show the end of a log.
    Logs {
        /// The VM.
        name: Token,
        /// Which log.
        #[arg(long, value_enum, default_value = "console")]
        source: Source,
        /// At most this much, as 4KiB; 64KiB if left out, 256KiB at most.
        #[arg(long, value_name = "SIZE")]
        tail: Option<ByteSize>,
        /// Go on with what the console writes, until the VM is deleted or Ctrl-C.
        #[arg(long, short)]
        follow: bool,
    },
    /// Use the serial console; Ctrl-] leaves it.
    Console(console::ConsoleArgs),
    /// Say why a VM is as it is.
    Explain {
        /// The VM.
        name: Token,
    },
}

/// A log of a VM.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Source {
    /// The guest's serial console.
    Console,
    /// The VMM's own.
    Vmm,
}

impl VmCommand {
    /// The VM that the command is about, if it is about one.
    pub fn name(&self) -> Option<String> {
        let name = match self {
            Self::Create(args) => args.name(),
            Self::Ls => return None,
            Self::Get { name }
            | Self::Logs { name, .. }
            | Self::Explain { name }
            | Self::Stats { name }
            | Self::Info { name }
            | Self::Health { name } => name,
            Self::Ps(args) => args.name(),
            Self::Start(args)
            | Self::Reboot(args)
            | Self::Pause(args)
            | Self::Resume(args)
            | Self::Rm(args) => args.name(),
            Self::Shutdown(args) => args.name(),
            Self::Stop(args) => args.name(),
            Self::Forward(command) => command.name(),
            Self::Egress(command) => command.name(),
            Self::Limit(args) => args.name(),
            Self::Disk(command) => command.name(),
            Self::Exec(args) => args.name(),
            Self::Runs(command) => command.name(),
            Self::Console(args) => args.name(),
            Self::Cp(args) => return args.name(),
            Self::File(command) => command.name(),
            Self::Guest(command) => command.name(),
            Self::User(command) => command.name(),
            Self::Keys(command) => command.name(),
        };
        Some(name.to_string())
    }
}

pub(super) async fn run(command: &VmCommand, global: &Global) -> Result<u8, CliError> {
    let client = global.connect.connect().await?;
    let read = CallOptions::read(global.deadline(READ_DEADLINE));
    match command {
        VmCommand::Create(args) => create::run(args, &client, global).await?,
        VmCommand::Ls => {
            let vms = client.list(read.deadline).await?;
            global.output.print(&vms, |vms| show::list(vms))?;
        }
        VmCommand::Get { name } => {
            let vm: VmStatus = client.vm(name, "get", &Empty {}, read).await?;
            global.output.print(&vm, show::status)?;
        }
        VmCommand::Start(args) => change::plain("start", args, &client, global).await?,
        VmCommand::Shutdown(args) => change::shutdown(args, &client, global).await?,
        VmCommand::Stop(args) => change::stop(args, &client, global).await?,
        VmCommand::Reboot(args) => change::plain("reboot", args, &client, global).await?,
        VmCommand::Pause(args) => change::plain("pause", args, &client, global).await?,
        VmCommand::Resume(args) => change::plain("resume", args, &client, global).await?,
        VmCommand::Rm(args) => change::plain("delete", args, &client, global).await?,
        VmCommand::Forward(command) => forward::run(command, &client, global).await?,
        VmCommand::Egress(command) => egress::run(command, &client, global).await?,
        VmCommand::Limit(args) => limit::run(args, &client, global).await?,
        VmCommand::Stats { name } => limit::stats(name, &client, global).await?,
        VmCommand::Disk(command) => disk::run(command, &client, global).await?,
        VmCommand::Exec(args) => return exec::run(args, &client, global).await,
        VmCommand::Runs(command) => return runs::run(command, &client, global).await,
        VmCommand::Info { name } => look::info(name, &client, global).await?,
        VmCommand::Health { name } => look::health(name, &client, global).await?,
        VmCommand::Ps(args) => look::ps(args, &client, global).await?,
        VmCommand::Cp(args) => copy::run(args, &client, global).await?,
        VmCommand::File(command) => names::run(command, &client, global).await?,
        VmCommand::Guest(command) => guest::run(command, &client, global).await?,
        VmCommand::User(command) => accounts::user(command, &client, global).await?,
        VmCommand::Keys(command) => accounts::keys(command, &client, global).await?,
        VmCommand::Console(args) => return console::run(args, &client, global).await,
        VmCommand::Logs { name, source, tail, follow } => {
            let source = match source {
                Source::Vmm if *follow => {
                    let text = "only the console can be followed; leave --follow out";
                    return Err(CliError::Usage(text.into()));
                }
                Source::Console => LogSource::Console,
                Source::Vmm => LogSource::Vmm,
            };
            let request = LogsRequest { source, tail_bytes: tail.map(|size| size.0), follow: *follow };
            if *follow {
                return console::follow(name, &request, &client, read.deadline).await;
            }
            let logs: LogsReply = client.vm(name, "logs", &request, read).await?;
            print_log(&logs, global).await?;
        }
        VmCommand::Explain { name } => {
            let explained: ExplainReply = client.vm(name, "explain", &Empty {}, read).await?;
            global.output.print(&explained, show::explanation)?;
        }
    }
    Ok(0)
}

async fn print_log(logs: &LogsReply, global: &Global) -> Result<(), CliError> {
    if global.output != super::OutputFormat::Table {
        return global.output.print(logs, |_| String::new());
    }
    let failed = |source| CliError::File { action: "write", path: "stdout".into(), source };
    let mut out = tokio::io::stdout();
    out.write_all(logs.data.as_slice()).await.map_err(failed)?;
    out.flush().await.map_err(failed)
}
