#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;
use crate::{Draft, pack, survey};

const RULES: Rules =
    Rules { owner: None, mode_mask: 0o1777, links: Links::All, max_entries: 1000, max_bytes: 1 << 20 };

fn hold(path: &Path) -> OwnedFd {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn packed(path: &Path) -> (Vec<u8>, Tally) {
    let mut stream = Vec::new();
    let tally = pack(&hold(path), &mut stream).unwrap();
    (stream, tally)
}

/// What lies below a folder: kind, permissions, time and content of each path.
fn seen(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let content = if meta.is_dir() {
                left.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                std::fs::read(&path).unwrap()
            };
            // A link's own time does not travel.
            let mtime = if meta.is_symlink() { 0 } else { meta.mtime() };
            all.insert(path.strip_prefix(root).unwrap().to_owned(), (meta.mode(), mtime, content));
        }
    }
    all
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Link(String),
    Dir(BTreeMap<String, Node>, u32),
}

fn node() -> impl Strategy<Value = Node> {
    let file = (prop::collection::vec(any::<u8>(), 0..2000), 0..0o1000_u32)
        .prop_map(|(bytes, mode)| Node::File(bytes, mode));
    let leaf = prop_oneof![file, "[a-z./]{1,150}".prop_map(Node::Link)];
    let name = prop_oneof!["[a-zäß ]{1,8}", "[a-z]{120,200}"];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        (prop::collection::btree_map(name.clone(), inner, 0..5), 0..0o1000_u32)
            .prop_map(|(inner, mode)| Node::Dir(inner, mode))
    })
}

fn build(at: &Path, node: &Node) {
    match node {
        Node::File(bytes, mode) => {
            std::fs::write(at, bytes).unwrap();
            std::fs::set_permissions(at, Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(target) => symlink(target, at).unwrap(),
        Node::Dir(inner, mode) => {
            std::fs::create_dir(at).unwrap();
            for (name, node) in inner {
                build(&at.join(name), node);
            }
            std::fs::set_permissions(at, Permissions::from_mode(*mode)).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + u64::from(*mode));
            File::open(at).unwrap().set_modified(time).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_is_unpacked_is_what_was_packed(inner in prop::collection::btree_map("[a-z]{1,3}", node(), 0..6)) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        build(&from, &Node::Dir(inner, 0o750));
        std::fs::create_dir(&to).unwrap();
        let (stream, sent) = packed(&from);
        let counted = survey(&hold(&from)).unwrap();
        prop_assert_eq!((counted.entries, counted.size_bytes), (sent.entries, sent.size_bytes));
        let got = unpack(Cursor::new(&stream), &hold(&to), &RULES).unwrap();
        prop_assert_eq!(&got, &sent);
        prop_assert_eq!(got.stream_bytes, stream.len() as u64);
        prop_assert_eq!(seen(&to), seen(&from));
        prop_assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o750);
    }

    #[test]
    fn a_stream_that_is_cut_or_changed_does_no_harm(at in 0..6000_usize, with in any::<u8>(), cut in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let inner = [("a".to_owned(), Node::File(vec![7; 700], 0o644)), ("b".repeat(150), Node::Link("a".into()))];
        build(&from, &Node::Dir(BTreeMap::from(inner), 0o755));
        std::fs::create_dir(&to).unwrap();
        let (mut stream, _) = packed(&from);
        let at = at % stream.len();
        if cut { stream.truncate(at) } else { stream[at] = with }
        let done = unpack(Cursor::new(&stream), &hold(&to), &RULES);
        // Whole or refused: up to its end mark every byte is needed.
        if cut && at < stream.len() { prop_assert!(done.is_err()); }
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the folder");
    }
}

/// Kind, name, what a link names, content.
type Forged<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A stream of entries as an enemy writes them: names are put into the header as they are.
fn forged(entries: &[Forged<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, link, bytes) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        header.set_size(bytes.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn no_stream_reaches_beyond_its_folder() {
    use EntryType as E;
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("secret"), b"kept").unwrap();
    let into_victim = format!("{victim}/secret");
    let streams: &[&[Forged<'_>]] = &[
        &[(E::Regular, "../x", "", b"x")],
        &[(E::Regular, "a/../../x", "", b"x")],
        &[(E::Regular, &into_victim, "", b"x")],
        &[(E::Regular, "", "", b"x")],
        &[(E::Regular, ".", "", b"x")],
        // Through a link that the stream has made.
        &[(E::Symlink, "out", victim, b""), (E::Regular, "out/x", "", b"x")],
        &[(E::Symlink, "out", victim, b""), (E::Directory, "out", "", b""), (E::Regular, "out/x", "", b"x")],
        &[(E::Symlink, "secret", &into_victim, b""), (E::Regular, "secret", "", b"x")],
        // A name for a file elsewhere.
        &[(E::Link, "x", &into_victim, b"")],
        &[(E::Symlink, "out", victim, b""), (E::Link, "x", "out/secret", b"")],
        &[(E::Symlink, "s", &into_victim, b""), (E::Link, "x", "s", b"")],
        &[(E::Regular, "x", "", b"1"), (E::Regular, "x", "", b"2")],
        &[(E::GNUSparse, "x", "", b"")],
    ];
    for stream in streams {
        let dir = tempfile::tempdir().unwrap();
        let done = unpack(Cursor::new(forged(stream)), &hold(dir.path()), &RULES);
        assert!(done.is_err(), "{stream:?}: {done:?}");
    }
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn devices_are_left_out_and_what_is_beyond_the_rules_is_refused() {
    use EntryType as E;
    let dir = tempfile::tempdir().unwrap();
    let stream = forged(&[
        (E::Char, "null", "", b""),
        (E::Fifo, "pipe", "", b""),
        (E::Regular, "deep/er/x", "", b"x"),
        (E::Link, "y", "deep/er/x", b""),
        (E::Symlink, "in", "deep/er", b""),
        (E::Symlink, "out", "/etc/passwd", b""),
        (E::Symlink, "deep/out", "er/..", b""),
        (E::Symlink, "deep/up", "../y", b""),
        (E::Symlink, "deep/out2", "../../y", b""),
    ]);
    let inside = Rules { links: Links::Inside, ..RULES };
    let done = unpack(Cursor::new(&stream), &hold(dir.path()), &inside).unwrap();
    assert_eq!((done.entries, done.skipped, done.size_bytes), (4, 5, 1));
    let names: Vec<_> = seen(dir.path()).into_keys().collect();
    let expected = ["deep", "deep/er", "deep/er/x", "deep/up", "in", "y"].map(PathBuf::from);
    assert_eq!(names, expected);

    for rules in [Rules { max_entries: 2, ..RULES }, Rules { max_bytes: 0, ..RULES }] {
        let dir = tempfile::tempdir().unwrap();
        let done = unpack(Cursor::new(&stream), &hold(dir.path()), &rules);
        assert!(matches!(done, Err(TreeError::TooMuch { .. })), "{done:?}");
    }
    // A name that claims to be long costs nothing.
    let mut header = Header::new_gnu();
    header.set_entry_type(E::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let done = unpack(Cursor::new(header.as_bytes()), &hold(dir.path()), &RULES);
    assert!(matches!(done, Err(TreeError::Malformed { .. })), "{done:?}");
    // What follows the end mark is bounded.
    let endless = std::io::repeat(0);
    let done = unpack(Cursor::new([0; 512]).chain(endless), &hold(dir.path()), &RULES);
    assert!(matches!(done, Err(TreeError::Malformed { .. })), "{done:?}");
}

#[test]
fn holes_are_holes_where_they_arrive_and_pipes_do_not_travel() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for path in [&from, &to] {
        std::fs::create_dir(path).unwrap();
    }
    let file = File::create(from.join("sparse")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"end", (1 << 20) - 3).unwrap();
    fs::mkfifoat(fs::CWD, from.join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
    let (stream, sent) = packed(&from);
    assert_eq!((sent.entries, sent.skipped), (1, 1));
    unpack(Cursor::new(&stream), &hold(&to), &RULES).unwrap();
    let copy = to.join("sparse");
    assert_eq!(copy.metadata().unwrap().len(), 1 << 20);
    assert!(copy.metadata().unwrap().blocks() * 512 <= BATCH as u64);
    assert!(std::fs::read(copy).unwrap().ends_with(b"\0end"));
}

#[test]
fn a_folder_takes_its_name_when_it_is_whole_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let draft = || Draft::new(hold(dir.path()), ".site.draft".into()).unwrap();
    let left = || std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    drop(draft());
    assert!(left().is_empty());
    let first = draft();
    std::fs::write(dir.path().join(".site.draft/old"), b"").unwrap();
    first.place(Path::new("site"), false).unwrap();
    assert!(matches!(draft().place(Path::new("site"), false), Err(TreeError::Taken { .. })));
    assert_eq!(left(), ["site"]);
    assert!(dir.path().join("site/old").exists());
    draft().place(Path::new("site"), true).unwrap();
    assert_eq!(left(), ["site"]);
    assert!(!dir.path().join("site/old").exists());
    // Also in the place of a file or a link, which is not followed.
    for make in [|at: &Path| std::fs::write(at, b"").unwrap(), |at: &Path| symlink("/etc", at).unwrap()] {
        let at = dir.path().join("x");
        make(&at);
        draft().place(Path::new("x"), true).unwrap();
        assert!(at.symlink_metadata().unwrap().is_dir());
        std::fs::remove_dir(&at).unwrap();
    }
}
