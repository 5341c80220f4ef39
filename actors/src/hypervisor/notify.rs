//! How the daemon learns that a holder has something new: datagrams on one socket for all VMs.
//!
//! A notice says only "look at this VM". It is lost when the daemon is away or its queue is full, so nobody
//! may rely on it: the VM actor asks `vm.info` now and then all the same. Only root can send one.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use drover_schemas::id::VmId;
use tokio::net::UnixDatagram;

use super::run_dir::RunRoot;

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path:?}")]
pub struct NotifyError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Receives the notices of all holders of this installation.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// Listens below `root`, in place of an earlier daemon.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(root: &RunRoot) -> Result<Self, NotifyError> {
        let path = root.notify_socket();
        let bind = || -> io::Result<UnixDatagram> {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = UnixDatagram::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Ok(Self { socket, path }),
            Err(source) => Err(NotifyError { path, source }),
        }
    }

    /// The next VM to look at; anything else that arrives is dropped.
    ///
    /// # Errors
    /// The socket broke.
    pub async fn recv(&self) -> io::Result<VmId> {
        let mut buffer = [0; 64];
        loop {
            let length = self.socket.recv(&mut buffer).await?;
            let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
            if let Ok(id) = text.trim().parse() {
                return Ok(id);
            }
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // A name without a reader: holders drop their notices either way.
        let _ = fs::remove_file(&self.path);
    }
}
