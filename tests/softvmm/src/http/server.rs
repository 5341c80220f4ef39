//! Connections of the API socket: at most ten, each kept alive, requests answered one at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::parse::{Parser, Request};
use crate::args::Endpoint;

/// Connections that are served at the same time.
pub const MAX_CONNECTIONS: usize = 10;

const FULL: &[u8] = b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\n\
    Content-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }";

/// What goes back to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// A status and a body; 204 has no body and says no length.
    Status(u16, Vec<u8>),
    /// Bytes that are not HTTP, then the end of the connection.
    Garbage,
}

/// A request on its way to the one who answers it.
pub struct Exchange {
    /// What was asked.
    pub request: Request,
    /// Where the answer goes. The client may be gone by then.
    pub reply: oneshot::Sender<Response>,
}

/// Why the API socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process holds the lock of that path.
    #[error("API socket {0:?} is in use by another process")]
    InUse(PathBuf),
    /// The lock file, or the socket, could not be made.
    #[error("cannot create API server socket")]
    Io(#[source] io::Error),
}

/// The listening socket, and the lock that keeps a second instance from its path.
pub struct Bound {
    listener: UnixListener,
    path: Option<PathBuf>,
    _lock: Option<File>,
}

/// Takes the lock, removes a stale socket, binds.
///
/// # Errors
/// Another instance has the path, or the system refused.
pub fn bind(endpoint: &Endpoint) -> Result<Bound, BindError> {
    let (listener, path, lock) = match endpoint {
        Endpoint::Fd(fd) => {
            // SAFETY: the caller of the program hands a listening socket over with `fd=N`; nothing
            // else in the process refers to it.
            let listener = unsafe { StdListener::from_raw_fd(*fd) };
            // The helpers are not to hold it open.
            let flag = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
            fcntl(&listener, flag).map_err(|e| BindError::Io(e.into()))?;
            (listener, None, None)
        }
        Endpoint::Path(path) => {
            let lock = lock(path)?;
            // With the lock in hand a socket that is there belongs to nobody.
            let _ = std::fs::remove_file(path);
            (StdListener::bind(path).map_err(BindError::Io)?, Some(path.clone()), Some(lock))
        }
    };
    listener.set_nonblocking(true).map_err(BindError::Io)?;
    let listener = UnixListener::from_std(listener).map_err(BindError::Io)?;
    Ok(Bound { listener, path, _lock: lock })
}

fn lock(socket: &Path) -> Result<File, BindError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(BindError::Io)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(file),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(BindError::InUse(socket.to_owned()))
        }
        Err(errno) => Err(BindError::Io(errno.into())),
    }
}

impl Bound {
    /// Removes the socket; the lock file stays, as it does there.
    pub fn remove(path: Option<&Path>) {
        if let Some(path) = path {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Where the socket is, if it was made here.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Serves until the one who answers is gone.
    pub async fn serve(self, to: mpsc::Sender<Exchange>) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok((mut stream, _)) = self.listener.accept().await {
            match slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    let to = to.clone();
                    tokio::spawn(async move {
                        let _ = connection(stream, to).await;
                        drop(slot);
                    });
                }
                Err(_) => {
                    let _ = stream.write_all(FULL).await;
                }
            }
        }
    }
}

async fn connection(mut stream: UnixStream, to: mpsc::Sender<Exchange>) -> io::Result<()> {
    let mut parser = Parser::default();
    let mut chunk = [0; 1024];
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        parser.feed(&chunk[..n]);
        loop {
            match parser.next_request() {
                Ok(None) => break,
                Ok(Some(request)) => {
                    let (reply, answer) = oneshot::channel();
                    if to.send(Exchange { request, reply }).await.is_err() {
                        return Ok(());
                    }
                    match answer.await {
                        Ok(Response::Status(status, body)) => {
                            let head = head(status, "Cloud Hypervisor API", "application/json", body.len());
                            stream.write_all(&[head.as_bytes(), &body].concat()).await?;
                        }
                        Ok(Response::Garbage) => {
                            return stream.write_all(b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n").await;
                        }
                        // The one who answers ended without a word.
                        Err(_) => return Ok(()),
                    }
                }
                Err(error) => {
                    parser.reset();
                    // The same line break within the string as there: it is not valid JSON.
                    let body = format!(
                        "{{ \"error\": \"{error}\nAll previous unanswered requests will be dropped.\" }}"
                    );
                    let head = head(400, "Firecracker API", "text/plain", body.len());
                    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
                    break;
                }
            }
        }
    }
}

fn head(status: u16, server: &str, content: &str, length: usize) -> String {
    let mut head = format!("HTTP/1.1 {status} \r\nServer: {server}\r\nConnection: keep-alive\r\n");
    if status != 204 {
        head.push_str(&format!("Content-Type: {content}\r\nContent-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    head
}
