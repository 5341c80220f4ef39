//! The boot of `linux-microvm`, each step of it timed beside the same step of `linux-default`, by turns.
//!
//! The host tells when a VM runs and when its agent answers, and by its metrics what it did until the VM ran; the guest
//! tells by its own clock when its kernel began, when that ran its first process, and when the agent was started. The
//! console says less: what the kernel writes before its console is there comes late, and a quiet kernel writes nothing.

use std::net::SocketAddr;
use std::time::Duration;

use drover_actors::chain;
use drover_schemas::body::guest::ExecResult;
use drover_schemas::body::spec::VmSpec;
use drover_schemas::body::status::CauseKind;
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorBody, ErrorCode, Token, VmId};
use tokio::time::{Instant, timeout};

use super::guest;
use super::report::Row;
use super::sample::{Percentiles, Sample};
use super::steps::{StepsError, Totals};
use super::vms::Vms;
use crate::client::time::now_unix_ms;
use crate::client::{Client, ClientError, EventFeed, Since, Wanted};

/// What is measured, and what it is held against.
const TEMPLATES: [&str; 2] = ["linux-microvm", "linux-default"];
/// How long a boot may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the guest is asked for its clock: the quickest answer is the most exact.
const LOOKS: usize = 10;
/// What stands before the time in the line that [`ASK`] puts into the kernel's log.
const MARK: &str = "drover-bench ";
/// The agent's entry among the processes, and the kernel's word on its first process. The kernel's log has a clock of its
/// own, so a line in it says what the other clock was then. A command's parent is its keeper, whose parent is the agent.
const ASK: &str = "read -r up idle < /proc/uptime; echo \"drover-bench $up\" > /dev/kmsg; \
    while read -r key value; do [ \"$key\" != PPid: ] || agent=$value; done < /proc/$PPID/status; \
    cat \"/proc/$agent/stat\"; dmesg | grep -e 'as init process' -e 'drover-bench '";
/// The kernel counts the starts of processes in hundredths of a second.
const TICKS: f64 = 100.0;
/// How often each is booted, if nobody says.
pub const ROUNDS: usize = 5;
/// Steps that replies and events tell of.
const BUS: [&str; 2] = ["create accepted", "accepted to VMM running"];
/// What the second of them is made of: its names in the host's metrics, and in rows.
const HOST: [(&str, &str); 6] = [
    ("network", "the network"),
    ("disks", "the disks"),
    ("cgroup", "run directory and cgroup"),
    ("launch", "holder and VMM"),
    ("vm.create", "vm.create"),
    ("vm.boot", "vm.boot"),
];
/// Steps that the guest's clock tells of.
const GUEST: [&str; 4] = [
    "VMM running to the kernel's clock",
    "the kernel to its first process",
    "first process to the agent's start",
    "the agent's start to its answer",
];
/// All of them.
const TOTAL: &str = "create to agent ready";
/// How many rows there are.
const STEPS: usize = BUS.len() + HOST.len() + GUEST.len() + 1;

/// Times of one boot, in seconds since the create was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Boot {
    accepted: f64,
    running: f64,
    ready: f64,
    /// How long each of [`HOST`] took.
    host: Option<[f64; HOST.len()]>,
    guest: Option<Guest>,
}

/// What the guest knows.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Guest {
    /// When its clock was at zero.
    zero: f64,
    /// When the kernel ran its first process, by its clock.
    init: f64,
    /// When the agent was started, by its clock.
    agent: f64,
}

impl Boot {
    /// How long each step took. Those at the edge of two clocks are never less than nothing.
    fn steps(&self) -> [Option<f64>; STEPS] {
        let bus = [self.accepted, (self.running - self.accepted).max(0.0)].map(Some);
        let host = self.host.map_or([None; HOST.len()], |steps| steps.map(Some));
        let guest = self.guest.map_or([None; GUEST.len()], |Guest { zero, init, agent }| {
            [zero - self.running, init, agent - init, self.ready - zero - agent]
                .map(|step| Some(step.max(0.0)))
        });
        let mut all = bus.into_iter().chain(host).chain(guest).chain([Some(self.ready)]);
        std::array::from_fn(|_| all.next().flatten())
    }
}

/// The names of the rows, in the order of [`Boot::steps`].
fn names() -> impl Iterator<Item = String> {
    let host = HOST.iter().map(|(_, name)| format!("of that {name}"));
    let own = |names: &'static [&'static str]| names.iter().map(|name| (*name).to_owned());
    own(&BUS).chain(host).chain(own(&GUEST)).chain([TOTAL.to_owned()])
}

/// When the kernel ran its first process and when the agent was started, by the guest's clock, in what it said to [`ASK`].
fn starts(said: &str) -> Option<(f64, f64)> {
    // The name in brackets may hold anything; the 20th word behind it is the start.
    let (_, words) = said.lines().next()?.rsplit_once(')')?;
    let agent = words.split_whitespace().nth(19)?.parse::<f64>().ok()? / TICKS;
    let logged = |line: &str| line.strip_prefix('[')?.split_once(']')?.0.trim().parse::<f64>().ok();
    let last = |what: &str| said.lines().skip(1).filter(|line| line.contains(what)).last();
    let mark = last(MARK)?;
    let ahead = mark.rsplit_once(' ')?.1.parse::<f64>().ok()? - logged(mark)?;
    // It may have tried others before.
    Some((logged(last("as init process")?)? + ahead, agent))
}

/// Why steps are not known: the first reason of each.
#[derive(Debug, Default)]
struct Untold {
    host: Option<String>,
    guest: Option<String>,
}

impl Untold {
    /// Of the row at `index`.
    fn reason(&self, index: usize) -> &str {
        let why = if index < BUS.len() + HOST.len() { &self.host } else { &self.guest };
        why.as_deref().unwrap_or("nobody told")
    }
}

/// Boots, `rounds` times each. `admin` is where the host has its metrics.
pub async fn rows(
    client: &Client,
    vms: &Vms,
    process: Result<bool, String>,
    admin: Option<SocketAddr>,
    rounds: usize,
) -> Result<Vec<Row>, ClientError> {
    let skipped = match process {
        Ok(false) => None,
        Ok(true) => {
            Some("guests here are processes and have no kernel; see deploy/bench.sh --boot".to_owned())
        }
        Err(why) => Some(why),
    };
    if let Some(why) = skipped {
        let row = Row::new(&what(TOTAL), "ms", Percentiles::default());
        return Ok(vec![row.unmeasured(&why)]);
    }
    let mut samples: [[Sample; STEPS]; 2] = Default::default();
    let mut untold = Untold::default();
    for round in 0..rounds.max(1) {
        for turn in 0..TEMPLATES.len() {
            // Each goes first as often as the other.
            let which = (round + turn) % TEMPLATES.len();
            let boot = boot(client, vms, TEMPLATES[which], admin, &mut untold).await?;
            for (sample, step) in samples[which].iter_mut().zip(boot.steps()) {
                step.into_iter().for_each(|step| sample.push(Duration::from_secs_f64(step)));
            }
        }
    }
    let [ours, theirs] = samples;
    let row = |(index, name): (usize, String)| {
        let (ours, theirs) = (ours[index].percentiles(1e3), theirs[index].percentiles(1e3));
        let row = Row::new(&what(&name), "ms", ours);
        if ours.count.min(theirs.count) > 0 {
            row.against("linux-default, the same step", Ok(theirs))
        } else {
            row.unmeasured(untold.reason(index))
        }
    };
    let mut rows: Vec<Row> = names().enumerate().map(row).collect();
    // What nobody told is missing for one reason, which is said once.
    rows.dedup_by(|row, before| row.drover.is_none() && before.drover.is_none() && row.note == before.note);
    Ok(rows)
}

fn what(step: &str) -> String {
    format!("boot of {}, {step}", TEMPLATES[0])
}

async fn boot(
    client: &Client,
    vms: &Vms,
    template: &str,
    admin: Option<SocketAddr>,
    untold: &mut Untold,
) -> Result<Boot, ClientError> {
    let template = Token::new(template).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
    let spec = VmSpec { template: Some(template.clone()), ..VmSpec::default() };
    let before = Totals::now(admin).await;
    let mut feed = EventFeed::open(client, Wanted::default(), Since::Now, true).await?;
    let (sent, sent_unix_ms) = (Instant::now(), now_unix_ms());
    let (vm, accepted) = vms.create_of(spec, None).await?;
    let states = timeout(PATIENCE, states(&mut feed, vm.vm_id, sent_unix_ms)).await;
    let (running, ready) = states.map_err(|_| {
        let text =
            format!("the agent of a VM from {template} did not answer within {} s", PATIENCE.as_secs());
        ErrorBody::new(ErrorCode::DeadlineExceeded, text)
    })??;
    let host = of_host(before, admin).await.map_err(|error| chain(&error).to_string());
    let guest = look(client, &vm.name, sent).await;
    vms.delete(&vm.name).await?;
    Ok(Boot {
        accepted: accepted.as_secs_f64(),
        running,
        ready,
        host: noted(host, &mut untold.host),
        guest: noted(guest, &mut untold.guest),
    })
}

/// What is known; else the reason is noted, unless there is one.
fn noted<T>(told: Result<T, String>, untold: &mut Option<String>) -> Option<T> {
    match told {
        Ok(told) => Some(told),
        Err(why) => {
            untold.get_or_insert(why);
            None
        }
    }
}

/// How long each of [`HOST`] took in the boot since `before`.
async fn of_host(
    before: Result<Totals, StepsError>,
    admin: Option<SocketAddr>,
) -> Result<[f64; HOST.len()], StepsError> {
    let (before, now) = (before?, Totals::now(admin).await?);
    let mut steps = [0.0; HOST.len()];
    for (step, (name, _)) in steps.iter_mut().zip(HOST) {
        *step = now.since(&before, name)?;
    }
    Ok(steps)
}

/// When a VM ran and when its agent answered, in seconds since `sent_unix_ms`, by the host's clock.
async fn states(feed: &mut EventFeed, vm_id: VmId, sent_unix_ms: u64) -> Result<(f64, f64), ClientError> {
    let since = |event: &VmEvent| event.time_unix_ms.saturating_sub(sent_unix_ms) as f64 / 1e3;
    let mut running = None;
    loop {
        let event = feed.next().await?.ok_or(ClientError::Closed)?;
        if event.vm_id != vm_id {
            continue;
        }
        let cause = event.cause.as_ref();
        match (event.kind, event.state) {
            (VmEventKind::State, VmState::Running) => running = running.or(Some(since(&event))),
            (VmEventKind::State, VmState::Failed | VmState::Stopped | VmState::Backoff) => {
                let why = cause.map_or("no reason", |cause| cause.message.as_str());
                let text = format!("a VM of the run is {}: {why}", event.state);
                return Err(ErrorBody::new(ErrorCode::InvalidState, text).into());
            }
            (VmEventKind::Agent, _) if cause.is_some_and(|cause| cause.kind == CauseKind::AgentReady) => {
                let ready = since(&event);
                return Ok((running.unwrap_or(ready), ready));
            }
            _ => {}
        }
    }
}

/// Asks the guest for its clock and what happened by it.
async fn look(client: &Client, name: &Token, sent: Instant) -> Result<Guest, String> {
    let failed = |error: ClientError| chain(&error).to_string();
    let mut best: Option<(Duration, f64)> = None;
    for _ in 0..LOOKS {
        let began = Instant::now();
        let uptime = Duration::from_millis(guest::info(client, name).await.map_err(failed)?.uptime_ms);
        let took = began.elapsed();
        // It looked at its clock at some time between the two ends.
        let zero = (began - sent + took / 2).as_secs_f64() - uptime.as_secs_f64();
        if best.is_none_or(|(quickest, _)| took < quickest) {
            best = Some((took, zero));
        }
    }
    let (_, zero) = best.ok_or("the guest was not asked")?;
    let ExecResult { stdout, .. } = guest::result(client, name, &["sh", "-c", ASK]).await.map_err(failed)?;
    let said = stdout.unwrap_or_default();
    let said = String::from_utf8_lossy(said.as_slice());
    let (init, agent) =
        starts(&said).ok_or_else(|| format!("the guest's clocks cannot be read in {said:?}"))?;
    Ok(Guest { zero, init, agent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_read_in_what_a_guest_says() {
        let stat =
            "84 (drover) agent) S 1 84 84 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 3 0 143 6389760 312 4294967295";
        let log = "[    0.100000] Run /sbin/init as init process\n[    1.250000] Run /init as init process\n";
        let mark = "[    5.000000] drover-bench 5.06\n";
        let (init, agent) = starts(&format!("{stat}\n{log}{mark}")).unwrap();
        assert_eq!(((init * 100.0).round(), (agent * 100.0).round()), (131.0, 143.0));
        let others =
            ["".to_owned(), format!("{log}{mark}"), format!("{stat}\n{log}"), format!("{stat}\n{mark}")];
        for broken in others {
            assert_eq!(starts(&broken), None, "{broken:?}");
        }
    }

    #[test]
    fn the_steps_of_a_boot_add_up() {
        let guest = Guest { zero: 1.0, init: 2.0, agent: 2.5 };
        let host = Some([0.1, 0.2, 0.0, 0.1, 0.05, 0.04]);
        let boot = Boot { accepted: 0.01, running: 0.5, ready: 4.0, host, guest: Some(guest) };
        let steps = boot.steps().map(Option::unwrap);
        assert_eq!(names().count(), steps.len());
        let parts = [&steps[..2], &steps[8..12]].concat();
        assert!((parts.iter().sum::<f64>() - steps[12]).abs() < 1e-9, "{steps:?}");
        assert_eq!(parts, [0.01, 0.49, 0.5, 2.0, 0.5, 0.5]);
        assert!(steps[2..8].iter().sum::<f64>() <= steps[1] + 1e-9, "they are its parts");
        // Clocks that differ by a little do not make time run backwards.
        let early = Boot { guest: Some(Guest { zero: 0.4, ..guest }), ..boot };
        assert_eq!(early.steps()[8], Some(0.0));
        let silent = Boot { host: None, guest: None, ..boot };
        assert_eq!(silent.steps().iter().flatten().count(), 3);
    }

    #[test]
    fn the_first_reason_stays() {
        let mut untold = Untold::default();
        assert_eq!(noted(Ok(1), &mut untold.guest), Some(1));
        assert_eq!(untold.reason(8), "nobody told");
        for why in ["a", "b"] {
            assert_eq!(noted::<u8>(Err(why.to_owned()), &mut untold.guest), None);
        }
        assert_eq!((untold.reason(7), untold.reason(8)), ("nobody told", "a"));
    }
}
