//! `drover`: the daemon, the embedded default and the command line in one binary.
//!
//! This file only sequences: arguments, logs, the command, the exit code.

mod admin;
mod app;
mod bench;
mod busconf;
mod buslog;
mod cli;
mod client;
mod config;
mod dev;
mod doctor;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use drover_actors::images::fetch::worker;

/// What may still be running when a command ends (a read of a terminal) is not waited for longer.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // No part of the command line: the daemon starts itself so.
    if std::env::args_os().nth(1).is_some_and(|first| first == worker::ARGUMENT) {
        return ExitCode::from(worker::main());
    }
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: internal: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        let telemetry = match cli.telemetry() {
            Ok(telemetry) => telemetry,
            Err(error) => return cli::report(&error, &cli),
        };
        let code = match cli::run(&cli).await {
            Ok(code) => code,
            Err(error) => cli::report(&error, &cli),
        };
        drop(telemetry);
        code
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    ExitCode::from(code)
}
