//! `drover vm guest`: work that a guest does for its host.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::guest::{FreezeRequest, FreezeResult, FrozenResult, SkippedMount, ThawResult};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::Global;
use super::super::exit::CliError;
use super::super::output::{render, table};
use crate::client::{CallOptions, Client};

/// Hooks of the guest and its disks may take their time.
const DEADLINE: Duration = Duration::from_secs(60);

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
}

impl GuestCommand {
    /// The VM that the command is about.
    pub fn name(&self) -> &Token {
        let (Self::Freeze { name, .. } | Self::Thaw { name } | Self::Frozen { name }) = self;
        name
    }
}

/// One guest, and how it is asked.
struct Guest<'a> {
    client: &'a Client,
    name: &'a Token,
    deadline: Duration,
}

impl Guest<'_> {
    async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Q,
    ) -> Result<A, CliError> {
        let subject = self.client.guest_subject(self.name, verb)?;
        Ok(self.client.call(&subject, body, CallOptions::read(self.deadline)).await?)
    }

    async fn change<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Q,
    ) -> Result<A, CliError> {
        let subject = self.client.guest_subject(self.name, verb)?;
        Ok(self.client.call(&subject, body, CallOptions::change(self.deadline)).await?)
    }
}

pub(super) async fn run(command: &GuestCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let guest = Guest { client, name: command.name(), deadline: global.deadline(DEADLINE) };
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
    }
}

/// A guest's words cannot steer the terminal.
fn plain(text: &str) -> String {
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
