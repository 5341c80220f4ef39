//! Why an image is not taken, and what to do.

use std::path::PathBuf;

use drover_schemas::body::spec::ImageKind;
use drover_schemas::{ErrorBody, ErrorCode};

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
        matches!(self, Self::Room { .. }) || matches!(self, Self::Write { source, .. } if full(source))
    }

    /// What a client is told.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let code = match self {
            _ if self.is_full() => ErrorCode::ResourceExhausted,
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
            Self::Digest { expected, found } => error.with("expected", expected).with("found", found),
            Self::Exists { sha256, .. } => error.with("sha256", sha256),
            _ => error,
        }
    }
}

/// What a kind is called.
pub(super) const fn kind_name(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Kernel => "kernel",
        ImageKind::Initramfs => "initramfs",
        ImageKind::Disk => "raw disk",
        ImageKind::Firmware => "firmware",
        ImageKind::Unknown => "known kind of image",
    }
}
