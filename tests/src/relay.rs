//! A relay between somebody and the bus: it cuts and refuses connections, and rewrites, loses, doubles or delays what
//! is published through it. What comes from the server passes as it is.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wire::{Item, Publication, next};

/// As much as one read takes.
const READ: usize = 256 * 1024;

/// What becomes of a message: what is sent in its place.
pub type Rule = Box<dyn FnMut(Publication) -> Vec<Publication> + Send>;

/// A relay that listens on an address of its own.
pub struct Relay {
    /// Its address, as a client takes it.
    pub url: String,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    target: String,
    rule: Mutex<Rule>,
    /// Counts cuts; a connection ends with the next one.
    cuts: watch::Sender<u64>,
    refuses: watch::Sender<bool>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay on `address` to the server at `url`, which changes nothing.
    ///
    /// # Panics
    /// The address is in use.
    pub async fn start(address: &str, url: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free address");
        let shared = Arc::new(Shared {
            target: url.trim_start_matches("nats://").to_owned(),
            rule: Mutex::new(Box::new(|publication| vec![publication])),
            cuts: watch::channel(0).0,
            refuses: watch::channel(false).0,
        });
        let served = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*served.refuses.borrow() {
                    tokio::spawn(connection(client, Arc::clone(&served)));
                }
            }
        });
        Self { url: format!("nats://{address}"), shared, listening }
    }

    /// Decides from now on what becomes of messages.
    pub fn rule(&self, rule: impl FnMut(Publication) -> Vec<Publication> + Send + 'static) {
        *self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(rule);
    }

    /// Cuts every connection; new ones are taken at once.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Cuts every connection and takes no new one, until it is told otherwise.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuses.send_replace(refuse);
        if refuse {
            self.cut();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let mut cut = shared.cuts.subscribe();
    let Ok(server) = TcpStream::connect(&shared.target).await else { return };
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        () = forward(from_client, to_server, &shared) => {}
        _ = cut.changed() => {}
    }
}

/// Moves what a client says to the server, message by message, until either ends.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    loop {
        while let Some(item) = next(&mut input) {
            match item {
                Item::Line(line) => output.extend_from_slice(&line),
                Item::Message(publication, _) => {
                    let sent = shared.rule.lock().unwrap_or_else(PoisonError::into_inner)(publication);
                    sent.iter().for_each(|publication| publication.write(&mut output));
                }
            }
        }
        if to.write_all(&output).await.is_err() {
            return;
        }
        output.clear();
        input.reserve(READ);
        if !matches!(from.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}
