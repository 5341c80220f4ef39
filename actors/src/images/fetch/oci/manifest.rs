//! Which of what a registry has is the image: pure.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::is_digest;
use super::refused::{Refused, shown};

/// What is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                                 application/vnd.oci.image.index.v1+json, \
                                 application/vnd.docker.distribution.manifest.v2+json, \
                                 application/vnd.docker.distribution.manifest.list.v2+json";
/// Layers of a container disk.
const MAX_LAYERS: usize = 128;

/// A content of the registry, by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images::fetch) struct Blob {
    /// Its digest, with `sha256:`.
    pub digest: String,
    /// Its length.
    pub size: u64,
}

/// A layer of a container disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its content.
    pub blob: Blob,
    /// It is compressed.
    pub gzip: bool,
}

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// To another manifest, of those in an index.
    Manifest(Blob),
    /// The content is the image.
    File(Blob),
    /// One file in these layers is.
    Layers(Vec<Layer>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// This host's processor, as registries call it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads a manifest or an index, and chooses.
pub(super) fn read(bytes: &[u8], architecture: &str) -> Result<Next, Refused> {
    let read: Document =
        serde_json::from_slice(bytes).map_err(|e| Refused::Manifest { reason: shown(&e.to_string()) })?;
    let no = |reason: &str| Err(Refused::Manifest { reason: reason.to_owned() });
    if read.fs_layers.is_some() || read.schema_version == Some(1) {
        return Err(Refused::Kind { found: "a manifest of schema 1".to_owned() });
    }
    match (read.manifests, read.layers) {
        // Each reader might see another image in it.
        (Some(_), Some(_)) => no("it is a manifest and an index at once"),
        (None, None) => no("it has neither layers nor manifests"),
        (Some(manifests), None) => of_index(&manifests, architecture).map(Next::Manifest),
        (None, Some(layers)) => of_layers(&layers),
    }
}

/// The first for Linux on this processor; else the only one, if it is for no platform.
fn of_index(manifests: &[Descriptor], architecture: &str) -> Result<Blob, Refused> {
    let fits = |one: &&Descriptor| {
        one.platform.as_ref().is_some_and(|on| on.os == "linux" && on.architecture == architecture)
    };
    let only = match manifests {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    if let Some(found) = manifests.iter().find(fits).or(only) {
        return found.blob();
    }
    let names = manifests.iter().take(8).map(|one| match &one.platform {
        Some(on) => shown(&format!("{}/{}", on.os, on.architecture)),
        None => "no platform".to_owned(),
    });
    let found = match manifests.is_empty() {
        true => "nothing at all".to_owned(),
        false => names.collect::<Vec<_>>().join(", "),
    };
    Err(Refused::Platform { wanted: format!("linux/{architecture}"), found })
}

fn of_layers(layers: &[Descriptor]) -> Result<Next, Refused> {
    let kind = |found: String| Err(Refused::Kind { found });
    if let Some(other) = layers.iter().find(|layer| layer.archive() == Archive::Unread) {
        return kind(format!("a layer of {}, which is not unpacked", shown(&other.media_type)));
    }
    let is_tar = |layer: &Descriptor| matches!(layer.archive(), Archive::Tar { .. });
    match layers {
        [] => kind("a manifest without layers".to_owned()),
        [only] if !is_tar(only) => Ok(Next::File(only.blob()?)),
        _ if layers.len() > MAX_LAYERS => kind(format!("{} layers, more than {MAX_LAYERS}", layers.len())),
        _ => match layers.iter().find(|layer| !is_tar(layer)) {
            Some(other) => {
                kind(format!("{} layers, one of them of {}", layers.len(), shown(&other.media_type)))
            }
            None => {
                let layer = |layer: &Descriptor| {
                    let gzip = layer.archive() == Archive::Tar { gzip: true };
                    Ok(Layer { blob: layer.blob()?, gzip })
                };
                layers.iter().map(layer).collect::<Result<_, _>>().map(Next::Layers)
            }
        },
    }
}

/// What a layer is by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Archive {
    /// A file.
    No,
    /// A layer of a container.
    Tar { gzip: bool },
    /// It is packed in a way that is not read.
    Unread,
}

impl Descriptor {
    fn archive(&self) -> Archive {
        let media_type = self.media_type.to_ascii_lowercase();
        match media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                return Archive::Tar { gzip: false };
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => return Archive::Tar { gzip: true },
            _ => {}
        }
        // Of others the words tell: `…layer.v1.tar+zstd`, `…foreign.diff.tar.gzip`, `application/x-xz`.
        let packed = ["tar", "gzip", "zstd", "xz", "bzip2", "zip"];
        match media_type.split(['.', '+', '-', '/']).any(|word| packed.contains(&word)) {
            true => Archive::Unread,
            false => Archive::No,
        }
    }

    fn blob(&self) -> Result<Blob, Refused> {
        match is_digest(&self.digest) {
            true => Ok(Blob { digest: self.digest.clone(), size: self.size }),
            false => {
                let reason = format!("{} is no sha256: with its digits", shown(&self.digest));
                Err(Refused::Manifest { reason })
            }
        }
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
