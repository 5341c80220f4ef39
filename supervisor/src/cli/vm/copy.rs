//! `drover vm cp`: a file or a folder, either way, with both ends' digests compared.
//!
//! Holes do not travel. A copy that broke is gone on with by the same command, as long as the file has not changed:
//! what came is kept beside the target under a hidden name, and checked with the rest of the file.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover_schemas::body::guest::{FileResult, GetRequest, PutRequest};
use drover_schemas::guest::ranges::{self, Walk};
use drover_schemas::guest::{FileKind, FileStat, StatRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use drover_schemas::{ErrorCode, Token};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::io::AsyncWrite;

use super::super::Global;
use super::super::exit::CliError;
use super::super::tally::{Tallied, Tally};
use super::exec::cancel_on_signal;
use super::folder;
use super::transfer::{self, Partial, both};
use crate::client::{CallOptions, Client, ClientError, Input, Output};

const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// The file or folder to copy: a path, or NAME:/path in a guest.
    src: String,
    /// Where to: a path, `-` for stdout, or NAME:/path in a guest.
    dst: String,
    /// Permissions of the copy in the guest, as 0644; those of the file if left out.
    #[arg(long, value_name = "MODE", value_parser = octal)]
    mode: Option<u32>,
    /// Who owns the copy in the guest, as `name`, `uid`, `name:group` or `uid:gid`; root if left out.
    #[arg(long, value_name = "OWNER")]
    pub(super) owner: Option<String>,
    /// Make missing directories in the guest.
    #[arg(long, short)]
    pub(super) parents: bool,
    /// Copy a folder with all that is in it.
    #[arg(long, short, conflicts_with = "mode")]
    recursive: bool,
    /// Take the place of a folder or file that has the name now, at once and as a whole.
    #[arg(long, requires = "recursive")]
    pub(super) replace: bool,
}

pub(super) fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|e| format!("not an octal mode: {e}"))
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Local(PathBuf),
    Guest(Token, String),
}

impl Place {
    /// `NAME:/path` is in a guest; a path with a colon of its own can be written as `./a:/b`.
    pub(super) fn parse(text: &str) -> Self {
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
    if args.recursive {
        let copied = match (Place::parse(&args.src), Place::parse(&args.dst)) {
            (Place::Local(from), Place::Guest(name, to)) => {
                folder::put(args, &bulk, &from, &name, to, deadline).await?
            }
            (Place::Guest(name, from), Place::Local(to)) => {
                folder::get(args, &bulk, &name, &from, &to, deadline).await?
            }
            _ => return Err(one_side()),
        };
        return global.output.print(&copied, |c| {
            let left_out = match c.skipped {
                0 => String::new(),
                n => format!("; {n} left out: sockets, pipes, devices, mounts, links out of the folder"),
            };
            let (entries, bytes) = (c.entries, c.size_bytes);
            format!("{entries} entries, {bytes} bytes in {:.2} s{left_out}", started.elapsed().as_secs_f64())
        });
    }
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
        _ => return Err(one_side()),
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

fn not_a_file(what: impl std::fmt::Display, is_folder: bool) -> String {
    let advice = if is_folder { "a folder; copy it with --recursive" } else { "not a regular file" };
    format!("{what} is {advice}")
}

fn one_side() -> CliError {
    let text = "exactly one side of a copy is in a guest: drover vm cp FILE NAME:/path, or the reverse";
    CliError::Usage(text.into())
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
    let (file, metadata) = transfer::open(from)?;
    if !metadata.is_file() {
        return Err(CliError::Usage(not_a_file(from.display(), metadata.is_dir())));
    }
    let path = transfer::place(to, from.file_name());
    // A file that grows meanwhile is copied as long as it was.
    let size_bytes = metadata.len();
    let (mtime, mtime_nsec) = (metadata.mtime(), metadata.mtime_nsec());
    let token = transfer::token(&[&metadata.dev(), &metadata.ino(), &size_bytes, &mtime, &mtime_nsec, &path]);
    let came = came(client, name, &path, &token, deadline).await?.min(size_bytes);
    let data = transfer::data(&file, size_bytes).map_err(failed("look at"))?;
    let walk = walk(size_bytes, &ranges::from(&data, came))?;
    let sha256 = match came {
        0 => None,
        // What came before is of this file only if the whole is: the guest must know before it replaces anything.
        _ => Some(transfer::digest(&file, size_bytes).await.map_err(failed("read"))?),
    };
    let request = PutRequest {
        path,
        size_bytes,
        mode: Some(args.mode.unwrap_or(metadata.permissions().mode() & 0o7777)),
        sha256,
        create_dirs: args.parents,
        owner: args.owner.clone(),
        mtime_ms: Some(mtime.saturating_mul(1000).saturating_add(mtime_nsec / 1_000_000)),
        ranges: Some(walk.ranges().to_vec()),
        partial: Some(token),
    };
    let subject = client.guest_subject(name, "put")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let (reader, fed) =
        transfer::feed(file, walk.clone(), transfer::bar(Some(walk.travelling()))).map_err(failed("read"))?;
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let session = opening.session(&opened)?;
    let ended = session.run(Some(input), Vec::new(), cancel_on_signal()).await;
    let (result, sha256) = both(ended, transfer::here(fed, failed("read")).await)?;
    same(&from.display().to_string(), (size_bytes, sha256), &result)
}

/// How much of the file has come to the guest before, in bytes.
async fn came(
    client: &Client,
    name: &Token,
    path: &str,
    token: &str,
    deadline: Duration,
) -> Result<u64, CliError> {
    let request =
        StatRequest { path: path.to_owned(), partial: Some(token.to_owned()), ..StatRequest::default() };
    let subject = client.guest_subject(name, "stat")?;
    match client.call::<_, FileStat>(&subject, &request, CallOptions::read(deadline)).await {
        Ok(stat) => Ok(stat.size_bytes),
        // Whatever else is wrong with the path, `put` says better.
        Err(ClientError::Refused(error))
            if matches!(error.code, ErrorCode::NotFound | ErrorCode::InvalidArgument) =>
        {
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}

fn walk(size: u64, ranges: &[drover_schemas::guest::FileRange]) -> Result<Walk, CliError> {
    Walk::new(size, Some(ranges))
        .map_err(|e| CliError::Usage(format!("the file's ranges cannot be used: {e}")))
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
    let request = StatRequest { path: from.to_owned(), follow: true, ranges: true, ..StatRequest::default() };
    let subject = client.guest_subject(name, "stat")?;
    let stat: FileStat = client.call(&subject, &request, CallOptions::read(deadline)).await?;
    if stat.kind != FileKind::File {
        return Err(CliError::Usage(not_a_file(from, stat.kind == FileKind::Directory)));
    }
    let token = transfer::token(&[name, &from, &stat.size_bytes, &stat.mtime_ms]);
    let mut partial = Partial::beside(&target, &token)?;
    let failed = |action| {
        let path = target.clone();
        move |source| CliError::File { action, path, source }
    };
    if stat.size_bytes == 0 {
        // What states no size may have bytes all the same, as in `/proc`.
        let file = partial.file.try_clone().map_err(failed("open"))?;
        file.set_len(0).map_err(failed("empty"))?;
        let writer = Box::new(tokio::fs::File::from_std(file));
        let (size, sha256, mode) = receive(client, name, from, writer, transfer::bar(None), deadline).await?;
        partial.keep(&target, mode, None)?;
        return Ok((size, sha256));
    }
    let size = stat.size_bytes;
    let came = partial.len()?.min(size);
    let data = stat.ranges.unwrap_or_default();
    // A guest's list is no more trusted than its other words.
    let data = walk(size, &data)?.ranges().to_vec();
    let walk = walk(size, &ranges::from(&data, came))?;
    partial.room(walk.travelling())?;
    let request = GetRequest {
        path: from.to_owned(),
        max_size_bytes: Some(size),
        ranges: Some(walk.ranges().to_vec()),
    };
    let subject = client.guest_subject(name, "get")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let file = partial.file.try_clone().map_err(failed("open"))?;
    let (writer, stored) = transfer::store(file, walk.clone(), transfer::bar(Some(walk.travelling())))
        .map_err(failed("write"))?;
    let output = Output { channel: Channel::Data, writer: Box::new(writer) };
    let session = opening.session(&opened)?;
    // From here on what comes is worth keeping, until both ends disagree about it.
    partial.stays = true;
    let ended = session.run(None, vec![output], cancel_on_signal()).await;
    let (result, sha256) = both(ended, transfer::here(stored, failed("write")).await)?;
    partial.stays = false;
    let copied = same(from, (size, sha256), &result)?;
    partial.keep(&target, result.mode, result.mtime_ms)?;
    Ok(copied)
}

async fn receive(
    client: &Client,
    name: &Token,
    from: &str,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    bar: ProgressBar,
    deadline: Duration,
) -> Result<(u64, String, u32), CliError> {
    let request = GetRequest { path: from.to_owned(), ..GetRequest::default() };
    let subject = client.guest_subject(name, "get")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let tally = Tally::new(bar);
    let output = Output { channel: Channel::Data, writer: Box::new(Tallied::new(writer, tally.clone())) };
    let session = opening.session(&opened)?;
    let result: FileResult = session.run(None, vec![output], cancel_on_signal()).await?;
    let (size, sha256) = same(from, tally.total(), &result)?;
    Ok((size, sha256, result.mode))
}

/// The copy, if both ends saw the same bytes.
fn same(what: &str, (bytes, sha256): (u64, String), result: &FileResult) -> Result<(u64, String), CliError> {
    if bytes == result.size_bytes && sha256.eq_ignore_ascii_case(&result.sha256) {
        return Ok((bytes, sha256));
    }
    let here = format!("{sha256} ({bytes} bytes)");
    let there = format!("{} ({} bytes)", result.sha256, result.size_bytes);
    Err(CliError::Digest { what: what.to_owned(), here, there })
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
}
