//! Where the host comes in: vsock in a guest, a unix socket where the agent is a plain process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::log;

/// A connection's bytes.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `vsock:PORT`.
    Vsock(u32),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not an address: use vsock:PORT or unix:PATH");
        match s.split_once(':').ok_or_else(bad)? {
            ("vsock", port) => port.parse().map(Self::Vsock).map_err(|_| bad()),
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(bad()),
        }
    }
}

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address:?}")]
pub struct BindError {
    /// Where.
    pub address: Address,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// No further connection can come.
#[derive(Debug, thiserror::Error)]
#[error("cannot accept connections")]
pub struct AcceptError {
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// An open door.
#[derive(Debug)]
pub enum Listener {
    /// Serves the host only.
    Vsock(VsockListener),
    /// Serves whoever may open the socket.
    Unix(UnixListener),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Vsock(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    /// Opens the door. A socket file left by an earlier run is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(address: &Address) -> Result<Self, BindError> {
        let failed = |source| BindError { address: address.clone(), source };
        match address {
            Address::Vsock(port) => {
                VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port)).map(Self::Vsock).map_err(failed)
            }
            Address::Unix(path) => {
                if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                    fs::remove_file(path).map_err(failed)?;
                }
                UnixListener::bind(path).map(Self::Unix).map_err(failed)
            }
        }
    }

    /// Goes on with the door that an agent before this has opened.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn inherit(address: &Address, fd: OwnedFd) -> Result<Self, BindError> {
        match address {
            Address::Vsock(_) => Ok(Self::Vsock(fd.into())),
            Address::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                let failed = |source| BindError { address: address.clone(), source };
                listener.set_nonblocking(true).map_err(failed)?;
                UnixListener::from_std(listener).map(Self::Unix).map_err(failed)
            }
        }
    }

    /// The next connection of somebody who may speak to the agent.
    ///
    /// # Errors
    /// [`AcceptError`] when no further connection can come.
    pub async fn accept(&self) -> Result<Box<dyn Socket>, AcceptError> {
        loop {
            let accepted = match self {
                Self::Vsock(listener) => match listener.accept().await {
                    // A program of the guest can reach this port through the loopback transport;
                    // only the host has CID 2.
                    Ok((_, peer)) if peer.cid() != VMADDR_CID_HOST => {
                        log::warn(format_args!("closed a connection of CID {}: not the host", peer.cid()));
                        continue;
                    }
                    other => other.map(|(socket, _)| Box::new(socket) as Box<dyn Socket>),
                },
                Self::Unix(listener) => {
                    listener.accept().await.map(|(socket, _)| Box::new(socket) as Box<dyn Socket>)
                }
            };
            match accepted {
                Ok(socket) => return Ok(socket),
                Err(source) => match source.raw_os_error() {
                    // The peer's fault, or a shortage that passes.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                        log::warn(format_args!("cannot accept for now: {source}"));
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    }
                    _ => return Err(AcceptError { source }),
                },
            }
        }
    }
}
