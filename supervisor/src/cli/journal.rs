//! `drover journal`.

use std::path::PathBuf;

use drover_actors::journal::{OpenError, restore};

use super::Global;
use super::exit::CliError;
use crate::app::blocking;

/// What can be done with a journal that no daemon uses.
#[derive(Debug, clap::Subcommand)]
pub enum JournalCommand {
    /// Print a journal as JSON, without secrets: VMs, leases, requests in flight, events that wait.
    Show {
        /// A state folder whose daemon is stopped, or a backup.
        path: PathBuf,
    },
    /// Put a backup in the place of the journal of a stopped host; the old one is kept beside it.
    Restore {
        /// The backup.
        backup: PathBuf,
        /// The state folder.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/drover")]
        state: PathBuf,
    },
}

pub(super) async fn run(command: &JournalCommand, global: &Global) -> Result<u8, CliError> {
    match command {
        JournalCommand::Show { path } => {
            let path = path.clone();
            let shown = blocking(move || match path.is_dir() {
                true => restore::show_folder(&path),
                false => restore::show_backup(&path),
            });
            let shown = shown.await.map_err(refused)?;
            global.output.print(&shown, |value| serde_json::to_string_pretty(value).unwrap_or_default())?;
        }
        JournalCommand::Restore { backup, state } => {
            let (from, folder) = (backup.clone(), state.clone());
            let kept = blocking(move || restore::restore(&folder, &from)).await.map_err(refused)?;
            let kept = kept.map_or_else(String::new, |kept| format!("; the old one is {}", kept.display()));
            super::output::line(&format!(
                "{} is the journal of {} now{kept}",
                backup.display(),
                state.display()
            ))?;
        }
    }
    Ok(0)
}

fn refused(error: OpenError) -> CliError {
    CliError::Host(error.into())
}
