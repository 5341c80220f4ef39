//! How a guest is ended: through its own init, and through the kernel when init does not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::guest::ShutdownMode;
use drover_schemas::{ErrorBody, ErrorCode};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::emit::Events;
use crate::emit::own::end;
use crate::log;

/// How long init has before the kernel is told directly.
const GRACE: Duration = Duration::from_secs(60);

/// Who ends this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// The guest's own init, then the kernel.
    Guest,
    /// The process-guest's pid 1: SIGTERM powers off, SIGINT reboots.
    Supervisor,
    /// Nobody: the agent is a plain process on a machine that is not its guest.
    Nobody,
}

/// What runs as pid 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Init {
    Systemd,
    Busybox,
    Other,
}

fn init() -> Init {
    if Path::new("/run/systemd/system").is_dir() {
        return Init::Systemd;
    }
    let exe = std::fs::read_link("/proc/1/exe").unwrap_or_default();
    if exe.file_name().is_some_and(|name| name == "busybox") { Init::Busybox } else { Init::Other }
}

impl Power {
    /// Ends the guest after `delay`. Answers by what.
    ///
    /// # Errors
    /// `unsupported` where the agent must not do this.
    pub fn begin(
        self,
        mode: ShutdownMode,
        delay: Duration,
        events: Arc<Events>,
    ) -> Result<&'static str, ErrorBody> {
        let method = match self {
            Self::Nobody => {
                return Err(ErrorBody::new(
                    ErrorCode::Unsupported,
                    "this agent serves a plain socket outside of a guest and ends no machine",
                ));
            }
            Self::Supervisor => "supervisor",
            Self::Guest => match init() {
                Init::Systemd => "systemd",
                Init::Busybox | Init::Other => "init",
            },
        };
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            events.end(end::by_host(mode)).await;
            log::info(format_args!("shutdown ({mode:?}) by {method}"));
            self.ask(mode);
            if self == Self::Guest {
                tokio::time::sleep(GRACE).await;
                log::error(format_args!("init did not end the guest in {GRACE:?}; telling the kernel"));
                force(mode);
            }
        });
        Ok(method)
    }

    fn ask(self, mode: ShutdownMode) {
        let signal = |signal| {
            if let Err(errno) = kill(Pid::from_raw(1), signal) {
                log::error(format_args!("cannot signal pid 1: {errno}"));
            }
        };
        match (self, mode) {
            (Self::Nobody, _) => {}
            (Self::Supervisor, ShutdownMode::Reboot) => signal(Signal::SIGINT),
            (Self::Supervisor, _) => signal(Signal::SIGTERM),
            (Self::Guest, mode) => match (init(), mode) {
                (Init::Busybox, ShutdownMode::Poweroff) => signal(Signal::SIGUSR2),
                (Init::Busybox, ShutdownMode::Reboot) => signal(Signal::SIGTERM),
                (Init::Busybox, ShutdownMode::Halt) => signal(Signal::SIGUSR1),
                (Init::Systemd, mode) => command("systemctl", &["--no-block", name(mode)]),
                (Init::Other, mode) => command(name(mode), &[]),
            },
        }
    }
}

fn name(mode: ShutdownMode) -> &'static str {
    match mode {
        ShutdownMode::Poweroff => "poweroff",
        ShutdownMode::Reboot => "reboot",
        ShutdownMode::Halt => "halt",
    }
}

fn command(program: &str, args: &[&str]) {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let spawned = Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).spawn();
    match spawned {
        // Reaped by a thread: the agent may live on for a while.
        Ok(mut child) => drop(tokio::task::spawn_blocking(move || child.wait())),
        Err(error) => log::error(format_args!("cannot run {program}: {error}")),
    }
}

fn force(mode: ShutdownMode) {
    nix::unistd::sync();
    let mode = match mode {
        ShutdownMode::Poweroff => RebootMode::RB_POWER_OFF,
        ShutdownMode::Reboot => RebootMode::RB_AUTOBOOT,
        ShutdownMode::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let Err(errno) = reboot(mode);
    log::error(format_args!("the kernel refused: {errno}"));
}
