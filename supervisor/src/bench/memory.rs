//! What an idle VM costs: memory of the daemon, and of the holders apart from it.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::host::HostInfo;
use drover_schemas::body::status::VmStatus;
use drover_schemas::size::ByteSize;

use super::report::{Goal, Row};
use super::sample::Percentiles;
use super::vms::Vms;
use crate::client::ClientError;

/// Memory of a guest that only idles.
pub const GUEST: ByteSize = ByteSize::mib(64);
/// How long its CPU time is watched: two heartbeats and a look at every VMM.
const WINDOW: Duration = Duration::from_secs(60);
/// How long the daemon may settle before it is looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// Why memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not say which process it is.
    #[error("the host does not tell its process id; give --pid")]
    NoPid,
    /// Another program has that process id here.
    #[error("process {pid} of this machine is not drover; run on the host's machine, or give --pid")]
    NotDrover {
        /// The process id.
        pid: u32,
    },
    /// Its accounts cannot be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no such line.
    #[error("{path:?} has no {key}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The line.
        key: &'static str,
    },
}

/// The daemon's process, on this machine.
pub fn daemon(info: &HostInfo, given: Option<u32>) -> Result<u32, MemoryError> {
    if let Some(pid) = given {
        return Ok(pid);
    }
    let pid = info.pid.ok_or(MemoryError::NoPid)?;
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim() == "drover" { Ok(pid) } else { Err(MemoryError::NotDrover { pid }) }
}

fn kib(path: &str, key: &'static str) -> Result<u64, MemoryError> {
    let path = PathBuf::from(path);
    let text =
        std::fs::read_to_string(&path).map_err(|source| MemoryError::Read { path: path.clone(), source })?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        .ok_or(MemoryError::Missing { path, key })
}

/// Resident memory of the daemon, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64, MemoryError> {
    kib(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// What the daemon takes of a core.
async fn cpu_percent(pid: u32) -> Result<f64, MemoryError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let ticks = || -> Result<u64, MemoryError> {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| MemoryError::Read { path: path.clone(), source })?;
        // Behind the name, which may hold anything: user and system time are the 12th and 13th.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let times: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        let missing = MemoryError::Missing { path: path.clone(), key: "utime and stime" };
        if times.len() == 2 { Ok(times.iter().sum()) } else { Err(missing) }
    };
    let before = ticks()?;
    tokio::time::sleep(WINDOW).await;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Ok((ticks()?.saturating_sub(before)) as f64 / per_second as f64 / WINDOW.as_secs_f64() * 100.0)
}

/// The rows of `idle` VMs. The daemon's own memory without them is in the first row's name.
pub async fn rows(vms: &Vms, daemon: Result<u32, MemoryError>, idle: usize) -> Result<[Row; 3], ClientError> {
    let what = format!("daemon memory of an idle VM, {idle} of them");
    let row = Row::new(&what, "KiB", Percentiles::default()).goal(Goal::AtMost(64.0));
    let holder =
        Row::new("holder, anonymous memory", "KiB", Percentiles::default()).goal(Goal::AtMost(256.0));
    let cpu = Row::new(&format!("daemon CPU with {idle} idle VMs"), "% core", Percentiles::default())
        .goal(Goal::AtMost(2.0));
    let without = |error: &MemoryError| {
        let why = drover_actors::chain(error).to_string();
        [row.clone().unmeasured(&why), holder.clone().unmeasured(&why), cpu.clone().unmeasured(&why)]
    };
    if idle == 0 {
        let why = "guests here are whole machines; say how many with --idle";
        return Ok([row.unmeasured(why), holder.unmeasured(why), cpu.unmeasured(why)]);
    }
    let pid = match daemon {
        Ok(pid) => pid,
        Err(error) => return Ok(without(&error)),
    };
    // Read the same way twice: memory that the allocator keeps for later counts as the daemon's own.
    tokio::time::sleep(SETTLE).await;
    let before = match resident_kib(pid) {
        Ok(before) => before,
        Err(error) => return Ok(without(&error)),
    };
    let made = vms.create_many(idle, GUEST).await?;
    tokio::time::sleep(SETTLE).await;
    let after = match resident_kib(pid) {
        Ok(after) => after,
        Err(error) => return Ok(without(&error)),
    };
    let used = match cpu_percent(pid).await {
        Ok(used) => used,
        Err(error) => return Ok(without(&error)),
    };
    let used = Percentiles { p50: used, p99: used, count: 1 };
    let cpu = Row { drover: Some(used), note: Some(format!("over {} s", WINDOW.as_secs())), ..cpu };
    let each = after.saturating_sub(before) as f64 / idle as f64;
    let value = Percentiles { p50: each, p99: each, count: idle };
    let note = format!("{} MiB before, {} MiB after", before >> 10, after >> 10);
    let row = Row { drover: Some(value), note: Some(note), ..row };
    let holders: Result<Vec<Holder>, MemoryError> = made.iter().filter_map(holder_of).collect();
    let holder = match holders {
        Ok(holders) if !holders.is_empty() => {
            let kind = if holders.iter().all(|h| h.linked_static) {
                "statically linked, as deploy/build-static.sh makes it"
            } else {
                "dynamically linked: only one made by deploy/build-static.sh says something"
            };
            let sizes = Percentiles::of(holders.iter().map(|h| h.anonymous_kib as f64).collect());
            let resident = Percentiles::of(holders.iter().map(|h| h.resident_kib as f64).collect());
            let note = format!("{kind}; {:.0} KiB resident", resident.p50);
            Row { drover: Some(sizes), note: Some(note), ..holder }
        }
        Ok(_) => holder.unmeasured("no VMM of the host runs on this machine"),
        Err(error) => holder.unmeasured(&drover_actors::chain(&error).to_string()),
    };
    vms.delete_many(made.into_iter().map(|vm| vm.name)).await;
    Ok([row, holder, cpu])
}

struct Holder {
    anonymous_kib: u64,
    resident_kib: u64,
    linked_static: bool,
}

/// The VMM's parent.
fn holder_of(vm: &VmStatus) -> Option<Result<Holder, MemoryError>> {
    let pid = kib(&format!("/proc/{}/status", vm.vmm_pid?), "PPid:").ok()?;
    let read = || {
        let rollup = format!("/proc/{pid}/smaps_rollup");
        Ok(Holder {
            anonymous_kib: kib(&rollup, "Anonymous:")?,
            resident_kib: kib(&rollup, "Rss:")?,
            linked_static: is_static(pid),
        })
    };
    Some(read())
}

/// A program that needs a loader has it in its address space.
fn is_static(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .is_ok_and(|maps| !maps.lines().any(|line| line.contains("/ld-") || line.contains("/libc.so")))
}
