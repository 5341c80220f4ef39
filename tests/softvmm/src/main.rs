//! The binary: version, or pid 1 of a guest, or the VMM.

use std::process::ExitCode;

use clap::Parser;
use softvmm::args::Args;
use softvmm::guest::{init, namespaces};
use softvmm::{BUILD_VERSION, start};

fn main() -> ExitCode {
    // As pid 1 of a guest there is no command line to read, and every page counts.
    let mut raw = std::env::args().skip(1);
    if raw.next().as_deref() == Some(namespaces::INIT_FLAG) {
        return ExitCode::from(init::main(&raw.next().unwrap_or_default()) as u8);
    }
    // Sockets and files are for this user alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let args = Args::parse();
    if args.version {
        println!("cloud-hypervisor {BUILD_VERSION}");
        println!("softvmm {}: software emulation, not Cloud Hypervisor", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match start::run(args) {
        Ok(end) => ExitCode::from(start::status(end) as u8),
        Err(error) => {
            eprintln!("Error: Cloud Hypervisor exited with the following chain of errors:");
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            for (level, error) in chain.enumerate() {
                eprintln!("  {level}: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
