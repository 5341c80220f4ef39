//! `health`: how the guest is. Facts are gathered here; what they mean is decided by [`judge`].

use std::collections::{BTreeSet, HashMap};
use std::fs;

use drover_schemas::guest::{DiskUse, HealthResult, HealthStatus};
use nix::sys::statvfs::statvfs;

use crate::facts::Facts;
use crate::work::mounts::unescaped;

/// How many file systems are listed at most.
const MAX_MOUNTS: usize = 64;
/// Milliseconds per unit of `/proc/stat`: USER_HZ is 100 on every Linux.
const TICK_MS: u64 = 10;

pub(super) fn gather(facts: &Facts) -> HealthResult {
    let memory = meminfo();
    let get = |key: &str| memory.get(key).copied().unwrap_or(0);
    let (cpu_busy_ms, cpu_total_ms) = cpu(&fs::read_to_string("/proc/stat").unwrap_or_default());
    let mut health = HealthResult {
        status: HealthStatus::Ok,
        reasons: Vec::new(),
        load: load(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
        cpu_busy_ms,
        cpu_total_ms,
        memory_total_bytes: get("MemTotal"),
        memory_available_bytes: get("MemAvailable"),
        swap_total_bytes: get("SwapTotal"),
        swap_free_bytes: get("SwapFree"),
        disks: disks(&fs::read_to_string("/proc/mounts").unwrap_or_default()),
        uptime_ms: facts.uptime_ms(),
    };
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    judge(&mut health, cpus);
    health
}

/// Local file systems and how full they are.
pub(crate) fn local_disks() -> Vec<DiskUse> {
    disks(&fs::read_to_string("/proc/mounts").unwrap_or_default())
}

/// `/proc/meminfo` in bytes.
pub(super) fn meminfo() -> HashMap<String, u64> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (key, rest) = line.split_once(':')?;
            let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((key.to_owned(), kib.saturating_mul(1024)))
        })
        .collect()
}

fn load(text: &str) -> [f64; 3] {
    let mut load = [0.0; 3];
    for (slot, word) in load.iter_mut().zip(text.split_whitespace()) {
        *slot = word.parse().unwrap_or(0.0);
    }
    load
}

/// Busy and total CPU time. Guest time is in user time already; idle and iowait are not busy.
fn cpu(stat: &str) -> (u64, u64) {
    let Some(line) = stat.lines().find_map(|l| l.strip_prefix("cpu ")) else { return (0, 0) };
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|w| w.parse().unwrap_or(0)).collect();
    let total: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (total.saturating_sub(idle).saturating_mul(TICK_MS), total.saturating_mul(TICK_MS))
}

fn disks(mounts: &str) -> Vec<DiskUse> {
    let mut seen = BTreeSet::new();
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, mount) = (words.next()?, words.next()?);
            // Network file systems are left out: asking a dead server would block the agent.
            let local = mount == "/" || (device.starts_with("/dev/") && seen.insert(device.to_owned()));
            local.then(|| unescaped(mount.as_bytes()))
        })
        .take(MAX_MOUNTS)
        .filter_map(|mount| {
            let stat = statvfs(mount.as_str()).ok()?;
            let size = stat.fragment_size();
            let total_bytes = stat.blocks().saturating_mul(size);
            let free_bytes = stat.blocks_available().saturating_mul(size);
            (total_bytes > 0).then_some(DiskUse { mount, total_bytes, free_bytes })
        })
        .collect()
}

fn judge(health: &mut HealthResult, cpus: usize) {
    let mut say = |status: HealthStatus, reason: String| {
        health.status = health.status.max(status);
        health.reasons.push(reason);
    };
    for disk in &health.disks {
        let used = 100 - (u128::from(disk.free_bytes) * 100 / u128::from(disk.total_bytes.max(1))).min(100);
        match used {
            97.. => say(HealthStatus::Critical, format!("{} is {used} % full; free space", disk.mount)),
            90.. => say(HealthStatus::Warn, format!("{} is {used} % full", disk.mount)),
            _ => {}
        }
    }
    if health.memory_total_bytes > 0 {
        let left = u128::from(health.memory_available_bytes) * 100 / u128::from(health.memory_total_bytes);
        match left {
            0..3 => say(HealthStatus::Critical, format!("{left} % of the memory is left; add memory")),
            3..10 => say(HealthStatus::Warn, format!("{left} % of the memory is left")),
            _ => {}
        }
    }
    let cpus = cpus as f64;
    if health.load[1] > 4.0 * cpus {
        say(HealthStatus::Warn, format!("a load of {:.1} on {cpus} CPUs over 5 minutes", health.load[1]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_fact_decides() {
        let disk = |free_bytes| DiskUse { mount: "/".into(), total_bytes: 100, free_bytes };
        let judged = |disks, available, load| {
            let mut health = HealthResult {
                disks,
                memory_total_bytes: 100,
                memory_available_bytes: available,
                load: [0.0, load, 0.0],
                ..Default::default()
            };
            judge(&mut health, 1);
            (health.status, health.reasons.len())
        };
        assert_eq!(judged(vec![disk(50)], 50, 0.0), (HealthStatus::Ok, 0));
        assert_eq!(judged(vec![disk(8)], 50, 0.0), (HealthStatus::Warn, 1));
        assert_eq!(judged(vec![disk(8)], 2, 9.0), (HealthStatus::Critical, 3));
        assert_eq!(judged(vec![disk(0)], 50, 0.0), (HealthStatus::Critical, 1));
    }

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(cpu("cpu  10 0 5 80 5 0 0 0 0 0\ncpu0 1"), (150, 1000));
        assert_eq!(cpu(""), (0, 0));
        assert_eq!(load("0.5 0.25 x 1/2 3"), [0.5, 0.25, 0.0]);
        assert_eq!(unescaped(b"/a\\040b"), "/a b");
        let here = gather(&Facts::gather());
        assert!(here.memory_total_bytes > 0 && here.cpu_total_ms > 0);
        assert!(disks("none / x\nnone / x").len() <= 2);
    }
}
