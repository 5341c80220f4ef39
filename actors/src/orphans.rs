//! VMMs that run here and are in no row of the journal: after a restore from a backup, or of another
//! installation. None is touched. What ours hold (user, addresses) is given to nobody else; those whose claim
//! on the bus still holds are imported ([`import`]), the others stay until an operator removes them ([`remove`]).

mod import;
mod remove;

pub use import::{NotImported, import};
pub use remove::remove;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use drover_schemas::body::host::Orphan;
use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::id::InstallationId;
use drover_schemas::{Token, VmId};

use crate::hypervisor::pidfd::env_value;
use crate::hypervisor::process::{ENV_INSTALLATION, ENV_VM_ID, LaunchRecord};
use crate::hypervisor::run_dir::RunRoot;
use crate::journal::{LeaseRow, Snapshot, UidRow};
use crate::network::forward::read_all;
use crate::network::{NicLease, VmNet};
use crate::network::{egress, limit};

/// Every VM with a process on this machine that is not one of `known`. Reads `/proc`: blocks.
#[must_use]
pub fn find(root: &RunRoot, installation: InstallationId, known: &HashSet<VmId>) -> Vec<Orphan> {
    let mut found: BTreeMap<(InstallationId, VmId), Vec<u32>> = BTreeMap::new();
    for (pid, owner, vm_id) in marked(Path::new("/proc")) {
        if owner != installation || !known.contains(&vm_id) {
            found.entry((owner, vm_id)).or_default().push(pid);
        }
    }
    let orphan = |((owner, vm_id), mut pids): ((InstallationId, VmId), Vec<u32>)| {
        pids.sort_unstable();
        let ours = owner == installation;
        let record = record_of(root, owner, vm_id);
        Orphan {
            vm_id,
            installation: owner,
            ours,
            namespace: record.as_ref().map(|r| r.namespace.clone()),
            name: record.as_ref().map(|r| r.name.clone()),
            pids,
            run_dir: record.map(|_| root.vm(vm_id).path().display().to_string()),
            reason: None,
        }
    };
    found.into_iter().map(orphan).collect()
}

/// Holds what orphans of this installation use, so that a new VM gets neither their user nor an address.
pub fn hold(root: &RunRoot, orphans: &[Orphan], snapshot: &mut Snapshot) {
    for orphan in orphans.iter().filter(|orphan| orphan.ours) {
        let vm_id = orphan.vm_id;
        let Some(record) = record_of(root, orphan.installation, vm_id) else { continue };
        if snapshot.uids.iter().all(|row| row.uid != record.uid) {
            snapshot.uids.push(UidRow { uid: record.uid, vm_id, quarantine_until_unix_ms: None });
        }
        for NicLease { network, ipv4, .. } in nics(&record) {
            let free = snapshot.leases.iter().all(|row| row.network != network || row.ipv4 != ipv4);
            if free {
                snapshot.leases.push(LeaseRow { network, ipv4, vm_id, quarantine_until_unix_ms: None });
            }
        }
    }
}

/// The interfaces of orphans of this installation: their guests go on speaking, under their own names only.
#[must_use]
pub fn nets(root: &RunRoot, orphans: &[Orphan]) -> Vec<VmNet> {
    let net = |orphan: &Orphan| {
        let record = record_of(root, orphan.installation, orphan.vm_id)?;
        let spec = record.import.get("spec").cloned().unwrap_or_default();
        let spec: Option<ResolvedSpec> = serde_json::from_value(spec).ok();
        let specs = spec.map(|spec| spec.nics).unwrap_or_default();
        Some(VmNet {
            vm_id: orphan.vm_id,
            called: None,
            uid: record.uid,
            nics: nics(&record),
            forwards: read_all(&specs).unwrap_or_default(),
            egress: egress::of_stored(&specs),
            limits: limit::read_all(&specs).unwrap_or_default(),
            queues: specs.iter().map(|nic| nic.queues).collect(),
        })
    };
    orphans.iter().filter(|orphan| orphan.ours).filter_map(net).collect()
}

fn nics(record: &LaunchRecord) -> Vec<NicLease> {
    let nics = record.import.get("nics").cloned().unwrap_or_default();
    serde_json::from_value(nics).unwrap_or_default()
}

fn record_of(root: &RunRoot, owner: InstallationId, vm_id: VmId) -> Option<LaunchRecord> {
    root.vm(vm_id).launch_record().ok().flatten().filter(|record| record.installation == owner)
}

/// Processes that carry the marks of a VM, by the environment that their holder gave them.
fn marked(proc: &Path) -> Vec<(u32, InstallationId, VmId)> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let marks = |pid: u32| {
        let environ = std::fs::read(proc.join(pid.to_string()).join("environ")).ok()?;
        let value = |name: &str| std::str::from_utf8(env_value(&environ, name)?).ok();
        Some((pid, value(ENV_INSTALLATION)?.parse().ok()?, value(ENV_VM_ID)?.parse().ok()?))
    };
    numbers.filter_map(marks).collect()
}

/// What an operator calls one.
#[must_use]
pub fn label(orphan: &Orphan) -> String {
    let part = |token: &Option<Token>| token.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    format!("{} ({}/{})", orphan.vm_id, part(&orphan.namespace), part(&orphan.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_known_by_their_marks() {
        let proc = tempfile::tempdir().unwrap();
        let (owner, vm_id) = (InstallationId::from_u128(1), VmId::from_u128(2));
        let make = |pid: &str, environ: &str| {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            std::fs::write(proc.path().join(pid).join("environ"), environ).unwrap();
        };
        make("7", &format!("PATH=/bin\0DROVER_INSTALLATION={owner}\0DROVER_VM_ID={vm_id}\0"));
        make("8", &format!("DROVER_INSTALLATION={owner}\0"));
        make("9", "DROVER_INSTALLATION=junk\0DROVER_VM_ID=junk\0");
        make("self", &format!("DROVER_INSTALLATION={owner}\0DROVER_VM_ID={vm_id}\0"));
        assert_eq!(marked(proc.path()), [(7, owner, vm_id)]);
    }
}
