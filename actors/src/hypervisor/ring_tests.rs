use std::fs;

use drover_schemas::id::VmId;

use super::*;
use crate::hypervisor::run_dir::RunRoot;

fn dir(temp: &tempfile::TempDir) -> RunDir {
    let dir = RunRoot::new(temp.path()).unwrap().vm(VmId::from_u128(7));
    dir.create(None).unwrap();
    dir
}

fn part(dir: &RunDir, name: &str, base: u64, data: &str) {
    let mut text = format!("{{\"version\":1,\"base\":{base}}}");
    while text.len() < RING_HEADER - 1 {
        text.push(' ');
    }
    fs::write(dir.file(name), format!("{text}\n{data}")).unwrap();
}

#[test]
fn a_ring_that_does_not_exist_is_empty() {
    let temp = tempfile::tempdir().unwrap();
    let chunk = read(&dir(&temp), "console.log", 5, 10).unwrap();
    assert_eq!(chunk, RingChunk { offset: 5, data: vec![], end: 0 });
}

#[test]
fn a_read_goes_over_the_seam_of_the_two_files() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    part(&dir, "console.log.1", 100, "older");
    part(&dir, "console.log", 105, "newer");
    assert_eq!(read(&dir, "console.log", 102, 6).unwrap().data, b"dernew");
    assert_eq!(tail(&dir, "console.log", 7).unwrap().data, b"ernewer");
    assert_eq!(end(&dir, "console.log").unwrap(), 110);
}

#[test]
fn bytes_that_are_gone_are_skipped_and_it_shows() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    part(&dir, "console.log.1", 100, "older");
    part(&dir, "console.log", 105, "newer");
    let chunk = read(&dir, "console.log", 3, 1000).unwrap();
    assert_eq!((chunk.offset, chunk.data.as_slice(), chunk.end), (100, &b"oldernewer"[..], 110));
}

#[test]
fn a_newer_format_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    let text = format!("{:<63}\n", "{\"version\":9,\"base\":0}");
    fs::write(dir.file("console.log"), text).unwrap();
    assert_eq!(read(&dir, "console.log", 0, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_link_in_place_of_the_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = dir(&temp);
    std::os::unix::fs::symlink("/etc/passwd", dir.file("console.log")).unwrap();
    assert!(read(&dir, "console.log", 0, 1).is_err());
}
