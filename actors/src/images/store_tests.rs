use std::os::unix::fs::symlink;

use super::*;

fn disk(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> File {
    fs::write(dir.join(name), bytes).unwrap();
    File::open(dir.join(name)).unwrap()
}

fn len(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

fn import(store: &Store, source: File, name: &str) -> Named {
    let taken = store.take(&source, len(&source), ImageKind::Disk, None, |_| ()).unwrap();
    let Taken { sha256, size_bytes, head, .. } = &taken;
    let named = Named {
        name: name.into(),
        kind: ImageKind::Disk,
        sha256: sha256.clone(),
        size_bytes: *size_bytes,
        format: head.format,
        virtual_bytes: head.virtual_bytes,
        imported_unix_ms: 1,
        from_fleet: false,
        signature: None,
        signer: None,
    };
    store.put(&taken, &named).unwrap();
    named
}

fn left(dir: &Path) -> usize {
    fs::read_dir(dir.join("tmp")).unwrap().count()
}

#[test]
fn what_is_imported_is_there_after_a_start_and_what_was_not_finished_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, at) = (Store::open(&dir.path().join("s"), None).unwrap(), dir.path().join("s"));
    let bytes = disk(3 * CHUNK + 512);
    let named = import(&store, file(dir.path(), "d", &bytes), "root");
    assert_eq!(named.sha256, hex(&Sha256::digest(&bytes)));
    assert_eq!(fs::read(store.content(&named.sha256)).unwrap(), bytes);
    assert_eq!(
        import(&store, file(dir.path(), "d", &bytes), "again").sha256,
        named.sha256,
        "one content, two names"
    );
    assert_eq!((left(&at), store.contents().unwrap().len()), (0, 1));

    // A crash in the middle: a partial content, and one in its place without a name.
    fs::write(at.join("tmp/x"), b"half").unwrap();
    let other = import(&store, file(dir.path(), "e", &disk(1_024)), "other");
    fs::remove_file(at.join("names/other.json")).unwrap();
    let store = Store::open(&at, None).unwrap();
    assert_eq!(left(&at), 0);
    let mut names = store.names().unwrap();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(names.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["again", "root"]);
    assert_eq!(store.contents().unwrap().len(), 2);
    store.remove_content(&other.sha256).unwrap();
    store.remove_name("again").unwrap();
    assert_eq!(store.names().unwrap(), std::slice::from_ref(&named));
    // A content that was cut or a description that is none is not used, and does not stop the others.
    fs::write(at.join("names/bad.json"), b"{").unwrap();
    assert_eq!(store.names().unwrap(), std::slice::from_ref(&named));
    fs::set_permissions(store.content(&named.sha256), Permissions::from_mode(0o600)).unwrap();
    fs::write(store.content(&named.sha256), b"short").unwrap();
    assert_eq!(store.names().unwrap(), []);
    // An import mends it.
    import(&store, file(dir.path(), "d", &bytes), "root");
    assert_eq!(store.names().unwrap().len(), 1);
    assert_eq!(fs::read(store.content(&named.sha256)).unwrap(), bytes);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("s");
    let store = Store::open(&at, None).unwrap();
    let take = |name: &str, bytes: &[u8], kind, expected: Option<&str>| {
        let size = bytes.len() as u64;
        let error = store.take(file(dir.path(), name, bytes), size, kind, expected, |_| ()).unwrap_err();
        assert_eq!((left(&at), store.contents().unwrap().len()), (0, 0), "{error}");
        error
    };
    assert!(matches!(take("a", &disk(512), ImageKind::Disk, Some("00")), ImportError::Digest { .. }));
    assert!(matches!(take("b", b"", ImageKind::Disk, None), ImportError::Kind { .. }));
    assert!(matches!(take("c", b"QFI\xfb", ImageKind::Disk, None), ImportError::Kind { .. }));
    // Larger than all that there is, and not a byte of it on the disk.
    let huge = File::create_new(dir.path().join("huge")).unwrap();
    huge.set_len(1 << 50).unwrap_or_else(|_| huge.set_len(1 << 43).unwrap());
    let source = File::open(dir.path().join("huge")).unwrap();
    let error = store.take(&source, len(&source), ImageKind::Disk, None, |_| ()).unwrap_err();
    assert!(matches!(error, ImportError::Room { .. }) && error.is_full(), "{error}");
    // The file grows while it is read.
    let mut writer = File::options().append(true).open(dir.path().join("a")).unwrap();
    let source = File::open(dir.path().join("a")).unwrap();
    let grow = |_| writer.write_all(&disk(512)).unwrap();
    let error = store.take(&source, len(&source), ImageKind::Disk, None, grow).unwrap_err();
    assert!(matches!(error, ImportError::Changed { expected: 512, .. }), "{error}");
    // It broke off before it told what it is, or told a part of it.
    for found in [0, 4] {
        let error = store.take(&b"QFI\xfb"[..found], 1 << 20, ImageKind::Disk, None, |_| ()).unwrap_err();
        let ImportError::Changed { expected, found: seen } = error else { panic!("{error}") };
        assert_eq!((expected, seen), (1 << 20, found as u64));
    }
    let error = store.take(io::empty(), 0, ImageKind::Disk, None, |_| ()).unwrap_err();
    assert!(matches!(error, ImportError::Kind { .. }), "{error}");
    assert_eq!(left(&at), 0);
}

/// A source that gives its bytes one at a time.
struct Drops<'a>(&'a [u8]);

impl io::Read for Drops<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(1);
        io::Read::read(&mut self.0, &mut into[..length])
    }
}

#[test]
fn what_an_image_is_is_seen_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("s");
    let store = Store::open(&at, None).unwrap();
    let mut cd = vec![0; 40 * 1024];
    cd[0x8001..0x8006].copy_from_slice(b"CD001");
    let taken = store.take(Drops(&cd), cd.len() as u64, ImageKind::Iso, None, |_| ()).unwrap();
    assert_eq!(taken.head, Head::default(), "a head that comes in drops is seen whole");
    let mut qcow = vec![0; 4 << 16];
    qcow[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    qcow[23] = 16;
    qcow[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
    qcow[39] = 2;
    qcow[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
    qcow[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
    let named = import(&store, file(dir.path(), "q", &qcow), "q");
    assert_eq!((named.format, named.virtual_bytes), (ImageFormat::Qcow2, Some(1 << 30)));
    assert_eq!(store.names().unwrap(), std::slice::from_ref(&named));
    // One that was written before formats were told is raw.
    let raw = import(&store, file(dir.path(), "r", &disk(512)), "r");
    let text = fs::read_to_string(at.join("names/r.json")).unwrap();
    assert!(!text.contains("format") && !text.contains("virtual"), "{text}");
    assert!(store.names().unwrap().contains(&raw));
}

#[test]
fn a_store_holds_no_more_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), Some(2048)).unwrap();
    import(&store, file(dir.path(), "a", &disk(1024)), "a");
    let source = file(dir.path(), "b", &disk(1536));
    let error = store.take(&source, len(&source), ImageKind::Disk, None, |_| ()).unwrap_err();
    let expected = ImportError::Quota { needed: 1536, held: 1024, limit: 2048 };
    assert_eq!((error.to_string(), error.is_full()), (expected.to_string(), true));
    import(&store, file(dir.path(), "c", &disk(512)), "c");
}

#[test]
fn only_regular_files_below_the_directories_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let allowed = dir.path().join("in");
    fs::create_dir_all(allowed.join("sub")).unwrap();
    fs::write(allowed.join("sub/disk"), b"x").unwrap();
    fs::write(dir.path().join("secret"), b"x").unwrap();
    symlink(dir.path().join("secret"), allowed.join("link")).unwrap();
    symlink(dir.path(), allowed.join("up")).unwrap();
    nix::unistd::mkfifo(&allowed.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let dirs = [allowed.clone()];
    let open = |tail: &str| open_below(&dirs, &allowed.join(tail).display().to_string());
    assert!(open("sub/disk").is_ok());
    for refused in ["link", "up/secret", "../secret", "sub/../../secret", "none", "/etc/passwd"] {
        let error = open(refused).unwrap_err();
        assert!(
            matches!(error, ImportError::Open { .. } | ImportError::Outside { .. }),
            "{refused}: {error}"
        );
    }
    for refused in ["fifo", "sub"] {
        assert!(matches!(open(refused), Err(ImportError::NotAFile { .. })), "{refused}");
    }
    assert!(matches!(open(""), Err(ImportError::Outside { .. })));
    assert!(matches!(open_below(&[], "/x"), Err(ImportError::NoDirectories)));
}

#[test]
fn what_is_nothing_but_zeros_takes_no_room() {
    use std::os::unix::fs::MetadataExt as _;

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), None).unwrap();
    // Data, a hole, a block that ends with data, and zeros to the end, which is not a block's.
    let mut bytes = disk(BLOCK);
    bytes.resize(3 * CHUNK - 1, 0);
    bytes.push(1);
    bytes.resize(5 * CHUNK + 512, 0);
    let named = import(&store, file(dir.path(), "d", &bytes), "root");
    assert_eq!(named.sha256, hex(&Sha256::digest(&bytes)));
    assert_eq!(fs::read(store.content(&named.sha256)).unwrap(), bytes);
    let taken = fs::metadata(store.content(&named.sha256)).unwrap().blocks() * 512;
    assert!(taken <= 4 * BLOCK as u64, "{taken} bytes are taken");
}
