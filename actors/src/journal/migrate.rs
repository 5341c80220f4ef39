//! From the journal of an older drover to this one's, with the old file kept beside it for one release: whoever has
//! to go back moves it into place and runs the older drover.
//!
//! A copy is migrated, synced, and moved over the journal; then the folder says its new version. A daemon that is
//! killed anywhere before that finds the old version and begins again: the copy that was kept is made anew only
//! from a journal that was not migrated yet, which the journal itself says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _};

use super::error::OpenError;
use super::folder::{JOURNAL_FILE, file_error};
use super::store::META;

/// Where the journal says which version it has, once it was migrated.
const META_VERSION: &str = "version";

/// Changes a journal of version `from` to the next one, within one transaction.
pub(super) struct Step {
    pub from: u32,
    pub run: fn(&redb::WriteTransaction) -> Result<(), redb::Error>,
}

/// Every step that this drover knows, oldest first. None yet: version 1 is the first.
pub(super) const STEPS: &[Step] = &[];

/// Where the journal of version `version` is kept.
pub(super) fn kept(folder: &Path, version: u32) -> PathBuf {
    folder.join(format!("journal.v{version}.redb"))
}

/// Takes the journal of a locked folder from `from` to `to`. The version of the folder itself is the caller's.
///
/// # Errors
/// [`OpenError::Migrate`], or a file that cannot be written; the journal is then as it was.
pub(super) fn migrate(folder: &Path, from: u32, to: u32, steps: &[Step]) -> Result<(), OpenError> {
    let journal = folder.join(JOURNAL_FILE);
    if !journal.exists() {
        return Ok(());
    }
    let work = folder.join(format!("{JOURNAL_FILE}.new"));
    copy(&journal, &work)?;
    let failed = |source: redb::Error| OpenError::Migrate { from, to, source: Box::new(source) };
    let done = version(&work).map_err(failed)?.unwrap_or(from);
    if done < to {
        run(&work, done, to, steps).map_err(failed)?;
        // Whole under its name or not at all: what is kept is what one goes back to.
        let keep = kept(folder, from);
        let partial = keep.with_extension("partial");
        copy(&journal, &partial)?;
        fs::rename(&partial, &keep).map_err(file_error("keep the old journal as", &keep))?;
    }
    fs::rename(&work, &journal).map_err(file_error("replace", &journal))?;
    sync(folder)?;
    tracing::info!(from, to, kept = %kept(folder, from).display(), "the journal was migrated");
    // One release is enough to notice that one has to go back.
    for old in 0..from {
        match fs::remove_file(kept(folder, old)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(version = old, %error, "a journal of an older release could not be removed");
            }
            _ => {}
        }
    }
    Ok(())
}

fn version(path: &Path) -> Result<Option<u32>, redb::Error> {
    let database = Database::open(path)?;
    let txn = database.begin_read()?;
    match txn.open_table(META) {
        Ok(meta) => Ok(meta.get(META_VERSION)?.and_then(|text| text.value().parse().ok())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn run(path: &Path, from: u32, to: u32, steps: &[Step]) -> Result<(), redb::Error> {
    let database = Database::open(path)?;
    let txn = database.begin_write()?;
    for step in steps.iter().filter(|step| step.from >= from && step.from < to) {
        (step.run)(&txn)?;
    }
    txn.open_table(META)?.insert(META_VERSION, to.to_string().as_str())?;
    txn.commit()?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), OpenError> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file_error("remove", to)(error));
        }
        _ => {}
    }
    fs::copy(from, to).map_err(file_error("copy the journal to", to))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(file_error("sync", to))
}

fn sync(folder: &Path) -> Result<(), OpenError> {
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(file_error("sync", folder))
}

#[cfg(test)]
mod tests {
    use redb::{ReadableTable as _, TableDefinition};

    use super::*;

    const ROWS: TableDefinition<'_, u32, &str> = TableDefinition::new("rows");

    /// Not to be done twice.
    const STEPS: &[Step] =
        &[Step { from: 1, run: |txn| add(txn, "one") }, Step { from: 2, run: |txn| add(txn, "two") }];

    fn add(txn: &redb::WriteTransaction, text: &str) -> Result<(), redb::Error> {
        let mut rows = txn.open_table(ROWS)?;
        let next = rows.last()?.map_or(0, |(key, _)| key.value() + 1);
        rows.insert(next, text)?;
        Ok(())
    }

    fn journal(folder: &Path) {
        let database = Database::create(folder.join(JOURNAL_FILE)).unwrap();
        let txn = database.begin_write().unwrap();
        add(&txn, "old").unwrap();
        txn.commit().unwrap();
    }

    fn rows(path: &Path) -> Vec<String> {
        let database = Database::open(path).unwrap();
        let rows = database.begin_read().unwrap().open_table(ROWS).unwrap();
        rows.iter().unwrap().map(|row| row.unwrap().1.value().to_owned()).collect()
    }

    #[test]
    fn every_step_is_done_once_and_the_old_journal_is_kept_for_one_release() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, path) = (temp.path(), temp.path().join(JOURNAL_FILE));
        journal(folder);
        migrate(folder, 1, 2, STEPS).unwrap();
        assert_eq!(
            (rows(&path), rows(&kept(folder, 1))),
            (vec!["old".into(), "one".into()], vec!["old".into()])
        );
        // Killed before the folder said so: begun again, with nothing done twice and the old one kept.
        migrate(folder, 1, 2, STEPS).unwrap();
        assert_eq!(
            (rows(&path), rows(&kept(folder, 1))),
            (vec!["old".into(), "one".into()], vec!["old".into()])
        );
        migrate(folder, 2, 3, STEPS).unwrap();
        assert_eq!(rows(&path), ["old", "one", "two"]);
        assert_eq!(rows(&kept(folder, 2)), ["old", "one"]);
        assert!(!kept(folder, 1).exists());
        let names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn several_releases_are_skipped_at_once_and_a_folder_without_a_journal_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        migrate(temp.path(), 1, 3, STEPS).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        journal(temp.path());
        migrate(temp.path(), 1, 3, STEPS).unwrap();
        assert_eq!(rows(&temp.path().join(JOURNAL_FILE)), ["old", "one", "two"]);
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        journal(temp.path());
        let fails = [Step { from: 1, run: |_| Err(redb::Error::Corrupted("a row".into())) }];
        let error = migrate(temp.path(), 1, 2, &fails).unwrap_err();
        assert!(error.to_string().contains("from version 1 to 2"), "{error}");
        assert_eq!(rows(&temp.path().join(JOURNAL_FILE)), ["old"]);
        assert!(!kept(temp.path(), 1).exists());
    }

    #[test]
    fn steps_join_up_to_the_version_that_is_written() {
        let last = super::super::STATE_VERSION;
        let known: Vec<u32> = super::STEPS.iter().map(|step| step.from).collect();
        assert_eq!(known, (1..last).collect::<Vec<_>>());
    }
}
