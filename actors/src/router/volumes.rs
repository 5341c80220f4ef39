//! Volumes of this host, made, made longer, listed and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drover_schemas::body::guest::Empty;
use drover_schemas::body::spec::DiskFs;
use drover_schemas::body::volume::{
    VolumeCreateReply, VolumeCreateRequest, VolumeGrowReply, VolumeGrowRequest, VolumeInfo,
    VolumeRemoveRequest, VolumeSeenLater, VolumesReply, VolumesRequest,
};
use drover_schemas::state::VmState;

use super::{Answer, ErrorBody, ErrorCode, Request, Router, Token, body_of, whole};
use crate::chain;
use crate::directory::Directory;
use crate::hypervisor::config::disk_id;
use crate::services::Shared;
use crate::spec::disks::{check_blank, check_size};
use crate::vm::disks::{free, tool, volumes};

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 500;
const USERS: usize = 100;

impl Router {
    pub(super) async fn volumes(&self, verb: &str, request: &Request) -> Answer {
        match verb {
            "volume.create" => body_of(request, &create(&self.services, request.decode()?).await?),
            "volume.grow" => {
                let asked = request.decode()?;
                body_of(request, &grow(&self.services, &self.directory, asked).await?)
            }
            "volume.remove" => body_of(request, &remove(&self.services, request.decode()?).await?),
            _ => body_of(request, &list(&self.services, request.decode()?).await?),
        }
    }
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

async fn grow(
    services: &Shared,
    directory: &Arc<Directory>,
    asked: VolumeGrowRequest,
) -> Result<VolumeGrowReply, ErrorBody> {
    check_size("size_bytes", asked.size_bytes)?;
    let (services, directory) = (services.clone(), Arc::clone(directory));
    whole(async move {
        let VolumeGrowRequest { namespace: ns, name, size_bytes: size } = asked;
        let before = services.state.grow_volume(&ns, &name, size.0, free(&services.disks)?)?;
        let told = match volumes::lengthen(&services, &ns, &name, size.0).await {
            Ok(()) => tell(&services, &directory, &ns, &name, size.0).await,
            Err(error) => Err(error),
        };
        let is = volumes::length(&services, &ns, &name).unwrap_or(before);
        services.state.settle_growth(&ns, &name, is);
        Ok(VolumeGrowReply { already: before == size.0, later: told? })
    })
    .await
}

/// Lets the VMs that are up see that a volume is longer: those that cannot. Rows are read after the file is longer, so
/// that a VM which is not among them has not opened it yet.
async fn tell(
    services: &Shared,
    directory: &Directory,
    ns: &Token,
    name: &Token,
    size: u64,
) -> Result<Vec<VolumeSeenLater>, ErrorBody> {
    let mut later = Vec::new();
    for row in services.rows().await?.iter().filter(|row| row.namespace == *ns) {
        let mut disks = row.spec.disks.iter().enumerate();
        let Some((index, disk)) = disks.find(|(_, disk)| disk.volume.as_ref() == Some(name)) else {
            continue;
        };
        let Some(slot) = directory.get(ns, &row.name).filter(|slot| slot.vm_id == row.vm_id) else {
            continue;
        };
        let Some(view) = slot.view().await else { continue };
        let Some(run) = &view.run else { continue };
        let reason = match view.machine.state {
            _ if disk.readonly => "it only reads it, and its VMM looks at the length once".to_owned(),
            // A paused guest's disk would work again.
            state if state != VmState::Running => format!("it is {state}"),
            _ => match run.api.resize_disk(&disk_id(index), size).await {
                Ok(()) => continue,
                Err(error) => chain(&error).to_string(),
            },
        };
        if later.len() < USERS {
            later.push(VolumeSeenLater { name: row.name.clone(), reason });
        }
    }
    Ok(later)
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
