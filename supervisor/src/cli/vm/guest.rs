//! `drover vm guest`: work that a guest does for its host.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::{ClockChange, ClockReply, ClockRequest, Empty};
use drover_schemas::guest::{
    FreezeRequest, FreezeResult, FrozenResult, IdentityPart, IdentityRequest, IdentityResult, OnlineRequest,
    OnlineResult, SkippedMount, ThawResult, TrimRequest, TrimResult, UpgradeResult,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};
use super::upgrade;
use crate::client::{CallOptions, Client};

/// Hooks of the guest and its disks may take their time.
const DEADLINE: Duration = Duration::from_secs(60);
/// A large disk takes minutes.
const TRIM_DEADLINE: Duration = Duration::from_secs(300);

/// Work for the host.
#[derive(Debug, clap::Subcommand)]
pub enum GuestCommand {
    /// Let file systems stand still for a copy of the disks; `thaw` lets them go on, or their time does.
    Freeze {
        /// The VM.
        name: Token,
        /// Seconds until they go on by themselves; 30 if left out, 300 at most.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Only the file system that is mounted here; may be repeated.
        #[arg(long = "mount", value_name = "PATH")]
        mounts: Option<Vec<String>>,
    },
    /// Let frozen file systems go on. Fails if they did so before: what was copied then may be torn.
    Thaw {
        /// The VM.
        name: Token,
    },
    /// Say which file systems stand still.
    Frozen {
        /// The VM.
        name: Token,
    },
    /// Compare the guest's clock with the host's. After a resume the daemon sets it by itself.
    Clock {
        /// The VM.
        name: Token,
        /// Set it by the host's clock.
        #[arg(long)]
        set: bool,
        /// Milliseconds that it may be off to run a little faster or slower until it is right; beyond that it jumps. 500
        /// if left out, 60000 at most.
        #[arg(long, value_name = "MS", requires = "set")]
        slew: Option<u64>,
    },
    /// Bring CPUs and memory online that were added to the guest.
    Online {
        /// The VM.
        name: Token,
    },
    /// Tell the guest's disks which blocks are unused.
    Trim {
        /// The VM.
        name: Token,
        /// Only the file system that is mounted here; may be repeated.
        #[arg(long = "mount", value_name = "PATH")]
        mounts: Option<Vec<String>>,
    },
    /// Show how an interface of the guest is set up, or set it up: until the guest boots again, but for its servers of
    /// names.
    Network(super::network::NetworkArgs),
    /// Make a guest that was cloned another one than its twin, part by part. If one fails the others are done all the
    /// same, and it is an error that says what became of each.
    Identity {
        /// The VM.
        name: Token,
        /// Its name from now on; as it was if left out.
        #[arg(long)]
        hostname: Option<String>,
        /// What stays as it is; may be repeated.
        #[arg(long, value_name = "PART")]
        keep: Vec<Part>,
    },
    /// Put another agent in the place of the guest's. Commands and copies that run go on; if the new one does not come up,
    /// the old one stays.
    Upgrade {
        /// The VM.
        name: Token,
        /// The new agent's program, a file here: static, as `deploy/build-static.sh` makes it.
        program: PathBuf,
        /// Only if the program says that it is this version.
        #[arg(long, value_name = "VERSION")]
        expect: Option<String>,
    },
}

/// A part of what makes a guest itself.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Part {
    /// What random numbers come from at the next boot.
    Rng,
    /// `/etc/machine-id`.
    MachineId,
    /// The name.
    Hostname,
    /// The keys of the SSH server.
    SshHostKeys,
    /// What DHCP servers gave.
    Dhcp,
    /// What cloud-init has set up.
    CloudInit,
}

impl From<Part> for IdentityPart {
    fn from(part: Part) -> Self {
        match part {
            Part::Rng => Self::Rng,
            Part::MachineId => Self::MachineId,
            Part::Hostname => Self::Hostname,
            Part::SshHostKeys => Self::SshHostKeys,
            Part::Dhcp => Self::Dhcp,
            Part::CloudInit => Self::CloudInit,
        }
    }
}

impl GuestCommand {
    /// The VM that the command is about.
    pub fn name(&self) -> &Token {
        match self {
            Self::Freeze { name, .. }
            | Self::Thaw { name }
            | Self::Frozen { name }
            | Self::Clock { name, .. }
            | Self::Online { name }
            | Self::Trim { name, .. }
            | Self::Identity { name, .. }
            | Self::Upgrade { name, .. } => name,
            Self::Network(args) => &args.name,
        }
    }
}

/// One guest, and how it is asked.
pub(super) struct Guest<'a> {
    client: &'a Client,
    name: &'a Token,
    deadline: Duration,
}

impl<'a> Guest<'a> {
    pub(super) const fn new(client: &'a Client, name: &'a Token, deadline: Duration) -> Self {
        Self { client, name, deadline }
    }

    pub(super) async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Q,
    ) -> Result<A, CliError> {
        let subject = self.client.guest_subject(self.name, verb)?;
        Ok(self.client.call(&subject, body, CallOptions::read(self.deadline)).await?)
    }

    pub(super) async fn change<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Q,
    ) -> Result<A, CliError> {
        let subject = self.client.guest_subject(self.name, verb)?;
        Ok(self.client.call(&subject, body, CallOptions::change(self.deadline)).await?)
    }
}

pub(super) async fn run(command: &GuestCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let usual = if matches!(command, GuestCommand::Trim { .. }) { TRIM_DEADLINE } else { DEADLINE };
    let guest = Guest::new(client, command.name(), global.deadline(usual));
    match command {
        GuestCommand::Freeze { timeout, mounts, .. } => {
            let timeout_ms = timeout.map(|seconds| seconds.saturating_mul(1000));
            let request = FreezeRequest { timeout_ms, mounts: mounts.clone() };
            let frozen: FreezeResult = guest.change("freeze", &request).await?;
            global.output.print(&frozen, show_frozen)
        }
        GuestCommand::Thaw { .. } => {
            let thawed: ThawResult = guest.change("thaw", &Empty {}).await?;
            global.output.print(&thawed, show_thawed)
        }
        GuestCommand::Frozen { .. } => {
            let frozen: FrozenResult = guest.ask("frozen", &Empty {}).await?;
            global.output.print(&frozen, show_state)
        }
        GuestCommand::Clock { set, slew, .. } => {
            let request = ClockRequest { set: *set, slew_ms: *slew };
            let clock: ClockReply = guest.change("clock", &request).await?;
            global.output.print(&clock, show_clock)
        }
        GuestCommand::Online { .. } => {
            let online: OnlineResult = guest.change("online", &OnlineRequest {}).await?;
            global.output.print(&online, show_online)
        }
        GuestCommand::Trim { mounts, .. } => {
            let trimmed: TrimResult = guest.change("trim", &TrimRequest { mounts: mounts.clone() }).await?;
            global.output.print(&trimmed, show_trimmed)
        }
        GuestCommand::Network(args) => super::network::run(args, client, global).await,
        GuestCommand::Identity { hostname, keep, .. } => {
            let keep = keep.iter().copied().map(IdentityPart::from).collect();
            let request = IdentityRequest { hostname: hostname.clone(), keep };
            let done: IdentityResult = guest.change("identity", &request).await?;
            global.output.print(&done, show_identity)
        }
        GuestCommand::Upgrade { name, program, expect } => {
            let done = upgrade::run(client, name, program, expect.as_deref(), guest.deadline).await?;
            global.output.print(&done, show_upgrade)
        }
    }
}

/// A guest's words cannot steer the terminal.
pub(super) fn plain(text: &str) -> String {
    text.escape_debug().to_string()
}

fn skipped(skipped: &[SkippedMount]) -> String {
    skipped.iter().map(|s| format!("\nnot {}: {}", plain(&s.mount), plain(&s.reason))).collect()
}

fn show_frozen(frozen: &FreezeResult) -> String {
    let mut table = table(&["MOUNT", "TYPE", "DEVICE"]);
    for mount in &frozen.frozen {
        table.add_row([plain(&mount.mount), plain(&mount.fs_type), plain(&mount.device)]);
    }
    let left = frozen.thaws_in_ms.div_ceil(1000);
    format!("{}\nfrozen for {left} s at most{}", render(&mut table), skipped(&frozen.skipped))
}

fn show_upgrade(done: &UpgradeResult) -> String {
    let going_on = match done.going_on {
        0 => String::new(),
        n => format!("; requests that go on under the old one: {n}"),
    };
    format!(
        "agent {} took over from {}, in {}{going_on}",
        plain(&done.version),
        plain(&done.before),
        plain(&done.path)
    )
}

fn show_thawed(thawed: &ThawResult) -> String {
    let mounts: Vec<String> = thawed.thawed.iter().map(|mount| plain(mount)).collect();
    let hooks: String = thawed.hooks_failed.iter().map(|said| format!("\n{}", plain(said))).collect();
    let stood = thawed.frozen_ms;
    format!("{} stood still for {stood} ms{}{hooks}", mounts.join(", "), skipped(&thawed.failed))
}

fn show_state(now: &FrozenResult) -> String {
    let state = format!("{:?}", now.state).to_lowercase();
    let mounts = now.frozen.iter().map(|mount| format!("\n{}", plain(&mount.mount)));
    let left = now.thaws_in_ms.map_or_else(String::new, |ms| format!(" for {} s at most", ms.div_ceil(1000)));
    let last = now.last.as_ref().map_or_else(String::new, |last| {
        format!("\nthe last freeze took {} ms and was ended by {:?}", last.frozen_ms, last.by)
    });
    format!("{state}{left}{}{last}", mounts.collect::<String>())
}

fn show_clock(clock: &ClockReply) -> String {
    let ms = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    let way = if clock.ahead_us < 0 { "behind" } else { "ahead" };
    let done = match clock.change {
        ClockChange::None | ClockChange::Unknown => "",
        ClockChange::Slewed => "; it runs a little faster or slower until it is right",
        ClockChange::Stepped => "; it was set",
    };
    format!(
        "{} {way} of the host, give or take {}{done}",
        ms(clock.ahead_us.unsigned_abs()),
        ms(clock.error_us)
    )
}

fn show_online(online: &OnlineResult) -> String {
    let failed: String = online.failed.iter().map(|why| format!("\nnot {}", plain(why))).collect();
    let (cpus, memory) = (online.cpus_added.len(), online.memory_added_bytes >> 20);
    format!(
        "{} CPUs ({cpus} of them new), {} MiB of memory ({memory} of them new){failed}",
        online.cpus,
        online.memory_bytes >> 20
    )
}

fn show_trimmed(trimmed: &TrimResult) -> String {
    let mut table = table(&["MOUNT", "MIB"]);
    for mount in &trimmed.trimmed {
        table.add_row([plain(&mount.mount), (mount.trimmed_bytes >> 20).to_string()]);
    }
    format!("{}{}", render(&mut table), skipped(&trimmed.skipped))
}

fn show_identity(done: &IdentityResult) -> String {
    let mut table = table(&["PART", "OUTCOME", "DETAIL"]);
    for part in &done.parts {
        table.add_row([part.part.name(), part.outcome.name(), &plain(&part.detail)]);
    }
    render(&mut table)
}
