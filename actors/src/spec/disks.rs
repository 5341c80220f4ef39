//! Disks: each is a copy of an image or a blank one of a size, and has a name of its own.

use std::collections::BTreeSet;

use drover_schemas::body::spec::{DiskFs, DiskLimits, DiskSpec, ImageKind, ResolvedDisk};
use drover_schemas::body::vm::GrowRequest;
use drover_schemas::size::ByteSize;
use drover_schemas::{ErrorBody, ErrorCode, Token};

use super::{ImageCatalogue, image, invalid};

const MAX_DISKS: usize = 16;
/// A serial number of virtio has no more.
const MAX_NAME: usize = 20;
/// A label of ext4 has no more.
const MAX_LABEL: usize = 16;
/// The longest file of the file systems that hosts have.
const MAX_SIZE: ByteSize = ByteSize::mib(8 << 20);
/// ext4 has no room for itself on less.
const MIN_EXT4: ByteSize = ByteSize::mib(8);

const MIN_BYTES: ByteSize = ByteSize(64 << 10);
const MAX_BYTES: ByteSize = ByteSize::mib(1 << 20);
const MIN_OPS: u64 = 10;
const MAX_OPS: u64 = 10_000_000;

/// Resolves the disks of a spec.
///
/// # Errors
/// `invalid_argument` that names the field; `not_found` for an image.
pub(super) fn resolve(
    disks: Vec<DiskSpec>,
    images: &dyn ImageCatalogue,
) -> Result<Vec<ResolvedDisk>, ErrorBody> {
    if disks.len() > MAX_DISKS {
        return Err(invalid("spec.disks", format!("at most {MAX_DISKS} disks")));
    }
    let (mut names, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    let resolved = disks.into_iter().enumerate().map(|(index, disk)| {
        let field = |part: &str| format!("spec.disks[{index}].{part}");
        let name = match disk.name {
            Some(name) => name,
            // A literal that the token grammar allows.
            None => {
                Token::new(&format!("disk{index}")).map_err(|e| invalid(&field("name"), e.to_string()))?
            }
        };
        if name.as_str().len() > MAX_NAME {
            return Err(invalid(
                &field("name"),
                format!("{name:?} is too long; at most {MAX_NAME} characters"),
            ));
        }
        if !names.insert(name.clone()) {
            return Err(invalid(
                &field("name"),
                format!("another disk is {:?} too; name one of them otherwise", name.as_str()),
            ));
        }
        if let Some(limits) = &disk.limits {
            check_limits(&field("limits"), limits)?;
        }
        let (limits, discard) = (disk.limits, disk.discard);
        if discard.is_some() && disk.readonly {
            return Err(invalid(
                &field("discard"),
                "a disk that cannot be written to frees nothing; leave it out",
            ));
        }
        if disk.volume.is_some() {
            let others = [
                ("image", disk.image.is_some()),
                ("size_bytes", disk.size.is_some()),
                ("fs", disk.fs.is_some()),
                ("label", disk.label.is_some()),
            ];
            if let Some((part, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                return Err(invalid(&field(part), "a volume has been made already; leave it out"));
            }
            if disk.volume.as_ref().is_some_and(|volume| !volumes.insert(volume.clone())) {
                return Err(invalid(&field("volume"), "another disk is this volume too"));
            }
            let (volume, readonly) = (disk.volume, disk.readonly);
            return Ok(ResolvedDisk {
                name: Some(name),
                volume,
                readonly,
                discard,
                limits,
                ..ResolvedDisk::default()
            });
        }
        let source = disk.image.as_ref();
        let source = source.map(|name| image(images, &field("image"), name, ImageKind::DISKS)).transpose()?;
        if let Some(size) = disk.size {
            check_size(&field("size_bytes"), size)?;
        }
        let Some(source) = source else {
            let size = disk.size.ok_or_else(|| {
                invalid(
                    &field("image"),
                    "a disk is a copy of an image or a blank one of a size; name one of them",
                )
            })?;
            let fs = disk.fs.unwrap_or_default();
            if disk.readonly {
                return Err(invalid(
                    &field("readonly"),
                    "a blank disk that cannot be written to stays blank",
                ));
            }
            if fs == DiskFs::Ext4 && size < MIN_EXT4 {
                return Err(invalid(&field("size_bytes"), format!("ext4 needs {MIN_EXT4}")));
            }
            check_label(&field("label"), disk.label.as_deref(), fs)?;
            let (name, size_bytes) = (Some(name), Some(size.0));
            return Ok(ResolvedDisk {
                name,
                size_bytes,
                fs: Some(fs),
                label: disk.label,
                discard,
                limits,
                ..ResolvedDisk::default()
            });
        };
        if disk.fs.is_some() || disk.label.is_some() {
            let part = if disk.fs.is_some() { "fs" } else { "label" };
            return Err(invalid(
                &field(part),
                "a copy of an image has the image's file systems; leave it out",
            ));
        }
        // What was pressed on a disc cannot be written to.
        let readonly = disk.readonly || source.kind == ImageKind::Iso;
        // As long as its image is the same as not to say so.
        let length = source.disk_bytes();
        let size_bytes = disk.size.map(|size| size.0).filter(|size| *size != length);
        match size_bytes {
            Some(size) if size < length => Err(invalid(
                &field("size_bytes"),
                format!("image {:?} has {length} bytes; a copy cannot be shorter", source.name),
            )),
            Some(_) if readonly => Err(invalid(
                &field("size_bytes"),
                "a disk that cannot be written to is its image itself; leave out size_bytes or readonly",
            )),
            Some(_) if !source.format.is_raw() => Err(invalid(
                &field("size_bytes"),
                format!(
                    "image {:?} is qcow2 of {length} bytes; only a raw one can be made longer",
                    source.name
                ),
            )),
            size_bytes => Ok(ResolvedDisk {
                name: Some(name),
                image: Some(source),
                size_bytes,
                readonly,
                discard,
                limits,
                ..ResolvedDisk::default()
            }),
        }
    });
    resolved.collect()
}

/// The disks of a VM with one that is longer.
///
/// # Errors
/// `not_found` for a name that none has, `invalid_argument` for a disk that has another length than its own, or a size
/// that cannot be; a disk never becomes shorter.
pub fn grown(disks: &[ResolvedDisk], request: &GrowRequest) -> Result<Vec<ResolvedDisk>, ErrorBody> {
    let GrowRequest { disk: wanted, size_bytes: size, .. } = request;
    let mut grown = disks.to_vec();
    let found = grown.iter_mut().enumerate().find(|(index, disk)| name(*index, disk) == wanted.as_str());
    let Some((_, disk)) = found else {
        let known: Vec<String> = disks.iter().enumerate().map(|(index, disk)| name(index, disk)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let text = format!("the VM has no disk {:?}; it has {known}", wanted.as_str());
        return Err(ErrorBody::new(ErrorCode::NotFound, text).with("field", "disk"));
    };
    if disk.volume.is_some() {
        return Err(invalid(
            "disk",
            "a volume is the namespace's and not the VM's: `volume.grow` makes it longer",
        ));
    }
    if disk.readonly {
        return Err(invalid("disk", "a disk that cannot be written to is as long as its image"));
    }
    if disk.image.as_ref().is_some_and(|image| !image.format.is_raw()) {
        return Err(invalid("disk", "a disk of a qcow2 image stays as long as that; only a raw one grows"));
    }
    check_size("size_bytes", *size)?;
    let length = disk.length();
    if size.0 < length {
        let text = format!("the disk has {length} bytes and never becomes shorter: its end may be in use");
        return Err(invalid("size_bytes", text).with("size_bytes", length));
    }
    if size.0 > length {
        disk.size_bytes = Some(size.0);
    }
    Ok(grown)
}

/// Whether a blank disk of its own may be so.
///
/// # Errors
/// `invalid_argument` that names the field.
pub fn check_blank(size: ByteSize, fs: DiskFs, label: Option<&str>) -> Result<(), ErrorBody> {
    check_size("size_bytes", size)?;
    if fs == DiskFs::Ext4 && size < MIN_EXT4 {
        return Err(invalid("size_bytes", format!("ext4 needs {MIN_EXT4}")));
    }
    check_label("label", label, fs)
}

/// The name by which the guest finds a disk.
#[must_use]
pub fn name(index: usize, disk: &ResolvedDisk) -> String {
    disk.name.as_ref().map_or_else(|| format!("disk{index}"), ToString::to_string)
}

/// Whether a disk may have a length.
///
/// # Errors
/// `invalid_argument` that names the field.
pub fn check_size(field: &str, size: ByteSize) -> Result<(), ErrorBody> {
    if size < ByteSize::mib(1) || size > MAX_SIZE {
        return Err(invalid(
            field,
            format!("{size} is not possible; use {} to {MAX_SIZE}", ByteSize::mib(1)),
        ));
    }
    if !size.0.is_multiple_of(ByteSize::mib(1).0) {
        return Err(invalid(field, format!("{size} is not a multiple of 1 MiB")));
    }
    Ok(())
}

/// Below these a guest's own tasks take so long that it reports its disk as broken; above, there is no limit to keep.
fn check_limits(field: &str, limits: &DiskLimits) -> Result<(), ErrorBody> {
    let part = |name: &str| format!("{field}.{name}");
    let DiskLimits { bytes_per_second: bytes, ops_per_second: ops, burst_bytes, burst_ops } = *limits;
    if bytes.is_none() && ops.is_none() {
        return Err(invalid(field, "set bytes_per_second or ops_per_second, or leave limits out"));
    }
    if let Some(bytes) = bytes.filter(|bytes| !(MIN_BYTES..=MAX_BYTES).contains(bytes)) {
        let text = format!("{bytes} is not possible; use {MIN_BYTES} to {MAX_BYTES}");
        return Err(invalid(&part("bytes_per_second"), text));
    }
    if let Some(ops) = ops.filter(|ops| !(MIN_OPS..=MAX_OPS).contains(ops)) {
        let text = format!("{ops} is not possible; use {MIN_OPS} to {MAX_OPS}");
        return Err(invalid(&part("ops_per_second"), text));
    }
    for (name, is_set, is_limited, is_possible) in [
        ("burst_bytes", burst_bytes.is_some(), bytes.is_some(), burst_bytes.is_none_or(|b| b <= MAX_BYTES)),
        ("burst_ops", burst_ops.is_some(), ops.is_some(), burst_ops.is_none_or(|o| o <= MAX_OPS)),
    ] {
        if is_set && !is_limited {
            return Err(invalid(
                &part(name),
                "there is no limit that it goes beyond; set that, or leave it out",
            ));
        }
        if !is_possible {
            return Err(invalid(&part(name), "at most what may be the limit"));
        }
    }
    Ok(())
}

fn check_label(field: &str, label: Option<&str>, fs: DiskFs) -> Result<(), ErrorBody> {
    let Some(label) = label else { return Ok(()) };
    if fs == DiskFs::None {
        return Err(invalid(field, "a disk without a file system has no label; add fs: ext4"));
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    // One that begins with a hyphen would be an option of the program that formats.
    if label.is_empty() || label.len() > MAX_LABEL || label.starts_with('-') || !label.chars().all(safe) {
        let text = format!("1 to {MAX_LABEL} characters of A-Za-z0-9._-, and no hyphen first");
        return Err(invalid(field, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use drover_schemas::body::spec::{ImageFormat, ResolvedImage};

    use super::*;

    struct Images;

    impl ImageCatalogue for Images {
        fn find(&self, reference: &str) -> Option<ResolvedImage> {
            let (name, sha256) = (reference.to_owned(), "0".repeat(64));
            let found = |kind, size_bytes| Some(ResolvedImage::raw(name, sha256, kind, size_bytes));
            match reference {
                "root" => found(ImageKind::Disk, 3 << 20),
                "disc" => found(ImageKind::Iso, 2 << 20),
                "kernel" => found(ImageKind::Kernel, 1),
                "cloud" => found(ImageKind::Disk, 1 << 20).map(|image| ResolvedImage {
                    format: ImageFormat::Qcow2,
                    virtual_bytes: Some(2 << 30),
                    ..image
                }),
                _ => None,
            }
        }
        fn names(&self, _: ImageKind) -> Vec<String> {
            vec!["root".to_owned()]
        }
    }

    fn resolved(json: &str) -> Result<Vec<ResolvedDisk>, ErrorBody> {
        resolve(serde_json::from_str(json).unwrap(), &Images)
    }

    #[test]
    fn disks_are_copies_or_blank_and_have_names() {
        let disks = resolved(
            r#"[{"image": "root"}, {"image": "root", "size": "1GiB", "name": "big"}, {"image": "root", "readonly": true},
                {"size_bytes": 16777216, "fs": "ext4", "label": "data"}, {"size": "1MiB"}]"#,
        )
        .unwrap();
        let names: Vec<_> = disks.iter().map(|disk| disk.name.as_ref().unwrap().as_str()).collect();
        assert_eq!(names, ["disk0", "big", "disk2", "disk3", "disk4"]);
        let lengths: Vec<_> = disks.iter().map(ResolvedDisk::length).collect();
        assert_eq!(lengths, [3 << 20, 1 << 30, 3 << 20, 16 << 20, 1 << 20]);
        assert_eq!((disks[0].size_bytes, disks[1].size_bytes), (None, Some(1 << 30)));
        assert_eq!((disks[3].fs, disks[3].label.as_deref()), (Some(DiskFs::Ext4), Some("data")));
        assert_eq!((disks[4].fs, &disks[4].image), (Some(DiskFs::None), &None));
    }

    #[test]
    fn a_disk_is_as_long_as_its_image_says_and_a_disc_is_only_read() {
        let disks =
            resolved(r#"[{"image": "cloud"}, {"image": "cloud", "size": "2GiB"}, {"image": "disc"}]"#)
                .unwrap();
        assert_eq!(disks.iter().map(ResolvedDisk::length).collect::<Vec<_>>(), [2 << 30, 2 << 30, 2 << 20]);
        assert!(disks.iter().all(|disk| disk.size_bytes.is_none()));
        assert_eq!(disks.iter().map(|disk| disk.readonly).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn a_volume_is_named_and_nothing_else() {
        let disks =
            resolved(r#"[{"volume": "data", "name": "d", "readonly": true}, {"volume": "logs"}]"#).unwrap();
        let names: Vec<_> = disks.iter().map(|disk| disk.volume.as_ref().unwrap().as_str()).collect();
        assert_eq!((names, disks[0].readonly, disks[1].readonly), (vec!["data", "logs"], true, false));
        assert_eq!((disks[1].name.as_ref().unwrap().as_str(), disks[1].length()), ("disk1", 0));
        let twice = resolved(r#"[{"volume": "data"}, {"volume": "data"}]"#).unwrap_err();
        assert_eq!(twice.details["field"], "spec.disks[1].volume");
        assert!(
            grown(&disks, &serde_json::from_str(r#"{"disk": "d", "size_bytes": "1GiB"}"#).unwrap()).is_err()
        );
        check_blank(ByteSize::mib(8), DiskFs::Ext4, Some("data")).unwrap();
        assert!(check_blank(ByteSize::mib(7), DiskFs::Ext4, None).is_err());
        assert!(check_blank(ByteSize(1), DiskFs::None, None).is_err());
    }

    #[test]
    fn limits_hold_for_any_disk() {
        let disks = resolved(
            r#"[{"image": "root", "limits": {"bytes_per_second": "8MiB", "burst_bytes": "1GiB"}},
                {"size": "1MiB", "limits": {"ops_per_second": 100, "burst_ops": 0}}]"#,
        )
        .unwrap();
        let limits: Vec<_> = disks.iter().map(|disk| disk.limits.unwrap()).collect();
        assert_eq!(
            (limits[0].bytes_per_second, limits[0].burst_bytes),
            (Some(ByteSize::mib(8)), Some(ByteSize::mib(1024)))
        );
        assert_eq!((limits[1].ops_per_second, limits[1].burst_ops), (Some(100), Some(0)));
    }

    #[test]
    fn a_disk_becomes_longer_and_never_shorter() {
        let disks = resolved(
            r#"[{"image": "root"}, {"size": "4MiB", "name": "data"}, {"image": "cloud"}, {"image": "root", "readonly": true}]"#,
        )
        .unwrap();
        let ask = |disk: &str, size: &str| {
            let request = serde_json::json!({"disk": disk, "size_bytes": size});
            grown(&disks, &serde_json::from_value(request).unwrap())
        };
        let longer = ask("disk0", "5MiB").unwrap();
        assert_eq!(longer[0], ResolvedDisk { size_bytes: Some(5 << 20), ..disks[0].clone() });
        assert_eq!(longer[1..], disks[1..]);
        assert_eq!(ask("data", "6GiB").unwrap()[1].length(), 6 << 30);
        // As it is already.
        assert_eq!(
            (ask("disk0", "3MiB").unwrap(), ask("data", "4MiB").unwrap()),
            (disks.clone(), disks.clone())
        );
        for (disk, size, field) in [
            ("data", "3MiB", "size_bytes"),
            ("disk0", "2MiB", "size_bytes"),
            ("data", "4194305", "size_bytes"),
            ("data", "9TiB", "size_bytes"),
            ("data", "0", "size_bytes"),
            ("disk2", "4GiB", "disk"),
            ("disk3", "4MiB", "disk"),
        ] {
            let error = ask(disk, size).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{disk} {size}: {error:?}");
            assert_eq!(error.details["field"], field, "{disk} {size}: {error:?}");
        }
        let error = ask("date", "1GiB").unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("it has disk0, data, disk2, disk3"), "{error:?}");
        let request = serde_json::from_str(r#"{"disk": "disk0", "size_bytes": 1048576}"#).unwrap();
        assert!(grown(&[], &request).unwrap_err().message.ends_with("it has none"));
    }

    #[test]
    fn a_wrong_disk_is_refused_by_its_field() {
        for (disk, field) in [
            (r#"{}"#, "image"),
            (r#"{"readonly": true, "size": "1MiB"}"#, "readonly"),
            (r#"{"image": "root", "size": "2MiB"}"#, "size_bytes"),
            (r#"{"image": "root", "size": "4MiB", "readonly": true}"#, "size_bytes"),
            (r#"{"image": "root", "fs": "ext4"}"#, "fs"),
            (r#"{"image": "root", "label": "a"}"#, "label"),
            (r#"{"size": 0}"#, "size_bytes"),
            (r#"{"image": "cloud", "size": "1GiB"}"#, "size_bytes"),
            (r#"{"image": "cloud", "size": "3GiB"}"#, "size_bytes"),
            (r#"{"image": "disc", "size": "3MiB"}"#, "size_bytes"),
            (r#"{"image": "kernel"}"#, "image"),
            (r#"{"size": 1048577}"#, "size_bytes"),
            (r#"{"size": "9TiB"}"#, "size_bytes"),
            (r#"{"size": "1MiB", "fs": "ext4"}"#, "size_bytes"),
            (r#"{"size": "8MiB", "label": "a"}"#, "label"),
            (r#"{"size": "8MiB", "fs": "ext4", "label": "-O"}"#, "label"),
            (r#"{"size": "8MiB", "fs": "ext4", "label": "a/b"}"#, "label"),
            (r#"{"size": "8MiB", "fs": "ext4", "label": "seventeen-letters"}"#, "label"),
            (r#"{"size": "1MiB", "name": "a-name-of-21-letters-"}"#, "name"),
            (r#"{"size": "1MiB", "name": "disk0"}"#, "name"),
            (r#"{"volume": "v", "image": "root"}"#, "image"),
            (r#"{"volume": "v", "size": "1MiB"}"#, "size_bytes"),
            (r#"{"volume": "v", "fs": "none"}"#, "fs"),
            (r#"{"size": "1MiB", "limits": {}}"#, "limits"),
            (r#"{"size": "1MiB", "limits": {"bytes_per_second": 1}}"#, "limits.bytes_per_second"),
            (r#"{"size": "1MiB", "limits": {"bytes_per_second": "2TiB"}}"#, "limits.bytes_per_second"),
            (r#"{"size": "1MiB", "limits": {"ops_per_second": 0}}"#, "limits.ops_per_second"),
            (r#"{"size": "1MiB", "limits": {"ops_per_second": 50, "burst_bytes": 1}}"#, "limits.burst_bytes"),
            (
                r#"{"size": "1MiB", "limits": {"bytes_per_second": "1MiB", "burst_ops": 1}}"#,
                "limits.burst_ops",
            ),
            (
                r#"{"size": "1MiB", "limits": {"bytes_per_second": "1MiB", "burst_bytes": "2TiB"}}"#,
                "limits.burst_bytes",
            ),
        ] {
            let error = resolved(&format!(r#"[{{"image": "root"}}, {disk}]"#)).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{disk}: {error:?}");
            assert_eq!(error.details["field"], format!("spec.disks[1].{field}"), "{disk}: {error:?}");
        }
        assert_eq!(resolved(r#"[{"image": "rot"}]"#).unwrap_err().code, ErrorCode::NotFound);
    }
}
