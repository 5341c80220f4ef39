//! Replays the recorded transcripts of the real v53 against softvmm.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

use std::path::Path;

use softvmm::conformance::{Transcript, play};

fn transcripts() -> Vec<(String, Transcript)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance");
    let files = std::fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path());
    let files = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("readable");
        (path.display().to_string(), serde_json::from_str(&text).expect("a transcript"))
    };
    files.map(read).collect()
}

#[test]
fn softvmm_answers_as_the_recorded_cloud_hypervisor_did() {
    let (mut played_scenarios, mut differences) = (0, Vec::new());
    for (file, transcript) in transcripts() {
        assert!(transcript.of.starts_with("cloud-hypervisor v53"), "{file}: recorded from {}", transcript.of);
        for recorded in &transcript.scenarios {
            let dir = tempfile::TempDir::new().expect("temp dir");
            let env =
                [("SOFTVMM_GUEST", "process"), ("SOFTVMM_AGENT", env!("CARGO_BIN_EXE_softvmm-stand-in"))];
            let vmm = Path::new(env!("CARGO_BIN_EXE_softvmm"));
            // Enough of a kernel for guests that are processes; elsewhere, so that it is not left in the folder.
            let boot = tempfile::TempDir::new().expect("temp dir");
            let kernel = boot.path().join("vmlinuz");
            let mut image = vec![0; 4096];
            image[0x202..0x206].copy_from_slice(b"HdrS");
            std::fs::write(&kernel, image).expect("writable");
            let played = play(recorded, vmm, &kernel, &env, dir.path()).expect("plays");
            played_scenarios += 1;
            differences.extend(softvmm::conformance::differences(recorded, &played));
            // Of these nothing is missing, ever.
            if !played.events.starts_with(&recorded.events) {
                differences.push(format!("{}: events {:?}", recorded.name, played.events));
            }
        }
    }
    assert!(played_scenarios > 10, "there are transcripts");
    let count = differences.len();
    assert!(differences.is_empty(), "{count} differences:\n{}", differences.join("\n"));
}
