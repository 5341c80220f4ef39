//! What a file is, by its head: pure.

use drover_schemas::body::spec::ImageKind;

use super::error::{ImportError, kind_name};

/// How much of a file [`check`] looks at.
pub(super) const HEAD: usize = 4_096;
/// UEFI firmware is a few MiB.
const MAX_FIRMWARE: u64 = 64 << 20;
const SECTOR: u64 = 512;

/// Formats of disks that are not raw. To the guest their head would be the content of the disk, and a program that
/// guesses the format would follow what they name.
const OTHER_DISKS: [(&[u8], &str); 4] = [
    (b"QFI\xfb", "it is qcow2; convert it with `qemu-img convert -O raw`"),
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

/// Whether a file of `size` bytes that begins with `head` can be of a kind.
pub(super) fn check(kind: ImageKind, head: &[u8], size: u64) -> Result<(), ImportError> {
    let no = |reason| Err(ImportError::Kind { kind: kind_name(kind), reason });
    if size == 0 {
        return no("it is empty");
    }
    match kind {
        ImageKind::Disk => {
            if let Some((_, reason)) = OTHER_DISKS.iter().find(|(magic, _)| head.starts_with(magic)) {
                return no(reason);
            }
            match size.is_multiple_of(SECTOR) {
                true => Ok(()),
                false => no("its length is no multiple of 512 bytes"),
            }
        }
        ImageKind::Kernel => {
            let at =
                |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
            match at(0, b"\x7fELF") || at(0x202, b"HdrS") || at(0x38, b"ARM\x64") {
                true => Ok(()),
                false => no("it begins neither as ELF nor as a bzImage nor as an Image of arm64"),
            }
        }
        ImageKind::Initramfs => match ARCHIVES.iter().any(|magic| head.starts_with(magic)) {
            true => Ok(()),
            false => no("it is neither a cpio archive nor a compressed one"),
        },
        ImageKind::Firmware if size > MAX_FIRMWARE => no("it is larger than 64 MiB"),
        ImageKind::Firmware => Ok(()),
        ImageKind::Unknown => no("say kernel, initramfs, disk or firmware"),
    }
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
        assert!(check(ImageKind::Disk, b"x", 513).is_err() && check(ImageKind::Disk, b"", 0).is_err());
        assert!(check(ImageKind::Firmware, b"x", MAX_FIRMWARE + 1).is_err());
        assert!(!ok(ImageKind::Unknown, b"x"));
    }
}
