//! A line of the bus server's log, if it tells that somebody was kept from something. Pure.
//!
//! ```text
//! [pid] 2026/11/26 02:46:06.389091 [ERR] 127.0.0.1:53890 - cid:9 - "v1:lang:program" - "account/user:name" - Publish Violation - Subject "x"
//! ```
//! What a client chose (its program's name, its user, the subject) stands in quotes, with what could end them
//! escaped: no client can write a line or a part of one.

use drover_schemas::audit::{AuditAction, Caller, MAX_NAME, MAX_SUBJECT, told};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Somebody was kept from something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When; the server writes UTC if `logtime_utc` is set, as `drover bus config` does.
    pub time_unix_ms: u64,
    /// Who, as the server knows it. The server itself is not named.
    pub caller: Caller,
    /// What was tried.
    pub action: AuditAction,
    /// The subject; empty for a connection.
    pub subject: String,
}

/// Reads a line; `None` for one that tells of something else.
pub fn parse(line: &str) -> Option<Denial> {
    let line = line.strip_prefix('[')?;
    let (_pid, line) = line.split_once("] ")?;
    let (at, line) = line.split_once(" [ERR] ")?;
    let (address, line) = line.split_once(" - ")?;
    let (kind, number) = line.split_once(':')?;
    if !kind.chars().all(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let (connection, mut line) = number.split_at(digits);
    let mut labels = Vec::new();
    while let Some((label, rest)) = line.strip_prefix(" - ").and_then(quoted) {
        labels.push(label);
        line = rest;
    }
    let mut caller = Caller {
        verified: true,
        address: Some(told(host_of(address), MAX_NAME)),
        connection: connection.parse().ok(),
        ..Caller::default()
    };
    let mut labels = labels.into_iter();
    caller.program = labels.next().as_deref().and_then(program);
    if let Some(label) = labels.next() {
        (caller.account, caller.user) = account_and_user(&label);
    }
    let text = line.strip_prefix(" - ")?;
    let (action, subject) = violation(text).or_else(|| refusal(text, &mut caller))?;
    Some(Denial { time_unix_ms: unix_ms(at)?, caller, action, subject: told(&subject, MAX_SUBJECT) })
}

fn violation(text: &str) -> Option<(AuditAction, String)> {
    let (action, rest) = if let Some(rest) = text.strip_prefix("Publish Violation - Subject ") {
        (AuditAction::Publish, rest)
    } else if let Some(rest) = text.strip_prefix("Publish Violation - Reply ") {
        (AuditAction::Reply, rest)
    } else {
        // "Subscription Violation - Subject", and "… Too Many Tokens - Subject".
        let rest = text.strip_prefix("Subscription Violation")?;
        (AuditAction::Subscribe, rest.split_once(" - Subject ")?.1)
    };
    let (subject, _) = quoted(rest)?;
    Some((action, subject))
}

/// A login that was refused. Who it was is only what they said.
fn refusal(text: &str, caller: &mut Caller) -> Option<(AuditAction, String)> {
    let rest = text.strip_prefix("authentication error")?;
    caller.verified = false;
    for label in [" - User ", " - Nkey "] {
        if let Some((name, _)) = rest.strip_prefix(label).and_then(quoted) {
            caller.user = Some(told(&name, MAX_NAME));
        }
    }
    Some((AuditAction::Connect, String::new()))
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// The name that a program gives itself follows its version and language.
fn program(label: &str) -> Option<String> {
    label.splitn(3, ':').nth(2).filter(|name| !name.is_empty()).map(|name| told(name, MAX_NAME))
}

/// Reads `account/user:name`, `account/nkey:KEY`.
fn account_and_user(label: &str) -> (Option<String>, Option<String>) {
    let (account, user) =
        label.split_once('/').map_or((None, label), |(account, user)| (Some(account), user));
    let user = user.split_once(':').map_or(user, |(_, name)| name);
    let told = |text: &str| (!text.is_empty()).then(|| told(text, MAX_NAME));
    (account.and_then(told), told(user))
}

fn unix_ms(text: &str) -> Option<u64> {
    let at = DateTime::strptime("%Y/%m/%d %H:%M:%S%.f", text).ok()?;
    let at = at.to_zoned(TimeZone::UTC).ok()?;
    u64::try_from(at.timestamp().as_millisecond()).ok()
}

/// Reads a text in quotes, as Go writes it, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    let mut chars = text.char_indices();
    loop {
        let (at, c) = chars.next()?;
        match c {
            '"' => return Some((String::from_utf8_lossy(&bytes).into_owned(), &text[at + 1..])),
            '\\' => {
                let (_, escaped) = chars.next()?;
                let mut code = |digits: usize| {
                    let digits: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                    u32::from_str_radix(&digits, 16).ok()
                };
                match escaped {
                    'a' => bytes.push(7),
                    'b' => bytes.push(8),
                    'f' => bytes.push(12),
                    'n' => bytes.push(b'\n'),
                    'r' => bytes.push(b'\r'),
                    't' => bytes.push(b'\t'),
                    'v' => bytes.push(11),
                    '\\' | '"' | '\'' => bytes.push(u8::try_from(escaped).ok()?),
                    'x' => bytes.push(u8::try_from(code(2)?).ok()?),
                    'u' => push(&mut bytes, char::from_u32(code(4)?)?),
                    'U' => push(&mut bytes, char::from_u32(code(8)?)?),
                    _ => return None,
                }
            }
            c => push(&mut bytes, c),
        }
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines of nats-server 2.15.1, as it wrote them.
    const LOG: &str = include_str!("fixtures/nats-server-2.15.1.log");

    fn told_of(log: &str) -> Vec<(AuditAction, String, String)> {
        let all = log.lines().filter_map(parse);
        all.map(|denial| {
            let Caller { account, user, .. } = denial.caller;
            let who = format!("{}/{}", account.unwrap_or_default(), user.unwrap_or_default());
            (denial.action, who, denial.subject)
        })
        .collect()
    }

    #[test]
    fn the_servers_own_lines_are_read() {
        use AuditAction::{Connect, Publish, Reply, Subscribe};
        let nkey = "acme/UBTC7ZONEHMFJ24WEA7VSKAPINWAHHQVJR7LNNCINJL6I7OV3BZIB3VC";
        let wanted = [
            (Publish, "acme/alice", "$JS.API.STREAM.DELETE.E"),
            (Publish, "acme/alice", "d.evt.x"),
            (Publish, "acme/alice", "we\"ird\\xé\u{fffd}"),
            (Subscribe, "acme/alice", "d.evt.>"),
            (Subscribe, "acme/alice", "d.evt.>"),
            (Reply, "acme/alice", "_R_.abc.def"),
            (Connect, "/alice", ""),
            (Publish, "HOSTS/al \"i\" ce/x", "d.evt.27"),
            (Publish, "HOSTS/al \"i\" ce/x", "d.evt.é"),
            (Connect, "/", ""),
            (Connect, "/x\u{fffd}y", ""),
            (Connect, "/", ""),
            (Publish, nkey, "drover.v1.cmd.default.vm.list"),
            (Connect, "/UA4UFMH76Z6B5FBVFXCJC2VLMUYNGNBH4N76LOYI2EHJMHSA5E34PHO3", ""),
        ];
        let wanted = wanted.map(|(action, who, subject)| (action, who.to_owned(), subject.to_owned()));
        assert_eq!(told_of(LOG), wanted);
    }

    #[test]
    fn a_denial_says_when_and_from_where() {
        let denial = LOG.lines().find_map(parse).unwrap();
        assert_eq!(denial.time_unix_ms, 1_795_661_166_389);
        let caller = denial.caller;
        assert_eq!((caller.address.as_deref(), caller.connection), (Some("127.0.0.1"), Some(9)));
        assert_eq!((caller.program.as_deref(), caller.verified), (Some("my \"app\" - x"), true));
        let refused = LOG.lines().filter_map(parse).find(|denial| denial.action == AuditAction::Connect);
        assert!(!refused.unwrap().caller.verified, "nobody knows who that was");
    }

    #[test]
    fn a_name_of_somebodys_choice_makes_no_other_line() {
        let head = "[1] 2026/11/26 02:46:06.389091 [ERR] 10.0.0.1:5 - cid:9";
        let name = r#"v1:x:a\" - \"acme/user:bob\" - Publish Violation - Subject \"forged"#;
        let line = format!("{head} - \"{name}\" - \"acme/user:eve\" - Publish Violation - Subject \"real\"");
        let denial = parse(&line).unwrap();
        assert_eq!((denial.caller.user.as_deref(), denial.subject.as_str()), (Some("eve"), "real"));
        for other in [
            "",
            "[",
            "[1] 2026/11/26 02:46:06.389091 [INF] Server is ready",
            &format!("{head} - \"v1:x\" - \"a/user:b\" - Slow Consumer Detected"),
            &format!("{head} - \"v1:x\" - \"a/user:b\" - Publish Violation - Subject \"open"),
            "[1] yesterday [ERR] 10.0.0.1:5 - cid:9 - authentication error",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,200}") {
            parse(&line);
            let head = "[1] 2026/11/26 02:46:06.389091 [ERR] 10.0.0.1:5 - cid:9";
            for told in ["Publish Violation - Subject ", "authentication error - User ", ""] {
                let line = format!("{head} - {told}{line}");
                if let Some(denial) = parse(&line) {
                    prop_assert!(denial.subject.len() <= MAX_SUBJECT);
                    prop_assert!(!denial.subject.chars().any(char::is_control));
                }
            }
        }
    }
}
