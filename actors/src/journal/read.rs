//! Reads: the snapshot at start, request ids, and pages of the outbox.

use std::collections::BTreeMap;

use drover_schemas::{RequestId, Token, VmId};
use ipnet::Ipv4Net;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;

use super::error::JournalError;
use super::rows::{LeaseRow, OutboxRow, Position, RequestRow, UidRow, VmRow, decode_row};
use super::store::{
    Bytes, IN_FLIGHT, LEASES, META, META_BOOT, META_DRAINING, META_NETWORKS, META_STREAM, META_SUBNETS,
    OUTBOX_AGENT, OUTBOX_STATE, POSITIONS, REQUEST_COUNTS, REQUESTS, ReadFailure, UIDS, VMS,
};
use super::{JournalHandle, REQUEST_AHEAD_MS, REQUEST_WINDOW_MS};
use crate::network::NetworkDef;

/// Everything that a starting daemon needs.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every VM, by id.
    pub vms: Vec<VmRow>,
    /// Every address that is held or in quarantine.
    pub leases: Vec<LeaseRow>,
    /// Every Unix user that is held or in quarantine.
    pub uids: Vec<UidRow>,
    /// Requests that were accepted and not answered.
    pub in_flight: Vec<InFlightRequest>,
    /// Rows that this drover cannot read. They stay as they are.
    pub unreadable: Vec<Unreadable>,
}

/// A request that was accepted and not answered when the daemon ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightRequest {
    /// The namespace that the id counts in.
    pub namespace: Token,
    /// The id.
    pub request_id: RequestId,
    /// What it is bound to.
    pub row: RequestRow,
}

/// A row that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The table.
    pub table: &'static str,
    /// The row.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// What is known of a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestLookup {
    /// Never seen.
    Unknown,
    /// Bound to this.
    Bound(Box<RequestRow>),
    /// So old that it may have been forgotten: refused, never run.
    TooOld,
    /// From so far in the future that it could not be remembered for long enough: refused, never run.
    TooNew,
}

impl JournalHandle {
    /// Reads everything that a starting daemon needs. Blocks; call it once, at start.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn load(&self) -> Result<Snapshot, JournalError> {
        self.0.store.read("vms", |txn| {
            let mut snapshot = Snapshot::default();
            let bad = &mut snapshot.unreadable;
            snapshot.vms = all(txn, VMS, "vms", bad, |key| VmId::from_u128(key).to_string())?;
            snapshot.leases = all(txn, LEASES, "leases", bad, |(network, ip)| {
                format!("{network}/{}", std::net::Ipv4Addr::from(ip))
            })?;
            snapshot.uids = all(txn, UIDS, "uids", bad, |uid| uid.to_string())?;
            let requests = txn.open_table(REQUESTS)?;
            for entry in txn.open_table(IN_FLIGHT)?.iter()? {
                let entry = entry?.0;
                let (ns, id) = entry.value();
                let request_id = RequestId::from_u128(id);
                let row = requests.get((ns, id))?;
                let row = row.map(|row| decode_row(row.value()).map_err(|e| e.to_string()));
                match (Token::new(ns), row.unwrap_or_else(|| Err("it is missing".to_owned()))) {
                    (Ok(namespace), Ok(row)) => {
                        snapshot.in_flight.push(InFlightRequest { namespace, request_id, row });
                    }
                    (_, Err(reason)) => {
                        bad.push(Unreadable { table: "requests", key: format!("{ns}/{request_id}"), reason });
                    }
                    (Err(e), _) => bad.push(Unreadable {
                        table: "requests",
                        key: format!("{ns}/{request_id}"),
                        reason: e.to_string(),
                    }),
                }
            }
            Ok(snapshot)
        })
    }

    /// What is known of a request id. `now_unix_ms` decides whether it is too old to be known.
    ///
    /// # Errors
    /// [`JournalError`] if the file fails or the row cannot be read; the request must not run then.
    pub fn request(
        &self,
        namespace: &Token,
        request_id: RequestId,
        now_unix_ms: u64,
    ) -> Result<RequestLookup, JournalError> {
        let (ns, id) = (namespace.as_str(), request_id.as_u128());
        self.0.store.read("requests", |txn| {
            if let Some(row) = txn.open_table(REQUESTS)?.get((ns, id))? {
                let row = decode_row(row.value()).map_err(|source| ReadFailure::Row {
                    table: "requests",
                    key: format!("{ns}/{request_id}"),
                    source,
                })?;
                return Ok(RequestLookup::Bound(Box::new(row)));
            }
            let floor = txn.open_table(REQUEST_COUNTS)?.get(ns)?.map_or(0, |v| v.value().1);
            let at = request_id.unix_ms();
            let too_old = at.saturating_add(REQUEST_WINDOW_MS) <= now_unix_ms || at <= floor && floor > 0;
            let too_new = at > now_unix_ms.saturating_add(REQUEST_AHEAD_MS);
            Ok(match (too_old, too_new) {
                (true, _) => RequestLookup::TooOld,
                (_, true) => RequestLookup::TooNew,
                _ => RequestLookup::Unknown,
            })
        })
    }

    /// The next events of a VM, from sequence `from` on, at most `limit`, in order.
    ///
    /// # Errors
    /// [`JournalError`]; a row that cannot be read stops the VM's events there.
    pub fn outbox_page(&self, key: VmId, from: u64, limit: usize) -> Result<Vec<OutboxRow>, JournalError> {
        let k = key.as_u128();
        self.0.store.read("outbox", |txn| {
            let mut page: Vec<OutboxRow> = Vec::new();
            for table in [OUTBOX_STATE, OUTBOX_AGENT] {
                for entry in txn.open_table(table)?.range((k, from)..=(k, u64::MAX))?.take(limit) {
                    let (at, row) = entry?;
                    page.push(decode_row(row.value()).map_err(|source| ReadFailure::Row {
                        table: "outbox",
                        key: super::rows::event_id(key, at.value().1),
                        source,
                    })?);
                }
            }
            page.sort_by_key(|row| row.seq);
            page.truncate(limit);
            Ok(page)
        })
    }

    /// Where the events of a VM stand in the stream; `None` before the first acknowledgement.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn position(&self, key: VmId) -> Result<Option<Position>, JournalError> {
        self.0.store.read("positions", |txn| {
            let position = txn.open_table(POSITIONS)?.get(key.as_u128())?.map(|p| p.value());
            Ok(position.map(|(seq, stream_seq)| Position { seq, stream_seq }))
        })
    }

    /// What identified the stream of events when it was last seen.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn stream_identity(&self) -> Result<Option<String>, JournalError> {
        self.0
            .store
            .read("meta", |txn| Ok(txn.open_table(META)?.get(META_STREAM)?.map(|v| v.value().to_owned())))
    }

    /// The boot of the host in which a daemon last looked at every VM.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn last_boot(&self) -> Result<Option<String>, JournalError> {
        self.0
            .store
            .read("meta", |txn| Ok(txn.open_table(META)?.get(META_BOOT)?.map(|v| v.value().to_owned())))
    }

    /// The subnets that the host has out of pools of the fleet, by the names of its networks.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn subnets(&self) -> Result<BTreeMap<Token, Ipv4Net>, JournalError> {
        let text = self
            .0
            .store
            .read("meta", |txn| Ok(txn.open_table(META)?.get(META_SUBNETS)?.map(|v| v.value().to_owned())))?;
        // One that cannot be read is claimed again: the host's claim on the bus has it still.
        let pair = |pair: &str| {
            let (network, subnet) = pair.split_once('=')?;
            Some((Token::new(network).ok()?, subnet.parse().ok()?))
        };
        Ok(text.unwrap_or_default().split_whitespace().filter_map(pair).collect())
    }

    /// The networks that verbs made. What is no list of networks to this version is an error: VMs may have interfaces in them.
    ///
    /// # Errors
    /// [`JournalError`] if the file fails, or says what cannot be read.
    pub fn networks(&self) -> Result<Vec<NetworkDef>, JournalError> {
        let text = self.0.store.read("meta", |txn| {
            Ok(txn.open_table(META)?.get(META_NETWORKS)?.map(|v| v.value().to_owned()))
        })?;
        let Some(text) = text else { return Ok(Vec::new()) };
        serde_json::from_str(&text)
            .map_err(|source| JournalError::Networks { step: "read", source: source.into() })
    }

    /// Whether an operator told the host to take no new VMs.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn draining(&self) -> Result<bool, JournalError> {
        self.0.store.read("meta", |txn| Ok(txn.open_table(META)?.get(META_DRAINING)?.is_some()))
    }
}

/// Every readable row of a table; the others are listed.
fn all<K, T>(
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, Bytes>,
    name: &'static str,
    unreadable: &mut Vec<Unreadable>,
    show: impl Fn(K::SelfType<'_>) -> String,
) -> Result<Vec<T>, ReadFailure>
where
    K: redb::Key + 'static,
    T: DeserializeOwned,
{
    let mut rows = Vec::new();
    for entry in txn.open_table(table)?.iter()? {
        let (key, row) = entry?;
        match decode_row(row.value()) {
            Ok(row) => rows.push(row),
            Err(e) => {
                let reason = match std::error::Error::source(&e) {
                    Some(source) => format!("{e}: {source}"),
                    None => e.to_string(),
                };
                unreadable.push(Unreadable { table: name, key: show(key.value()), reason });
            }
        }
    }
    Ok(rows)
}
