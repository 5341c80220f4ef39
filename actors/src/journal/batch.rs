//! What one commit does. All operations of a batch take effect together or not at all.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use drover_schemas::{RequestId, Token, VmId};
use ipnet::Ipv4Net;

use super::error::JournalError;
use super::rows::{LeaseRow, OutboxRow, RequestRow, RequestState, UidRow, VmRow, encode_row};
use crate::network::NetworkDef;

/// Which part of the outbox an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventClass {
    /// Changes of state: always fit.
    State,
    /// Events of the guest's programs, and the audit: refused first when the outbox fills.
    Agent,
}

/// One operation.
#[derive(Debug, Clone)]
pub enum Op {
    /// Writes a VM's row and its name.
    PutVm(Box<VmRow>),
    /// Removes a VM's row, its name and its position in the stream.
    RemoveVm {
        /// The VM.
        vm_id: VmId,
    },
    /// Binds a request id, or moves it on.
    PutRequest {
        /// The namespace that the id counts in.
        namespace: Token,
        /// The id.
        request_id: RequestId,
        /// What it is bound to.
        row: Box<RequestRow>,
    },
    /// Forgets the requests of a VM that are not finished: nobody here will finish them.
    ForgetRequests {
        /// The VM.
        vm_id: VmId,
    },
    /// Forgets finished requests, released addresses and users whose time is over.
    Prune {
        /// Requests bound before this time are forgotten.
        requests_before_unix_ms: u64,
        /// Quarantines that end before this time are over.
        now_unix_ms: u64,
    },
    /// Stores an event for the bus.
    PutOutbox {
        /// Which part of the outbox.
        class: EventClass,
        /// The event.
        row: Box<OutboxRow>,
    },
    /// The stream has the event: it leaves the outbox.
    AckOutbox {
        /// The VM.
        key: VmId,
        /// The event; events before it are acknowledged too.
        seq: u64,
        /// Its place in the stream.
        stream_seq: u64,
    },
    /// Gives an address to a VM.
    PutLease(LeaseRow),
    /// Takes an address back.
    ReleaseLease {
        /// The network.
        network: Token,
        /// The address.
        ipv4: Ipv4Addr,
        /// Not to be given away before this time; `None` frees it at once.
        quarantine_until_unix_ms: Option<u64>,
    },
    /// Gives a Unix user to a VM.
    PutUid(UidRow),
    /// Takes a Unix user back.
    ReleaseUid {
        /// The user.
        uid: u32,
        /// Not to be given away before this time; `None` frees it at once.
        quarantine_until_unix_ms: Option<u64>,
    },
    /// Notes when the stream of events was made, to notice another one under its name.
    PutStreamIdentity(String),
    /// Whether the host takes new VMs.
    PutDraining(bool),
    /// Notes the subnets that the host has out of pools of the fleet, by the names of its networks.
    PutSubnets(BTreeMap<Token, Ipv4Net>),
    /// Notes the networks that verbs made.
    PutNetworks(Vec<NetworkDef>),
    /// Notes the boot of the host in which every VM was looked at.
    PutBoot(String),
}

/// The operations of one commit.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    ops: Vec<Op>,
    essential: bool,
}

impl Batch {
    /// A batch without operations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks the batch as one that frees something or records an end (a delete, an exit, an
    /// acknowledgement): it commits from the space set aside when the disk is full.
    #[must_use]
    pub fn essential(mut self) -> Self {
        self.essential = true;
        self
    }

    /// Takes a VM out of the journal with all that it holds, the events that wait of it and what is asked of it: it
    /// is not this host's, or never was.
    #[must_use]
    pub fn take_out(row: &VmRow) -> Self {
        let vm_id = row.vm_id;
        let events = Op::AckOutbox { key: vm_id, seq: u64::MAX, stream_seq: 0 };
        let mut batch = Self::new().essential().with(events).with(Op::ForgetRequests { vm_id });
        batch.push(Op::RemoveVm { vm_id });
        for nic in &row.nics {
            let (network, ipv4) = (nic.network.clone(), nic.ipv4);
            batch.push(Op::ReleaseLease { network, ipv4, quarantine_until_unix_ms: None });
        }
        batch.push(Op::ReleaseUid { uid: row.uid, quarantine_until_unix_ms: None });
        batch
    }

    /// Adds the user and the addresses of a VM, which are its own from this commit on.
    pub fn push_leases(&mut self, row: &VmRow) {
        let (vm_id, quarantine_until_unix_ms) = (row.vm_id, None);
        for nic in &row.nics {
            let (network, ipv4) = (nic.network.clone(), nic.ipv4);
            self.push(Op::PutLease(LeaseRow { network, ipv4, vm_id, quarantine_until_unix_ms }));
        }
        self.push(Op::PutUid(UidRow { uid: row.uid, vm_id, quarantine_until_unix_ms }));
    }

    /// Adds an operation.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Adds an operation, in a chain.
    #[must_use]
    pub fn with(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// The operations in order.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn has_agent_events(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::PutOutbox { class: EventClass::Agent, .. }))
    }

    /// Encodes the rows in the caller's task, so that the writer only writes.
    pub(super) fn encode(self) -> Result<EncodedBatch, JournalError> {
        let ops = self.ops.into_iter().map(encode_op).collect::<Result<_, _>>()?;
        Ok(EncodedBatch { ops, essential: self.essential })
    }
}

impl FromIterator<Op> for Batch {
    fn from_iter<I: IntoIterator<Item = Op>>(iter: I) -> Self {
        Self { ops: iter.into_iter().collect(), essential: false }
    }
}

#[derive(Debug)]
pub(super) struct EncodedBatch {
    pub ops: Vec<EncodedOp>,
    pub essential: bool,
}

#[derive(Debug)]
pub(super) enum EncodedOp {
    /// `named`: the name is its own; that of a VM in quarantine is free for another one.
    PutVm {
        vm_id: VmId,
        namespace: Token,
        name: Token,
        named: bool,
        row: Vec<u8>,
    },
    RemoveVm {
        vm_id: VmId,
    },
    PutRequest {
        namespace: Token,
        request_id: RequestId,
        bound_unix_ms: u64,
        done: bool,
        row: Vec<u8>,
    },
    ForgetRequests {
        vm_id: VmId,
    },
    Prune {
        requests_before_unix_ms: u64,
        now_unix_ms: u64,
    },
    PutOutbox {
        class: EventClass,
        key: VmId,
        seq: u64,
        row: Vec<u8>,
    },
    AckOutbox {
        key: VmId,
        seq: u64,
        stream_seq: u64,
    },
    PutLease {
        network: Token,
        ipv4: Ipv4Addr,
        vm_id: VmId,
        row: Vec<u8>,
    },
    ReleaseLease {
        network: Token,
        ipv4: Ipv4Addr,
        quarantine_until_unix_ms: Option<u64>,
    },
    PutUid {
        uid: u32,
        vm_id: VmId,
        row: Vec<u8>,
    },
    ReleaseUid {
        uid: u32,
        quarantine_until_unix_ms: Option<u64>,
    },
    PutStreamIdentity(String),
    PutDraining(bool),
    PutSubnets(String),
    PutNetworks(String),
    PutBoot(String),
}

fn encode_op(op: Op) -> Result<EncodedOp, JournalError> {
    fn bytes<T: serde::Serialize>(table: &'static str, row: &T) -> Result<Vec<u8>, JournalError> {
        encode_row(row).map_err(|source| JournalError::Encode { table, source: source.into() })
    }
    Ok(match op {
        Op::PutVm(row) => {
            let encoded = bytes("vms", &*row)?;
            let named = row.quarantined.is_none();
            EncodedOp::PutVm {
                vm_id: row.vm_id,
                namespace: row.namespace,
                name: row.name,
                named,
                row: encoded,
            }
        }
        Op::RemoveVm { vm_id } => EncodedOp::RemoveVm { vm_id },
        Op::PutRequest { namespace, request_id, row } => EncodedOp::PutRequest {
            namespace,
            request_id,
            bound_unix_ms: row.bound_unix_ms,
            done: matches!(row.state, RequestState::Done { .. }),
            row: bytes("requests", &*row)?,
        },
        Op::ForgetRequests { vm_id } => EncodedOp::ForgetRequests { vm_id },
        Op::Prune { requests_before_unix_ms, now_unix_ms } => {
            EncodedOp::Prune { requests_before_unix_ms, now_unix_ms }
        }
        Op::PutOutbox { class, row } => {
            EncodedOp::PutOutbox { class, key: row.key, seq: row.seq, row: bytes("outbox", &*row)? }
        }
        Op::AckOutbox { key, seq, stream_seq } => EncodedOp::AckOutbox { key, seq, stream_seq },
        Op::PutLease(row) => {
            let encoded = bytes("leases", &row)?;
            EncodedOp::PutLease { network: row.network, ipv4: row.ipv4, vm_id: row.vm_id, row: encoded }
        }
        Op::ReleaseLease { network, ipv4, quarantine_until_unix_ms } => {
            EncodedOp::ReleaseLease { network, ipv4, quarantine_until_unix_ms }
        }
        Op::PutUid(row) => EncodedOp::PutUid { uid: row.uid, vm_id: row.vm_id, row: bytes("uids", &row)? },
        Op::ReleaseUid { uid, quarantine_until_unix_ms } => {
            EncodedOp::ReleaseUid { uid, quarantine_until_unix_ms }
        }
        Op::PutStreamIdentity(identity) => EncodedOp::PutStreamIdentity(identity),
        Op::PutDraining(on) => EncodedOp::PutDraining(on),
        Op::PutSubnets(subnets) => {
            let pairs = subnets.iter().map(|(network, subnet)| format!("{network}={subnet}"));
            EncodedOp::PutSubnets(pairs.collect::<Vec<_>>().join(" "))
        }
        Op::PutNetworks(networks) => {
            // In words, as the configuration has them: so do later versions read them.
            let text = serde_json::to_string(&networks);
            let failed =
                |source: serde_json::Error| JournalError::Networks { step: "written", source: source.into() };
            EncodedOp::PutNetworks(text.map_err(failed)?)
        }
        Op::PutBoot(boot) => EncodedOp::PutBoot(boot),
    })
}
