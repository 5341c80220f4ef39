//! A host that follows its fleet has every image that the fleet shares.
//!
//! A name of the host's own, built in or imported here, is never given another meaning.

use std::time::Duration;

use drover_schemas::ErrorCode;
use drover_schemas::body::image::{ImagePullRequest, SharedImage};
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::fleet::{clean, entry_of};
use super::import::{Arrival, arrive};
use super::{Follows, Image};
use crate::bus::claims::kv::is_value;
use crate::bus::connect::Bus;
use crate::chain;
use crate::services::Shared;

/// Pause after which the names are read anew.
const RETRY: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Takes away what was left on the bus, and brings what the fleet shares if the host is to follow it.
pub async fn follow(services: &Shared, bus: &Bus) {
    services.egress.ready().await;
    tokio::join!(tidy(services), bring(services, bus));
}

async fn tidy(services: &Shared) {
    loop {
        if let Err(error) = clean(services).await {
            debug!(error = %chain(&error), "what was left on the bus is taken away later");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn bring(services: &Shared, bus: &Bus) {
    if services.images.follows == Follows::Nothing {
        return;
    }
    loop {
        bus.connected().await;
        if let Err(error) = bring_all(services).await {
            debug!(error, "the names of shared images are read anew");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Brings each image as its name comes. Where one failed for what may pass, all names are looked at again after a
/// while; the others come meanwhile.
async fn bring_all(services: &Shared) -> Result<(), BoxError> {
    let mut messages = services.fleet_images.names.latest(">").await?.messages().await?;
    let mut failed: Option<(Instant, BoxError)> = None;
    loop {
        let next = match failed.take() {
            Some((again, error)) => match timeout_at(again, messages.next()).await {
                Ok(next) => {
                    failed = Some((again, error));
                    next
                }
                Err(_) => return Err(error),
            },
            None => messages.next().await,
        };
        let Some(message) = next.transpose()? else { return Ok(()) };
        let shared = is_value(message.headers.as_ref()).then(|| entry_of(&message.payload)).flatten();
        let Some(shared) = shared else { continue };
        let wanted = wanted(services.images.read().get(shared.name.as_str()), &shared);
        match wanted {
            Wanted::Nothing => {}
            Wanted::KeepsOwn => {
                info!(image = %shared.name, "the fleet means another content by the name of an image of this host");
            }
            Wanted::Content => {
                let request = ImagePullRequest { name: shared.name, replace: true };
                if let Err(error) = arrive(services, Arrival::Fleet(request)).await
                    && !is_final(error.code)
                    && failed.is_none()
                {
                    failed = Some((Instant::now() + RETRY, error.message.into()));
                }
            }
        }
    }
}

/// It was told, and would be the same again.
const fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::PermissionDenied
            | ErrorCode::InvalidArgument
            | ErrorCode::Unsupported
            | ErrorCode::AlreadyExists
    )
}

/// What a name of the fleet asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    KeepsOwn,
    Content,
}

fn wanted(own: Option<&Image>, shared: &SharedImage) -> Wanted {
    match own {
        None => Wanted::Content,
        Some(own) if own.resolved.sha256 == shared.sha256 => Wanted::Nothing,
        Some(own) if own.from_fleet => Wanted::Content,
        Some(_) => Wanted::KeepsOwn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::Token;
    use drover_schemas::body::spec::{ImageKind, ResolvedImage};

    fn own(sha256: &str, from_fleet: bool) -> Image {
        let (name, kind) = ("a".to_owned(), ImageKind::Disk);
        let resolved = ResolvedImage::raw(name, sha256.into(), kind, 1);
        Image {
            resolved,
            path: "/a".into(),
            imported_unix_ms: Some(1),
            from_fleet,
            signature: None,
            signer: None,
        }
    }

    #[test]
    fn a_name_of_the_hosts_own_keeps_its_meaning() {
        let host = Token::new("h1").unwrap();
        let shared = SharedImage {
            name: Token::new("a").unwrap(),
            kind: ImageKind::Disk,
            sha256: "two".into(),
            size_bytes: 1,
            host,
            shared_unix_ms: 1,
            signature: None,
        };
        assert_eq!(wanted(None, &shared), Wanted::Content);
        for from_fleet in [false, true] {
            assert_eq!(wanted(Some(&own("two", from_fleet)), &shared), Wanted::Nothing);
        }
        assert_eq!(wanted(Some(&own("one", true)), &shared), Wanted::Content);
        assert_eq!(wanted(Some(&own("one", false)), &shared), Wanted::KeepsOwn);
    }
}
