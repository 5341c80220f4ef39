//! The hybrid vsock socket.
//!
//! A client writes `CONNECT <port>\n`; if something in the guest listens on that port it is answered
//! `OK <number>\n` and the connection is the guest's from then on. If nothing does, the socket just
//! closes: there is no error line. While the guest is paused nobody answers, and after two seconds
//! the connection closes.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::refusal::Cause;
use crate::relay::{Gate, relay};

/// Longest `CONNECT` line.
const LINE_LIMIT: usize = 32;
/// How long a connection waits for the guest.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Connections of one VM at a time.
const CONNECTIONS: usize = 1023;
/// Connections for which a guest behind a device has no answer yet.
const UNANSWERED: usize = 64;

static LOCAL_PORT: AtomicU32 = AtomicU32::new(1 << 30);

/// What is behind the socket.
#[derive(Debug, Clone)]
pub enum Behind {
    /// The directory in which port N is the socket `vsock-N.sock`.
    Ports(PathBuf),
    /// The hybrid socket of a vsock device. `vhost-device-vsock` 0.3.0 must be handled with care, or its
    /// thread ends and the process stays: a connection may not come before the guest has queues, and may
    /// not go before the guest answers.
    Device {
        /// Where it is.
        path: PathBuf,
        /// Whether the guest has the device in use.
        in_use: watch::Receiver<bool>,
        /// For connections without an answer.
        unanswered: Arc<Semaphore>,
        /// Closed while it may not be spoken to.
        gate: Gate,
    },
}

impl Behind {
    /// A vsock device that listens at `path`.
    #[must_use]
    pub fn device(path: PathBuf, in_use: watch::Receiver<bool>, gate: Gate) -> Self {
        Self::Device { path, in_use, unanswered: Arc::new(Semaphore::new(UNANSWERED)), gate }
    }

    fn gate(&self) -> Option<Gate> {
        match self {
            Self::Ports(_) => None,
            Self::Device { gate, .. } => Some(gate.clone()),
        }
    }

    /// A connection to `port` of the guest; `None` if nothing there listens.
    async fn connect(self, port: u32) -> Option<UnixStream> {
        match self {
            Self::Ports(guest) => UnixStream::connect(guest.join(format!("vsock-{port}.sock"))).await.ok(),
            Self::Device { path, mut in_use, unanswered, gate } => {
                in_use.wait_for(|in_use| *in_use).await.ok()?;
                let waits = unanswered.acquire_owned().await.ok()?;
                // A task of its own: it ends with the device's answer, whether or not anybody waits.
                let answered = tokio::spawn(async move {
                    let open = gate.pass().await;
                    let mut device = UnixStream::connect(path).await.ok()?;
                    device.write_all(format!("CONNECT {port}\n").as_bytes()).await.ok()?;
                    drop(open);
                    let line = read_line(&mut device).await.ok()??;
                    drop(waits);
                    line.starts_with(b"OK ").then_some(device)
                });
                answered.await.ok()?
            }
        }
    }
}

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

    /// Serves connections to the guest.
    pub fn serve(self, guest: Behind, paused: watch::Receiver<bool>) -> Hybrid {
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

async fn connection(mut host: UnixStream, guest: Behind, mut paused: watch::Receiver<bool>) {
    let Ok(Some(line)) = read_line(&mut host).await else { return };
    let Some(port) = parse_port(&line) else { return };
    let gate = guest.gate();
    let connected = async {
        paused.wait_for(|paused| !paused).await.ok()?;
        guest.connect(port).await
    };
    let Ok(Some(mut peer)) = timeout(CONNECT_LIMIT, connected).await else { return };
    let number = LOCAL_PORT.fetch_add(1, Ordering::Relaxed);
    if host.write_all(format!("OK {number}\n").as_bytes()).await.is_ok() {
        match gate {
            Some(gate) => relay(host, peer, &gate).await,
            None => drop(copy_bidirectional(&mut host, &mut peer).await),
        }
    }
}

/// Reads the line a byte at a time: what follows it belongs to the guest.
async fn read_line(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::with_capacity(LINE_LIMIT);
    while line.len() < LINE_LIMIT {
        match stream.read_u8().await? {
            b'\n' => return Ok(Some(line)),
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

    #[tokio::test]
    async fn a_device_is_not_spoken_to_before_it_is_in_use_nor_left_before_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, outer) = (dir.path().join("device"), dir.path().join("vsock"));
        let device = UnixListener::bind(&inner).unwrap();
        let (_unpaused, paused) = watch::channel(false);
        let (drivers, in_use) = watch::channel(false);
        let _hybrid =
            Listener::bind(&outer).unwrap().serve(Behind::device(inner, in_use, Gate::default()), paused);
        let mut early = UnixStream::connect(&outer).await.unwrap();
        early.write_all(b"CONNECT 1023\n").await.unwrap();
        assert_eq!(early.read(&mut [0]).await.unwrap(), 0, "closed before the device hears of it");
        drivers.send(true).unwrap();
        let ask = async || {
            let mut client = UnixStream::connect(&outer).await.unwrap();
            client.write_all(b"CONNECT 1023\n").await.unwrap();
            let (mut asked, _) = device.accept().await.unwrap();
            assert_eq!(read_line(&mut asked).await.unwrap().unwrap(), b"CONNECT 1023");
            (client, asked)
        };
        let (mut given_up, mut late) = ask().await;
        assert_eq!(given_up.read(&mut [0]).await.unwrap(), 0, "closed for want of an answer");
        late.write_all(b"OK 1023\n").await.unwrap();
        assert_eq!(late.read(&mut [0]).await.unwrap(), 0, "left after the answer");

        let (mut client, mut asked) = ask().await;
        asked.write_all(b"OK 1023\nhello").await.unwrap();
        assert!(read_line(&mut client).await.unwrap().unwrap().starts_with(b"OK "));
        let mut hello = [0; 5];
        client.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");

        let (mut refused, asked) = ask().await;
        drop(asked);
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn the_connect_line_is_read_in_any_case_and_nothing_else_is() {
        assert_eq!(parse_port(b"CONNECT 1023"), Some(1023));
        assert_eq!(parse_port(b"connect 7"), Some(7));
        assert_eq!(parse_port(b"CONNECT"), None);
        assert_eq!(parse_port(b"CONNECT x"), None);
        assert_eq!(parse_port(b"LISTEN 7"), None);
    }
}
