//! The head of a QCOW2 file: pure. Layout and meaning by QEMU's `docs/interop/qcow2.txt`; what is taken is what Cloud
//! Hypervisor v53 opens, and nothing that names another file or has a length that nobody could write.

/// How such a file begins.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";
/// The head of version 2, and the least one of version 3.
const HEAD_V2: usize = 72;
const HEAD_V3: usize = 104;
/// Clusters of 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The longest disk that Cloud Hypervisor opens.
const MAX_DISK: u64 = 16 << 40;
const SECTOR: u64 = 512;

/// Bits of what a reader has to know.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
/// The first tables must lie within the file; each entry has eight bytes.
const ENTRY: u64 = 8;

/// The length of the disk in a file of `size` bytes that begins with `head`.
///
/// # Errors
/// Why it is not taken, and what to do.
pub(super) fn disk_bytes(head: &[u8], size: u64) -> Result<u64, &'static str> {
    let short = || "it is qcow2 and ends within its head; make it again with `qemu-img convert -O qcow2`";
    if head.len() < HEAD_V2 || !head.starts_with(MAGIC) {
        return Err(short());
    }
    let u32_at = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let (Some(version), Some(backing), Some(cluster_bits), Some(disk)) =
        (u32_at(4), u64_at(8), u32_at(20), u64_at(24))
    else {
        return Err(short());
    };
    let (Some(encrypted), Some(l1_entries), Some(l1_at), Some(counts_at), Some(snapshots)) =
        (u32_at(32), u32_at(36), u64_at(40), u64_at(48), u32_at(60))
    else {
        return Err(short());
    };
    if !matches!(version, 2 | 3) {
        return Err("it is qcow of another version than 2 or 3; convert it with `qemu-img convert -O qcow2`");
    }
    if backing != 0 {
        return Err("it names a backing file; make it whole with `qemu-img convert -O qcow2`");
    }
    if encrypted != 0 {
        return Err("it is encrypted; convert it without `encrypt.format`");
    }
    if snapshots != 0 {
        return Err("it has snapshots inside; make it anew with `qemu-img convert -O qcow2`");
    }
    if version == 3 {
        let (Some(needs), Some(length)) = (u64_at(72), u32_at(100)) else { return Err(short()) };
        if (length as usize) < HEAD_V3 {
            return Err(short());
        }
        if needs & EXTERNAL_DATA != 0 {
            return Err("its data is in another file; convert it without `data_file`");
        }
        if needs & (DIRTY | CORRUPT) != 0 {
            return Err("it was not closed or is damaged; see `qemu-img check -r all`");
        }
        if needs & !COMPRESSION != 0 {
            return Err(
                "it has a feature that no VMM here opens; convert it with `qemu-img convert -O qcow2`",
            );
        }
    }
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err("the size of its clusters is none of 512 bytes to 2 MiB");
    }
    if disk == 0 || !disk.is_multiple_of(SECTOR) || disk > MAX_DISK {
        return Err("the length of its disk is no multiple of 512 bytes up to 16 TiB");
    }
    // What the tables of a disk of this length need: one entry for each table of a cluster of entries.
    let cluster = 1u64 << cluster_bits;
    let per_entry = cluster.saturating_mul(cluster / ENTRY);
    let needed = disk.div_ceil(per_entry);
    let end = u64::from(l1_entries).checked_mul(ENTRY).and_then(|length| length.checked_add(l1_at));
    let is_table = |at: u64| at != 0 && at.is_multiple_of(cluster) && at < size;
    let fits = end.is_some_and(|end| end <= size) && u64::from(l1_entries) >= needed;
    if !fits || !is_table(l1_at) || !is_table(counts_at) {
        return Err("its tables do not lie within the file; it was cut off or is damaged");
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: u64 = 1 << 16;
    const SIZE: u64 = 4 * CLUSTER;

    /// As `qemu-img create -f qcow2 x 1G` makes it.
    fn made() -> Vec<u8> {
        let mut head = vec![0; 4_096];
        head[..4].copy_from_slice(MAGIC);
        for (at, value) in [(4, 3u32), (20, 16), (36, 2), (56, 1), (96, 4), (100, 112)] {
            head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        for (at, value) in [(24, 1u64 << 30), (40, 3 * CLUSTER), (48, CLUSTER)] {
            head[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        head
    }

    fn refused(at: usize, value: &[u8], word: &str) {
        let mut head = made();
        head[at..at + value.len()].copy_from_slice(value);
        let why = disk_bytes(&head, SIZE).unwrap_err();
        assert!(why.contains(word), "{at}: {why}");
    }

    #[test]
    fn one_file_alone_is_taken() {
        assert_eq!(disk_bytes(&made(), SIZE), Ok(1 << 30));
        let mut old = made();
        old[7] = 2;
        old[72..].fill(0xff);
        assert_eq!(disk_bytes(&old, SIZE), Ok(1 << 30), "version 2 has no features");
        let mut zstd = made();
        zstd[79] = COMPRESSION as u8;
        assert_eq!(disk_bytes(&zstd, SIZE), Ok(1 << 30));
        refused(8, &64u64.to_be_bytes(), "backing file");
        refused(32, &1u32.to_be_bytes(), "encrypted");
        refused(60, &1u32.to_be_bytes(), "snapshots");
        refused(4, &1u32.to_be_bytes(), "version");
        refused(72, &DIRTY.to_be_bytes(), "not closed");
        refused(72, &CORRUPT.to_be_bytes(), "damaged");
        refused(72, &EXTERNAL_DATA.to_be_bytes(), "another file");
        refused(72, &(1u64 << 4).to_be_bytes(), "feature");
        refused(100, &16u32.to_be_bytes(), "ends within");
        refused(20, &40u32.to_be_bytes(), "clusters");
        refused(24, &0u64.to_be_bytes(), "length");
        refused(24, &(1u64 << 60).to_be_bytes(), "length");
        refused(24, &(1u64 << 40).to_be_bytes(), "tables");
        refused(36, &u32::MAX.to_be_bytes(), "tables");
        refused(40, &u64::MAX.to_be_bytes(), "tables");
        refused(40, &1u64.to_be_bytes(), "tables");
        refused(48, &SIZE.to_be_bytes(), "tables");
        assert!(disk_bytes(&made()[..80], SIZE).unwrap_err().contains("head"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(mut head in prop::collection::vec(any::<u8>(), 0..200), size: u64, of_it: bool) {
            if of_it && head.len() >= 4 {
                head[..4].copy_from_slice(MAGIC);
            }
            if let Ok(disk) = disk_bytes(&head, size) {
                prop_assert!(disk <= MAX_DISK);
            }
        }
    }
}
