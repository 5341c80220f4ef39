//! What the verbs of files share: paths, and the system's refusals in the contract's words.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::SemaphorePermit;

use super::{held, invalid};
use crate::policy::Reach;
use crate::{Agent, MAX_TRANSFERS, memory};

/// An absolute path without a step upwards.
pub(super) fn path(text: &str) -> Result<PathBuf, ErrorBody> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') || text.len() > 4096 {
        return Err(invalid(format!("{text:?} is not an absolute path in the guest")));
    }
    if path.components().any(|c| matches!(c, Component::ParentDir)) {
        return Err(invalid(format!("{text:?} goes upwards; write the path without \"..\"")));
    }
    Ok(path.to_owned())
}

/// What the system said about `path`, while the agent wanted to `act` on it.
pub(super) fn refused(act: &str, path: &Path, error: &io::Error) -> ErrorBody {
    let code = code(error);
    let advice = match code {
        ErrorCode::NotFound => "; check the path, or set create_dirs",
        ErrorCode::ResourceExhausted => "; free space in the guest",
        _ => "",
    };
    ErrorBody::new(code, format!("cannot {act} {}: {error}{advice}", path.display()))
        .with("path", path.display())
}

/// What the system said, in the contract's words.
pub(super) fn code(error: &io::Error) -> ErrorCode {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => ErrorCode::NotFound,
        K::PermissionDenied | K::ReadOnlyFilesystem => ErrorCode::PermissionDenied,
        K::AlreadyExists => ErrorCode::AlreadyExists,
        K::StorageFull | K::QuotaExceeded | K::OutOfMemory => ErrorCode::ResourceExhausted,
        K::IsADirectory | K::NotADirectory | K::InvalidInput | K::InvalidFilename => {
            ErrorCode::InvalidArgument
        }
        _ => ErrorCode::GuestError,
    }
}

/// Makes the folders above `path` that are missing, mode 0o755. Below what is there no link is followed.
pub(super) fn above(path: &Path, reach: &Reach) -> Result<(), ErrorBody> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let failed = |e: io::Error| refused("make the directory", dir, &e);
    let (mut at, mut missing) = (dir, Vec::new());
    let mut above = loop {
        match (held::open(at, OFlags::RDONLY | OFlags::DIRECTORY), at.parent(), at.file_name()) {
            (Ok(held), ..) => break held,
            (Err(e), Some(parent), Some(name)) if e.kind() == io::ErrorKind::NotFound => {
                missing.push(name);
                at = parent;
            }
            (Err(e), ..) => return Err(failed(e)),
        }
    };
    for name in missing.into_iter().rev() {
        reach.changes(&above, name)?;
        match fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        above = fs::openat(&above, name, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// A full disk shows now, with numbers, and not at the last byte. The result is what the disk has for others than root.
pub(super) fn room(on: &File, path: &Path, needed: u64) -> Result<u64, ErrorBody> {
    let stat = rustix::fs::fstatvfs(on).map_err(|e| refused("measure room for", path, &e.into()))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems have no notion of blocks.
    if stat.f_blocks > 0 && needed > available {
        return Err(full(path, needed, available));
    }
    Ok(available)
}

pub(super) fn full(path: &Path, needed: u64, available: u64) -> ErrorBody {
    let text = format!(
        "{} needs {needed} bytes, and its file system has {available}; free space in the guest",
        path.display()
    );
    ErrorBody::new(ErrorCode::ResourceExhausted, text)
        .with("needed_bytes", needed)
        .with("available_bytes", available)
}

/// Permission bits, and nothing else.
pub(super) fn mode(mode: u32) -> Result<u32, ErrorBody> {
    if mode > 0o7777 {
        return Err(invalid(format!("mode {mode:o} has more than permission bits; use at most 7777 octal")));
    }
    Ok(mode)
}

/// A place among the files that are on their way.
#[derive(Debug)]
pub(super) struct Place<'a>(#[expect(dead_code, reason = "held, not looked at")] SemaphorePermit<'a>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        memory::give_back();
    }
}

/// Takes a place, or says that there is none.
pub(super) fn place(agent: &Agent) -> Result<Place<'_>, ErrorBody> {
    agent.transfers.try_acquire().map(Place).map_err(|_| {
        ErrorBody::new(
            ErrorCode::Busy,
            format!("{MAX_TRANSFERS} files are on their way to or from this guest; wait for one to end"),
        )
    })
}

/// Runs file work on a thread of its own, so that a slow disk does not hold up other streams.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorBody> + Send + 'static,
) -> Result<T, ErrorBody> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ErrorBody::new(ErrorCode::Internal, format!("the agent's file work failed: {error}")))
    })
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
