use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use drover_schemas::body::spec::SeedSpec;

use super::*;

fn blank(own: &Path, size: u64, ext4: bool) -> Wanted {
    let source = Source::Blank { size, ext4, label: ext4.then(|| "data".to_owned()) };
    Wanted { own: own.to_owned(), source, overlay: None, length: None, owner: None, was_made: None }
}

fn of_image(own: &Path, path: &Path, size: Option<u64>) -> Wanted {
    let source = Source::Image { path: path.to_owned(), size };
    Wanted { own: own.to_owned(), source, overlay: None, length: None, owner: None, was_made: None }
}

fn made(wanted: &Wanted) -> Result<DiskMade, DiskError> {
    own::make(wanted, &AtomicBool::new(false))
}

/// Names in the folder of a disk.
fn left(own: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(own.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_copy_has_the_images_bytes_and_its_holes_and_grows() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let file = fs::File::create(&image).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 40 << 20).unwrap();
    file.set_len(64 << 20).unwrap();
    for (size, length) in [(None, 64 << 20), (Some(1 << 30), 1 << 30)] {
        let own = dir.path().join(format!("vm{length}/disk0.raw"));
        // One that was begun is no part of it.
        fs::create_dir(own.parent().unwrap()).unwrap();
        fs::write(own.with_extension("partial"), "half").unwrap();
        let how = made(&of_image(&own, &image, size)).unwrap();
        assert!(matches!(how, DiskMade::Reflink | DiskMade::Copy), "{how:?}");
        let meta = fs::metadata(&own).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (length, 0o600));
        assert!(meta.blocks() * 512 < 4 << 20, "{} bytes are taken", meta.blocks() * 512);
        let copy = fs::File::open(&own).unwrap();
        for (at, text) in [(0, "begin"), (40 << 20, "middle"), (length - 4, "\0\0\0\0")] {
            let mut bytes = vec![1; text.len()];
            copy.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, text.as_bytes(), "at {at}");
        }
        assert_eq!(fs::metadata(own.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        // A later boot finds it as it is.
        fs::write(&own, "the guest's").unwrap();
        assert_eq!(made(&of_image(&own, &image, size)).unwrap(), DiskMade::Kept);
        assert_eq!(
            (fs::read(&own).unwrap(), left(&own)),
            (b"the guest's".to_vec(), vec!["disk0.raw".to_owned()])
        );
    }
}

#[test]
fn a_disk_lies_over_its_image_where_it_may_and_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (image, own) = (dir.path().join("image"), dir.path().join("vm/disk0.raw"));
    fs::write(&image, vec![7; 32 << 20]).unwrap();
    let overlay = |length| Overlay {
        own: own.with_file_name("disk0.overlay"),
        image: image.clone(),
        format: ImageFormat::Raw,
        length,
    };
    let wanted = |length, was_made| Wanted {
        overlay: Some(overlay(length)),
        was_made,
        ..of_image(&own, &image, Some(length))
    };
    let how = made(&wanted(1 << 30, None)).unwrap();
    if how == DiskMade::Reflink {
        println!(
            "SKIP a_disk_lies_over_its_image_where_it_may_and_stays_what_it_is: the file system has reflinks"
        );
        return;
    }
    let size = |at| {
        let mut bytes = [0; 8];
        fs::File::open(overlay(0).own).unwrap().read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let meta = fs::metadata(overlay(0).own).unwrap();
    assert_eq!((how, left(&own), size(24)), (DiskMade::Overlay, vec!["disk0.overlay".to_owned()], 1 << 30));
    assert!(meta.len() < 1 << 20 && meta.mode() & 0o777 == 0o600, "{meta:?}");
    // Found again, longer if it shall be, by a row that tells of it and by one that did not come to that.
    for (length, was_made) in
        [(1 << 30, None), (2 << 30, Some(DiskMade::Overlay)), (1 << 30, Some(DiskMade::Overlay))]
    {
        assert_eq!(made(&wanted(length, was_made)).unwrap(), DiskMade::Overlay);
    }
    assert_eq!((left(&own), size(24)), (vec!["disk0.overlay".to_owned()], 2 << 30));
    // One that is gone is not made anew, and never another in its place.
    fs::remove_file(overlay(0).own).unwrap();
    fs::write(&own, "a copy").unwrap();
    assert!(matches!(made(&wanted(1 << 30, Some(DiskMade::Overlay))), Err(DiskError::Gone)));
    assert_eq!(made(&wanted(1 << 30, Some(DiskMade::Copy))).unwrap(), DiskMade::Kept);
    assert_eq!(made(&wanted(1 << 30, None)).unwrap(), DiskMade::Kept);
    fs::remove_file(&own).unwrap();
    assert!(matches!(made(&wanted(1 << 30, Some(DiskMade::Copy))), Err(DiskError::Gone)));
}

#[test]
fn a_blank_disk_is_long_and_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("vm/disk1.raw");
    assert_eq!(made(&blank(&own, 1 << 34, false)).unwrap(), DiskMade::Blank);
    let meta = fs::metadata(&own).unwrap();
    assert_eq!((meta.len(), meta.blocks()), (1 << 34, 0));
    assert_eq!(left(&own), ["disk1.raw"]);
}

#[test]
fn a_disk_that_is_there_becomes_as_long_as_it_shall_be_and_never_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("vm/disk0.raw");
    made(&blank(&own, 1 << 20, false)).unwrap();
    fs::OpenOptions::new().write(true).open(&own).unwrap().write_all_at(b"the guest's", 5).unwrap();
    for (wanted, length) in [(1 << 20, 1 << 20), (4 << 20, 4 << 20), (2 << 20, 4 << 20)] {
        let longer =
            Wanted { length: Some(wanted), was_made: Some(DiskMade::Blank), ..blank(&own, 1 << 20, false) };
        assert_eq!(made(&longer).unwrap(), DiskMade::Kept);
        assert_eq!(fs::metadata(&own).unwrap().len(), length);
    }
    assert_eq!(fs::read(&own).unwrap()[5..16], *b"the guest's");
    // Nothing is followed, and nothing is waited for.
    let (other, longer) = (dir.path().join("other"), |length| Wanted {
        length: Some(length),
        was_made: Some(DiskMade::Blank),
        ..blank(&own, 1 << 20, false)
    });
    fs::write(&other, "other").unwrap();
    fs::remove_file(&own).unwrap();
    symlink(&other, &own).unwrap();
    made(&longer(8 << 20)).unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"other");
    fs::remove_file(&own).unwrap();
    nix::unistd::mkfifo(&own, nix::sys::stat::Mode::S_IRWXU).unwrap();
    made(&longer(8 << 20)).unwrap();
}

#[test]
fn a_formatted_disk_has_ext4_with_its_label() {
    if tool().is_none() {
        println!("SKIP a_formatted_disk_has_ext4_with_its_label: mkfs.ext4 is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("vm/disk1.raw");
    assert_eq!(made(&blank(&own, 1 << 30, true)).unwrap(), DiskMade::Blank);
    let mut superblock = [0; 1024];
    fs::File::open(&own).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    assert_eq!(superblock[0x38..0x3a], [0x53, 0xef]);
    assert_eq!(superblock[0x78..0x88], *b"data\0\0\0\0\0\0\0\0\0\0\0\0");
    let meta = fs::metadata(&own).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 < 64 << 20, "{} bytes are taken", meta.blocks() * 512);
    // What the program says of a disk that is none is told.
    let bad = Wanted {
        source: Source::Blank { size: 4096, ext4: true, label: None },
        ..blank(&dir.path().join("b/d"), 0, true)
    };
    let error = made(&bad).unwrap_err();
    assert!(chain(&error).to_string().contains("mkfs.ext4 ended with"), "{}", chain(&error));
    assert_eq!(left(&bad.own), Vec::<String>::new());
}

#[test]
fn what_is_gone_is_not_replaced_and_links_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("vm/disk0.raw");
    let lost = Wanted { was_made: Some(DiskMade::Blank), ..blank(&own, 1 << 20, false) };
    assert!(matches!(made(&lost), Err(DiskError::Gone)));
    assert!(!own.parent().unwrap().exists());
    // What the VM's user put in the way of a new disk is removed, not written through.
    let other = dir.path().join("other");
    fs::write(&other, "other").unwrap();
    fs::create_dir(own.parent().unwrap()).unwrap();
    symlink(&other, own.with_extension("partial")).unwrap();
    assert_eq!(made(&blank(&own, 1 << 20, false)).unwrap(), DiskMade::Blank);
    assert_eq!((fs::read(&other).unwrap(), left(&own)), (b"other".to_vec(), vec!["disk0.raw".to_owned()]));
}

#[tokio::test]
async fn work_that_is_not_wanted_ends_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (image, own) = (dir.path().join("image"), dir.path().join("vm/disk0.raw"));
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let wanted = of_image(&own, &image, None);
    let stopped = own::make(&wanted, &AtomicBool::new(true));
    // A reflink is done at once.
    assert!(matches!(stopped, Err(DiskError::Stopped) | Ok(DiskMade::Reflink)), "{stopped:?}");
    assert!(!own.with_extension("partial").exists());
    let work = Work::default();
    let making = work.make(blank(&dir.path().join("vm/disk1.raw"), 1 << 30, tool().is_some()));
    // Whoever waited for it is gone, as at a cancelled boot.
    drop(tokio::time::timeout(std::time::Duration::ZERO, making).await);
    work.ended().await;
    assert!(!dir.path().join("vm/disk1.partial").exists());
}

#[test]
fn a_host_without_the_tool_says_so() {
    let disk = ResolvedDisk { fs: Some(DiskFs::Ext4), size_bytes: Some(8 << 20), ..ResolvedDisk::default() };
    let mut spec = crate::journal::tests::vm(1, "a", 1).spec;
    assert!(supported(&spec, None, None).is_ok());
    spec.disks = vec![disk];
    assert!(supported(&spec, Some("/sbin/mkfs.ext4".into()), None).is_ok());
    let error = supported(&spec, None, None).unwrap_err();
    assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::Unsupported, "spec.disks[0].fs"));
    spec.disks.clear();
    spec.seed = Some(SeedSpec { agent: true, ..SeedSpec::default() });
    let error = supported(&spec, None, None).unwrap_err();
    assert_eq!((error.code, error.details["field"].as_str()), (ErrorCode::Unsupported, "spec.seed.agent"));
    assert!(supported(&spec, None, Some("/agent".as_ref())).is_ok());
}
