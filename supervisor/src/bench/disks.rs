//! A VM's own disk as a create makes it from an image, beside the same by hand: a bare reflink where the file system
//! can; else a copy, and an overlay beside that of `qemu-img create`.
//!
//! It is the daemon's own code, called here: no verb makes a disk without a VM.

use std::io;
use std::path::{Path, PathBuf};

use drover_actors::chain;
use drover_actors::vm::disks::copy_on_write;
use drover_schemas::body::status::DiskMade;
use tokio::time::Instant;

use super::content::{self, ContentError};
use super::program::{self, ProgramError};
use super::report::Row;
use super::sample::{Percentiles, Sample};

/// How many are made by reflink or as overlays for each copy: they take next to nothing.
const QUICK: usize = 10;

/// Why there is no row.
#[derive(Debug, thiserror::Error)]
enum DiskRowError {
    /// There is no image.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Drover did not make it.
    #[error("make the disk")]
    Drover(#[source] io::Error),
    /// It was not made by hand.
    #[error("make the disk by hand")]
    Hand(#[source] io::Error),
    /// It was not copied by hand.
    #[error("make the disk by hand")]
    Program(#[from] ProgramError),
    /// Something that was made cannot be removed.
    #[error("remove a disk")]
    Remove(#[source] io::Error),
}

/// Disks from an image of `size` bytes in `place`.
pub async fn rows(place: &Path, size: u64, rounds: usize) -> Vec<Row> {
    match measure(place, size, rounds.max(1)).await {
        Ok(rows) => rows,
        Err(error) => {
            let what = format!("a VM's disk from an image, {} MiB", size >> 20);
            vec![Row::new(&what, "ms", Percentiles::default()).unmeasured(&chain(&error).to_string())]
        }
    }
}

async fn measure(place: &Path, size: u64, rounds: usize) -> Result<Vec<Row>, DiskRowError> {
    // The image and one copy of it, each half holes; twice as much, if the file system knows none.
    let folder = content::folder(place, size.saturating_mul(2))?;
    let paths = Paths::below(folder.path());
    content::write(&paths.image, size).await?;
    // Not counted: it says which way it goes, and both begin with what the first has left in memory.
    let made = drover(&paths, false).await?;
    remove(&paths.own).await?;
    let reflink = made == DiskMade::Reflink;
    let (mut ours, mut bare, mut lasting) = (Sample::default(), Sample::default(), Sample::default());
    for _ in 0..if reflink { rounds * QUICK } else { rounds } {
        ours.time(drover(&paths, false)).await?;
        remove(&paths.own).await?;
        let began = Instant::now();
        by_hand(&paths, reflink).await?;
        bare.push(began.elapsed());
        sync(&paths.copy).await?;
        lasting.push(began.elapsed());
        remove(&paths.copy).await?;
    }
    let way = if reflink { "reflink" } else { "copy" };
    let on = rustix::fs::statfs(place).map_or("another file system", |stat| name(stat.f_type as u64));
    let what = |way: &str| format!("a VM's disk of {} MiB by {way} on {on}", size >> 20);
    let limit = if reflink { "a bare FICLONE of the image, and fsync" } else { "cp of the image, and fsync" };
    let mut first =
        Row::new(&what(way), "ms", ours.percentiles(1e3)).against(limit, Ok(lasting.percentiles(1e3)));
    let bare = bare.percentiles(1e3).p50;
    first.note = Some(format!(
        "drover's takes its name when it is whole, and the folder is synchronised too; half of the image is holes; \
         without fsync the limit is {bare:.1} ms"
    ));
    if reflink {
        return Ok(vec![first]);
    }
    let (mut ours, mut overlays, mut failed) = (Sample::default(), Sample::default(), None);
    for _ in 0..rounds * QUICK {
        ours.time(drover(&paths, true)).await?;
        remove(&paths.own).await?;
        if failed.is_none() {
            let began = Instant::now();
            match overlay(&paths).await {
                Ok(()) => {
                    sync(&paths.overlay).await?;
                    overlays.push(began.elapsed());
                    remove(&paths.overlay).await?;
                }
                Err(error) => failed = Some(chain(&error).to_string()),
            }
        }
    }
    let overlays = failed.map_or_else(|| Ok(overlays.percentiles(1e3)), Err);
    let second = Row::new(&what("overlay"), "ms", ours.percentiles(1e3))
        .against("qemu-img create of an overlay over the image, and fsync", overlays);
    Ok(vec![first, second])
}

struct Paths {
    image: PathBuf,
    /// In a folder of its own, as a VM's is.
    own: PathBuf,
    copy: PathBuf,
    overlay: PathBuf,
}

impl Paths {
    fn below(folder: &Path) -> Self {
        let at = |name: &str| folder.join(name);
        Self { image: at("image"), own: at("vm/disk0.raw"), copy: at("copy"), overlay: at("overlay") }
    }
}

async fn drover(paths: &Paths, overlay: bool) -> Result<DiskMade, DiskRowError> {
    copy_on_write(paths.image.clone(), paths.own.clone(), overlay, None).await.map_err(DiskRowError::Drover)
}

async fn by_hand(paths: &Paths, reflink: bool) -> Result<(), DiskRowError> {
    let (image, copy) = (paths.image.clone(), paths.copy.clone());
    if !reflink {
        let args = ["--reflink=never".as_ref(), image.as_os_str(), copy.as_os_str()];
        program::run("cp", args, None).await?;
        return Ok(());
    }
    let cloned = blocking(move || {
        let (from, to) = (std::fs::File::open(image)?, std::fs::File::create_new(copy)?);
        Ok(rustix::fs::ioctl_ficlone(to, from)?)
    });
    cloned.await.map_err(DiskRowError::Hand)
}

async fn overlay(paths: &Paths) -> Result<(), ProgramError> {
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(AsRef::as_ref);
    let args = args.into_iter().chain([paths.image.as_os_str(), paths.overlay.as_os_str()]);
    program::run("qemu-img", args, None).await.map(drop)
}

async fn sync(path: &Path) -> Result<(), DiskRowError> {
    let path = path.to_owned();
    blocking(move || std::fs::File::open(path)?.sync_all()).await.map_err(DiskRowError::Hand)
}

/// Removes a file, and waits until its blocks are free: the next does not pay for it.
async fn remove(path: &Path) -> Result<(), DiskRowError> {
    let path = path.to_owned();
    let removed = blocking(move || {
        std::fs::remove_file(&path)?;
        path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
    });
    removed.await.map_err(DiskRowError::Remove)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// What a file system calls itself by its magic number.
fn name(magic: u64) -> &'static str {
    match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        _ => "another file system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_a_name() {
        assert_eq!((name(0xef53), name(0x5846_5342), name(1)), ("ext4", "xfs", "another file system"));
    }

    #[tokio::test]
    async fn rows_say_which_way_a_disk_went_and_leave_nothing() {
        let place = tempfile::tempdir().unwrap();
        let rows = rows(place.path(), 4 << 20, 2).await;
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        let first = rows.first().unwrap();
        let by_copy = first.what.contains("by copy on") && first.against.starts_with("cp ");
        let by_reflink = first.what.contains("by reflink on") && first.against.contains("FICLONE");
        assert!(by_copy != by_reflink, "{first:?}");
        let of = |row: &Row| row.drover.map(|drover| drover.count);
        assert_eq!(of(first), Some(if by_copy { 2 } else { 20 }));
        assert_eq!(first.limit.map(|limit| limit.count), of(first));
        // An overlay is the other way where there are no reflinks.
        assert_eq!(rows.len(), if by_copy { 2 } else { 1 });
        if let Some(second) = rows.get(1) {
            assert!(second.what.contains("by overlay on") && of(second) == Some(20), "{second:?}");
            assert!(second.limit.is_some() != second.note.is_some(), "{second:?}");
        }
    }

    #[tokio::test]
    async fn where_nothing_can_be_made_the_row_says_why() {
        let rows = rows(Path::new("/nowhere/at/all"), 4 << 20, 1).await;
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert!(row.drover.is_none());
        assert!(row.note.as_deref().is_some_and(|note| note.contains("/nowhere/at/all")), "{row:?}");
    }
}
