//! What is mounted: pure, from the text of `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// The mount's number.
    pub id: u64,
    /// The file system's device number: the same for all mounts of one.
    pub dev: (u32, u32),
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its kind.
    pub fs_type: String,
    /// What was mounted, as `/dev/vda1`.
    pub source: String,
    /// Whether the file system can be written, whatever this mount of it allows.
    pub writable: bool,
}

impl Mount {
    /// Where it is mounted, for people; cut, as a guest may mount at a path of any length.
    #[must_use]
    pub fn shown(&self) -> String {
        let text = self.point.to_string_lossy();
        text[..text.floor_char_boundary(256)].to_owned()
    }
}

/// `\040` and the like are a space and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// A field of the kernel's lists of mounts, which write a space as `\040`.
fn unescaped(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(bytes)).into_owned()
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let (_parent, dev, _root) = (fields.next()?, fields.next()?, fields.next()?);
    let colon = dev.iter().position(|b| *b == b':')?;
    let dev = (number(&dev[..colon])?, number(&dev[colon + 1..])?);
    let point = OsString::from_vec(unescape(fields.next()?)).into();
    // Options of the mount and optional fields, up to a lone dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let (fs_type, source) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let writable = fields.next()?.split(|b| *b == b',').any(|option| option == b"rw");
    Some(Mount { id, dev, point, fs_type, source, writable })
}

/// The mounts of the first `most` lines, in the order in which they were made.
#[must_use]
pub fn parse(mountinfo: &[u8], most: usize) -> Vec<Mount> {
    mountinfo.split(|b| *b == b'\n').take(most).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const MOUNTINFO: &[u8] = include_bytes!("look/fixtures/mountinfo.txt");

    #[test]
    fn a_mount_is_read_with_its_escapes() {
        let mounts = parse(MOUNTINFO, 99);
        let root = mounts.iter().find(|m| m.point == Path::new("/")).unwrap();
        assert_eq!((root.dev, root.fs_type.as_str(), root.source.as_str()), ((254, 0), "ext4", "/dev/vda"));
        // With and without a word between the options and the dash.
        let data = mounts.iter().find(|m| m.dev == (254, 17)).unwrap();
        assert_eq!((data.shown().as_str(), data.source.as_str()), ("/srv/my data", "/dev/vdb1"));
        assert!(mounts.iter().any(|m| m.point == Path::new("/mnt/a\\b\tc") && m.fs_type == "btrfs"));
        assert_eq!(unescaped(b"\\0a\\40\\777\\"), "\\0a\\40\\777\\");
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes, 99);
        }

        #[test]
        fn likely_bytes_are_survived(text in "(cpu |Uid:|btime |ID=|eth0: )?[0-9 ():\\-,\\\\'\"=\n]{0,200}") {
            let _ = parse(text.as_bytes(), 99);
            let once = unescaped(text.as_bytes());
            prop_assert!(once.len() <= 3 * text.len());
        }

        #[test]
        fn what_the_kernel_escapes_comes_back(name in "[ -~\t\n]{0,60}") {
            let escaped: String = name.bytes().map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}"),
                b => char::from(b).to_string(),
            }).collect();
            prop_assert_eq!(unescaped(escaped.as_bytes()), name);
        }
    }
}
