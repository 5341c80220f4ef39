//! `drover image`.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::image::{
    ImageGcReply, ImageGetReply, ImageImportReply, ImageImportRequest, ImagePullRequest, ImageShareRequest,
    ImageTagRequest, ImageVerifyReply, ImagesReply, SharedImagesReply,
};
use drover_schemas::body::spec::{ImageFormat, ImageKind};

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
        /// What the fleet shares, instead.
        #[arg(long)]
        shared: bool,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Show an image and the VMs that were created with it.
    #[command(visible_alias = "get")]
    Show {
        /// The image, by its name or as sha256:DIGEST.
        image: String,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Take a file of the host, what a URL leads to, or an image of a registry into its store.
    Import {
        /// The name that specs use.
        name: Token,
        /// A file by its path on the host, below one of its directories for imports, or https://…
        #[arg(required_unless_present = "oci")]
        source: Option<String>,
        /// In its place, an image of an OCI registry: registry.example/owner/name:tag or …@sha256:DIGEST
        #[arg(long, value_name = "REFERENCE", conflicts_with = "source")]
        oci: Option<String>,
        /// What it is good for.
        #[arg(long, short, value_enum, default_value_t = Kind::Disk)]
        kind: Kind,
        /// The SHA-256 that the file must have; a URL needs it.
        #[arg(long, value_name = "DIGEST")]
        sha256: Option<String>,
        /// A file here with the signature that `minisign -S` made of it; hosts may want one.
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// Let the name mean this from now on, though it means something else.
        #[arg(long)]
        replace: bool,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Give what a host has another name, or move a name to it; VMs keep what they were created with.
    Tag {
        /// The image, by a name or as sha256:DIGEST.
        image: String,
        /// The name that means it too from now on.
        name: Token,
        /// Let the name mean this from now on, though it means something else.
        #[arg(long)]
        replace: bool,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Give an image of the host to the fleet, through the bus.
    Share {
        /// The image; the fleet means it by the same name.
        name: Token,
        /// Let the fleet mean this from now on, though it means something else.
        #[arg(long)]
        replace: bool,
        /// The host; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Take a name of the fleet away; hosts keep what they have.
    Unshare {
        /// The name in the fleet.
        name: Token,
        /// The host that does it; without it, the one that answers first.
        #[arg(long, value_name = "HOST")]
        host: Option<Token>,
    },
    /// Bring an image that the fleet shares to a host.
    Pull {
        /// The name in the fleet, and then on the host.
        name: Token,
        /// Let the name mean this on the host from now on, though it means something else.
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
    /// A disk, raw or qcow2.
    Disk,
    /// A file system without partitions, for a kernel that is booted directly.
    Rootfs,
    /// The content of a CD or DVD; guests only read it.
    Iso,
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
        ImageCommand::Ls { shared: true, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.shared_images(&host, deadline).await?, shared)?;
        }
        ImageCommand::Ls { shared: false, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.images(&host, deadline).await?, list)?;
        }
        ImageCommand::Show { image, host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            global.output.print(&client.image(&host, image, deadline).await?, shown)?;
        }
        ImageCommand::Share { name, replace, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let request = ImageShareRequest { name: name.clone(), replace: *replace };
            let reply = client.image_share(&host, &request, global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| {
                let sent = match reply.uploaded_bytes {
                    0 => "the bus had it".to_owned(),
                    bytes => format!("{} sent", mib(bytes)),
                };
                format!("{host}: {} is shared, {sent}, sha256 {}", reply.image.name, reply.image.sha256)
            })?;
        }
        ImageCommand::Unshare { name, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let reply = client.image_unshare(&host, name.clone(), global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| {
                format!("{name} is not shared any more, {} freed on the bus", mib(reply.freed_bytes))
            })?;
        }
        ImageCommand::Pull { name, replace, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let request = ImagePullRequest { name: name.clone(), replace: *replace };
            let reply = client.image_pull(&host, &request, global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| there(&host, reply))?;
        }
        ImageCommand::Import { name, source, oci, kind, sha256, signature, replace, host } => {
            let signature = signature.as_ref().map(|path| {
                let failed = |source| CliError::File { action: "read", path: path.clone(), source };
                std::fs::read_to_string(path).map_err(failed)
            });
            let signature = signature.transpose()?;
            let is_url = source.as_ref().is_some_and(|source| source.contains("://"));
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let request = ImageImportRequest {
                name: name.clone(),
                kind: match kind {
                    Kind::Kernel => ImageKind::Kernel,
                    Kind::Initramfs => ImageKind::Initramfs,
                    Kind::Disk => ImageKind::Disk,
                    Kind::Rootfs => ImageKind::Rootfs,
                    Kind::Iso => ImageKind::Iso,
                    Kind::Firmware => ImageKind::Firmware,
                },
                path: source.clone().filter(|_| !is_url),
                url: source.clone().filter(|_| is_url),
                oci: oci.clone(),
                sha256: sha256.clone(),
                signature,
                replace: *replace,
            };
            let reply = client.image_import(&host, &request, global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| there(&host, reply))?;
        }
        ImageCommand::Tag { image, name, replace, host } => {
            let (client, host, _) = connect(global, host.as_ref()).await?;
            let request = ImageTagRequest { image: image.clone(), name: name.clone(), replace: *replace };
            let reply = client.image_tag(&host, &request, global.deadline(LONG)).await?;
            global.output.print(&reply, |reply| {
                let meant = if reply.already { "means it already" } else { "means it" };
                format!("{host}: {} {meant}, sha256 {}", reply.image.name, reply.image.sha256)
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

fn there(host: &Token, reply: &ImageImportReply) -> String {
    let image = &reply.image;
    let manifest = reply.manifest.iter().map(|digest| format!(", manifest {digest}")).collect::<String>();
    let signer = image.signer.iter().map(|key| format!(", signed by {key}")).collect::<String>();
    let (name, size, sha256) = (&image.name, mib(image.size_bytes), &image.sha256);
    format!("{host}: {name} is there, {size}, sha256 {sha256}{manifest}{signer}")
}

fn kind_of(kind: ImageKind) -> String {
    serde_json::to_value(kind).ok().and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default()
}

fn short(sha256: &str) -> String {
    sha256.get(..12).unwrap_or(sha256).to_owned()
}

fn shared(reply: &SharedImagesReply) -> String {
    let mut table = output::table(&["NAME", "KIND", "SIZE", "SHA256", "BY", "SHARED"]);
    for image in &reply.images {
        table.add_row([
            image.name.to_string(),
            kind_of(image.kind),
            mib(image.size_bytes),
            short(&image.sha256),
            image.host.to_string(),
            format!("{} ago", time::age(image.shared_unix_ms)),
        ]);
    }
    render(&mut table)
}

fn list(reply: &ImagesReply) -> String {
    let mut table = output::table(&["NAME", "KIND", "SIZE", "SHA256", "VMS", "IMPORTED"]);
    for image in &reply.images {
        let imported = match image.imported_unix_ms {
            Some(at) if image.from_fleet => format!("{} ago, from the fleet", time::age(at)),
            Some(at) => format!("{} ago", time::age(at)),
            None => "with the host".to_owned(),
        };
        table.add_row([
            image.name.clone(),
            format!("{}{}", kind_of(image.kind), format_of(image.format)),
            mib(image.size_bytes),
            short(&image.sha256),
            image.vms.to_string(),
            imported,
        ]);
    }
    let (held, free) = (mib(reply.store_bytes), mib(reply.free_bytes));
    format!("{}\nthe store holds {held}, {free} are free", render(&mut table).trim_end())
}

fn shown(reply: &ImageGetReply) -> String {
    let image = &reply.image;
    let came = match image.imported_unix_ms {
        Some(at) if image.from_fleet => format!("{} ago, from the fleet", time::age(at)),
        Some(at) => format!("{} ago", time::age(at)),
        None => "with the host".to_owned(),
    };
    let mut lines = vec![
        format!("{} ({}{})", image.name, kind_of(image.kind), format_of(image.format)),
        format!("sha256    {}", image.sha256),
        format!("size      {}", mib(image.size_bytes)),
    ];
    lines.extend(image.virtual_bytes.map(|bytes| format!("disk      {}", mib(bytes))));
    lines.push(format!("imported  {came}"));
    lines.extend(image.signer.as_ref().map(|key| format!("signed by {key}")));
    if !reply.also.is_empty() {
        lines.push(format!("also      {}", reply.also.join(", ")));
    }
    lines.push(format!("vms       {}", image.vms));
    lines.extend(reply.used_by.iter().map(|vm| format!("  {}/{}", vm.namespace, vm.name)));
    lines.join("\n")
}

const fn format_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "",
        ImageFormat::Qcow2 => ", qcow2",
    }
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
