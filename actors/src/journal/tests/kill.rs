//! A child commits in a loop and is killed; what it was told is on disk must be there.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

const FOLDER: &str = "DROVER_TEST_JOURNAL_FOLDER";

/// Not a test of its own: the child of the next one.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let journal = open(&config(Path::new(&folder))).unwrap();
    let seen = journal.load().unwrap().vms.first().map_or(0, |vm| vm.seq);
    block_on(async {
        for seq in seen + 1.. {
            let batch = Batch::new().with(Op::PutVm(Box::new(vm(1, "a", seq)))).with(put_event(1, seq));
            journal.commit(batch).await.unwrap();
            println!("acknowledged {seq}");
        }
    });
}

#[test]
fn everything_acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "journal::tests::kill::child", "--nocapture", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 1 + round * 37 % 50;
        for line in lines {
            let line = line.unwrap();
            if let Some((_, n)) = line.split_once("acknowledged ") {
                acknowledged = n.trim().parse().unwrap();
                left -= 1;
            }
            if left == 0 {
                // More may be under way, or acknowledged and not read.
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let journal = open(&config(dir.path())).unwrap();
        let vm = journal.load().unwrap().vms.remove(0);
        assert!(vm.seq >= acknowledged, "{} < {acknowledged}", vm.seq);
        // The event of each change is there, and of no other: they commit together.
        let events = journal.outbox_page(vm.vm_id, 0, usize::MAX).unwrap();
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=vm.seq).collect::<Vec<_>>());
        shut(journal);
    }
    assert!(acknowledged > 8);
}
