//! The way of an orphan of ours back into the journal: from the record in its run directory, its name's claim on
//! the bus, and the last event that the stream has of it.
//!
//! It enters as `unknown`, and is then adopted like any other VM. Without a claim that says that the name is still
//! this VM's on this host nothing is imported: it may have been deleted, or live elsewhere by now.

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use drover_schemas::body::host::Orphan;
use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::body::status::{Cause, CauseKind};
use drover_schemas::codec;
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::state::{Desired, VmState};
use tracing::info;

use super::{nics, record_of};
use crate::bus::claims::{Claim, NameKey, Phase};
use crate::chain;
use crate::directory::Directory;
use crate::hypervisor::process::LaunchRecord;
use crate::journal::VmRow;
use crate::services::{Services, now_ms};
use crate::vm::inside::InsideRow;
use crate::vm::machine::Effect;
use crate::vm::prepare::prepare;
use crate::vm::row::{Live, machine_of};

/// Why an orphan is not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotImported {
    /// What was tried may work later.
    #[error("it cannot be imported yet: {reason}")]
    NotYet {
        /// Why.
        reason: String,
    },
    /// It will not.
    #[error("{reason}")]
    Never {
        /// Why.
        reason: String,
    },
}

fn never(reason: impl Into<String>) -> NotImported {
    NotImported::Never { reason: reason.into() }
}

fn not_yet(reason: impl Into<String>) -> NotImported {
    NotImported::NotYet { reason: reason.into() }
}

/// Makes the row of an orphan of this installation; it still has to be adopted.
///
/// # Errors
/// [`NotImported`]; nothing was changed.
pub async fn import(
    services: &Services,
    directory: &Directory,
    orphan: &Orphan,
) -> Result<VmRow, NotImported> {
    let vm_id = orphan.vm_id;
    let record = record_of(&services.run_root, services.installation, vm_id);
    let record = record.ok_or_else(|| never("there is no launch record in its run directory"))?;
    let key = NameKey { namespace: record.namespace.clone(), name: record.name.clone() };
    if directory.get(&key.namespace, &key.name).is_some() {
        return Err(never("another VM of this host has its name"));
    }
    let found = services.claims.lookup(&key).await.map_err(|e| not_yet(chain(&e).to_string()))?;
    let claim = ours(services, orphan, found.map(|(claim, _)| claim))?;
    let last = last_event(services, &key).await?.filter(|event| event.vm_id == vm_id);
    let row = row_of(&record, &claim, last.as_ref())?;
    let machine = machine_of(&row);
    let cause = Cause::new(CauseKind::Adopted, "it ran without a row in the journal and was imported");
    let told = Effect::Event {
        kind: VmEventKind::State,
        previous: last.map_or(VmState::Unknown, |event| event.state),
        state: VmState::Unknown,
        cause: Some(cause),
        request_id: None,
    };
    let prepared = prepare(services, &row, &Live::default(), &machine, &[told], None);
    let mut batch = prepared.batch.essential();
    batch.push_leases(&row);
    services.journal.commit(batch).await.map_err(|e| not_yet(chain(&e).to_string()))?;
    services.state.imported(&row.namespace, vm_id, &row.spec);
    info!(%vm_id, name = %row.name, namespace = %row.namespace, "imported");
    Ok(prepared.row)
}

fn ours(services: &Services, orphan: &Orphan, found: Option<Claim>) -> Result<Claim, NotImported> {
    let claim = found.ok_or_else(|| never("nobody has claimed its name on the bus"))?;
    if claim.vm_id != orphan.vm_id {
        return Err(never(format!("its name belongs to VM {} now", claim.vm_id)));
    }
    if claim.host != services.host {
        return Err(never(format!("it belongs to host {} now", claim.host)));
    }
    match claim.phase {
        Phase::Owned => Ok(claim),
        Phase::Gone => Err(never("it was deleted; its processes are left over")),
        Phase::Placing | Phase::Unknown => Err(never("its create was never finished")),
    }
}

async fn last_event(services: &Services, key: &NameKey) -> Result<Option<VmEvent>, NotImported> {
    let js = async_nats::jetstream::new(services.client.clone());
    let stream = js.get_stream_no_info(&services.events_stream).await;
    let stream = stream.map_err(|e| not_yet(format!("the event log cannot be read: {e}")))?;
    let filter = services.subjects.vm_events(&key.namespace, &key.name);
    match stream.get_last_raw_message_by_subject(&filter).await {
        Ok(message) => codec::decode(&message.payload)
            .map(Some)
            .map_err(|e| never(format!("its last event cannot be read: {e}"))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(not_yet(format!("the event log cannot be read: {error}"))),
    }
}

fn row_of(record: &LaunchRecord, claim: &Claim, last: Option<&VmEvent>) -> Result<VmRow, NotImported> {
    let spec = record.import.get("spec").cloned().unwrap_or_default();
    let spec: ResolvedSpec = serde_json::from_value(spec)
        .map_err(|e| never(format!("the spec in its launch record cannot be read: {e}")))?;
    let now = now_ms();
    Ok(VmRow {
        vm_id: record.vm_id,
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        spec,
        origins: Default::default(),
        // A secret, so no record has it.
        user_data: None,
        state: VmState::Unknown,
        desired: Desired::Running,
        revision: last.map_or(1, |event| event.revision.max(1)),
        incarnation: record.incarnation,
        seq: last.map_or(0, |event| event.seq),
        owner_epoch: claim.owner_epoch,
        created_unix_ms: record.vm_id.unix_ms(),
        state_since_unix_ms: now,
        cause: None,
        uid: record.uid,
        nics: nics(record),
        disks: Vec::new(),
        restarts: Vec::new(),
        operation: None,
        create_request: claim.request_id,
        owned: true,
        create_sha256: claim.body_sha256.clone(),
        released: false,
        previous: claim.previous.clone(),
        quarantined: None,
        inside: InsideRow::default(),
    })
}
