//! File systems that are almost full, whatever anybody declares: told when they become so, and when they are not so any
//! more. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_schemas::guest::DiskUse;
use serde_json::{Value, json};

use super::crossing::Crossing;
use super::{DISK_LOW, DISK_OK};

/// From so many percent on a file system is almost full.
const LOW: u32 = 95;
/// Below so many it is not any more.
const OK: u32 = 93;

/// How they were, by where they are mounted.
#[derive(Debug, Default)]
pub(super) struct Disks(BTreeMap<String, Crossing>);

impl Disks {
    /// What there is to tell, given how they are now.
    pub(super) fn look(&mut self, disks: &[DiskUse]) -> Vec<(&'static str, Value)> {
        self.0.retain(|mount, _| disks.iter().any(|disk| disk.mount == *mount));
        let mut told = Vec::new();
        for disk in disks.iter().filter(|disk| disk.total_bytes > 0) {
            let used = disk.total_bytes.saturating_sub(disk.free_bytes);
            let percent = u128::from(used) * 100 / u128::from(disk.total_bytes);
            let crossing = self.0.entry(disk.mount.clone());
            // Looks are half a minute apart: one is enough.
            let crossing = crossing.or_insert_with(|| Crossing::new(LOW, OK, Duration::ZERO, false));
            if !crossing.take(u32::try_from(percent).ok(), Duration::ZERO) {
                continue;
            }
            let kind = if crossing.is_exceeded() { DISK_LOW } else { DISK_OK };
            // Integers that every reader understands.
            let bytes = |bytes: u64| bytes.min(1 << 53);
            told.push((
                kind,
                json!({
                    "mount": disk.mount.chars().take(1024).collect::<String>(),
                    "used_percent": percent as u64,
                    "total_bytes": bytes(disk.total_bytes),
                    "free_bytes": bytes(disk.free_bytes),
                }),
            ));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_does_not_flicker() {
        let mut disks = Disks::default();
        let mut look = |free: &[u64]| {
            let disk = |(at, free_bytes): (usize, &u64)| DiskUse {
                mount: format!("/{at}"),
                total_bytes: 100,
                free_bytes: *free_bytes,
            };
            let told = disks.look(&free.iter().enumerate().map(disk).collect::<Vec<_>>());
            told.into_iter()
                .map(|(kind, data)| (kind, data["mount"].as_str().unwrap().to_owned()))
                .collect::<Vec<_>>()
        };
        let told = |kind, mount: &str| vec![(kind, mount.to_owned())];
        assert_eq!(look(&[6, 6]), []);
        assert_eq!(look(&[6, 5]), told(DISK_LOW, "/1"));
        assert_eq!(look(&[6, 0]), []);
        assert_eq!(look(&[6, 7]), [], "a little better is not yet well");
        assert_eq!(look(&[6, 8]), told(DISK_OK, "/1"));
        assert_eq!(look(&[6, 5]), told(DISK_LOW, "/1"));
        // Taken away and back: it is told anew.
        assert_eq!(look(&[6]), []);
        assert_eq!(look(&[6, 5]), told(DISK_LOW, "/1"));
        let empty = DiskUse { mount: "/x".into(), total_bytes: 0, free_bytes: 0 };
        assert_eq!(Disks::default().look(&[empty]), []);
        let beyond = DiskUse { mount: "/x".into(), total_bytes: u64::MAX, free_bytes: 0 };
        assert_eq!(Disks::default().look(&[beyond])[0].1["total_bytes"], 1_u64 << 53);
    }
}
