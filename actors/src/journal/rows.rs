//! What a journal row says. Rows are MessagePack maps with named fields inside an envelope with a
//! row version, so that a field can be added without a migration and a newer row is recognised.

use std::net::Ipv4Addr;

use crate::bus::claims::Previous;
use crate::network::NicLease;
use crate::spec::origins::Origins;
use crate::vm::inside::InsideRow;
use drover_schemas::blob::Blob;
use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::body::status::{Cause, DiskMade};
use drover_schemas::body::vm::Outcome;
use drover_schemas::codec::{self, EncodeError};
use drover_schemas::secret::Secret;
use drover_schemas::state::{Desired, VmState};
use drover_schemas::{InstallationId, RequestId, Token, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of every row that this drover writes.
pub const ROW_VERSION: u16 = 1;

/// Everything that must survive the daemon about one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmRow {
    /// Immutable identity.
    pub vm_id: VmId,
    /// Namespace.
    pub namespace: Token,
    /// Name within the namespace.
    pub name: Token,
    /// The spec with nothing left open.
    pub spec: ResolvedSpec,
    /// Where its values come from; it is not said of VMs that an earlier version made.
    #[serde(default, skip_serializing_if = "Origins::is_empty")]
    pub origins: Origins,
    /// The user-data, apart from the spec because it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Secret>,
    /// What it is.
    pub state: VmState,
    /// What it shall be.
    pub desired: Desired,
    /// Counts changes of the spec, from 1.
    pub revision: u64,
    /// Counts VMM processes, from 1; 0 before the first.
    pub incarnation: u64,
    /// Sequence of its last event.
    pub seq: u64,
    /// The epoch of its owner in the name claim.
    pub owner_epoch: u64,
    /// When it was created.
    pub created_unix_ms: u64,
    /// When `state` was entered.
    pub state_since_unix_ms: u64,
    /// Why it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The Unix user of its VMM.
    pub uid: u32,
    /// Its interfaces.
    #[serde(default)]
    pub nics: Vec<NicLease>,
    /// How each of its disks was made; nothing before the first boot has made them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskMade>,
    /// When its restarts by policy happened, oldest first.
    #[serde(default)]
    pub restarts: Vec<u64>,
    /// The operation under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<PendingOp>,
    /// The request that created it.
    pub create_request: RequestId,
    /// The name claim was seen to be ours: effects may happen.
    #[serde(default)]
    pub owned: bool,
    /// Digest of the create request's body, for the name claim.
    #[serde(default)]
    pub create_sha256: String,
    /// It was deleted and its last event recorded; only its name is still to be freed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// VMs that had the name before, by the claim: what their requests get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Previous>,
    /// It is not this host's any more, for this reason; nothing is done for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// Its events from inside.
    #[serde(default)]
    pub inside: InsideRow,
}

/// An operation that a restart of the daemon has to finish or undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOp {
    /// The verb.
    pub verb: String,
    /// The request that asked for it; absent for the restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// When its reply is due.
    pub phase: String,
    /// How long the guest may take to go by itself, for shutdown and stop.
    #[serde(default)]
    pub time_ms: u64,
}

/// What a request id is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// The verb that was asked for.
    pub verb: String,
    /// SHA-256 of the body, 64 lower-case hexadecimal digits: the same id with another body is a
    /// conflict.
    pub body_sha256: String,
    /// When the id was bound, by this host's clock.
    pub bound_unix_ms: u64,
    /// How far it is.
    pub state: RequestState,
}

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// Accepted; a duplicate attaches to the outcome.
    InFlight {
        /// The VM that works on it.
        vm_id: VmId,
        /// The last step that was begun.
        phase: String,
    },
    /// Over; a duplicate gets the same outcome.
    Done {
        /// What was answered.
        outcome: Outcome,
        /// When.
        at_unix_ms: u64,
    },
}

/// An address of a network that a VM holds, or held a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The network.
    pub network: Token,
    /// The address.
    pub ipv4: Ipv4Addr,
    /// Its holder.
    pub vm_id: VmId,
    /// Released, and not to be given to another VM before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_until_unix_ms: Option<u64>,
}

/// A Unix user that a VM holds, or held a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRow {
    /// The user.
    pub uid: u32,
    /// Its holder.
    pub vm_id: VmId,
    /// Released, and not to be given to another VM before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_until_unix_ms: Option<u64>,
}

/// One event that the bus does not have yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxRow {
    /// The VM, or [`host_stream_key`] for an event of the host, or [`audit_stream_key`] for one of its audit.
    pub key: VmId,
    /// Sequence within the key, from 1.
    pub seq: u64,
    /// Where it is published.
    pub subject: String,
    /// The subject filter of all events of this VM's name: order is guarded over it.
    pub filter: String,
    /// CloudEvents headers. `ce-id` and `Nats-Msg-Id` are set from `key` and `seq` on publishing.
    pub headers: Vec<(String, String)>,
    /// The event.
    pub body: Blob,
    /// What becomes of the VM's entry in the state bucket once the event is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusUpdate>,
}

impl OutboxRow {
    /// The event's id on the bus: `<key>.<seq>`.
    #[must_use]
    pub fn event_id(&self) -> String {
        event_id(self.key, self.seq)
    }
}

/// The id of an event on the bus.
#[must_use]
pub fn event_id(key: VmId, seq: u64) -> String {
    format!("{key}.{seq}")
}

/// The outbox key of the host's own events: its installation id, which is never a VM's id.
#[must_use]
pub const fn host_stream_key(installation: InstallationId) -> VmId {
    VmId::from_u128(installation.as_u128())
}

/// The outbox key of the host's audit, which is no VM's id either: its first bit is never that of an id made from
/// a time.
#[must_use]
pub const fn audit_stream_key(installation: InstallationId) -> VmId {
    VmId::from_u128(installation.as_u128() ^ (1 << 127))
}

/// A change of one entry of the bucket of VM states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusUpdate {
    /// The entry becomes this.
    Put {
        /// Key within the bucket.
        key: String,
        /// The encoded status.
        value: Blob,
    },
    /// The entry goes.
    Delete {
        /// Key within the bucket.
        key: String,
    },
}

/// Where the events of one key stand in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The last acknowledged event.
    pub seq: u64,
    /// Its place in the stream.
    pub stream_seq: u64,
}

/// Why a row could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The row was written by a newer drover.
    #[error("the row has version {found}, this drover reads up to {ROW_VERSION}")]
    Newer {
        /// Version of the row.
        found: u16,
    },
    /// The bytes are not a row.
    #[error("the bytes are not a row")]
    Malformed {
        /// What the decoder found.
        #[source]
        source: codec::DecodeError,
    },
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    v: u16,
    row: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeIn<T> {
    row: T,
}

#[derive(Deserialize)]
struct EnvelopeVersion {
    v: u16,
}

pub(super) fn encode_row<T: Serialize>(row: &T) -> Result<Vec<u8>, EncodeError> {
    codec::encode(&EnvelopeOut { v: ROW_VERSION, row })
}

pub(super) fn decode_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RowError> {
    let EnvelopeVersion { v } = codec::decode(bytes).map_err(|source| RowError::Malformed { source })?;
    if v > ROW_VERSION {
        return Err(RowError::Newer { found: v });
    }
    let EnvelopeIn { row } = codec::decode(bytes).map_err(|source| RowError::Malformed { source })?;
    Ok(row)
}
