//! `drover bus`.

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
}

pub(super) async fn run(command: &BusCommand, global: &Global) -> Result<u8, CliError> {
    match command {
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
