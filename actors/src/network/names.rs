//! Names and addresses that follow from identities, so that they can be recomputed after any crash.

use std::path::PathBuf;

use drover_schemas::id::{InstallationId, VmId};
use drover_schemas::token::Token;
use sha2::{Digest, Sha256};

/// The longest name of an interface that the kernel takes, in bytes.
pub const IFNAME_MAX: usize = 15;

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts are the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name of the TAP of interface `index` of a VM: `dr` and 12 hexadecimal digits.
#[must_use]
pub fn tap(installation: InstallationId, vm_id: VmId, index: usize) -> String {
    let hash = digest(&[
        b"tap",
        &installation.as_u128().to_be_bytes(),
        &vm_id.as_u128().to_be_bytes(),
        &(index as u64).to_be_bytes(),
    ]);
    format!("dr{}", hex(&hash[..6]))
}

/// Where the kernel tells of which kind a TAP is.
#[must_use]
pub fn tap_kind(tap: &str) -> PathBuf {
    ["/sys/class/net", tap, "tun_flags"].iter().collect()
}

/// Name of the bridge of a network: `drb` and 12 hexadecimal digits.
#[must_use]
pub fn bridge(installation: InstallationId, network: &Token) -> String {
    let hash = digest(&[b"bridge", &installation.as_u128().to_be_bytes(), network.as_str().as_bytes()]);
    format!("drb{}", hex(&hash[..6]))
}

/// Names of a further bridge of a network, and of the ends of what joins it to the first: the one there, and its own.
#[must_use]
pub fn further(installation: InstallationId, network: &Token, number: u32) -> [String; 3] {
    let name = |kind: &str| {
        let (id, number) = (installation.as_u128().to_be_bytes(), number.to_be_bytes());
        let hash = digest(&[kind.as_bytes(), &id, network.as_str().as_bytes(), &number]);
        format!("{kind}{}", hex(&hash[..6]))
    };
    ["drb", "dru", "drl"].map(name)
}

/// MAC of interface `index` of a VM: `52:54:` (locally administered) and 32 bits of a hash.
///
/// Two of 1,000 VMs on one host share one with a chance of about 1 in 10,000; the anti-spoof rules then still
/// tell them apart by TAP.
#[must_use]
pub fn mac(vm_id: VmId, index: usize) -> String {
    let hash = digest(&[b"mac", &vm_id.as_u128().to_be_bytes(), &(index as u64).to_be_bytes()]);
    format!("52:54:{:02x}:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// MAC of a bridge, so that guests find their gateway again when it was made anew, and whatever ports come and go:
/// left alone, a bridge takes the lowest of its ports.
#[must_use]
pub fn bridge_mac(installation: InstallationId, network: &Token) -> [u8; 6] {
    let hash = digest(&[b"bridge mac", &installation.as_u128().to_be_bytes(), network.as_str().as_bytes()]);
    [0x52, 0x55, hash[0], hash[1], hash[2], hash[3]]
}

/// MAC of a further bridge. Nobody speaks to it.
#[must_use]
pub fn further_mac(installation: InstallationId, network: &Token, number: u32) -> [u8; 6] {
    let id = installation.as_u128().to_be_bytes();
    let hash = digest(&[b"further mac", &id, network.as_str().as_bytes(), &number.to_be_bytes()]);
    [0x52, 0x55, hash[0], hash[1], hash[2], hash[3]]
}

/// Name of the installation's nftables tables: `drover-` and the random end of its id.
#[must_use]
pub fn table(installation: InstallationId) -> String {
    let id = installation.to_string().to_ascii_lowercase();
    format!("drover-{}", &id[id.len() - 10..])
}

/// The group of interfaces of the installation's TAPs, which closes them while they have no rules of their own.
#[must_use]
pub fn group(installation: InstallationId) -> u32 {
    let hash = digest(&[b"group", &installation.as_u128().to_be_bytes()]);
    // Never 0, the group of everybody; positive for those who read it as signed.
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) & 0x7fff_ffff | 1
}

/// The group of its further bridges and of what joins them, at which the host itself neither speaks nor listens.
#[must_use]
pub fn inner_group(installation: InstallationId) -> u32 {
    // The lowest bit is another one.
    group(installation) & !1 | 2
}

/// Alias of a TAP: the mark by which its owner is known.
#[must_use]
pub fn tap_alias(installation: InstallationId, vm_id: VmId) -> String {
    format!("drover:{installation}:{vm_id}")
}

/// Alias of a network's bridge; of a further one its number follows.
#[must_use]
pub fn bridge_alias(installation: InstallationId, network: &Token) -> String {
    format!("drover:{installation}:net:{network}")
}

/// What an alias says about its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// A TAP of a VM.
    Tap(InstallationId, VmId),
    /// A bridge of a network, or what joins two of them.
    Bridge(InstallationId, String),
}

/// Reads an alias; `None` if it is not one of drover's.
#[must_use]
pub fn read_alias(alias: &str) -> Option<Mark> {
    let mut parts = alias.strip_prefix("drover:")?.splitn(2, ':');
    let installation = parts.next()?.parse().ok()?;
    let rest = parts.next()?;
    match rest.strip_prefix("net:") {
        Some(network) => Some(Mark::Bridge(installation, network.to_owned())),
        None => Some(Mark::Tap(installation, rest.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_fit_the_kernel_and_marks_come_back(a in any::<u128>(), b in any::<u128>(), index in 0_usize..8) {
            let (installation, vm_id) = (InstallationId::from_u128(a), VmId::from_u128(b));
            let network = Token::new("default").unwrap();
            let names = [tap(installation, vm_id, index), bridge(installation, &network)];
            for name in names.into_iter().chain(further(installation, &network, 63)) {
                prop_assert!(name.len() <= IFNAME_MAX);
            }
            prop_assert_ne!(group(installation), inner_group(installation));
            prop_assert_eq!(
                read_alias(&tap_alias(installation, vm_id)),
                Some(Mark::Tap(installation, vm_id))
            );
            prop_assert_eq!(
                read_alias(&bridge_alias(installation, &network)),
                Some(Mark::Bridge(installation, "default".to_owned()))
            );
            let mac = mac(vm_id, index);
            let first = u8::from_str_radix(&mac[..2], 16).unwrap();
            prop_assert_eq!(first & 0b11, 0b10, "unicast and locally administered");
        }

        #[test]
        fn another_installation_or_interface_has_another_name(a in any::<u128>(), b in any::<u128>()) {
            prop_assume!(a != b);
            let vm_id = VmId::from_u128(1);
            let name = |id, index| tap(InstallationId::from_u128(id), vm_id, index);
            prop_assert_ne!(name(a, 0), name(b, 0));
            prop_assert_ne!(name(a, 0), name(a, 1));
        }
    }

    #[test]
    fn names_never_change_between_versions() {
        let (installation, vm_id) = (InstallationId::from_u128(1), VmId::from_u128(2));
        assert_eq!(tap(installation, vm_id, 0), "dr457500163629");
        assert_eq!(mac(vm_id, 0), "52:54:b6:ed:1e:1b");
        assert_eq!(table(installation), "drover-0000000001");
    }

    #[test]
    fn a_strange_alias_is_nobodys() {
        for alias in ["", "drover:", "drover:x:y", "drover:00000000000000000000000001", "eth0"] {
            assert_eq!(read_alias(alias), None, "{alias}");
        }
    }
}
