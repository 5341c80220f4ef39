//! What is known of this guest and this boot.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use drover_schemas::guest::{AgentHello, EVENTS, GuestKind, MAX_STREAMS, verb};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::release::Release;

/// The window of bytes from the host, per stream.
pub const WINDOW: u64 = 256 * 1024;
/// How much of it the host may use before the first credit frame.
pub const FIRST_CREDIT: u64 = 64 * 1024;

/// Set to `process` where the agent runs as a process of the host's kernel.
pub const ENV_GUEST: &str = "DROVER_AGENT_GUEST";
/// The boot id of a process guest.
pub const ENV_BOOT_ID: &str = "DROVER_AGENT_BOOT_ID";
/// When a process guest booted: milliseconds since the Unix epoch.
pub const ENV_BOOT_UNIX_MS: &str = "DROVER_AGENT_BOOT_UNIX_MS";

/// Facts that do not change during a boot.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The version of the agent itself.
    pub release: &'static Release,
    /// A virtual machine, or processes in namespaces.
    pub kind: GuestKind,
    /// Changes with every boot.
    pub boot_id: String,
    /// Changes with every start of the agent.
    pub instance: String,
    /// When a process guest booted, in milliseconds since the Unix epoch.
    pub booted_unix_ms: Option<u64>,
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Where this agent's program lies, also if another was put there meanwhile. It is not where it was when an agent that took
/// another's place began.
///
/// # Errors
/// There is no `/proc`.
pub fn program() -> io::Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

impl Facts {
    /// Reads them from the environment and the kernel.
    #[must_use]
    pub fn gather(release: &'static Release) -> Self {
        let instance = ulid::Ulid::new().to_string();
        let var = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        if var(ENV_GUEST).as_deref() == Some("process") {
            let booted = var(ENV_BOOT_UNIX_MS).and_then(|v| v.parse().ok()).unwrap_or_else(unix_ms);
            let boot_id = var(ENV_BOOT_ID).unwrap_or_else(|| ulid::Ulid::new().to_string());
            return Self {
                release,
                kind: GuestKind::Process,
                boot_id,
                instance,
                booted_unix_ms: Some(booted),
            };
        }
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|s| s.trim().to_owned())
            .ok()
            .filter(|s| !s.is_empty())
            // Without /proc a new id per start of the agent errs on the safe side: nothing is
            // taken for a repetition that is not.
            .unwrap_or_else(|| ulid::Ulid::new().to_string());
        Self { release, kind: GuestKind::Vm, boot_id, instance, booted_unix_ms: None }
    }

    /// Milliseconds since this guest booted.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        match self.booted_unix_ms {
            Some(booted) => unix_ms().saturating_sub(booted),
            None => clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
                (t.tv_sec() as u64).saturating_mul(1000).saturating_add(t.tv_nsec() as u64 / 1_000_000)
            }),
        }
    }

    /// The host name and the kernel's release.
    #[must_use]
    pub fn names() -> (String, String) {
        let Ok(names) = uname() else { return Default::default() };
        (names.nodename().to_string_lossy().into_owned(), names.release().to_string_lossy().into_owned())
    }

    /// The greeting, for protocol version `proto`.
    #[must_use]
    pub fn hello(&self, proto: u32) -> AgentHello {
        let (hostname, kernel) = Self::names();
        AgentHello {
            proto,
            version: self.release.version.to_owned(),
            boot_id: self.boot_id.clone(),
            instance: self.instance.clone(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            kernel,
            hostname,
            capabilities: capabilities(self.release),
            allowed: None,
            guest: self.kind,
            stream_credit: FIRST_CREDIT,
            max_streams: MAX_STREAMS as u32,
        }
    }
}

/// The verbs and optional parts that an agent offers.
#[must_use]
pub fn capabilities(release: &Release) -> Vec<String> {
    let verbs = [
        verb::PING,
        verb::EXEC,
        verb::EXEC_SETTINGS,
        verb::RUNS,
        verb::ATTACH,
        verb::KILL,
        verb::PUT,
        verb::GET,
        verb::STAT,
        verb::LS,
        verb::RM,
        verb::MKDIR,
        verb::PACK,
        verb::UNPACK,
        verb::INFO,
        verb::HEALTH,
        verb::FREEZE,
        verb::THAW,
        verb::FROZEN,
        verb::PROCESSES,
        verb::SAMPLE,
        verb::CONFIGURE,
        verb::CLOCK,
        verb::ONLINE,
        verb::TRIM,
        verb::RESEED,
        verb::IDENTITY,
        verb::UPGRADE,
        verb::NETWORK,
        verb::USERS,
        verb::USER_ADD,
        verb::USER_RM,
        verb::KEYS,
        verb::KEYS_CHANGE,
        verb::SHUTDOWN,
        EVENTS,
    ];
    let there = verbs.into_iter().filter(|verb| release.has(verb));
    there.chain(release.more.iter().copied()).map(str::to_owned).collect()
}
