//! The disks of a VM: copies of images and blank ones, in a folder that only we and its VMM's user enter.
//!
//! They are made by the first boot, which is part of the create; a later one finds them. The row tells how each was
//! made, so one that was there and is gone is a failure and not a reason to begin with an empty one.

mod agent;
mod format;
mod overlay;
mod own;
mod seed;
pub mod volumes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use drover_schemas::body::spec::{DiskFs, ImageFormat, ResolvedDisk, ResolvedSpec};
use drover_schemas::body::status::{Cause, CauseKind, DiskMade, DiskStatus};
use drover_schemas::{ErrorBody, ErrorCode};

use super::machine::Report;
use super::tasks::{TaskContext, failed, image_gone, image_path, no_vmm, owner};
use crate::chain;
use crate::hypervisor::config::{DiskPath, ImageType, disk_id};
use crate::journal::VmRow;
use crate::services::Services;

pub use self::agent::{AgentProgramError, check as agent_program};
pub use self::format::tool;
pub(in crate::vm) use self::overlay::Overlay;
use self::own::{DiskError, Source, Wanted};
pub use crate::spec::disks::name;

/// The work on the disks of one boot. It is asked to stop when it is dropped, and [`Self::ended`] waits until it has:
/// what blocks goes on after the one who waited for it.
#[derive(Debug, Default)]
pub struct Work {
    stop: Arc<AtomicBool>,
    busy: Arc<tokio::sync::Mutex<()>>,
    made: Mutex<Vec<DiskMade>>,
}

impl Work {
    /// Stops what is under way and waits until it has ended.
    pub async fn ended(&self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.busy.lock().await);
    }

    /// How the disks were made, as many as there are by now.
    #[must_use]
    pub fn made(&self) -> Vec<DiskMade> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn make(&self, wanted: Wanted) -> Result<DiskMade, DiskError> {
        let (stop, busy) = (Arc::clone(&self.stop), Arc::clone(&self.busy).lock_owned().await);
        let made = tokio::task::spawn_blocking(move || {
            let made = own::make(&wanted, &stop);
            drop(busy);
            made
        });
        made.await.unwrap_or_else(|panic| Err(DiskError::Write(std::io::Error::other(panic))))
    }
}

impl Work {
    /// Makes the seed disk as the row says now.
    async fn seed(&self, context: &TaskContext) -> Result<DiskPath, Cause> {
        let disk = seed_path(&context.services, &context.row);
        let busy = Arc::clone(&self.busy).lock_owned().await;
        let first = context.row.nics.first();
        let names = first.and_then(|nic| context.services.network.names_of(&nic.network));
        let seed = seed::Seed::of(&context.row, context.services.programs.agent.as_deref(), names);
        let (path, owner) = (disk.path.clone(), owner(context));
        let made = tokio::task::spawn_blocking(move || {
            let seed = seed?;
            let made = own::replace(&path, owner, |file| seed.write(file));
            drop(busy);
            made
        });
        let made = made.await.unwrap_or_else(|panic| Err(DiskError::Write(std::io::Error::other(panic))));
        made.map(|()| disk).map_err(|error| {
            let text = format!("the seed disk could not be made: {}", chain(&error));
            Cause::new(CauseKind::DiskRefused, text).with("step", "disks").with("disk", "seed")
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The format of the file of a disk that was made so, if it was.
fn image_type(disk: &ResolvedDisk, made: Option<DiskMade>) -> ImageType {
    let of_image = disk.image.as_ref().map(|image| image.format);
    match (made, of_image) {
        (Some(DiskMade::Overlay), _) | (_, Some(ImageFormat::Qcow2)) => ImageType::Qcow2,
        (_, Some(ImageFormat::Raw) | None) => ImageType::Raw,
    }
}

/// How a disk was made, if that is known.
fn made(row: &VmRow, index: usize) -> Option<DiskMade> {
    row.disks.get(index).copied()
}

/// Makes the disks that a VM does not have yet; the work tells how each of them was made.
///
/// # Errors
/// `disk_refused`, with the disk and what is in the way.
pub async fn make(context: &TaskContext, work: &Work) -> Result<Vec<DiskPath>, Cause> {
    let mut paths = Vec::new();
    for (index, disk) in context.row.spec.disks.iter().enumerate() {
        let image = disk.image.as_ref().map(|image| image_path(context, image)).transpose()?;
        let known = made(&context.row, index);
        let mut backing = None;
        let (path, how) = match image {
            _ if disk.volume.is_some() => {
                let path = path(&context.services, &context.row, index);
                volumes::give(&path, disk.readonly, owner(context))
                    .map_err(|error| refused(index, disk, &path, &DiskError::Volume(error)))?;
                (path, DiskMade::Volume)
            }
            Some(image) if disk.readonly => (image, DiskMade::Shared),
            image => {
                let own = copied(&context.services, &context.row, index);
                let overlay = overlay_of(context, index);
                if let (Some(DiskMade::Overlay), None, Some(image)) = (known, &overlay, &disk.image) {
                    return Err(image_gone(image));
                }
                let wanted = Wanted {
                    own: own.clone(),
                    overlay: overlay.clone(),
                    source: match image {
                        Some(path) => Source::Image { path, size: disk.size_bytes },
                        None => Source::Blank {
                            size: disk.length(),
                            ext4: disk.fs == Some(DiskFs::Ext4),
                            label: disk.label.clone(),
                        },
                    },
                    length: (image_type(disk, None) == ImageType::Raw).then(|| disk.length()),
                    owner: owner(context),
                    was_made: known,
                };
                let how = work.make(wanted).await.map_err(|error| refused(index, disk, &own, &error))?;
                match overlay.filter(|_| how == DiskMade::Overlay) {
                    Some(overlay) => {
                        backing = Some(overlay.image);
                        (overlay.own, how)
                    }
                    None => (own, known.unwrap_or(how)),
                }
            }
        };
        paths.push(DiskPath {
            path,
            readonly: disk.readonly,
            image_type: image_type(disk, Some(how)),
            backing,
            name: name(index, disk),
            discard: disk.discard.unwrap_or(true),
            limits: disk.limits,
        });
        work.made.lock().unwrap_or_else(PoisonError::into_inner).push(how);
    }
    if context.row.spec.seed.is_some() {
        paths.push(work.seed(context).await?);
    }
    Ok(paths)
}

/// The overlay that a disk is, or may become.
fn overlay_of(context: &TaskContext, index: usize) -> Option<Overlay> {
    let TaskContext { services, row, .. } = context;
    let disk = row.spec.disks.get(index)?;
    let image = disk.image.as_ref()?;
    let own = overlaid(services, row, index);
    let is_one = match made(row, index) {
        Some(made) => made == DiskMade::Overlay,
        // One whose boot was cut off before its row told of it is kept, whatever is configured now.
        None => services.overlays && Overlay::can_have(disk.length()) || own.symlink_metadata().is_ok(),
    };
    let image_path = services.images.kept(image).filter(|_| is_one)?;
    Some(Overlay { own, image: image_path, format: image.format, length: disk.length() })
}

/// Makes the disks of a VM that runs as long as its spec says, and lets its guest see it.
///
/// The VMM lengthens the file and tells the guest in one call, so a file that is long enough was told of.
pub async fn grow(context: &TaskContext) -> Report {
    let Some(run) = &context.run else { return no_vmm() };
    let row = &context.row;
    let grows = |index: usize, disk: &ResolvedDisk| {
        !disk.readonly && image_type(disk, made(row, index)) == ImageType::Raw
    };
    for (index, disk) in row.spec.disks.iter().enumerate().filter(|(index, disk)| grows(*index, disk)) {
        let path = path(&context.services, row, index);
        let is_long = || std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.len() >= disk.length());
        if is_long() {
            continue;
        }
        let id = disk_id(index);
        let grown = tokio::select! {
            biased;
            () = context.cancel.cancelled() => {
                return Report::Failed(Cause::new(CauseKind::Superseded, "a later request took its place"));
            }
            grown = run.api.resize_disk(&id, disk.length()) => grown,
        };
        let cause = match grown {
            Ok(()) if is_long() => continue,
            Ok(()) => Cause::new(CauseKind::DiskRefused, "the VMM says that it is, and its file is not"),
            Err(error) => failed(context, "vm.resize-disk", &error),
        };
        let text = format!(
            "disk {:?} is longer in the spec, and will be from the VM's next start on, but not now: {}",
            name(index, disk),
            cause.message
        );
        return Report::Failed(Cause { message: text, ..cause }.with("disk", name(index, disk)));
    }
    Report::SpecChanged
}

/// The seed disk's place behind the others.
fn seed_path(services: &Services, row: &VmRow) -> DiskPath {
    DiskPath {
        path: services.disk_dir(row.vm_id).join("seed.img"),
        readonly: true,
        image_type: ImageType::Raw,
        backing: None,
        name: seed::LABEL.to_ascii_lowercase(),
        discard: true,
        limits: None,
    }
}

/// The disks as the VMM is told of them, whether they are made or not; images by their names.
#[must_use]
pub fn described(services: &Services, row: &VmRow) -> Vec<DiskPath> {
    let shared = |disk: &ResolvedDisk| {
        let image = disk.image.as_ref().filter(|_| disk.readonly)?;
        Some(PathBuf::from(format!("image:{}", image.name)))
    };
    let disks = row.spec.disks.iter().enumerate().map(|(index, disk)| DiskPath {
        path: shared(disk).unwrap_or_else(|| path(services, row, index)),
        readonly: disk.readonly,
        image_type: image_type(disk, made(row, index)),
        backing: disk
            .image
            .as_ref()
            .filter(|_| made(row, index) == Some(DiskMade::Overlay))
            .map(|image| PathBuf::from(format!("image:{}", image.name))),
        name: name(index, disk),
        discard: disk.discard.unwrap_or(true),
        limits: disk.limits,
    });
    disks.chain(row.spec.seed.as_ref().map(|_| seed_path(services, row))).collect()
}

/// Makes a disk of a raw image that a VM writes to, once; says how. With `overlay` it may lie over the image.
///
/// # Errors
/// The image cannot be read or the disk cannot be written.
pub async fn copy_on_write(
    image: PathBuf,
    own: PathBuf,
    overlay: bool,
    owner: Option<u32>,
) -> std::io::Result<DiskMade> {
    let overlay = overlay
        .then(|| {
            let length = std::fs::metadata(&image)?.len();
            let (own, image, format) = (own.clone(), image.clone(), ImageFormat::Raw);
            Ok::<_, std::io::Error>(Overlay { own, image, format, length })
        })
        .transpose()?;
    let source = Source::Image { path: image, size: None };
    let made =
        Work::default().make(Wanted { own, overlay, source, length: None, owner, was_made: None }).await;
    made.map_err(std::io::Error::other)
}

fn refused(index: usize, disk: &ResolvedDisk, own: &std::path::Path, error: &DiskError) -> Cause {
    let name = name(index, disk);
    let cause =
        Cause::new(CauseKind::DiskRefused, format!("disk {name:?} could not be made: {}", chain(error)))
            .with("step", "disks")
            .with("disk", &name)
            .with("path", own.display());
    match error {
        DiskError::Room { needed, left } => {
            cause.with("resource", "disk").with("needed", needed).with("left", left)
        }
        _ => cause,
    }
}

/// Where the VM's own disk is.
#[must_use]
pub fn path(services: &Services, row: &VmRow, index: usize) -> PathBuf {
    if let Some(volume) = row.spec.disks.get(index).and_then(|disk| disk.volume.as_ref()) {
        return volumes::path(services, &row.namespace, volume);
    }
    if made(row, index) == Some(DiskMade::Overlay) {
        return overlaid(services, row, index);
    }
    copied(services, row, index)
}

/// Where a disk is that is no overlay.
fn copied(services: &Services, row: &VmRow, index: usize) -> PathBuf {
    let suffix = match row.spec.disks.get(index).map(|disk| image_type(disk, None)) {
        Some(ImageType::Qcow2) => "qcow2",
        Some(ImageType::Raw) | None => "raw",
    };
    services.disk_dir(row.vm_id).join(format!("disk{index}.{suffix}"))
}

/// Where a disk is that lies over its image.
fn overlaid(services: &Services, row: &VmRow, index: usize) -> PathBuf {
    services.disk_dir(row.vm_id).join(format!("disk{index}.overlay"))
}

/// The disks as the host made them; nothing before the first boot.
#[must_use]
pub fn status(row: &VmRow) -> Vec<DiskStatus> {
    let made = row.disks.iter().enumerate().zip(&row.spec.disks);
    made.map(|((index, made), disk)| DiskStatus {
        name: name(index, disk),
        size_bytes: disk.length(),
        made: *made,
    })
    .collect()
}

/// What the file system of the disks has left. The folder is made with the first disk: until then its parent tells.
///
/// # Errors
/// `internal`.
pub fn free(disks: &Path) -> Result<u64, ErrorBody> {
    let stat = disks.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    let stat = stat.ok_or_else(|| {
        ErrorBody::new(ErrorCode::Internal, "the file system of the disks does not say what it has left")
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether a host has what the disks of a spec need.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn supported(spec: &ResolvedSpec, tool: Option<PathBuf>, agent: Option<&Path>) -> Result<(), ErrorBody> {
    if spec.seed.as_ref().is_some_and(|seed| seed.agent) && agent.is_none() {
        let error = ErrorBody::new(ErrorCode::Unsupported, DiskError::NoAgent.to_string());
        return Err(error.with("field", "spec.seed.agent").with("missing", "guest_agent"));
    }
    let Some(index) = spec.disks.iter().position(|disk| disk.fs == Some(DiskFs::Ext4)) else { return Ok(()) };
    if tool.is_some() {
        return Ok(());
    }
    let field = format!("spec.disks[{index}].fs");
    let text =
        format!("{field}: the host has no mkfs.ext4; install e2fsprogs on it, or leave the disk blank");
    Err(ErrorBody::new(ErrorCode::Unsupported, text).with("field", field).with("missing", "mkfs.ext4"))
}

#[cfg(test)]
#[path = "disks/tests.rs"]
mod tests;
