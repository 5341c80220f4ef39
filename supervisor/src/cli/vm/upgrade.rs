//! `drover vm guest upgrade`: another agent in the place of the guest's.

use std::path::Path;
use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::guest::ranges::Walk;
use drover_schemas::guest::{UpgradeRequest, UpgradeResult};
use drover_schemas::stream::{Channel, StreamOpened};

use super::super::exit::CliError;
use super::exec::cancel_on_signal;
use super::transfer::{self, both};
use crate::client::{CallOptions, Client, Input};

/// Sends the program and waits until the agent that it is serves.
pub(super) async fn run(
    client: &Client,
    name: &Token,
    program: &Path,
    version: Option<&str>,
    deadline: Duration,
) -> Result<UpgradeResult, CliError> {
    let failed = |action| move |source| CliError::File { action, path: program.to_owned(), source };
    let (file, metadata) = transfer::open(program)?;
    if !metadata.is_file() {
        return Err(CliError::Usage(format!("{} is no program: name a drover-agent", program.display())));
    }
    let size_bytes = metadata.len();
    let sha256 = transfer::digest(&file, size_bytes).await.map_err(failed("read"))?;
    let request = UpgradeRequest { size_bytes, sha256, version: version.map(str::to_owned) };
    let bulk = client.for_bulk().await?;
    let opening =
        bulk.open(&bulk.guest_subject(name, "upgrade")?, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let walk = Walk::new(size_bytes, None).map_err(|e| CliError::Usage(e.to_string()))?;
    let bar = transfer::bar(Some(size_bytes));
    let (reader, fed) = transfer::feed(file, walk, bar).map_err(failed("read"))?;
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let ended = opening.session(&opened)?.run(Some(input), Vec::new(), cancel_on_signal()).await;
    both(ended, transfer::here(fed, failed("read")).await).map(|(result, _)| result)
}
