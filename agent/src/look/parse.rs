//! Texts of the kernel and of the guest's own programs, read without I/O. Whatever a text holds, what is made of it
//! is bounded; what cannot be read is left out.

use drover_schemas::guest::InterfaceUse;

/// Milliseconds per unit of CPU time in `/proc`: USER_HZ is 100 on every Linux.
pub const TICK_MS: u64 = 10;

/// The most lines that are taken of any text.
pub const MAX_LINES: usize = 4096;
/// The most characters of a name that somebody else chose.
pub const MAX_NAME: usize = 256;

/// Cuts a text that somebody else chose.
#[must_use]
pub fn short(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// What `/proc/meminfo` says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs can still have.
    pub available: u64,
    /// All swap.
    pub swap_total: u64,
    /// Unused swap.
    pub swap_free: u64,
}

/// `/proc/meminfo`
#[must_use]
pub fn meminfo(text: &str) -> Memory {
    let mut memory = Memory::default();
    for line in text.lines().take(MAX_LINES) {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let slot = match key {
            "MemTotal" => &mut memory.total,
            "MemAvailable" => &mut memory.available,
            "SwapTotal" => &mut memory.swap_total,
            "SwapFree" => &mut memory.swap_free,
            _ => continue,
        };
        let kib = rest.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        *slot = kib.unwrap_or(0).saturating_mul(1024);
    }
    memory
}

/// `/proc/loadavg`: the averages of 1, 5 and 15 minutes.
#[must_use]
pub fn load(text: &str) -> [f64; 3] {
    let mut load = [0.0; 3];
    for (slot, word) in load.iter_mut().zip(text.split_whitespace()) {
        *slot = word.parse().ok().filter(|load: &f64| load.is_finite() && *load >= 0.0).unwrap_or(0.0);
    }
    load
}

/// Busy and total CPU time of `/proc/stat`, in milliseconds. Guest time is in user time already; idle and iowait are
/// not busy.
#[must_use]
pub fn cpu(text: &str) -> (u64, u64) {
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("cpu ")) else { return (0, 0) };
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|word| word.parse().unwrap_or(0)).collect();
    let sum =
        |ticks: &mut dyn Iterator<Item = &u64>| ticks.fold(0, |sum: u64, tick| sum.saturating_add(*tick));
    let total = sum(&mut ticks.iter());
    let idle = sum(&mut ticks.iter().skip(3).take(2));
    (total.saturating_sub(idle).saturating_mul(TICK_MS), total.saturating_mul(TICK_MS))
}

/// When the kernel booted, by `/proc/stat`, in milliseconds since the Unix epoch.
#[must_use]
pub fn boot_unix_ms(text: &str) -> u64 {
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    seconds.unwrap_or(0).saturating_mul(1000)
}

/// What a distribution calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Release {
    /// `debian`
    pub id: String,
    /// `12`
    pub version: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub name: String,
}

/// `/etc/os-release`
#[must_use]
pub fn os_release(text: &str) -> Release {
    let mut release = Release { id: "linux".into(), name: "Linux".into(), ..Release::default() };
    for line in text.lines().take(MAX_LINES) {
        match line.split_once('=') {
            Some(("ID", value)) => release.id = unquote(value),
            Some(("VERSION_ID", value)) => release.version = unquote(value),
            Some(("PRETTY_NAME", value)) => release.name = unquote(value),
            _ => {}
        }
    }
    release
}

/// A value as a shell would read it.
fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = match value.as_bytes() {
        [b'\'', .., b'\''] | [b'"', .., b'"'] => &value[1..value.len() - 1],
        _ => value,
    };
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if !value.starts_with('\'') => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    short(&text, MAX_NAME)
}

/// What the first CPU of `/proc/cpuinfo` calls itself; empty where the kernel does not say.
#[must_use]
pub fn cpu_model(text: &str) -> String {
    let field = |line: &str| {
        let (key, value) = line.split_once(':')?;
        matches!(key.trim(), "model name" | "Model" | "uarch").then(|| short(value.trim(), MAX_NAME))
    };
    text.lines().take(MAX_LINES).find_map(field).unwrap_or_default()
}

/// How many a list of the kernel names, such as `0-3,8`.
#[must_use]
pub fn count(list: &str) -> u32 {
    let part = |part: &str| -> Option<u32> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(part).fold(0, u32::saturating_add)
}

/// `/proc/net/dev`, without loopback; at most `most`.
#[must_use]
pub fn interfaces(text: &str, most: usize) -> Vec<InterfaceUse> {
    let line = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let name = short(name.trim(), MAX_NAME);
        (name != "lo" && numbers.len() >= 9).then(|| InterfaceUse {
            name,
            received_bytes: numbers[0],
            sent_bytes: numbers[8],
        })
    };
    text.lines().filter_map(line).take(most).collect()
}

/// What is used of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// The name, which the process may have chosen.
    pub name: String,
    /// The kernel's letter.
    pub state: char,
    /// The parent.
    pub ppid: u32,
    /// CPU time, in ticks.
    pub ticks: u64,
    /// Threads.
    pub threads: u32,
    /// When it began, in ticks since boot.
    pub started: u64,
    /// Resident pages.
    pub pages: u64,
}

/// `/proc/PID/stat`. The name in it may hold anything, parentheses and spaces included, so what follows it is found
/// from the end.
#[must_use]
pub fn stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let name = short(before.split_once('(')?.1, MAX_NAME);
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Those of the manual page from number 4 on.
    let numbers: Vec<&str> = fields.take(21).collect();
    let number = |n: usize| numbers.get(n - 4).and_then(|word| word.parse::<u64>().ok());
    // A thread of the kernel may have a negative number here.
    let narrow = |n: usize| number(n).and_then(|value| u32::try_from(value).ok());
    Some(Stat {
        name,
        state,
        ppid: narrow(4)?,
        ticks: number(14)?.saturating_add(number(15)?),
        threads: narrow(20)?,
        started: number(22)?,
        pages: number(24).unwrap_or(0),
    })
}

/// The real user of `/proc/PID/status`.
#[must_use]
pub fn uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `/proc/PID/cmdline`, of which at most `most` bytes are kept.
#[must_use]
pub fn arguments(bytes: &[u8], most: usize) -> Vec<String> {
    let cut = &bytes[..bytes.len().min(most)];
    let cut = cut.strip_suffix(&[0]).unwrap_or(cut);
    if cut.is_empty() {
        return Vec::new();
    }
    cut.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// `systemctl list-units --plain --no-legend`: the first word of each line is the unit's name, which has a dot and no
/// spaces; some versions put a mark before it all the same.
#[must_use]
pub fn failed_units(text: &str, most: usize) -> Vec<String> {
    let line = |line: &str| {
        let name = line.split_whitespace().take(2).find(|word| word.contains('.'))?;
        Some(short(name, MAX_NAME))
    };
    text.lines().filter_map(line).take(most).collect()
}

/// `rc-status --crashed`: a name on each line.
#[must_use]
pub fn crashed_services(text: &str, most: usize) -> Vec<String> {
    let names = text.lines().map(str::trim).filter(|name| !name.is_empty() && !name.contains(' '));
    names.map(|name| short(name, MAX_NAME)).take(most).collect()
}

#[cfg(test)]
mod tests;
