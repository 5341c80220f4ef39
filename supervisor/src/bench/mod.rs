//! `drover bench`: what drover costs beside its limit, in one run on one machine.
//!
//! Each row measures drover and the limit by turns, so that a busy machine slows both. Limits with a guest
//! in them are measured by hand, which needs root on the host's own machine; elsewhere the row says why it
//! has none. Numbers are printed with the host that gave them; nothing here is a test.
//!
//! Whatever a run makes, through drover or by hand, is removed at its end, also when it failed or was
//! interrupted.

mod adoption;
mod boot;
mod byhand;
mod content;
mod creates;
mod disks;
mod events;
mod guest;
mod host;
mod idle;
mod imports;
mod load;
mod machine;
mod memory;
mod network;
mod placing;
mod plain;
mod program;
mod qga;
mod report;
mod sample;
mod scratch;
mod ssh;
mod steps;
mod vms;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use drover_actors::chain;
use drover_schemas::Token;
use drover_schemas::body::host::HostInfo;
use drover_schemas::body::status::VmStatus;
use drover_schemas::size::ByteSize;
use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Client, ClientError};
use byhand::ByHand;
use imports::Imports;
use machine::Machine;
use plain::Plain;
pub use report::Report;
use report::Row;
use vms::Vms;

const DEADLINE: Duration = Duration::from_secs(10);
/// How many times many are started at once, where guests are processes.
const ROUNDS: usize = 3;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure; all of it if left out.
    #[arg(value_enum, value_name = "ROWS")]
    rows: Vec<What>,
    /// Template of the VMs that are made for it; they are deleted at the end.
    #[arg(long, short, value_name = "TEMPLATE")]
    template: Option<Token>,
    /// How many calls of `get` give a percentile, at the least; of `exec`, a tenth of it.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    calls: usize,
    /// How many VMs are created one after another [default: 20 where guests are processes, else 3], and booted from
    /// each template for `boot` [default: 5].
    #[arg(long, value_name = "N")]
    creates: Option<usize>,
    /// How many VMs are created at once [default: 64 where guests are processes, else 4].
    #[arg(long, value_name = "N")]
    at_once: Option<usize>,
    /// How many idle VMs the memory is measured with [default: 200 where guests are processes, else 0].
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// How many VMs a killed daemon has to find again.
    #[arg(long, default_value_t = 500, value_name = "N")]
    adopted: usize,
    /// Size of the file that is copied, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    file: u64,
    /// How many times it is copied each way, and how often a disk is made and an image imported.
    #[arg(long, default_value_t = 5, value_name = "N")]
    copies: usize,
    /// Size of the image that disks are made from and that is imported, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    image: u64,
    /// A directory of the host's for imports; it must be on this machine.
    #[arg(long, value_name = "DIR")]
    import_dir: Option<PathBuf>,
    /// Where disks are made [default: where the first VM has its own].
    #[arg(long, value_name = "DIR")]
    disks_on: Vec<PathBuf>,
    /// Where the host has its metrics (`admin.listen` of its configuration), which tell its steps of a boot.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Process of the daemon, if it is another than the host says; it must run on this machine.
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
    /// `get` with 1, 16 and 256 in flight: requests in a second and their times, against a bare echo.
    Load,
    /// Events into the stream, against bare publishes with the same expectations.
    Events,
    /// Choosing a host among 100 against one round trip; the claim of a name; a commit.
    Placing,
    /// From create to an agent that answers, against the same by hand.
    Create,
    /// Many creates at once, against the same by hand.
    AtOnce,
    /// The boot of linux-microvm, step by step, against linux-default; in guests with kernels.
    Boot,
    /// A VM's own disk from an image, against the same by hand and an overlay.
    Disks,
    /// A file becomes an image, against sha256sum and a copy of it.
    Import,
    /// The network of a VM, made and removed, against the same by hand.
    Network,
    /// `exec` of `true`, against a plain program in the guest.
    Exec,
    /// A file to and from the guest, against a raw copy.
    Files,
    /// Commands beside ssh and files beside scp, in a guest with sshd. Only if it is named.
    Ssh,
    /// Ping, command and file beside QEMU's guest agent, in a guest that has it. Only if it is named.
    Qga,
    /// The agent's program, its memory and its wake-ups at rest (a minute).
    Idle,
    /// Memory and CPU of the daemon, and memory of holders, with idle VMs.
    Memory,
    /// The daemon is killed and started again: time until its VMs answer. Only if it is named.
    Adoption,
}

impl What {
    /// It needs what most guests and hosts do not have, or harms others on the host.
    fn only_if_named(self) -> bool {
        matches!(self, Self::Adoption | Self::Ssh | Self::Qga)
    }
}

impl BenchArgs {
    fn wants(&self, what: What) -> bool {
        self.rows.contains(&what) || self.rows.is_empty() && !what.only_if_named()
    }
}

/// Measures on `host`.
///
/// # Errors
/// The first call that failed, or [`ClientError::Cancelled`] on a signal; what was made is removed all the
/// same.
pub async fn run(args: &BenchArgs, client: &Client, host: &Token) -> Result<Report, ClientError> {
    let vms = Vms::new(client.clone(), args.template.clone());
    let imports = Imports::new(client.clone(), host.clone());
    let mut hand = Err("no VM was started".to_owned());
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(200));
    let outcome = tokio::select! {
        report = Box::pin(measure(args, client, host, (&vms, &imports), &mut hand, &progress)) => report,
        () = interrupted() => Err(ClientError::Cancelled),
    };
    progress.set_message("cleaning up");
    if let Ok(hand) = &hand {
        hand.clean_up().await;
    }
    imports.clean_up().await;
    vms.clean_up().await;
    progress.finish_and_clear();
    outcome
}

async fn interrupted() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Then a signal ends the program as it does any other.
        _ => std::future::pending().await,
    }
}

async fn measure(
    args: &BenchArgs,
    client: &Client,
    host: &Token,
    (vms, imports): (&Vms, &Imports),
    hand: &mut Result<ByHand, String>,
    progress: &ProgressBar,
) -> Result<Report, ClientError> {
    let info = client.host_info(host, DEADLINE).await?;
    let mut description = host::describe(client, &info);
    progress.set_message("a first VM");
    let (vm, _) = vms.create(None).await?;
    let now = client.host_info(host, DEADLINE).await?;
    *hand = by_hand(&vm, &info).await;
    let process = hand.as_ref().is_ok_and(|hand| hand.machine.process_guests);
    if hand.is_ok() {
        description.guests = Some(if process { "guests of processes" } else { "guests with kernels" });
    }
    let count = |asked: Option<usize>, processes: usize, machines: usize| {
        asked.unwrap_or(if process { processes } else { machines })
    };

    // Before anything has made the daemon's memory grow for other reasons.
    let mut memory_rows = Vec::new();
    if args.wants(What::Memory) {
        let idle = room(count(args.idle, 200, 0), &info, &now, &vm, Some(memory::GUEST));
        progress.set_message(format!("memory: {idle} idle VMs"));
        memory_rows.extend(memory::rows(vms, memory::daemon(&info, args.pid), idle).await?);
    }
    // Before it has done anything.
    if args.wants(What::Idle) {
        progress.set_message("an agent at rest, for a minute");
        memory_rows.extend(idle::rows(client, &vm.name).await?);
    }
    let mut rows = Vec::new();
    if args.wants(What::Get) {
        progress.set_message(format!("{} calls of get", args.calls));
        rows.push(host::get(client, &vm.name, args.calls).await?);
    }
    if args.wants(What::Load) {
        progress.set_message("many calls of get in flight");
        rows.extend(load::rows(client, &vm.name, args.calls).await?);
    }
    if args.wants(What::Events) {
        progress.set_message("events");
        rows.push(events::row(client).await);
    }
    if args.wants(What::Placing) {
        progress.set_message("placing");
        rows.extend(placing::rows(client, host, args.calls).await?);
    }
    if args.wants(What::Create) {
        let creates = count(args.creates, 20, 3);
        progress.set_message(format!("{creates} creates"));
        rows.push(creates::one_by_one(vms, hand, creates).await?);
    }
    if args.wants(What::AtOnce) {
        let (at_once, rounds) =
            (room(count(args.at_once, 64, 4), &info, &now, &vm, None), count(None, ROUNDS, 1));
        progress.set_message(format!("{at_once} creates at once, {rounds} times"));
        rows.push(creates::at_once(vms, hand, at_once, rounds).await?);
    }
    if args.wants(What::Boot) {
        let rounds = args.creates.unwrap_or(boot::ROUNDS);
        progress.set_message(format!("{rounds} boots of each template"));
        let process = hand.as_ref().map(|_| process).map_err(Clone::clone);
        rows.extend(boot::rows(client, vms, process, args.admin, rounds).await?);
    }
    if args.wants(What::Disks) {
        progress.set_message(format!("disks from an image of {} MiB", args.image));
        let own = hand.as_ref().ok().map(|hand| hand.machine.disks.clone());
        let own = own.iter().filter(|_| args.disks_on.is_empty());
        for place in own.chain(&args.disks_on) {
            rows.extend(disks::rows(place, args.image << 20, args.copies).await);
        }
    }
    if args.wants(What::Import) {
        progress.set_message(format!("{} imports of {} MiB", args.copies, args.image));
        rows.extend(imports.rows(args.import_dir.as_deref(), args.image << 20, args.copies).await);
    }
    if args.wants(What::Network) {
        let rounds = (args.calls / 50).max(10);
        progress.set_message(format!("the network of {rounds} VMs"));
        rows.extend(network::rows(rounds).await);
    }
    if args.wants(What::Exec) || args.wants(What::Files) {
        rows.extend(guest_rows(args, client, &vm.name, hand, progress).await?);
    }
    let calls = (args.calls / 10).max(20);
    if args.wants(What::Ssh) {
        progress.set_message(format!("{calls} calls of ssh, {} copies each way", args.copies));
        rows.extend(ssh::rows(client, &vm, calls, args.file << 20, args.copies).await?);
    }
    if args.wants(What::Qga) {
        progress.set_message(format!("{calls} calls of QEMU's guest agent"));
        let vsock = hand.as_ref().map(|hand| hand.machine.run_dir.vsock_socket());
        let vsock = vsock.map_err(Clone::clone);
        rows.extend(qga::rows(client, &vm.name, vsock, calls, args.copies).await?);
    }
    if args.wants(What::Adoption) {
        let now = client.host_info(host, DEADLINE).await?;
        let count = room(args.adopted, &info, &now, &vm, Some(memory::GUEST));
        progress.set_message(format!("{count} VMs to be adopted"));
        rows.push(adoption::row(client, host, vms, memory::daemon(&info, args.pid), count).await?);
    }
    rows.extend(memory_rows);
    Ok(Report::new(description, rows))
}

async fn guest_rows(
    args: &BenchArgs,
    client: &Client,
    name: &Token,
    hand: &Result<ByHand, String>,
    progress: &ProgressBar,
) -> Result<Vec<Row>, ClientError> {
    let mut plain = match hand {
        Ok(ByHand { machine, .. }) => {
            let vsock = machine.run_dir.vsock_socket();
            let started = Plain::start(client, name, &vsock, machine.process_guests).await;
            started.map_err(|error| chain(&error).to_string())
        }
        Err(why) => Err(why.clone()),
    };
    let mut rows = Vec::new();
    if args.wants(What::Exec) {
        let calls = (args.calls / 10).max(20);
        progress.set_message(format!("{calls} calls of exec"));
        rows.push(guest::exec(client, name, calls, plain.as_mut().map_err(|why| why.clone())).await?);
    }
    if args.wants(What::Files) {
        progress.set_message(format!("{} copies of {} MiB each way", args.copies, args.file));
        let plain = plain.as_mut().map_err(|why| why.clone());
        rows.extend(guest::files(client, name, args.file << 20, args.copies, plain).await?);
    }
    Ok(rows)
}

async fn by_hand(vm: &VmStatus, info: &HostInfo) -> Result<ByHand, String> {
    let machine = Machine::find(vm, info.installation).await.map_err(|error| chain(&error).to_string())?;
    ByHand::new(machine).map_err(|error| chain(&error).to_string())
}

/// As many as were asked for, or as the host promises beside `vm`, whose start `before` did not know.
fn room(asked: usize, before: &HostInfo, now: &HostInfo, vm: &VmStatus, memory: Option<ByteSize>) -> usize {
    let capacity = &now.capacity;
    let (cpus, own) = (u64::from(vm.cpus).max(1), vm.memory_bytes);
    let taken = capacity.memory_used_bytes.saturating_sub(before.capacity.memory_used_bytes);
    let each = memory.map_or(taken, |memory| taken.saturating_sub(own) + memory.0).max(1);
    let by_cpus = capacity.cpus.saturating_sub(capacity.cpus_used) / cpus;
    let by_memory = capacity.memory_bytes.saturating_sub(capacity.memory_used_bytes) / each;
    asked.min(usize::try_from(by_cpus.min(by_memory)).unwrap_or(usize::MAX))
}
