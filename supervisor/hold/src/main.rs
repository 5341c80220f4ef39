//! The holder: the parent of one VMM, which outlives the daemon so that evidence does too.
//!
//! `drover-hold --run-dir DIR [--record FILE] [--cgroup DIR]… [--holder-cgroup DIR]… [--scope DIR] -- VMM ARG…`
//!
//! What the daemon starts forks and waits until the set-up has ended: status 0 means that the VMM runs and
//! `vmm.pid` says where; otherwise stderr holds the failed step as JSON. The fork is the holder proper: one
//! thread, a session of its own, deaf to hang-ups, parent also of what the VMM leaves behind. It copies
//! events, output and console into capped files, feeds `console.in` to the guest, and when the VMM ends it
//! ends what the VMM left, writes `exit` and goes. It speaks through files only (formats: `record.rs`).
//!
//! It must stay small: no tokio, no actors, no threads, and no memory that grows.

mod args;
mod detach;
mod dir;
mod end;
mod jail;
mod notify;
mod pump;
#[path = "../../../actors/src/hypervisor/record.rs"]
#[allow(dead_code)] // some of it is for the daemon
mod record;
mod ring;
mod scope;
mod serial;
mod setup;
mod spawn;

use std::process::ExitCode;

use args::Args;
use detach::Side;
use record::{ExitRecord, SpawnError, VERSION, file};

/// A step of the set-up: `step("open it", result)?`.
fn step<T, E: Into<std::io::Error>>(name: impl Into<String>, result: Result<T, E>) -> Result<T, SpawnError> {
    result.map_err(|error| {
        let error = error.into();
        let errno = error.raw_os_error().unwrap_or(0);
        SpawnError { step: name.into(), errno, text: error.to_string() }
    })
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("drover-hold: {problem}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    // Before the fork: both processes must leave the scope's own cgroup.
    if let Some(scope) = &args.scope
        && let Err(error) = scope::enter(scope, &args.limits)
    {
        return detach::complain(&error);
    }
    match detach::detach() {
        Ok(Side::Launcher(wait)) => wait.run(),
        Ok(Side::Holder(report)) => hold(&args, report),
        Err(error) => detach::complain(&error),
    }
}

fn hold(args: &Args, report: detach::Report) -> ExitCode {
    let dir = match step(format!("open {}", args.run_dir.display()), dir::Dir::open(&args.run_dir)) {
        Ok(dir) => dir,
        Err(error) => return report.failed(&error),
    };
    let mut pump = match setup::set_up(args, &dir) {
        Ok(pump) => pump,
        Err(error) => {
            let exit =
                ExitRecord { version: VERSION, spawn_error: Some(error.clone()), ..ExitRecord::default() };
            // The launcher tells the daemon either way; the record is for one that has died meanwhile.
            let _ = end::write_exit(&dir, exit);
            return report.failed(&error);
        }
    };
    report.ready();
    pump.run();
    let exit = end::end(&pump.vmm, &args.cgroups);
    pump.drain();
    let exit = ExitRecord { lost_bytes: pump.lost_bytes(), ..exit };
    let written = end::write_exit(&dir, exit);
    pump.notify.send();
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where the daemon's socket for notices is: beside the run directory.
fn notify_path(args: &Args) -> std::path::PathBuf {
    args.run_dir.parent().unwrap_or(&args.run_dir).join(file::NOTIFY_SOCKET)
}
