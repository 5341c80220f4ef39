//! From what a caller writes to what is stored: resolution, pure.
//!
//! Order of precedence, least first: the template, then the request. Lists (disks, interfaces) and
//! single values are replaced; labels are merged by name; of `boot` each part is replaced by itself.
//! How a template comes from several files stands in [`templates`].

use std::collections::BTreeMap;

use drover_schemas::body::spec::{
    BootSpec, ImageKind, Os, PlacementSpec, ResolvedBoot, ResolvedImage, ResolvedSpec, VmSpec,
};
use drover_schemas::secret::Secret;
use drover_schemas::size::ByteSize;
use drover_schemas::{ErrorBody, ErrorCode, Token};

use crate::network::forward::read_all;
use crate::network::{egress, limit};

mod agent;
pub mod disks;
pub mod origins;
pub mod security;
mod seed;
pub mod shape;
pub mod templates;
mod watch;

use origins::{Origins, origins};
pub use templates::{TemplateError, Templates};

/// The least memory that a guest boots with.
pub const MIN_MEMORY: ByteSize = ByteSize::mib(64);
/// The most memory of one VM.
pub const MAX_MEMORY: ByteSize = ByteSize::mib(1 << 20);
/// The most virtual CPUs of one VM (Cloud Hypervisor takes no more).
pub const MAX_CPUS: u32 = 255;
const MAX_CMDLINE: usize = 1_500;
const MAX_NICS: usize = 8;
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 256;

/// The catalogue of images, as resolution needs it.
pub trait ImageCatalogue {
    /// The image of a name or digest.
    fn find(&self, reference: &str) -> Option<ResolvedImage>;
    /// Names of all images of a kind, for error messages.
    fn names(&self, kind: ImageKind) -> Vec<String>;
}

pub(crate) fn invalid(field: &str, message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, format!("{field}: {}", message.into())).with("field", field)
}

/// Asks whether the known name was meant that differs least from `name`; nothing if none is close.
#[must_use]
pub fn hint(name: &str, known: &[&str]) -> String {
    closest(name, known).map(|meant| format!("did you mean {meant:?}? ")).unwrap_or_default()
}

/// The known name that differs least from `name`, if it is close.
fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| (distance(name, k), *k))
        .min()
        .filter(|(d, k)| *d <= 2.max(k.len() / 4))
        .map(|(_, k)| k)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A spec with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// What is stored, booted and shown.
    pub spec: ResolvedSpec,
    /// Where its values come from.
    pub origins: Origins,
    /// What the guest is handed, apart from the spec because it is a secret.
    pub user_data: Option<Secret>,
}

/// Resolves a spec of a namespace: template, overrides, images, limits.
///
/// # Errors
/// `invalid_argument` that names the field and says what would do; `not_found` for an image. Where the template set
/// the field, the error names its file and line.
pub fn resolve(
    namespace: &Token,
    spec: &VmSpec,
    templates: &Templates,
    images: &dyn ImageCatalogue,
) -> Result<Resolved, ErrorBody> {
    let name = template_of(spec)?;
    let template = templates.get(namespace, &name)?;
    let resolved = over(spec, name, &template.spec, images).map_err(|error| template.blame(spec, error))?;
    let origins = origins(spec, template, &resolved);
    let user_data = spec.user_data.clone().or_else(|| template.spec.user_data.clone());
    Ok(Resolved { user_data: user_data.filter(|_| resolved.seed.is_some()), spec: resolved, origins })
}

/// A spec over its template.
fn over(
    spec: &VmSpec,
    template: Token,
    base: &VmSpec,
    images: &dyn ImageCatalogue,
) -> Result<ResolvedSpec, ErrorBody> {
    let missing = |field: &str| {
        invalid(
            field,
            format!("neither the request nor template {template:?} sets it; add it to the request"),
        )
    };
    let os = spec.os.or(base.os).unwrap_or(Os::Linux);
    let cpus = spec.cpus.or(base.cpus).ok_or_else(|| missing("spec.cpus"))?;
    let memory = spec.memory.or(base.memory).ok_or_else(|| missing("spec.memory_bytes"))?;
    check_size(cpus, memory)?;
    let cpu_topology = shape::topology(spec, base, cpus)?;
    let hugepages = shape::pages(spec, base, memory)?;
    let security = security::resolve(spec, base)?;
    let labels: BTreeMap<_, _> = base.labels.clone().into_iter().chain(spec.labels.clone()).collect();
    check_labels(&labels)?;
    let seed = seed::resolve(spec, base)?;
    let disks = spec.disks.as_ref().or(base.disks.as_ref()).cloned().unwrap_or_default();
    let nics = spec.nics.as_ref().or(base.nics.as_ref()).cloned().unwrap_or_default();
    if nics.len() > MAX_NICS {
        return Err(invalid("spec.nics", format!("at most {MAX_NICS} interfaces")));
    }
    read_all(&nics)?;
    egress::read_all(&nics)?;
    limit::read_all(&nics)?;
    shape::queues(&nics, cpus)?;
    shape::addresses(&nics)?;
    let disks = disks::resolve(disks, images)?;
    let boot = resolve_boot(spec.boot.as_ref(), base.boot.as_ref(), images)?;
    let placement = spec.placement.clone().or_else(|| base.placement.clone()).unwrap_or_default();
    check_placement(&placement)?;
    let restart = spec.restart.clone().or_else(|| base.restart.clone()).unwrap_or_default();
    if restart.backoff_ms > restart.backoff_max_ms || restart.window_ms == 0 {
        return Err(invalid(
            "spec.restart",
            "backoff_ms must not exceed backoff_max_ms, and window_ms must not be 0",
        ));
    }
    let agent = agent::resolve(spec.agent.as_ref(), base.agent.as_ref())?;
    Ok(ResolvedSpec {
        template,
        os,
        cpus,
        cpu_topology,
        memory_bytes: memory.0,
        hugepages,
        security,
        boot,
        disks,
        nics,
        seed,
        restart,
        agent,
        labels,
        placement,
    })
}

/// The template of a spec.
///
/// # Errors
/// Never: the name that stands for none is one.
pub(crate) fn template_of(spec: &VmSpec) -> Result<Token, ErrorBody> {
    match &spec.template {
        Some(name) => Ok(name.clone()),
        None => Token::new("linux-default").map_err(|e| invalid("spec.template", e.to_string())),
    }
}

fn check_placement(placement: &PlacementSpec) -> Result<(), ErrorBody> {
    if placement.labels.len() > MAX_LABELS || placement.features.len() > MAX_LABELS {
        return Err(invalid(
            "spec.placement",
            format!("at most {MAX_LABELS} labels and {MAX_LABELS} features"),
        ));
    }
    let long = |text: &String| text.is_empty() || text.len() > MAX_LABEL;
    let bad = placement.labels.iter().any(|(key, value)| long(key) || value.len() > MAX_LABEL)
        || placement.features.iter().any(long);
    if bad {
        return Err(invalid("spec.placement", format!("names and values have at most {MAX_LABEL} bytes")));
    }
    Ok(())
}

fn check_size(cpus: u32, memory: ByteSize) -> Result<(), ErrorBody> {
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(invalid("spec.cpus", format!("{cpus} is not possible; use 1 to {MAX_CPUS}")));
    }
    if memory < MIN_MEMORY || memory > MAX_MEMORY {
        return Err(invalid(
            "spec.memory_bytes",
            format!("{memory} is not possible; use {MIN_MEMORY} to {MAX_MEMORY}"),
        ));
    }
    if !memory.0.is_multiple_of(ByteSize::mib(1).0) {
        return Err(invalid("spec.memory_bytes", format!("{memory} is not a multiple of 1 MiB")));
    }
    Ok(())
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ErrorBody> {
    if labels.len() > MAX_LABELS {
        return Err(invalid("spec.labels", format!("at most {MAX_LABELS} labels")));
    }
    match labels.iter().find(|(k, v)| k.is_empty() || k.len() > MAX_LABEL || v.len() > MAX_LABEL) {
        Some((key, _)) => Err(invalid(
            &format!("spec.labels.{}", key.chars().take(40).collect::<String>()),
            format!("names have 1 to {MAX_LABEL} bytes and values at most {MAX_LABEL}"),
        )),
        None => Ok(()),
    }
}

fn image(
    images: &dyn ImageCatalogue,
    field: &str,
    reference: &str,
    kinds: &[ImageKind],
) -> Result<ResolvedImage, ErrorBody> {
    let Some(found) = images.find(reference) else {
        let known: Vec<String> = kinds.iter().flat_map(|kind| images.names(*kind)).collect();
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        let hint = hint(reference, &names);
        let shown: String = reference.chars().take(100).collect();
        return Err(ErrorBody::new(
            ErrorCode::NotFound,
            format!("{field}: there is no image {shown:?}; {hint}known: {}", known.join(", ")),
        )
        .with("field", field));
    };
    if !kinds.contains(&found.kind) {
        let wanted = kinds.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join(" or ");
        return Err(invalid(field, format!("image {reference:?} is of kind {:?}, not {wanted}", found.kind)));
    }
    Ok(found)
}

/// The images that a guest boots from, by name or digest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootParts<'a> {
    pub kernel: Option<&'a String>,
    pub initramfs: Option<&'a String>,
    pub firmware: Option<&'a String>,
}

pub(crate) fn boot_parts<'a>(spec: Option<&'a BootSpec>, base: Option<&'a BootSpec>) -> BootParts<'a> {
    let part = |f: fn(&BootSpec) -> Option<&String>| spec.and_then(f).or_else(|| base.and_then(f));
    let own_firmware = spec.is_some_and(|b| b.firmware.is_some());
    let own_kernel = spec.is_some_and(|b| b.kernel.is_some());
    // A request that names firmware means it instead of the template's kernel, and the reverse.
    let kernel = part(|b| b.kernel.as_ref()).filter(|_| !own_firmware || own_kernel);
    let initramfs = part(|b| b.initramfs.as_ref()).filter(|_| kernel.is_some());
    let firmware = part(|b| b.firmware.as_ref()).filter(|_| !own_kernel || own_firmware);
    BootParts { kernel, initramfs, firmware }
}

fn resolve_boot(
    spec: Option<&BootSpec>,
    base: Option<&BootSpec>,
    images: &dyn ImageCatalogue,
) -> Result<ResolvedBoot, ErrorBody> {
    let BootParts { kernel, initramfs, firmware } = boot_parts(spec, base);
    if kernel.is_some() && firmware.is_some() {
        return Err(invalid("spec.boot", "kernel and firmware exclude each other; name one"));
    }
    if kernel.is_none() && firmware.is_none() {
        return Err(invalid("spec.boot", "name a kernel or firmware"));
    }
    let cmdline =
        [spec, base].into_iter().flatten().find_map(|boot| boot.cmdline.clone()).unwrap_or_default();
    if cmdline.len() > MAX_CMDLINE || cmdline.chars().any(char::is_control) {
        return Err(invalid("spec.boot.cmdline", format!("at most {MAX_CMDLINE} printable characters")));
    }
    let find = |field: &str, reference: Option<&String>, kind| {
        reference.map(|r| image(images, field, r, &[kind])).transpose()
    };
    Ok(ResolvedBoot {
        kernel: find("spec.boot.kernel", kernel, ImageKind::Kernel)?,
        initramfs: find("spec.boot.initramfs", initramfs, ImageKind::Initramfs)?,
        firmware: find("spec.boot.firmware", firmware, ImageKind::Firmware)?,
        cmdline,
    })
}

#[cfg(test)]
mod tests;
