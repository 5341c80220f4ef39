//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::record::file;

/// Shown with an error.
pub const USAGE: &str = "usage: drover-hold --run-dir DIR [--record FILE] [--cgroup DIR]… \
     [--holder-cgroup DIR]… [--scope DIR [--limit FILE=VALUE]…] -- VMM ARG…";

/// What the holder is told.
#[derive(Debug)]
pub struct Args {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The launch record within it.
    pub record: String,
    /// Cgroups for the VMM.
    pub cgroups: Vec<PathBuf>,
    /// Cgroups for the holder.
    pub holder_cgroups: Vec<PathBuf>,
    /// The cgroup of systemd's scope around this process, in which others are to be made.
    pub scope: Option<PathBuf>,
    /// Limits of the VMM within the scope.
    pub limits: Vec<(String, String)>,
    /// The VMM's program and arguments.
    pub command: Vec<OsString>,
}

impl Args {
    /// Reads the command line; the error says what is wrong with it.
    pub fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut args = Self {
            run_dir: PathBuf::new(),
            record: file::RECORD.to_owned(),
            cgroups: Vec::new(),
            holder_cgroups: Vec::new(),
            scope: None,
            limits: Vec::new(),
            command: Vec::new(),
        };
        while let Some(word) = words.next() {
            if word == "--" {
                args.command = words.collect();
                break;
            }
            let name = word.to_string_lossy().into_owned();
            let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--run-dir" => args.run_dir = value.into(),
                "--record" => {
                    args.record = value.into_string().map_err(|_| "--record is not text".to_owned())?;
                }
                "--cgroup" => args.cgroups.push(value.into()),
                "--holder-cgroup" => args.holder_cgroups.push(value.into()),
                "--scope" => args.scope = Some(value.into()),
                "--limit" => args.limits.push(limit(&value.to_string_lossy())?),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if !args.run_dir.is_absolute() {
            return Err("--run-dir must be an absolute path".to_owned());
        }
        if args.record.contains('/') {
            return Err("--record is a name within the run directory".to_owned());
        }
        if args.command.is_empty() {
            return Err("no VMM after --".to_owned());
        }
        Ok(args)
    }
}

fn limit(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((file, value)) if !file.contains('/') => Ok((file.to_owned(), value.to_owned())),
        _ => Err(format!("--limit {text} is not FILE=VALUE")),
    }
}
