//! The file that stands for an image: random bytes with holes between them, as raw disks have them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::RngCore as _;
use tempfile::TempDir;

/// Data and the hole behind it are as long as this.
const PIECE: u64 = 2 << 20;
/// Room that is left on a file system, which others may share.
const SPARE: u64 = 512 << 20;

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// No folder can be made there.
    #[error("make a folder below {path:?}")]
    Folder {
        /// Below what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It would fill the file system.
    #[error("{path:?} has {left} MiB left and {needed} are needed; ask for a smaller --image")]
    Room {
        /// Where.
        path: PathBuf,
        /// What is written there, and left to others.
        needed: u64,
        /// What is free.
        left: u64,
    },
    /// It cannot be written.
    #[error("write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the data of a file of `size` bytes is: begin and length of each piece.
fn pieces(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let begins = (0..size.div_ceil(2 * PIECE)).map(|n| n * 2 * PIECE);
    begins.map(move |begin| (begin, PIECE.min(size - begin)))
}

/// A folder of its own below `place`, if that has room for `needed` bytes. A daemon may read there.
///
/// # Errors
/// [`ContentError`]
pub fn folder(place: &Path, needed: u64) -> Result<TempDir, ContentError> {
    let failed = |source| ContentError::Folder { path: place.to_owned(), source };
    let stat = rustix::fs::statvfs(place).map_err(|errno| failed(errno.into()))?;
    let left = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = needed.saturating_add(SPARE);
    if needed > left {
        let (needed, left) = (needed >> 20, left >> 20);
        return Err(ContentError::Room { path: place.to_owned(), needed, left });
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    tempfile::Builder::new().prefix("drover-bench-").permissions(mode).tempdir_in(place).map_err(failed)
}

/// Writes a file of `size` bytes to disk.
///
/// # Errors
/// [`ContentError`]
pub async fn write(path: &Path, size: u64) -> Result<(), ContentError> {
    let own = path.to_owned();
    let written = tokio::task::spawn_blocking(move || fill(&own, size)).await;
    let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    written.map_err(|source| ContentError::Write { path: path.to_owned(), source })
}

fn fill(path: &Path, size: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_len(size)?;
    let mut bytes = vec![0; usize::try_from(PIECE.min(size)).unwrap_or_default()];
    let mut random = rand::rng();
    for (begin, length) in pieces(size) {
        let piece = &mut bytes[..usize::try_from(length).unwrap_or_default()];
        random.fill_bytes(piece);
        file.write_all_at(piece, begin)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn half_of_a_file_is_data_and_it_never_goes_beyond_the_end() {
        assert_eq!(pieces(0).count(), 0);
        assert_eq!(pieces(512).collect::<Vec<_>>(), [(0, 512)]);
        let all: Vec<_> = pieces(4 * PIECE + 512).collect();
        assert_eq!(all, [(0, PIECE), (2 * PIECE, PIECE), (4 * PIECE, 512)]);
    }

    #[tokio::test]
    async fn a_file_has_its_length_and_its_holes() {
        let folder = folder(&std::env::temp_dir(), 0).unwrap();
        let path = folder.path().join("image");
        write(&path, 3 * PIECE).await.unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 3 * PIECE);
        assert!(meta.blocks() * 512 < 3 * PIECE, "{meta:?}");
        assert!(std::fs::read(&path).unwrap()[..4096].iter().any(|byte| *byte != 0));
    }

    #[test]
    fn what_has_no_room_is_refused_before_anything_is_written() {
        let place = tempfile::tempdir().unwrap();
        let error = folder(place.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, ContentError::Room { .. }), "{error}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
