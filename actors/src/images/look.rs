//! What images there are, and who uses them.

use std::collections::BTreeMap;

use drover_schemas::body::image::{
    ImageGetReply, ImageGetRequest, ImageInfo, ImageUser, ImagesReply, ImagesRequest,
};
use drover_schemas::{ErrorBody, ErrorCode};

use super::Image;
use super::import::{contents_of, on_store};
use crate::page::cut;
use crate::services::Shared;

/// Images of one page if the caller does not say, and at the most.
pub(super) const PAGE: u32 = 100;
pub(super) const PAGE_MAX: u32 = 500;
/// VMs that a reply names.
const USERS: usize = 100;

pub(super) fn info_of(image: &Image, vms: u64) -> ImageInfo {
    let Image { resolved, imported_unix_ms, from_fleet, signer, .. } = image.clone();
    ImageInfo {
        name: resolved.name,
        kind: resolved.kind,
        sha256: resolved.sha256,
        size_bytes: resolved.size_bytes,
        format: resolved.format,
        virtual_bytes: resolved.virtual_bytes,
        built_in: imported_unix_ms.is_none(),
        imported_unix_ms,
        from_fleet,
        signer,
        vms,
    }
}

/// There is no such image.
pub(super) fn unknown(name: &str) -> ErrorBody {
    let shown: String = name.chars().take(100).collect();
    ErrorBody::new(ErrorCode::NotFound, format!("there is no image {shown}; see image.list"))
}

/// How many VMs were created with each content.
pub(super) async fn uses(services: &Shared) -> Result<BTreeMap<String, u64>, ErrorBody> {
    let mut uses = BTreeMap::new();
    for row in services.rows().await? {
        for sha256 in contents_of(&row.spec) {
            *uses.entry(sha256).or_default() += 1;
        }
    }
    Ok(uses)
}

/// An image, other names of it, and the VMs that were created with it.
///
/// # Errors
/// There is no such image, or the journal cannot be read.
pub async fn get(services: &Shared, request: &ImageGetRequest) -> Result<ImageGetReply, ErrorBody> {
    let asked = request.image.as_str();
    let (image, also) = {
        let names = services.images.read();
        let found = match asked.strip_prefix("sha256:") {
            Some(digest) => names.values().find(|image| image.resolved.sha256 == digest),
            None => names.get(asked),
        };
        let image = found.cloned().ok_or_else(|| unknown(asked))?;
        let same = |(name, other): &(&String, &Image)| {
            other.resolved.sha256 == image.resolved.sha256 && **name != image.resolved.name
        };
        let also = names.iter().filter(same).map(|(name, _)| name.clone()).collect();
        (image, also)
    };
    let rows = services.rows().await?;
    let mut used_by: Vec<ImageUser> = rows
        .into_iter()
        .filter(|row| contents_of(&row.spec).contains(&image.resolved.sha256))
        .map(|row| ImageUser { namespace: row.namespace, name: row.name })
        .collect();
    let vms = used_by.len() as u64;
    used_by.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    used_by.truncate(USERS);
    Ok(ImageGetReply { image: info_of(&image, vms), also, used_by })
}

/// A page of the images.
///
/// # Errors
/// The journal or the store cannot be read.
pub async fn list(services: &Shared, request: &ImagesRequest) -> Result<ImagesReply, ErrorBody> {
    let limit = request.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let uses = uses(services).await?;
    let after = request.cursor.clone().unwrap_or_default();
    let mut images: Vec<ImageInfo> = {
        let names = services.images.read();
        let rest = names.iter().filter(|(name, _)| **name > after).take(limit + 1);
        rest.map(|(_, image)| info_of(image, uses.get(&image.resolved.sha256).copied().unwrap_or(0)))
            .collect()
    };
    let next_cursor = cut(&mut images, limit, |last| last.name.clone());
    let (store_bytes, free_bytes) = match services.images.store.clone() {
        Some(store) => on_store(move || Ok((store.held()?, store.free()?))).await?,
        None => (0, 0),
    };
    Ok(ImagesReply { images, store_bytes, free_bytes, next_cursor })
}
