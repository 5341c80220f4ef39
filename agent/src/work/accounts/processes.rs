//! The processes of a user.

use std::fs;
use std::time::{Duration, Instant};

use drover_schemas::ErrorBody;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{conflict, guest_error, pause};

/// How long the kernel may take to end processes that were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a process has to do with a user: by any of its four numbers. One that has ended is nobody's.
fn is_of(status: &str, uid: u32) -> bool {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let ids = value("Uid:").split_ascii_whitespace();
    !value("State:").trim_start().starts_with('Z')
        && ids.filter_map(|id| id.parse().ok()).any(|id: u32| id == uid)
}

/// The numbers of a user's processes.
pub(super) fn of(uid: u32) -> Result<Vec<i32>, ErrorBody> {
    let entries = fs::read_dir("/proc").map_err(|e| guest_error(format!("cannot read /proc: {e}")))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter(|pid| is_theirs(*pid, uid)).collect())
}

fn is_theirs(pid: i32, uid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_of(&status, uid))
}

/// Kills them until there are none, if that is wanted; says how many there were.
pub(super) fn kill(uid: u32, force: bool) -> Result<u32, ErrorBody> {
    let (mut killed, until) = (std::collections::BTreeSet::new(), Instant::now() + PATIENCE);
    if !force {
        return Ok(0);
    }
    loop {
        let all = of(uid)?;
        if all.is_empty() {
            break;
        }
        if Instant::now() > until {
            return Err(conflict(format!("process {} of user {uid} does not end", all[0]), "processes"));
        }
        for pid in all {
            // By a handle: the number may be another process's by now.
            let Some(Ok(handle)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
                continue;
            };
            if is_theirs(pid, uid) && pidfd_send_signal(handle, Signal::KILL).is_ok() {
                killed.insert(pid);
            }
        }
        pause();
    }
    Ok(u32::try_from(killed.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_each_of_its_users() {
        let status = "Name:\tx\nState:\tS (sleeping)\nUid:\t0\t1000\t0\t0\n";
        assert!(is_of(status, 1000) && is_of(status, 0) && !is_of(status, 1));
        assert!(!is_of(&status.replace("S (s", "Z (z"), 1000) && !is_of("", 0));
    }
}
