//! What a file is, by its head: pure.

use drover_schemas::body::spec::{ImageFormat, ImageKind};

use super::error::{ImportError, kind_name};
use super::qcow2;

/// How much of a file [`check`] looks at: as far as the last of the [`MARKS`] of file systems.
pub(super) const HEAD: usize = 68 * 1024;
/// UEFI firmware is a few MiB.
const MAX_FIRMWARE: u64 = 64 << 20;
const SECTOR: u64 = 512;
/// A CD has sectors of this size.
const CD_SECTOR: u64 = 2_048;

/// Formats of disks that no VM gets. To the guest their head would be the content of the disk, and a program that
/// guesses the format would follow what they name.
const OTHER_DISKS: [(&[u8], &str); 3] = [
    (b"KDMV", "it is VMDK; convert it with `qemu-img convert -O raw`"),
    (b"vhdxfile", "it is VHDX; convert it with `qemu-img convert -O raw`"),
    (b"conectix", "it is VHD; convert it with `qemu-img convert -O raw`"),
];

/// How archives for the kernel begin: cpio of both kinds, and what the kernel unpacks.
const ARCHIVES: [&[u8]; 9] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0",
    b"BZh",
    b"\x02\x21\x4c\x18",
    b"\x89LZO",
    b"\x5d\0\0",
];

/// Where file systems that kernels mount as their root say what they are: ext4, XFS, Btrfs, SquashFS and EROFS.
const MARKS: [(usize, &[u8]); 5] =
    [(0x438, b"\x53\xef"), (0, b"XFSB"), (0x1_0040, b"_BHRfS_M"), (0, b"hsqs"), (0x400, b"\xe2\xe1\xf5\xe0")];

/// What ISO 9660 begins with, after 16 sectors that it leaves to others.
const ISO: (usize, &[u8]) = (0x8001, b"CD001");

/// What is known of a content by its head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Its format.
    pub format: ImageFormat,
    /// The length of the disk, where it is not the file's.
    pub virtual_bytes: Option<u64>,
}

/// What a disk of `size` bytes that begins with `head` is.
pub(super) fn disk(head: &[u8], size: u64) -> Result<Head, &'static str> {
    if head.starts_with(qcow2::MAGIC) {
        let virtual_bytes = Some(qcow2::disk_bytes(head, size)?);
        return Ok(Head { format: ImageFormat::Qcow2, virtual_bytes });
    }
    if let Some((_, reason)) = OTHER_DISKS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(reason);
    }
    match size.is_multiple_of(SECTOR) {
        true => Ok(Head::default()),
        false => Err("its length is no multiple of 512 bytes"),
    }
}

/// Whether a file of `size` bytes that begins with `head` can be of a kind, and what else is seen.
pub(super) fn check(kind: ImageKind, head: &[u8], size: u64) -> Result<Head, ImportError> {
    let no = |reason| ImportError::Kind { kind: kind_name(kind), reason };
    if size == 0 {
        return Err(no("it is empty"));
    }
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let (is_it, reason) = match kind {
        ImageKind::Disk => return disk(head, size).map_err(no),
        ImageKind::Rootfs if !size.is_multiple_of(SECTOR) => {
            (false, "its length is no multiple of 512 bytes")
        }
        ImageKind::Rootfs => (
            MARKS.iter().any(|(offset, magic)| at(*offset, magic)),
            "it begins as none of ext4, XFS, Btrfs, SquashFS and EROFS; what has partitions is a disk",
        ),
        ImageKind::Iso => {
            (size.is_multiple_of(CD_SECTOR) && at(ISO.0, ISO.1), "it is no ISO 9660 of whole sectors")
        }
        ImageKind::Kernel => (
            at(0, b"\x7fELF") || at(0x202, b"HdrS") || at(0x38, b"ARM\x64"),
            "it begins neither as ELF nor as a bzImage nor as an Image of arm64",
        ),
        ImageKind::Initramfs => (
            ARCHIVES.iter().any(|magic| head.starts_with(magic)),
            "it is neither a cpio archive nor a compressed one",
        ),
        ImageKind::Firmware => (size <= MAX_FIRMWARE, "it is larger than 64 MiB"),
        ImageKind::Unknown => (false, "say kernel, initramfs, disk, rootfs, iso or firmware"),
    };
    is_it.then(Head::default).ok_or_else(|| no(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_of_its_kind_by_its_head() {
        let head = |at: usize, magic: &[u8]| {
            let mut head = vec![0; HEAD];
            head[at..at + magic.len()].copy_from_slice(magic);
            head
        };
        let ok = |kind, head: &[u8]| check(kind, head, 4_096).is_ok();
        assert!(ok(ImageKind::Kernel, &head(0, b"\x7fELF")) && ok(ImageKind::Kernel, &head(0x202, b"HdrS")));
        assert!(!ok(ImageKind::Kernel, &head(0, b"MZ")) && !ok(ImageKind::Kernel, b"HdrS"));
        assert!(ok(ImageKind::Initramfs, b"070701") && ok(ImageKind::Initramfs, &[0x1f, 0x8b]));
        assert!(!ok(ImageKind::Initramfs, b"root"));
        assert!(ok(ImageKind::Disk, &head(0, b"")) && !ok(ImageKind::Disk, &head(0, b"QFI\xfb")));
        assert!(!ok(ImageKind::Disk, &head(0, b"KDMV")) && !ok(ImageKind::Disk, &head(0, b"conectix")));
        assert!(MARKS.iter().all(|(at, magic)| ok(ImageKind::Rootfs, &head(*at, magic))));
        assert!(
            !ok(ImageKind::Rootfs, &head(0, b"QFI\xfb")) && !ok(ImageKind::Rootfs, &head(0x1fe, b"\x55\xaa"))
        );
        assert!(ok(ImageKind::Iso, &head(0x8001, b"CD001")) && !ok(ImageKind::Iso, &head(0, b"CD001")));
        assert!(check(ImageKind::Disk, b"x", 513).is_err() && check(ImageKind::Disk, b"", 0).is_err());
        assert!(check(ImageKind::Firmware, b"x", MAX_FIRMWARE + 1).is_err());
        assert!(!ok(ImageKind::Unknown, b"x"));
    }
}
