//! The serial port's other side: nothing, a file, or a socket with one client.
//!
//! The socket is bound when the VM is created and served from its boot on. A new client takes the
//! place of the one before; what is written while nobody listens, or faster than the client reads,
//! is kept up to a mebibyte, of which the oldest goes first. Writing never waits: a slow reader must
//! not stop the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::{CommonConsole, ConsoleMode};
use crate::refusal::Cause;

/// Output kept for a client that comes later.
pub const KEPT: usize = 1 << 20;

/// What the guest is sent.
pub type Input = mpsc::UnboundedSender<Vec<u8>>;

/// A serial port from its creation to the end of the VM.
#[derive(Debug, Clone)]
pub struct Serial(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listener: Option<(StdListener, PathBuf)>,
    sink: Mutex<Sink>,
    server: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Sink {
    Nothing,
    File(File),
    Stdout,
    Socket { ring: Ring, client: Option<OwnedWriteHalf> },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; and a sink has no invariant that could break.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serial {
    /// Opens the file or binds the socket.
    ///
    /// # Errors
    /// The path is missing, taken (a stale socket is not removed) or not writable.
    pub fn create(config: &CommonConsole) -> Result<Self, Cause> {
        let failed =
            |e: &io::Error| Cause::io(["Error creating console devices", "Error creating console device"], e);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let mut listener = None;
        let sink = match config.mode {
            ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Pty => Sink::Nothing,
            ConsoleMode::Tty => Sink::Stdout,
            ConsoleMode::File => {
                let path = config.file.as_ref().ok_or_else(|| failed(&missing()))?;
                Sink::File(File::create(path).map_err(|e| failed(&e))?)
            }
            ConsoleMode::Socket => {
                let path = config.socket.as_ref().ok_or_else(|| failed(&missing()))?;
                let bound = StdListener::bind(path).map_err(|e| failed(&e))?;
                bound.set_nonblocking(true).map_err(|e| failed(&e))?;
                listener = Some((bound, path.clone()));
                Sink::Socket { ring: Ring::default(), client: None }
            }
        };
        Ok(Self(Arc::new(Inner { listener, sink: Mutex::new(sink), server: Mutex::new(None) })))
    }

    /// Serves the socket, if there is one; bytes of the client go to `input`.
    ///
    /// # Errors
    /// The listener could not be duplicated or registered.
    pub fn start(&self, input: Input) -> io::Result<()> {
        if let Some((listener, _)) = &self.0.listener {
            let listener = UnixListener::from_std(listener.try_clone()?)?;
            let task = tokio::spawn(serve(self.clone(), listener, input));
            if let Some(old) = lock(&self.0.server).replace(task) {
                old.abort();
            }
        }
        Ok(())
    }

    /// Writes what the guest sent; never waits.
    pub fn output(&self, bytes: &[u8]) {
        match &mut *lock(&self.0.sink) {
            Sink::Nothing => {}
            Sink::File(file) => {
                let _ = file.write_all(bytes);
            }
            Sink::Stdout => {
                let _ = io::stdout().write_all(bytes);
            }
            Sink::Socket { ring, client } => {
                ring.push(bytes);
                if let Some(client) = client {
                    ring.drain_to(client);
                }
            }
        }
    }

    /// Ends the service and removes the socket, as the end of a VM does.
    pub fn close(&self) {
        if let Some(task) = lock(&self.0.server).take() {
            task.abort();
        }
        if let Sink::Socket { client, .. } = &mut *lock(&self.0.sink) {
            *client = None;
        }
        if let Some((_, path)) = &self.0.listener {
            let _ = std::fs::remove_file(path);
        }
    }

    fn attach(&self, writer: Option<OwnedWriteHalf>) {
        if let Sink::Socket { ring, client } = &mut *lock(&self.0.sink) {
            *client = writer;
            if let Some(client) = client {
                ring.drain_to(client);
            }
        }
    }
}

async fn serve(serial: Serial, listener: UnixListener, input: Input) {
    let mut reader: Option<Client> = None;
    while let Ok((stream, _)) = listener.accept().await {
        let (mut from, to) = stream.into_split();
        // The one before is shut down by the drop of both its halves.
        drop(reader.take());
        serial.attach(Some(to));
        let (serial, input) = (serial.clone(), input.clone());
        reader = Some(Client(tokio::spawn(async move {
            let mut bytes = [0; 64];
            while let Ok(n @ 1..) = from.read(&mut bytes).await {
                // A lone line feed becomes a carriage return, for the Windows console's sake.
                let sent = if bytes[..n] == *b"\n" { b"\r".to_vec() } else { bytes[..n].to_vec() };
                if input.send(sent).is_err() {
                    break;
                }
            }
            serial.attach(None);
        })));
    }
}

/// The task that reads from a client; ends with its owner.
struct Client(JoinHandle<()>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The newest [`KEPT`] bytes.
#[derive(Debug, Default)]
struct Ring(VecDeque<u8>);

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(KEPT);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    fn drain_to(&mut self, client: &OwnedWriteHalf) {
        while !self.0.is_empty() {
            match client.as_ref().try_write(self.0.as_slices().0) {
                Ok(n) if n > 0 => drop(self.0.drain(..n)),
                // Full, or gone: kept for the next output, or for the next client.
                _ => return,
            }
        }
    }
}

/// Copies a guest's output to its port, and the port's input to the guest, until the guest is gone.
pub async fn pump(serial: Serial, stream: UnixStream, mut input: mpsc::UnboundedReceiver<Vec<u8>>) {
    let (mut from, to) = stream.into_split();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let mut to = to;
        while let Some(bytes) = input.recv().await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // Held to the end: a guest whose line is closed on one side stops sending on the other.
        std::future::pending::<()>().await;
    });
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        serial.output(&bytes[..n]);
    }
    writer.abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_bytes() {
        let mut ring = Ring::default();
        ring.push(&vec![b'a'; KEPT]);
        ring.push(b"end");
        assert_eq!(ring.0.len(), KEPT);
        assert_eq!(ring.0.range(KEPT - 3..).copied().collect::<Vec<_>>(), b"end");
        ring.push(&vec![b'b'; KEPT + 7]);
        assert_eq!(ring.0.len(), KEPT);
    }
}
