//! The program: its options, and what it becomes by them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::emit;
use crate::facts::Facts;
use crate::front::{self, Front, Role};
use crate::life::Life;
use crate::listen::Address;
use crate::log::{self, Level};
use crate::power::Power;
use crate::release::Release;
use crate::upgrade::Inherited;
use crate::work::freezer;
use crate::{RUN_DIR, baseline, memory, runs};
use drover_schemas::guest::{GuestKind, PORT};

const USAGE: &str = "\
usage: drover-agent [--listen vsock:PORT|unix:PATH] [--run-dir DIR] [--log error|warn|info|debug]
       drover-agent emit TYPE [--data JSON | KEY=VALUE…] [--wait]   (see emit --help)
       drover-agent unit-failed UNIT   (for systemd)

Serves the host of this guest: commands, files, facts, power.
  --listen  where (default vsock:1023, for the host alone)
  --run-dir where detached commands and events are kept (default /run/drover-agent); programs publish events at the
            socket beside it (/run/drover-agent.sock)
  --log     how much goes to stderr (default info)
  --version prints the version

DROVER_AGENT_GUEST=process marks a guest made of processes; then DROVER_AGENT_BOOT_ID and
DROVER_AGENT_BOOT_UNIX_MS tell its boot, and shutdown signals pid 1.
";

/// Usage errors, after sysexits.h.
const EX_USAGE: u8 = 64;

struct Options {
    listen: Address,
    run_dir: PathBuf,
    level: Level,
    /// Keep the detached command of this folder; no part of the usage.
    keep: Option<PathBuf>,
    /// Freeze file systems, as told by the standard input; no part of the usage.
    freeze: bool,
    /// Take the place of the agent that handed these over; no part of the usage.
    succeed: Option<(OwnedFd, Inherited)>,
    /// Run as the plain program that `drover bench` compares with, on this file; no part of the usage.
    baseline: Option<PathBuf>,
}

fn options(release: &Release) -> Result<Option<Options>, String> {
    let mut options = Options {
        listen: Address::Vsock(PORT),
        run_dir: RUN_DIR.into(),
        level: Level::Info,
        keep: None,
        freeze: false,
        succeed: None,
        baseline: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let mut value = || value.clone().or_else(|| args.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--listen" => options.listen = value()?.parse()?,
            "--run-dir" => options.run_dir = value()?.into(),
            "--keep" => options.keep = Some(value()?.into()),
            "--freeze" => options.freeze = true,
            "--succeed" => options.succeed = Some(Inherited::take(&value()?)?),
            "--baseline" => options.baseline = Some(value()?.into()),
            "--log" => options.level = value()?.parse()?,
            "--version" | "-V" => {
                println!("drover-agent {}", release.version);
                return Ok(None);
            }
            "--help" | "-h" => {
                print!("{USAGE}");
                return Ok(None);
            }
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Some(options))
}

fn exit_code(result: Result<(), impl std::error::Error + 'static>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(format_args!("{}", log::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The whole program, as an agent of this release.
#[must_use]
pub fn main(release: &'static Release) -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("emit") => return emit::client::main(args),
        Some("unit-failed") => return emit::client::unit_failed(args),
        _ => {}
    }
    let options = match options(release) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprint!("drover-agent: {error}\n{USAGE}");
            return ExitCode::from(EX_USAGE);
        }
    };
    log::set_level(options.level);
    if let Some(folder) = options.keep {
        return exit_code(runs::keep::main(folder));
    }
    if options.freeze {
        return exit_code(freezer::main());
    }
    if let Some(file) = &options.baseline {
        return exit_code(baseline::run(&options.listen, file));
    }
    memory::set_up();
    let (front, inherited) = match options.succeed {
        Some((front, inherited)) => {
            // As every agent is called; its file has another name until it serves.
            let _ = rustix::thread::set_name(c"drover-agent");
            (Front::inherited(front), Some(inherited))
        }
        None => match front::split() {
            Ok(Role::Agent(front)) => (front, None),
            Ok(Role::Ended(code)) => return ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => {
                log::error(format_args!("cannot fork: {error}"));
                return ExitCode::FAILURE;
            }
        },
    };
    let facts = Facts::gather(release);
    let power = match (facts.kind, &options.listen) {
        (GuestKind::Process, _) => Power::Supervisor,
        (_, Address::Vsock(_)) => Power::Guest,
        // On somebody's own machine, by hand or in a test: it must not be powered off.
        (_, Address::Unix(_)) => Power::Nobody,
    };
    if power == Power::Guest {
        // The host must still reach a guest that runs out of memory.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    }
    // One thread, as one guest has one host; file work has threads of its own for as long as it lasts.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(24).build();
    match runtime {
        Ok(runtime) => {
            let Options { listen, run_dir, .. } = options;
            exit_code(runtime.block_on(Life { listen, run_dir, facts, power, front, inherited }.live()))
        }
        Err(error) => {
            log::error(format_args!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}
