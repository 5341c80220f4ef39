//! The guest's end of a TAP.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// The header that stands before each frame.
pub const VNET_HDR: usize = 10;

/// Opens a TAP as a VMM does.
pub fn attach(tap: &str) -> File {
    attach_as(tap, 0).unwrap()
}

/// The same with further flags.
pub fn attach_as(tap: &str, flags: libc::c_int) -> nix::Result<File> {
    mod ioctl {
        nix::ioctl_write_int!(set_iff, b'T', 202);
    }
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { ioctl::set_iff(file.as_raw_fd(), (&raw mut request) as libc::c_ulong) }?;
    Ok(file)
}
