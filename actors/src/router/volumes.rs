//! Volumes of this host, made, listed and removed.

use std::collections::{BTreeMap, BTreeSet};

use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::DiskFs;
use drover_schemas::body::volume::{
    VolumeCreateReply, VolumeCreateRequest, VolumeInfo, VolumeRemoveRequest, VolumesReply, VolumesRequest,
};

use super::{Answer, ErrorBody, ErrorCode, Request, Router, Token, body_of};
use crate::services::Shared;
use crate::spec::disks::check_blank;
use crate::vm::disks::{free, tool, volumes};

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 500;
const USERS: usize = 100;

impl Router {
    pub(super) async fn volumes(&self, verb: &str, request: &Request) -> Answer {
        match verb {
            "volume.create" => body_of(request, &create(&self.services, request.decode()?).await?),
            "volume.remove" => body_of(request, &remove(&self.services, request.decode()?).await?),
            _ => body_of(request, &list(&self.services, request.decode()?).await?),
        }
    }
}

/// Whoever asked may be gone: what was begun is ended all the same.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, ErrorBody>> + Send + 'static,
) -> Result<T, ErrorBody> {
    let panicked = |error: tokio::task::JoinError| ErrorBody::new(ErrorCode::Internal, error.to_string());
    tokio::spawn(work).await.unwrap_or_else(|error| Err(panicked(error)))
}

async fn create(services: &Shared, asked: VolumeCreateRequest) -> Result<VolumeCreateReply, ErrorBody> {
    check_blank(asked.size_bytes, asked.fs, asked.label.as_deref())?;
    if asked.fs == DiskFs::Ext4 && tool().is_none() {
        let text = "fs: the host has no mkfs.ext4; install e2fsprogs on it, or leave the volume blank";
        return Err(ErrorBody::new(ErrorCode::Unsupported, text).with("missing", "mkfs.ext4"));
    }
    let services = services.clone();
    whole(async move {
        let (ns, name, size) = (asked.namespace.clone(), asked.name.clone(), asked.size_bytes.0);
        if !services.state.make_volume(&ns, &name, size, free(&services.disks)?)? {
            return Ok(VolumeCreateReply { already: true });
        }
        let made = volumes::make(&services, asked).await;
        services.state.settle_volume(&ns, &name, made.is_ok());
        made.map(|()| VolumeCreateReply { already: false })
    })
    .await
}

async fn remove(services: &Shared, asked: VolumeRemoveRequest) -> Result<Empty, ErrorBody> {
    let services = services.clone();
    whole(async move {
        let VolumeRemoveRequest { namespace, name } = asked;
        services.state.volumes().remove(&namespace, &name)?;
        let removed = volumes::remove(&services, &namespace, &name).await;
        services.state.settle_volume(&namespace, &name, removed.is_err());
        removed.map(|()| Empty {})
    })
    .await
}

async fn list(services: &Shared, asked: VolumesRequest) -> Result<VolumesReply, ErrorBody> {
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
    let after = asked.cursor.unwrap_or_default();
    let rows = services.rows().await?;
    let mut users: BTreeMap<&Token, BTreeSet<&Token>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.namespace == asked.namespace) {
        for volume in row.spec.disks.iter().filter_map(|disk| disk.volume.as_ref()) {
            users.entry(volume).or_default().insert(&row.name);
        }
    }
    let mut names = services.state.volumes().names().remove(&asked.namespace).unwrap_or_default();
    names.retain(|name| name.as_str() > after.as_str());
    let is_more = names.len() > limit;
    names.truncate(limit);
    let next_cursor = names.last().filter(|_| is_more).map(Token::to_string);
    let mut found = Vec::new();
    for name in names {
        let Some(size_bytes) = services.state.volumes().size(&asked.namespace, &name) else { continue };
        let written_bytes = volumes::written(services, &asked.namespace, &name);
        let used_by = users.get(&name).into_iter().flatten().take(USERS).map(|vm| (*vm).clone()).collect();
        found.push(VolumeInfo { name, size_bytes, written_bytes, used_by });
    }
    Ok(VolumesReply { volumes: found, next_cursor })
}
