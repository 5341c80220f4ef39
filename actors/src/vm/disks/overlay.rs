//! A disk that lies over its image: a QCOW2 file that names the image as its backing file. What the guest has not written
//! is read from there, so it is made in no time whatever the image's length. All of it blocks.
//!
//! Its file is the VMM's to write. Nothing here follows what it says: only a head that is as it was made is changed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use drover_schemas::body::spec::ImageFormat;
use imago::FormatCreateBuilder as _;
use imago::qcow2::Qcow2;

use super::own::open;

/// The length of a cluster, and of the first table: each of its entries of eight bytes is a cluster of entries, which
/// are a cluster each.
const CLUSTER: u64 = 1 << 16;
const ENTRY: u64 = 8;
const PER_ENTRY: u64 = CLUSTER / ENTRY * CLUSTER;
/// What one cluster of that table has room for: 4 TiB. A longer disk would need its table moved to grow.
const MAX: u64 = CLUSTER / ENTRY * PER_ENTRY;

/// Where things stand in the head, by QEMU's `docs/interop/qcow2.txt`: `magic` and `version`; `cluster_bits`; then
/// `size`, `crypt_method`, `l1_size`.
const MAGIC: [u8; 8] = *b"QFI\xfb\0\0\0\x03";
const CLUSTER_BITS: u64 = 20;
const SIZE: u64 = 24;

/// A disk that lies over its image.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Where it is.
    pub own: PathBuf,
    /// The image, which never changes.
    pub image: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// How long the disk is that the guest sees.
    pub length: u64,
}

/// It cannot be laid over its image.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The path cannot stand in the file.
    #[error(
        "the path {0:?} of the image is no UTF-8 or is longer than 1,023 bytes; use another store_dir for images, or switch overlays off (disks.overlays)"
    )]
    Path(PathBuf),
    /// The file cannot be written.
    #[error("write the QCOW2 file")]
    Create(#[source] io::Error),
    /// The file that is there cannot be opened.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The head of the file is not as it was made.
    #[error("{0} is no QCOW2 file as it was made here; it was changed or is damaged")]
    Head(PathBuf),
    /// The head cannot be written.
    #[error("make {path} longer")]
    Lengthen {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Overlay {
    /// Whether a disk of so many bytes can lie over an image: one that is longer could not grow.
    #[must_use]
    pub const fn can_have(length: u64) -> bool {
        length <= MAX
    }

    /// Makes an empty file into one that lies over the image.
    ///
    /// # Errors
    /// [`OverlayError`]
    pub fn create(&self, to: &File) -> Result<(), OverlayError> {
        let image = self.image.to_str().filter(|path| path.len() <= 1_023);
        let image = image.ok_or_else(|| OverlayError::Path(self.image.clone()))?;
        let format = match self.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        let create = || {
            let to = imago::file::File::try_from(to.try_clone()?)?;
            let made = Qcow2::<imago::file::File>::create_builder(to);
            made.size(self.length).backing(image.to_owned(), format.to_owned()).create()
        };
        create().map_err(OverlayError::Create)
    }

    /// Makes the disk as long as it shall be; a longer one stays. The VMM must not run: it has the head in its memory.
    ///
    /// # Errors
    /// [`OverlayError`]; nothing was changed then.
    pub fn lengthen(&self) -> Result<(), OverlayError> {
        let path = &self.own;
        let file = open(path, OpenOptions::new().read(true).write(true))
            .map_err(|source| OverlayError::Open { path: path.clone(), source })?;
        let mut head = [0; 40];
        let read = match file.metadata() {
            Ok(meta) if meta.is_file() => file.read_exact_at(&mut head, 0).is_ok(),
            _ => false,
        };
        let known = read.then(|| tail_for(&head, self.length)).flatten();
        let Some(tail) = known.ok_or_else(|| OverlayError::Head(path.clone()))? else { return Ok(()) };
        let write = || {
            file.write_all_at(&tail, SIZE)?;
            file.sync_all()
        };
        write().map_err(|source| OverlayError::Lengthen { path: path.clone(), source })
    }
}

/// What stands from [`SIZE`] on in the head of a disk of `length` bytes; `None` inside if it is that long already, and
/// outside if the head is none of ours. It lies in one sector, so a write of it is whole or was not.
fn tail_for(head: &[u8; 40], length: u64) -> Option<Option<[u8; 16]>> {
    let u32_at = |at: u64| {
        let at = usize::try_from(at).ok()?;
        Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?))
    };
    let is_ours = head.starts_with(&MAGIC)
        && u32_at(CLUSTER_BITS) == Some(CLUSTER.trailing_zeros())
        // Not encrypted.
        && u32_at(SIZE + 8) == Some(0);
    if !is_ours || !Overlay::can_have(length) {
        return None;
    }
    let has = (u64::from(u32_at(SIZE)?) << 32) | u64::from(u32_at(SIZE + 4)?);
    let entries = u32_at(SIZE + 12)?.max(u32::try_from(length.div_ceil(PER_ENTRY)).ok()?);
    if u64::from(entries) > CLUSTER / ENTRY {
        return None;
    }
    let mut tail = [0; 16];
    tail[..8].copy_from_slice(&length.to_be_bytes());
    tail[12..].copy_from_slice(&entries.to_be_bytes());
    Some((length > has).then_some(tail))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn laid(dir: &std::path::Path, length: u64) -> Overlay {
        let overlay = Overlay {
            own: dir.join(format!("{length}.overlay")),
            image: dir.join("image"),
            format: ImageFormat::Raw,
            length,
        };
        fs::write(&overlay.image, vec![7; 1 << 20]).unwrap();
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(&overlay.own);
        overlay.create(&open.unwrap()).unwrap();
        overlay
    }

    fn field(overlay: &Overlay, at: u64, length: usize) -> u64 {
        let mut bytes = [0; 8];
        File::open(&overlay.own).unwrap().read_exact_at(&mut bytes[8 - length..], at).unwrap();
        u64::from_be_bytes(bytes)
    }

    /// By another program that knows the format, where there is one.
    fn judged(overlay: &Overlay) {
        let Ok(check) = Command::new("qemu-img").args(["check", "-q"]).arg(&overlay.own).status() else {
            println!("SKIP what qemu-img says of it: it is not installed");
            return;
        };
        assert!(check.success(), "{overlay:?}");
        let info =
            Command::new("qemu-img").args(["info", "--output=json"]).arg(&overlay.own).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["virtual-size"], overlay.length);
        assert_eq!(info["backing-filename"].as_str(), overlay.image.to_str());
        assert_eq!(info["backing-filename-format"], "raw");
    }

    #[test]
    fn it_names_its_image_is_small_and_grows_without_losing_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        for length in [1 << 20, 3 << 30, MAX] {
            let mut overlay = laid(dir.path(), length);
            assert!(fs::metadata(&overlay.own).unwrap().len() <= 8 * CLUSTER, "{length}");
            judged(&overlay);
            // What the VMM wrote.
            OpenOptions::new()
                .write(true)
                .open(&overlay.own)
                .unwrap()
                .write_all_at(b"x", 6 * CLUSTER)
                .unwrap();
            for longer in
                [length / 2, length, length + (1 << 20), 2 * PER_ENTRY].into_iter().filter(|l| *l <= MAX)
            {
                let before = field(&overlay, SIZE, 8);
                overlay.length = longer;
                overlay.lengthen().unwrap();
                let now = field(&overlay, SIZE, 8);
                assert_eq!(now, before.max(longer));
                assert!(field(&overlay, SIZE + 12, 4) >= now.div_ceil(PER_ENTRY), "{longer}");
            }
            assert_eq!(field(&overlay, 6 * CLUSTER, 1), u64::from(b'x'));
        }
        let mut overlay = laid(dir.path(), 2 << 20);
        overlay.length = 3 * PER_ENTRY;
        overlay.lengthen().unwrap();
        judged(&overlay);
    }

    #[test]
    fn what_is_no_disk_of_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = laid(dir.path(), 1 << 20);
        let other = Overlay { length: MAX + 1, ..overlay.clone() };
        assert!(!Overlay::can_have(other.length));
        assert!(matches!(other.lengthen(), Err(OverlayError::Head(_))));
        let longer = Overlay { length: 2 << 20, ..overlay.clone() };
        for (at, bytes) in [
            (0, b"QFI\xfa".as_slice()),
            (7, b"\x02"),
            (20, b"\0\0\0\x09"),
            (32, b"\0\0\0\x01"),
            (36, b"\xff"),
        ] {
            let whole = fs::read(&overlay.own).unwrap();
            OpenOptions::new().write(true).open(&overlay.own).unwrap().write_all_at(bytes, at).unwrap();
            assert!(matches!(longer.lengthen(), Err(OverlayError::Head(_))), "{at}");
            fs::write(&overlay.own, whole).unwrap();
        }
        longer.lengthen().unwrap();
        // Its folder is the VMM's: a link is not followed, and nothing is waited for.
        fs::rename(&overlay.own, dir.path().join("moved")).unwrap();
        symlink(dir.path().join("moved"), &overlay.own).unwrap();
        assert!(matches!(longer.lengthen(), Err(OverlayError::Open { .. })));
        fs::remove_file(&overlay.own).unwrap();
        nix::unistd::mkfifo(&overlay.own, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(longer.lengthen(), Err(OverlayError::Head(_))));
        let long = Overlay { image: PathBuf::from(format!("/{}", "x".repeat(1_023))), ..overlay };
        let to = tempfile::tempfile().unwrap();
        assert!(matches!(long.create(&to), Err(OverlayError::Path(_))));
    }

    proptest! {
        #[test]
        fn no_head_makes_it_fail_or_the_disk_shorter(head in prop::array::uniform32(any::<u8>()), more: u64, length: u64) {
            let mut whole = [0; 40];
            whole[..32].copy_from_slice(&head);
            whole[32..].copy_from_slice(&more.to_be_bytes());
            for ours in [false, true] {
                if ours {
                    whole[..8].copy_from_slice(&MAGIC);
                    whole[20..24].copy_from_slice(&16_u32.to_be_bytes());
                    whole[32..36].fill(0);
                }
                let has = u64::from_be_bytes(whole[24..32].try_into().unwrap());
                if let Some(Some(tail)) = tail_for(&whole, length) {
                    prop_assert!(u64::from_be_bytes(tail[..8].try_into().unwrap()) > has);
                }
            }
        }
    }
}
