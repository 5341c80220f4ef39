//! What an OCI registry has, as pages of [`Https`](crate::https::Https).

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::sha256;
use crate::https::Page;

/// A layer of a container, compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One repository.
#[derive(Debug)]
pub struct Repository {
    name: String,
    /// The pages that it has; a test may change them.
    pub pages: BTreeMap<String, Page>,
}

impl Repository {
    /// An empty one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), pages: BTreeMap::new() }
    }

    /// The path of a blob or, in `manifests`, of a manifest.
    #[must_use]
    pub fn path(&self, folder: &str, name: &str) -> String {
        format!("v2/{}/{folder}/{name}", self.name)
    }

    /// Has a blob; gives what a manifest says of it.
    pub fn blob(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let said = describe(media_type, &content);
        self.put_blob(&said, Page::File(content));
        said
    }

    /// Has this as what a manifest speaks of.
    pub fn put_blob(&mut self, said: &Value, page: Page) {
        let path = self.path("blobs", said["digest"].as_str().unwrap_or_default());
        self.pages.insert(path, page);
    }

    /// Has a manifest of these layers under a tag and its digest, which it gives.
    pub fn manifest(&mut self, tag: &str, layers: &[Value]) -> String {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": layers,
        });
        self.document(tag, manifest.to_string().into_bytes())
    }

    /// Has an index of manifests by their processors.
    pub fn index(&mut self, tag: &str, manifests: &[(&str, &str)]) -> String {
        let manifests: Vec<Value> = manifests
            .iter()
            .map(|(architecture, digest)| {
                let size = match self.pages.get(&self.path("manifests", digest)) {
                    Some(Page::File(content)) => content.len(),
                    _ => 0,
                };
                json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": digest,
                    "size": size,
                    "platform": {"os": "linux", "architecture": architecture},
                })
            })
            .collect();
        self.document(tag, json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes())
    }

    /// Has these bytes as a manifest under a tag and their digest, which it gives.
    pub fn document(&mut self, tag: &str, content: Vec<u8>) -> String {
        let digest = format!("sha256:{}", sha256(&content));
        for name in [tag, digest.as_str()] {
            self.pages.insert(self.path("manifests", name), Page::File(content.clone()));
        }
        digest
    }

    /// Gives all of it to those alone who show a token, which the realm gives.
    pub fn wants(&mut self, token: &str, challenge: &str) {
        self.wants_shown(&format!("Bearer {token}"), challenge);
    }

    /// Gives all of it to those alone who show this as `Authorization`.
    pub fn wants_shown(&mut self, shown: &str, challenge: &str) {
        for page in self.pages.values_mut() {
            *page = Page::Wants {
                shown: shown.to_owned(),
                challenge: challenge.to_owned(),
                page: Box::new(page.clone()),
            };
        }
    }
}

/// What a manifest says of a content.
#[must_use]
pub fn describe(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(content)), "size": content.len()})
}

/// Something in a layer, whatever its name is.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its name.
    pub path: &'a str,
    /// What it is.
    pub kind: EntryType,
    /// Its content.
    pub content: &'a [u8],
}

impl<'a> Member<'a> {
    /// A regular file.
    #[must_use]
    pub const fn file(path: &'a str, content: &'a [u8]) -> Self {
        Self { path, kind: EntryType::Regular, content }
    }

    /// Something without a content; a link leads to `/etc/passwd`.
    #[must_use]
    pub const fn of(kind: EntryType, path: &'a str) -> Self {
        Self { path, kind, content: &[] }
    }
}

/// A layer, compressed.
///
/// # Panics
/// A name is too long.
#[must_use]
pub fn layer(members: &[Member<'_>]) -> Vec<u8> {
    gzip(&tar(members))
}

/// A layer as it is before it is compressed.
///
/// # Panics
/// A name is too long.
#[must_use]
pub fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = Header::new_ustar();
        // As it is: `set_path` refuses what a hostile layer has.
        header.as_old_mut().name[..member.path.len()].copy_from_slice(member.path.as_bytes());
        header.set_entry_type(member.kind);
        if matches!(member.kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").expect("a short link");
        }
        header.set_mode(0o644);
        header.set_size(member.content.len() as u64);
        header.set_cksum();
        layer.append(&header, member.content).expect("memory");
    }
    layer.into_inner().expect("memory")
}

/// Compresses.
///
/// # Panics
/// Never: it is done in memory.
#[must_use]
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(content).expect("memory");
    packed.finish().expect("memory")
}
