//! `drover image`.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::image::{ImageGcReply, ImageImportRequest, ImageVerifyReply, ImagesReply};
use drover_schemas::body::spec::ImageKind;

use super::Global;
use super::exit::CliError;
use super::host::{connect, mib};
use super::output::{self, render};
use crate::client::time;

/// An import or a look at all contents reads a lot.
const LONG: Duration = Duration::from_secs(85);

/// Verbs of images.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// List the images of a host.
    #[command(visible_alias = "list")]
    Ls {
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Take a file of the host, below one of its directories for imports, into its store.
    Import {
        /// The name that specs use.
        name: Token,
        /// The file, by its path on the host.
        path: String,
        /// What it is good for.
        #[arg(long, short, value_enum, default_value_t = Kind::Disk)]
        kind: Kind,
        /// The SHA-256 that it must have.
        #[arg(long, value_name = "DIGEST")]
        sha256: Option<String>,
        /// Let the name mean this from now on, though it means something else.
        #[arg(long)]
        replace: bool,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Compare images with their digests.
    Verify {
        /// The image; all that were imported if left out.
        name: Option<Token>,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Take a name away, and the content if no other name and no VM needs it.
    Rm {
        /// The image.
        name: Token,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Remove contents that have no name and are used by no VM.
    Gc {
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
}

/// What an image is good for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// A bootable Linux kernel.
    Kernel,
    /// A cpio archive for the kernel.
    Initramfs,
    /// A raw disk.
    Disk,
    /// UEFI firmware.
    Firmware,
}

/// Runs a command.
///
/// # Errors
/// No bus, or what the host refused.
pub async fn run(command: &ImageCommand, global: &Global) -> Result<u8, CliError> {
    let mut damaged = false;
    match command {
        ImageCommand::Ls { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.images(&host, deadline).await?, list)?;
        }
        ImageCommand::Import { name, path, kind, sha256, replace, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let request = ImageImportRequest {
                name: name.clone(),
                kind: match kind {
                    Kind::Kernel => ImageKind::Kernel,
                    Kind::Initramfs => ImageKind::Initramfs,
                    Kind::Disk => ImageKind::Disk,
                    Kind::Firmware => ImageKind::Firmware,
                },
                path: path.clone(),
                sha256: sha256.clone(),
                replace: *replace,
            };
            let reply = client.image_import(&host, &request, global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| {
                let image = &reply.image;
                format!("{host}: {} is there, {}, sha256 {}", image.name, mib(image.size_bytes), image.sha256)
            })?;
        }
        ImageCommand::Verify { name, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let reply = client.image_verify(&host, name.clone(), global.deadline(LONG)).await?;
            damaged = !reply.damaged.is_empty();
            global.output.print(&reply, verified)?;
        }
        ImageCommand::Rm { name, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.image_remove(&host, name.clone(), deadline).await?, freed)?;
        }
        ImageCommand::Gc { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.image_gc(&host, deadline).await?, freed)?;
        }
    }
    Ok(u8::from(damaged))
}

fn list(reply: &ImagesReply) -> String {
    let mut table = output::table(&["NAME", "KIND", "SIZE", "SHA256", "VMS", "IMPORTED"]);
    for image in &reply.images {
        let kind = serde_json::to_value(image.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        let imported = match image.imported_unix_ms {
            Some(at) => format!("{} ago", time::age(at)),
            None => "with the host".to_owned(),
        };
        table.add_row([
            image.name.clone(),
            kind.unwrap_or_default(),
            mib(image.size_bytes),
            image.sha256.get(..12).unwrap_or(&image.sha256).to_owned(),
            image.vms.to_string(),
            imported,
        ]);
    }
    let (held, free) = (mib(reply.store_bytes), mib(reply.free_bytes));
    format!("{}\nthe store holds {held}, {free} are free", render(&mut table).trim_end())
}

fn verified(reply: &ImageVerifyReply) -> String {
    let mut text = format!("{} contents read, {} damaged", reply.checked, reply.damaged.len());
    for damaged in &reply.damaged {
        text.push_str(&format!("\n{} ({}): {}", damaged.sha256, damaged.names.join(", "), damaged.found));
    }
    text
}

fn freed(reply: &ImageGcReply) -> String {
    let mut text = format!("{} freed", mib(reply.freed_bytes));
    for sha256 in &reply.removed {
        text.push_str(&format!("\nremoved {sha256}"));
    }
    for sha256 in &reply.in_use {
        text.push_str(&format!("\nkept {sha256}: a VM uses it"));
    }
    text
}
