//! `pack` and `unpack`: folders, as streams in the format of tar.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use drover_schemas::codec;
use drover_schemas::guest::{Channel, MAX_TREE, PackHead, PackRequest, TreeResult, UnpackRequest};
use drover_schemas::{ErrorBody, ErrorCode};
use drover_tree::{Draft, Links, Rules, Tally, TreeError};
use rustix::fs::OFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use super::held::{self, Name};
use super::worker::Worker;
use super::{Effect, file, invalid, partial, reply};
use crate::account::{self, Account};
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::policy::Reach;
use crate::{Agent, log};

/// The most that is read in one go, in bytes.
const BATCH: u64 = 64 * 1024;
/// Permission bits that travel to a guest: nothing in a folder runs with another's rights for having travelled.
const MODE_MASK: u32 = 0o1777;

pub(super) async fn pack(agent: &Agent, stream: &Stream, request: PackRequest, reach: &Reach) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let max = request.max_size_bytes.unwrap_or(u64::MAX);
    let reach = reach.clone();
    let worker = Worker::start()?;
    let (folder, path, head) = worker.run(move || survey(path, max, &reach)).await?;
    stream.head(codec::encode(&head).map_err(|e| invalid(e.to_string()))?);
    let (mut reader, writer) =
        pipes(|(reader, writer)| Ok((pipe::Receiver::from_owned_fd(reader)?, writer)))?;
    // Ends by itself when nobody reads any more.
    let packing = worker.run(move || {
        drover_tree::pack(&folder, io::PipeWriter::from(writer)).map_err(|e| refused("read", &path, &e))
    });
    let sending = async {
        loop {
            // No byte is read without credit.
            let room = stream.room(Channel::Data).await.min(BATCH);
            let mut buf = BytesMut::with_capacity(room as usize);
            match reader.read_buf(&mut buf).await {
                Ok(0) | Err(_) => return,
                Ok(_) => stream.send(Channel::Data, buf.freeze()).await,
            }
        }
    };
    let (tally, ()) = tokio::join!(packing, sending);
    reply(&result(tally?))
}

pub(super) async fn unpack(
    agent: &Agent,
    stream: &Stream,
    request: UnpackRequest,
    reach: &Reach,
    effect: &Effect,
) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let owner = request.owner.as_deref().map(account::resolve).transpose()?;
    let (dirs, replace, size) = (request.create_dirs, request.replace, request.size_bytes);
    let reach = reach.clone();
    let worker = Worker::start()?;
    let (draft, target) = worker.run(move || begin(path, dirs, replace, size, &reach)).await?;
    let rules = Rules {
        owner: owner.map(|Account { uid, gid, .. }| (uid, gid)),
        mode_mask: MODE_MASK,
        links: Links::All,
        max_entries: MAX_TREE,
        max_bytes: size,
    };
    let (reader, mut writer) = pipes(|(reader, writer)| Ok((reader, pipe::Sender::from_owned_fd(writer)?)))?;
    let shown = target.path.clone();
    // Its draft is its own: if the stream ends early, so does this, and removes what it has.
    let unpacking = worker.run(move || {
        let done = drover_tree::unpack(io::PipeReader::from(reader), draft.folder(), &rules);
        let tally = done.map_err(|e| refused("write", &shown, &e))?;
        // One for all of them: each file by itself would take a disk's time again and again.
        rustix::fs::syncfs(draft.folder()).map_err(|e| file::refused("write to disk", &shown, &e.into()))?;
        Ok((draft, tally))
    });
    let feeding = async move {
        while let Some(bytes) = stream.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                // The other end has the reason.
                return;
            }
        }
    };
    let (unpacked, ()) = tokio::join!(unpacking, feeding);
    let (draft, tally) = unpacked?;
    effect.begins();
    worker
        .run(move || {
            draft.place(Path::new(&target.name), replace).map_err(|e| refused("write", &target.path, &e))
        })
        .await?;
    reply(&result(tally))
}

fn survey(path: PathBuf, max: u64, reach: &Reach) -> Result<(OwnedFd, PathBuf, PackHead), ErrorBody> {
    let folder = held::open(&path, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| file::refused("open the directory", &path, &e))?;
    reach.reads(&folder)?;
    let found = drover_tree::survey(&folder).map_err(|e| refused("read", &path, &e))?;
    if found.size_bytes > max {
        let text =
            format!("{} has {} bytes, and at most {max} were asked for", path.display(), found.size_bytes);
        return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text).with("size_bytes", found.size_bytes));
    }
    Ok((folder, path, PackHead { entries: found.entries, size_bytes: found.size_bytes }))
}

/// The name to write, and the folder that will have it.
fn begin(
    path: PathBuf,
    create_dirs: bool,
    replace: bool,
    size: u64,
    reach: &Reach,
) -> Result<(Draft, Name), ErrorBody> {
    if create_dirs {
        file::above(&path, reach)?;
    }
    let name = Name::find(path)?;
    reach.changes(&name.dir, &name.name)?;
    if !replace && name.stat()?.is_some() {
        return Err(taken(&name.path));
    }
    file::room(&name.dir, &name.path, size)?;
    let hidden: OsString = partial::name(&name.name, &ulid::Ulid::new().to_string());
    let above = name.dir.try_clone().map_err(|e| name.refused("hold the directory of", e))?;
    let draft = Draft::new(above.into(), hidden).map_err(|e| refused("write", &name.path, &e))?;
    Ok((draft, name))
}

fn taken(path: &Path) -> ErrorBody {
    let text = format!("{} is there already; name another path, or set replace", path.display());
    ErrorBody::new(ErrorCode::AlreadyExists, text).with("path", path.display())
}

/// A pipe between this task and a thread.
fn pipes<T>(take: impl FnOnce((OwnedFd, OwnedFd)) -> io::Result<T>) -> Result<T, ErrorBody> {
    let made = io::pipe().and_then(|(reader, writer)| take((reader.into(), writer.into())));
    made.map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the agent cannot make a pipe: {e}")))
}

/// What went wrong with the folder `path`, in the contract's words.
fn refused(act: &str, path: &Path, error: &TreeError) -> ErrorBody {
    let code = match error {
        TreeError::File { source, .. } => file::code(source),
        TreeError::Taken { .. } => return taken(path),
        TreeError::Shrunk { .. } => ErrorCode::Conflict,
        TreeError::Read { .. } | TreeError::Write { .. } => ErrorCode::GuestError,
        TreeError::Deep { .. }
        | TreeError::Cut
        | TreeError::Malformed { .. }
        | TreeError::Path { .. }
        | TreeError::Unsupported { .. }
        | TreeError::TooMuch { .. } => ErrorCode::InvalidArgument,
    };
    ErrorBody::new(code, format!("cannot {act} {}: {}", path.display(), log::chain(error)))
        .with("path", path.display())
}

fn result(tally: Tally) -> TreeResult {
    let Tally { entries, size_bytes, skipped, stream_bytes, sha256 } = tally;
    TreeResult { entries, size_bytes, skipped, stream_bytes, sha256 }
}
