//! `drover vm cp --recursive`: a folder, either way, as one stream.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_schemas::body::guest::PackReply;
use drover_schemas::guest::{MAX_TREE, PackRequest, TreeResult, UnpackRequest};
use drover_schemas::stream::{Channel, StreamOpened};
use drover_schemas::{RequestId, Token};
use drover_tree::{Draft, Links, Rules, Tally, TreeError};
use rustix::fs::{Mode, OFlags};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::super::exit::CliError;
use super::copy::CpArgs;
use super::exec::cancel_on_signal;
use super::transfer;
use crate::client::{CallOptions, Client, ClientError, Input, Output};

/// By how much a folder may grow between the look at it and its copy: a part of it and so many bytes.
const GROWTH: (u64, u64) = (16, 16 << 20);
/// Of what comes from a guest, nothing runs here with another's rights.
const MODE_MASK: u32 = 0o777;

pub(super) async fn put(
    args: &CpArgs,
    client: &Client,
    from: &Path,
    name: &Token,
    to: String,
    deadline: Duration,
) -> Result<TreeResult, CliError> {
    let path = match from.canonicalize().ok().and_then(|path| path.file_name().map(OsString::from)) {
        Some(name) if to.ends_with('/') => format!("{to}{}", name.to_string_lossy()),
        _ => to,
    };
    let folder = open(from)?;
    let (folder, found) = thread("read", from, move || {
        let found = drover_tree::survey(&folder)?;
        Ok((folder, found))
    })
    .await?;
    let request = UnpackRequest {
        path,
        size_bytes: with_growth(found.size_bytes),
        owner: args.owner.clone(),
        create_dirs: args.parents,
        replace: args.replace,
    };
    let subject = client.guest_subject(name, "unpack")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let opened: StreamOpened = opening.reply()?;
    let failed = |source| CliError::File { action: "read", path: from.to_owned(), source };
    let bar = transfer::bar(Some(found.size_bytes));
    let (reader, writer) = io::pipe().map_err(failed)?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed)?;
    let packing = tokio::task::spawn_blocking(move || drover_tree::pack(&folder, bar.wrap_write(writer)));
    let input = Input { channel: Channel::Data, reader: Box::new(reader) };
    let ended = opening.session(&opened)?.run(Some(input), Vec::new(), cancel_on_signal()).await;
    let (result, tally) = both(ended, packing, "read", from).await?;
    same(&from.display().to_string(), &tally, &result)?;
    Ok(TreeResult { skipped: result.skipped + tally.skipped, ..result })
}

pub(super) async fn get(
    args: &CpArgs,
    client: &Client,
    name: &Token,
    from: &str,
    to: &Path,
    deadline: Duration,
) -> Result<TreeResult, CliError> {
    let target = match Path::new(from).file_name() {
        Some(file_name) if to.is_dir() && !args.replace => to.join(file_name),
        _ => to.to_owned(),
    };
    let Some(file_name) = target.file_name().map(PathBuf::from) else {
        return Err(CliError::Usage(format!("{} names no folder", target.display())));
    };
    if !args.replace && target.symlink_metadata().is_ok() {
        return Err(local("write", &target, TreeError::Taken { path: target.clone() }));
    }
    let above = match target.parent() {
        Some(dir) if dir != Path::new("") => open(dir)?,
        _ => open(Path::new("."))?,
    };
    let request = PackRequest { path: from.to_owned(), max_size_bytes: None };
    let subject = client.guest_subject(name, "pack")?;
    let opening = client.open(&subject, &request, CallOptions::change(deadline)).await?;
    let PackReply { folder, stream } = opening.reply()?;
    transfer::room(&above, &target, folder.size_bytes)?;
    let mut hidden = OsString::from(".");
    hidden.push(file_name.to_string_lossy().chars().take(40).collect::<String>());
    hidden.push(format!(".{}.part", RequestId::generate()));
    let draft = Draft::new(above, hidden).map_err(|e| local("write", &target, e))?;
    let bar = transfer::bar(Some(folder.size_bytes));
    let rules = Rules {
        owner: None,
        mode_mask: MODE_MASK,
        links: Links::Inside,
        // What a guest says comes is the most that it may send.
        max_entries: folder.entries.saturating_add(folder.entries / GROWTH.0 + 1024).min(MAX_TREE),
        max_bytes: with_growth(folder.size_bytes),
    };
    let failed = |source| CliError::File { action: "write", path: target.clone(), source };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let writer = pipe::Sender::from_owned_fd(OwnedFd::from(writer)).map_err(failed)?;
    let unpacking = tokio::task::spawn_blocking(move || {
        let tally = drover_tree::unpack(bar.wrap_read(reader), draft.folder(), &rules)?;
        Ok((draft, tally))
    });
    let output = Output { channel: Channel::Data, writer: Box::new(writer) };
    let ended = opening.session(&stream)?.run(None, vec![output], cancel_on_signal()).await;
    let (result, (draft, tally)) = both(ended, unpacking, "write", &target).await?;
    same(from, &tally, &result)?;
    let (shown, replace) = (target.clone(), args.replace);
    thread("write", &shown, move || draft.place(&file_name, replace)).await?;
    // Links that lead out of the folder are the guest's word for a path of this machine.
    Ok(TreeResult { entries: tally.entries, skipped: result.skipped + tally.skipped, ..result })
}

fn with_growth(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / GROWTH.0).saturating_add(GROWTH.1)
}

fn open(dir: &Path) -> Result<OwnedFd, CliError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed =
        |e: rustix::io::Errno| CliError::File { action: "open", path: dir.to_owned(), source: e.into() };
    rustix::fs::open(dir, flags, Mode::empty()).map_err(failed)
}

fn local(action: &'static str, path: &Path, source: TreeError) -> CliError {
    CliError::Folder { action, path: path.to_owned(), source }
}

/// Runs work on files where it holds nothing up.
async fn thread<T: Send + 'static>(
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
) -> Result<T, CliError> {
    joined(tokio::task::spawn_blocking(work)).await.map_err(|e| local(action, path, e))
}

async fn joined<T>(thread: JoinHandle<Result<T, TreeError>>) -> Result<T, TreeError> {
    thread.await.unwrap_or_else(|panicked| Err(TreeError::Read { source: io::Error::other(panicked) }))
}

/// The results of both ends. A stream that broke because this end did is this end's failure, and the other way round.
async fn both<T>(
    ended: Result<TreeResult, ClientError>,
    thread: JoinHandle<Result<T, TreeError>>,
    action: &'static str,
    path: &Path,
) -> Result<(TreeResult, T), CliError> {
    match (ended, joined(thread).await) {
        (Ok(result), Ok(here)) => Ok((result, here)),
        (Ok(_) | Err(ClientError::Input(_) | ClientError::Output(_)), Err(error)) => {
            Err(local(action, path, error))
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Refuses what the two ends do not see alike.
fn same(what: &str, here: &Tally, there: &TreeResult) -> Result<(), CliError> {
    if here.stream_bytes == there.stream_bytes && here.sha256 == there.sha256 {
        return Ok(());
    }
    let shown = |sha256: &str, bytes: u64| format!("{sha256} ({bytes} bytes)");
    Err(CliError::Digest {
        what: what.to_owned(),
        here: shown(&here.sha256, here.stream_bytes),
        there: shown(&there.sha256, there.stream_bytes),
    })
}
