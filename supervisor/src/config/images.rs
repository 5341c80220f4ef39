//! `images`: what is brought into the store of images.

use std::path::PathBuf;

use drover_actors::images::fetch::UrlPolicy;
use drover_actors::images::{Follows, Signer, StoreSettings};
use drover_schemas::size::ByteSize;
use serde::Deserialize;

/// Images that come over the bus or by it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Directories below which files may be imported; none, and nothing is.
    pub import_dirs: Vec<PathBuf>,
    /// Where they are kept; `store` below `state_dir` if left out.
    pub store_dir: Option<PathBuf>,
    /// What the store may hold; what its file system has if left out.
    pub max_size: Option<ByteSize>,
    /// From where images may be fetched.
    pub urls: UrlPolicy,
    /// What is brought from the fleet unasked.
    pub follow: Follows,
    /// Public keys of `minisign`: images must be signed by one of them; none, and they need not be.
    pub signers: Vec<Signer>,
}

impl ImagesConfig {
    /// What the store is told.
    #[must_use]
    pub fn settings(&self) -> StoreSettings {
        let Self { import_dirs, urls, max_size, follow, signers, .. } = self.clone();
        let max_bytes = max_size.map(|size| size.0);
        StoreSettings { import_dirs, urls, max_bytes, follows: follow, signers }
    }
}
