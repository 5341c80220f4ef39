//! `info`: what the guest is, from `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use drover_schemas::guest::{DiskInfo, InfoResult, InterfaceInfo};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::facts::Facts;

/// How many disks and interfaces are listed at most.
const MAX_LISTED: usize = 64;

pub(super) fn gather(facts: &Facts) -> InfoResult {
    let (hostname, kernel) = Facts::names();
    InfoResult {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: facts.boot_id.clone(),
        os: std::env::consts::OS.to_owned(),
        os_name: os_name(),
        kernel,
        arch: std::env::consts::ARCH.to_owned(),
        hostname,
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory_bytes: super::health::meminfo().get("MemTotal").copied().unwrap_or(0),
        uptime_ms: facts.uptime_ms(),
        disks: disks(),
        interfaces: interfaces(),
        allowed: None,
    }
}

fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches(['"', '\'']).chars().take(200).collect()
}

fn disks() -> Vec<DiskInfo> {
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
            })
        })
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks.truncate(MAX_LISTED);
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
        let info = gather(&Facts::gather());
        assert!(info.cpus > 0 && info.memory_bytes > 0 && !info.kernel.is_empty());
        assert!(info.interfaces.iter().all(|i| i.name != "lo"));
        assert_eq!(prefix(IpAddr::from([255, 255, 240, 0])), 20);
    }
}
