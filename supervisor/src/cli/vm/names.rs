//! `drover vm file`: names of files in a guest.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::guest::{
    DirEntry, FileKind, FileStat, LsReply, LsRequest, MkdirRequest, RmRequest, StatRequest,
};

use super::super::Global;
use super::super::exit::CliError;
use super::copy::{Place, octal};
use crate::client::{CallOptions, Client};

const DEADLINE: Duration = Duration::from_secs(30);

/// A path in a guest.
#[derive(Debug, Clone)]
pub struct InGuest {
    name: Token,
    path: String,
}

impl std::str::FromStr for InGuest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Place::parse(text) {
            Place::Guest(name, path) => Ok(Self { name, path }),
            Place::Local(_) => Err("not a path in a guest; write NAME:/path".to_owned()),
        }
    }
}

/// Verbs of names.
#[derive(Debug, clap::Subcommand)]
pub enum FileCommand {
    /// Say what a name is; a link is not followed.
    Stat {
        /// NAME:/path
        place: InGuest,
    },
    /// List a folder.
    Ls {
        /// NAME:/path
        place: InGuest,
    },
    /// Remove a file, a link or a folder; links are never followed.
    Rm {
        /// NAME:/path
        place: InGuest,
        /// Remove what is in the folder too.
        #[arg(long, short)]
        recursive: bool,
    },
    /// Make a folder.
    Mkdir {
        /// NAME:/path
        place: InGuest,
        /// Make missing folders above it, and be content with one that is there.
        #[arg(long, short)]
        parents: bool,
        /// Permissions, as 0755.
        #[arg(long, value_name = "MODE", value_parser = octal)]
        mode: Option<u32>,
    },
}

impl FileCommand {
    /// The VM that the command is about.
    pub fn name(&self) -> &Token {
        let (Self::Stat { place } | Self::Ls { place } | Self::Rm { place, .. } | Self::Mkdir { place, .. }) =
            self;
        &place.name
    }
}

pub(super) async fn run(command: &FileCommand, client: &Client, global: &Global) -> Result<(), CliError> {
    let deadline = global.deadline(DEADLINE);
    let (read, change) = (CallOptions::read(deadline), CallOptions::change(deadline));
    let subject = |verb| client.guest_subject(command.name(), verb);
    match command {
        FileCommand::Stat { place } => {
            let request = StatRequest { path: place.path.clone(), ..StatRequest::default() };
            let stat: FileStat = client.call(&subject("stat")?, &request, read).await?;
            global.output.print(&stat, |stat| line(&place.path, stat))
        }
        FileCommand::Ls { place } => {
            let mut request = LsRequest { path: place.path.clone(), ..LsRequest::default() };
            let mut unreadable;
            loop {
                let page: LsReply = client.call(&subject("ls")?, &request, read).await?;
                unreadable = page.unreadable;
                for entry in &page.entries {
                    global.output.print_item(entry, |DirEntry { name, stat }| line(name, stat))?;
                }
                match page.entries.last().filter(|_| page.more) {
                    Some(last) if Some(&last.name) > request.after.as_ref() => {
                        request.after = Some(last.name.clone());
                    }
                    _ => break,
                }
            }
            if unreadable > 0 {
                eprintln!("{unreadable} names are not UTF-8 and not shown");
            }
            Ok(())
        }
        FileCommand::Rm { place, recursive } => {
            let request = RmRequest { path: place.path.clone(), recursive: *recursive };
            let Empty {} = client.call(&subject("rm")?, &request, change).await?;
            Ok(())
        }
        FileCommand::Mkdir { place, parents, mode } => {
            let request = MkdirRequest { path: place.path.clone(), mode: *mode, parents: *parents };
            let Empty {} = client.call(&subject("mkdir")?, &request, change).await?;
            Ok(())
        }
    }
}

/// One line; a guest's names cannot steer the terminal.
fn line(name: &str, stat: &FileStat) -> String {
    let kind = match stat.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::Device => 'v',
        FileKind::Other => '?',
    };
    let time = jiff::Timestamp::from_millisecond(stat.mtime_ms)
        .map_or_else(|_| stat.mtime_ms.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string());
    let target =
        stat.target.as_ref().map_or_else(String::new, |target| format!(" -> {}", target.escape_debug()));
    let (mode, uid, gid, size) = (stat.mode, stat.uid, stat.gid, stat.size_bytes);
    format!("{kind}{mode:04o} {uid:>5} {gid:>5} {size:>12} {time} {}{target}", name.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_guest_cannot_steer_the_terminal() {
        let stat = FileStat { target: Some("\x1b[2J".into()), ..FileStat::default() };
        let line = line("a\n\x1b]0;x\x07", &stat);
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }

    #[test]
    fn a_place_needs_a_vm() {
        assert!("web:/etc".parse::<InGuest>().is_ok());
        assert!("/etc".parse::<InGuest>().is_err());
    }
}
