//! The marks of a freeze: a file in the agent's folder that names what may be frozen, locked while somebody keeps it so.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use drover_schemas::{ErrorBody, ErrorCode, codec};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{disks, guest_error};

/// Its name.
const MARKS: &str = "frozen";
/// The most that is read of it.
const MAX_MARKS: u64 = 1 << 20;

/// What may be frozen, as the marks tell it.
#[derive(Default, Serialize, Deserialize)]
struct Left {
    points: Vec<ByteBuf>,
}

/// The file that tells it, locked while it is so.
pub(super) struct Marks {
    path: PathBuf,
    _lock: File,
}

impl Drop for Marks {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Marks that these may be frozen from now on.
///
/// # Errors
/// `conflict` while an earlier freeze is not over.
pub(super) fn mark<'a>(run_dir: &Path, points: impl Iterator<Item = &'a Path>) -> Result<Marks, ErrorBody> {
    let failed =
        |e: io::Error| guest_error(format!("a freeze cannot be marked in {}: {e}", run_dir.display()));
    std::fs::create_dir_all(run_dir).map_err(failed)?;
    let path = run_dir.join(MARKS);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let text =
            "an earlier freeze is not over: the guest's programs are being told, or a disk does not answer";
        return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "frozen"));
    }
    // Paths need not be text.
    let points = points.map(|point| ByteBuf::from(point.as_os_str().as_bytes()));
    let bytes = codec::encode(&Left { points: points.collect() }).map_err(|e| failed(io::Error::other(e)))?;
    file.set_len(0).and_then(|()| file.write_all(&bytes)).map_err(failed)?;
    Ok(Marks { path, _lock: file })
}

/// Thaws what an earlier agent and its keeper left frozen when both were killed. Answers what it was.
pub(super) fn recover(run_dir: &Path) -> Vec<String> {
    let path = run_dir.join(MARKS);
    let Ok(mut file) = File::open(&path) else { return Vec::new() };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        // Its keeper lives and has seen the agent's end.
        return Vec::new();
    }
    let mut bytes = Vec::new();
    let read = (&mut file).take(MAX_MARKS).read_to_end(&mut bytes);
    let Left { points } = read.ok().and_then(|_| codec::decode(&bytes).ok()).unwrap_or_default();
    let points: Vec<PathBuf> =
        points.into_iter().map(|point| OsString::from_vec(point.into_vec()).into()).collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let thawed = points.iter().rev().filter(|point| {
        rustix::fs::open(*point, flags, Mode::empty()).is_ok_and(|fd| disks::thaw(&fd).is_ok())
    });
    let thawed = thawed.map(|point| point.to_string_lossy().into_owned()).collect();
    let _ = std::fs::remove_file(&path);
    thawed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_keeper_guards_is_taken_for_left_behind_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recover(dir.path()).is_empty());
        let marks = mark(dir.path(), std::iter::empty()).unwrap();
        // One at a time, and nobody takes it from one that lives.
        assert_eq!(mark(dir.path(), std::iter::empty()).err().unwrap().code, ErrorCode::Conflict);
        recover(dir.path());
        assert!(marks.path.exists());
        drop(marks);
        std::fs::write(dir.path().join(MARKS), b"\xff\xff").unwrap();
        assert!(recover(dir.path()).is_empty());
        assert!(!dir.path().join(MARKS).exists());
    }
}
