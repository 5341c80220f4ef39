//! Persistent TAP devices, made by ioctl: rtnetlink cannot make them.
//!
//! A TAP that belongs to the VMM's uid, exists and is up lets the VMM attach without any capability. No
//! descriptor of it is kept: one held here would take packets away from the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::names::IFNAME_MAX;

const DEVICE: &str = "/dev/net/tun";
/// What the VMM asks for when it attaches; other flags would be refused.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Whether a TAP is for one pair of queues or for several. Whoever attaches must say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapKind {
    /// One process attaches, once.
    One,
    /// It attaches once for each pair.
    Many,
}

impl TapKind {
    /// What `queues` pairs need.
    #[must_use]
    pub const fn of(queues: u32) -> Self {
        if queues > 1 { Self::Many } else { Self::One }
    }

    const fn flags(self) -> libc::c_int {
        match self {
            Self::One => FLAGS,
            Self::Many => FLAGS | libc::IFF_MULTI_QUEUE,
        }
    }
}

#[allow(missing_docs)] // the macros make public functions
mod ioctl {
    nix::ioctl_write_int!(set_iff, b'T', 202);
    nix::ioctl_write_int!(set_persist, b'T', 203);
    nix::ioctl_write_int!(set_owner, b'T', 204);
}

/// A step with a TAP failed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The device that makes TAPs cannot be opened.
    #[error("cannot open {DEVICE}; {}", advice(source))]
    Open {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {step} TAP {name}; {}", advice(source))]
    Step {
        /// What was tried.
        step: &'static str,
        /// The TAP.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name is no name of an interface.
    #[error("{name:?} is not a name for an interface: 1 to {IFNAME_MAX} bytes of ASCII")]
    Name {
        /// The name.
        name: String,
    },
}

/// What a person can do about a failure.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "load the module `tun` (`modprobe tun`), or in a container pass the device in"
        }
        Some(libc::EPERM | libc::EACCES) => "run drover as root or with CAP_NET_ADMIN",
        Some(libc::EBUSY) => "another process uses it",
        Some(libc::EINVAL) => "an interface of that name exists and is no TAP of this kind",
        _ => "see the cause",
    }
}

fn request(name: &str, kind: TapKind) -> Result<libc::ifreq, TapError> {
    if name.is_empty() || name.len() > IFNAME_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(TapError::Name { name: name.to_owned() });
    }
    // SAFETY: `ifreq` is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = kind.flags() as libc::c_short;
    Ok(request)
}

/// Attaches to the TAP `name`, making it if it is not there.
fn attach(name: &str, kind: TapKind) -> Result<File, TapError> {
    let mut request = request(name, kind)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|source| TapError::Open { source })?;
    // SAFETY: the descriptor is open and the request is an `ifreq` that lives through the call.
    unsafe { ioctl::set_iff(file.as_raw_fd(), (&raw mut request) as libc::c_ulong) }
        .map_err(|errno| TapError::Step { step: "attach to", name: name.to_owned(), source: errno.into() })?;
    Ok(file)
}

/// Makes the TAP `name` for processes of `uid`, or gives the one that is there to them. Blocks shortly.
///
/// # Errors
/// The kernel refuses; while a VMM is attached the TAP is busy.
pub fn ensure(name: &str, kind: TapKind, uid: u32) -> Result<(), TapError> {
    let failed = |step: &'static str| {
        move |errno: nix::Error| TapError::Step { step, name: name.to_owned(), source: errno.into() }
    };
    let file = attach(name, kind)?;
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { ioctl::set_owner(file.as_raw_fd(), libc::c_ulong::from(uid)) }
        .map_err(failed("set the owner of"))?;
    // SAFETY: as above.
    unsafe { ioctl::set_persist(file.as_raw_fd(), 1) }.map_err(failed("keep"))?;
    Ok(())
}

/// Removes the TAP `name` by attaching to it and ending its persistence. One that is in use is busy: remove
/// it by [`super::link::Links::delete`] instead. Blocks shortly.
///
/// # Errors
/// The kernel refuses.
pub fn remove(name: &str) -> Result<(), TapError> {
    let file = match attach(name, TapKind::One) {
        // The kernel does not tell one kind from the other before.
        Err(TapError::Step { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            attach(name, TapKind::Many)?
        }
        attached => attached?,
    };
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { ioctl::set_persist(file.as_raw_fd(), 0) }.map_err(|errno| TapError::Step {
        step: "let go of",
        name: name.to_owned(),
        source: errno.into(),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_is_refused_before_the_kernel_sees_it() {
        for name in ["", "a-name-of-16-byt", "with space", "ümlaut"] {
            assert!(matches!(request(name, TapKind::One), Err(TapError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        let missing = TapError::Open { source: io::Error::from_raw_os_error(libc::ENOENT) };
        assert!(missing.to_string().contains("modprobe tun"), "{missing}");
        let denied = TapError::Open { source: io::Error::from_raw_os_error(libc::EPERM) };
        assert!(denied.to_string().contains("CAP_NET_ADMIN"), "{denied}");
    }
}
