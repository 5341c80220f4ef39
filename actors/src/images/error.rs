//! Why an image is not taken, and what to do.

use std::path::PathBuf;

use drover_schemas::body::spec::ImageKind;
use drover_schemas::{ErrorBody, ErrorCode};

use super::fetch::login::PasswordError;
use super::fetch::{FetchError, Refused, UrlRefused};
use super::signers::Unsigned;
use crate::bus::claims::kv::KvError;
use crate::bus::objects::ObjectError;
use crate::chain;

/// An import that did not happen; nothing is kept of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// No directory is configured.
    #[error("no directory for imports is configured; set images.import_dirs of the host")]
    NoDirectories,
    /// The file is elsewhere.
    #[error("{path} is not below a directory for imports ({dirs}); put it there")]
    Outside {
        /// The file.
        path: String,
        /// Where it may be.
        dirs: String,
    },
    /// The file cannot be opened.
    #[error("open {path}; it must be there, and links are not followed")]
    Open {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// The file's head says that it is something else.
    #[error("the file is no {kind}: {reason}")]
    Kind {
        /// What it should be.
        kind: &'static str,
        /// What it is, and what to do.
        reason: &'static str,
    },
    /// The digest that was given is none.
    #[error("sha256 must be 64 lower-case hexadecimal digits")]
    NotADigest,
    /// The content is another.
    #[error("the content has SHA-256 {found} and not {expected}; get the file again")]
    Digest {
        /// What was asked for.
        expected: String,
        /// What was read.
        found: String,
    },
    /// Somebody wrote to the file meanwhile.
    #[error("the file changed while it was read: {expected} bytes at first, {found} then; import it again")]
    Changed {
        /// Its length when it was opened.
        expected: u64,
        /// What was read.
        found: u64,
    },
    /// Nothing to import, or several.
    #[error("give the path of a file, a url, or the reference of an image in a registry (oci): one of them")]
    OneSource,
    /// A URL without a digest.
    #[error("what a url leads to may change; give the sha256 that the content must have")]
    NoDigest,
    /// The URL is not taken.
    #[error("the url is not taken")]
    Url(#[source] UrlRefused),
    /// What should be a reference is none.
    #[error("read the reference of the image")]
    Reference(#[source] Refused),
    /// The registry is not asked.
    #[error("the registry is not asked")]
    Registry(#[source] UrlRefused),
    /// The configured authorities cannot be read.
    #[error("read the authorities {path} (images.urls.ca)")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's password for the registry cannot be used.
    #[error("log in at registry {registry}")]
    Login {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: PasswordError,
    },
    /// The content did not come.
    #[error("fetch the image")]
    Fetch(#[source] FetchError),
    /// Nobody who may has signed it.
    #[error("the image is not taken without a signature that counts")]
    Unsigned(#[source] Unsigned),
    /// The content is not what was signed.
    #[error("the file or its signature is not what key {signer} has signed; get both again")]
    Forged {
        /// The key.
        signer: String,
    },
    /// There is no room.
    #[error(
        "the store of images has {left} bytes left and the image needs {needed}; make room, or see image.gc"
    )]
    Room {
        /// What it takes.
        needed: u64,
        /// What there is.
        left: u64,
    },
    /// The store may hold no more.
    #[error(
        "the store of images holds {held} bytes of {limit} and the image needs {needed}; remove images, see \
         image.gc, or raise images.max_size of the host"
    )]
    Quota {
        /// What it takes.
        needed: u64,
        /// What is there.
        held: u64,
        /// What may be there.
        limit: u64,
    },
    /// Nobody shares it.
    #[error("no host shares an image {name}; see image.shared")]
    NotShared {
        /// The name.
        name: String,
    },
    /// The bus does not tell what is shared.
    #[error("ask the bus for the shared image {name}; repeat it later")]
    Fleet {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: Box<FleetError>,
    },
    /// The file cannot be read.
    #[error("read the file")]
    Read(#[source] std::io::Error),
    /// The store cannot be written.
    #[error("write to the store of images in {path}")]
    Write {
        /// The store.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The name means another content.
    #[error("image {name} is another content, {sha256}; give `replace` to let the name mean this one")]
    Exists {
        /// The name.
        name: String,
        /// What it means.
        sha256: String,
    },
    /// The name is one of the host's own.
    #[error("image {name} came with the host; choose another name")]
    BuiltIn {
        /// The name.
        name: String,
    },
}

impl ImportError {
    /// The store's file system is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        matches!(self, Self::Room { .. } | Self::Quota { .. })
            || matches!(self, Self::Write { source, .. } if full(source))
    }

    /// What a client is told.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let code = match self {
            _ if self.is_full() => ErrorCode::ResourceExhausted,
            Self::OneSource | Self::NoDigest => ErrorCode::InvalidArgument,
            Self::Url(UrlRefused::NotAUrl { .. }) => ErrorCode::InvalidArgument,
            Self::Reference(error) => error.code(),
            Self::Unsigned(error) => error.code(),
            Self::Forged { .. } => ErrorCode::InvalidArgument,
            Self::Url(_) | Self::Registry(_) => ErrorCode::PermissionDenied,
            Self::Login { source, .. } => source.code(),
            Self::Fetch(FetchError::Server { error }) => error.code,
            Self::NotShared { .. } => ErrorCode::NotFound,
            Self::Fleet { source, .. } => source.code(),
            Self::NoDirectories | Self::Outside { .. } => ErrorCode::PermissionDenied,
            Self::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            Self::Open { .. } => ErrorCode::PermissionDenied,
            Self::NotAFile { .. } | Self::Kind { .. } | Self::NotADigest | Self::Digest { .. } => {
                ErrorCode::InvalidArgument
            }
            Self::Changed { .. } => ErrorCode::Conflict,
            Self::Exists { .. } | Self::BuiltIn { .. } => ErrorCode::AlreadyExists,
            _ => ErrorCode::Internal,
        };
        let error = ErrorBody::new(code, chain(self).to_string()).with("operation", "image.import");
        match self {
            Self::Room { needed, left } => {
                error.with("resource", "bytes of images").with("needed", needed).with("left", left)
            }
            Self::Quota { needed, held, limit } => error
                .with("resource", "images.max_size")
                .with("needed", needed)
                .with("held", held)
                .with("limit", limit),
            Self::Fetch(FetchError::Server { error: of_server }) => {
                ErrorBody { details: of_server.details.clone(), ..error }.with("operation", "image.import")
            }
            Self::Digest { expected, found } => error.with("expected", expected).with("found", found),
            Self::Exists { sha256, .. } => error.with("sha256", sha256),
            _ => error,
        }
    }
}

/// What the fleet shares could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The names.
    #[error("read or change the names of shared images; repeat it later")]
    Names(#[source] KvError),
    /// The contents.
    #[error("read or change the contents of shared images; repeat it later")]
    Objects(#[source] ObjectError),
    /// The content on this host.
    #[error("read the image on this host")]
    Disk(#[source] std::io::Error),
    /// The content on this host is not what it should be.
    #[error("the image is damaged on this host: its SHA-256 is {found} and not {sha256}; import it again")]
    Damaged {
        /// What it should be.
        sha256: String,
        /// What it is.
        found: String,
    },
    /// Others change it all the time.
    #[error("others change the image at the same time; repeat it")]
    Contended,
}

impl FleetError {
    /// Its code on the bus.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Objects(error) if error.is_full() => ErrorCode::ResourceExhausted,
            Self::Names(_) | Self::Objects(_) => ErrorCode::Unavailable,
            Self::Contended => ErrorCode::Busy,
            Self::Disk(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                ErrorCode::ResourceExhausted
            }
            Self::Disk(_) | Self::Damaged { .. } => ErrorCode::Internal,
        }
    }

    /// What a client is told.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody::new(self.code(), chain(self).to_string())
    }
}

/// What a kind is called.
pub(super) const fn kind_name(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Kernel => "kernel",
        ImageKind::Initramfs => "initramfs",
        ImageKind::Disk => "disk",
        ImageKind::Rootfs => "root file system",
        ImageKind::Iso => "ISO",
        ImageKind::Firmware => "firmware",
        ImageKind::Unknown => "known kind of image",
    }
}
