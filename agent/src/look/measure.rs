//! One value of the guest, in percent, for whoever watches it.

use std::path::Path;

use drover_schemas::guest::Measure;

use super::health::{disk_use, percent_used};
use super::info::online_cpus;
use super::{mounts, parse, read};

/// CPU time at the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy(Option<(u64, u64)>);

impl Busy {
    /// The busy share of the time since the last look, if there was one.
    fn percent(&mut self, (busy, total): (u64, u64)) -> Option<u32> {
        let (busy_before, total_before) = self.0.replace((busy, total))?;
        let total = total.checked_sub(total_before).filter(|total| *total > 0)?;
        let busy = busy.saturating_sub(busy_before).min(total);
        u32::try_from(u128::from(busy) * 100 / u128::from(total)).ok()
    }
}

/// The value of now; none if it cannot be had. What the kernel has in memory is read at once, a file system is asked
/// aside: a disk that hangs holds whoever asks, and nobody else.
pub(crate) async fn measure(of: Measure, mount: &str, busy: &mut Busy) -> Option<u32> {
    let percent = |total, free| (total > 0).then(|| u32::try_from(percent_used(total, free)).ok()).flatten();
    let memory = || parse::meminfo(&read("/proc/meminfo"));
    match of {
        Measure::Memory => percent(memory().total, memory().available),
        Measure::Swap => percent(memory().swap_total, memory().swap_free),
        Measure::Cpu => busy.percent(parse::cpu(&read("/proc/stat"))),
        Measure::Load => {
            let [minute, ..] = parse::load(&read("/proc/loadavg"));
            // A load that no number holds is the greatest there is.
            Some((minute * 100.0 / f64::from(online_cpus().max(1))) as u32)
        }
        Measure::Disk => {
            let mount = mount.to_owned();
            let disk = tokio::task::spawn_blocking(move || {
                // A folder that is none is not taken for the file system that it is on.
                mounts()
                    .iter()
                    .any(|known| known.point.as_path() == Path::new(&mount))
                    .then(|| disk_use(Path::new(&mount)))
                    .flatten()
            });
            let disk = disk.await.ok().flatten()?;
            percent(disk.total_bytes, disk.free_bytes)
        }
        Measure::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_has_values() {
        let value = async |of, mount| measure(of, mount, &mut Busy::default()).await;
        assert!(value(Measure::Memory, "").await.is_some_and(|percent| percent <= 100));
        assert!(value(Measure::Disk, "/").await.is_some_and(|percent| percent <= 100));
        assert!(value(Measure::Load, "").await.is_some());
        assert_eq!(
            (value(Measure::Disk, "/no/mount").await, value(Measure::Disk, "/etc").await),
            (None, None)
        );
        assert_eq!((value(Measure::Cpu, "").await, value(Measure::Unknown, "").await), (None, None));
    }

    #[test]
    fn a_share_of_the_cpus_needs_two_looks() {
        let mut busy = Busy::default();
        assert_eq!(
            (busy.percent((10, 100)), busy.percent((60, 200)), busy.percent((60, 200))),
            (None, Some(50), None)
        );
        assert_eq!((busy.percent((9, 90)), busy.percent((9, 100))), (None, Some(0)));
    }
}
