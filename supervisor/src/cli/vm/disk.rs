//! `drover vm disk`: the disks of a VM.

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::status::VmStatus;
use drover_schemas::size::ByteSize;

use super::super::Global;
use super::super::exit::CliError;
use super::change::{self, Conditions};
use super::{READ_DEADLINE, show};
use crate::client::{CallOptions, Client};

/// Verbs of disks.
#[derive(Debug, clap::Subcommand)]
pub enum DiskCommand {
    /// Make a disk longer; the guest sees it at once, and its file systems grow by `resize2fs` and the like.
    Grow {
        #[command(flatten)]
        conditions: Conditions,
        /// The disk, by its name.
        disk: Token,
        /// How long it shall be, as 20GiB; a disk never becomes shorter.
        size: ByteSize,
    },
    /// List the disks.
    Ls {
        /// The VM.
        name: Token,
    },
}

impl DiskCommand {
    pub(super) const fn name(&self) -> &Token {
        match self {
            Self::Grow { conditions, .. } => conditions.name(),
            Self::Ls { name } => name,
        }
    }
}

pub(super) async fn run(command: &DiskCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    match command {
        DiskCommand::Grow { conditions, disk, size } => {
            change::grow(conditions, disk, *size, client, global).await
        }
        DiskCommand::Ls { name } => {
            let read = CallOptions::read(global.deadline(READ_DEADLINE));
            let vm: VmStatus = client.vm(name, "get", &Empty {}, read).await?;
            global.output.print(&vm.disks, |_| show::disks(&vm))
        }
    }
}
