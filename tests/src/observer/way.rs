//! A relay on a thread of its own, in the network namespace of its host: a test that keeps its thread busy does not
//! hold up the host.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::{Seen, lock};
use crate::netns;
use crate::wire::{Item, next};

/// As much as one read takes.
const READ: usize = 64 * 1024;
/// With this byte a client begins TLS.
const TLS: u8 = 0x16;

/// Closed when it is dropped.
#[derive(Debug)]
pub(super) struct Way {
    /// Where it listens.
    pub url: String,
    /// Each connection has a copy.
    live: Arc<()>,
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Way {
    pub(super) fn open(netns: Option<&str>, url: &str, seen: Arc<Mutex<Seen>>) -> Self {
        let (netns, target) = (netns.map(str::to_owned), url.trim_start_matches("nats://").to_owned());
        let (close, closed) = oneshot::channel();
        let (say, said) = std::sync::mpsc::channel();
        let live = Arc::new(());
        let alive = Arc::downgrade(&live);
        let thread = std::thread::spawn(move || {
            if let Some(name) = netns {
                netns::go(&name);
            }
            let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
            listener.set_nonblocking(true).expect("a listener");
            let _ = say.send(listener.local_addr().expect("an address"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = listen(listener, target, seen, alive) => {}
                    _ = closed => {}
                }
            });
        });
        let address = said.recv().expect("the way is open");
        Self { url: format!("nats://{address}"), live, close: Some(close), thread: Some(thread) }
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        Arc::strong_count(&self.live) - 1
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        drop(self.close.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: TcpListener, target: String, seen: Arc<Mutex<Seen>>, alive: Weak<()>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((host, _)) = listener.accept().await else { continue };
        let (alive, target, seen) = (alive.upgrade(), target.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            connection(host, target, seen).await;
            drop(alive);
        });
    }
}

async fn connection(host: TcpStream, target: String, seen: Arc<Mutex<Seen>>) {
    // A host that gives up while the server is out of reach leaves nothing behind.
    let mut first = [0];
    let server = tokio::select! {
        server = TcpStream::connect(target) => server,
        _ = host.peek(&mut first) => return,
    };
    let Ok(server) = server else { return };
    let _ = (host.set_nodelay(true), server.set_nodelay(true));
    let (from_host, to_host) = host.into_split();
    let (from_server, to_server) = server.into_split();
    let sealed = AtomicBool::new(false);
    let heard = |seen: &mut Seen, item: &Item| match item {
        Item::Message(message, _) => seen.heard(message),
        Item::Line(_) => {}
    };
    let said = |seen: &mut Seen, item: &Item| match item {
        Item::Message(message, _) => seen.said(message),
        Item::Line(line) => seen.line(line),
    };
    tokio::select! {
        () = forward(from_server, to_host, &seen, &sealed, heard) => {}
        () = forward(from_host, to_server, &seen, &sealed, said) => {}
    }
}

/// Moves what one end says to the other, whole item by whole item, until either ends.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: &Mutex<Seen>,
    sealed: &AtomicBool,
    look: impl Fn(&mut Seen, &Item),
) {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    loop {
        input.reserve(READ);
        if !matches!(from.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
        if input.first() == Some(&TLS) && !sealed.swap(true, Ordering::Relaxed) {
            lock(seen).seal();
        }
        if sealed.load(Ordering::Relaxed) {
            output.extend_from_slice(&input.split());
        }
        while let Some(item) = next(&mut input) {
            // Before anybody can do anything about it.
            look(&mut lock(seen), &item);
            match &item {
                Item::Line(line) => output.extend_from_slice(line),
                Item::Message(_, whole) => output.extend_from_slice(whole),
            }
        }
        if to.write_all(&output).await.is_err() {
            return;
        }
        output.clear();
    }
}
