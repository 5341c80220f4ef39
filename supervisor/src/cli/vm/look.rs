//! `drover vm info`, `health` and `ps`: what the guest says of itself.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::guest::{
    CheckSource, CheckState, HealthResult, InfoResult, ProcessInfo, ProcessOrder, ProcessesRequest,
    ProcessesResult, ThresholdState,
};

use super::super::Global;
use super::super::exit::CliError;
use super::super::host::mib;
use super::super::output::{render, safe, table};
use crate::client::{CallOptions, Client, time};

const DEADLINE: Duration = Duration::from_secs(20);

/// Arguments of `vm ps`.
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    /// The VM.
    name: Token,
    /// Measure CPU shares over so many milliseconds, 5000 at most; else since each process began.
    #[arg(long, value_name = "MS")]
    sample: Option<u64>,
    /// Show arguments too; they may hold secrets.
    #[arg(long, short)]
    args: bool,
    /// What comes first.
    #[arg(long, value_enum, default_value = "cpu")]
    sort: Order,
    /// At most so many; 100 if left out, 500 at most.
    #[arg(long)]
    limit: Option<u32>,
}

/// What processes are ordered by.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Order {
    /// The largest share of a CPU first.
    Cpu,
    /// The most memory first.
    Memory,
    /// The smallest number first.
    Pid,
}

impl PsArgs {
    /// The VM.
    pub const fn name(&self) -> &Token {
        &self.name
    }
}

pub(super) async fn ps(args: &PsArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let sort = match args.sort {
        Order::Cpu => ProcessOrder::Cpu,
        Order::Memory => ProcessOrder::Memory,
        Order::Pid => ProcessOrder::Pid,
    };
    let request = ProcessesRequest { sample_ms: args.sample, args: args.args, sort, limit: args.limit };
    let list: ProcessesResult = ask(&args.name, "processes", &request, client, global).await?;
    global.output.print(&list, processes)?;
    let shown = list.processes.len();
    if list.total as usize > shown {
        eprintln!("{shown} of {} are shown; use --limit and --sort", list.total);
    }
    Ok(())
}

pub(super) async fn info(name: &Token, client: &Client, global: &Global) -> Result<(), CliError> {
    let info: InfoResult = ask(name, "info", &Empty {}, client, global).await?;
    global.output.print(&info, system)
}

pub(super) async fn health(name: &Token, client: &Client, global: &Global) -> Result<(), CliError> {
    let health: HealthResult = ask(name, "health", &Empty {}, client, global).await?;
    global.output.print(&health, condition)
}

async fn ask<Q, A>(
    name: &Token,
    verb: &str,
    request: &Q,
    client: &Client,
    global: &Global,
) -> Result<A, CliError>
where
    Q: serde::Serialize + Sync,
    A: serde::de::DeserializeOwned,
{
    let read = CallOptions::read(global.deadline(DEADLINE));
    Ok(client.call(&client.guest_subject(name, verb)?, request, read).await?)
}

/// A time of a CPU, as `ps` has it.
fn cpu_time(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("{}:{:02}.{:02}", seconds / 60, seconds % 60, ms % 1000 / 10)
}

fn processes(list: &ProcessesResult) -> String {
    let mut table =
        table(&["PID", "PPID", "USER", "S", "CPU%", "TIME", "MEMORY", "THREADS", "STARTED", "COMMAND"]);
    for process in &list.processes {
        let ProcessInfo { pid, ppid, uid, user, name, args, .. } = process;
        let command = match args {
            Some(args) if !args.is_empty() => args.join(" "),
            Some(_) => format!("[{name}]"),
            None => name.clone(),
        };
        table.add_row([
            pid.to_string(),
            ppid.to_string(),
            user.as_deref().map_or_else(|| uid.to_string(), safe),
            safe(&process.state),
            format!("{:.1}", process.cpu_percent),
            cpu_time(process.cpu_ms),
            mib(process.memory_bytes),
            process.threads.to_string(),
            time::rfc3339(process.started_unix_ms / 1000 * 1000).replace(".000", ""),
            safe(&command),
        ]);
    }
    render(&mut table)
}

fn system(info: &InfoResult) -> String {
    let mut table = table(&[]);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_owned(), safe(&value)]);
    };
    row("hostname", info.hostname.clone());
    row("system", info.os_name.clone());
    row("kernel", format!("{} {}", info.kernel, info.arch));
    let possible =
        if info.cpus_possible > info.cpus { format!(" of {}", info.cpus_possible) } else { String::new() };
    row("cpus", format!("{}{possible} {}", info.cpus, info.cpu_model));
    row("memory", mib(info.memory_bytes));
    row("uptime", format!("{} s", info.uptime_ms / 1000));
    row("boot id", info.boot_id.clone());
    row("machine id", if info.machine_id.is_empty() { "-".to_owned() } else { info.machine_id.clone() });
    for disk in &info.disks {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        row("disk", format!("{} {}{read_only}", disk.name, mib(disk.size_bytes)));
        for at in &disk.mounts {
            row("", format!("{} on {} ({})", at.device, at.mount, at.fs));
        }
    }
    for nic in &info.interfaces {
        let up = if nic.up { "up" } else { "down" };
        row("interface", format!("{} {up} {} {}", nic.name, nic.mac, nic.addresses.join(" ")));
    }
    row("agent", info.agent_version.clone());
    render(&mut table)
}

fn condition(health: &HealthResult) -> String {
    let mut table = table(&[]);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_owned(), safe(&value)]);
    };
    row("status", format!("{:?}", health.status).to_lowercase());
    health.reasons.iter().for_each(|reason| row("", reason.clone()));
    let [one, five, fifteen] = health.load;
    row("load", format!("{one:.2} {five:.2} {fifteen:.2}"));
    let left = |free, total| format!("{} of {} left", mib(free), mib(total));
    row("memory", left(health.memory_available_bytes, health.memory_total_bytes));
    if health.swap_total_bytes > 0 {
        row("swap", left(health.swap_free_bytes, health.swap_total_bytes));
    }
    for disk in &health.disks {
        row("disk", format!("{}: {}", disk.mount, left(disk.free_bytes, disk.total_bytes)));
    }
    if let Some(services) = &health.services {
        let failed = if health.failed_units.is_empty() { "none" } else { &health.failed_units.join(" ") };
        row("failed services", format!("{failed} ({services})"));
    }
    health.checks.iter().for_each(|check| row("check", check_line(check)));
    health.thresholds.iter().for_each(|threshold| row("threshold", threshold_line(threshold)));
    render(&mut table)
}

/// How it is and since when, as `vm health` has it.
fn since(status: impl std::fmt::Debug, flapping: bool, unix_ms: u64) -> String {
    let flapping = if flapping { ", flapping" } else { "" };
    let since = time::rfc3339(unix_ms / 1000 * 1000).replace(".000", "");
    format!("{}{flapping} since {since}", format!("{status:?}").to_lowercase())
}

fn check_line(check: &CheckState) -> String {
    let CheckState { name, source, status, since_unix_ms, flapping, reason, .. } = check;
    let whose = if *source == CheckSource::Guest { " (the guest's own)" } else { "" };
    let why = reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("{name}{whose} {}{why}", since(status, *flapping, *since_unix_ms))
}

fn threshold_line(threshold: &ThresholdState) -> String {
    let ThresholdState { name, of, mount, above, status, since_unix_ms, flapping, value, .. } = threshold;
    let mount = mount.as_deref().map_or_else(String::new, |mount| format!(" of {mount}"));
    let value = value.map_or_else(|| "not known".to_owned(), |value| format!("{value} %"));
    let how = since(status, *flapping, *since_unix_ms);
    format!("{name} {how}: {}{mount} is {value}, the limit {above} %", format!("{of:?}").to_lowercase())
}

#[cfg(test)]
mod tests {
    use drover_schemas::guest::{CheckStatus, Measure, ThresholdStatus};

    use super::*;

    #[test]
    fn a_guest_cannot_write_to_the_terminal() {
        let hostile = ProcessInfo {
            pid: 7,
            name: "a\u{1b}[2Jb".into(),
            state: "R".into(),
            cpu_ms: 61_230,
            cpu_percent: 99.96,
            ..ProcessInfo::default()
        };
        let shown = processes(&ProcessesResult { processes: vec![hostile], ..Default::default() });
        assert!(
            shown.contains("a\\u{1b}[2Jb") && shown.contains("1:01.23") && shown.contains("100.0"),
            "{shown}"
        );
        let hostile = InfoResult { hostname: "a\nstatus ok".into(), ..InfoResult::default() };
        assert!(system(&hostile).starts_with("hostname    a\\nstatus ok\n"), "{}", system(&hostile));
        let health = HealthResult { reasons: vec!["\u{9b}31m".into()], ..HealthResult::default() };
        assert!(!condition(&health).chars().any(|c| c.is_control() && c != '\n'));
        let check = CheckState {
            name: "web".into(),
            source: CheckSource::Guest,
            status: CheckStatus::Failing,
            since_unix_ms: 1_700_000_000_123,
            reason: Some("it exited with 1\u{1b}".into()),
            ..CheckState::default()
        };
        let shown = condition(&HealthResult { checks: vec![check], ..HealthResult::default() });
        let line =
            "check   web (the guest's own) failing since 2023-11-14T22:13:20Z: it exited with 1\\u{1b}";
        assert!(shown.trim_end().ends_with(line), "{shown}");
        let threshold = ThresholdState {
            name: "full".into(),
            of: Measure::Disk,
            mount: Some("/a\u{1b}".into()),
            above: 90,
            status: ThresholdStatus::Exceeded,
            since_unix_ms: 1_700_000_000_123,
            flapping: true,
            value: Some(93),
            last_unix_ms: None,
            code: None,
        };
        let shown = condition(&HealthResult { thresholds: vec![threshold], ..HealthResult::default() });
        let line =
            "full exceeded, flapping since 2023-11-14T22:13:20Z: disk of /a\\u{1b} is 93 %, the limit 90 %";
        assert!(shown.trim_end().ends_with(line), "{shown}");
    }
}
