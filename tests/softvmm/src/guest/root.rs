//! The private root of a guest of processes.
//!
//! A tmpfs in the guest's own mount namespace: nothing of it exists outside, so nothing of it can be
//! left behind. The host's programs and libraries are seen read-only.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};

/// Where the agent is, inside.
pub const AGENT: &str = "/sbin/drover-agent";
/// The folder whose `vsock-N.sock` are the guest's vsock ports.
pub const VSOCK_DIR: &str = "run";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// A step of making the root that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path:?}")]
pub struct RootError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError + use<> {
    let path = path.to_owned();
    move |source| RootError { what, path, source }
}

/// Makes the root and moves into it.
///
/// # Errors
/// The step that failed; the caller ends, and the namespace with it.
pub fn enter(agent: &Path, hostname: &str, memory_bytes: u64) -> Result<(), RootError> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|e| failed("make private", Path::new("/"))(e.into()))?;
    // Any directory will do: what it hides is hidden from this namespace only.
    let base = Path::new("/tmp");
    let agent_file = fs::File::open(agent).map_err(failed("open", agent))?;
    // As much as its files could take anyway: they lie in its memory.
    let options = format!("mode=755,size={}", memory_bytes.max(1 << 30));
    mount(Some("softvmm"), base, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options.as_str()))
        .map_err(|e| failed("mount", base)(e.into()))?;
    for dir in ["proc", "dev", "tmp", "run", "root", "etc", "sbin", "var", "var/tmp", "mnt"] {
        let path = base.join(dir);
        fs::create_dir(&path).map_err(failed("make", &path))?;
        // As on any system, for its users: whatever the mask of this process is.
        let mode = match dir {
            "tmp" | "var/tmp" => 0o1777,
            "root" => 0o700,
            _ => 0o755,
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("open", &path))?;
    }
    for dir in ["usr", "bin", "lib", "lib64"] {
        programs(Path::new("/").join(dir).as_path(), &base.join(dir))?;
    }
    let target = base.join(AGENT.trim_start_matches('/'));
    fs::write(&target, "").map_err(failed("make", &target))?;
    // By descriptor: the agent may lie below the directory that the tmpfs now hides.
    use std::os::fd::AsRawFd;
    let source = PathBuf::from(format!("/proc/self/fd/{}", agent_file.as_raw_fd()));
    bind(&source, &target)?;
    let _ = bind(Path::new("/etc/alternatives"), &base.join("etc/alternatives"));
    files(base, hostname)?;
    let proc = base.join("proc");
    mount(
        Some("proc"),
        &proc,
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        none,
    )
    .map_err(|e| failed("mount", &proc)(e.into()))?;
    devices(base)?;
    chdir(base).map_err(|e| failed("enter", base)(e.into()))?;
    pivot_root(".", ".").map_err(|e| failed("pivot to", base)(e.into()))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|e| failed("leave", Path::new("/"))(e.into()))?;
    chdir("/").map_err(|e| failed("enter", Path::new("/"))(e.into()))
}

fn programs(host: &Path, here: &Path) -> Result<(), RootError> {
    match fs::read_link(host) {
        Ok(to) => symlink(to, here).map_err(failed("link", here)),
        Err(_) if host.is_dir() => {
            fs::create_dir(here).map_err(failed("make", here))?;
            bind(host, here)?;
            read_only(here)
        }
        Err(_) => Ok(()),
    }
}

fn bind(from: &Path, to: &Path) -> Result<(), RootError> {
    let none: Option<&str> = None;
    if from.is_dir() && !to.exists() {
        fs::create_dir(to).map_err(failed("make", to))?;
    }
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(|e| failed("bind", to)(e.into()))
}

fn read_only(path: &Path) -> Result<(), RootError> {
    // In a user namespace the flags of the original are locked: they must be named again.
    let held = statvfs(path).map_err(|e| failed("look at", path)(e.into()))?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (held_flag, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if held.contains(held_flag) {
            flags |= flag;
        }
    }
    let none: Option<&str> = None;
    mount(none, path, none, flags, none).map_err(|e| failed("make read-only", path)(e.into()))
}

fn files(base: &Path, hostname: &str) -> Result<(), RootError> {
    let write = |name: &str, text: &str| {
        let path = base.join(name);
        fs::write(&path, text).map_err(failed("write", &path))
    };
    write("etc/passwd", PASSWD)?;
    write("etc/group", GROUP)?;
    write("etc/hostname", &format!("{hostname}\n"))?;
    write("etc/hosts", "127.0.0.1 localhost\n")?;
    write("etc/os-release", "ID=softvmm\nNAME=\"softvmm\"\nPRETTY_NAME=\"softvmm guest of processes\"\n")
}

fn devices(base: &Path) -> Result<(), RootError> {
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let (host, here) = (Path::new("/dev").join(name), base.join("dev").join(name));
        // A VMM that is confined has few devices, and its guest has no more.
        if !host.exists() {
            continue;
        }
        fs::write(&here, "").map_err(failed("make", &here))?;
        bind(&host, &here)?;
    }
    let pts = base.join("dev/pts");
    fs::create_dir(&pts).map_err(failed("make", &pts))?;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(Some("devpts"), &pts, Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, options)
        .map_err(|e| failed("mount", &pts)(e.into()))?;
    for (name, to) in [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1")] {
        let here = base.join("dev").join(name);
        symlink(to, &here).map_err(failed("link", &here))?;
    }
    let shm = base.join("dev/shm");
    fs::create_dir(&shm).map_err(failed("make", &shm))
}
