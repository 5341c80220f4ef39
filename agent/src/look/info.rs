//! `info`: what the guest is, from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use drover_schemas::guest::{DiskInfo, InfoResult, InterfaceInfo, MountInfo};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use super::parse::{self, MAX_NAME};
use super::{MAX_LISTED, mounts, read};
use crate::facts::Facts;
use crate::mounts::Mount;

pub(super) fn gather(facts: &Facts) -> InfoResult {
    let (hostname, kernel) = Facts::names();
    let os_release = match read("/etc/os-release") {
        text if text.is_empty() => read("/usr/lib/os-release"),
        text => text,
    };
    let release = parse::os_release(&os_release);
    InfoResult {
        agent_version: facts.release.version.to_owned(),
        boot_id: facts.boot_id.clone(),
        machine_id: machine_id(&read("/etc/machine-id")),
        os: std::env::consts::OS.to_owned(),
        os_id: release.id,
        os_version: release.version,
        os_name: release.name,
        kernel,
        arch: std::env::consts::ARCH.to_owned(),
        hostname,
        cpus: online_cpus(),
        cpus_possible: parse::count(&read("/sys/devices/system/cpu/possible")),
        cpu_model: parse::cpu_model(&read("/proc/cpuinfo")),
        memory_bytes: parse::meminfo(&read("/proc/meminfo")).total,
        uptime_ms: facts.uptime_ms(),
        disks: disks(&mounts()),
        interfaces: interfaces(),
        allowed: None,
    }
}

/// CPUs of the guest, whatever of them this process may use.
pub(super) fn online_cpus() -> u32 {
    match parse::count(&read("/sys/devices/system/cpu/online")) {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        online => online,
    }
}

/// A fresh image has `uninitialized` or nothing here.
fn machine_id(text: &str) -> String {
    let id = text.trim();
    let is_one = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_one { id.to_owned() } else { String::new() }
}

/// The name below `/dev` of what is mounted, and of the disk that it is on.
fn device(mount: &Mount) -> Option<(String, String)> {
    let (major, minor) = mount.dev;
    let by_numbers = PathBuf::from("/sys/dev/block").join(format!("{major}:{minor}"));
    // Some file systems have numbers of their own; then what was mounted tells.
    let path = fs::canonicalize(by_numbers).ok().or_else(|| {
        let source = mount.source.starts_with("/dev/").then(|| fs::canonicalize(&mount.source).ok())??;
        fs::canonicalize(PathBuf::from("/sys/class/block").join(source.file_name()?)).ok()
    })?;
    let name = |path: &std::path::Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let device = name(&path)?;
    let disk = if path.join("partition").exists() { name(path.parent()?)? } else { device.clone() };
    Some((device, disk))
}

fn disks(mounts: &[Mount]) -> Vec<DiskInfo> {
    let Ok(dir) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut disks: Vec<_> = dir
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
            // The kernel counts in sectors of 512 bytes whatever the disk's own size of a sector.
            let sectors: u64 = read("size")?.trim().parse().ok()?;
            let virtual_only = ["loop", "ram", "zram"].iter().any(|p| name.starts_with(p));
            (sectors > 0 && !virtual_only).then(|| DiskInfo {
                name,
                size_bytes: sectors.saturating_mul(512),
                read_only: read("ro").is_some_and(|ro| ro.trim() == "1"),
                mounts: Vec::new(),
            })
        })
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks.truncate(MAX_LISTED);
    let mut listed = 0;
    for mount in mounts {
        let Some((device, disk)) = device(mount) else { continue };
        if let Some(disk) = disks.iter_mut().find(|known| known.name == disk)
            && listed < MAX_LISTED
        {
            listed += 1;
            let (mount, fs) =
                (mount.point.to_string_lossy().into_owned(), parse::short(&mount.fs_type, MAX_NAME));
            disk.mounts.push(MountInfo { device, mount, fs });
        }
    }
    disks
}

fn interfaces() -> Vec<InterfaceInfo> {
    let Ok(addresses) = getifaddrs() else { return Vec::new() };
    let mut found = BTreeMap::<String, InterfaceInfo>::new();
    for item in addresses.filter(|i| !i.flags.contains(InterfaceFlags::IFF_LOOPBACK)) {
        if found.len() >= MAX_LISTED && !found.contains_key(&item.interface_name) {
            continue;
        }
        let entry = found.entry(item.interface_name.clone()).or_default();
        entry.name = item.interface_name;
        entry.up = item.flags.contains(InterfaceFlags::IFF_UP);
        let mac = item.address.as_ref().and_then(SockaddrStorage::as_link_addr).and_then(|l| l.addr());
        if let Some(mac) = mac {
            entry.mac = mac.map(|b| format!("{b:02x}")).join(":");
        }
        if let Some(address) = item.address.as_ref().and_then(ip) {
            let bits = item.netmask.as_ref().and_then(ip).map_or(0, prefix);
            if entry.addresses.len() < MAX_LISTED {
                entry.addresses.push(format!("{address}/{bits}"));
            }
        }
    }
    found.into_values().collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let four = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

fn prefix(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(m) => m.to_bits().count_ones(),
        IpAddr::V6(m) => m.to_bits().count_ones(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_described() {
        let info = gather(&Facts::gather(&crate::release::Release::THIS));
        assert!(info.cpus > 0 && info.memory_bytes > 0 && !info.kernel.is_empty());
        assert!(info.cpus_possible >= info.cpus, "{info:?}");
        assert!(info.interfaces.iter().all(|i| i.name != "lo"));
        assert_eq!(prefix(IpAddr::from([255, 255, 240, 0])), 20);
        assert_eq!(machine_id("uninitialized\n"), "");
        assert_eq!(machine_id("0123456789abcdef0123456789ABCDEF\n").len(), 32);
    }
}
