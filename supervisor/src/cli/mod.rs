//! The command line: arguments, dispatch, results and errors.
//!
//! Results go to stdout and nothing else does; progress, logs and errors go to stderr.

mod audit;
mod bus;
mod connect;
mod events;
mod exit;
mod host;
mod image;
mod journal;
mod network;
pub mod output;
mod progress;
pub mod tally;
mod template;
mod vm;
mod volume;

use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use connect::ConnectArgs;
pub use exit::CliError;
use output::OutputFormat;

use crate::telemetry::{self, LogConfig, LogFormat, TelemetryGuard};

/// Runs Cloud Hypervisor microVMs over a NATS bus.
#[derive(Debug, Parser)]
#[command(name = "drover", version, after_help = exit::HELP, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    #[command(flatten)]
    connect: ConnectArgs,
    /// How results are printed.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    output: OutputFormat,
    /// Seconds until a request is given up, retries included; each command has a fitting default.
    #[arg(long, global = true, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// What is logged to stderr, as `info` or `debug,async_nats=info`; RUST_LOG goes before it.
    #[arg(long, global = true, value_name = "FILTER", env = "DROVER_LOG")]
    log: Option<String>,
    /// How log lines are written.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Base URL of an OTLP receiver for traces, as http://127.0.0.1:4318.
    #[arg(long, global = true, value_name = "URL", env = "DROVER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a private NATS server and a host: the whole system in one go.
    Dev(crate::dev::DevArgs),
    /// Say what this machine lacks to be a host, and what to do about it.
    Doctor(host::DoctorArgs),
    /// Run and look at hosts.
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Import, list and remove the images of a host.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Networks of a host.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Disks that outlive VMs: make, list and remove those of a namespace on a host.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Look at the journal of a host that is stopped, or at a backup, and restore one.
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Create, command and look at VMs.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Look at the templates that VMs start from.
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Look at the bus itself.
    #[command(subcommand)]
    Bus(bus::BusCommand),
    /// Show what happens, and what happened.
    Events(events::EventsArgs),
    /// Show who did what, and who was refused what; for admins.
    Audit(audit::AuditArgs),
    /// Measure drover against its limits, side by side in one run.
    Bench(crate::bench::BenchArgs),
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Sets up logs as the flags say. The daemon sets up its own, by its configuration.
    ///
    /// # Errors
    /// A filter or endpoint that is none.
    pub fn telemetry(&self) -> Result<Option<TelemetryGuard>, CliError> {
        let daemon = matches!(self.command, Command::Host(host::HostCommand::Run(_)));
        if daemon {
            return Ok(None);
        }
        let quiet = if matches!(self.command, Command::Dev(_)) { "info,async_nats=warn" } else { "warn" };
        let config = LogConfig {
            format: self.global.log_format,
            filter: Some(self.global.log.clone().unwrap_or_else(|| quiet.to_owned())),
            otlp_endpoint: self.global.otlp_endpoint.clone(),
            ..LogConfig::default()
        };
        telemetry::init(&config).map(Some).map_err(CliError::Telemetry)
    }
}

impl Global {
    /// How long a command may take whose own measure is `usual`.
    fn deadline(&self, usual: Duration) -> Duration {
        match self.deadline {
            Some(seconds) if seconds.is_finite() && seconds > 0.0 => {
                Duration::try_from_secs_f64(seconds).unwrap_or(usual)
            }
            _ => usual,
        }
    }
}

/// Runs the command; gives the exit code.
///
/// # Errors
/// What the command failed with; [`report`] prints it.
pub async fn run(cli: &Cli) -> Result<u8, CliError> {
    match &cli.command {
        Command::Dev(args) => {
            crate::dev::run(args, &cli.global.connect.root).await.map(|()| 0).map_err(CliError::Dev)
        }
        Command::Doctor(args) => host::doctor(args, &cli.global).await,
        Command::Host(command) => host::run(command, &cli.global).await,
        Command::Image(command) => image::run(command, &cli.global).await,
        Command::Network(command) => network::run(command, &cli.global).await,
        Command::Volume(command) => volume::run(command, &cli.global).await,
        Command::Template(command) => template::run(command, &cli.global).await,
        Command::Journal(command) => journal::run(command, &cli.global).await,
        Command::Vm(command) => vm::run(command, &cli.global).await,
        Command::Bus(command) => bus::run(command, &cli.global).await,
        Command::Events(args) => events::run(args, &cli.global).await,
        Command::Audit(args) => audit::run(args, &cli.global).await,
        Command::Bench(args) => bench(args, &cli.global).await,
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "drover", &mut std::io::stdout());
            Ok(0)
        }
    }
}

async fn bench(args: &crate::bench::BenchArgs, global: &Global) -> Result<u8, CliError> {
    let client = global.connect.connect().await?;
    let host = host::discover(&client, Duration::from_secs(5)).await?;
    let report = Box::pin(crate::bench::run(args, &client, &host)).await?;
    let output = if args.json { OutputFormat::Json } else { global.output };
    output.print(&report, |report| report.table()).map(|()| 0)
}

/// Prints an error as the flags ask; gives the exit code.
pub fn report(error: &CliError, cli: &Cli) -> u8 {
    if error.is_broken_pipe() {
        return exit::BROKEN_PIPE;
    }
    if error.is_cancelled() {
        return exit::INTERRUPTED;
    }
    let body = error.body();
    let vm = match &cli.command {
        Command::Vm(command) => command.name(),
        _ => None,
    };
    cli.global.output.print_error(&body, &exit::next_step(&body, vm.as_deref()));
    exit::exit_code(body.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
