//! What was told last of each check, over the end of the agent: a change is told once, also if another agent of the
//! same boot sees that it is so still.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_schemas::codec;
use drover_schemas::guest::CheckStatus;
use serde::{Deserialize, Serialize};

use crate::log;

/// The most that is read of the file, in bytes: more than all there can be.
const MAX_FILE: u64 = 64 * 1024;

/// What was told of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Said {
    /// How it is.
    pub(super) status: CheckStatus,
    /// Since when, by the guest's clock.
    pub(super) since_unix_ms: u64,
    /// That it changes too often.
    pub(super) flapping: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    said: BTreeMap<String, Said>,
}

/// All that was told and holds.
#[derive(Debug)]
pub(super) struct Told {
    file: PathBuf,
    kept: Mutex<Kept>,
}

impl Told {
    /// Goes on with what an earlier agent of this boot told.
    pub(super) fn open(folder: &Path, boot_id: &str) -> Self {
        let file = folder.join("watched");
        let mut bytes = Vec::new();
        let read = File::open(&file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        let kept = read.ok().and_then(|_| codec::decode::<Kept>(&bytes).ok());
        let kept = kept.filter(|kept| kept.boot_id == boot_id);
        let kept = kept.unwrap_or_else(|| Kept { boot_id: boot_id.to_owned(), said: BTreeMap::new() });
        Self { file, kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Whoever held it left it whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was told of a key last.
    pub(super) fn of(&self, key: &str) -> Option<Said> {
        self.kept().said.get(key).copied()
    }

    /// Notes what was just told. After it, so that an agent that ends in between tells twice rather than never.
    pub(super) fn note(&self, key: &str, said: Said) {
        let mut kept = self.kept();
        kept.said.insert(key.to_owned(), said);
        self.write(&kept);
    }

    /// Forgets the keys that are as `is_gone` says, and gives what was told of them.
    pub(super) fn forget(&self, is_gone: impl Fn(&str) -> bool) -> Vec<(String, Said)> {
        let mut kept = self.kept();
        let (gone, rest) = std::mem::take(&mut kept.said)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(key, _)| is_gone(key));
        kept.said = rest;
        if !gone.is_empty() {
            self.write(&kept);
        }
        gone.into_iter().collect()
    }

    /// Forgets what was told under `prefix` of names that are declared no more, and gives those that were not well.
    pub(super) fn forget_undeclared(
        &self,
        prefix: &str,
        is_declared: impl Fn(&str) -> bool,
    ) -> Vec<(String, Said)> {
        let gone = self.forget(|key| key.strip_prefix(prefix).is_some_and(|name| !is_declared(name)));
        let unwell = |(key, said): (String, Said)| {
            let name = key.strip_prefix(prefix)?.to_owned();
            (said.flapping || said.status != CheckStatus::Ok).then_some((name, said))
        };
        gone.into_iter().filter_map(unwell).collect()
    }

    /// In memory of the guest, so there is nothing to wait for.
    fn write(&self, kept: &Kept) {
        let partial = self.file.with_extension("partial");
        let bytes = codec::encode(kept).map_err(io::Error::other);
        let written = bytes.and_then(|bytes| {
            let folder = self.file.parent().unwrap_or(Path::new("/"));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            fs::write(&partial, bytes)?;
            fs::rename(&partial, &self.file)
        });
        if let Err(error) = written {
            log::debug(format_args!("what was told of checks is kept in memory alone: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_outlives_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let told = Told::open(&folder, "a");
        let said = Said { status: CheckStatus::Failing, since_unix_ms: 5, flapping: true };
        told.note("spec web", said);
        told.note("guest web", Said::default());
        drop(told);
        let told = Told::open(&folder, "a");
        assert_eq!((told.of("spec web"), told.of("spec db")), (Some(said), None));
        assert_eq!(told.forget(|key| key.starts_with("spec")), [("spec web".to_owned(), said)]);
        assert_eq!(told.forget(|key| key.starts_with("spec")), []);
        assert_eq!(Told::open(&folder, "a").of("guest web"), Some(Said::default()));
        assert_eq!(Told::open(&folder, "b").of("guest web"), None);
        fs::write(folder.join("watched"), b"\xff").unwrap();
        assert_eq!(Told::open(&folder, "a").of("guest web"), None);
        // Where nobody may write it is remembered by this agent alone.
        let told = Told::open(Path::new("/proc/none"), "a");
        told.note("x", said);
        assert_eq!(told.of("x"), Some(said));
    }
}
