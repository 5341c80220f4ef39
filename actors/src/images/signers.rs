//! Who must have signed an image before a host takes it: signatures as `minisign` makes them, checked while the content
//! comes. Pure but for the bytes that pass through.

use std::fmt;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_schemas::ErrorCode;
use minisign_verify::{PublicKey, Signature, StreamVerifier};
use serde::Deserialize;

use super::error::ImportError;

/// A signature is never longer, in bytes: it goes with a name of the fleet.
const LONGEST: usize = 2048;
/// In front of a key, in its base64 and in that of a signature, are two bytes that tell the kind.
const ID: std::ops::Range<usize> = 2..10;

/// A key that images may be signed with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Signer {
    key: PublicKey,
    id: String,
}

/// What should be a public key is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no public key of minisign; give the second line of its .pub file, which begins with RW")]
pub struct NotAKey;

impl TryFrom<String> for Signer {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        let key = PublicKey::from_base64(text.trim()).map_err(|_| NotAKey)?;
        Ok(Self { key, id: key_id(text.trim()).ok_or(NotAKey)? })
    }
}

/// The number of the key in a key or a signature, as `minisign` writes it.
fn key_id(text: &str) -> Option<String> {
    let bytes = STANDARD.decode(text).ok()?;
    let id = bytes.get(ID)?.try_into().ok()?;
    Some(format!("{:016X}", u64::from_le_bytes(id)))
}

/// A signature is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// There must be one.
    #[error(
        "this host takes images that are signed; give the signature that `minisign -S` makes of the file, by one of {keys}"
    )]
    Missing {
        /// Whose may be.
        keys: String,
    },
    /// It is none.
    #[error("the signature cannot be read; give the text of the .minisig file")]
    Unreadable,
    /// It is of the whole content, and not of its digest.
    #[error("the signature is of minisign's old kind, which needs all of the file in memory; sign it anew")]
    Legacy,
    /// Its key is not one of those.
    #[error(
        "the signature is by {key}, and this host takes those by {keys}; an operator sets images.signers"
    )]
    Stranger {
        /// Whose it is.
        key: String,
        /// Whose may be.
        keys: String,
    },
}

impl Unsigned {
    /// Its code on the bus.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } | Self::Stranger { .. } => ErrorCode::PermissionDenied,
            Self::Unreadable | Self::Legacy => ErrorCode::InvalidArgument,
        }
    }
}

/// What a content that comes is held against.
pub(super) struct Proof {
    /// The signature as it came, which goes on with the image.
    pub(super) text: Option<String>,
    checked: Option<(Signer, Signature)>,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("signer", &self.signer()).finish_non_exhaustive()
    }
}

impl Proof {
    /// What is to be said of a signature, where `signers` are trusted; where none are, it is kept unchecked.
    pub(super) fn wanted(signers: &[Signer], text: Option<&str>) -> Result<Self, Unsigned> {
        let keys = || signers.iter().map(|signer| signer.id.as_str()).collect::<Vec<_>>().join(", ");
        let Some(text) = text else {
            return match signers {
                [] => Ok(Self { text: None, checked: None }),
                _ => Err(Unsigned::Missing { keys: keys() }),
            };
        };
        let id = text.lines().nth(1).and_then(key_id).filter(|_| text.len() <= LONGEST);
        let (Some(id), Ok(signature)) = (id, Signature::decode(text)) else {
            return Err(Unsigned::Unreadable);
        };
        let text = Some(text.to_owned());
        let signer = match signers.iter().find(|signer| signer.id == id) {
            Some(signer) => signer.clone(),
            None if signers.is_empty() => return Ok(Self { text, checked: None }),
            None => return Err(Unsigned::Stranger { key: id, keys: keys() }),
        };
        if signer.key.verify_stream(&signature).is_err() {
            return Err(Unsigned::Legacy);
        }
        Ok(Self { text, checked: Some((signer, signature)) })
    }

    /// The key whose signature is checked.
    pub(super) fn signer(&self) -> Option<String> {
        self.checked.as_ref().map(|(signer, _)| signer.id.clone())
    }

    /// Has `take` read the content to its end, and sees then whether it is what was signed.
    pub(super) fn check<T>(
        &self,
        source: impl Read,
        take: impl FnOnce(&mut dyn Read) -> Result<T, ImportError>,
    ) -> Result<T, ImportError> {
        let verifier = self.checked.as_ref().and_then(|(signer, signature)| {
            // It was tried when the signature came.
            signer.key.verify_stream(signature).ok()
        });
        let mut source = Heard { source, verifier };
        let taken = take(&mut source)?;
        match (source.verifier.map(|mut verifier| verifier.finalize()), &self.checked) {
            (None, None) | (Some(Ok(())), Some(_)) => Ok(taken),
            (_, checked) => {
                let signer = checked.as_ref().map_or_else(String::new, |(signer, _)| signer.id.clone());
                Err(ImportError::Forged { signer })
            }
        }
    }
}

/// A source whose bytes are heard as they pass.
struct Heard<'a, R> {
    source: R,
    verifier: Option<StreamVerifier<'a>>,
}

impl<R: Read> Read for Heard<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(into)?;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&into[..read]);
        }
        Ok(read)
    }
}

#[cfg(test)]
#[path = "signers_tests.rs"]
mod tests;
