//! `drover vm cp --recursive`: a folder, either way, as one stream.

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
use super::transfer::{self, both};
use crate::client::{CallOptions, Client, Input, Output};

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
    let whole = from.canonicalize().ok();
    let path = transfer::place(to, whole.as_deref().and_then(Path::file_name));
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
    let (result, tally) = both(ended, here(packing, "read", from).await)?;
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
    let hidden = transfer::hidden(file_name.as_os_str(), &RequestId::generate().to_string());
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
    let (result, (draft, tally)) = both(ended, here(unpacking, "write", &target).await)?;
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
    here(tokio::task::spawn_blocking(work), action, path).await
}

/// What the thread at this end came to.
async fn here<T>(
    thread: JoinHandle<Result<T, TreeError>>,
    action: &'static str,
    path: &Path,
) -> Result<T, CliError> {
    let failed = |panicked| Err(TreeError::Read { source: io::Error::other(panicked) });
    thread.await.unwrap_or_else(failed).map_err(|e| local(action, path, e))
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
