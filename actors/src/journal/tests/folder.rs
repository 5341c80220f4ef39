use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_installation_keeps_its_id_and_the_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let journal = open(&config(&folder)).unwrap();
    let id = journal.installation();
    shut(journal);
    let journal = open(&config(&folder)).unwrap();
    assert_eq!(journal.installation(), id);
    for file in ["journal.redb", "state.version", "installation", "lock", "reserve"] {
        let mode = fs::metadata(folder.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_id_comes_back_from_the_journal_and_a_foreign_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    let id = journal.installation();
    shut(journal);
    fs::remove_file(dir.path().join("installation")).unwrap();
    let journal = open(&config(dir.path())).unwrap();
    assert_eq!(journal.installation(), id);
    shut(journal);
    fs::write(dir.path().join("installation"), "01ARZ3NDEKTSV4RRFFQ69G5FAV\n").unwrap();
    assert!(matches!(open(&config(dir.path())), Err(OpenError::Installation { .. })));
}

#[test]
fn a_second_daemon_on_one_folder_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _journal = open(&config(dir.path())).unwrap();
    match open(&config(dir.path())) {
        Err(OpenError::InUse { holder, .. }) => assert_eq!(holder, Some(std::process::id().to_string())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_of_a_newer_drover_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    shut(open(&config(dir.path())).unwrap());
    fs::write(dir.path().join("state.version"), "2\n").unwrap();
    let before = files(dir.path());
    match open(&config(dir.path())) {
        Err(OpenError::Newer { found: 2, supported: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_journal_without_a_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    shut(open(&config(dir.path())).unwrap());
    fs::remove_file(dir.path().join("state.version")).unwrap();
    let before = files(dir.path());
    assert!(matches!(open(&config(dir.path())), Err(OpenError::Version { .. })));
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_damaged_journal_is_reported_and_left_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    block_on(async {
        for n in 1..200 {
            journal.commit(Batch::new().with(put_event(1, n))).await.unwrap();
        }
    });
    shut(journal);
    let path = dir.path().join("journal.redb");
    let sound = fs::read(&path).unwrap();
    let mut reported = 0;
    // A flipped page anywhere, a cut file, and a file that is something else.
    let mut damaged: Vec<Vec<u8>> = (0..sound.len() / 4096)
        .map(|page| {
            let mut bytes = sound.clone();
            bytes[page * 4096..(page + 1) * 4096].iter_mut().for_each(|b| *b ^= 0x5a);
            bytes
        })
        .collect();
    damaged.push(sound[..sound.len() / 2].to_vec());
    damaged.push(b"not a journal".repeat(1000));
    let all = damaged.len();
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        match open(&config(dir.path())) {
            Err(OpenError::Damaged { .. } | OpenError::Open { .. }) => {
                reported += 1;
                assert!(fs::read(&path).unwrap() == bytes, "a damaged journal was changed");
            }
            // A page that nothing refers to.
            Ok(journal) => {
                assert_eq!(journal.outbox_page(VmId::from_u128(1), 0, 500).unwrap().len(), 199);
                shut(journal);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(reported > 3, "{reported} of {all}");
    fs::write(&path, &sound).unwrap();
    shut(open(&config(dir.path())).unwrap());
}

#[test]
fn an_export_shows_no_secret_and_a_backup_opens() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&config(dir.path())).unwrap();
    block_on(journal.commit(Batch::new().with(Op::PutVm(Box::new(vm(1, "a", 1)))).with(put_event(1, 1))))
        .unwrap();
    let text = journal.export_json().unwrap().to_string();
    assert!(text.contains("\"a\"") && !text.contains("hunter2"), "{text}");
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join("state.version"), "1\n").unwrap();
    journal.backup_to(&copy.path().join("journal.redb")).unwrap();
    let restored = open(&config(copy.path())).unwrap();
    assert_eq!(restored.installation(), journal.installation());
    assert_eq!(restored.load().unwrap().vms, journal.load().unwrap().vms);
    assert!(journal.backup_to(&copy.path().join("journal.redb")).is_err());
}
