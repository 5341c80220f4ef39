//! Every process below one, however it was started: found in `/proc`, signalled by handle.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::log;

/// How long processes may take to die of SIGKILL: those in an uninterruptible wait take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// State and parent, from the text of `/proc/PID/stat`. The name in it may hold anything.
fn parse(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

fn look(pid: i32) -> Option<(char, i32)> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// All that live below `root`, which is left out.
fn below(root: i32, all: &[(i32, char, i32)]) -> Vec<i32> {
    let mut family = HashSet::from([root]);
    // A parent may stand after its child: numbers begin again.
    loop {
        let before = family.len();
        family.extend(
            all.iter().filter(|(_, _, parent)| family.contains(parent)).map(|p| p.0).collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    let lives = |&&(pid, state, _): &&(i32, char, i32)| pid != root && state != 'Z' && family.contains(&pid);
    all.iter().filter(lives).map(|p| p.0).collect()
}

fn family(root: i32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<_> = pids.filter_map(|pid| look(pid).map(|(state, parent)| (pid, state, parent))).collect();
    below(root, &all)
}

/// Signals a process if it is still the one that was seen.
fn send(pid: i32, family: &HashSet<i32>, signal: Signal) {
    let known = rustix::process::Pid::from_raw(pid);
    let handle =
        known.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    // Looked at again with the handle in hand, so that it is no later owner of the number.
    if look(pid).is_none_or(|(_, parent)| !family.contains(&parent)) {
        return;
    }
    let sent = match (handle, rustix::process::Signal::from_named_raw(signal as i32)) {
        (Some(handle), Some(signal)) => {
            rustix::process::pidfd_send_signal(handle, signal).map_err(std::io::Error::from)
        }
        _ => nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(Into::into),
    };
    if let Err(error) = sent {
        log::debug(format_args!("cannot signal process {pid}: {error}"));
    }
}

/// Whether a process has children; also where the kernel does not tell.
pub(super) fn has_children(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .map_or(true, |children| !children.is_empty())
}

/// Signals every process below `root` once.
pub(super) fn signal(root: i32, signal: Signal) {
    let pids = family(root);
    let parents: HashSet<i32> = pids.iter().copied().chain([root]).collect();
    for pid in pids {
        send(pid, &parents, signal);
    }
}

/// Kills every process below `root`, those included that are started meanwhile.
pub(super) async fn kill(root: i32) {
    let (deadline, mut pause) = (Instant::now() + PATIENCE, Duration::from_millis(1));
    loop {
        let pids = family(root);
        if pids.is_empty() {
            return;
        }
        let parents: HashSet<i32> = pids.iter().copied().chain([root]).collect();
        // First none of them may make another.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &pids {
                send(*pid, &parents, signal);
            }
        }
        if Instant::now() >= deadline {
            log::warn(format_args!("{} processes of a command do not end: {pids:?}", pids.len()));
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_cannot_lie() {
        assert_eq!(parse("7 (a) Z 1 (b) S 42 7 7"), Some(('S', 42)));
        assert_eq!(parse("7 (sh) S"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn descendants_are_found_in_any_order_and_the_dead_are_not_counted() {
        let all = [(9, 'S', 12), (2, 'S', 1), (12, 'S', 5), (13, 'Z', 5), (14, 'R', 13), (5, 'S', 1)];
        assert_eq!(below(5, &all), [9, 12, 14]);
        assert_eq!(below(99, &all), [] as [i32; 0]);
    }
}
