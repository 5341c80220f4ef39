//! Messages cut from the protocol of NATS, either way.

use bytes::{Bytes, BytesMut};
use drover_schemas::codec;
use drover_schemas::stream::StreamFrame;

/// As long as a line of the protocol may be; the server takes no longer ones.
const MAX_LINE: usize = 64 * 1024;

/// One message on its way to the server, or from it.
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

    /// The headers in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = std::str::from_utf8(&self.headers).unwrap_or_default().lines().skip(1);
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()))
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// Writes it as a client does.
    pub(crate) fn write(&self, out: &mut BytesMut) {
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

/// A whole item of the protocol.
#[derive(Debug)]
pub(crate) enum Item {
    /// Anything but a message, with its end.
    Line(Bytes),
    /// A message, and as it was on the wire.
    Message(Publication, Bytes),
}

/// The next whole item, if it is there.
pub(crate) fn next(input: &mut BytesMut) -> Option<Item> {
    let end = input.iter().take(MAX_LINE).position(|byte| *byte == b'\n')? + 1;
    let line = std::str::from_utf8(&input[..end]).expect("the protocol's lines are text");
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse::<usize>().expect("a length");
    let (subject, reply, headers, len) = match words[..] {
        ["PUB", subject, len] | ["MSG", subject, _, len] => (subject, None, 0, number(len)),
        ["PUB", subject, reply, len] | ["MSG", subject, _, reply, len] => {
            (subject, Some(reply), 0, number(len))
        }
        ["HPUB", subject, headers, len] | ["HMSG", subject, _, headers, len] => {
            (subject, None, number(headers), number(len))
        }
        ["HPUB", subject, reply, headers, len] | ["HMSG", subject, _, reply, headers, len] => {
            (subject, Some(reply), number(headers), number(len))
        }
        _ => return Some(Item::Line(input.split_to(end).freeze())),
    };
    let (subject, reply) = (subject.to_owned(), reply.map(str::to_owned));
    if input.len() < end + len + 2 {
        return None;
    }
    let whole = input.split_to(end + len + 2).freeze();
    let mut payload = whole.slice(end..end + len);
    let headers = payload.split_to(headers);
    Some(Item::Message(Publication { subject, reply, headers, payload }, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_from_the_protocol_and_written_as_they_were() {
        let text = b"CONNECT {\"a\":1}\r\nSUB a.b 1\r\nPUB a 2\r\nhi\r\nHPUB a r 18 21\r\nNATS/1.0\r\nX: y\r\n\r\nabc\r\nPUB b 3\r\nab";
        let mut input = BytesMut::from(&text[..]);
        let (mut written, mut passed) = (BytesMut::new(), BytesMut::new());
        let mut seen = Vec::new();
        while let Some(item) = next(&mut input) {
            match item {
                Item::Line(line) => {
                    written.extend_from_slice(&line);
                    passed.extend_from_slice(&line);
                }
                Item::Message(publication, whole) => {
                    publication.write(&mut written);
                    passed.extend_from_slice(&whole);
                    seen.push(publication);
                }
            }
        }
        assert_eq!(&input[..], b"PUB b 3\r\nab", "what is not whole waits");
        let whole = &text[..text.len() - input.len()];
        assert_eq!((&written[..], &passed[..]), (whole, whole));
        let (reply, body) = (seen[1].reply.as_deref(), &seen[1].payload[..]);
        assert_eq!(
            (&*seen[1].subject, reply, seen[1].header("X"), body),
            ("a", Some("r"), Some("y"), &b"abc"[..])
        );
    }

    #[test]
    fn what_the_server_delivers_is_read_too() {
        let text = b"INFO {}\r\nMSG a.b 7 2\r\nhi\r\nMSG a.b 7 r 2\r\nho\r\nHMSG a.c 8 r 12 15\r\nNATS/1.0\r\n\r\nabc\r\nPING\r\n";
        let mut input = BytesMut::from(&text[..]);
        let items: Vec<Item> = std::iter::from_fn(|| next(&mut input)).collect();
        let told: Vec<(&str, Option<&str>, &[u8])> = items
            .iter()
            .filter_map(|item| match item {
                Item::Message(message, _) => {
                    Some((&*message.subject, message.reply.as_deref(), &message.payload[..]))
                }
                Item::Line(_) => None,
            })
            .collect();
        assert_eq!(told, [("a.b", None, &b"hi"[..]), ("a.b", Some("r"), b"ho"), ("a.c", Some("r"), b"abc")]);
        assert!(input.is_empty() && items.len() == 5);
    }
}
