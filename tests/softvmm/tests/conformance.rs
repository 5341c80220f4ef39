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
            let played = play(recorded, vmm, &env, dir.path()).expect("plays");
            played_scenarios += 1;
            let mut differs = |what: &str, there: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug| {
                let name = &recorded.name;
                differences.push(format!("{name}: {what}\n  recorded {there:?}\n  here     {here:?}"));
            };
            for (n, (there, here)) in recorded.exchanges.iter().zip(&played.exchanges).enumerate() {
                if there != here {
                    let what = format!("exchange {n}, {} {}", there.method, there.path);
                    differs(&what, &(there.status, &there.answer), &(here.status, &here.answer));
                }
            }
            // The real one writes events from a thread that its end does not wait for: the last ones may
            // be missing there, never here.
            if !played.events.starts_with(&recorded.events) {
                differs("events", &recorded.events, &played.events);
            }
            if recorded.exit != played.exit {
                differs("exit", &recorded.exit, &played.exit);
            }
            if recorded.left != played.left {
                differs("left", &recorded.left, &played.left);
            }
        }
    }
    assert!(played_scenarios > 10, "there are transcripts");
    let count = differences.len();
    assert!(differences.is_empty(), "{count} differences:\n{}", differences.join("\n"));
}
