//! Where a request may touch files: decided by the real path of what is held, so neither a link nor one that is
//! swapped in meanwhile leads out.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_schemas::ErrorBody;

use super::refusal;

/// What limits one request.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) verb: String,
    /// In and below these alone; everywhere if there are none.
    pub(super) folders: Option<Vec<PathBuf>>,
    /// Nothing that writes or removes goes here, nor above.
    pub(super) kept: Vec<PathBuf>,
}

/// Where a request may touch files. Without a policy of the guest that is everywhere.
#[derive(Debug, Clone, Default)]
pub struct Reach(Option<Arc<Limits>>);

impl Reach {
    pub(super) const fn within(limits: Arc<Limits>) -> Self {
        Self(Some(limits))
    }

    /// Whether what is held may be read.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn reads(&self, held: &impl AsFd) -> Result<(), ErrorBody> {
        let Some(limits) = &self.0 else { return Ok(()) };
        limits.is_below(&real(held, limits)?)
    }

    /// Whether a name in a folder that is held may be looked at.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn looks(&self, folder: &impl AsFd, name: &OsStr) -> Result<(), ErrorBody> {
        let Some(limits) = &self.0 else { return Ok(()) };
        limits.is_below(&real(folder, limits)?.join(name))
    }

    /// Whether a name in a folder that is held may be made, replaced or removed.
    ///
    /// # Errors
    /// `permission_denied`
    pub fn changes(&self, folder: &impl AsFd, name: &OsStr) -> Result<(), ErrorBody> {
        let Some(limits) = &self.0 else { return Ok(()) };
        let path = real(folder, limits)?.join(name);
        limits.is_below(&path)?;
        let is_kept = |kept: &PathBuf| {
            let kept = canonical(kept);
            kept.starts_with(&path) || path.starts_with(&kept)
        };
        if limits.kept.iter().any(is_kept) {
            let text = format!(
                "{} has to do with the agent and its policy: the host cannot change it",
                path.display()
            );
            return Err(refusal(text, &limits.verb).with("path", path.display()));
        }
        Ok(())
    }
}

impl Limits {
    fn is_below(&self, path: &Path) -> Result<(), ErrorBody> {
        let Some(folders) = &self.folders else { return Ok(()) };
        if folders.iter().any(|folder| path.starts_with(canonical(folder))) {
            return Ok(());
        }
        let named: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let text = format!(
            "the owner of the guest allows {} below {} only, and this is {}",
            self.verb,
            named.join(", "),
            path.display()
        );
        Err(refusal(text, &self.verb).with("path", path.display()))
    }
}

/// Where the folder of a policy is; one that is not there is where it would be.
fn canonical(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The kernel's own word for where something is.
fn real(held: &impl AsFd, limits: &Limits) -> Result<PathBuf, ErrorBody> {
    fs::read_link(format!("/proc/self/fd/{}", held.as_fd().as_raw_fd())).map_err(|error| {
        let text = format!("the policy of the guest cannot be followed without /proc: {error}");
        refusal(text, &limits.verb)
    })
}
