//! `put`: a file, whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::PathBuf;

use bytes::Bytes;
use drover_schemas::guest::ranges::{Step, Walk};
use drover_schemas::guest::{PutRequest, PutResult};
use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::held::{self, Name};
use super::partial::{self, Claim};
use super::worker::Worker;
use super::{Effect, file, invalid, reply};
use crate::Agent;
use crate::account::{self, Account};
use crate::conn::Stream;
use crate::dedupe::Outcome;
use crate::policy::Reach;

const DEFAULT_MODE: u32 = 0o644;
/// The most that is read of a file in one go for the digest, in bytes.
const BATCH: u64 = 256 * 1024;

/// What the file will be beside its bytes.
struct Looks {
    mode: u32,
    owner: Option<Account>,
    mtime_ms: Option<i64>,
}

/// A file on its way under a name of its own. The name is removed with it, unless it was placed or may be gone on with.
struct Draft {
    file: File,
    target: Name,
    hidden: OsString,
    is_kept: bool,
    hash: Sha256,
    walk: Walk,
    /// Where bytes go next, if that is known.
    step: Option<Step>,
    /// Bytes that have come.
    came: u64,
    size: u64,
    /// Dropped last: then another transfer may have the file.
    _claim: Option<Claim>,
}

/// Ends with its stream where it waits for bytes. Who drops it ends it anywhere; then its thread may still be at a job, and
/// what that one leaves goes a moment later.
pub(crate) async fn run(
    agent: &Agent,
    stream: &Stream,
    request: PutRequest,
    reach: &Reach,
    effect: &Effect,
) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let looks = Looks {
        mode: file::mode(request.mode.unwrap_or(DEFAULT_MODE))?,
        owner: request.owner.as_deref().map(account::resolve).transpose()?,
        mtime_ms: request.mtime_ms,
    };
    if let Some(hash) = &request.sha256
        && (hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    {
        return Err(invalid("sha256 must be 64 lower-case hex digits"));
    }
    let walk = Walk::new(request.size, request.ranges.as_deref()).map_err(|e| invalid(e.to_string()))?;
    let travelling = walk.travelling();
    let dirs = request.create_dirs;
    let within = reach.clone();
    let worker = Worker::start()?;
    let target = worker.run(move || find(path, dirs, &within)).await?;
    let (hidden, claim) = match &request.partial {
        None => (partial::name(&target.name, &ulid::Ulid::new().to_string()), None),
        Some(token) => {
            partial::check(token)?;
            let hidden = partial::name(&target.name, token);
            let dir = target.dir.metadata().map_err(|e| target.refused("look at the directory of", e))?;
            let claim = agent.partials.take((dir.dev(), dir.ino(), hidden.clone())).await;
            (hidden, Some(claim))
        }
    };
    let stopped = claim.as_ref().map(Claim::stopped).unwrap_or_default();
    let mut draft = worker.run(move || Draft::create(target, hidden, claim, walk)).await?;

    while let Some(first) = next(stream, &stopped).await? {
        // Everything that has come meanwhile goes to disk in one go.
        let mut chunks = vec![first];
        chunks.extend(std::iter::from_fn(|| stream.try_recv()));
        let coming = chunks.iter().map(|c| c.len() as u64).sum::<u64>();
        if draft.came + coming > travelling {
            draft.is_kept = false;
            return Err(invalid(format!(
                "more than the announced {travelling} bytes came; state the true size"
            )));
        }
        draft = worker.run(move || draft.write(&chunks)).await?;
    }
    if draft.came != travelling {
        return Err(invalid(format!("{} bytes came, {travelling} were announced", draft.came)));
    }
    let mut draft = worker.run(move || draft.finish()).await?;
    let sha256 = file::hex(&draft.hash.clone().finalize());
    if let Some(expected) = &request.sha256
        && *expected != sha256
    {
        draft.is_kept = false;
        return Err(ErrorBody::new(
            ErrorCode::InvalidArgument,
            format!("the bytes that arrived have SHA-256 {sha256}, not {expected}; nothing was changed"),
        )
        .with("sha256", &sha256));
    }
    effect.begins();
    worker.run(move || draft.place(&looks)).await?;
    reply(&PutResult { size: request.size, sha256 })
}

/// The next bytes; `None` at their end.
async fn next(stream: &Stream, stopped: &CancellationToken) -> Result<Option<Bytes>, ErrorBody> {
    tokio::select! {
        biased;
        ending = stream.ending() => Err(ending.error()),
        () = stopped.cancelled() => Err(ErrorBody::new(
            ErrorCode::Conflict,
            "another transfer of the same file goes on with it",
        )
        .with("cause", "taken_over")),
        bytes = stream.recv() => Ok(bytes),
    }
}

/// The name to write, if a file may have it.
fn find(path: PathBuf, create_dirs: bool, reach: &Reach) -> Result<Name, ErrorBody> {
    if create_dirs {
        file::above(&path, reach)?;
    }
    let name = Name::find(path)?;
    reach.changes(&name.dir, &name.name)?;
    is_replaceable(&name)?;
    Ok(name)
}

/// Looked at when a file begins to come, and once more when it takes the name: another may have it by then.
fn is_replaceable(name: &Name) -> Result<(), ErrorBody> {
    match name.stat()?.map(|stat| held::kind(&stat)) {
        None | Some(FileType::RegularFile | FileType::Symlink) => Ok(()),
        Some(FileType::Directory) => {
            Err(invalid(format!("{} is a directory; name the file in it", name.path.display())))
        }
        Some(_) => Err(invalid(format!(
            "{} is a pipe, a socket or a device, and is not replaced by a file; remove it first",
            name.path.display()
        ))),
    }
}

impl Draft {
    fn create(target: Name, hidden: OsString, claim: Option<Claim>, walk: Walk) -> Result<Self, ErrorBody> {
        let (may_exist, size) = (claim.is_some(), walk.size());
        let mut flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if !may_exist {
            flags |= OFlags::EXCL;
        }
        let file: File = rustix::fs::openat(&target.dir, &hidden, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| target.refused("write beside", e))?
            .into();
        let (step, hash) = (None, Sha256::new());
        let mut draft =
            Self { file, target, hidden, is_kept: true, hash, walk, step, came: 0, size, _claim: claim };
        let meta = draft.file.metadata().map_err(|e| draft.target.refused("look at", e))?;
        // A name that others can write to is not gone on with: they could change it behind the digest.
        if !meta.is_file() || meta.nlink() != 1 || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(invalid(format!(
                "what is left of the transfer to {} is not the agent's own file; use another partial",
                draft.target.path.display()
            )));
        }
        draft.is_kept = may_exist;
        draft.make_room()?;
        Ok(draft)
    }

    fn make_room(&mut self) -> Result<(), ErrorBody> {
        let needed = self.walk.travelling();
        let available = match file::room(&self.file, &self.target.path, needed) {
            Ok(available) => available,
            Err(error) => {
                self.is_kept &= self.file.metadata().is_ok_and(|meta| meta.len() > 0);
                return Err(error);
            }
        };
        for range in self.walk.ranges() {
            match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, range.off, range.len) {
                Err(Errno::NOSPC) => return Err(file::full(&self.target.path, needed, available)),
                Err(errno @ Errno::FBIG) => return Err(self.target.refused("find room for", errno)),
                // Not every file system can set room aside.
                _ => {}
            }
        }
        Ok(())
    }

    fn write(mut self, chunks: &[Bytes]) -> Result<Self, ErrorBody> {
        for chunk in chunks {
            let mut rest = chunk.as_ref();
            while !rest.is_empty() {
                let Some(step) = self.step.take().or_else(|| self.walk.step(u64::MAX)) else {
                    return Err(invalid("more bytes came than were announced"));
                };
                self.pass(step.gap)?;
                let (now, later) =
                    rest.split_at(rest.len().min(usize::try_from(step.len).unwrap_or(usize::MAX)));
                self.file.write_all(now).map_err(|e| self.target.refused("write", e))?;
                self.hash.update(now);
                let len = now.len() as u64;
                self.came += len;
                rest = later;
                if len < step.len {
                    self.step = Some(Step { gap: 0, off: step.off + len, len: step.len - len });
                }
            }
        }
        Ok(self)
    }

    /// Takes what is in the file already into the digest; beyond its end that is zeros.
    fn pass(&mut self, gap: u64) -> Result<(), ErrorBody> {
        let failed = |target: &Name, e: io::Error| target.refused("read back", e);
        let mut left = gap;
        let mut buf = vec![0; left.min(BATCH) as usize];
        while left > 0 {
            let want = left.min(BATCH) as usize;
            let got = match self.file.read(&mut buf[..want]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                got => got.map_err(|e| failed(&self.target, e))?,
            };
            if got == 0 {
                buf.fill(0);
                self.file.seek(SeekFrom::Current(left as i64)).map_err(|e| failed(&self.target, e))?;
                while left > 0 {
                    let zeros = left.min(BATCH);
                    self.hash.update(&buf[..zeros as usize]);
                    left -= zeros;
                }
                return Ok(());
            }
            self.hash.update(&buf[..got]);
            left -= got as u64;
        }
        Ok(())
    }

    /// The bytes have all come.
    fn finish(mut self) -> Result<Self, ErrorBody> {
        self.pass(self.walk.rest())?;
        self.file.set_len(self.size).map_err(|e| self.target.refused("finish", e))?;
        Ok(self)
    }

    fn place(mut self, looks: &Looks) -> Result<(), ErrorBody> {
        let target = &self.target;
        if let Some(owner) = &looks.owner {
            fchown(&self.file, Some(owner.uid), Some(owner.gid))
                .map_err(|e| target.refused("change the owner of", e))?;
        }
        // After the owner: a change of owner clears the set-id bits.
        self.file
            .set_permissions(fs::Permissions::from_mode(looks.mode))
            .map_err(|e| target.refused("set the mode of", e))?;
        if let Some(ms) = looks.mtime_ms {
            let at =
                Timespec { tv_sec: ms.div_euclid(1000), tv_nsec: (ms.rem_euclid(1000) * 1_000_000) as _ };
            let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
            let times = Timestamps { last_access: omit, last_modification: at };
            rustix::fs::futimens(&self.file, &times).map_err(|e| target.refused("set the time of", e))?;
        }
        self.file.sync_all().map_err(|e| target.refused("finish", e))?;
        is_replaceable(target)?;
        rustix::fs::renameat(&target.dir, &self.hidden, &target.dir, &target.name)
            .map_err(|e| target.refused("replace", e))?;
        self.is_kept = true;
        // The rename itself must survive a crash.
        self.target.dir.sync_all().map_err(|e| self.target.refused("write to disk", e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = rustix::fs::unlinkat(&self.target.dir, &self.hidden, AtFlags::empty());
        }
    }
}
