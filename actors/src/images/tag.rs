//! Further names of what the store has. A name is one file that takes the place of another, so it means the one or the
//! other content at every moment, whatever dies meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;

use drover_schemas::body::image::{ImageTagReply, ImageTagRequest};
use drover_schemas::event::HostEventKind;
use drover_schemas::{ErrorBody, ErrorCode};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::error::{ImportError, kind_name};
use super::import::{images_of, is_digest, on_store};
use super::look::{info_of, unknown, uses};
use super::pins::Pinned;
use super::signers::Proof;
use super::store::{Named, Store};
use super::{Image, hex, image_of};
use crate::chain;
use crate::host_log::HostNote;
use crate::services::{Shared, broke_off, now_ms};

/// A name that is not given.
#[derive(Debug, thiserror::Error)]
enum TagError {
    /// There is no such image, or what is needed for it cannot be read or written.
    #[error("{}", .0.message)]
    Told(Box<ErrorBody>),
    /// Its content is in the host's folder of images alone.
    #[error(
        "the content of image {image} came with the host and is not in the store; import its file under the new name"
    )]
    NotInStore {
        /// The image.
        image: String,
    },
    /// The name means the content as something else.
    #[error("image {name} is this content as a {kind}; give `replace` to let the name mean the other kind")]
    OtherKind {
        /// The name.
        name: String,
        /// What it is good for now.
        kind: &'static str,
    },
    /// The name means something else, came with the host, or nobody who may has signed the content.
    #[error(transparent)]
    Refused(#[from] ImportError),
}

impl From<ErrorBody> for TagError {
    fn from(error: ErrorBody) -> Self {
        Self::Told(Box::new(error))
    }
}

impl TagError {
    fn to_body(&self) -> ErrorBody {
        let error = match self {
            Self::Told(error) => ErrorBody::clone(error),
            Self::NotInStore { .. } => ErrorBody::new(ErrorCode::InvalidState, self.to_string()),
            Self::OtherKind { .. } => ErrorBody::new(ErrorCode::AlreadyExists, self.to_string()),
            Self::Refused(error) => error.to_body(),
        };
        error.with("operation", "image.tag")
    }
}

/// Lets a name mean a content that the store has.
///
/// # Errors
/// There is no such image; the name means another and is not to be replaced, or came with the host; the host wants
/// signatures and this content has none that counts.
pub async fn tag(services: &Shared, request: ImageTagRequest) -> Result<ImageTagReply, ErrorBody> {
    let (own, asked) = (Arc::clone(services), request.clone());
    let work = async move { carry_out(&own, &asked).await };
    services.images.tags.run(request.name.clone(), request, work).await
}

async fn carry_out(services: &Shared, request: &ImageTagRequest) -> Result<ImageTagReply, ErrorBody> {
    let ImageTagRequest { image: asked, name, .. } = request;
    let note = |text: &str, phase: &str| {
        HostNote::new(HostEventKind::Image, text).with("image", name).with("phase", phase)
    };
    match give(services, request).await {
        Ok((image, already)) => {
            let sha256 = &image.resolved.sha256;
            if !already {
                info!(image = %name, sha256, of = asked, "the name means a content of the store");
                let done = note("an image has a name", "tagged").with("sha256", sha256);
                services.log.note(done.with("size_bytes", image.resolved.size_bytes));
            }
            let vms = uses(services).await?.get(sha256).copied().unwrap_or_default();
            Ok(ImageTagReply { image: info_of(&image, vms), already })
        }
        Err(error) => {
            let reason = chain(&error).to_string();
            warn!(image = %name, error = reason, "the name was not given");
            services.log.note(note("an image was not given a name", "failed").with("reason", reason));
            Err(error.to_body())
        }
    }
}

/// Gives what the name means then, and whether it meant that already.
async fn give(services: &Shared, request: &ImageTagRequest) -> Result<(Image, bool), TagError> {
    let images = &services.images;
    let Some(store) = images.store.clone() else { return Err(unknown(&request.image).into()) };
    let image = find(services, &store, &request.image).await?;
    // What can be told without reading anything.
    decide(services, &image, request)?;
    let (_pinned, image) = proven(services, &store, image, &request.image).await?;
    let _naming = images.imports.names.lock().await;
    if let Decision::Already(meant) = decide(services, &image, request)? {
        return Ok((meant, true));
    }
    let resolved = &image.resolved;
    let named = Named {
        name: request.name.to_string(),
        kind: resolved.kind,
        sha256: resolved.sha256.clone(),
        size_bytes: resolved.size_bytes,
        format: resolved.format,
        virtual_bytes: resolved.virtual_bytes,
        imported_unix_ms: image.imported_unix_ms.unwrap_or_else(now_ms),
        // The host's own, whatever the fleet means by it.
        from_fleet: false,
        signature: image.signature.clone(),
        signer: image.signer.clone(),
    };
    let meant = image_of(&store, &named);
    on_store(move || store.name_it(&named)).await?;
    images.write().insert(request.name.to_string(), meant.clone());
    images.changes.send_modify(|n| *n = n.wrapping_add(1));
    Ok((meant, false))
}

/// What an image is: by its name, by a name of its content, or by a VM that has a content which lost its names.
async fn find(services: &Shared, store: &Store, asked: &str) -> Result<Image, TagError> {
    let Some(sha256) = asked.strip_prefix("sha256:") else {
        return services.images.read().get(asked).cloned().ok_or_else(|| unknown(asked).into());
    };
    if !is_digest(sha256) {
        return Err(ImportError::NotADigest.into());
    }
    if let Some(image) = named(services, sha256) {
        return Ok(image);
    }
    let rows = services.rows().await?;
    let resolved = rows.iter().flat_map(|row| images_of(&row.spec)).find(|image| image.sha256 == sha256);
    let resolved = resolved.cloned().ok_or_else(|| unknown(asked))?;
    let path = store.content(sha256);
    Ok(Image { resolved, path, imported_unix_ms: None, from_fleet: false, signature: None, signer: None })
}

/// An image by a name of its content; one whose signature was checked goes before others.
fn named(services: &Shared, sha256: &str) -> Option<Image> {
    let names = services.images.read();
    let same = || names.values().filter(|image| image.resolved.sha256 == sha256);
    same().find(|image| image.signer.is_some()).or_else(|| same().next()).cloned()
}

/// Sees to it that the content is there and stays, and that somebody who may has signed it if the host wants that.
async fn proven(
    services: &Shared,
    store: &Store,
    mut image: Image,
    asked: &str,
) -> Result<(Pinned, Image), TagError> {
    let sha256 = image.resolved.sha256.clone();
    let Some(pinned) = services.images.pins.pin([sha256.clone()].into()) else {
        return Err(unknown(asked).into());
    };
    let path = store.content(&sha256);
    match path.exists() {
        true => {}
        false if image.path == path => return Err(unknown(asked).into()),
        false => return Err(TagError::NotInStore { image: asked.to_owned() }),
    }
    let signers = Arc::clone(&services.images.imports.signers);
    if signers.is_empty() {
        return Ok((pinned, image));
    }
    // Another name of the content may have brought one that counts.
    let other = named(services, &sha256)
        .filter(|other| image.signer.is_none() && (other.signer.is_some() || image.signature.is_none()));
    let (text, signer) = match other {
        Some(other) => (other.signature, other.signer),
        None => (image.signature.take(), image.signer.take()),
    };
    let proof = Proof::wanted(&signers, text.as_deref()).map_err(ImportError::Unsigned)?;
    (image.signature, image.signer) = (proof.text.clone(), proof.signer());
    if signer.is_some() && signer == image.signer {
        // It was held against this key when it came.
        return Ok((pinned, image));
    }
    let read = tokio::task::spawn_blocking(move || {
        let source = File::open(&path).map_err(ImportError::Read)?;
        proof.check(source, |mut source| {
            let mut hasher = Sha256::new();
            io::copy(&mut source, &mut hasher).map_err(ImportError::Read)?;
            match hex(&hasher.finalize()) {
                found if found == sha256 => Ok(()),
                found => Err(ImportError::Digest { expected: sha256, found }),
            }
        })
    });
    read.await.map_err(|_| broke_off())??;
    Ok((pinned, image))
}

/// What is to be done with a name.
#[derive(Debug)]
enum Decision {
    /// It means that already.
    Already(Image),
    /// It is given.
    Give,
}

fn decide(services: &Shared, image: &Image, request: &ImageTagRequest) -> Result<Decision, TagError> {
    decide_for(services.images.read().get(request.name.as_str()), image, request)
}

/// Whether a name that means something or nothing may mean an image.
fn decide_for(meant: Option<&Image>, image: &Image, request: &ImageTagRequest) -> Result<Decision, TagError> {
    let name = request.name.to_string();
    let Some(meant) = meant else { return Ok(Decision::Give) };
    if meant.imported_unix_ms.is_none() {
        return Err(ImportError::BuiltIn { name }.into());
    }
    let says_more = image.signature.is_some() && image.signature != meant.signature;
    match (meant.resolved.sha256 == image.resolved.sha256, meant.resolved.kind == image.resolved.kind) {
        // What the fleet means by it would be another content one day.
        (true, true) if meant.from_fleet || says_more => Ok(Decision::Give),
        (true, true) => Ok(Decision::Already(meant.clone())),
        _ if request.replace => Ok(Decision::Give),
        (true, false) => Err(TagError::OtherKind { name, kind: kind_name(meant.resolved.kind) }),
        (false, _) => Err(ImportError::Exists { name, sha256: meant.resolved.sha256.clone() }.into()),
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::Token;
    use drover_schemas::body::spec::{ImageKind, ResolvedImage};

    use super::*;

    fn image(sha256: &str, kind: ImageKind) -> Image {
        let resolved = ResolvedImage::raw("a".to_owned(), sha256.into(), kind, 1);
        let (imported_unix_ms, path) = (Some(1), "/a".into());
        Image { resolved, path, imported_unix_ms, from_fleet: false, signature: None, signer: None }
    }

    fn asked(replace: bool) -> ImageTagRequest {
        ImageTagRequest { image: "a".into(), name: Token::new("b").unwrap(), replace }
    }

    #[test]
    fn a_name_moves_when_it_is_asked_to_and_what_is_so_stays() {
        let (one, two) = (image("one", ImageKind::Disk), image("two", ImageKind::Disk));
        let code = |decided: Result<Decision, TagError>| decided.unwrap_err().to_body().code;
        for replace in [false, true] {
            assert!(matches!(decide_for(None, &one, &asked(replace)), Ok(Decision::Give)));
            assert!(matches!(decide_for(Some(&one), &one, &asked(replace)), Ok(Decision::Already(_))));
            let own = Image { imported_unix_ms: None, ..one.clone() };
            assert_eq!(code(decide_for(Some(&own), &one, &asked(replace))), ErrorCode::AlreadyExists);
            // The name becomes the host's own, and gets a signature that it had not.
            let fleets = Image { from_fleet: true, ..one.clone() };
            assert!(matches!(decide_for(Some(&fleets), &one, &asked(replace)), Ok(Decision::Give)));
            let signed = Image { signature: Some("s".into()), ..one.clone() };
            assert!(matches!(decide_for(Some(&one), &signed, &asked(replace)), Ok(Decision::Give)));
            assert!(matches!(decide_for(Some(&signed), &one, &asked(replace)), Ok(Decision::Already(_))));
        }
        for other in [two, image("one", ImageKind::Rootfs)] {
            assert_eq!(code(decide_for(Some(&other), &one, &asked(false))), ErrorCode::AlreadyExists);
            assert!(matches!(decide_for(Some(&other), &one, &asked(true)), Ok(Decision::Give)));
        }
    }
}
