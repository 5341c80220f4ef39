//! `processes`: what runs, a page of it. All processes are counted and weighed in a few bytes each; only those that
//! are listed are looked at whole.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::time::Instant;

use drover_schemas::guest::{
    MAX_FRAME, MAX_PROCESSES, MAX_SAMPLE_MS, PROCESSES, ProcessInfo, ProcessOrder, ProcessesRequest,
    ProcessesResult,
};
use drover_schemas::{ErrorBody, ErrorCode, codec};
use nix::time::{ClockId, clock_gettime};

use super::parse::{self, Stat, TICK_MS};
use super::read;
use crate::{account, facts};

/// The most processes that are weighed; further ones are only counted.
const MAX_WEIGHED: usize = 65_536;
/// How much of a process's arguments is told, in bytes.
const MAX_ARGUMENTS: usize = 1_024;
/// What of a frame is left for other than processes, in bytes.
const MARGIN: usize = 4 * 1024;

/// CPU times of all processes at one moment.
#[derive(Debug)]
pub(super) struct Times {
    at: Instant,
    /// By number: when it began, and CPU time, in ticks.
    ticks: HashMap<u32, (u64, u64)>,
}

/// What decides about a process's place in the list.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Weighed {
    pid: u32,
    started: u64,
    share: f64,
    pages: u64,
}

/// Says what of a request can never be carried out.
pub(super) fn check(request: &ProcessesRequest) -> Result<(), ErrorBody> {
    let refuse = |field: &str, most: u64| {
        let text = format!("{field} is at most {most}");
        Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field))
    };
    if request.sample_ms.is_some_and(|ms| ms > MAX_SAMPLE_MS) {
        return refuse("sample_ms", MAX_SAMPLE_MS);
    }
    if request.limit.is_some_and(|limit| limit > MAX_PROCESSES) {
        return refuse("limit", u64::from(MAX_PROCESSES));
    }
    Ok(())
}

fn pids() -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The text of a small file of a process, in a buffer that is used again and again.
fn small<'a>(pid: u32, file: &str, buffer: &'a mut Vec<u8>) -> Option<std::borrow::Cow<'a, str>> {
    buffer.clear();
    let file = File::open(format!("/proc/{pid}/{file}")).ok()?;
    file.take(4096).read_to_end(buffer).ok()?;
    Some(String::from_utf8_lossy(buffer))
}

pub(super) fn times() -> Times {
    let mut buffer = Vec::new();
    let at = Instant::now();
    let each = pids().take(MAX_WEIGHED).filter_map(|pid| {
        let stat = parse::stat(&small(pid, "stat", &mut buffer)?)?;
        Some((pid, (stat.started, stat.ticks)))
    });
    let ticks = each.collect();
    Times { at, ticks }
}

/// Milliseconds since the kernel booted, by the clock that counts when processes began.
fn since_boot_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        (t.tv_sec() as u64).saturating_mul(1000).saturating_add(t.tv_nsec() as u64 / 1_000_000)
    })
}

/// A share of one CPU in percent.
fn share(ticks: u64, over_ms: u64) -> f64 {
    let cpu_ms = ticks.saturating_mul(TICK_MS) as f64;
    (cpu_ms * 1000.0 / over_ms.max(TICK_MS) as f64).round() / 10.0
}

/// The share over a window if there is one. A process that began within it has all its time from there.
fn weigh(pid: u32, stat: &Stat, window: Option<(&Times, u64)>, now_ms: u64) -> Weighed {
    let share = match window {
        Some((before, window_ms)) => {
            let known = before.ticks.get(&pid).filter(|(started, _)| *started == stat.started);
            share(stat.ticks.saturating_sub(known.map_or(0, |(_, ticks)| *ticks)), window_ms)
        }
        None => share(stat.ticks, now_ms.saturating_sub(stat.started.saturating_mul(TICK_MS))),
    };
    Weighed { pid, started: stat.started, share, pages: stat.pages }
}

/// The first `limit` in order.
fn first(mut all: Vec<Weighed>, order: ProcessOrder, limit: usize) -> Vec<Weighed> {
    let compare = |a: &Weighed, b: &Weighed| {
        let by = match order {
            ProcessOrder::Cpu => b.share.total_cmp(&a.share),
            ProcessOrder::Memory => b.pages.cmp(&a.pages),
            ProcessOrder::Pid => std::cmp::Ordering::Equal,
        };
        by.then(a.pid.cmp(&b.pid))
    };
    if all.len() > limit {
        all.select_nth_unstable_by(limit, compare);
        all.truncate(limit);
    }
    all.sort_unstable_by(compare);
    all
}

pub(super) fn list(request: &ProcessesRequest, before: Option<&Times>) -> ProcessesResult {
    let limit = request.limit.unwrap_or(PROCESSES) as usize;
    let now_ms = since_boot_ms();
    let sampled_ms = before.map(|before| (before.at.elapsed().as_millis() as u64).max(1));
    let window = before.zip(sampled_ms);
    let mut buffer = Vec::new();
    let (mut all, mut total) = (Vec::new(), 0u32);
    for pid in pids() {
        total = total.saturating_add(1);
        if all.len() < MAX_WEIGHED
            && let Some(stat) = small(pid, "stat", &mut buffer).and_then(|text| parse::stat(&text))
        {
            all.push(weigh(pid, &stat, window, now_ms));
        }
    }
    let booted_ms = parse::boot_unix_ms(&read("/proc/stat"));
    // SAFETY: a call on an integer.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let chosen = first(all, request.sort, limit);
    let mut processes: Vec<ProcessInfo> =
        chosen.iter().filter_map(|one| whole(one, request.args, booted_ms, page, &mut buffer)).collect();
    name_users(&mut processes);
    fit(&mut processes, MAX_FRAME - MARGIN);
    ProcessesResult { unix_ms: facts::unix_ms(), total, sampled_ms, processes }
}

/// All of a process, unless it has ended.
fn whole(one: &Weighed, args: bool, booted_ms: u64, page: u64, buffer: &mut Vec<u8>) -> Option<ProcessInfo> {
    let stat = parse::stat(&small(one.pid, "stat", buffer)?).filter(|stat| stat.started == one.started)?;
    let uid = parse::uid(&small(one.pid, "status", buffer)?)?;
    let args = args.then(|| match small(one.pid, "cmdline", buffer) {
        Some(_) => parse::arguments(buffer, MAX_ARGUMENTS),
        None => Vec::new(),
    });
    Some(ProcessInfo {
        pid: one.pid,
        ppid: stat.ppid,
        uid,
        user: None,
        state: stat.state.to_string(),
        started_unix_ms: booted_ms.saturating_add(stat.started.saturating_mul(TICK_MS)),
        cpu_ms: stat.ticks.saturating_mul(TICK_MS),
        cpu_percent: one.share,
        memory_bytes: stat.pages.saturating_mul(page),
        threads: stat.threads,
        name: stat.name,
        args,
    })
}

fn name_users(processes: &mut [ProcessInfo]) {
    let uids: BTreeSet<u32> = processes.iter().map(|process| process.uid).collect();
    let names = account::names(&uids);
    for process in processes {
        process.user = names.get(&process.uid).cloned();
    }
}

/// Leaves those out that a reply has no room for, from the end.
fn fit(processes: &mut Vec<ProcessInfo>, room: usize) {
    let mut left = room;
    let whole = processes.iter().take_while(|process| {
        let length = codec::encode(process).map_or(usize::MAX, |bytes| bytes.len());
        let fits = length <= left;
        left = left.saturating_sub(length);
        fits
    });
    let whole = whole.count();
    processes.truncate(whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(pid: u32, share: f64, pages: u64) -> Weighed {
        Weighed { pid, started: 0, share, pages }
    }

    fn numbers(order: ProcessOrder, limit: usize) -> Vec<u32> {
        let all = vec![weighed(3, 1.0, 9), weighed(1, 50.0, 1), weighed(2, 1.0, 30), weighed(4, 0.0, 0)];
        first(all, order, limit).iter().map(|one| one.pid).collect()
    }

    #[test]
    fn the_first_are_chosen() {
        assert_eq!(numbers(ProcessOrder::Cpu, 9), [1, 2, 3, 4]);
        assert_eq!(numbers(ProcessOrder::Cpu, 2), [1, 2]);
        assert_eq!(numbers(ProcessOrder::Memory, 3), [2, 3, 1]);
        assert_eq!(numbers(ProcessOrder::Pid, 2), [1, 2]);
        assert_eq!(numbers(ProcessOrder::Pid, 0), [0; 0]);
    }

    #[test]
    fn a_share_is_of_the_window_or_of_all_its_time() {
        let stat = |started, ticks| Stat { started, ticks, ..Stat::default() };
        let before = Times { at: Instant::now(), ticks: HashMap::from([(7, (100, 1_000))]) };
        let window = Some((&before, 500));
        assert_eq!(weigh(7, &stat(100, 1_025), window, 0).share, 50.0);
        // Another process has the number by now, or it was not there before.
        assert_eq!(weigh(7, &stat(900, 5), window, 0).share, 10.0);
        assert_eq!(weigh(8, &stat(900, 100), window, 0).share, 200.0);
        assert_eq!(weigh(7, &stat(100, 50), None, 2_000).share, 50.0);
        // The clock may stand before its beginning.
        assert_eq!(weigh(7, &stat(100, 0), None, 0).share, 0.0);
    }

    #[test]
    fn a_reply_has_an_end() {
        let one = ProcessInfo { args: Some(vec!["x".repeat(1_000)]), ..ProcessInfo::default() };
        let mut processes = vec![one; 500];
        fit(&mut processes, 20_000);
        assert!((15..20).contains(&processes.len()), "{}", processes.len());
        let least =
            ProcessInfo { user: Some("x".repeat(32)), name: "x".repeat(15), ..ProcessInfo::default() };
        let mut processes = vec![least; MAX_PROCESSES as usize];
        fit(&mut processes, MAX_FRAME - MARGIN);
        assert_eq!(processes.len(), MAX_PROCESSES as usize);
    }

    #[test]
    fn this_process_is_listed() {
        let request = ProcessesRequest { sort: ProcessOrder::Pid, limit: Some(500), ..Default::default() };
        let listed = list(&request, None);
        let me = listed.processes.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(me.memory_bytes > 0 && me.threads > 0 && me.args.is_none());
        assert!(me.started_unix_ms <= listed.unix_ms + 2_000, "{me:?}");
        assert!(listed.total as usize >= listed.processes.len());
        let request = ProcessesRequest { args: true, ..request };
        let listed = list(&request, Some(&times()));
        let me = listed.processes.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(!me.args.as_ref().unwrap().is_empty() && listed.sampled_ms.is_some());
    }

    #[test]
    fn too_much_is_refused() {
        let window = ProcessesRequest { sample_ms: Some(MAX_SAMPLE_MS + 1), ..Default::default() };
        let many = ProcessesRequest { limit: Some(MAX_PROCESSES + 1), ..Default::default() };
        for request in [window, many] {
            assert_eq!(check(&request).unwrap_err().code, ErrorCode::InvalidArgument);
        }
        assert_eq!(check(&ProcessesRequest::default()), Ok(()));
    }
}
