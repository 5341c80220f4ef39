//! What the agent costs its guest when nobody asks for anything: its file, its memory, and how often it wakes.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::{ExecReply, ExecRequest};
use tokio::time::sleep;

use super::guest;
use super::report::{Goal, Row};
use super::sample::Percentiles;
use crate::client::{CallOptions, Client, ClientError};

const DEADLINE: Duration = Duration::from_secs(60);
/// How long it is watched: two heartbeats of the host.
const WINDOW: Duration = Duration::from_secs(60);
/// What the guest takes to come to rest and to write down, at the most.
const REST: Duration = Duration::from_secs(30);

/// Two heartbeats; each is read, and answered.
const WAKES: f64 = 4.0;

/// Writes numbers about the agent's process into a file, one a line: bytes of its program, KiB resident, KiB of it
/// anonymous (both with the process that stands before it, what they share counted once), how often its threads gave the processor up within the window, and how many threads there are. It is a
/// detached command, so that nobody asks the agent for anything meanwhile; its agent is named by the one who starts it.
const WATCH: &str = r#"
cd "/proc/$1" || exit 1
number() { sed -n "s/^$1:[[:space:]]*\([0-9]*\).*/\1/p" "$2"; }
switches() {
    total=0
    for thread in task/*; do total=$((total + $(number voluntary_ctxt_switches "$thread/status"))); done
    echo "$total"
}
both() {
    own=$(number "$1" smaps_rollup) front=$(number PPid status)
    if grep -q drover-front "../$front/comm"; then own=$((own + $(number "$1" "../$front/smaps_rollup"))); fi
    echo "$own"
}
# Threads that worked on files end ten seconds later.
sleep 15
before=$(switches)
sleep "$2"
after=$(switches)
{
    stat -Lc %s exe
    both Pss
    both Pss_Anon
    echo $((after - before))
    ls task | wc -l
} > /tmp/drover-idle"#;

/// The rows; a guest that has not what is needed says why.
///
/// # Errors
/// As [`Client::call`].
pub async fn rows(client: &Client, name: &Token) -> Result<[Row; 3], ClientError> {
    // The agent is the parent of the process between it and this command.
    let agent = ["sh", "-c", "sed -n 's/^PPid:[[:space:]]*//p' /proc/$PPID/status"];
    let agent = guest::result(client, name, &agent).await?.stdout.unwrap_or_default();
    let agent = String::from_utf8_lossy(agent.as_slice()).trim().to_owned();
    let argv = ["sh", "-c", WATCH, "sh", &agent, &WINDOW.as_secs().to_string()];
    let request =
        ExecRequest { argv: argv.map(str::to_owned).to_vec(), detach: true, ..ExecRequest::default() };
    let subject = client.guest_subject(name, "exec")?;
    client.call::<_, ExecReply>(&subject, &request, CallOptions::change(DEADLINE)).await?;
    sleep(WINDOW + REST).await;
    let found = guest::result(client, name, &["cat", "/tmp/drover-idle"]).await?;
    let text = found.stdout.unwrap_or_default();
    let text = String::from_utf8_lossy(text.as_slice()).into_owned();
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let row = |what: &str, unit| Row::new(what, unit, Percentiles::default());
    let size = row("agent, its program", "MiB");
    let memory = row("agent at rest, resident memory", "KiB").goal(Goal::AtMost(4096.0));
    let wakes = row("agent at rest, wake-ups in a minute", "count").goal(Goal::AtMost(WAKES));
    let &[bytes, resident, anonymous, switches, threads] = numbers.as_slice() else {
        let why = format!("the guest has not written its numbers down: {text:?}");
        return Ok([size, memory, wakes].map(|row| row.unmeasured(&why)));
    };
    let with = |row: Row, value: f64, note: String| Row {
        drover: Some(Percentiles { p50: value, p99: value, count: 1 }),
        note: Some(note),
        ..row
    };
    Ok([
        with(
            size,
            bytes / f64::from(1 << 20),
            "statically linked, without a library of the guest".to_owned(),
        ),
        with(memory, resident, format!("{anonymous:.0} KiB of it anonymous")),
        with(wakes, switches, format!("of {threads:.0} threads, with the host's heartbeats only")),
    ])
}
