//! `drover bus`.

mod assets;
mod audit;
mod config;

use std::time::Duration;

use drover_schemas::contract::ASYNCAPI;
use drover_schemas::{ErrorBody, ErrorCode};
use serde_json::Value;

use super::Global;
use super::exit::CliError;

const DEADLINE: Duration = Duration::from_secs(10);

/// Verbs of the bus.
#[derive(Debug, clap::Subcommand)]
pub enum BusCommand {
    /// Print the published contract, an AsyncAPI 3 document, of the host that answers first.
    Contract {
        /// This program's own, without a bus.
        #[arg(long)]
        own: bool,
    },
    /// Make the stream of events and the buckets where they are absent; change nothing.
    Init(assets::AssetArgs),
    /// Make them, and bring those that are there up to date; what would lose events is refused.
    Upgrade(assets::AssetArgs),
    /// Write the NATS server's configuration: accounts, users, and what each role may do.
    Config(config::ConfigArgs),
    /// Follow the log of a server and bring what it denies to the audit.
    Audit(audit::BusAuditArgs),
    /// Hash a password, read from stdin, for a user of `bus config`.
    Password {
        /// What an attack on a stolen hash costs: each step doubles it, and the server's work at each login.
        #[arg(long, default_value_t = crate::busconf::COST, value_parser = clap::value_parser!(u32).range(4..=20))]
        cost: u32,
    },
}

pub(super) async fn run(command: &BusCommand, global: &Global) -> Result<u8, CliError> {
    match command {
        BusCommand::Init(args) => assets::run(args, false, global).await?,
        BusCommand::Upgrade(args) => assets::run(args, true, global).await?,
        BusCommand::Audit(args) => audit::run(args, global).await?,
        BusCommand::Config(args) => config::write(args)?,
        BusCommand::Password { cost } => config::password(*cost)?,
        BusCommand::Contract { own } => {
            let text = match own {
                true => ASYNCAPI.to_owned(),
                false => {
                    let client = global.connect.connect().await?;
                    client.contract(global.deadline(DEADLINE)).await?.asyncapi
                }
            };
            let document: Value = serde_json::from_str(&text).map_err(|error| {
                let text = format!("the host's contract is not JSON: {error}");
                CliError::Client(ErrorBody::new(ErrorCode::Internal, text).into())
            })?;
            global.output.print(&document, |document| format!("{document:#}"))?;
        }
    }
    Ok(0)
}
