//! Records what a Cloud Hypervisor answers to the requests of `tests/conformance/`.
//!
//! `record-conformance --vmm PATH FILE...` runs every scenario of the files against the binary and
//! writes the answers into them. Run by hand, with the release that this program follows; the binary
//! must be able to open `/dev/kvm`, but no guest is run.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use softvmm::conformance::{Transcript, play};

/// Records transcripts of a VMM.
#[derive(Debug, Parser)]
struct Args {
    /// The binary to record
    #[arg(long)]
    vmm: PathBuf,
    /// Transcripts to record anew
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    for file in &args.files {
        if let Err(error) = record(&args.vmm, file) {
            eprintln!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn record(vmm: &std::path::Path, file: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut transcript: Transcript = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let version = Command::new(vmm).arg("--version").output()?.stdout;
    transcript.of = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
    for scenario in &mut transcript.scenarios {
        let dir = std::env::temp_dir().join(format!("conformance-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        let played = play(scenario, vmm, &[], &dir);
        std::fs::remove_dir_all(&dir)?;
        *scenario = played?;
        println!("{}: {}", file.display(), scenario.name);
    }
    std::fs::write(file, serde_json::to_string_pretty(&transcript)? + "\n")?;
    Ok(())
}
