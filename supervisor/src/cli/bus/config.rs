//! `drover bus config` and `drover bus password`.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use drover_schemas::Token;

use super::super::exit::CliError;
use super::super::output;
use crate::busconf::{self, BusFile};

/// From a small file to the server's configuration.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Who shares the bus; config/bus.yaml explains every key.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The server that it is for, if the file names several.
    #[arg(long = "for", value_name = "SERVER")]
    of: Option<Token>,
    /// Write it there, for its owner only, instead of to stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn write(args: &ConfigArgs) -> Result<(), CliError> {
    let checked = BusFile::load(&args.file).map_err(CliError::BusFile)?;
    let text = busconf::generate(&checked, args.of.as_ref()).map_err(CliError::BusFile)?;
    match &args.out {
        Some(path) => replace(path, &text).map_err(|source| CliError::File {
            action: "write",
            path: path.clone(),
            source,
        }),
        None => output::line(text.trim_end()),
    }
}

/// A server that reads the file meanwhile finds the old text or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

pub(super) fn password(cost: u32) -> Result<(), CliError> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|source| CliError::File {
        action: "read",
        path: "stdin".into(),
        source,
    })?;
    let hash = busconf::hash(line.trim_end_matches(['\r', '\n']), cost).map_err(CliError::Password)?;
    output::line(&hash)
}
