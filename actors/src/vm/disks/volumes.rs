//! The files of volumes: one for each, below a folder of its namespace that only we enter. A file that has its name is
//! whole; what was begun when the daemon died is removed by the next one.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use drover_schemas::body::spec::DiskFs;
use drover_schemas::body::volume::VolumeCreateRequest;
use drover_schemas::{ErrorBody, ErrorCode, Token};

use super::own::{self, DiskError, Source, Wanted, at_least};
use crate::chain;
use crate::services::{Services, Shared};

/// The folder of all of them.
#[must_use]
pub fn folder(disks: &Path) -> PathBuf {
    disks.with_file_name("volumes")
}

/// The file of a volume.
#[must_use]
pub fn path(services: &Services, namespace: &Token, name: &Token) -> PathBuf {
    folder(&services.disks).join(namespace.as_str()).join(format!("{name}.raw"))
}

/// The volumes that are there, with their lengths. What was begun and not ended is removed.
#[must_use]
pub fn found(folder: &Path) -> Vec<(Token, Token, u64)> {
    let mut volumes = Vec::new();
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    for dir in entries(folder) {
        let Some(namespace) = dir.file_name().to_str().and_then(|name| Token::new(name).ok()) else {
            continue;
        };
        for file in entries(&dir.path()) {
            let path = file.path();
            if path.extension().is_some_and(|end| end == "partial") {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "a part of a volume is not removed");
                }
                continue;
            }
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| Token::new(name).ok());
            let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file);
            if let (Some(name), Some(meta), true) = (name, meta, path.extension().is_some_and(|e| e == "raw"))
            {
                volumes.push((namespace.clone(), name, meta.len()));
            }
        }
    }
    volumes
}

/// Makes the file of a volume.
///
/// # Errors
/// It has not come to be.
pub async fn make(services: &Shared, asked: VolumeCreateRequest) -> Result<(), ErrorBody> {
    let (own, folder) = (path(services, &asked.namespace, &asked.name), folder(&services.disks));
    let source =
        Source::Blank { size: asked.size_bytes.0, ext4: asked.fs == DiskFs::Ext4, label: asked.label };
    let wanted = Wanted { own, overlay: None, source, length: None, owner: None, was_made: None };
    let made = tokio::task::spawn_blocking(move || {
        own::make(&wanted, &AtomicBool::new(false))?;
        File::open(&folder).and_then(|dir| dir.sync_all()).map_err(DiskError::Write)
    });
    let made = made.await.unwrap_or_else(|panic| Err(DiskError::Write(io::Error::other(panic))));
    made.map_err(|error| {
        let code = match &error {
            DiskError::Room { .. } => ErrorCode::ResourceExhausted,
            DiskError::Write(error) => code_of(error),
            _ => ErrorCode::Internal,
        };
        ErrorBody::new(code, format!("the volume could not be made: {}", chain(&error)))
    })
}

fn code_of(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge => ErrorCode::ResourceExhausted,
        _ => ErrorCode::Internal,
    }
}

/// Makes the file of a volume at least so long, on disk. One call makes it longer, so it never has a length between.
///
/// # Errors
/// It is as long as it was, or may be if the disk failed.
pub async fn lengthen(
    services: &Shared,
    namespace: &Token,
    name: &Token,
    size: u64,
) -> Result<(), ErrorBody> {
    let path = path(services, namespace, name);
    let longer = tokio::task::spawn_blocking(move || at_least(&path, size));
    let longer = longer.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    longer.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => code_of(&error),
        };
        ErrorBody::new(code, format!("the volume is not made longer: {error}"))
    })
}

/// How long the file of a volume is.
#[must_use]
pub fn length(services: &Services, namespace: &Token, name: &Token) -> Option<u64> {
    fs::symlink_metadata(path(services, namespace, name)).ok().map(|meta| meta.len())
}

/// Removes the file of a volume.
///
/// # Errors
/// It is still there.
pub async fn remove(services: &Shared, namespace: &Token, name: &Token) -> Result<(), ErrorBody> {
    let path = path(services, namespace, name);
    let removed = tokio::task::spawn_blocking(move || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    });
    let removed = removed.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    removed.map_err(|error| {
        ErrorBody::new(ErrorCode::Internal, format!("the volume could not be removed: {error}"))
    })
}

/// What a volume takes of the host.
#[must_use]
pub fn written(services: &Services, namespace: &Token, name: &Token) -> u64 {
    fs::symlink_metadata(path(services, namespace, name)).map_or(0, |meta| meta.blocks().saturating_mul(512))
}

/// Lets a VM's user have a volume: alone, or to read it as others do.
///
/// # Errors
/// It is gone, or cannot be given.
pub fn give(path: &Path, readonly: bool, owner: Option<u32>) -> io::Result<()> {
    let mode = if readonly { 0o444 } else { 0o600 };
    fs::symlink_metadata(path)?;
    if let Some(user) = owner {
        let user = Some(if readonly { 0 } else { user });
        lchown(path, user, user)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_found_and_what_was_begun_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let all = dir.path().join("volumes");
        assert_eq!(found(&all), []);
        for (file, bytes) in [("a/data.raw", 3), ("a/more.partial", 4), ("a/.hidden", 1), ("B/data.raw", 1)] {
            fs::create_dir_all(all.join(file).parent().unwrap()).unwrap();
            fs::write(all.join(file), vec![0; bytes]).unwrap();
        }
        fs::create_dir(all.join("a/folder.raw")).unwrap();
        let token = |text| Token::new(text).unwrap();
        assert_eq!(found(&all), [(token("a"), token("data"), 3)]);
        assert!(!all.join("a/more.partial").exists() && all.join("a/.hidden").exists());
    }

    #[test]
    fn one_becomes_longer_and_never_shorter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.raw");
        assert_eq!(at_least(&path, 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "abc").unwrap();
        at_least(&path, 9).unwrap();
        at_least(&path, 4).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc\0\0\0\0\0\0");
        let link = dir.path().join("link.raw");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(at_least(&link, 20).is_err());
    }

    #[test]
    fn a_volume_that_is_gone_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        assert!(give(&dir.path().join("data.raw"), false, None).is_err());
    }
}
