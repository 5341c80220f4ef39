//! `drover volume`.

use std::fmt::Write as _;

use drover_schemas::Token;
use drover_schemas::body::spec::DiskFs;
use drover_schemas::body::volume::{
    VolumeCreateRequest, VolumeGrowRequest, VolumeInfo, VolumeRemoveRequest, VolumeSeenLater,
};
use drover_schemas::size::ByteSize;

use super::Global;
use super::exit::CliError;
use super::host::connect;
use super::output::{self, render};

/// Verbs of volumes.
#[derive(Debug, clap::Subcommand)]
pub enum VolumeCommand {
    /// Make a disk that belongs to the namespace; a VM has it by `--set disks.0.volume=NAME`.
    Create {
        /// The name that specs use.
        name: Token,
        /// How long it is, as 20GiB; only what is written takes room of the host.
        size: ByteSize,
        /// What it is formatted with.
        #[arg(long, value_enum, default_value_t = Fs::None)]
        fs: Fs,
        /// The label of that file system.
        #[arg(long)]
        label: Option<String>,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// List the volumes of the namespace on a host, and the VMs that name them.
    #[command(visible_alias = "list")]
    Ls {
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Make a volume longer. The VM that writes to it sees it at once; what is on it stays as it is.
    Grow {
        /// The volume.
        name: Token,
        /// How long it shall be, as 40GiB.
        size: ByteSize,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Remove a volume that no VM names, with all that is on it.
    Rm {
        /// The volume.
        name: Token,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
}

/// What a volume is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fs {
    /// Nothing.
    None,
    /// ext4.
    Ext4,
}

pub(super) async fn run(command: &VolumeCommand, global: &Global) -> Result<u8, CliError> {
    let namespace = global.connect.namespace.clone();
    match command {
        VolumeCommand::Create { name, size, fs, label, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let request = VolumeCreateRequest {
                namespace,
                name: name.clone(),
                size_bytes: *size,
                fs: match fs {
                    Fs::None => DiskFs::None,
                    Fs::Ext4 => DiskFs::Ext4,
                },
                label: label.clone(),
            };
            let reply = client.volume_create(&host, &request, deadline).await?;
            global.output.print(&reply, |reply| {
                let already = if reply.already { " already" } else { "" };
                format!("{host}: volume {name} is there{already}, {size}")
            })?;
        }
        VolumeCommand::Ls { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.volumes(&host, &namespace, deadline).await?, |all| list(all))?;
        }
        VolumeCommand::Grow { name, size, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let request = VolumeGrowRequest { namespace, name: name.clone(), size_bytes: *size };
            let reply = client.volume_grow(&host, &request, deadline).await?;
            global.output.print(&reply, |reply| {
                let already = if reply.already { " already" } else { "" };
                let mut text = format!("{host}: volume {name} has {size}{already}");
                for VolumeSeenLater { name, reason } in &reply.later {
                    let _ = write!(text, "\n  {name} sees it with its next start: {reason}");
                }
                text
            })?;
        }
        VolumeCommand::Rm { name, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let request = VolumeRemoveRequest { namespace, name: name.clone() };
            let reply = client.volume_remove(&host, &request, deadline).await?;
            global.output.print(&reply, |_| format!("{host}: volume {name} is gone"))?;
        }
    }
    Ok(0)
}

fn list(volumes: &[VolumeInfo]) -> String {
    let mut table = output::table(&["NAME", "SIZE", "WRITTEN", "VMS"]);
    for volume in volumes {
        let vms: Vec<&str> = volume.used_by.iter().map(Token::as_str).collect();
        table.add_row([
            volume.name.to_string(),
            ByteSize(volume.size_bytes).to_string(),
            ByteSize(volume.written_bytes).to_string(),
            vms.join(", "),
        ]);
    }
    render(&mut table)
}
