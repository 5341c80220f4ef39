//! Processes that the kernel killed for memory, from its messages.
//!
//! `/dev/kmsg` wakes its reader up when the kernel says something and at no other time; it tells of the guest's memory
//! and of each cgroup's, whatever cgroups there are, and says who was killed. `memory.events` needs a watch for each
//! cgroup and tells a count, `vmstat` has to be asked again and again.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::OOM_KILL;
use crate::emit::Events;
use crate::log;

/// Where the kernel's messages are read.
const KMSG: &str = "/dev/kmsg";
/// The longest record of the kernel.
const MAX_RECORD: usize = 8 * 1024;
/// Kills that are told of in one [`PERIOD`]; the rest is a number.
const TOLD: u32 = 20;
/// How long it takes until as many are told of again.
const PERIOD: Duration = Duration::from_secs(60);

/// Who was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kill {
    pid: u32,
    name: String,
    uid: Option<u32>,
    rss_bytes: u64,
    /// For the memory of a cgroup, not of the guest.
    cgroup: bool,
}

/// Tells of kills until the kernel says no more. `all`: of those of this boot too, before the agent was there.
///
/// # Errors
/// The kernel's messages cannot be read.
pub async fn watch(events: Arc<Events>, all: bool) -> io::Result<()> {
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(KMSG)?;
    file.seek(if all { SeekFrom::Start(0) } else { SeekFrom::End(0) })?;
    // SAFETY: the descriptor is open, and its owner keeps it so.
    let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?;
    let mut storm = Storm::default();
    loop {
        let mut ready = file.readable().await?;
        // On the stack only for as long as there is something to read.
        let mut record = [0; MAX_RECORD];
        loop {
            match file.get_ref().read(&mut record) {
                Ok(len) => {
                    if let Some(kill) = parse(&record[..len]) {
                        log::warn(format_args!("the kernel killed process {} for memory", kill.pid));
                        if let Some(more) = storm.take(Instant::now()) {
                            events.say(OOM_KILL, told(&kill, more));
                        }
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    // What was overwritten before it was read, and what is longer than a record.
                    Some(libc::EPIPE | libc::EINTR | libc::EINVAL) => {}
                    _ => return Err(error),
                },
            }
        }
        ready.clear_ready();
    }
}

/// A guest that is out of memory for good tells of it now and then.
#[derive(Debug, Default)]
struct Storm {
    began: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Storm {
    /// How many were not told of before this one, if this one is.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= PERIOD) {
            (self.began, self.told) = (Some(now), 0);
        }
        if self.told >= TOLD {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

fn told(kill: &Kill, untold: u64) -> Value {
    let mut data = json!({
        "pid": kill.pid,
        "name": kill.name,
        "rss_bytes": kill.rss_bytes,
        "of": if kill.cgroup { "cgroup" } else { "guest" },
    });
    if let Some(uid) = kill.uid {
        data["uid"] = uid.into();
    }
    if untold > 0 {
        data["untold_before"] = untold.into();
    }
    data
}

/// Reads a record of the kernel, as in `3,845,61350114,-;Out of memory: Killed process 217 (tail) total-vm:…`. What
/// programs write there has another facility.
fn parse(record: &[u8]) -> Option<Kill> {
    let text = String::from_utf8_lossy(record);
    let (prefix, rest) = text.split_once(';')?;
    let level: u32 = prefix.split(',').next()?.parse().ok()?;
    let message = rest.lines().next()?;
    if level > 7 {
        return None;
    }
    let (before, after) = message.split_once("illed process ")?;
    let (pid, after) = after.split_once(" (")?;
    // The name may hold anything, so its end is looked for from behind.
    let (name, facts) = after.rsplit_once(") total-vm:").or_else(|| after.rsplit_once("), "))?;
    let value = |key: &str| {
        let (_, value) = facts.split_once(key)?;
        value.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let rss_kib: u64 = ["anon-rss:", "file-rss:", "shmem-rss:"]
        .iter()
        .filter_map(|key| value(key))
        .fold(0, u64::saturating_add);
    Some(Kill {
        pid: pid.parse().ok()?,
        name: name.chars().filter(|c| !c.is_control()).take(64).collect(),
        uid: value("UID:").or_else(|| value("UID ")).and_then(|uid| u32::try_from(uid).ok()),
        rss_bytes: rss_kib.saturating_mul(1024).min(1 << 53),
        cgroup: before.starts_with("Memory cgroup"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: &str = "3,845,61350114,-;Out of memory: Killed process 217 (tail) total-vm:178604kB, anon-rss:176128kB, \
                         file-rss:4kB, shmem-rss:0kB, UID:1000 pgtables:384kB oom_score_adj:0\n SUBSYSTEM=x\n";

    #[test]
    fn messages_of_several_kernels_are_read() {
        let kill = parse(GUEST.as_bytes()).unwrap();
        let rss_bytes = (176_128 + 4) * 1024;
        assert_eq!(kill, Kill { pid: 217, name: "tail".into(), uid: Some(1000), rss_bytes, cgroup: false });
        let cgroup = "3,9,1,-;Memory cgroup out of memory: Killed process 9 (a) b) (c) total-vm:1kB, anon-rss:2kB, \
                      file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0";
        let kill = parse(cgroup.as_bytes()).unwrap();
        assert_eq!((kill.name.as_str(), kill.cgroup, kill.uid), ("a) b) (c", true, Some(0)));
        let old = "3,9,1,-;Killed process 33 (java), UID 48, total-vm:9kB, anon-rss:8kB, file-rss:0kB, shmem-rss:0kB";
        let kill = parse(old.as_bytes()).unwrap();
        assert_eq!((kill.pid, kill.uid, kill.rss_bytes), (33, Some(48), 8192));
        for other in [
            "4,844,61350000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task=tail,pid=217,uid=1000",
            "6,1,1,-;eth0: link becomes ready",
            "3,845,1,-;Out of memory: Killed process x (tail) total-vm:1kB",
            "",
            ";",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
        // Written by a program.
        assert_eq!(parse(GUEST.replace("3,845", "11,845").as_bytes()), None);
    }

    #[test]
    fn a_storm_of_kills_is_told_as_a_number() {
        let (mut storm, start) = (Storm::default(), Instant::now());
        assert_eq!((0..100).filter(|_| storm.take(start).is_some()).count(), TOLD as usize);
        assert_eq!(storm.take(start + PERIOD), Some(80));
        assert_eq!(told(&parse(GUEST.as_bytes()).unwrap(), 80)["untold_before"], 80);
    }

    proptest! {
        #[test]
        fn random_records_are_survived(text in "[0-9]{0,3},;?.{0,60}(Killed process )?[0-9]{0,12} \\(.{0,20}\\) total-vm:.{0,40}") {
            let _ = parse(text.as_bytes());
        }
    }
}
