//! `health` and `sample`: how the guest is. Facts are gathered here; what they mean is decided by [`judge`].

use std::collections::BTreeSet;
use std::path::Path;

use drover_schemas::guest::{
    CheckStatus, DiskUse, HealthResult, HealthStatus, SampleResult, ThresholdStatus,
};
use nix::sys::statvfs::statvfs;

use super::info::online_cpus;
use super::parse;
use super::units::Services;
use super::{MAX_LISTED, mounts, read};
use crate::facts::Facts;
use crate::mounts::Mount;
use crate::watch::States;

pub(super) fn gather(facts: &Facts) -> HealthResult {
    let sample = sample();
    let mut health = HealthResult {
        load: sample.load,
        cpu_busy_ms: sample.cpu_busy_ms,
        cpu_total_ms: sample.cpu_total_ms,
        memory_total_bytes: sample.memory_total_bytes,
        memory_available_bytes: sample.memory_available_bytes,
        swap_total_bytes: sample.swap_total_bytes,
        swap_free_bytes: sample.swap_free_bytes,
        disks: sample.disks,
        uptime_ms: facts.uptime_ms(),
        ..HealthResult::default()
    };
    judge(&mut health, online_cpus());
    health
}

pub(super) fn sample() -> SampleResult {
    let memory = parse::meminfo(&read("/proc/meminfo"));
    let (cpu_busy_ms, cpu_total_ms) = parse::cpu(&read("/proc/stat"));
    SampleResult {
        load: parse::load(&read("/proc/loadavg")),
        cpu_busy_ms,
        cpu_total_ms,
        memory_total_bytes: memory.total,
        memory_available_bytes: memory.available,
        swap_total_bytes: memory.swap_total,
        swap_free_bytes: memory.swap_free,
        disks: local_disks(),
        interfaces: parse::interfaces(&read("/proc/net/dev"), MAX_LISTED),
    }
}

/// Local file systems and how full they are.
pub(crate) fn local_disks() -> Vec<DiskUse> {
    disks(&mounts())
}

/// File systems on block devices, and the root, once each.
fn disks(mounts: &[Mount]) -> Vec<DiskUse> {
    let mut seen = BTreeSet::new();
    let local = mounts.iter().filter(|mount| {
        // Network file systems are left out: asking a dead server would hold the agent.
        (mount.point == Path::new("/") || mount.source.starts_with("/dev/")) && seen.insert(mount.dev)
    });
    local.take(MAX_LISTED).filter_map(|mount| disk_use(&mount.point)).collect()
}

/// How full the file system of a path is.
pub(super) fn disk_use(mount: &Path) -> Option<DiskUse> {
    let stat = statvfs(mount).ok()?;
    let size = stat.fragment_size();
    let total_bytes = stat.blocks().saturating_mul(size);
    let free_bytes = stat.blocks_available().saturating_mul(size);
    (total_bytes > 0).then(|| DiskUse {
        mount: mount.to_string_lossy().into_owned(),
        total_bytes,
        free_bytes,
    })
}

/// The worst counts, and each reason is told.
fn say(health: &mut HealthResult, status: HealthStatus, reason: String) {
    health.status = health.status.max(status);
    health.reasons.push(reason);
}

/// What of a whole is used, in percent. What cannot be had for ordinary users counts as used.
pub(super) fn percent_used(total: u64, free: u64) -> u64 {
    100 - u64::try_from(u128::from(free) * 100 / u128::from(total.max(1))).unwrap_or(100).min(100)
}

fn judge(health: &mut HealthResult, cpus: u32) {
    for disk in health.disks.clone() {
        match percent_used(disk.total_bytes, disk.free_bytes) {
            used @ 97.. => {
                let text = format!("{} is {used} % full; free space", disk.mount);
                say(health, HealthStatus::Critical, text);
            }
            used @ 90.. => say(health, HealthStatus::Warn, format!("{} is {used} % full", disk.mount)),
            _ => {}
        }
    }
    if health.memory_total_bytes > 0 {
        let left = 100 - percent_used(health.memory_total_bytes, health.memory_available_bytes);
        match left {
            0..3 => {
                say(health, HealthStatus::Critical, format!("{left} % of the memory is left; add memory"));
            }
            3..10 => say(health, HealthStatus::Warn, format!("{left} % of the memory is left")),
            _ => {}
        }
    }
    if health.load[1] > 4.0 * f64::from(cpus) {
        let text = format!("a load of {:.1} on {cpus} CPUs over 5 minutes", health.load[1]);
        say(health, HealthStatus::Warn, text);
    }
}

pub(super) fn add_services(health: &mut HealthResult, services: Option<Services>) {
    let Some(services) = services else { return };
    health.services = Some(services.kept_by.to_owned());
    match services.failed {
        Ok(failed) => {
            for unit in &failed {
                say(health, HealthStatus::Warn, format!("{unit} has failed"));
            }
            health.failed_units = failed;
        }
        Err(why) => say(health, HealthStatus::Warn, format!("failed services are not known: {why}")),
    }
}

pub(super) fn add_watched(health: &mut HealthResult, watched: States) {
    for check in &watched.checks {
        let why = check.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        let name = &check.name;
        match check.status {
            CheckStatus::Failing => say(health, HealthStatus::Critical, format!("{name} is failing{why}")),
            CheckStatus::Refused => say(health, HealthStatus::Warn, format!("{name} is not checked{why}")),
            _ if check.flapping => {
                say(health, HealthStatus::Warn, format!("{name} fails and recovers again and again"))
            }
            _ => {}
        }
    }
    for threshold in watched.thresholds.iter().filter(|t| t.status == ThresholdStatus::Exceeded) {
        let (name, value) =
            (&threshold.name, threshold.value.map_or_else(String::new, |v| format!(" ({v} %)")));
        say(health, HealthStatus::Warn, format!("{name} is above its limit of {} %{value}", threshold.above));
    }
    for refused in &watched.refused {
        say(health, HealthStatus::Warn, format!("{} declares no check: {}", refused.file, refused.reason));
    }
    let States { checks, thresholds, refused } = watched;
    (health.checks, health.thresholds, health.refused_files) = (checks, thresholds, refused);
}

#[cfg(test)]
mod tests {
    use drover_schemas::guest::{CheckState, RefusedFile};

    use super::*;

    #[test]
    fn checks_that_are_not_well_are_told() {
        let check = |name: &str, status, flapping| {
            let (name, reason) = (name.to_owned(), Some("it exited with 1".to_owned()));
            CheckState { name, status, flapping, reason, ..CheckState::default() }
        };
        let with = |checks: Vec<CheckState>| {
            let mut health = HealthResult::default();
            add_watched(&mut health, States { checks, ..States::default() });
            (health.status, health.reasons)
        };
        let well = [check("a", CheckStatus::Starting, false), check("b", CheckStatus::Ok, false)];
        assert_eq!(with(well.to_vec()), (HealthStatus::Ok, vec![]));
        let bad =
            with(vec![check("a", CheckStatus::Failing, false), check("b", CheckStatus::Refused, false)]);
        assert_eq!(bad.0, HealthStatus::Critical);
        assert_eq!(bad.1, ["a is failing: it exited with 1", "b is not checked: it exited with 1"]);
        assert_eq!(with(vec![check("a", CheckStatus::Ok, true)]).0, HealthStatus::Warn);
        let mut health = HealthResult::default();
        let refused = vec![RefusedFile { file: "/a".into(), reason: "because".into() }];
        add_watched(&mut health, States { refused, ..States::default() });
        assert_eq!(health.reasons, ["/a declares no check: because"]);
    }

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
        assert_eq!(percent_used(0, 7), 0);
    }

    #[test]
    fn services_are_told_or_why_not() {
        let with = |failed| {
            let mut health = HealthResult::default();
            add_services(&mut health, Some(Services { kept_by: "systemd", failed }));
            health
        };
        let failed = with(Ok(vec!["a.service".into()]));
        assert_eq!((failed.status, failed.failed_units.len()), (HealthStatus::Warn, 1));
        assert_eq!(failed.reasons, ["a.service has failed"]);
        assert_eq!(with(Ok(Vec::new())).status, HealthStatus::Ok);
        assert!(with(Err("no answer".into())).reasons[0].contains("no answer"));
    }

    #[test]
    fn this_machine_has_figures() {
        let here = sample();
        assert!(here.memory_total_bytes > 0 && here.cpu_total_ms > 0);
        let root = Mount { point: "/".into(), dev: (1, 1), ..Mount::default() };
        assert!(disks(&[root.clone(), root]).len() <= 1);
    }
}
