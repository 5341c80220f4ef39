//! Connections to sockets in a directory that belongs to a VM's user, who is hostile.
//!
//! A path there may be a link to somebody else's socket by the time it is used. So the file itself is held
//! first, looked at, and connected to through its descriptor: what was looked at is what is spoken to.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::UnixStream;

/// Connects to the socket at `path`, which is served by the user who has its directory.
///
/// # Errors
/// There is no socket at the path itself, it refuses, or another user serves it.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode);
    if kind != FileType::Socket {
        let text = format!("{} is a {kind:?}, not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", held.as_raw_fd())).await?;
    let owner = std::fs::symlink_metadata(path.parent().unwrap_or(path))?.uid();
    let server = stream.peer_cred()?.uid();
    if server != owner {
        let text = format!("{} is served by user {server}, not {owner}", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_is_not_followed_and_another_users_server_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let _listener = UnixListener::bind(&real).unwrap();
        connect(&real).await.unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(connect(&link).await.unwrap_err().to_string().contains("not a socket"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(connect(&dir.path().join("file")).await.is_err());
        let missing = connect(&dir.path().join("missing")).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(12_345), None).unwrap();
            let refused = connect(&real).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
        }
    }
}
