//! `drover audit`: who did what, from the stream itself; hosts do not read it to anybody.

use std::time::Duration;

use drover_actors::bus::assets::AssetsConfig;
use drover_actors::bus::log::{self, From};
use drover_schemas::Token;
use drover_schemas::audit::{AuditAction, AuditEvent, AuditKind};
use drover_schemas::codec;
use drover_schemas::subject::Subjects;
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::time::timeout;

use super::Global;
use super::events::{one_of, parse_since};
use super::exit::CliError;
use crate::client::{ClientError, Since, time};

/// Messages and bytes of one read.
const PAGE: usize = 200;
const PAGE_BYTES: usize = 512 * 1024;
/// The log is read again after so long, though nothing was heard: the subscription may have been away.
const LOOK: Duration = Duration::from_secs(5);

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A name with `?` is what the caller says of itself; without it, a server of the bus says so."
)]
pub struct AuditArgs {
    /// Only of this kind: done, refused, denied or suppressed; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    kind: Vec<AuditKind>,
    /// Only about this namespace.
    #[arg(long, value_name = "NS")]
    of: Option<Token>,
    /// Only by this user, or public nkey.
    #[arg(long, value_name = "USER")]
    by: Option<String>,
    /// Only as this host saw it.
    #[arg(long, value_name = "HOST", conflicts_with = "bus")]
    host: Option<Token>,
    /// Only what this server of the bus denied.
    #[arg(long, value_name = "SERVER")]
    bus: Option<Token>,
    /// From here on: a position of the stream, a time (2026-01-31T12:00:00Z), or how long ago (10m).
    #[arg(long, value_name = "SEQ|TIME|DURATION")]
    since: Option<String>,
    /// Go on with what happens.
    #[arg(long, short)]
    follow: bool,
}

#[derive(Debug, Serialize)]
struct Told {
    /// Position in the stream, for `--since`.
    cursor: u64,
    #[serde(flatten)]
    event: AuditEvent,
}

impl AuditArgs {
    fn takes(&self, event: &AuditEvent) -> bool {
        (self.kind.is_empty() || self.kind.contains(&event.kind))
            && self.of.as_ref().is_none_or(|ns| event.namespace.as_ref() == Some(ns))
            && self.by.as_ref().is_none_or(|user| event.caller.user.as_ref() == Some(user))
    }

    fn filter(&self, subjects: &Subjects) -> String {
        match (&self.host, &self.bus) {
            (Some(host), _) => subjects.host_audit(host),
            (_, Some(server)) => subjects.bus_audit(server),
            _ => subjects.all_audit(),
        }
    }
}

pub(super) async fn run(args: &AuditArgs, global: &Global) -> Result<u8, CliError> {
    let since = args.since.as_deref().map(parse_since).transpose().map_err(CliError::Usage)?;
    let mut from = match since {
        Some(Since::Cursor(at)) => From::Position(at),
        Some(Since::UnixMs(at)) => From::UnixMs(at),
        _ => From::Position(1),
    };
    let client = global.connect.connect().await?;
    let filter = args.filter(client.subjects());
    let stream = AssetsConfig::new(global.connect.root.clone()).events_stream();
    // Before the first read: what it does not find wakes the next one.
    let mut live = match args.follow {
        true => {
            let subscribed = client.nats().subscribe(filter.clone()).await;
            Some(subscribed.map_err(|source| ClientError::Subscribe { subject: filter.clone(), source })?)
        }
        false => None,
    };
    loop {
        let read = log::page(client.nats(), &stream, &filter, from, PAGE, PAGE_BYTES);
        let page = tokio::select! {
            page = read => page.map_err(CliError::Audit)?,
            _ = tokio::signal::ctrl_c() => return Ok(0),
        };
        for stored in page.messages {
            from = From::Position(stored.position + 1);
            let Ok(event) = codec::decode::<AuditEvent>(&stored.body) else { continue };
            if args.takes(&event) {
                global
                    .output
                    .print_item(&Told { cursor: stored.position, event }, |told| line(&told.event))?;
            }
        }
        if !page.end {
            continue;
        }
        let Some(live) = &mut live else { return Ok(0) };
        tokio::select! {
            heard = timeout(LOOK, live.next()) => {
                if matches!(heard, Ok(None)) {
                    return Err(ClientError::Closed.into());
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(0),
        }
    }
}

fn parse_kind(text: &str) -> Result<AuditKind, String> {
    one_of(AuditKind::ALL, AuditKind::as_str, text)
}

/// An event in one line.
fn line(event: &AuditEvent) -> String {
    let at = time::rfc3339(event.time_unix_ms);
    let head = format!("{at}  {} #{:<4} {:<10}", event.reporter, event.seq, event.kind.as_str());
    if event.kind == AuditKind::Suppressed {
        let of = match (&event.namespace, &event.caller.user) {
            (Some(ns), _) => format!(" of {ns}"),
            (None, Some(_)) => format!(" by {}", event.caller.line()),
            (None, None) => String::new(),
        };
        return format!("{head} {} more{of} were not told", event.count);
    }
    let mut line = format!("{head} {}", event.caller.line());
    let mut add = |text: &str| {
        if !text.is_empty() {
            line.push_str("  ");
            line.push_str(text);
        }
    };
    if event.action != AuditAction::Request {
        add(event.action.as_str());
    }
    add(&event.subject);
    add(&event.target.as_ref().map_or_else(String::new, |target| target.line()));
    add(event.error.map_or("", |code| code.as_str()));
    add(&event.request_id.map(|id| id.to_string()).unwrap_or_default());
    line
}

#[cfg(test)]
mod tests {
    use drover_schemas::ErrorCode;
    use drover_schemas::audit::Caller;

    use super::*;

    fn refused() -> AuditEvent {
        AuditEvent {
            reporter: Token::new("h1").unwrap(),
            seq: 7,
            kind: AuditKind::Refused,
            time_unix_ms: 0,
            action: AuditAction::Request,
            caller: Caller { user: Some("bob".into()), ..Caller::default() },
            subject: "drover.v1.cmd.acme.vm.web.stop".into(),
            namespace: Token::new("acme").ok(),
            vm: None,
            verb: Some("stop".into()),
            target: None,
            request_id: None,
            error: Some(ErrorCode::InvalidState),
            count: 1,
        }
    }

    #[test]
    fn a_line_says_who_and_whether_that_is_known() {
        let text = line(&refused());
        assert!(text.contains("refused    bob?  drover.v1.cmd.acme.vm.web.stop  invalid_state"), "{text}");
        let known = Caller {
            verified: true,
            account: Some("acme".into()),
            address: Some("10.0.0.7".into()),
            ..refused().caller
        };
        let text = line(&AuditEvent { caller: known, action: AuditAction::Publish, ..refused() });
        assert!(text.contains("acme/bob at 10.0.0.7  publish  drover"), "{text}");
        let text = line(&AuditEvent { kind: AuditKind::Suppressed, count: 9, ..refused() });
        assert!(text.ends_with("9 more of acme were not told"), "{text}");
    }

    #[test]
    fn filters_hold_together() {
        let args = |kind: &[AuditKind], of: &str, by: &str| AuditArgs {
            kind: kind.to_vec(),
            of: Token::new(of).ok(),
            by: (!by.is_empty()).then(|| by.to_owned()),
            host: None,
            bus: None,
            since: None,
            follow: false,
        };
        assert!(args(&[], "", "").takes(&refused()));
        assert!(args(&[AuditKind::Refused], "acme", "bob").takes(&refused()));
        for other in [args(&[AuditKind::Done], "", ""), args(&[], "beta", ""), args(&[], "", "eve")] {
            assert!(!other.takes(&refused()), "{other:?}");
        }
        assert_eq!(parse_kind("denied"), Ok(AuditKind::Denied));
        assert!(parse_kind("unknown").is_err());
    }
}
