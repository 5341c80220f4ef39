//! Images by name: kernels, initramfs archives, disks and firmware.
//!
//! Those that come with the host lie in a directory whose `manifest.json` lists name, kind, file, SHA-256 and size. It
//! is read when the daemon starts. Others are imported by an operator, into a [`store`] that the daemon alone writes.

mod error;
pub mod fetch;
pub mod fleet;
mod follow;
mod head;
pub mod import;
pub mod look;
mod once;
mod pins;
mod qcow2;
mod signers;
pub mod store;
pub mod tag;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use drover_schemas::body::image::{ImageShareReply, ImageShareRequest, ImageTagReply, ImageTagRequest};
use drover_schemas::body::spec::{ImageKind, ResolvedImage, ResolvedSpec};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::warn;

pub use self::error::{FleetError, ImportError};
pub use self::follow::follow;
use self::head::Head;
use self::import::{Imports, contents_of, images_of};
use self::once::Once;
pub use self::pins::Pinned;
use self::pins::Pins;
pub use self::signers::{NotAKey, Signer, Unsigned};
use self::store::{Named, Store};
use crate::chain;
use crate::spec::ImageCatalogue;

/// The name of the list of images.
pub const MANIFEST: &str = "manifest.json";

/// What a host brings from the fleet by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// Nothing: `image.pull` is asked for.
    #[default]
    Nothing,
    /// Every image that the fleet shares.
    All,
}

/// How imported images are kept.
#[derive(Debug, Clone, Default)]
pub struct StoreSettings {
    /// Directories of the host below which files may be imported.
    pub import_dirs: Vec<PathBuf>,
    /// From where images may be fetched.
    pub urls: fetch::UrlPolicy,
    /// What all contents together may take, in bytes.
    pub max_bytes: Option<u64>,
    /// What is brought from the fleet unasked.
    pub follows: Follows,
    /// Whose signature a content must have, one of them; anything is taken where there is none.
    pub signers: Vec<Signer>,
}

/// The images of a host.
#[derive(Debug)]
pub struct Images {
    by_name: RwLock<BTreeMap<String, Image>>,
    store: Option<Store>,
    /// Ids of chunks on the bus, with the names of the objects, that may be part of none.
    left: Mutex<Vec<(String, String)>>,
    follows: Follows,
    imports: Imports,
    shares: Arc<Once<ImageShareRequest, ImageShareReply>>,
    tags: Arc<Once<ImageTagRequest, ImageTagReply>>,
    pins: Pins,
    changes: watch::Sender<u64>,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            by_name: RwLock::default(),
            store: None,
            left: Mutex::default(),
            follows: Follows::default(),
            imports: Imports::default(),
            shares: Arc::new(Once::new("image.share")),
            tags: Arc::new(Once::new("image.tag")),
            pins: Pins::default(),
            changes: watch::Sender::default(),
        }
    }
}

#[derive(Debug, Clone)]
struct Image {
    resolved: ResolvedImage,
    path: PathBuf,
    /// When it was imported; none for those of the host.
    imported_unix_ms: Option<u64>,
    from_fleet: bool,
    /// The signature that came with it.
    signature: Option<String>,
    /// The key whose signature was checked.
    signer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    images: Vec<ManifestImage>,
}

#[derive(Debug, Deserialize)]
struct ManifestImage {
    name: String,
    kind: ImageKind,
    file: String,
    sha256: String,
    #[serde(alias = "size")]
    size_bytes: u64,
}

/// The images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The list cannot be read.
    #[error("read the list of images {path}; build the built-in images with deploy/guest/build-image.sh")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The list is not what it should be.
    #[error("{path} is not a list of images")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file would lie outside the directory.
    #[error("image {name:?} names the file {file:?}; only a plain file name is taken")]
    Path {
        /// The image.
        name: String,
        /// Its file.
        file: String,
    },
    /// A file cannot be read.
    #[error("read image file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what the list says.
    #[error(
        "image {name:?} is damaged: {path} has SHA-256 {found}, the list says {expected}; build or import it again"
    )]
    Digest {
        /// The image.
        name: String,
        /// Its file.
        path: PathBuf,
        /// By the list.
        expected: String,
        /// By the content.
        found: String,
    },
    /// A file is not of its kind.
    #[error("image {name:?} is no disk: {reason}")]
    Kind {
        /// The image.
        name: String,
        /// What it is, and what to do.
        reason: &'static str,
    },
    /// The store of imported images cannot be used.
    #[error("open the store of images {path}")]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Images {
    /// Reads the list of `dir` and checks every file against its digest. Blocks; call it off the
    /// runtime.
    ///
    /// # Errors
    /// [`ImageError`] names the file.
    pub fn load(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(MANIFEST);
        let text =
            std::fs::read(&path).map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|source| ImageError::Parse { path: path.clone(), source })?;
        let mut by_name = BTreeMap::new();
        for entry in manifest.images {
            let plain = matches!(
                Path::new(&entry.file).components().collect::<Vec<_>>().as_slice(),
                [Component::Normal(_)]
            );
            if !plain {
                return Err(ImageError::Path { name: entry.name, file: entry.file });
            }
            let path = dir.join(&entry.file);
            let found = digest(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?;
            if found != entry.sha256 {
                return Err(ImageError::Digest { name: entry.name, path, expected: entry.sha256, found });
            }
            let head = match entry.kind {
                ImageKind::Disk => head_of(&path, &entry)?,
                _ => Head::default(),
            };
            let resolved = ResolvedImage {
                name: entry.name.clone(),
                sha256: entry.sha256,
                kind: entry.kind,
                size_bytes: entry.size_bytes,
                format: head.format,
                virtual_bytes: head.virtual_bytes,
            };
            let image = Image {
                resolved,
                path,
                imported_unix_ms: None,
                from_fleet: false,
                signature: None,
                signer: None,
            };
            by_name.insert(entry.name, image);
        }
        Ok(Self { by_name: by_name.into(), ..Self::default() })
    }

    /// Adds the images of the store in `dir`, into which others can be brought from now on. A name that came with the
    /// host goes before an imported one. Blocks.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub fn with_store(mut self, dir: &Path, settings: StoreSettings) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Store { path: dir.to_owned(), source };
        let store = Store::open(dir, settings.max_bytes).map_err(failed)?;
        for named in store.names().map_err(failed)? {
            let image = image_of(&store, &named);
            self.write().entry(named.name).or_insert(image);
        }
        for login in &settings.urls.registries {
            if let Err(error) = login.credentials() {
                warn!(registry = login.host, error = %chain(&error), "the host cannot log in at a registry of images");
            }
        }
        self.left = store.uploads().map_err(failed)?.into();
        self.store = Some(store);
        self.follows = settings.follows;
        self.imports = Imports::new(settings.import_dirs, settings.urls, settings.signers);
        Ok(self)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Image>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Image>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever a name does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Where an image's content is. It is found by digest, so a VM keeps booting what it was created
    /// with though its name now means another.
    #[must_use]
    pub fn path(&self, image: &ResolvedImage) -> Option<PathBuf> {
        let named = self.read().values().find(|i| i.resolved.sha256 == image.sha256).map(|i| i.path.clone());
        named.or_else(|| self.kept(image))
    }

    /// Where the store has an image's content, which nobody changes and which stays while a VM has it in its spec; `None`
    /// if it lies where an operator put it.
    #[must_use]
    pub fn kept(&self, image: &ResolvedImage) -> Option<PathBuf> {
        let path = self.store.as_ref()?.content(&image.sha256);
        path.exists().then_some(path)
    }

    /// Keeps what a spec needs until the row of its VM does. `None` if one of them is gone or going.
    #[must_use]
    pub fn pin(&self, spec: &ResolvedSpec) -> Option<Pinned> {
        let pinned = self.pins.pin(contents_of(spec))?;
        images_of(spec).all(|image| self.path(image).is_some()).then_some(pinned)
    }

    /// Every image by name.
    #[must_use]
    pub fn all(&self) -> Vec<ResolvedImage> {
        self.read().values().map(|image| image.resolved.clone()).collect()
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }
}

fn image_of(store: &Store, named: &Named) -> Image {
    let Named { name, kind, sha256, size_bytes, format, virtual_bytes, .. } = named.clone();
    let Named { imported_unix_ms, from_fleet, signature, signer, .. } = named.clone();
    let path = store.content(&sha256);
    let resolved = ResolvedImage { name, sha256, kind, size_bytes, format, virtual_bytes };
    Image { resolved, path, imported_unix_ms: Some(imported_unix_ms), from_fleet, signature, signer }
}

/// What a disk that came with the host is by its head.
fn head_of(path: &Path, entry: &ManifestImage) -> Result<Head, ImageError> {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(head::HEAD as u64).read_to_end(&mut head));
    read.map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    head::disk(&head, entry.size_bytes)
        .map_err(|reason| ImageError::Kind { name: entry.name.clone(), reason })
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl ImageCatalogue for Images {
    fn find(&self, reference: &str) -> Option<ResolvedImage> {
        match reference.strip_prefix("sha256:") {
            Some(digest) => self.read().values().find(|i| i.resolved.sha256 == digest).cloned(),
            None => self.read().get(reference).cloned(),
        }
        .map(|image| image.resolved)
    }

    fn names(&self, kind: ImageKind) -> Vec<String> {
        self.read().values().filter(|i| i.resolved.kind == kind).map(|i| i.resolved.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(file: &str, sha256: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k"), b"kernel").unwrap();
        let manifest = serde_json::json!({"images": [
            {"name": "k", "kind": "kernel", "file": file, "sha256": sha256, "size": 6}
        ]});
        std::fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        dir
    }

    #[test]
    fn images_are_found_by_name_and_digest() {
        let sha = hex(&Sha256::digest(b"kernel"));
        let dir = store("k", &sha);
        let images = Images::load(dir.path()).unwrap();
        let found = images.find("k").unwrap();
        assert_eq!(images.find(&format!("sha256:{sha}")).as_ref(), Some(&found));
        assert_eq!(images.path(&found), Some(dir.path().join("k")));
        assert_eq!(images.names(ImageKind::Kernel), ["k"]);
    }

    #[test]
    fn a_damaged_file_and_a_path_outside_are_refused() {
        let dir = store("k", &"0".repeat(64));
        assert!(matches!(Images::load(dir.path()), Err(ImageError::Digest { .. })));
        for file in ["../k", "/etc/passwd", "a/b"] {
            assert!(matches!(Images::load(store(file, "").path()), Err(ImageError::Path { .. })), "{file}");
        }
    }
}
