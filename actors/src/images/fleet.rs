//! Images that hosts of a fleet share: the contents are objects of the bus, by digest, and the bucket of shared names
//! says what a name means.
//!
//! A content is there before a name means it, and goes after the last name does. Whoever shares a content that is there
//! already writes its description once more, after the name: whoever takes the content away has read the description
//! before the names, so that one of the two sees the other.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use bytes::{Buf as _, Bytes};
use drover_schemas::body::image::{
    ImageImportReply, ImagePullRequest, ImageShareReply, ImageShareRequest, ImageUnshareReply,
    ImageUnshareRequest, ImagesRequest, SharedImage, SharedImagesReply,
};
use drover_schemas::body::spec::ImageKind;
use drover_schemas::event::HostEventKind;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, codec};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::error::{FleetError, ImportError};
use super::hex;
use super::import::{Arrival, arrive};
use super::look::{PAGE, PAGE_MAX, unknown};
use super::signers::Proof;
use super::store::{Store, Taken};
use crate::bus::claims::kv::{Kv, Written};
use crate::bus::connect::Bus;
use crate::bus::objects::{CHUNK, Objects};
use crate::chain;
use crate::host_log::HostNote;
use crate::page::cut;
use crate::services::{Shared, now_ms};

/// How often a compare-and-set is tried anew.
const RACES: usize = 8;
/// Chunks between the disk and the bus.
const BETWEEN: usize = 4;
/// A longer description of a name is not taken.
pub(super) const MAX_ENTRY: usize = 4096;

/// Where the fleet keeps what it shares.
#[derive(Debug, Clone)]
pub struct FleetImages {
    pub(super) names: Kv,
    pub(super) objects: Objects,
}

impl FleetImages {
    /// `bulk` carries the contents.
    #[must_use]
    pub fn new(bus: &Bus, bulk: &Bus, bucket: &str) -> Self {
        let names = Kv::new(async_nats::jetstream::new(bus.client.clone()), bucket);
        let objects = Objects::new(bulk.client.clone(), bucket);
        Self { names, objects }
    }
}

/// What a name means in the fleet, as it was stored.
pub(super) fn entry_of(value: &[u8]) -> Option<SharedImage> {
    if value.len() > MAX_ENTRY {
        return None;
    }
    codec::decode(value).ok()
}

/// What a name means in the fleet.
pub(super) async fn find(services: &Shared, name: &Token) -> Result<SharedImage, ImportError> {
    let failed = |source: FleetError| ImportError::Fleet { name: name.to_string(), source: Box::new(source) };
    let entry = services.fleet_images.names.get(name.as_str()).await;
    let entry = entry.map_err(|source| failed(FleetError::Names(source)))?;
    let shared = entry.value.as_deref().and_then(entry_of);
    shared.ok_or_else(|| ImportError::NotShared { name: name.to_string() })
}

/// Begins to bring what a name means into the store.
pub(super) async fn fetch(
    services: &Shared,
    store: Store,
    name: &Token,
    progress: watch::Sender<(u64, u64)>,
) -> Result<(JoinHandle<Result<Taken, ImportError>>, ImageKind, Arc<Proof>), ImportError> {
    let shared = find(services, name).await?;
    let proof = Proof::wanted(&services.images.imports.signers, shared.signature.as_deref());
    let proof = Arc::new(proof.map_err(ImportError::Unsigned)?);
    let held_against = Arc::clone(&proof);
    let objects = services.fleet_images.objects.clone();
    let failed =
        |source| ImportError::Fleet { name: name.to_string(), source: Box::new(FleetError::Objects(source)) };
    let (info, _) = objects.describe(&shared.sha256).await.map_err(failed)?;
    let Some(info) = info else { return Err(ImportError::NotShared { name: name.to_string() }) };
    let (to, from) = mpsc::channel(BETWEEN);
    let pump = tokio::spawn(async move { objects.read(&info, &to).await });
    let kind = shared.kind;
    let work = tokio::task::spawn_blocking(move || {
        let source = Chunks { from, current: Bytes::new(), pump: Some(pump) };
        let size = shared.size_bytes;
        held_against.check(source, |source| {
            store.take(source, size, kind, Some(&shared.sha256), |done| {
                progress.send_replace((done, size));
            })
        })
    });
    Ok((work, kind, proof))
}

/// Chunks that come from the bus, read by a thread that may wait.
struct Chunks {
    from: mpsc::Receiver<Bytes>,
    current: Bytes,
    pump: Option<JoinHandle<Result<(), crate::bus::objects::ObjectError>>>,
}

impl io::Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(chunk) = self.from.blocking_recv() else {
                // The end, or why there is no more.
                let Some(pump) = self.pump.take() else { return Ok(0) };
                let ended = tokio::runtime::Handle::current().block_on(pump);
                ended.map_err(io::Error::other)?.map_err(io::Error::other)?;
                return Ok(0);
            };
            self.current = chunk;
        }
        let taken = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..taken]);
        Ok(taken)
    }
}

/// Lets a name of the fleet mean what it means on this host.
///
/// # Errors
/// There is no such image, the name means another content, or the bus does not take it.
pub async fn share(services: &Shared, request: ImageShareRequest) -> Result<ImageShareReply, ErrorBody> {
    let (own, asked) = (Arc::clone(services), request.clone());
    let name = request.name.clone();
    let work = async move {
        let shared = offer(&own, &asked).await;
        let note = |text: &str, phase: &str| {
            HostNote::new(HostEventKind::Image, text).with("image", &asked.name).with("phase", phase)
        };
        match &shared {
            Ok(reply) => {
                let SharedImage { name, sha256, size_bytes, .. } = &reply.image;
                info!(image = %name, sha256, size_bytes, uploaded = reply.uploaded_bytes, "shared with the fleet");
                let done = note("an image is shared with the fleet", "shared").with("sha256", sha256);
                own.log.note(done.with("size_bytes", size_bytes));
            }
            Err(error) => {
                warn!(image = %asked.name, error = error.message, "not shared");
                let failed = note("an image was not shared", "failed").with("reason", &error.message);
                own.log.note(failed);
            }
        }
        shared
    };
    services.images.shares.run(name, request, work).await
}

/// What is offered.
struct Offer {
    store: Store,
    path: PathBuf,
    sha256: String,
    size_bytes: u64,
}

async fn offer(services: &Shared, request: &ImageShareRequest) -> Result<ImageShareReply, ErrorBody> {
    let ImageShareRequest { name, replace } = request;
    services.assets().await?;
    let found = services.images.read().get(name.as_str()).cloned();
    let (Some(image), Some(store)) = (found, services.images.store.clone()) else {
        return Err(unknown(name.as_str()));
    };
    let sha256 = image.resolved.sha256.clone();
    // Nobody removes it meanwhile.
    let Some(_pinned) = services.images.pins.pin([sha256.clone()].into()) else {
        let text = format!("image {name} is being removed");
        return Err(ErrorBody::new(ErrorCode::NotFound, text));
    };
    let fleet = &services.fleet_images;
    let bytes = image.resolved.size_bytes;
    let offer = Offer { store, path: image.path.clone(), sha256: sha256.clone(), size_bytes: bytes };
    let (before, _) = meant(fleet, name, &sha256, *replace).await?;
    let mut uploaded_bytes = place(services, &offer).await.map_err(|e| e.to_body())?;
    let shared = SharedImage {
        name: name.clone(),
        kind: image.resolved.kind,
        sha256: sha256.clone(),
        size_bytes: bytes,
        host: services.host.clone(),
        shared_unix_ms: now_ms(),
        signature: image.signature.clone(),
    };
    // A signature is added, and none is taken away.
    let says_more = |before: &SharedImage| shared.signature.is_some() && before.signature != shared.signature;
    if before.is_none_or(|before| before.sha256 != sha256 || says_more(&before)) {
        set_name(fleet, &shared, *replace).await?;
    }
    uploaded_bytes += place(services, &offer).await.map_err(|e| e.to_body())?;
    Ok(ImageShareReply { image: shared, uploaded_bytes })
}

/// What the name means now, and the revision that a change of it states. One that it may not take the place of is
/// refused.
async fn meant(
    fleet: &FleetImages,
    name: &Token,
    sha256: &str,
    replace: bool,
) -> Result<(Option<SharedImage>, u64), ErrorBody> {
    let entry = fleet.names.get(name.as_str()).await.map_err(|e| FleetError::Names(e).to_body())?;
    match entry.value.as_deref().and_then(entry_of) {
        Some(other) if other.sha256 != sha256 && !replace => {
            let text = format!(
                "the fleet means another content by image {name}, {}; give `replace` to let the name mean this one",
                other.sha256
            );
            Err(ErrorBody::new(ErrorCode::AlreadyExists, text).with("sha256", other.sha256))
        }
        meant => Ok((meant, entry.revision)),
    }
}

/// Lets the name mean the content, as far as what it means at that very moment allows it.
async fn set_name(fleet: &FleetImages, shared: &SharedImage, replace: bool) -> Result<(), ErrorBody> {
    let value = codec::encode(shared)
        .map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the name could not be encoded: {e}")))?;
    for _ in 0..RACES {
        let (_, revision) = meant(fleet, &shared.name, &shared.sha256, replace).await?;
        let put = fleet.names.put(shared.name.as_str(), value.clone().into(), revision, None, &[]).await;
        if let Written::Done { .. } = put.map_err(|e| FleetError::Names(e).to_body())? {
            return Ok(());
        }
    }
    Err(contended(&shared.name))
}

fn contended(name: &Token) -> ErrorBody {
    let text = format!("others change image {name} at the same time; repeat it");
    ErrorBody::new(ErrorCode::Busy, text).with("operation", "image.share")
}

/// Sees to it that the content is there, and says so anew. Answers how many bytes were sent for it.
async fn place(services: &Shared, offer: &Offer) -> Result<u64, FleetError> {
    let fleet = &services.fleet_images;
    let mut sent = 0;
    for _ in 0..RACES {
        let described = fleet.objects.describe(&offer.sha256).await.map_err(FleetError::Objects)?;
        let written = match described {
            (Some(info), revision) => fleet.objects.set(info, revision).await.map_err(FleetError::Objects)?,
            (None, revision) => {
                sent += offer.size_bytes;
                upload(services, offer, revision).await?
            }
        };
        if let Written::Done { .. } = written {
            return Ok(sent);
        }
    }
    Err(FleetError::Contended)
}

/// Sends the content. What was sent in vain is taken away, later if not now.
async fn upload(services: &Shared, offer: &Offer, revision: u64) -> Result<Written, FleetError> {
    let fleet = &services.fleet_images;
    let id = RequestId::generate().to_string();
    let noted = (offer.store.clone(), id.clone(), offer.sha256.clone());
    on_disk(move || noted.0.note_upload(&noted.1, &noted.2)).await?;
    let written = send(fleet, offer, &id, revision).await;
    let in_vain = !matches!(written, Ok(Written::Done { .. }));
    if in_vain && let Err(error) = fleet.objects.purge(&id).await {
        debug!(id, error = %chain(&error), "what was sent in vain is taken away later");
        later(services, id, &offer.sha256);
    } else {
        forget(&offer.store, &id).await?;
    }
    written
}

/// Has [`clean`] look at chunks.
fn later(services: &Shared, id: String, object: &str) {
    let mut left = services.images.left.lock().unwrap_or_else(PoisonError::into_inner);
    left.push((id, object.to_owned()));
}

async fn forget(store: &Store, id: &str) -> Result<(), FleetError> {
    let (store, id) = (store.clone(), id.to_owned());
    on_disk(move || store.forget_upload(&id)).await
}

async fn send(fleet: &FleetImages, offer: &Offer, id: &str, revision: u64) -> Result<Written, FleetError> {
    let (to, from) = mpsc::channel(BETWEEN);
    let path = offer.path.clone();
    let reading = tokio::task::spawn_blocking(move || read_into(&path, &to));
    let chunks = fleet.objects.write(id, from).await.map_err(FleetError::Objects)?;
    let (size, digest) = reading.await.map_err(io::Error::other).flatten().map_err(FleetError::Disk)?;
    if size != offer.size_bytes || hex(&digest) != offer.sha256 {
        return Err(FleetError::Damaged { sha256: offer.sha256.clone(), found: hex(&digest) });
    }
    let info = fleet.objects.info(&offer.sha256, id, chunks, size, &digest);
    fleet.objects.set(info, revision).await.map_err(FleetError::Objects)
}

fn read_into(path: &std::path::Path, to: &mpsc::Sender<Bytes>) -> io::Result<(u64, Vec<u8>)> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        io::Read::read_to_end(&mut io::Read::take(&mut file, CHUNK as u64), &mut chunk)?;
        if chunk.is_empty() {
            return Ok((size, hasher.finalize().to_vec()));
        }
        hasher.update(&chunk);
        size += chunk.len() as u64;
        if to.blocking_send(chunk.into()).is_err() {
            return Err(io::Error::other("nobody takes it"));
        }
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, FleetError> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten().map_err(FleetError::Disk)
}

/// Takes a name of the fleet away, and the content if no other name means it. What hosts have, they keep.
///
/// # Errors
/// There is no such name, or the bus does not take it.
pub async fn unshare(
    services: &Shared,
    request: &ImageUnshareRequest,
) -> Result<ImageUnshareReply, ErrorBody> {
    services.assets().await?;
    let (fleet, name) = (&services.fleet_images, &request.name);
    for _ in 0..RACES {
        let entry = fleet.names.get(name.as_str()).await.map_err(|e| FleetError::Names(e).to_body())?;
        let Some(shared) = entry.value.as_deref().and_then(entry_of) else {
            let text = format!("no host shares an image {name}; see image.shared");
            return Err(ErrorBody::new(ErrorCode::NotFound, text));
        };
        let purged = fleet.names.purge(name.as_str(), entry.revision).await;
        if let Written::Lost = purged.map_err(|e| FleetError::Names(e).to_body())? {
            continue;
        }
        info!(image = %name, sha256 = shared.sha256, "the fleet does not share an image any more");
        let note = HostNote::new(HostEventKind::Image, "an image is not shared any more").with("image", name);
        services.log.note(note.with("phase", "unshared").with("sha256", &shared.sha256));
        let freed_bytes = release(services, &shared.sha256).await.map_err(|e| e.to_body())?;
        return Ok(ImageUnshareReply { freed_bytes });
    }
    Err(contended(name))
}

/// Takes a content away if no name means it. Answers how many bytes went.
async fn release(services: &Shared, sha256: &str) -> Result<u64, FleetError> {
    let fleet = &services.fleet_images;
    let Some(store) = services.images.store.clone() else { return Ok(0) };
    for _ in 0..RACES {
        // Before the names: see above.
        let (info, revision) = fleet.objects.describe(sha256).await.map_err(FleetError::Objects)?;
        let Some(info) = info else { return Ok(0) };
        let means =
            |_: &str, value: &[u8]| entry_of(value).filter(|other| other.sha256 == sha256).map(|_| ());
        if !fleet.names.scan(">", means).await.map_err(FleetError::Names)?.is_empty() {
            return Ok(0);
        }
        let (id, size) = (info.nuid.clone(), info.size as u64);
        let noted = (store.clone(), id.clone(), sha256.to_owned());
        on_disk(move || match noted.0.note_upload(&noted.1, &noted.2) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        })
        .await?;
        let gone = matches!(
            fleet.objects.delete(info, revision).await.map_err(FleetError::Objects)?,
            Written::Done { .. }
        );
        if gone && let Err(error) = fleet.objects.purge(&id).await {
            debug!(id, error = %chain(&error), "what nobody shares is taken away later");
            later(services, id, sha256);
            return Ok(size);
        }
        forget(&store, &id).await?;
        if gone {
            return Ok(size);
        }
    }
    Err(FleetError::Contended)
}

/// Takes away what uploads and removals left on the bus that did not end.
pub(super) async fn clean(services: &Shared) -> Result<(), FleetError> {
    let Some(store) = services.images.store.clone() else { return Ok(()) };
    loop {
        let left = services.images.left.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        let Some((id, object)) = left else { return Ok(()) };
        let objects = &services.fleet_images.objects;
        let (info, _) = objects.describe(&object).await.map_err(FleetError::Objects)?;
        if info.is_none_or(|info| info.nuid != id) {
            objects.purge(&id).await.map_err(FleetError::Objects)?;
        }
        forget(&store, &id).await?;
        services.images.left.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != id);
    }
}

/// Brings what a name means in the fleet into the store of this host.
///
/// # Errors
/// As [`super::import::import`]; `not_found` if no host shares it.
pub async fn pull(services: &Shared, request: ImagePullRequest) -> Result<ImageImportReply, ErrorBody> {
    services.assets().await?;
    arrive(services, Arrival::Fleet(request)).await
}

/// A page of what the fleet shares.
///
/// # Errors
/// The bus does not tell.
pub async fn list(services: &Shared, request: &ImagesRequest) -> Result<SharedImagesReply, ErrorBody> {
    services.assets().await?;
    let limit = request.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let after = request.cursor.clone().unwrap_or_default();
    let later = |name: &str, value: &[u8]| entry_of(value).filter(|_| *name > *after);
    let all = services.fleet_images.names.scan(">", later).await;
    let mut images = all.map_err(|e| FleetError::Names(e).to_body())?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let next_cursor = cut(&mut images, limit, |last| last.name.to_string());
    Ok(SharedImagesReply { images, next_cursor })
}
