//! Whether the kernel can take paths away from a process that has asked for it.

/// The oldest ABI that the VMM takes: with it a file cannot be cut off against the rules (Linux 6.2).
pub const NEEDED: u32 = 3;

/// The version of Landlock that the kernel offers; `None` if it has none or it is switched off.
#[must_use]
pub fn abi() -> Option<u32> {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes no attributes and answers a number.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// What an operator is told.
#[must_use]
pub fn describe(abi: Option<u32>) -> String {
    match abi {
        Some(abi) if abi >= NEEDED => format!("on (ABI {abi})"),
        Some(abi) => format!("off: the kernel has ABI {abi}, the VMM needs {NEEDED} (Linux 6.2)"),
        None => "off: the kernel has none, or it is not in the kernel's list of security modules".to_owned(),
    }
}
