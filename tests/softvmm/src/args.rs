//! The command line: the part of Cloud Hypervisor's that a supervisor uses, plus `--guest`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};

use crate::misbehave;

/// Which kind of guest `vm.boot` starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GuestKind {
    /// The configured kernel and disks in QEMU's software emulation.
    Qemu,
    /// The agent as a process in namespaces of its own.
    Process,
}

/// Where a socket or a stream is: a path, or a descriptor that was inherited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A path to open or to bind.
    Path(PathBuf),
    /// An open descriptor.
    Fd(RawFd),
}

/// An endpoint that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// `fd=` is not followed by a number.
    #[error("fd={0} is not a descriptor number")]
    Fd(String),
    /// Neither `path=` nor `fd=`.
    #[error("expected path=<path> or fd=<number>, got {0:?}")]
    Bare(String),
}

impl Endpoint {
    /// Reads `path=P` or `fd=N`. With `bare`, a text without a key is a path, as `--api-socket` has it.
    ///
    /// # Errors
    /// The text has no such form.
    pub fn parse(text: &str, bare: bool) -> Result<Self, EndpointError> {
        if let Some(fd) = text.strip_prefix("fd=") {
            return fd.parse().map(Self::Fd).map_err(|_| EndpointError::Fd(fd.to_owned()));
        }
        match text.strip_prefix("path=") {
            Some(path) => Ok(Self::Path(path.into())),
            None if bare => Ok(Self::Path(text.into())),
            None => Err(EndpointError::Bare(text.to_owned())),
        }
    }
}

fn api_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    Endpoint::parse(text, true)
}

fn event_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    Endpoint::parse(text, false)
}

/// The command line and HTTP API of Cloud Hypervisor v53 over software emulation.
#[derive(Debug, Parser)]
#[command(name = "cloud-hypervisor", disable_version_flag = true, after_long_help = misbehave::HELP)]
pub struct Args {
    /// HTTP API socket: path=<path>, <path> or fd=<number of a listening socket>
    #[arg(long, value_parser = api_endpoint)]
    pub api_socket: Option<Endpoint>,
    /// Where events are written: path=<path> or fd=<number>
    #[arg(long, value_parser = event_endpoint)]
    pub event_monitor: Option<Endpoint>,
    /// Log file; standard error without it
    #[arg(long)]
    pub log_file: Option<PathBuf>,
    /// Accepted for the command line's sake
    #[arg(long, default_value = "uptime")]
    pub log_format: String,
    /// Stay alive when the guest powers off
    #[arg(long)]
    pub no_shutdown: bool,
    /// Accepted and ignored: no filter is installed here
    #[arg(long, default_value = "true", value_parser = ["true", "false", "log", "errno"])]
    pub seccomp: String,
    /// More log, up to three times
    #[arg(short, action = ArgAction::Count)]
    pub v: u8,
    /// Print the version and stop
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Kind of guest
    #[arg(long, env = "SOFTVMM_GUEST", value_enum, default_value = "qemu")]
    pub guest: GuestKind,
    /// The agent that the guest of processes runs
    #[arg(long, env = "SOFTVMM_AGENT", default_value = "drover-agent")]
    pub agent: PathBuf,
    /// QEMU's system emulator
    #[arg(long, env = "SOFTVMM_QEMU", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// The vhost-user vsock device of the rust-vmm project
    #[arg(long, env = "SOFTVMM_VHOST_VSOCK", default_value = "vhost-device-vsock")]
    pub vhost_vsock: PathBuf,
    /// Give emulated guests a port for QEMU's own guest agent, beside the vsock socket: to compare with
    #[arg(long, env = "SOFTVMM_QGA")]
    pub qga: bool,
    /// Faults to show; see below
    #[arg(long, env = "SOFTVMM_MISBEHAVE", default_value = "")]
    pub misbehave: String,
    /// A file with faults, read again at every step
    #[arg(long, env = "SOFTVMM_MISBEHAVE_FILE")]
    pub misbehave_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_socket_may_be_a_bare_path_and_an_event_monitor_may_not() {
        assert_eq!(api_endpoint("/run/a"), Ok(Endpoint::Path("/run/a".into())));
        assert_eq!(api_endpoint("path=/run/a"), Ok(Endpoint::Path("/run/a".into())));
        assert_eq!(api_endpoint("fd=7"), Ok(Endpoint::Fd(7)));
        assert_eq!(event_endpoint("fd=x"), Err(EndpointError::Fd("x".into())));
        assert_eq!(event_endpoint("/run/a"), Err(EndpointError::Bare("/run/a".into())));
    }

    #[test]
    fn the_command_line_of_a_supervisor_is_understood() {
        let args = Args::try_parse_from([
            "x",
            "--api-socket",
            "path=/a",
            "--event-monitor",
            "path=/e",
            "--log-file",
            "/l",
            "--no-shutdown",
            "--seccomp",
            "log",
            "-vv",
            "--guest",
            "process",
        ])
        .expect("parses");
        assert_eq!(args.guest, GuestKind::Process);
        assert_eq!(args.v, 2);
        assert!(args.no_shutdown);
    }

    #[test]
    fn an_unknown_seccomp_action_is_refused() {
        assert!(Args::try_parse_from(["x", "--seccomp", "maybe"]).is_err());
    }
}
