//! `online`: CPUs and blocks of memory that were added to the guest are taken into use.

use std::fs;
use std::path::Path;

use drover_schemas::guest::OnlineResult;

/// How many are looked at.
const MAX_PARTS: usize = 65_536;
/// How many failures are told.
const MAX_FAILED: usize = 64;

pub(crate) fn run() -> OnlineResult {
    let mut result = OnlineResult::default();
    cpus(Path::new("/sys/devices/system/cpu"), &mut result);
    memory(Path::new("/sys/devices/system/memory"), &mut result);
    if result.memory_bytes == 0 {
        result.memory_bytes = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    }
    result.failed.truncate(MAX_FAILED);
    result
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The parts of a folder that are called `kind` and a number, in order.
fn parts(dir: &Path, kind: &str) -> Vec<u32> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_PARTS);
    let number = |name: &str| name.strip_prefix(kind)?.parse().ok();
    let mut numbers: Vec<u32> = names.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}

fn cpus(dir: &Path, result: &mut OnlineResult) {
    for number in parts(dir, "cpu") {
        let file = dir.join(format!("cpu{number}/online"));
        // The first one has no such file where it cannot be taken away.
        if text(&file).is_none_or(|state| state == "1") {
            result.cpus += 1;
            continue;
        }
        match fs::write(&file, "1") {
            Ok(()) => {
                result.cpus += 1;
                result.cpus_added.push(number);
            }
            Err(error) => result.failed.push(format!("CPU {number}: {error}")),
        }
    }
}

fn memory(dir: &Path, result: &mut OnlineResult) {
    let size = text(&dir.join("block_size_bytes")).and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let Some(size) = size else { return };
    for number in parts(dir, "memory") {
        let file = dir.join(format!("memory{number}/state"));
        match text(&file).as_deref() {
            Some("offline") => match fs::write(&file, "online") {
                Ok(()) => {
                    result.memory_bytes += size;
                    result.memory_added_bytes += size;
                }
                Err(error) => result.failed.push(format!("memory block {number}: {error}")),
            },
            Some("online") => result.memory_bytes += size,
            // On its way out, or gone.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offline_is_brought_online_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, text) in [
            ("cpu0/topology", ""),
            ("cpu1/online", "1\n"),
            ("cpu2/online", "0\n"),
            ("cpufreq/online", "0\n"),
            ("memory/block_size_bytes", "8000000\n"),
            ("memory/memory0/state", "online\n"),
            ("memory/memory9/state", "offline\n"),
            ("memory/memory10/state", "going-offline\n"),
        ] {
            put(name, text);
        }
        let mut result = OnlineResult::default();
        cpus(dir.path(), &mut result);
        memory(&dir.path().join("memory"), &mut result);
        assert_eq!((result.cpus, result.cpus_added.as_slice()), (3, &[2][..]));
        assert_eq!((result.memory_bytes, result.memory_added_bytes), (0x1000_0000, 0x800_0000));
        assert!(result.failed.is_empty());
        assert_eq!(text(&dir.path().join("cpu2/online")).unwrap(), "1");
        // A machine that tells of neither has no more than it has.
        let mut none = OnlineResult::default();
        cpus(&dir.path().join("nowhere"), &mut none);
        memory(&dir.path().join("nowhere"), &mut none);
        assert_eq!(none, OnlineResult::default());
    }
}
