//! Records what a Cloud Hypervisor answers to the requests of `tests/conformance/`.
//!
//! `record-conformance --vmm PATH FILE...` runs every scenario of the files against the binary and
//! writes the answers into them. Run by hand, with the release that this program follows; the binary
//! must be able to run guests; `tests/nested` has a host on which it can.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use softvmm::conformance::{Transcript, differences, play};

/// Records transcripts of a VMM.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to record
    #[arg(long)]
    vmm: PathBuf,
    /// A kernel for scenarios that boot one
    #[arg(long)]
    kernel: PathBuf,
    /// Change nothing, and fail where an answer is another than what is recorded
    #[arg(long)]
    check: bool,
    /// Transcripts to record anew
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    for file in &args.files {
        if let Err(error) = record(&args, file) {
            eprintln!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn record(args: &Args, file: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let vmm = &args.vmm;
    let mut found = Vec::new();
    let mut transcript: Transcript = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let version = Command::new(vmm).arg("--version").output()?.stdout;
    transcript.of = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
    for scenario in &mut transcript.scenarios {
        let dir = std::env::temp_dir().join(format!("conformance-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        let played = play(scenario, vmm, &args.kernel, &[], &dir);
        std::fs::remove_dir_all(&dir)?;
        let played = played?;
        found.extend(differences(scenario, &played));
        *scenario = played;
        println!("{}: {}", file.display(), scenario.name);
    }
    if args.check {
        let count = found.len();
        return if count == 0 {
            Ok(())
        } else {
            Err(format!("{count} differences:\n{}", found.join("\n")).into())
        };
    }
    std::fs::write(file, serde_json::to_string_pretty(&transcript)? + "\n")?;
    Ok(())
}
