//! The guest's file systems: which there are, held by descriptor, frozen and thawed.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use drover_schemas::guest::MAX_FROZEN;
use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::{Mode, OFlags};

use super::guest_error;
use super::mounts::{self, Mount, Refusal, Target};

/// The most that is read of the list of mounts.
const MAX_MOUNTINFO: u64 = 4 << 20;

mod ioctls {
    nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);

    /// Which part of a file system is trimmed; the kernel puts in `len` how much it was.
    #[repr(C)]
    pub struct Range {
        pub start: u64,
        pub len: u64,
        pub minlen: u64,
    }
    nix::ioctl_readwrite!(fitrim, b'X', 121, Range);
}

fn read_mountinfo() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open("/proc/self/mountinfo")?.take(MAX_MOUNTINFO).read_to_end(&mut text)?;
    Ok(text)
}

/// The file that a loop device is made of.
fn backing(dev: (u32, u32)) -> Option<PathBuf> {
    let path = format!("/sys/dev/block/{}:{}/loop/backing_file", dev.0, dev.1);
    let text = std::fs::read_to_string(path).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

/// The file systems of this guest, chosen by where they are mounted.
pub(super) fn choose(wanted: Option<&[String]>) -> Result<mounts::Chosen, ErrorBody> {
    let text =
        read_mountinfo().map_err(|e| guest_error(format!("the guest's mounts cannot be read: {e}")))?;
    let chosen = mounts::choose(&mounts::parse(&text), wanted, backing).map_err(|refusal| match refusal {
        Refusal::NotMounted(name) => {
            let text = format!("nothing is mounted at {name:?}; `guest.health` lists what is");
            ErrorBody::new(ErrorCode::NotFound, text).with("mount", name)
        }
        Refusal::NotLocal(name) => {
            let text = format!("{name:?} is no file system on a disk of the guest that can be written");
            ErrorBody::new(ErrorCode::InvalidArgument, text).with("mount", name)
        }
    })?;
    if chosen.targets.len() > MAX_FROZEN {
        let text = format!("the guest has {} file systems; name at most {MAX_FROZEN}", chosen.targets.len());
        return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text));
    }
    Ok(chosen)
}

/// Opens a file system by one of its mounts that no other mount hides.
pub(super) fn hold(target: &Target) -> Result<(OwnedFd, Mount), String> {
    let mut why = "another mount hides it".to_owned();
    for mount in &target.mounts {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::open(&mount.point, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(errno) => {
                why = format!("it cannot be opened: {}", io::Error::from(errno));
                continue;
            }
        };
        let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        if id.and_then(|id| id.trim().parse().ok()) == Some(mount.id) {
            return Ok((fd, mount.clone()));
        }
    }
    Err(why)
}

/// Lets a file system stand still.
pub(super) fn freeze(fd: &OwnedFd) -> nix::Result<()> {
    let mut nothing = 0;
    // SAFETY: the descriptor is open and the argument is an int, as the call wants it.
    unsafe { ioctls::fifreeze(fd.as_raw_fd(), &raw mut nothing) }.map(drop)
}

/// Lets it go on.
pub(super) fn thaw(fd: &OwnedFd) -> nix::Result<()> {
    let mut nothing = 0;
    // SAFETY: as in `freeze`.
    unsafe { ioctls::fithaw(fd.as_raw_fd(), &raw mut nothing) }.map(drop)
}

/// Tells its disk of all unused blocks; answers how many bytes that were.
pub(super) fn trim(fd: &OwnedFd) -> nix::Result<u64> {
    let mut range = ioctls::Range { start: 0, len: u64::MAX, minlen: 0 };
    // SAFETY: the descriptor is open and the range is one, as the call wants it.
    unsafe { ioctls::fitrim(fd.as_raw_fd(), &raw mut range) }.map(|_| range.len)
}
