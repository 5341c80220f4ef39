//! A backup looked at, and put in the place of a journal while no daemon runs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::OpenError;
use super::folder::{Folder, JOURNAL_FILE, VERSION_FILE, file_error as failed};
use super::{JournalConfig, JournalHandle, STATE_VERSION, open};

/// Tells the next daemon that its journal is older than the world.
const RESTORED_FILE: &str = "restored";

/// Whether the journal of `folder` was restored, and nobody has brought it up to date since. Blocks.
#[must_use]
pub fn is_restored(folder: &Path) -> bool {
    folder.join(RESTORED_FILE).exists()
}

/// The journal of `folder` was brought up to date. Blocks.
///
/// # Errors
/// The folder cannot be written.
pub fn set_caught_up(folder: &Path) -> Result<(), OpenError> {
    let mark = folder.join(RESTORED_FILE);
    fs::remove_file(&mark).map_err(failed("remove", &mark))?;
    fs::File::open(folder).and_then(|dir| dir.sync_all()).map_err(failed("write", folder))
}

/// What a state folder holds, as [`JournalHandle::export_json`]. Locks the folder meanwhile; blocks.
///
/// # Errors
/// There is no journal, a daemon uses it, or it cannot be read.
pub fn show_folder(folder: &Path) -> Result<Value, OpenError> {
    let journal = folder.join(JOURNAL_FILE);
    fs::metadata(&journal).map_err(failed("find", &journal))?;
    export(&open(&JournalConfig { reserve_bytes: 0, ..JournalConfig::new(folder) })?, &journal)
}

/// What a backup holds. The file itself is not opened for writing; blocks.
///
/// # Errors
/// It cannot be read, or is no journal of this version.
pub fn show_backup(backup: &Path) -> Result<Value, OpenError> {
    let work = copy_aside(backup)?;
    let shown = open(&JournalConfig { reserve_bytes: 0, ..JournalConfig::new(&work) })
        .and_then(|journal| export(&journal, backup));
    // Ours alone, with nothing in it but the copy.
    let _ = fs::remove_dir_all(&work);
    shown
}

fn export(journal: &JournalHandle, path: &Path) -> Result<Value, OpenError> {
    journal.export_json().map_err(|error| OpenError::Open { path: path.to_owned(), source: error.into() })
}

/// A folder with a copy of the backup, in which it can be opened without a change to the original.
fn copy_aside(backup: &Path) -> Result<PathBuf, OpenError> {
    let work = std::env::temp_dir().join(format!("drover-backup-{}", drover_schemas::VmId::generate()));
    fs::create_dir(&work).map_err(failed("make", &work))?;
    let copied = fs::copy(backup, work.join(JOURNAL_FILE))
        .and_then(|_| fs::write(work.join(VERSION_FILE), format!("{STATE_VERSION}\n")));
    if let Err(error) = copied {
        let _ = fs::remove_dir_all(&work);
        return Err(failed("copy", backup)(error));
    }
    Ok(work)
}

/// Puts a backup in the place of the journal of `folder`, whose daemon must not run. Answers where the old
/// journal is kept, if there was one. Blocks.
///
/// # Errors
/// A daemon uses the folder, the backup cannot be read or is another installation's; nothing is changed then.
pub fn restore(folder: &Path, backup: &Path) -> Result<Option<PathBuf>, OpenError> {
    let shown = show_backup(backup)?;
    let theirs = shown.get("installation").and_then(Value::as_str).unwrap_or_default();
    let held = Folder::open(folder)?;
    held.installation(Some(theirs))?;
    let journal = held.journal();
    let new = journal.with_extension("restored");
    fs::copy(backup, &new).map_err(failed("copy", backup))?;
    fs::File::open(&new).and_then(|file| file.sync_all()).map_err(failed("write", &new))?;
    // Before the journal, so that none is ever taken for a current one.
    let mark = folder.join(RESTORED_FILE);
    fs::write(&mark, "").map_err(failed("write", &mark))?;
    fs::File::open(folder).and_then(|dir| dir.sync_all()).map_err(failed("write", folder))?;
    let kept = journal.exists().then(|| {
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        journal.with_extension(format!("redb.before-{}", at.as_secs()))
    });
    if let Some(kept) = &kept {
        fs::rename(&journal, kept).map_err(failed("keep", &journal))?;
    }
    fs::rename(&new, &journal).map_err(failed("put in place", &new))?;
    fs::File::open(folder).and_then(|dir| dir.sync_all()).map_err(failed("write", folder))?;
    Ok(kept)
}
