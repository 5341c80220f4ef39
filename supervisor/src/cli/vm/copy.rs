//! `drover vm cp`: one file, either way, with both ends' digests compared.

use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_schemas::Token;
use drover_schemas::body::guest::{FileResult, GetRequest, PutRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWrite};

use super::super::Global;
use super::super::exit::CliError;
use super::super::tally::{Tallied, Tally};
use super::exec::cancel_on_signal;

use crate::client::{CallOptions, Client, Input, Output};

const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// The file to copy: a path, or NAME:/path in a guest.
    src: String,
    /// Where to: a path, `-` for stdout, or NAME:/path in a guest.
    dst: String,
    /// Permissions of the copy in the guest, as 0644; those of the file if left out.
    #[arg(long, value_name = "MODE", value_parser = octal)]
    mode: Option<u32>,
    /// Make missing directories in the guest.
    #[arg(long, short)]
    parents: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|e| format!("not an octal mode: {e}"))
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Guest(Token, String),
}

impl Place {
    /// `NAME:/path` is in a guest; a path with a colon of its own can be written as `./a:/b`.
    fn parse(text: &str) -> Self {
        if let Some((name, path)) = text.split_once(':')
            && path.starts_with('/')
            && let Ok(name) = Token::new(name)
        {
            return Self::Guest(name, path.to_owned());
        }
        Self::Local(PathBuf::from(text))
    }
}

/// What was copied.
#[derive(Debug, Serialize)]
struct Copied {
    size_bytes: u64,
    sha256: String,
    seconds: f64,
}

impl CpArgs {
    pub(super) fn name(&self) -> Option<String> {
        [&self.src, &self.dst].into_iter().find_map(|text| match Place::parse(text) {
            Place::Guest(name, _) => Some(name.to_string()),
            Place::Local(_) => None,
        })
    }
}

pub(super) async fn run(args: &CpArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let started = Instant::now();
    let deadline = global.deadline(OPEN_DEADLINE);
    let bulk = client.for_bulk().await?;
    let (size_bytes, sha256) = match (Place::parse(&args.src), Place::parse(&args.dst)) {
        (Place::Local(from), Place::Guest(name, to)) => put(args, &bulk, &from, &name, to, deadline).await?,
        (Place::Guest(name, from), Place::Local(to)) if to.as_os_str() == "-" => {
            let bar = ProgressBar::hidden();
            receive(&bulk, &name, &from, Box::new(tokio::io::stdout()), bar, deadline)
                .await
                .map(strip_mode)?;
            return Ok(());
        }
        (Place::Guest(name, from), Place::Local(to)) => get(&bulk, &name, &from, &to, deadline).await?,
        _ => {
            let text =
                "exactly one side of a copy is in a guest: drover vm cp FILE NAME:/path, or the reverse";
            return Err(CliError::Usage(text.into()));
        }
    };
    let copied = Copied { size_bytes, sha256, seconds: started.elapsed().as_secs_f64() };
    global.output.print(&copied, |c| {
        let mib = c.size_bytes as f64 / f64::from(1 << 20);
        format!(
            "{} bytes in {:.2} s ({:.1} MiB/s), sha256 {}",
            c.size_bytes,
            c.seconds,
            mib / c.seconds,
            c.sha256
        )
    })
}

fn strip_mode((size, sha256, _): (u64, String, u32)) -> (u64, String) {
    (size, sha256)
}

async fn put(
    args: &CpArgs,
    client: &Client,
    from: &Path,
    name: &Token,
    to: String,
    deadline: Duration,
) -> Result<(u64, String), CliError> {
    let failed = |action| move |source| CliError::File { action, path: from.to_owned(), source };
    let file = File::open(from).await.map_err(failed("open"))?;
    let metadata = file.metadata().await.map_err(failed("look at"))?;
    if !metadata.is_file() {
        return Err(CliError::Usage(format!("{} is not a file; copy files one by one", from.display())));
    }
    let path = match from.file_name() {
        Some(file_name) if to.ends_with('/') => format!("{to}{}", file_name.to_string_lossy()),
        _ => to,
    };
    let request = PutRequest {
        path,
        size_bytes: metadata.len(),
        mode: Some(args.mode.unwrap_or(metadata.permissions().mode() & 0o7777)),
        sha256: None,
        create_dirs: args.parents,
    };
    let subject = client.guest_subject(name, "put")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let tally = Tally::new(bar(Some(metadata.len())));
    // A file that grows meanwhile is copied as long as it was.
    let reader = Tallied::new(file.take(metadata.len()), tally.clone());
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let session = opening.session(&opened)?;
    let result: FileResult = session.run(Some(input), Vec::new(), cancel_on_signal()).await?;
    same(&from.display().to_string(), &tally, &result)
}

async fn get(
    client: &Client,
    name: &Token,
    from: &str,
    to: &Path,
    deadline: Duration,
) -> Result<(u64, String), CliError> {
    let target = match Path::new(from).file_name() {
        Some(file_name) if to.is_dir() => to.join(file_name),
        _ => to.to_owned(),
    };
    let partial = Partial::beside(&target)?;
    let failed = |action| {
        let path = partial.path.clone();
        move |source| CliError::File { action, path, source }
    };
    let file = File::options().write(true).create_new(true).open(&partial.path).await;
    let file = file.map_err(failed("create"))?;
    let (size, sha256, mode) = receive(client, name, from, Box::new(file), bar(None), deadline).await?;
    let permissions = std::fs::Permissions::from_mode(mode & 0o777);
    tokio::fs::set_permissions(&partial.path, permissions).await.map_err(failed("set the mode of"))?;
    partial.keep(&target)?;
    Ok((size, sha256))
}

async fn receive(
    client: &Client,
    name: &Token,
    from: &str,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    bar: ProgressBar,
    deadline: Duration,
) -> Result<(u64, String, u32), CliError> {
    let request = GetRequest { path: from.to_owned(), max_size_bytes: None };
    let subject = client.guest_subject(name, "get")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let tally = Tally::new(bar);
    let output = Output { channel: Channel::Data, writer: Box::new(Tallied::new(writer, tally.clone())) };
    let session = opening.session(&opened)?;
    let result: FileResult = session.run(None, vec![output], cancel_on_signal()).await?;
    let (size, sha256) = same(from, &tally, &result)?;
    Ok((size, sha256, result.mode))
}

/// The copy, if both ends saw the same bytes.
fn same(what: &str, tally: &Tally, result: &FileResult) -> Result<(u64, String), CliError> {
    let (bytes, sha256) = tally.total();
    if bytes == result.size_bytes && sha256.eq_ignore_ascii_case(&result.sha256) {
        return Ok((bytes, sha256));
    }
    let here = format!("{sha256} ({bytes} bytes)");
    let there = format!("{} ({} bytes)", result.sha256, result.size_bytes);
    Err(CliError::Digest { what: what.to_owned(), here, there })
}

/// A file under a name of its own until it is complete; removed if it never is.
struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Partial {
    fn beside(target: &Path) -> Result<Self, CliError> {
        let name = target
            .file_name()
            .ok_or_else(|| CliError::Usage(format!("{} names no file", target.display())))?;
        let name = format!(".{}.{:08x}.part", name.to_string_lossy(), rand::random::<u32>());
        Ok(Self { path: target.with_file_name(name), kept: false })
    }

    fn keep(mut self, target: &Path) -> Result<(), CliError> {
        std::fs::rename(&self.path, target).map_err(|source| CliError::File {
            action: "rename the copy to",
            path: target.to_owned(),
            source,
        })?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // It may not exist yet; there is nobody left to tell either way.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bar(size: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_guest_is_a_name_and_an_absolute_path() {
        let web = Token::new("web").unwrap();
        assert_eq!(Place::parse("web:/etc/hosts"), Place::Guest(web, "/etc/hosts".into()));
        for local in ["./web:/etc/hosts", "web", "web:etc", "/a/b", "C:x"] {
            assert_eq!(Place::parse(local), Place::Local(local.into()));
        }
    }

    #[test]
    fn a_partial_file_does_not_outlive_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::beside(&dir.path().join("x")).unwrap();
        std::fs::write(&partial.path, "half").unwrap();
        drop(partial);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
