use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use drover_schemas::id::VmId;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::hypervisor::record::RING_HEADER;
use crate::hypervisor::run_dir::RunRoot;

const SOON: Duration = Duration::from_secs(10);

fn dir(temp: &TempDir) -> RunDir {
    let dir = RunRoot::new(temp.path()).unwrap().vm(VmId::from_u128(7));
    dir.create(None).unwrap();
    dir
}

fn ring(dir: &RunDir, base: u64, data: &str) {
    let header =
        format!("{:<width$}\n", format!("{{\"version\":1,\"base\":{base}}}"), width = RING_HEADER - 1);
    // As the holder does when it rotates: made elsewhere, then moved into place.
    fs::write(dir.file("new"), format!("{header}{data}")).unwrap();
    fs::rename(dir.file("new"), dir.file(file::CONSOLE)).unwrap();
}

fn append(dir: &RunDir, data: &str) {
    let mut file = fs::File::options().append(true).open(dir.file(file::CONSOLE)).unwrap();
    file.write_all(data.as_bytes()).unwrap();
}

async fn text(console: &Console) -> String {
    match timeout(SOON, console.recv()).await.unwrap() {
        Some(StreamEvent::Data { data, .. }) => String::from_utf8(data.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn readers_follow_each_at_its_own_pace() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    ring(&dir, 100, "older newer");
    let (one, two) =
        (Console::open(dir.clone(), 5).await.unwrap(), Console::open(dir.clone(), 0).await.unwrap());
    assert_eq!((one.offset(), two.offset()), (106, 111));
    assert_eq!(text(&one).await, "newer");
    append(&dir, "!");
    assert_eq!((text(&one).await, text(&two).await), ("!".into(), "!".into()));
    let waits = timeout(Duration::from_millis(50), one.recv()).await;
    assert!(waits.is_err(), "{waits:?}");
    append(&dir, "?");
    assert_eq!(text(&one).await, "?");
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_what_it_missed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    ring(&dir, 0, "first");
    let console = Console::open(dir.clone(), 100).await.unwrap();
    assert_eq!(text(&console).await, "first");
    ring(&dir, 1_000, "last");
    let seen = text(&console).await;
    assert!(seen.contains("995 bytes were overwritten") && seen.ends_with("last"), "{seen}");
    fs::remove_dir_all(dir.path()).unwrap();
    let end = timeout(SOON, console.recv()).await.unwrap();
    let Some(StreamEvent::End(Ok(result))) = end else { panic!("{end:?}") };
    let result: ConsoleResult = codec::decode(&result).unwrap();
    assert_eq!(result, ConsoleResult { offset: 1_004, lost_bytes: 995 });
    assert!(console.recv().await.is_none());
}

#[tokio::test]
async fn a_writer_reaches_the_guest_until_it_closes_or_is_ended() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    ring(&dir, 0, "");
    // Nobody listens: it is as if the cable were out.
    let ended = CancellationToken::new();
    let console = Console::open(dir.clone(), 0).await.unwrap().for_writer(ended.clone());
    console.send(&Bytes::from_static(b"lost"), false).await;
    nix::unistd::mkfifo(&dir.console_in(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let holder = || fs::File::options().read(true).write(true).open(dir.console_in()).unwrap();
    let mut first = holder();
    console.send(&Bytes::from_static(b"hello"), false).await;
    let mut heard = [0; 5];
    first.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    // The next holder has a FIFO of its own.
    drop(first);
    fs::remove_file(dir.console_in()).unwrap();
    nix::unistd::mkfifo(&dir.console_in(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut second = holder();
    console.send(&Bytes::from_static(b"again"), false).await;
    second.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"again");
    console.send(&Bytes::new(), true).await;
    assert!(matches!(timeout(SOON, console.recv()).await.unwrap(), Some(StreamEvent::End(Ok(_)))));
    drop(console);
    assert!(ended.is_cancelled(), "the console is free again");

    let ended = CancellationToken::new();
    let console = Console::open(dir.clone(), 0).await.unwrap().for_writer(ended.clone());
    ended.cancel();
    let end = timeout(SOON, console.recv()).await.unwrap();
    let Some(StreamEvent::End(Err(error))) = end else { panic!("{end:?}") };
    assert_eq!(error.code, ErrorCode::Conflict);
}
