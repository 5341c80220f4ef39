//! A relay between somebody and the bus: it cuts and refuses connections, and rewrites, loses, doubles or delays what
//! is published through it. What comes from the server passes as it is.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes, BytesMut};
use drover_schemas::codec;
use drover_schemas::stream::StreamFrame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// As long as a line of the protocol may be; the server takes no longer ones.
const MAX_LINE: usize = 64 * 1024;
/// As much as one read takes.
const READ: usize = 256 * 1024;

/// One message on its way to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// Where to.
    pub subject: String,
    /// Where answers go.
    pub reply: Option<String>,
    /// The block of headers as it is on the wire, with its empty line; none if empty.
    pub headers: Bytes,
    /// The body.
    pub payload: Bytes,
}

impl Publication {
    /// The frame of a stream that this is, either way; its reply is none.
    #[must_use]
    pub fn frame(&self) -> Option<StreamFrame> {
        let of_client = self.subject.starts_with("drover.v1.io.");
        let replies = ["_INBOX", "_R_."].iter().any(|prefix| self.subject.starts_with(prefix));
        let of_host = replies && self.headers.is_empty();
        if !of_client && !of_host {
            return None;
        }
        let frame: StreamFrame = codec::decode(&self.payload).ok()?;
        (frame != StreamFrame::default()).then_some(frame)
    }

    fn write(&self, out: &mut BytesMut) {
        let reply = self.reply.as_ref().map(|reply| format!("{reply} ")).unwrap_or_default();
        let (subject, len) = (&self.subject, self.headers.len() + self.payload.len());
        let line = match self.headers.len() {
            0 => format!("PUB {subject} {reply}{len}\r\n"),
            headers => format!("HPUB {subject} {reply}{headers} {len}\r\n"),
        };
        for part in [line.as_bytes(), &self.headers, &self.payload, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

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
                Item::Publication(publication) => {
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

enum Item {
    /// Anything but a message, with its end.
    Line(Bytes),
    Publication(Publication),
}

/// The next whole item, if it is there.
fn next(input: &mut BytesMut) -> Option<Item> {
    let end = input.iter().take(MAX_LINE).position(|byte| *byte == b'\n')? + 1;
    let line = std::str::from_utf8(&input[..end]).expect("the protocol's lines are text");
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse::<usize>().expect("a length");
    let (subject, reply, headers, len) = match words[..] {
        ["PUB", subject, len] => (subject, None, 0, number(len)),
        ["PUB", subject, reply, len] => (subject, Some(reply), 0, number(len)),
        ["HPUB", subject, headers, len] => (subject, None, number(headers), number(len)),
        ["HPUB", subject, reply, headers, len] => (subject, Some(reply), number(headers), number(len)),
        _ => return Some(Item::Line(input.split_to(end).freeze())),
    };
    let (subject, reply) = (subject.to_owned(), reply.map(str::to_owned));
    if input.len() < end + len + 2 {
        return None;
    }
    input.advance(end);
    let mut payload = input.split_to(len).freeze();
    input.advance(2);
    let headers = payload.split_to(headers);
    Some(Item::Publication(Publication { subject, reply, headers, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_from_the_protocol_and_written_as_they_were() {
        let text = b"CONNECT {\"a\":1}\r\nSUB a.b 1\r\nPUB a 2\r\nhi\r\nHPUB a r 12 15\r\nNATS/1.0\r\n\r\nabc\r\nPUB b 3\r\nab";
        let mut input = BytesMut::from(&text[..]);
        let mut output = BytesMut::new();
        let mut seen = Vec::new();
        while let Some(item) = next(&mut input) {
            match item {
                Item::Line(line) => output.extend_from_slice(&line),
                Item::Publication(publication) => {
                    publication.write(&mut output);
                    seen.push(publication);
                }
            }
        }
        assert_eq!(&input[..], b"PUB b 3\r\nab", "what is not whole waits");
        assert_eq!(output, text[..text.len() - input.len()]);
        assert_eq!(
            (&*seen[1].subject, seen[1].reply.as_deref(), &seen[1].payload[..]),
            ("a", Some("r"), &b"abc"[..])
        );
    }
}
