//! In the VMM's process, before its program: a root of its own with nothing in it but what the record names,
//! a user of its own, and no way to more.
//!
//! Everything is made in a mount namespace that ends with the VMM, so there is nothing to take away. Each
//! step says what it was about when it fails; then the VMM does not start.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Gid, Uid};

use crate::record::{Confinement, VisiblePath};

/// What was tried, and why it failed.
type Failure = (String, io::Error);

fn at<T, E: Into<io::Error>>(what: impl Into<String>, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|error| (what.into(), error.into()))
}

/// Confines this process; `root` is the path of a directory that may be made.
pub fn enter(confinement: &Confinement, root: &Path) -> Result<(), Failure> {
    at("make a mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    let none = None::<&Path>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    at("keep mounts private", mount(none, Path::new("/"), none, private, none))?;
    // The VMM's user has to get through the directories that are made here.
    let mask = nix::sys::stat::umask(Mode::empty());
    make_dir(root)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("mode=0755,size=1m,nr_inodes=4k");
    at("mount its root", mount(Some("drover"), root, Some("tmpfs"), flags, options))?;
    for visible in &confinement.paths {
        show(root, visible)?;
    }
    for device in &confinement.devices {
        make_device(root, Path::new(device), confinement.uid)?;
    }
    mount_proc(root)?;
    make_dir(&root.join("tmp"))?;
    nix::sys::stat::umask(mask);
    change_root(root)?;
    drop_privileges(confinement.uid)
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    at(format!("make the directory {}", path.display()), made)
}

/// The path below the new root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn show(root: &Path, visible: &VisiblePath) -> Result<(), Failure> {
    let path = &visible.path;
    let what = || format!("show {}", path.display());
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => at(what(), found)?,
    };
    let target = below(root, path);
    if let Some(parent) = target.parent() {
        make_dir(parent)?;
    }
    if meta.is_symlink() {
        let leads = at(what(), fs::read_link(path))?;
        return match std::os::unix::fs::symlink(leads, &target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => at(what(), Err(error)),
            _ => Ok(()),
        };
    }
    if meta.is_dir() {
        make_dir(&target)?;
    } else if fs::symlink_metadata(&target).is_err() {
        at(what(), fs::File::create(&target))?;
    }
    let none = None::<&Path>;
    at(what(), mount(Some(path.as_path()), &target, none, MsFlags::MS_BIND, none))?;
    let how = if visible.writable { MsFlags::MS_NOEXEC } else { MsFlags::MS_RDONLY };
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | how;
    at(what(), mount(none, &target, none, flags, none))
}

/// A node of its own for the VMM's user, so that the host's may stay closed to it.
fn make_device(root: &Path, device: &Path, uid: u32) -> Result<(), Failure> {
    let what = || format!("make {}", device.display());
    let meta = match fs::metadata(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => at(what(), found)?,
    };
    if !meta.file_type().is_char_device() {
        return at(what(), Err(io::Error::from_raw_os_error(libc::ENODEV)));
    }
    let target = below(root, device);
    if let Some(parent) = target.parent() {
        make_dir(parent)?;
    }
    match mknod(&target, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, meta.rdev()) {
        Ok(()) => at(what(), std::os::unix::fs::chown(&target, Some(uid), Some(uid))),
        // In a container that may not make nodes the host's own has to do.
        Err(nix::Error::EPERM) => {
            at(what(), fs::File::create(&target))?;
            let none = None::<&Path>;
            at(what(), mount(Some(device), &target, none, MsFlags::MS_BIND, none))
        }
        Err(errno) => at(what(), Err(errno)),
    }
}

/// Its own processes only; kernels before 5.8 refuse the option and give it the host's view.
fn mount_proc(root: &Path) -> Result<(), Failure> {
    let target = root.join("proc");
    make_dir(&target)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if mount(Some("proc"), &target, Some("proc"), flags, Some("hidepid=invisible")).is_ok() {
        return Ok(());
    }
    let none = None::<&Path>;
    at("show /proc", mount(Some("/proc"), &target, none, MsFlags::MS_BIND, none))
}

fn change_root(root: &Path) -> Result<(), Failure> {
    at("enter its root", nix::unistd::chdir(root))?;
    // The old root is mounted over the new one and taken off at once: no directory is needed for it.
    at("change its root", nix::unistd::pivot_root(".", "."))?;
    at("leave the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    at("go to /", nix::unistd::chdir("/"))?;
    let none = None::<&Path>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    at("close its root", mount(none, Path::new("/"), none, flags, none))
}

fn drop_privileges(uid: u32) -> Result<(), Failure> {
    for capability in 0..=63 {
        // SAFETY: takes a capability from this process and touches no memory.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped == -1 {
            let error = io::Error::last_os_error();
            // Past the last one that the kernel knows.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return at(format!("drop capability {capability}"), Err(error));
        }
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    at("leave every group", nix::unistd::setgroups(&[]))?;
    at(format!("become group {uid}"), nix::unistd::setresgid(group, group, group))?;
    // From root to another user: every set of capabilities is empty afterwards.
    at(format!("become user {uid}"), nix::unistd::setresuid(user, user, user))?;
    at("give up new privileges", rustix::thread::set_no_new_privs(true))
}
