use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

const MIB: usize = 1 << 20;

#[derive(Debug, Default)]
struct Got {
    size: Option<u64>,
    bytes: Vec<u8>,
}

impl Write for &mut Got {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Out for &mut Got {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        assert_eq!(self.size.replace(size), None, "it begins once");
        Ok(())
    }
}

/// Members by kind, name (as it is, however bad) and content.
fn layer(members: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, content) in members {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn pick(layers: &[Vec<u8>], max_bytes: u64) -> Result<Got, Refused> {
    let mut got = Got::default();
    let mut pick = Pick::new(&mut got, max_bytes);
    for layer in layers {
        match layer.starts_with(b"\x1f\x8b") {
            true => pick.layer(MultiGzDecoder::new(&layer[..]))?,
            false => pick.layer(&layer[..])?,
        }
    }
    pick.end()?;
    Ok(got)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn the_one_file_below_disk_is_found_wherever_it_lies() {
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let disk =
        layer(&[(Directory, "./", b""), (Directory, "disk/", b""), (Regular, "./disk/a.img", &content)]);
    let other = layer(&[
        (Regular, "etc/os-release", b"x"),
        (Regular, "disk", b"no folder"),
        (Regular, "diskette/a", b"x"),
    ]);
    for layers in [vec![disk.clone()], vec![other.clone(), gz(&disk)], vec![disk.clone(), gz(&other)]] {
        let got = pick(&layers, MIB as u64).unwrap();
        assert_eq!((got.size, &got.bytes), (Some(content.len() as u64), &content));
    }
    // Two members of gzip are one stream.
    let (front, back) = disk.split_at(70_000);
    assert_eq!(pick(&[[gz(front), gz(back)].concat()], MIB as u64).unwrap().bytes, content);
}

#[test]
fn what_no_container_disk_has_is_refused_by_its_name() {
    for (kind, name, what) in [
        (Symlink, "disk/a.img", "a symbolic link"),
        (Symlink, "disk", "a symbolic link"),
        (Link, "disk/a.img", "a hard link"),
        (Char, "disk/null", "a device"),
        (Block, "disk/sda", "a device"),
        (Fifo, "etc/pipe", "a pipe"),
        (Regular, "disk/.wh.a.img", "a whiteout"),
        (Regular, "disk/.wh..wh..opq", "a whiteout"),
        (EntryType::new(b'V'), "x", "something of an unknown kind"),
    ] {
        let layers = [layer(&[(Regular, "disk/b.img", b"b")]), layer(&[(kind, name, b"")])];
        let error = pick(&layers, MIB as u64).unwrap_err();
        assert!(
            matches!(&error, Refused::Member { what: is, path } if *is == what && path == name),
            "{error}"
        );
    }
    for name in ["../disk/a.img", "disk/../../a", "/disk/a.img", "disk/..", ".."] {
        let error = pick(&[layer(&[(Regular, name, b"x")])], MIB as u64).unwrap_err();
        assert!(matches!(&error, Refused::Path { path } if path == name), "{error}");
    }
    let two = [layer(&[(Regular, "disk/a", b"a")]), layer(&[(Regular, "disk/sub/b", b"b")])];
    let error = pick(&two, MIB as u64).unwrap_err();
    assert!(
        matches!(&error, Refused::Several { first, second } if first == "disk/a" && second == "disk/sub/b"),
        "{error}"
    );
    // The same name in a later layer is another candidate as well.
    assert!(matches!(pick(&[two[0].clone(), two[0].clone()], MIB as u64), Err(Refused::Several { .. })));
    for none in [vec![], vec![layer(&[])], vec![layer(&[(Directory, "disk/", b"")])]] {
        assert!(matches!(pick(&none, MIB as u64), Err(Refused::NoDisk)));
    }
}

#[test]
fn a_bomb_and_what_is_no_layer_are_refused() {
    let zeros = vec![0; 2 * MIB];
    let large = gz(&layer(&[(Regular, "disk/a", &zeros)]));
    assert!(large.len() < 20_000);
    let error = pick(&[large], MIB as u64).unwrap_err();
    assert!(matches!(error, Refused::Large { needed, .. } if needed == 2 * MIB as u64), "{error}");
    // Beside the disk, in one layer or over several, before it or behind it.
    let part = gz(&layer(&[(Regular, "a", &zeros[..MIB * 2 / 3])]));
    let disk = layer(&[(Regular, "disk/a", &zeros[..MIB])]);
    assert!(pick(&[part.clone(), disk.clone()], MIB as u64).is_ok());
    for layers in [vec![part.clone(), part.clone(), disk.clone()], vec![disk.clone(), gz(&zeros)]] {
        let error = pick(&layers, MIB as u64).unwrap_err();
        assert!(matches!(error, Refused::Beside { .. } | Refused::Layer(_)), "{error}");
    }
    let error = pick(&[disk.clone(), part.clone(), part], MIB as u64).unwrap_err();
    assert!(matches!(error, Refused::Beside { .. }), "{error}");
    let (cut, mut torn) = (disk[..MIB].to_vec(), gz(&disk));
    let last = torn.len() - 5;
    torn[last] ^= 1;
    let mut header = layer(&[(Regular, "disk/a", b"a")]);
    header[3] ^= 1;
    for bad in [b"qcow2".to_vec(), cut, torn, header, gz(b"x")] {
        let error = pick(&[bad], 2 * MIB as u64).unwrap_err();
        assert!(matches!(error, Refused::Layer(_)), "{error}");
    }
    // A size that none can have.
    let mut endless = Header::new_gnu();
    endless.set_path("a").unwrap();
    endless.set_size(u64::MAX);
    endless.set_cksum();
    assert!(pick(&[endless.as_bytes().to_vec()], u64::MAX).is_err());
}

proptest! {
    #[test]
    fn a_damaged_layer_never_brings_more_than_was_said(at in 0_usize..3_000, to in any::<u8>()) {
        let mut bytes = layer(&[(Directory, "disk/", b""), (Regular, "disk/a", &[7; 700]), (Regular, "b", b"x")]);
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(got) = pick(&[bytes], 10_000) {
            prop_assert_eq!(got.size, Some(got.bytes.len() as u64));
        }
    }
}
