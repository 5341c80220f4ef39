//! `put`: a file, whole or not at all.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use drover_schemas::guest::{PutRequest, PutResult};
use drover_schemas::{ErrorBody, ErrorCode};
use sha2::{Digest as _, Sha256};

use super::{Effect, file, invalid, reply};
use crate::Agent;
use crate::account::{self, Account};
use crate::conn::Stream;
use crate::dedupe::Outcome;

const DEFAULT_MODE: u32 = 0o644;

/// A file on its way under a temporary name, which is removed unless [`Self::place`] succeeds.
struct Draft {
    file: File,
    temporary: Option<PathBuf>,
    path: PathBuf,
    hash: Sha256,
    size: u64,
}

pub(super) async fn run(agent: &Agent, stream: &Stream, request: PutRequest, effect: &Effect) -> Outcome {
    let _place = file::place(agent)?;
    let path = file::path(&request.path)?;
    let owner = request.owner.as_deref().map(account::resolve).transpose()?;
    let mode = request.mode.unwrap_or(DEFAULT_MODE);
    if mode > 0o7777 {
        return Err(invalid(format!("mode {mode:o} has more than permission bits; use at most 7777 octal")));
    }
    if let Some(hash) = &request.sha256
        && (hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    {
        return Err(invalid("sha256 must be 64 lower-case hex digits"));
    }
    let (size, dirs) = (request.size, request.create_dirs);
    let mut draft = file::blocking(move || Draft::create(path, size, dirs)).await?;

    while let Some(first) = stream.recv().await {
        // Everything that has come meanwhile goes to disk in one go.
        let mut chunks = vec![first];
        chunks.extend(std::iter::from_fn(|| stream.try_recv()));
        let coming = chunks.iter().map(|c| c.len() as u64).sum::<u64>();
        if draft.size + coming > request.size {
            return Err(invalid(format!(
                "more than the announced {} bytes came; state the true size",
                request.size
            )));
        }
        draft = file::blocking(move || draft.write(&chunks)).await?;
    }
    if draft.size != request.size {
        return Err(invalid(format!("{} bytes came, {} were announced", draft.size, request.size)));
    }
    let sha256 = file::hex(&draft.hash.clone().finalize());
    if let Some(expected) = &request.sha256
        && *expected != sha256
    {
        return Err(ErrorBody::new(
            ErrorCode::InvalidArgument,
            format!("the bytes that arrived have SHA-256 {sha256}, not {expected}; nothing was changed"),
        )
        .with("sha256", &sha256));
    }
    effect.begins();
    file::blocking(move || draft.place(mode, owner.as_ref())).await?;
    reply(&PutResult { size, sha256 })
}

impl Draft {
    fn create(path: PathBuf, size: u64, create_dirs: bool) -> Result<Self, ErrorBody> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(invalid(format!("{} is not a file's path", path.display())));
        };
        if create_dirs {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.map_err(|e| file::refused("make the directory", dir, &e))?;
        }
        if path.is_dir() {
            return Err(invalid(format!("{} is a directory; name the file in it", path.display())));
        }
        let mut hidden = OsString::from(".");
        // Leaves room for the suffix within the 255 bytes of a name.
        hidden.push(name.to_string_lossy().chars().take(40).collect::<String>());
        hidden.push(format!(".{}.drover", ulid::Ulid::new()));
        let temporary = dir.join(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(|e| file::refused("write into", dir, &e))?;
        let draft = Self { file, temporary: Some(temporary), path, hash: Sha256::new(), size: 0 };
        if size > 0 {
            // A full disk shows now and not at the last byte; not every file system can tell.
            let space = rustix::fs::fallocate(&draft.file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, size);
            if let Err(errno @ (rustix::io::Errno::NOSPC | rustix::io::Errno::FBIG)) = space {
                return Err(file::refused("find room for", &draft.path, &errno.into()));
            }
        }
        Ok(draft)
    }

    fn write(mut self, chunks: &[Bytes]) -> Result<Self, ErrorBody> {
        for chunk in chunks {
            self.hash.update(chunk);
            self.file.write_all(chunk).map_err(|e| file::refused("write", &self.path, &e))?;
            self.size += chunk.len() as u64;
        }
        Ok(self)
    }

    fn place(mut self, mode: u32, owner: Option<&Account>) -> Result<(), ErrorBody> {
        let refused = |act: &str, e: &std::io::Error| file::refused(act, &self.path, e);
        if let Some(owner) = owner {
            fchown(&self.file, Some(owner.uid), Some(owner.gid))
                .map_err(|e| refused("change the owner of", &e))?;
        }
        // After the owner: a change of owner clears the set-id bits.
        self.file
            .set_permissions(fs::Permissions::from_mode(mode))
            .and_then(|()| self.file.sync_all())
            .map_err(|e| refused("finish", &e))?;
        let Some(temporary) = self.temporary.as_deref() else { return Ok(()) };
        fs::rename(temporary, &self.path).map_err(|e| refused("replace", &e))?;
        self.temporary = None;
        // The rename itself must survive a crash.
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| file::refused("write to disk", dir, &e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}
