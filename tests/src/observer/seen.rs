//! What was seen, message by message; pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use drover_schemas::ErrorBody;
use drover_schemas::codec::{self, Format};
use drover_schemas::headers;
use drover_schemas::stream::{StreamEnd, StreamFrame};
use serde_json::Value;

use crate::contract::{Channel, channel_of, json_of};
use crate::wire::Publication;

/// Requests whose replies are expected; the oldest are forgotten.
const REMEMBERED: usize = 50_000;
/// Deviations that are kept.
const DEVIATIONS: usize = 50;
/// As much of a deviation as is kept.
const TEXT: usize = 2_000;
/// Any subject of streams: their frames are alike.
const IO: &str = "drover.v1.io.default.any";

/// Everything that hosts said and heard.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many messages of each kind were as the contract says.
    pub counts: BTreeMap<String, u64>,
    /// What was not.
    pub deviations: BTreeSet<String>,
    /// The names under which hosts came.
    pub names: BTreeSet<String>,
    /// Some connections cannot be read.
    pub sealed: bool,
    /// Requests by the subject of their reply, and the order in which they came.
    questions: HashMap<String, Question>,
    order: VecDeque<String>,
    forgotten: bool,
    /// The verb of a stream, by the subject of its client's frames.
    streams: HashMap<String, &'static Channel>,
    /// Inboxes of the hosts' own.
    inboxes: HashSet<String>,
    /// What a test said beforehand: the start of a subject, and how many malformed messages came there.
    malformed: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Question {
    /// None: no verb of ours.
    channel: Option<&'static Channel>,
    /// What is wrong with the request.
    problem: Option<String>,
    /// It opened a stream: frames come where the reply came.
    opened: bool,
}

impl Seen {
    /// A test will have something malformed sent to hosts, below subjects that begin so.
    pub fn expect_malformed(&mut self, prefix: &str) {
        self.malformed.entry(prefix.to_owned()).or_default();
    }

    /// What was announced and never came.
    #[must_use]
    pub fn not_come(&self) -> Vec<&str> {
        self.malformed.iter().filter(|(_, count)| **count == 0).map(|(prefix, _)| &**prefix).collect()
    }

    /// A connection is encrypted from now on.
    pub fn seal(&mut self) {
        self.sealed = true;
        *self.counts.entry("connection over TLS that cannot be read".to_owned()).or_default() += 1;
    }

    /// A connection says who it is, or what it subscribes for.
    pub fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("SUB"), Some(subject)) if is_inbox(subject) => {
                self.inboxes.insert(subject.to_owned());
            }
            (Some("CONNECT"), Some(_)) => {
                let options: Option<Value> = serde_json::from_str(&line["CONNECT".len()..]).ok();
                let name = options.and_then(|options| Some(options.get("name")?.as_str()?.to_owned()));
                self.names.extend(name);
            }
            _ => {}
        }
    }

    /// The bus delivers a message to a host.
    pub fn heard(&mut self, message: &Publication) {
        let begins = |with: &str| message.subject.starts_with(with);
        if begins("drover.v1.cmd.") || begins("drover.v1.host.") {
            self.request(message);
        } else if begins("drover.v1.io.") {
            self.frame_of_client(message);
        } else if begins("$SRV.")
            && let Some(reply) = &message.reply
        {
            self.ask(reply, Question { channel: None, problem: None, opened: false });
        }
    }

    fn request(&mut self, message: &Publication) {
        let channel = channel_of(&message.subject);
        let problem = match channel {
            Some(channel) => channel.hold("request", message).err(),
            None => Some(format!("the contract has no channel for {}", message.subject)),
        };
        match (&message.reply, problem) {
            (Some(reply), problem) => self.ask(reply, Question { channel, problem, opened: false }),
            // Nobody will hear whether it was understood.
            (None, Some(problem)) => self.malformed(&message.subject, problem),
            (None, None) => self.count(channel, "request without a reply"),
        }
    }

    fn frame_of_client(&mut self, message: &Publication) {
        let stream = self.streams.get(&message.subject).copied();
        match channel_of(IO).expect("streams").hold("frame", message) {
            Ok(()) => self.count(stream, "frame of a client"),
            Err(problem) => self.malformed(&message.subject, problem),
        }
        // From now on the client is there.
        if let (Some(reply), Some(_)) = (&message.reply, stream) {
            self.ask(reply, Question { channel: stream, problem: None, opened: true });
        }
    }

    /// A host publishes a message.
    pub fn said(&mut self, message: &Publication) {
        let begins = |with: &str| message.subject.starts_with(with);
        if begins("$JS.") || begins("$KV.") || begins("$O.") {
            let words: Vec<&str> = message.subject.split('.').take(2).collect();
            *self.counts.entry(format!("{}.>", words.join("."))).or_default() += 1;
        } else if begins("drover.v1.evt.") || begins("drover.v1.metric.") {
            match channel_of(&message.subject) {
                Some(channel) => self.held(channel, "message", message),
                None => self.deviates(format!("the contract has no channel for {}", message.subject)),
            }
        } else if is_inbox(&message.subject) {
            self.answer(message);
        } else if !begins("drover.v1.cmd.") && !begins("drover.v1.host.") {
            self.deviates(format!("a host published to {}", message.subject));
        }
        // What a host asks of another is seen where it is heard.
    }

    fn answer(&mut self, message: &Publication) {
        let Some(question) = self.questions.get_mut(&message.subject) else {
            // A host finds out whether its server has heard it.
            let to_itself = message.payload.is_empty() && self.inboxes.contains(&message.subject);
            if !to_itself && !self.forgotten {
                self.deviates(format!("a host published to {}, where nobody had asked", message.subject));
            }
            return;
        };
        let Some(channel) = question.channel else { return };
        if message.header(headers::ERROR_CODE).is_some() {
            return self.error(channel, message);
        }
        if question.opened && message.headers.is_empty() {
            return self.frame_of_host(channel, message);
        }
        let problem = question.problem.take();
        let opened = io_subject(message);
        question.opened |= opened.is_some();
        if let Some(subject) = opened {
            self.streams.insert(subject, channel);
        }
        match problem {
            Some(problem) => self.deviates(format!("was carried out all the same: {problem}")),
            None => self.count(Some(channel), "request"),
        }
        self.held(channel, "reply", message);
    }

    fn error(&mut self, channel: &'static Channel, message: &Publication) {
        let format = Format::detect(message.header(headers::CONTENT_TYPE), &message.payload);
        let error: Option<ErrorBody> =
            format.ok().and_then(|format| codec::decode_as(format, &message.payload).ok());
        if let Some(error) = error {
            let (status, line) = (message.header(headers::ERROR_CODE), message.header(headers::ERROR));
            if status != Some(&error.code.status().to_string()) || line.is_none_or(str::is_empty) {
                self.deviates(format!("{}: headers {status:?} {line:?} of {error}", channel.id));
            }
            *self.counts.entry(format!("error {}", error.code)).or_default() += 1;
        }
        self.held(channel, "error", message);
    }

    fn frame_of_host(&mut self, channel: &'static Channel, message: &Publication) {
        match channel_of(IO).expect("streams").hold("frame", message) {
            Ok(()) => self.count(Some(channel), "frame of a host"),
            Err(problem) => return self.deviates(problem),
        }
        let frame: Option<StreamFrame> = codec::decode(&message.payload).ok();
        match frame.and_then(|frame| frame.end) {
            Some(StreamEnd::Result(result)) => match channel.hold_result(result.as_slice()) {
                Ok(()) => self.count(Some(channel), "result"),
                Err(problem) => self.deviates(problem),
            },
            Some(StreamEnd::Error(error)) => {
                *self.counts.entry(format!("error {}", error.code)).or_default() += 1;
            }
            None => {}
        }
    }

    fn ask(&mut self, reply: &str, question: Question) {
        if self.questions.insert(reply.to_owned(), question).is_none() {
            self.order.push_back(reply.to_owned());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.questions.remove(&oldest);
            self.forgotten = true;
        }
    }

    fn held(&mut self, channel: &'static Channel, name: &str, message: &Publication) {
        match channel.hold(name, message) {
            Ok(()) if message.subject.starts_with("drover.v1.evt.") => {
                let kind = message.subject.rsplit('.').next().unwrap_or_default();
                self.count(Some(channel), kind);
            }
            Ok(()) => self.count(Some(channel), name),
            Err(problem) => self.deviates(problem),
        }
    }

    fn count(&mut self, channel: Option<&Channel>, name: &str) {
        let id = channel.map_or("io", |channel| &*channel.id);
        *self.counts.entry(format!("{id} {name}")).or_default() += 1;
    }

    fn malformed(&mut self, subject: &str, problem: String) {
        match self.malformed.iter_mut().find(|(prefix, _)| subject.starts_with(&**prefix)) {
            Some((_, count)) => *count += 1,
            None => self.deviates(problem),
        }
    }

    fn deviates(&mut self, problem: String) {
        if self.deviations.len() < DEVIATIONS {
            self.deviations.insert(problem.chars().take(TEXT).collect());
        }
    }
}

/// Inboxes, and what a server puts in their place for those of other accounts.
fn is_inbox(subject: &str) -> bool {
    subject.starts_with("_INBOX") || subject.starts_with("_R_.")
}

/// Where the frames of the stream go that a reply tells of.
fn io_subject(reply: &Publication) -> Option<String> {
    let format = Format::detect(reply.header(headers::CONTENT_TYPE), &reply.payload).ok()?;
    let value = json_of(format, &reply.payload).ok()?;
    let stream = value.get("stream").unwrap_or(&value);
    Some(stream.get("io_subject")?.as_str()?.to_owned())
}

#[cfg(test)]
#[path = "seen_tests.rs"]
mod tests;
