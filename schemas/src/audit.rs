//! Audit events: who asked for what, and what came of it; never what was in it.
//!
//! A request that changes something or reaches into a guest leads to one, and so does every refusal. Hosts tell of
//! the requests that reached them; what a server of the bus kept from somebody never reaches a host, and is told by
//! whoever follows that server's log. The number of events is limited for each namespace, and what is beyond the
//! limit is counted and told as a sum.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{self, Format};
use crate::error::ErrorCode;
use crate::id::RequestId;
use crate::token::Token;

/// Kinds of audit events; the last token of the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuditKind {
    /// A request that changes something or reaches into a guest was answered with a result.
    Done,
    /// A request was answered with an error, or not at all because its reply subject is no inbox. After
    /// `deadline_exceeded` it may still take effect.
    Refused,
    /// A server of the bus kept somebody from a subject, or from the bus.
    Denied,
    /// So many events were not told, because there were too many.
    Suppressed,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl AuditKind {
    /// Every kind that is sent.
    pub const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::Denied, Self::Suppressed];

    /// The token of the subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Suppressed => "suppressed",
            Self::Unknown => "unknown",
        }
    }
}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuditAction {
    /// A request to a host.
    Request,
    /// To publish to the subject.
    Publish,
    /// To have replies sent to the subject.
    Reply,
    /// To listen to the subject.
    Subscribe,
    /// To connect, with credentials that are wrong.
    Connect,
    /// Something that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl AuditAction {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Reply => "reply",
            Self::Subscribe => "subscribe",
            Self::Connect => "connect",
            Self::Unknown => "unknown",
        }
    }
}

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Caller {
    /// A server of the bus says so, in a way that no client can forge: account, user, address and connection are
    /// then what it knows. If not, `user` is only what the caller's inbox says, or what a request without a reply
    /// subject says of itself; a liar may choose either, but does not get a reply in the inbox of somebody else.
    /// Between users of one account no server says anything: there nothing of a host's events is verified.
    pub verified: bool,
    /// The account at the bus server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The user, or the public nkey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the connection came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The server that the caller is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// That server's number of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// What the client program calls itself; always its own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

impl Caller {
    /// In a few words; a question mark stands where nobody but the caller says so.
    #[must_use]
    pub fn line(&self) -> String {
        let user = self.user.as_deref().unwrap_or("somebody");
        let name = match &self.account {
            Some(account) => format!("{account}/{user}"),
            None => user.to_owned(),
        };
        let doubt = if self.verified { "" } else { "?" };
        match &self.address {
            Some(address) => format!("{name}{doubt} at {address}"),
            None => format!("{name}{doubt}"),
        }
    }
}

/// What of a guest a request was about. A program's further arguments, its environment and its input are never told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestTarget {
    /// The program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// As whom, if it was said: a user, or the owner of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The detached program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The file or folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The SHA-256 of a new agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The fields of all requests to guests that may be told.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    argv: Vec<String>,
    user: Option<String>,
    owner: Option<String>,
    run: Option<String>,
    path: Option<String>,
    sha256: Option<String>,
}

impl GuestTarget {
    /// What the body of a request to a guest says of its target; nothing of a body that cannot be read.
    #[must_use]
    pub fn of(format: Format, body: &[u8]) -> Option<Self> {
        let said: Told = codec::decode_as(format, body).ok()?;
        let short = |text: String| told(&text, MAX_TARGET);
        let target = Self {
            program: said.argv.into_iter().next().map(short),
            user: said.user.or(said.owner).map(short),
            run: said.run.map(short),
            path: said.path.map(short),
            sha256: said.sha256.map(short),
        };
        (target != Self::default()).then_some(target)
    }

    /// In one line, as `program=sh user=app`.
    #[must_use]
    pub fn line(&self) -> String {
        let named = [
            ("program", &self.program),
            ("path", &self.path),
            ("run", &self.run),
            ("user", &self.user),
            ("sha256", &self.sha256),
        ];
        let said = named.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        said.collect::<Vec<_>>().join(" ")
    }
}

/// The body of an audit event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEvent {
    /// The host, or the server of the bus, that tells of it.
    pub reporter: Token,
    /// Position in the reporter's audit, from 1 without gaps: a number that is missing was taken out. That of a bus
    /// server begins again at 1 when the stream keeps none of its events any more.
    pub seq: u64,
    /// What kind of event.
    pub kind: AuditKind,
    /// When, by the reporter's clock.
    pub time_unix_ms: u64,
    /// What was tried.
    pub action: AuditAction,
    /// Who tried it.
    pub caller: Caller,
    /// The subject that was asked or tried; at most 256 bytes of it.
    pub subject: String,
    /// The namespace, as far as the subject names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Token>,
    /// The VM's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Token>,
    /// The verb, if it is one of the contract's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<String>,
    /// What of the guest it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<GuestTarget>,
    /// Id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorCode>,
    /// How many events this one stands for; more than one only if they were suppressed.
    pub count: u64,
}

/// The longest subject that is told, in bytes.
pub const MAX_SUBJECT: usize = 256;
/// The longest part of a target that is told, in bytes.
pub const MAX_TARGET: usize = 256;
/// The longest name of a caller that is told, in bytes; a public nkey has 56.
pub const MAX_NAME: usize = 128;

/// A text of somebody's choice as it is told: cut at a character, and without control characters.
#[must_use]
pub fn told(text: &str, max_bytes: usize) -> String {
    let mut told = String::new();
    for c in text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }) {
        if told.len() + c.len_utf8() > max_bytes {
            break;
        }
        told.push(c);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_short_and_fits_a_line() {
        assert_eq!(told("drover.v1.x", MAX_SUBJECT), "drover.v1.x");
        assert_eq!(told("a\nb\u{1b}[2J", 64), "a\u{fffd}b\u{fffd}[2J");
        assert_eq!(told(&"é".repeat(300), 5), "éé");
        assert_eq!(told(&"x".repeat(300), MAX_SUBJECT).len(), MAX_SUBJECT);
    }

    #[test]
    fn of_a_command_its_program_is_told_and_none_of_its_secrets() {
        let body = serde_json::json!({
            "argv": ["mysql", "-psecret"], "env": {"TOKEN": "secret"}, "stdin": "c2VjcmV0", "user": "app",
        });
        for format in [Format::Json, Format::MsgPack] {
            let body = codec::encode_as(format, &body).unwrap();
            let target = GuestTarget::of(format, &body).unwrap();
            assert_eq!(target.line(), "program=mysql user=app");
            assert!(!format!("{target:?}").contains("secret"));
        }
        let put = serde_json::json!({"path": "/etc/motd", "owner": "0:0", "size_bytes": 1});
        let put = GuestTarget::of(Format::Json, &codec::encode_as(Format::Json, &put).unwrap()).unwrap();
        assert_eq!(put.line(), "path=/etc/motd user=0:0");
        for nothing in [&b"{}"[..], b"[", b"{\"argv\":1}", b""] {
            assert_eq!(GuestTarget::of(Format::Json, nothing), None);
        }
    }
}
