//! The hybrid vsock socket, for the guest of processes.
//!
//! A client writes `CONNECT <port>\n`; if something in the guest listens on that port it is answered
//! `OK <number>\n` and the connection is the guest's from then on. If nothing does, the socket just
//! closes: there is no error line. While the guest is paused nobody answers, and after two seconds
//! the connection closes.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::refusal::Cause;

/// Longest `CONNECT` line.
const LINE_LIMIT: usize = 32;
/// How long a connection waits for the guest.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Connections of one VM at a time.
const CONNECTIONS: usize = 1023;

static LOCAL_PORT: AtomicU32 = AtomicU32::new(1 << 30);

/// A bound socket that is not served yet.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

/// A served socket. Dropping it ends every connection and removes the socket.
#[derive(Debug)]
pub struct Hybrid {
    task: JoinHandle<()>,
    path: PathBuf,
}

/// The chain of a socket that could not be bound.
pub fn bind_failed(error: &io::Error) -> Cause {
    let outer = ["Error from device manager", "Cannot create virtio-vsock backend"];
    Cause::new(outer).because("Error binding to the host-side Unix socket").because(error)
}

impl Listener {
    /// Binds the socket; a stale one is in the way, as it is for the real one.
    ///
    /// # Errors
    /// The path is taken or cannot be written.
    pub fn bind(path: &Path) -> Result<Self, Cause> {
        let bound = || {
            let listener = StdListener::bind(path)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = bound().map_err(|e| bind_failed(&e))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Gives the socket up and removes it.
    pub fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Serves connections to `guest`, the directory in which port N is the socket `vsock-N.sock`.
    pub fn serve(self, guest: PathBuf, paused: watch::Receiver<bool>) -> Hybrid {
        let path = self.path;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = self.listener.accept() => match accepted {
                        Ok((stream, _)) if connections.len() < CONNECTIONS => {
                            connections.spawn(connection(stream, guest.clone(), paused.clone()));
                        }
                        Ok(_) => {}
                        Err(_) => return,
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Hybrid { task, path }
    }
}

impl Drop for Hybrid {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn connection(mut host: UnixStream, guest: PathBuf, mut paused: watch::Receiver<bool>) {
    let Ok(Some(port)) = read_port(&mut host).await else { return };
    if timeout(CONNECT_LIMIT, paused.wait_for(|paused| !paused)).await.is_err() {
        return;
    }
    let Ok(mut peer) = UnixStream::connect(guest.join(format!("vsock-{port}.sock"))).await else { return };
    let number = LOCAL_PORT.fetch_add(1, Ordering::Relaxed);
    if host.write_all(format!("OK {number}\n").as_bytes()).await.is_ok() {
        let _ = copy_bidirectional(&mut host, &mut peer).await;
    }
}

/// Reads the line a byte at a time: what follows it belongs to the guest.
async fn read_port(stream: &mut UnixStream) -> io::Result<Option<u32>> {
    let mut line = Vec::with_capacity(LINE_LIMIT);
    while line.len() < LINE_LIMIT {
        match stream.read_u8().await? {
            b'\n' => return Ok(parse_port(&line)),
            byte => line.push(byte),
        }
    }
    Ok(None)
}

fn parse_port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let command = words.next()?;
    let port = words.next()?.parse().ok()?;
    (command.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connect_line_is_read_in_any_case_and_nothing_else_is() {
        assert_eq!(parse_port(b"CONNECT 1023"), Some(1023));
        assert_eq!(parse_port(b"connect 7"), Some(7));
        assert_eq!(parse_port(b"CONNECT"), None);
        assert_eq!(parse_port(b"CONNECT x"), None);
        assert_eq!(parse_port(b"LISTEN 7"), None);
    }
}
