//! Programs of the guest that are told before its file systems are frozen and after they were thawed.
//!
//! They lie in one folder, which belongs to root alone, as they do; they run as root in the order of their names with
//! the one argument `freeze`, and later in the opposite order with `thaw`. Each has a deadline.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drover_schemas::{ErrorBody, ErrorCode};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::account;

/// How many there may be.
const MAX_HOOKS: usize = 32;
/// How much of what one says is told.
const MAX_SAID: usize = 512;
/// How often one is looked at where the kernel cannot tell of its end.
const LOOK: Duration = Duration::from_millis(20);

/// The programs of one folder.
#[derive(Debug)]
pub(super) struct Hooks {
    programs: Vec<PathBuf>,
    deadline: Duration,
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether others than root could have put it there.
fn is_roots(path: &Path) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    Ok(!meta.is_symlink() && account::is_theirs_alone(&meta, &[nix::unistd::geteuid().as_raw()]))
}

impl Hooks {
    /// Those of a folder; none if it is not there. What editors and packages leave beside them is passed over.
    ///
    /// # Errors
    /// `permission_denied` if others than root may write there: what they put there must not run as root.
    pub(super) fn find(dir: &Path, deadline: Duration) -> Result<Self, ErrorBody> {
        let broken = |error: &io::Error| {
            let text = format!("the programs of {} cannot be read: {error}", dir.display());
            ErrorBody::new(ErrorCode::GuestError, text)
        };
        let mut programs = Vec::new();
        match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(broken(&error)),
            Ok(entries) => {
                check(dir).map_err(|e| broken(&e))??;
                for entry in entries {
                    let path = entry.map_err(|e| broken(&e))?.path();
                    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                    let mode = fs::metadata(&path).map_err(|e| broken(&e))?;
                    if !name(&path).chars().all(plain)
                        || !mode.is_file()
                        || mode.permissions().mode() & 0o100 == 0
                    {
                        continue;
                    }
                    check(&path).map_err(|e| broken(&e))??;
                    programs.push(path);
                }
            }
        }
        if programs.len() > MAX_HOOKS {
            let text =
                format!("{} holds {} programs; {MAX_HOOKS} are the most", dir.display(), programs.len());
            return Err(ErrorBody::new(ErrorCode::ResourceExhausted, text));
        }
        programs.sort();
        Ok(Self { programs, deadline })
    }

    /// Tells each one; at the first that fails, those that were told are told that it is over.
    ///
    /// # Errors
    /// What the one that failed said.
    pub(super) fn freeze(&mut self, mut go_on: impl FnMut() -> bool) -> Result<Vec<String>, ErrorBody> {
        for at in 0..self.programs.len() {
            let told = match go_on() {
                true => run(&self.programs[at], "freeze", self.deadline),
                false => Err("was not told: the freeze was given up".to_owned()),
            };
            if let Err(why) = told {
                let path = &self.programs[at];
                let text = format!("{} {why}; nothing was frozen", path.display());
                let error = ErrorBody::new(ErrorCode::GuestError, text).with("hook", name(path));
                // One that failed may have begun.
                self.programs.truncate(at + 1);
                self.thaw();
                return Err(error);
            }
        }
        Ok(self.programs.iter().map(|path| name(path)).collect())
    }

    /// Tells each one that it is over; answers who failed.
    pub(super) fn thaw(&mut self) -> Vec<String> {
        let told = std::mem::take(&mut self.programs);
        let told = told.iter().rev().map(|path| (path, run(path, "thaw", self.deadline)));
        told.filter_map(|(path, said)| said.err().map(|why| format!("{} {why}", name(path)))).collect()
    }
}

fn check(path: &Path) -> io::Result<Result<(), ErrorBody>> {
    if is_roots(path)? {
        return Ok(Ok(()));
    }
    let text = format!(
        "{} is a link, or others than root may write it, so it is not run; chown it to root and chmod go-w",
        path.display()
    );
    Ok(Err(ErrorBody::new(ErrorCode::PermissionDenied, text)))
}

/// Runs one. Says why it failed, with the beginning of what it wrote to its standard error.
fn run(path: &Path, word: &str, limit: Duration) -> Result<(), String> {
    let mut command = Command::new(path);
    command.arg(word).env_clear().env("PATH", super::PATH).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: system calls on integers, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Its parent ignores these.
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|e| format!("cannot be run: {e}"))?;
    let deadline = Instant::now() + limit;
    let mut said = Vec::new();
    let ended = wait(&mut child, deadline, &mut said);
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    let with = |why: String| if said.is_empty() { why } else { format!("{why}: {said}") };
    match ended {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(with(format!("failed ({status})"))),
        Ok(None) => Err(with(format!("did not end within {} s and was killed", limit.as_secs_f64()))),
        Err(error) => Err(format!("cannot be waited for: {error}")),
    }
}

fn wait(
    child: &mut Child,
    deadline: Instant,
    said: &mut Vec<u8>,
) -> io::Result<Option<std::process::ExitStatus>> {
    let group = Pid::from_raw(child.id().cast_signed());
    let handle = rustix::process::Pid::from_raw(group.as_raw())
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut stderr = child.stderr.take();
    loop {
        if let Some(status) = child.try_wait()? {
            // What it said at last. What it left in the background may hold the pipe open.
            if let Some(pipe) = &mut stderr {
                rustix::io::ioctl_fionbio(&*pipe, true)?;
                hear(pipe, said);
            }
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // With all that it started and that did not leave its group.
            let _ = killpg(group, Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        let left = if handle.is_some() { left } else { left.min(LOOK) };
        let mut fds = Vec::with_capacity(2);
        if let Some(stderr) = &stderr {
            fds.push(PollFd::new(stderr, PollFlags::IN));
        }
        if let Some(handle) = &handle {
            fds.push(PollFd::new(handle, PollFlags::IN));
        }
        let time = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let speaks = stderr.is_some() && !fds[0].revents().is_empty();
        if let (true, Some(pipe)) = (speaks, &mut stderr) {
            // The pipe has something or is at its end, so this does not wait.
            let count = hear(pipe, said);
            if count == 0 {
                stderr = None;
            }
        }
    }
}

/// Reads once, and keeps the beginning.
fn hear(pipe: &mut impl io::Read, said: &mut Vec<u8>) -> usize {
    let mut part = [0; 1024];
    let count = pipe.read(&mut part).unwrap_or(0);
    let room = MAX_SAID.saturating_sub(said.len());
    said.extend_from_slice(&part[..count.min(room)]);
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn write(dir: &Path, name: &str, mode: u32, script: &str) {
        // By another process: a file that is open for writing cannot be run, and a test beside this one may be just
        // about to start something with all that is open here.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod $3 \"$2\"";
        let (path, mode) = (dir.join(name), format!("{mode:o}"));
        let mut command = Command::new("sh");
        command.args(["-c", write, "sh", script]).arg(path).arg(mode);
        assert!(command.status().unwrap().success());
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn programs_are_told_in_order_and_back() {
        let dir = folder();
        let log = dir.path().join("log.txt");
        for name in ["20-b", "10-a"] {
            write(dir.path(), name, 0o755, &format!("echo {name} $1 >> {}", log.display()));
        }
        for (name, mode) in [("README", 0o644), ("10-a.dpkg-old", 0o755)] {
            write(dir.path(), name, mode, "exit 1");
        }
        let mut hooks = Hooks::find(dir.path(), LIMIT).unwrap();
        assert_eq!(hooks.freeze(|| true).unwrap(), ["10-a", "20-b"]);
        assert_eq!(hooks.thaw(), Vec::<String>::new());
        let told = fs::read_to_string(log).unwrap();
        assert_eq!(told, "10-a freeze\n20-b freeze\n20-b thaw\n10-a thaw\n");
        assert!(Hooks::find(&dir.path().join("nowhere"), LIMIT).unwrap().programs.is_empty());
    }

    #[test]
    fn one_that_fails_ends_it_and_those_before_are_told() {
        let dir = folder();
        let log = dir.path().join("log.txt");
        write(dir.path(), "a", 0o755, &format!("echo $1 >> {}", log.display()));
        write(dir.path(), "b", 0o755, "[ $1 = thaw ] || { echo no room >&2; exit 3; }");
        write(dir.path(), "c", 0o755, "exit 0");
        let mut hooks = Hooks::find(dir.path(), LIMIT).unwrap();
        let error = hooks.freeze(|| true).unwrap_err();
        assert_eq!(error.code, ErrorCode::GuestError);
        assert!(error.message.contains("no room") && error.message.contains("exit status: 3"), "{error:?}");
        assert_eq!(fs::read_to_string(log).unwrap(), "freeze\nthaw\n");
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_what_it_started() {
        let dir = folder();
        write(dir.path(), "a", 0o755, "trap '' TERM; sleep 1000 & yes >&2");
        let began = Instant::now();
        let mut hooks = Hooks::find(dir.path(), Duration::from_millis(300)).unwrap();
        let error = hooks.freeze(|| true).unwrap_err();
        assert!(error.message.contains("was killed: y"), "{error:?}");
        assert!(error.message.len() < 1000 && began.elapsed() < LIMIT);
    }

    #[test]
    fn what_others_may_write_is_not_run() {
        let dir = folder();
        write(dir.path(), "a", 0o777, "exit 0");
        let refused = |dir: &Path| Hooks::find(dir, LIMIT).unwrap_err().code;
        assert_eq!(refused(dir.path()), ErrorCode::PermissionDenied);
        let dir = folder();
        write(dir.path(), "a", 0o755, "exit 0");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o775)).unwrap();
        assert_eq!(refused(dir.path()), ErrorCode::PermissionDenied);
        // Nor what a link leads to.
        let links = folder();
        std::os::unix::fs::symlink("/bin/true", links.path().join("a")).unwrap();
        assert_eq!(refused(links.path()), ErrorCode::PermissionDenied);
    }
}
