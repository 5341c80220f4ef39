//! What of a registry is not taken, and why.

use std::io;

use drover_schemas::{ErrorBody, ErrorCode};
use drover_tree::TreeError;

/// What is taken, for whoever has something else.
const TAKEN: &str = "an artifact of one layer that is the file itself, or a container disk (layers of tar or tar+gzip \
                     with one regular file below disk/) is taken";

/// An image is not taken from a registry.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The reference is none.
    #[error(
        "the reference is none: {reason}; write registry.example/owner/name:tag or \
         registry.example/owner/name@sha256:…"
    )]
    Reference {
        /// Why.
        reason: &'static str,
    },
    /// The manifest is none.
    #[error("the registry's manifest cannot be read: {reason}")]
    Manifest {
        /// Why.
        reason: String,
    },
    /// It is of a kind that is not read.
    #[error("the registry has {found}; {TAKEN}")]
    Kind {
        /// What was found.
        found: String,
    },
    /// An index without an image for this host.
    #[error("the registry has nothing for {wanted}, but for {found}")]
    Platform {
        /// What this host is.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The content is another than the digest says.
    #[error("what the registry sent as {what} has the digest {found} and not {expected}")]
    Digest {
        /// Manifest or blob.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// The content is longer or shorter than it should be.
    #[error("what the registry sent as {what} has {found} bytes and not {expected}")]
    Length {
        /// Manifest or blob.
        what: &'static str,
        /// What was asked for.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A layer holds what no container disk has.
    #[error("a layer holds {what}, {path}; of a container disk only folders and regular files are taken")]
    Member {
        /// What it is.
        what: &'static str,
        /// Its name, made fit to be shown.
        path: String,
    },
    /// A name leads out of the layer.
    #[error("a layer names {path}, which is not a path below its root")]
    Path {
        /// The name, made fit to be shown.
        path: String,
    },
    /// More files than one may be the disk.
    #[error("the layers hold more than one file below disk/: {first} and {second}; {TAKEN}")]
    Several {
        /// The first.
        first: String,
        /// The next.
        second: String,
    },
    /// No file may be the disk.
    #[error("the layers hold no file below disk/; {TAKEN}")]
    NoDisk,
    /// It is larger than may be.
    #[error("{what} has {needed} bytes, and at most {limit} are fetched")]
    Large {
        /// What is.
        what: &'static str,
        /// What it has.
        needed: u64,
        /// What it may have.
        limit: u64,
    },
    /// The layers unpack to more than may be.
    #[error("the layers hold more than {limit} bytes beside the disk")]
    Beside {
        /// How many may be there.
        limit: u64,
    },
    /// A layer that is no tar.
    #[error("a layer cannot be unpacked")]
    Layer(#[source] TreeError),
    /// What was unpacked is not taken.
    #[error("hand on the bytes of the disk")]
    Out(#[source] io::Error),
    /// Only those who log in get it.
    #[error(
        "the registry gives it to those who log in, and the host has no login for it; an operator sets one in \
         images.urls.registries of the host"
    )]
    Login,
    /// The login is not taken.
    #[error(
        "registry {registry}: {server} refused the host's login for it; check its `user` and `password_file` in \
         images.urls.registries of the host"
    )]
    WrongLogin {
        /// The registry.
        registry: String,
        /// Who said so: the registry, or the server that gives its tokens.
        server: String,
    },
    /// The login may not pull it.
    #[error(
        "registry {registry} takes the host's login, and does not let it pull {repository}; check the reference, and \
         what the `user` in images.urls.registries of the host may pull"
    )]
    NotAllowed {
        /// The registry.
        registry: String,
        /// What was asked for.
        repository: String,
    },
    /// The registry asks in another way.
    #[error("the registry's way to give a token is not understood: {reason}")]
    Challenge {
        /// Why.
        reason: &'static str,
    },
}

impl Refused {
    /// Its code on the bus.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Kind { .. } | Self::NoDisk | Self::Several { .. } | Self::Challenge { .. } => {
                ErrorCode::Unsupported
            }
            Self::Platform { .. } => ErrorCode::NotFound,
            Self::Login | Self::WrongLogin { .. } | Self::NotAllowed { .. } => ErrorCode::PermissionDenied,
            Self::Large { .. } | Self::Beside { .. } => ErrorCode::ResourceExhausted,
            Self::Out(_) => ErrorCode::Internal,
            _ => ErrorCode::InvalidArgument,
        }
    }

    /// What a client is told.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let error = ErrorBody::new(self.code(), crate::chain(self).to_string());
        match self {
            Self::Large { needed, limit, .. } => {
                error.with("resource", "images.urls.max_size").with("needed", needed).with("limit", limit)
            }
            Self::Beside { limit } => error.with("resource", "images.urls.max_size").with("limit", limit),
            Self::WrongLogin { registry, .. } | Self::NotAllowed { registry, .. } => {
                error.with("registry", registry)
            }
            Self::Digest { expected, found, .. } => error.with("expected", expected).with("found", found),
            _ => error,
        }
    }
}

/// Text of a stranger, fit to be shown.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
