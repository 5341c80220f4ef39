//! `drover bus audit`.

use std::path::PathBuf;

use drover_schemas::Token;
use serde::Serialize;

use super::super::Global;
use super::super::exit::CliError;
use crate::buslog::{AuditStream, follow};

/// From the log of a server to the audit.
#[derive(Debug, clap::Args)]
pub struct BusAuditArgs {
    /// The server's log: `log_file` of `bus config`. Its times must be in UTC (`logtime_utc`).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The name of the server that writes it; without it, of the one that is connected to.
    #[arg(long, value_name = "NAME")]
    of: Option<Token>,
    /// End where the log ends now.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Serialize)]
struct Told {
    server: Token,
    denials: u64,
}

pub(super) async fn run(args: &BusAuditArgs, global: &Global) -> Result<(), CliError> {
    let client = global.connect.connect().await?;
    let server = match &args.of {
        Some(name) => name.clone(),
        None => {
            let name = client.nats().server_info().server_name;
            Token::new(&name).map_err(|_| {
                let text = "cannot be told in a subject; give the name in `bus config` with --of";
                CliError::Usage(format!("the server's name {name:?} {text}"))
            })?
        }
    };
    let stream = AuditStream::new(client.nats(), client.subjects(), server.clone());
    let denials = tokio::select! {
        told = follow(&args.file, &stream, args.once) => told.map_err(CliError::BusLog)?,
        // Nothing is lost by it: the stream says how far the log was read.
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    global
        .output
        .print(&Told { server, denials }, |told| format!("{}: {} denials told", told.server, told.denials))
}
