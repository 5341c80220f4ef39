//! Bodies of `host.<host>.image.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{ImageFormat, ImageKind};
use crate::Token;

/// Request of `image.import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageImportRequest {
    /// The name that specs use.
    pub name: Token,
    /// What it is good for; the file's head is checked against it.
    pub kind: ImageKind,
    /// A file on the host, below one of its `images.import_dirs`. Links are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In its place: where to fetch the content, with `https`, from one of the host's `images.urls.hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// In their place: an image of an OCI registry that is one of `images.urls.hosts`, as
    /// `registry.example/owner/name:tag`, `registry.example/owner/name@sha256:…` or both, then the digest counts. It is
    /// an artifact of one layer, which is the file, or a container disk: layers with one file below `disk/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<String>,
    /// The SHA-256 that the content must have, 64 lower-case hexadecimal digits; a URL needs it. Of an image in a
    /// registry it is that of the file, and not of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The signature of the content, as `minisign` writes it into a `.minisig` file. A host with `images.signers` takes
    /// nothing without one by one of these keys; others keep it, and share it with the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Let the name mean this content from now on though it means another. VMs keep what they were created with.
    #[serde(default)]
    pub replace: bool,
}

/// Request of `image.get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageGetRequest {
    /// The image, by its name or as `sha256:` and its digest.
    pub image: String,
}

/// A VM of the host that was created with an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUser {
    /// Its namespace.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
}

/// Reply of `image.get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageGetReply {
    /// The image.
    pub image: ImageInfo,
    /// Other names of the host that mean the same content.
    pub also: Vec<String>,
    /// VMs that were created with the content, the first 100.
    pub used_by: Vec<ImageUser>,
}

/// Request of `image.remove` and, of all where it has no name, of `image.verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageNameRequest {
    /// The image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Token>,
}

/// Request of `image.tag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageTagRequest {
    /// The image of this host, by its name or as `sha256:` and the digest of a content that its store has.
    pub image: String,
    /// The name that means it from now on, beside those that do already.
    pub name: Token,
    /// Let the name mean this image from now on though it means another. VMs keep what they were created with.
    #[serde(default)]
    pub replace: bool,
}

/// Reply of `image.tag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageTagReply {
    /// The image by its new name.
    pub image: ImageInfo,
    /// The name meant it already, and nothing was done.
    #[serde(default)]
    pub already: bool,
}

/// Request of `image.share`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageShareRequest {
    /// The image of this host; the fleet means it by the same name.
    pub name: Token,
    /// Let the fleet mean this content by the name though it means another.
    #[serde(default)]
    pub replace: bool,
}

/// Request of `image.unshare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUnshareRequest {
    /// The name in the fleet.
    pub name: Token,
}

/// Request of `image.pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePullRequest {
    /// The name in the fleet, and then on this host.
    pub name: Token,
    /// Let the name mean this content on this host though it means another. VMs keep what they were created with.
    #[serde(default)]
    pub replace: bool,
}

/// What a name means in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedImage {
    /// The name.
    pub name: Token,
    /// What it is good for.
    pub kind: ImageKind,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
    /// The host that shared it.
    pub host: Token,
    /// When it did.
    pub shared_unix_ms: u64,
    /// The signature of the content, as `minisign` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Reply of `image.share`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageShareReply {
    /// What the fleet knows.
    pub image: SharedImage,
    /// What was sent to the bus; nothing if the content was there.
    pub uploaded_bytes: u64,
}

/// Reply of `image.unshare`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUnshareReply {
    /// What went from the bus; nothing while another name means the content.
    pub freed_bytes: u64,
}

/// Reply of `image.shared`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedImagesReply {
    /// By name.
    pub images: Vec<SharedImage>,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Request of `image.list` and `image.shared`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagesRequest {
    /// Begin after this name; `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Images of a page; 100 if left out, 500 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// An image of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// What it is good for.
    pub kind: ImageKind,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its format.
    #[serde(default, skip_serializing_if = "ImageFormat::is_raw")]
    pub format: ImageFormat,
    /// The length of the disk that a guest sees, where its format says another than the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
    /// It came with the host's configuration and cannot be removed over the bus.
    pub built_in: bool,
    /// When it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_unix_ms: Option<u64>,
    /// It came from the fleet.
    #[serde(default)]
    pub from_fleet: bool,
    /// The key whose signature of it the host has checked, by its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// How many VMs of the host were created with it.
    pub vms: u64,
}

/// Reply of `image.import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageImportReply {
    /// The image.
    pub image: ImageInfo,
    /// Of an image from a registry: the digest of what the reference meant, by which the same is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
}

/// Reply of `image.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagesReply {
    /// By name.
    pub images: Vec<ImageInfo>,
    /// What the store holds, named or not, in bytes.
    pub store_bytes: u64,
    /// Room that is left in its file system, in bytes.
    pub free_bytes: u64,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Reply of `image.remove` and `image.gc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageGcReply {
    /// SHA-256 of each content that was removed.
    pub removed: Vec<String>,
    /// What they took, in bytes.
    pub freed_bytes: u64,
    /// SHA-256 of each content without a name that VMs still use.
    pub in_use: Vec<String>,
}

/// A content that is not what its digest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DamagedImage {
    /// The digest that it should have.
    pub sha256: String,
    /// Names that mean it.
    pub names: Vec<String>,
    /// What was found: another digest, or why it cannot be read.
    pub found: String,
}

/// Reply of `image.verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageVerifyReply {
    /// How many contents were read.
    pub checked: u64,
    /// Those that are damaged: import them again with `replace`.
    pub damaged: Vec<DamagedImage>,
}
