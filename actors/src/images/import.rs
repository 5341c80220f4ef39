//! The verbs of images. What takes long is done in a task of its own: whoever asks again waits for the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::body::image::{
    DamagedImage, ImageGcReply, ImageImportReply, ImageImportRequest, ImageNameRequest, ImagePullRequest,
    ImageVerifyReply,
};
use drover_schemas::body::spec::{ImageKind, ResolvedImage, ResolvedSpec};
use drover_schemas::event::HostEventKind;
use drover_schemas::{ErrorBody, ErrorCode, Token};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use super::error::ImportError;
use super::fetch::{Fetch, Job, Reference, UrlPolicy, What};
use super::look::{info_of, unknown, uses};
use super::once::Once;
use super::signers::{Proof, Signer};
use super::store::{Named, Store, Taken, open_below};
use super::{Image, digest, fleet, image_of};
use crate::chain;
use crate::host_log::HostNote;
use crate::services::{Shared, broke_off, now_ms};

/// Imports that read and write at once; others wait.
const AT_ONCE: usize = 2;
/// How often the bus hears how far an import is.
const PROGRESS: Duration = Duration::from_secs(5);

/// What brings a content into the store; the same again at the same time is done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrival {
    /// From a file of the host, from a URL or from a registry.
    File(ImageImportRequest),
    /// From the fleet.
    Fleet(ImagePullRequest),
}

impl Arrival {
    const fn name(&self) -> &Token {
        match self {
            Self::File(request) => &request.name,
            Self::Fleet(request) => &request.name,
        }
    }

    const fn replace(&self) -> bool {
        match self {
            Self::File(request) => request.replace,
            Self::Fleet(request) => request.replace,
        }
    }

    /// Where from, for the log: without a query, which may hold a secret, and of a reference that is none nothing.
    fn source(&self) -> String {
        match self {
            Self::File(ImageImportRequest { path: Some(path), .. }) => path.clone(),
            Self::File(ImageImportRequest { url: Some(url), .. }) => {
                url.split(['?', '#']).next().unwrap_or_default().to_owned()
            }
            Self::File(ImageImportRequest { oci: Some(oci), .. }) => {
                Reference::parse(oci).map_or_else(|_| String::new(), |reference| reference.to_string())
            }
            Self::File(_) => String::new(),
            Self::Fleet(_) => "the fleet".to_owned(),
        }
    }
}

/// Imports that are under way.
#[derive(Debug)]
pub(super) struct Imports {
    dirs: Vec<PathBuf>,
    urls: Arc<UrlPolicy>,
    pub(super) signers: Arc<[Signer]>,
    once: Arc<Once<Arrival, ImageImportReply>>,
    at_once: Arc<Semaphore>,
    /// Held while a content gets its name, and while contents without one are removed.
    pub(super) names: tokio::sync::Mutex<()>,
}

impl Default for Imports {
    fn default() -> Self {
        Self::new(Vec::new(), UrlPolicy::default(), Vec::new())
    }
}

impl Imports {
    pub(super) fn new(dirs: Vec<PathBuf>, urls: UrlPolicy, signers: Vec<Signer>) -> Self {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let once = Arc::new(Once::new("image.import"));
        Self {
            dirs,
            urls: Arc::new(urls),
            signers: signers.into(),
            once,
            at_once,
            names: tokio::sync::Mutex::default(),
        }
    }
}

/// Imports a file.
///
/// # Errors
/// A coded error; nothing is kept then.
pub async fn import(services: &Shared, request: ImageImportRequest) -> Result<ImageImportReply, ErrorBody> {
    arrive(services, Arrival::File(request)).await
}

/// Brings a content into the store and lets a name mean it.
pub(super) async fn arrive(services: &Shared, arrival: Arrival) -> Result<ImageImportReply, ErrorBody> {
    let (own, asked) = (Arc::clone(services), arrival.clone());
    let name = arrival.name().clone();
    services.images.imports.once.run(name, arrival, async move { carry_out(&own, &asked).await }).await
}

async fn carry_out(services: &Shared, arrival: &Arrival) -> Result<ImageImportReply, ErrorBody> {
    let (name, source) = (arrival.name(), arrival.source());
    let note = |text: &str, phase: &str| {
        HostNote::new(HostEventKind::Image, text).with("image", name).with("phase", phase)
    };
    let of_registry = matches!(arrival, Arrival::File(ImageImportRequest { oci: Some(_), .. }));
    let from = |note: HostNote| if of_registry { note.with("source", &source) } else { note };
    let result = copy(services, arrival).await;
    match result {
        Ok((image, manifest)) => {
            let (sha256, size) = (&image.resolved.sha256, image.resolved.size_bytes);
            info!(image = %name, kind = ?image.resolved.kind, source, manifest, sha256, size, "imported");
            let done = note("an image is there", "imported").with("sha256", sha256).with("size_bytes", size);
            let done = manifest.iter().fold(from(done), |done, digest| done.with("manifest", digest));
            services.log.note(done);
            let vms = uses(services).await?.get(sha256).copied().unwrap_or_default();
            Ok(ImageImportReply { image: info_of(&image, vms), manifest })
        }
        Err(error) => {
            warn!(image = %name, source, error = %chain(&error), "not imported");
            let failed = from(note("an image was not imported", "failed"));
            services.log.note(failed.with("reason", chain(&error)));
            Err(error.to_body())
        }
    }
}

/// Gives the manifest too, if it came from a registry.
async fn copy(services: &Shared, arrival: &Arrival) -> Result<(Image, Option<String>), ImportError> {
    let images = &services.images;
    let Some(store) = images.store.clone() else { return Err(ImportError::NoDirectories) };
    // What can be told without reading anything.
    let expected = match arrival {
        Arrival::File(request) => request.sha256.clone(),
        Arrival::Fleet(request) => Some(fleet::find(services, &request.name).await?.sha256),
    };
    if expected.as_ref().is_some_and(|sha256| !is_digest(sha256)) {
        return Err(ImportError::NotADigest);
    }
    allowed(services, arrival, expected.as_deref())?;
    let _turn = Arc::clone(&images.imports.at_once).acquire_owned().await;
    let (progress, heard) = watch::channel((0, 0));
    let (work, kind, proof) = match arrival {
        Arrival::File(request) => {
            let (asked, kind, from) = (request.clone(), request.kind, store.clone());
            let (dirs, policy) = (images.imports.dirs.clone(), images.imports.urls.clone());
            let proof = Proof::wanted(&images.imports.signers, request.signature.as_deref());
            let proof = Arc::new(proof.map_err(ImportError::Unsigned)?);
            let held_against = Arc::clone(&proof);
            let work = tokio::task::spawn_blocking(move || {
                let sha256 = asked.sha256.as_deref();
                let mut heard = |done, size| {
                    progress.send_replace((done, size));
                };
                let what = match (&asked.path, &asked.url, &asked.oci) {
                    (Some(path), None, None) => {
                        let source = open_below(&dirs, path)?;
                        let size = source.metadata().map_err(ImportError::Read)?.len();
                        return held_against.check(source, |source| {
                            from.take(source, size, kind, sha256, |done| heard(done, size))
                        });
                    }
                    (None, Some(_), None) if sha256.is_none() => return Err(ImportError::NoDigest),
                    (None, Some(url), None) => {
                        policy.url(url).map_err(ImportError::Url)?;
                        What::Url(url.clone())
                    }
                    (None, None, Some(oci)) => {
                        let reference = Reference::parse(oci).map_err(ImportError::Reference)?;
                        let url = reference.url("manifests", reference.wanted());
                        policy.url(&url).map_err(ImportError::Registry)?;
                        What::Oci(oci.clone())
                    }
                    _ => return Err(ImportError::OneSource),
                };
                let fetched = Fetched { store: &from, policy: &policy, proof: &held_against };
                fetched.take(what, kind, sha256, &mut heard)
            });
            (work, kind, proof)
        }
        // The name may mean another content by now; the newest counts.
        Arrival::Fleet(request) => fleet::fetch(services, store.clone(), &request.name, progress).await?,
    };
    let told = tell(services, arrival.name(), heard);
    let taken = tokio::select! {
        taken = work => taken,
        () = told => return Err(ended()),
    };
    let taken = taken.map_err(|_| ended())??;
    let _naming = images.imports.names.lock().await;
    let named = Named {
        name: arrival.name().to_string(),
        kind,
        sha256: taken.sha256.clone(),
        size_bytes: taken.size_bytes,
        format: taken.head.format,
        virtual_bytes: taken.head.virtual_bytes,
        imported_unix_ms: now_ms(),
        from_fleet: matches!(arrival, Arrival::Fleet(_)),
        signature: proof.text.clone(),
        signer: proof.signer(),
    };
    allowed(services, arrival, Some(&named.sha256))?;
    let (image, manifest) = (image_of(&store, &named), taken.manifest.clone());
    let key = named.name.clone();
    let put = tokio::task::spawn_blocking(move || store.put(&taken, &named));
    put.await.map_err(|_| ended())??;
    images.write().insert(key, image.clone());
    images.changes.send_modify(|n| *n = n.wrapping_add(1));
    Ok((image, manifest))
}

/// Where what is fetched goes, from where it may come, and what it is held against.
struct Fetched<'a> {
    store: &'a Store,
    policy: &'a UrlPolicy,
    proof: &'a Proof,
}

impl Fetched<'_> {
    /// Fetches what is named into the store.
    fn take(
        &self,
        what: What,
        kind: ImageKind,
        sha256: Option<&str>,
        heard: &mut dyn FnMut(u64, u64),
    ) -> Result<Taken, ImportError> {
        let Self { store, policy, proof } = *self;
        let ca_pem = policy.ca.as_ref().map(|path| {
            let failed = |source| ImportError::Authorities { path: path.clone(), source };
            std::fs::read_to_string(path).map_err(failed)
        });
        let max_bytes = policy.max_size.map_or(u64::MAX, |size| size.0);
        let login = match &what {
            What::Url(_) => None,
            What::Oci(oci) => {
                let registry = Reference::parse(oci).map_err(ImportError::Reference)?.registry;
                let login = policy.registries.iter().find(|login| login.is_for(&registry));
                let failed = |source| ImportError::Login { registry: registry.clone(), source };
                login.map(|login| login.credentials().map_err(failed)).transpose()?
            }
        };
        let job = Job { what, policy: policy.clone(), ca_pem: ca_pem.transpose()?, login, max_bytes };
        let mut fetch = Fetch::begin(&job).map_err(ImportError::Fetch)?;
        let (size, manifest) = (fetch.size, fetch.manifest.take());
        let taken = proof.check(&mut fetch, |source| {
            let mut taken = store.take(source, size, kind, sha256, |done| heard(done, size))?;
            taken.manifest = manifest;
            Ok(taken)
        });
        match taken {
            // Less than was announced: the worker knows why.
            Err(ImportError::Changed { .. }) | Ok(_) => fetch.end().map_err(ImportError::Fetch).and(taken),
            Err(_) => taken,
        }
    }
}

/// 64 lower-case hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

/// Whether the name may mean a content, as far as that is known.
fn allowed(services: &Shared, arrival: &Arrival, wanted: Option<&str>) -> Result<(), ImportError> {
    let name = arrival.name().to_string();
    let names = services.images.read();
    match names.get(&name) {
        Some(image) if image.imported_unix_ms.is_none() => Err(ImportError::BuiltIn { name }),
        Some(image) if !arrival.replace() && wanted.is_some_and(|wanted| wanted != image.resolved.sha256) => {
            Err(ImportError::Exists { name, sha256: image.resolved.sha256.clone() })
        }
        _ => Ok(()),
    }
}

fn ended() -> ImportError {
    ImportError::Read(std::io::Error::other("the import broke off"))
}

/// Says on the bus how far an import is, for as long as it is polled.
async fn tell(services: &Shared, name: &Token, heard: watch::Receiver<(u64, u64)>) {
    let mut ticks = tokio::time::interval(PROGRESS);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (done, size) = *heard.borrow();
        let note = HostNote::new(HostEventKind::Image, "an image is being imported").with("image", name);
        services.log.note(note.with("phase", "importing").with("done_bytes", done).with("size_bytes", size));
    }
}

/// Every image of a spec.
pub(super) fn images_of(spec: &ResolvedSpec) -> impl Iterator<Item = &ResolvedImage> {
    let boot = [&spec.boot.kernel, &spec.boot.initramfs, &spec.boot.firmware];
    boot.into_iter().flatten().chain(spec.disks.iter().filter_map(|disk| disk.image.as_ref()))
}

/// The contents of a spec, each once.
pub(super) fn contents_of(spec: &ResolvedSpec) -> BTreeSet<String> {
    images_of(spec).map(|image| image.sha256.clone()).collect()
}

/// Does something with the store's files.
pub(super) async fn on_store<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ErrorBody> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| broke_off())?;
    done.map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::StorageFull => ErrorCode::ResourceExhausted,
            _ => ErrorCode::Internal,
        };
        ErrorBody::new(code, format!("the store of images: {error}"))
    })
}

/// Takes a name away, and its content if nobody needs it.
///
/// # Errors
/// There is no such name, or it came with the host.
pub async fn remove(services: &Shared, request: ImageNameRequest) -> Result<ImageGcReply, ErrorBody> {
    let (Some(name), Some(store)) = (request.name, services.images.store.clone()) else {
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, "name the image").with("field", "name"));
    };
    let naming = services.images.imports.names.lock().await;
    let found = services.images.read().get(name.as_str()).cloned();
    let Some(image) = found else {
        return Err(unknown(name.as_str()));
    };
    if image.imported_unix_ms.is_none() {
        let text = format!("image {name} came with the host: take it out of its folder of images");
        return Err(ErrorBody::new(ErrorCode::InvalidState, text));
    }
    let gone = name.to_string();
    on_store(move || store.remove_name(&gone)).await?;
    services.images.write().remove(name.as_str());
    services.images.changes.send_modify(|n| *n = n.wrapping_add(1));
    info!(image = %name, sha256 = image.resolved.sha256, "the name of an image is gone");
    let note = HostNote::new(HostEventKind::Image, "the name of an image is gone").with("image", &name);
    services.log.note(note.with("phase", "removed").with("sha256", &image.resolved.sha256));
    let only = BTreeSet::from([image.resolved.sha256]);
    let reply = sweep(services, Some(&only)).await;
    drop(naming);
    reply
}

/// Removes what has no name and is used by no VM.
///
/// # Errors
/// The journal cannot be read or the store not be written.
pub async fn collect(services: &Shared) -> Result<ImageGcReply, ErrorBody> {
    let _naming = services.images.imports.names.lock().await;
    sweep(services, None).await
}

async fn sweep(services: &Shared, only: Option<&BTreeSet<String>>) -> Result<ImageGcReply, ErrorBody> {
    let mut reply = ImageGcReply::default();
    let Some(store) = services.images.store.clone() else { return Ok(reply) };
    let named: BTreeSet<String> =
        services.images.read().values().map(|image| image.resolved.sha256.clone()).collect();
    let from = store.clone();
    let mut going = Vec::new();
    for (sha256, size) in on_store(move || from.contents()).await? {
        if named.contains(&sha256) || only.is_some_and(|only| !only.contains(&sha256)) {
            continue;
        }
        match services.images.pins.condemn(&sha256) {
            Some(condemned) => going.push((sha256, size, condemned)),
            None => reply.in_use.push(sha256),
        }
    }
    // After that and not before: what a create has let go of by now has a row.
    let uses = if going.is_empty() { BTreeMap::new() } else { uses(services).await? };
    for (sha256, size, _condemned) in going {
        if uses.contains_key(&sha256) {
            reply.in_use.push(sha256);
            continue;
        }
        let (from, gone) = (store.clone(), sha256.clone());
        on_store(move || from.remove_content(&gone)).await?;
        info!(sha256, size, "a content without a name was removed");
        reply.freed_bytes += size;
        reply.removed.push(sha256);
    }
    Ok(reply)
}

/// Reads contents and compares them with their digests.
///
/// # Errors
/// There is no such name.
pub async fn verify(services: &Shared, request: &ImageNameRequest) -> Result<ImageVerifyReply, ErrorBody> {
    let mut asked: BTreeMap<PathBuf, (String, Vec<String>)> = BTreeMap::new();
    for (name, image) in &*services.images.read() {
        let wanted = match &request.name {
            Some(only) => only.as_str() == name,
            None => image.imported_unix_ms.is_some(),
        };
        if wanted {
            let entry = asked.entry(image.path.clone());
            entry.or_insert_with(|| (image.resolved.sha256.clone(), Vec::new())).1.push(name.clone());
        }
    }
    if let Some(name) = request.name.as_ref().filter(|_| asked.is_empty()) {
        return Err(unknown(name.as_str()));
    }
    if let Some(store) = services.images.store.clone().filter(|_| request.name.is_none()) {
        let from: Store = store.clone();
        for (sha256, _) in on_store(move || from.contents()).await? {
            asked.entry(store.content(&sha256)).or_insert((sha256, Vec::new()));
        }
    }
    let mut reply = ImageVerifyReply::default();
    for (path, (sha256, names)) in asked {
        let read = tokio::task::spawn_blocking(move || digest(&path)).await.map_err(|_| broke_off())?;
        let found = read.unwrap_or_else(|error| error.to_string());
        reply.checked += 1;
        if found != sha256 {
            warn!(sha256, ?names, found, "an image is damaged");
            let text = "an image is not what its digest says; import it again with `replace`";
            services.log.note(HostNote::alarm("image_damaged", text).with("sha256", &sha256));
            reply.damaged.push(DamagedImage { sha256, names, found });
        }
    }
    Ok(reply)
}
