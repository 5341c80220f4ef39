//! `drover host`.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::host::{ForgetReply, ForgetRequest, HostEntry, HostInfo, OrphansReply};
use drover_schemas::body::usage::{EventLog, NamespaceUse, QuotaUse};
use drover_schemas::size::ByteSize;
use drover_schemas::{Token, VmId};

use super::Global;
use super::exit::CliError;
use super::output::{self, render};
use crate::client::{Client, time};
use crate::config::HostConfig;
use crate::doctor::{self, Finding, Verdict};
use crate::telemetry;

const DEADLINE: Duration = Duration::from_secs(10);

/// Verbs of hosts.
#[derive(Debug, clap::Subcommand)]
pub enum HostCommand {
    /// Run the daemon of this machine.
    Run(RunArgs),
    /// List the hosts of the fleet.
    #[command(visible_alias = "list")]
    Ls,
    /// Free the names of a host that is gone for good; should it come back, it answers for none of its VMs.
    Forget {
        /// The host.
        host: Token,
        /// Forget it though it is alive.
        #[arg(long)]
        force: bool,
        /// The host that does it; without it, one that answers.
        #[arg(long, value_name = "HOST")]
        by: Option<Token>,
    },
    /// Show what a host has and what it has promised.
    Get {
        /// The host; without it, the one that answers first.
        host: Option<Token>,
    },
    /// Back the journal up, on the host, while it works.
    Backup {
        /// The host; without it, the one that answers first.
        host: Option<Token>,
    },
    /// Take no new VMs on a host from now on; those that are there stay.
    Drain {
        /// The host.
        host: Token,
        /// Take new VMs again.
        #[arg(long)]
        off: bool,
    },
    /// List VMs that run on a host's machine and are in no row of its journal.
    Orphans {
        /// The host; without it, the one that answers first.
        host: Option<Token>,
        /// End this one, of the host's own installation, and remove everything of it.
        #[arg(long, value_name = "VM_ID", requires = "host")]
        remove: Option<VmId>,
    },
}

/// Arguments of `host run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", env = "DROVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Take the host's name from another installation that is gone for good, and free the names of its VMs.
    #[arg(long)]
    pub replace: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The host's configuration file.
    #[arg(long, short, value_name = "FILE", env = "DROVER_CONFIG")]
    config: Option<PathBuf>,
    /// Raise limits of the kernel that are too low; nothing else is changed.
    #[arg(long)]
    fix: bool,
}

/// Exit code 1 if the machine cannot be a host as it is.
pub(super) async fn doctor(args: &DoctorArgs, global: &Global) -> Result<u8, CliError> {
    let config = HostConfig::load(args.config.as_deref(), std::env::vars());
    let findings = doctor::examine(&config.map_err(|e| CliError::Host(e.into()))?, args.fix).await;
    global.output.print(&findings, |findings| diagnosis(findings))?;
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Bad)))
}

fn diagnosis(findings: &[Finding]) -> String {
    let mut table = output::table(&[]);
    for finding in findings {
        table.add_row([finding.verdict.as_str(), finding.check, &finding.found]);
        if !finding.advice.is_empty() {
            table.add_row(["", "", &format!("  -> {}", finding.advice)]);
        }
    }
    render(&mut table)
}

pub(super) async fn run(command: &HostCommand, global: &Global) -> Result<u8, CliError> {
    match command {
        HostCommand::Run(args) => {
            let path = args.config.as_deref();
            // Read here for the log alone: the daemon's own reading is then in the log.
            let log = HostConfig::load(path, std::env::vars()).map_err(|e| CliError::Host(e.into()))?.log;
            let _telemetry = telemetry::init(&log).map_err(CliError::Telemetry)?;
            Box::pin(crate::app::run(path, args.replace)).await.map_err(|e| CliError::Host(e.into()))?;
        }
        HostCommand::Ls => {
            let (client, host, deadline) = connect(global, None).await?;
            let hosts = client.hosts(&host, deadline).await?;
            global.output.print(&hosts, |hosts| fleet(hosts))?;
        }
        HostCommand::Forget { host, force, by } => {
            let (client, by, deadline) = match by {
                Some(by) => connect(global, Some(by)).await?,
                None => another(global, host).await?,
            };
            let request = ForgetRequest { host: host.clone(), force: *force };
            let reply = client.host_forget(&by, &request, deadline).await?;
            global.output.print(&reply, forgotten)?;
        }
        HostCommand::Get { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let info = client.host_info(&host, deadline).await?;
            global.output.print(&info, describe)?;
        }
        HostCommand::Backup { host } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let reply = client.host_backup(&host, deadline).await?;
            global.output.print(&reply, |reply| {
                format!("{host}: {} ({} VMs, {} bytes)", reply.path, reply.vms, reply.size_bytes)
            })?;
        }
        HostCommand::Drain { host, off } => {
            let (client, host, deadline) = connect(global, Some(host)).await?;
            let reply = client.host_drain(&host, !off, deadline).await?;
            global.output.print(&reply, |reply| match reply.accepting {
                true => format!("{host} takes new VMs"),
                false => format!("{host} takes no new VMs; it still has {}", reply.vms),
            })?;
        }
        HostCommand::Orphans { host, remove } => {
            let (client, host, deadline) = connect(global, host.as_ref()).await?;
            let reply = match remove {
                Some(vm_id) => client.remove_orphan(&host, *vm_id, deadline).await?,
                None => client.host_orphans(&host, deadline).await?,
            };
            global.output.print(&reply, list)?;
        }
    }
    Ok(0)
}

pub(super) async fn connect(
    global: &Global,
    host: Option<&Token>,
) -> Result<(Client, Token, Duration), CliError> {
    let client = global.connect.connect().await?;
    let deadline = global.deadline(DEADLINE);
    let host = match host {
        Some(host) => host.clone(),
        None => discover(&client, deadline).await?,
    };
    Ok((client, host, deadline))
}

/// A host that is online and is not `host`.
async fn another(global: &Global, host: &Token) -> Result<(Client, Token, Duration), CliError> {
    let (client, first, deadline) = connect(global, None).await?;
    if first != *host {
        return Ok((client, first, deadline));
    }
    let hosts = client.hosts(&first, deadline).await?;
    let other = hosts.into_iter().find(|entry| entry.online && entry.host != *host).map(|entry| entry.host);
    let other = other.ok_or_else(|| {
        CliError::Usage(format!(
            "no other host is online to do it; a new host of the name takes it with `drover host run --replace` when \
             {host} is gone"
        ))
    })?;
    Ok((client, other, deadline))
}

/// The host that answers the micro service discovery first.
pub async fn discover(client: &Client, deadline: Duration) -> Result<Token, CliError> {
    let unavailable = |text: String| {
        let body = drover_schemas::ErrorBody::new(drover_schemas::ErrorCode::Unavailable, text);
        CliError::Client(body.into())
    };
    let request = async_nats::Request::new().timeout(Some(deadline));
    let message = client
        .nats()
        .send_request("$SRV.INFO.drover", request)
        .await
        .map_err(|e| unavailable(format!("no drover host is online on this bus ({e})")))?;
    let info: serde_json::Value = serde_json::from_slice(&message.payload)
        .map_err(|e| unavailable(format!("the discovery reply is not JSON: {e}")))?;
    let host = info.pointer("/metadata/host").and_then(serde_json::Value::as_str).unwrap_or_default();
    Token::new(host).map_err(|e| unavailable(format!("the discovery reply names no host: {e}")))
}

fn describe(info: &HostInfo) -> String {
    let mut table = output::table(&[]);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_owned(), value]);
    };
    let emulated = if info.vmm.emulated { "software emulation" } else { "real" };
    let capacity = &info.capacity;
    let free = |total: u64, used: u64| total.saturating_sub(used);
    row("host", info.host.to_string());
    row("phase", info.phase.clone());
    row("version", info.version.clone());
    row("kernel", info.kernel.clone());
    row(
        "started",
        format!("{} ({} ago)", time::rfc3339(info.started_unix_ms), time::age(info.started_unix_ms)),
    );
    row("hypervisor", format!("{} ({emulated}), {}", info.vmm.version, info.vmm.path));
    row("cpus", format!("{} of {} free", free(capacity.cpus, capacity.cpus_used), capacity.cpus));
    row(
        "memory",
        format!(
            "{} of {} MiB free",
            free(capacity.memory_bytes, capacity.memory_used_bytes) >> 20,
            capacity.memory_bytes >> 20
        ),
    );
    row(
        "addresses",
        format!("{} of {} free", free(capacity.addresses, capacity.addresses_used), capacity.addresses),
    );
    row(
        "disk",
        format!(
            "{} of {} MiB free for disks of VMs",
            free(capacity.disk_bytes, capacity.disk_used_bytes) >> 20,
            capacity.disk_bytes >> 20
        ),
    );
    row("users", format!("{} of {} free", free(capacity.users, capacity.users_used), capacity.users));
    row("bridge ports", format!("{} of {} free", free(capacity.ports, capacity.ports_used), capacity.ports));
    row("running", format!("{} of {} that its descriptors allow", capacity.running, capacity.running_limit));
    let states: Vec<String> = info.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    row("vms", format!("{} ({})", capacity.vms, states.join(", ")));
    row("outbox", format!("{} events wait for the bus ({} % full)", info.outbox, info.outbox_percent));
    if let Some(log) = &info.events {
        row("events", retention(log));
    }
    if let Some(offset) = info.clock_offset_ms {
        row("clock", format!("{offset} ms ahead of the bus server's"));
    }
    for alarm in &info.alarms {
        row("ALARM", format!("{} for {}: {}", alarm.alarm, time::age(alarm.since_unix_ms), alarm.message));
    }
    for of in &info.namespaces {
        row("namespace", format!("{}: {}", of.namespace, usage(of)));
    }
    row("features", info.features.join(" "));
    for (key, value) in &info.labels {
        row("label", format!("{key}={value}"));
    }
    for (key, value) in &info.confinement {
        row(key, value.clone());
    }
    render(&mut table)
}

fn retention(log: &EventLog) -> String {
    let age = log.max_age_ms.map_or_else(|| "any time".to_owned(), |ms| format!("{} h", ms / 3_600_000));
    let size = log.max_bytes.map_or_else(|| "any size".to_owned(), mib);
    let oldest = log.oldest_unix_ms.map(|at| format!(", the oldest {} ago", time::age(at)));
    let behind = match log.readers_behind {
        0 => String::new(),
        count => format!("; {count} readers have not read all"),
    };
    format!(
        "{} kept in {}, {} of {size}, for {age}{}{behind}",
        log.events,
        log.stream,
        mib(log.bytes),
        oldest.unwrap_or_default(),
    )
}

/// What a namespace uses, of what it may where there is a quota.
fn usage(of: &NamespaceUse) -> String {
    let count = |of: QuotaUse, what: &str| match of.limit {
        Some(limit) => format!("{} of {limit} {what}", of.used),
        None => format!("{} {what}", of.used),
    };
    let bytes = |of: QuotaUse, what: &str| match of.limit {
        Some(limit) => format!("{} of {} {what}", mib(of.used), mib(limit)),
        None => format!("{} {what}", mib(of.used)),
    };
    let mut parts = vec![
        count(of.vms, "VMs"),
        count(of.cpus, "cpus"),
        bytes(of.memory_bytes, "memory"),
        bytes(of.disk_bytes, "disk"),
        count(of.requests, "requests"),
        count(of.streams, "streams"),
    ];
    parts.extend(of.events_per_hour.limit.map(|_| count(of.events_per_hour, "events an hour")));
    parts.join(", ")
}

fn fleet(hosts: &[HostEntry]) -> String {
    let mut table =
        output::table(&["HOST", "STATE", "CPUS FREE", "MEMORY FREE", "VMS", "VERSION", "LABELS", "SEEN"]);
    for entry in hosts {
        let seen =
            entry.last_seen_unix_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", time::age(ms)));
        let free = |total: u64, used: u64| total.saturating_sub(used);
        let forgotten = entry.claim.as_ref().is_some_and(|claim| claim.free);
        let state = match &entry.record {
            Some(record) if entry.online => record.phase.clone(),
            _ if forgotten => "forgotten".to_owned(),
            _ => "not seen".to_owned(),
        };
        let known = entry.record.as_ref().map(|record| {
            let capacity = &record.capacity;
            let labels: Vec<String> =
                record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                free(capacity.cpus, capacity.cpus_used).to_string(),
                mib(free(capacity.memory_bytes, capacity.memory_used_bytes)),
                capacity.vms.to_string(),
                record.version.clone(),
                labels.join(","),
            ]
        });
        let [cpus, memory, vms, version, labels] = known.unwrap_or_default();
        table.add_row([entry.host.to_string(), state, cpus, memory, vms, version, labels, seen]);
    }
    render(&mut table)
}

fn forgotten(reply: &ForgetReply) -> String {
    let mut text = format!("{} is forgotten; {} names of VMs are free", reply.host, reply.freed);
    for vm in &reply.vms {
        text.push_str(&format!("\n{}/{} ({})", vm.namespace, vm.name, vm.vm_id));
    }
    text
}

/// Mebibytes, for tables.
pub(super) fn mib(bytes: u64) -> String {
    ByteSize(bytes & !0xf_ffff).to_string()
}

fn list(reply: &OrphansReply) -> String {
    if reply.orphans.is_empty() {
        return "every VM on the machine is known to the host".to_owned();
    }
    let mut table = output::table(&[
        "VM",
        "NAMESPACE",
        "NAME",
        "INSTALLATION",
        "PIDS",
        "FILES",
        "WHY IT IS NOT IMPORTED",
    ]);
    let text = |token: &Option<Token>| token.as_ref().map(ToString::to_string).unwrap_or_default();
    for orphan in &reply.orphans {
        let whose = if orphan.ours { "this one".to_owned() } else { orphan.installation.to_string() };
        let pids: Vec<String> = orphan.pids.iter().map(ToString::to_string).collect();
        let files = orphan.run_dir.clone().unwrap_or_default();
        let why = orphan.reason.clone().unwrap_or_default();
        let (namespace, name) = (text(&orphan.namespace), text(&orphan.name));
        table.add_row([orphan.vm_id.to_string(), namespace, name, whose, pids.join(" "), files, why]);
    }
    render(&mut table)
}
