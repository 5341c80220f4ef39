//! `drover events`: the log, and what happens now, without gap or duplicate.

use drover_schemas::body::status::AgentState;
use drover_schemas::event::{AgentEvent, VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use drover_schemas::{RequestId, Token};
use jiff::{SignedDuration, Timestamp};

use super::Global;
use super::exit::CliError;
use super::output::safe;
use crate::client::{EventFeed, Since, Wanted, time};

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Only events of this VM.
    #[arg(long, value_name = "NAME")]
    vm: Option<Token>,
    /// Only events of this kind, such as state, rebooted or panic; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    kind: Vec<VmEventKind>,
    /// Only events that this request led to.
    #[arg(long, value_name = "ID")]
    request_id: Option<RequestId>,
    /// Begin with the last state of each VM, and go on from there.
    #[arg(long, conflicts_with_all = ["since", "kind", "request_id"])]
    last: bool,
    /// From here on: a position of the stream, a time (2026-01-31T12:00:00Z), or how long ago (10m).
    /// Without it the whole log, and with --follow only what happens from now on.
    #[arg(long, value_name = "SEQ|TIME|DURATION")]
    since: Option<String>,
    /// Go on with what happens.
    #[arg(long, short)]
    follow: bool,
}

pub(super) async fn run(args: &EventsArgs, global: &Global) -> Result<u8, CliError> {
    let since = match &args.since {
        None if args.last => Since::Last,
        Some(text) => parse_since(text).map_err(CliError::Usage)?,
        None if args.follow => Since::Now,
        None => Since::Beginning,
    };
    let client = global.connect.connect().await?;
    let wanted = Wanted { vm: args.vm.clone(), kinds: args.kind.clone(), request_id: args.request_id };
    let mut feed = EventFeed::open(&client, wanted, since, args.follow).await?;
    loop {
        let next = tokio::select! {
            next = feed.next() => next?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(event) = next else { return Ok(0) };
        let line = |event: &VmEvent| {
            format!(
                "{}  {}/{}  #{:<3} {}",
                time::rfc3339(event.time_unix_ms),
                event.namespace,
                event.name,
                event.seq,
                sentence(event)
            )
        };
        global.output.print_item(&event, line)?;
    }
}

fn parse_kind(text: &str) -> Result<VmEventKind, String> {
    one_of(VmEventKind::ALL, VmEventKind::as_str, text)
}

/// The one of `all` that is called so.
pub(super) fn one_of<K: Copy, const N: usize>(
    all: [K; N],
    name: fn(K) -> &'static str,
    text: &str,
) -> Result<K, String> {
    let found = all.into_iter().find(|kind| name(*kind) == text);
    found.ok_or_else(|| format!("known: {}", all.map(name).join(", ")))
}

/// From what `--since` takes.
pub(super) fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(cursor) = text.parse::<u64>() {
        return Ok(Since::Cursor(cursor));
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Since::UnixMs(u64::try_from(at.as_millisecond()).unwrap_or(0)));
    }
    if let Ok(ago) = text.parse::<SignedDuration>() {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(0);
        return Ok(Since::UnixMs(time::now_unix_ms().saturating_sub(ago)));
    }
    Err(format!("{text:?} is no position, time or duration; write 42, 2026-01-31T12:00:00Z or 10m"))
}

/// An event in words, without time and name.
pub(super) fn sentence(event: &VmEvent) -> String {
    let change = match (event.previous, event.kind) {
        _ if event.last => "gone".to_owned(),
        (Some(previous), VmEventKind::State) if previous != event.state => {
            format!("{previous} -> {}", event.state)
        }
        (_, VmEventKind::State) => event.state.to_string(),
        (_, VmEventKind::Progress) => {
            format!("{}: {}", event.state, event.step.as_deref().unwrap_or("a step"))
        }
        (_, kind) => format!("{} ({})", kind.as_str(), event.state),
    };
    if let Some(said) = &event.agent_event {
        return from_inside(said);
    }
    match (&event.cause, &event.dropped) {
        (Some(cause), _) => format!("{change}  {}", cause.message),
        (None, Some(dropped)) => format!("{change}  {dropped}"),
        (None, None) => change,
    }
}

/// What a guest says. Its text has no power over the terminal: JSON leaves some characters as they are.
fn from_inside(said: &AgentEvent) -> String {
    let data = if said.data.0.is_empty() { String::new() } else { serde_json::json!(said.data).to_string() };
    let data = safe(&data);
    let who = if said.kind.is_own() { "the agent".to_owned() } else { format!("user {}", said.uid) };
    format!("agent  {} by {who}  {data}", said.kind).trim_end().to_owned()
}

/// A state with its agent, for tables.
pub(super) const fn agent_word(state: VmState, agent: AgentState) -> &'static str {
    match agent {
        AgentState::Ready => "ready",
        AgentState::Connecting => "connecting",
        AgentState::Lost => "lost",
        AgentState::Absent if matches!(state, VmState::Running) => "absent",
        AgentState::Absent => "-",
        AgentState::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_has_no_power_over_the_terminal() {
        let said = |kind: &str, data: &str| AgentEvent {
            kind: drover_schemas::guest::EventType::new(kind).unwrap(),
            uid: 1000,
            gid: 1000,
            pid: 1,
            time_unix_ms: 0,
            data: serde_json::from_str(data).unwrap(),
        };
        assert_eq!(from_inside(&said("app.up", "{}")), "agent  app.up by user 1000");
        assert_eq!(
            from_inside(&said("drover.oom-kill", r#"{"pid":7}"#)),
            r#"agent  drover.oom-kill by the agent  {"pid":7}"#
        );
        let hostile = from_inside(&said("a", "{\"x\":\"\\u001b[2J\u{9b}2J\\n\"}"));
        assert!(!hostile.chars().any(char::is_control), "{hostile:?}");
    }

    #[test]
    fn a_start_is_a_position_a_time_or_a_duration() {
        assert_eq!(parse_since("42"), Ok(Since::Cursor(42)));
        assert_eq!(parse_since("1970-01-01T00:00:02Z"), Ok(Since::UnixMs(2_000)));
        let Ok(Since::UnixMs(at)) = parse_since("10m") else { panic!("no duration") };
        assert!(time::now_unix_ms() - at >= 600_000);
        assert!(parse_since("yesterday-ish").is_err());
        assert_eq!(parse_kind("operation-failed"), Ok(VmEventKind::OperationFailed));
        assert_eq!(parse_kind("agent"), Ok(VmEventKind::Agent));
        assert!(parse_kind("unknown").unwrap_err().contains("agent-dropped"));
    }
}
