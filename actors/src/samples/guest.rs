//! What guests say of themselves: the last figures of each guest whose spec asks for them. They are gone as soon as
//! the link to its agent is, or its agent does not answer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use drover_schemas::VmId;
use drover_schemas::body::samples::GuestSample;
use drover_schemas::guest::{DiskUse, SampleResult};

/// How many file systems and interfaces are kept of a guest.
const MAX_LISTED: usize = 16;
/// How many characters of their names.
const MAX_NAME: usize = 128;
/// From which difference on a share of a whole has changed, in percent.
const CHANGED_PERCENT: f64 = 1.0;
/// The same of the time that CPUs were busy, which is never the same twice.
const CHANGED_CPU: f64 = 5.0;
/// The same of a load average.
const CHANGED_LOAD: f64 = 0.5;

/// The last figures of guests, by VM.
#[derive(Debug, Default)]
pub struct GuestSamples(Mutex<HashMap<VmId, GuestSample>>);

impl GuestSamples {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, GuestSample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last figures of a guest, if it is heard.
    #[must_use]
    pub fn get(&self, vm_id: VmId) -> Option<GuestSample> {
        self.lock().get(&vm_id).cloned()
    }

    /// Keeps figures.
    pub fn put(&self, vm_id: VmId, sample: GuestSample) {
        self.lock().insert(vm_id, sample);
    }

    /// Nothing is known of a guest any more.
    pub fn forget(&self, vm_id: VmId) {
        self.lock().remove(&vm_id);
    }
}

/// What is kept of what a guest said. It is a stranger: its lists and names are cut, its numbers looked at. `before`
/// are busy and total CPU time of the sample before.
#[must_use]
pub fn figures(said: SampleResult, before: Option<(u64, u64)>, time_unix_ms: u64) -> GuestSample {
    let number = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
    let cut = |name: &mut String| {
        if let Some((at, _)) = name.char_indices().nth(MAX_NAME) {
            name.truncate(at);
        }
        name.shrink_to_fit();
    };
    let SampleResult { mut disks, mut interfaces, .. } = said;
    disks.truncate(MAX_LISTED);
    interfaces.truncate(MAX_LISTED);
    disks.iter_mut().for_each(|disk| cut(&mut disk.mount));
    interfaces.iter_mut().for_each(|interface| cut(&mut interface.name));
    disks.shrink_to_fit();
    interfaces.shrink_to_fit();
    GuestSample {
        time_unix_ms,
        cpu_percent: before.and_then(|before| busy(before, (said.cpu_busy_ms, said.cpu_total_ms))),
        load: said.load.map(number),
        memory_total_bytes: said.memory_total_bytes,
        memory_available_bytes: said.memory_available_bytes,
        swap_total_bytes: said.swap_total_bytes,
        swap_free_bytes: said.swap_free_bytes,
        disks,
        interfaces,
    }
}

/// The busy share of the time between two looks, in percent with one digit; none if the counters do not go forward.
fn busy(before: (u64, u64), now: (u64, u64)) -> Option<f64> {
    let total = now.1.checked_sub(before.1).filter(|total| *total > 0)?;
    let busy = now.0.checked_sub(before.0)?.min(total);
    Some((busy as f64 * 1000.0 / total as f64).round() / 10.0)
}

fn used(total: u64, free: u64) -> f64 {
    if total == 0 { 0.0 } else { 100.0 - 100.0 * free as f64 / total as f64 }
}

/// Whether figures differ so much from those that were told last that they are told by themselves. What went through
/// interfaces always grows and does not count.
#[must_use]
pub fn have_changed(told: &GuestSample, now: &GuestSample) -> bool {
    let differ = |a: f64, b: f64, by: f64| (a - b).abs() >= by;
    let of = |sample: &GuestSample| {
        [
            used(sample.memory_total_bytes, sample.memory_available_bytes),
            used(sample.swap_total_bytes, sample.swap_free_bytes),
        ]
    };
    let disk = |a: &DiskUse, b: &DiskUse| {
        let (before, now) = (used(a.total_bytes, a.free_bytes), used(b.total_bytes, b.free_bytes));
        a.mount != b.mount || differ(before, now, CHANGED_PERCENT)
    };
    told.cpu_percent.is_some() != now.cpu_percent.is_some()
        || differ(told.cpu_percent.unwrap_or(0.0), now.cpu_percent.unwrap_or(0.0), CHANGED_CPU)
        || told.load.iter().zip(&now.load).any(|(a, b)| differ(*a, *b, CHANGED_LOAD))
        || of(told).iter().zip(of(now)).any(|(a, b)| differ(*a, b, CHANGED_PERCENT))
        || told.disks.len() != now.disks.len()
        || told.disks.iter().zip(&now.disks).any(|(a, b)| disk(a, b))
        || told.interfaces.len() != now.interfaces.len()
}

#[cfg(test)]
mod tests {
    use drover_schemas::guest::InterfaceUse;
    use proptest::prelude::*;

    use super::*;

    fn said(busy: u64, total: u64) -> SampleResult {
        SampleResult {
            cpu_busy_ms: busy,
            cpu_total_ms: total,
            memory_total_bytes: 1_000,
            memory_available_bytes: 600,
            disks: vec![DiskUse { mount: "/".into(), total_bytes: 1_000, free_bytes: 500 }],
            ..SampleResult::default()
        }
    }

    #[test]
    fn a_share_needs_two_looks() {
        assert_eq!(figures(said(10, 100), None, 5).cpu_percent, None);
        assert_eq!(figures(said(60, 200), Some((10, 100)), 5).cpu_percent, Some(50.0));
        // Of another boot, or of one that lies.
        assert_eq!(figures(said(5, 50), Some((10, 100)), 5).cpu_percent, None);
        assert_eq!(figures(said(10, 100), Some((10, 100)), 5).cpu_percent, None);
        assert_eq!(figures(said(900, 200), Some((10, 100)), 5).cpu_percent, Some(100.0));
    }

    #[test]
    fn what_stays_the_same_is_not_told_by_itself() {
        let told = figures(said(60, 200), Some((10, 100)), 5);
        assert!(!have_changed(&told, &figures(said(112, 300), Some((60, 200)), 6)));
        assert!(have_changed(&told, &figures(said(160, 300), Some((60, 200)), 6)));
        let fuller = SampleResult { memory_available_bytes: 590, ..said(60, 200) };
        assert!(have_changed(&told, &figures(fuller, Some((10, 100)), 6)));
        let mut fuller = said(60, 200);
        fuller.disks[0].free_bytes = 490;
        assert!(have_changed(&told, &figures(fuller, Some((10, 100)), 6)));
        let sent = InterfaceUse { name: "eth0".into(), received_bytes: 9, sent_bytes: 9 };
        let more = SampleResult { interfaces: vec![sent], ..said(60, 200) };
        let told = figures(more.clone(), Some((10, 100)), 6);
        let mut more = more;
        more.interfaces[0].sent_bytes = 1 << 40;
        assert!(!have_changed(&told, &figures(more, Some((10, 100)), 7)));
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_is_bounded(
            names in proptest::collection::vec(".{0,300}", 0..40),
            load in proptest::array::uniform3(any::<f64>()),
            numbers in proptest::array::uniform8(any::<u64>()),
        ) {
            let [a, b, c, d, e, f, g, h] = numbers;
            let disks = names.iter().map(|name| DiskUse { mount: name.clone(), total_bytes: a, free_bytes: b });
            let interfaces =
                names.iter().map(|name| InterfaceUse { name: name.clone(), received_bytes: c, sent_bytes: d });
            let (disks, interfaces) = (disks.collect(), interfaces.collect());
            let said = SampleResult {
                load, cpu_busy_ms: e, cpu_total_ms: f, memory_total_bytes: a, memory_available_bytes: b,
                swap_total_bytes: c, swap_free_bytes: d, disks, interfaces,
            };
            let kept = figures(said, Some((g, h)), 5);
            prop_assert!(kept.disks.len() <= MAX_LISTED && kept.interfaces.len() <= MAX_LISTED);
            prop_assert!(kept.disks.iter().all(|disk| disk.mount.chars().count() <= MAX_NAME));
            prop_assert!(kept.load.iter().all(|load| load.is_finite() && *load >= 0.0));
            prop_assert!(kept.cpu_percent.is_none_or(|share| (0.0..=100.0).contains(&share)));
            prop_assert!(!have_changed(&kept, &kept));
        }
    }
}
