//! What the kernel is told of IPv6 for the host's networks, by its settings below `/proc`: those of this process's network
//! namespace.

use std::fs;
use std::io;
use std::path::Path;

use super::ops::NetworkError;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Whether the kernel has IPv6.
pub(super) fn is_there() -> bool {
    Path::new(SETTINGS).is_dir()
}

/// Sets a setting unless it is so. Whether it was another.
fn set(interface: &str, setting: &str, value: &str) -> Result<bool, NetworkError> {
    let path = format!("{SETTINGS}/{interface}/{setting}");
    let change = || -> io::Result<bool> {
        let other = fs::read_to_string(&path)?.trim() != value;
        if other {
            fs::write(&path, value)?;
        }
        Ok(other)
    };
    change().map_err(|source| NetworkError::Ipv6 { path: path.clone(), source })
}

/// A bridge has addresses of its own at once, and takes nothing over that its guests say.
pub(super) fn bridge(name: &str) -> Result<(), NetworkError> {
    for (setting, value) in [
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_redirects", "0"),
        ("accept_dad", "0"),
        ("disable_ipv6", "0"),
    ] {
        set(name, setting, value)?;
    }
    Ok(())
}

/// The host has no address at a TAP, where a guest would be heard before its bridge's rules.
pub(super) fn port(tap: &str) -> Result<(), NetworkError> {
    set(tap, "accept_ra", "0")?;
    set(tap, "disable_ipv6", "1").map(drop)
}

/// The host has no address at an interface, whether a network has IPv6 or not.
pub(super) fn silence(name: &str) -> Result<(), NetworkError> {
    if is_there() { set(name, "disable_ipv6", "1").map(drop) } else { Ok(()) }
}

/// Packets are routed; whether they were not. A host that routes takes no router's word any more unless it is told to:
/// interfaces that did, and are not ours, go on so.
pub(super) fn forwarding(is_ours: impl Fn(&str) -> bool) -> Result<bool, NetworkError> {
    let path = || format!("{SETTINGS}/all/forwarding");
    let failed = |source| NetworkError::Ipv6 { path: path(), source };
    if fs::read_to_string(path()).map_err(failed)?.trim() != "0" {
        return Ok(false);
    }
    for entry in fs::read_dir(SETTINGS).map_err(failed)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if ["all", "default", "lo"].contains(&name.as_str()) || is_ours(&name) {
            continue;
        }
        let value = |setting| fs::read_to_string(entry.path().join(setting)).unwrap_or_default();
        // One that routed already did not listen.
        if value("accept_ra").trim() == "1" && value("forwarding").trim() == "0" {
            // It may have gone meanwhile.
            if let Err(error) = fs::write(entry.path().join("accept_ra"), "2") {
                tracing::warn!(interface = name, %error, "an interface may lose what its router tells it, now that this host routes IPv6");
            }
        }
    }
    set("all", "forwarding", "1")
}
